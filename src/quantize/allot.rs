//! Which type each matrix of a GGUF file or an MLX directory gets, under a size, by what it costs there.
//!
//! How far a model's distributions move (KL) when its matrices are rounded is about the sum of what each of them moves by itself, and that
//! grows with the square error of its rounding. So each matrix is rounded to one type, alone, and what that moves on a text is measured: it
//! is what a unit of square error costs in this matrix. What its other types would cost then follows from their square errors, which some of
//! its rows tell. Of all matrices, that one gets more bits whose divergence falls most for a byte, until there is no room.
//!
//! A matrix is rounded without touching the model: what the rounding adds to it is an adapter of full rank. For the head and the embedding,
//! which no adapter adds to, the model is loaded with the rounded one in its place.

mod measure;

use std::collections::BTreeMap;
use std::str::FromStr;

use self::measure::{LEAST, prices};
use super::naming::{Naming, factor_tensors, module_of};
use super::stacks::{Joined, joined};
use super::types::{GgufType, Traits, fitting};
use super::{Names, PlannedTensor, check_format, sources};
use crate::error::{Error, Result};
use crate::forward::WeightList;
use crate::imatrix::Imatrix;
use crate::model::ModelFiles;
use crate::quant::{Format, GgmlType, MlxFormat, MlxMode};
use crate::tensor::DType;
use crate::weights::Form;
use crate::weights::gguf::TensorType;

/// Types that a matrix of a GGUF file may get, the smallest first. `F16` is behind them.
const TYPES: [GgmlType; 7] = [
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::IQ4_XS,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::Q8_0,
];
/// Bits of the affine groups that a matrix of an MLX directory may get. Its own type is behind them.
const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];
/// Rows of a matrix whose square errors are taken for all.
const ROWS: usize = 64;

/// How large the tensors of a file are to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// Bits of a weight, on average.
    Bits(f64),
    /// All of them.
    Bytes(u64),
}

impl Size {
    const EXPECTED: &str = "expected bits of a weight, like 4.5bpw, or a size, like 900MB or 3.2GB";

    fn bytes(self, elements: u64) -> u64 {
        match self {
            Self::Bits(bits) => (bits * elements as f64 / 8.0) as u64,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let units = [("bpw", None), ("gb", Some(1e9)), ("mb", Some(1e6)), ("kb", Some(1e3))];
        let found = units.iter().find_map(|&(unit, by)| Some((lower.strip_suffix(unit)?.trim(), by)));
        let (number, by) = found.ok_or_else(|| Self::EXPECTED.to_owned())?;
        let number: f64 = number.parse().map_err(|_| Self::EXPECTED.to_owned())?;
        match by {
            None if (1.0..=16.0).contains(&number) => Ok(Self::Bits(number)),
            None => Err("expected from 1 to 16 bits of a weight".to_owned()),
            Some(by) if number > 0.0 && number * by < 1e15 => Ok(Self::Bytes((number * by) as u64)),
            Some(_) => Err(Self::EXPECTED.to_owned()),
        }
    }
}

/// What tells how much matrices matter.
#[derive(Debug, Clone, Copy)]
pub struct Measure<'a> {
    /// A text of what the model is for.
    pub text: &'a str,
    /// How many of its tokens are computed, for each matrix.
    pub tokens: usize,
    /// What columns are worth, where it is known.
    pub imatrix: Option<&'a Imatrix>,
    /// Threads of the CPU.
    pub threads: Option<usize>,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// A GGUF file.
    Gguf,
    /// A directory with affine groups of so many.
    Mlx {
        /// Elements that share a scale: 32, 64 or 128.
        group: u16,
    },
}

/// The types of a model's matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct Allotment {
    /// By the names of tensors in a GGUF file, and by the paths of modules in a directory; `None` is no format: F16 there, and what
    /// the matrix has here.
    pub(super) types: BTreeMap<String, Option<Format>>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bits of a weight, on average.
    pub bits: f64,
    /// The divergence that is expected, in nats: what was measured, added up.
    pub expected: f64,
    /// Matrices that have no measure of their own: experts, and some of those that no adapter adds to.
    pub unmeasured: usize,
}

impl Allotment {
    /// How many matrices there are of each type, the smallest type first.
    pub fn counts(&self) -> Vec<(String, usize)> {
        let mut counts: Vec<(Option<Format>, usize)> = Vec::new();
        for of in self.types.values() {
            match counts.iter_mut().find(|(known, _)| known == of) {
                Some((_, count)) => *count += 1,
                None => counts.push((*of, 1)),
            }
        }
        counts.sort_by(|(a, _), (b, _)| bits_of(*a).total_cmp(&bits_of(*b)));
        let name = |of: Option<Format>| of.map_or_else(|| "no blocks".to_owned(), |of| of.to_string());
        counts.into_iter().map(|(of, count)| (name(of), count)).collect()
    }

    /// The type of a whole file that is most like it.
    pub(super) fn most_like(&self) -> GgufType {
        let bits = |of: GgufType| match of.of("", 256, Traits::default()) {
            TensorType::Blocks(of) => bits_of(Some(Format::Ggml(of))),
            TensorType::Dense(_) => bits_of(None),
        };
        let near = |of: &GgufType| (bits(*of) - self.bits).abs();
        GgufType::ALL.into_iter().min_by(|a, b| near(a).total_cmp(&near(b))).unwrap_or(GgufType::Q4_K_M)
    }

    /// The affine groups that most matrices have.
    pub(super) fn most_common(&self) -> Option<MlxFormat> {
        let count = |bits: u8| {
            let is_it =
                |of: &&Option<Format>| matches!(of, Some(Format::Affine { bits: of, .. }) if *of == bits);
            self.types.values().filter(is_it).count()
        };
        let bits = BITS.into_iter().max_by_key(|&bits| count(bits))?;
        self.types.values().find_map(|of| match *of {
            Some(Format::Affine { bits: of, group, .. }) if of == bits => {
                Some(MlxFormat { mode: MlxMode::Affine, bits, group })
            }
            _ => None,
        })
    }
}

/// A matrix with the types that it may get.
struct Choice<'s> {
    /// Its name, or its module's path, in what is written.
    name: String,
    joined: Joined<'s>,
    elements: u64,
    /// The smallest first, each with its bytes and its square error.
    types: Vec<(Option<Format>, u64, f64)>,
    importance: Option<Vec<f32>>,
    /// The module whose weight it is, and how its rows lie in what is read; none of a stack.
    module: Option<(&'s str, Form)>,
}

/// All matrices that may get several types, and what the other tensors take.
struct Choices<'s> {
    all: Vec<Choice<'s>>,
    fixed: u64,
    elements: u64,
}

/// Chooses a type for each matrix of a model, so that all tensors together have `size` at most and the model that `files` hold moves little
/// by it. It is loaded, and computes the text once for each matrix. `progress` is told how many matrices of how many are measured; where it
/// says `false`, the answer is `None`.
///
/// # Errors
/// As [`to_gguf`](super::to_gguf) or [`to_mlx`](super::to_mlx), and what loading and computing the model reports; [`Error::Format`] for a
/// size that is too small.
pub fn allot(
    files: &ModelFiles,
    container: Container,
    size: Size,
    measure: Measure<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Allotment>> {
    if measure.tokens < LEAST {
        let (got, expected) = (measure.tokens.to_string(), "at least 16");
        return Err(Error::Option { option: "tokens", got, expected });
    }
    // What cannot be written is not measured.
    super::check(files, container)?;
    let list = files.architecture.weights();
    let sources = sources(files, &list)?;
    let joined = joined(&list, &sources)?;
    let made = match container {
        Container::Gguf => of_gguf(files, &list, joined, measure.imatrix)?,
        Container::Mlx { group } => {
            let names = Names::of(files, &list, &sources);
            of_mlx(files, &list, &names, joined, (group, measure.imatrix))?
        }
    };
    let Choices { all: mut choices, fixed, elements } = made;
    if let Some(imatrix) = measure.imatrix
        && choices.iter().all(|choice| choice.importance.is_none())
    {
        let what = "has none of the model's matrices: it is another model's".to_owned();
        return Err(Error::format(&imatrix.path, what));
    }
    let budget = size.bytes(elements);
    let bits = match size {
        Size::Bits(bits) => bits,
        Size::Bytes(bytes) => bytes as f64 * 8.0 / elements.max(1) as f64,
    };
    let least: u64 = fixed + choices.iter().map(|choice| choice.types[0].1).sum::<u64>();
    if least > budget {
        let what = format!(
            "cannot have {bits:.2} bits a weight: with the smallest types it has {:.2}, {:.1} MB",
            least as f64 * 8.0 / elements.max(1) as f64,
            least as f64 / 1e6
        );
        return Err(Error::format(&files.path, what));
    }
    let count = choices.len() as u64;
    for choice in &mut choices {
        if !progress(0, count) {
            return Ok(None);
        }
        choice.measure()?;
    }

    let Some(prices) = prices(files, &choices, (bits, measure), progress)? else { return Ok(None) };
    // What is not measured has about the size that was asked for, and less where there is no room for that.
    let is_known = |(choice, price): (&Choice<'_>, &Option<f64>)| price.is_some() || choice.types.len() == 1;
    let places = |most: f64| -> Vec<Option<usize>> {
        let each = choices.iter().zip(&prices);
        each.map(|(choice, price)| (!is_known((choice, price))).then(|| choice.near(most))).collect()
    };
    let size = |places: &[Option<usize>]| -> u64 {
        let each = choices.iter().zip(places);
        fixed + each.map(|(choice, place)| choice.types[place.unwrap_or(0)].1).sum::<u64>()
    };
    let mut most = bits;
    let mut unmeasured = places(most);
    while size(&unmeasured) > budget {
        most -= 0.125;
        unmeasured = places(most);
    }
    let options: Vec<Vec<(u64, f64)>> = (choices.iter().zip(&prices).zip(&unmeasured))
        .map(|((choice, price), place)| match place {
            Some(place) => vec![(choice.types[*place].1, 0.0)],
            None => {
                let price = price.unwrap_or(0.0);
                choice.types.iter().map(|&(_, bytes, error)| (bytes, price * error)).collect()
            }
        })
        .collect();
    let chosen = chosen(&options, budget.saturating_sub(fixed));
    let mut all = Allotment { types: BTreeMap::new(), bytes: fixed, bits: 0.0, expected: 0.0, unmeasured: 0 };
    for (((choice, place), options), &at) in choices.into_iter().zip(unmeasured).zip(&options).zip(&chosen) {
        let (bytes, cost) = options[at];
        all.bytes += bytes;
        all.expected += cost;
        all.unmeasured += usize::from(place.is_some());
        all.types.insert(choice.name, choice.types[place.unwrap_or(at)].0);
    }
    all.bits = all.bytes as f64 * 8.0 / elements.max(1) as f64;
    if all.types.values().all(Option::is_none) {
        return Err(Error::format(&files.path, "has that size as it is: nothing is to be quantized"));
    }
    Ok(Some(all))
}

fn of_gguf<'s>(
    files: &'s ModelFiles,
    list: &'s WeightList,
    joined: Vec<Joined<'s>>,
    imatrix: Option<&Imatrix>,
) -> Result<Choices<'s>> {
    let naming = Naming::of(files, list)?;
    let mut choices = Choices { all: Vec::new(), fixed: 0, elements: 0 };
    if !naming.stored {
        let factors = factor_tensors(files.config());
        choices.fixed = factors.iter().map(|(_, factors)| size_of_val(&factors[..]) as u64).sum();
    }
    for joined in joined {
        let Some(named) = naming.name(&joined)? else { continue };
        let elements = elements(&joined);
        choices.elements += elements;
        let Some(columns) = named.columns.filter(|&columns| columns > 0) else {
            choices.fixed += match named.kind(GgufType::F16, Traits::default()) {
                TensorType::Blocks(of) => bytes_of(Some(Format::Ggml(of)), elements, 0),
                TensorType::Dense(dtype) => elements * dtype.size() as u64,
            };
            continue;
        };
        let mut types: Vec<Option<Format>> = (TYPES.iter())
            .map(|&of| match fitting(of, columns) {
                TensorType::Blocks(of) => Some(Format::Ggml(of)),
                TensorType::Dense(_) => None,
            })
            .chain([None])
            .collect();
        types.sort_by(|&a, &b| bits_of(a).total_cmp(&bits_of(b)));
        types.dedup();
        let importance = match imatrix {
            Some(imatrix) => imatrix.means(&named.name, joined.pieces.len(), columns)?,
            None => None,
        };
        let module = module_of(list, &joined, naming.stored);
        let choice = Choice { name: named.name, joined, elements, types: Vec::new(), importance, module };
        choices.all.push(choice.with(types, DType::F16));
    }
    Ok(choices)
}

fn of_mlx<'s>(
    files: &'s ModelFiles,
    list: &'s WeightList,
    names: &Names<'_>,
    joined: Vec<Joined<'s>>,
    (group, imatrix): (u16, Option<&Imatrix>),
) -> Result<Choices<'s>> {
    let base = MlxFormat { mode: MlxMode::Affine, bits: 4, group };
    check_format(base)?;
    let decoded = files.config().dtype.unwrap_or(DType::F16);
    let mut choices = Choices { all: Vec::new(), fixed: 0, elements: 0 };
    for joined in joined {
        let names = names.of_tensor(&joined);
        let part = PlannedTensor::of(joined, names, base, list.in_mlx(), decoded);
        let elements = elements(&part.joined);
        choices.elements += elements;
        let Some(columns) = part.joined.columns().filter(|_| part.gets_format()) else {
            choices.fixed += part.specs().iter().map(super::Spec::bytes).sum::<u64>();
            continue;
        };
        let importance = match imatrix.zip(part.gguf_name(list)) {
            Some((imatrix, name)) => imatrix.means(&name, part.joined.pieces.len(), columns)?,
            None => None,
        };
        let module = module_of(list, &part.joined, false);
        let PlannedTensor { joined, path: name, dtype, .. } = part;
        let types = BITS.map(|bits| Some(Format::Affine { bits, group, scales: dtype }));
        let types = types.into_iter().chain([None]).collect();
        let choice = Choice { name, joined, elements, types: Vec::new(), importance, module };
        choices.all.push(choice.with(types, dtype));
    }
    Ok(choices)
}

fn elements(joined: &Joined<'_>) -> u64 {
    joined.shape.iter().map(|&dim| dim as u64).product()
}

impl<'s> Choice<'s> {
    /// With these types; what has none is in `dense`. Their errors are not known yet.
    fn with(mut self, types: Vec<Option<Format>>, dense: DType) -> Self {
        let bytes = |of: Option<Format>| match of {
            Some(_) => bytes_of(of, self.elements, self.columns()),
            None => self.elements * dense.size() as u64,
        };
        self.types = types.into_iter().map(|of| (of, bytes(of), 0.0)).collect();
        self
    }

    fn columns(&self) -> usize {
        self.joined.source().columns()
    }

    /// The largest type of no more than `bits`, or the smallest.
    fn near(&self, bits: f64) -> usize {
        let most = bits / 8.0 * self.elements as f64 + 1e-6;
        self.types.iter().rposition(|&(_, bytes, _)| bytes as f64 <= most).unwrap_or(0)
    }

    /// Takes the square errors of its types, of some rows for all.
    fn measure(&mut self) -> Result<()> {
        let (columns, pieces) = (self.columns(), &self.joined.pieces);
        let mut sums = vec![0.0; self.types.len()];
        let mut rows = 0;
        for (at, piece) in pieces.iter().enumerate().step_by(pieces.len().div_ceil(4).max(1)) {
            let held = piece.source.held()?;
            let importance = self.importance.as_ref().map(|all| &all[at * columns..(at + 1) * columns]);
            let count = piece.rows.len().min(ROWS);
            let mut values = Vec::new();
            held.read(0..count, |i| piece.source_row(i * piece.rows.len() / count), &mut values)?;
            for (sum, &(of, ..)) in sums.iter_mut().zip(&self.types) {
                let Some(of) = of else { continue };
                let rounded = self.rounded(of, &values, importance)?;
                for (values, rounded) in values.chunks_exact(columns).zip(rounded.chunks_exact(columns)) {
                    let squares = values.iter().zip(rounded).map(|(a, b)| f64::from(a - b).powi(2));
                    *sum += match importance {
                        Some(by) => squares.zip(by).map(|(square, &by)| square * f64::from(by)).sum::<f64>(),
                        None => squares.sum(),
                    };
                }
            }
            rows += count;
        }
        let all = self.elements as f64 / columns.max(1) as f64;
        for ((.., error), sum) in self.types.iter_mut().zip(sums) {
            *error = sum * all / f64::max(rows as f64, 1.0);
        }
        Ok(())
    }
}

/// Bytes of so many weights, in rows of `columns`; of GGUF's types whatever these are.
fn bytes_of(of: Option<Format>, elements: u64, columns: usize) -> u64 {
    match of {
        Some(Format::Ggml(of)) => {
            let (block, bytes) = of.block();
            elements / block as u64 * bytes as u64
        }
        Some(of) => elements / columns.max(1) as u64 * of.row_bytes(columns).iter().sum::<usize>() as u64,
        None => elements * DType::F16.size() as u64,
    }
}

fn bits_of(of: Option<Format>) -> f64 {
    // Groups and blocks are whole in this.
    const MANY: usize = 1 << 12;
    bytes_of(of, MANY as u64, MANY) as f64 * 8.0 / MANY as f64
}

/// Which of the `(bytes, cost)` of each is taken, for `budget` bytes in all and little cost: those are raised whose cost falls most for a
/// byte. Of each the smallest is first.
fn chosen(options: &[Vec<(u64, f64)>], budget: u64) -> Vec<usize> {
    let mut chosen = vec![0; options.len()];
    let mut left = budget.saturating_sub(options.iter().map(|of| of[0].0).sum());
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (which, of) in options.iter().enumerate() {
            let (bytes, cost) = of[chosen[which]];
            for (to, &(more, less)) in of.iter().enumerate().skip(chosen[which] + 1) {
                let gain = (cost - less) / (more - bytes).max(1) as f64;
                if more - bytes <= left && gain > 0.0 && best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, which, to));
                }
            }
        }
        let Some((_, which, to)) = best else { return chosen };
        left -= options[which][to].0 - options[which][chosen[which]].0;
        chosen[which] = to;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::cpu::Activations;
    use crate::model::{LoadOptions, Model};
    use crate::perplexity::{Windows, score};
    use crate::quantize::{Recipe, to_gguf, to_mlx};

    #[test]
    fn sizes_are_read() {
        let read = |text: &str| text.parse::<Size>();
        assert_eq!(read("4.5bpw"), Ok(Size::Bits(4.5)));
        assert_eq!(read(" 4.5 BPW"), Ok(Size::Bits(4.5)));
        assert_eq!(
            (read("900MB"), read("3.2GB")),
            (Ok(Size::Bytes(900_000_000)), Ok(Size::Bytes(3_200_000_000)))
        );
        for wrong in
            ["", "4.5", "bpw", "0.5bpw", "17bpw", "nanbpw", "infbpw", "-3GB", "0MB", "1e30GB", "nanMB"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    fn allotted(files: &ModelFiles, container: Container, size: Size) -> Result<Option<Allotment>> {
        let text = include_str!("../../tests/fixtures/perplexity/text.txt");
        let measure = Measure { text, tokens: 96, imatrix: None, threads: Some(2) };
        allot(files, container, size, measure, &mut |_, _| true)
    }

    /// What is expected of types is what the file is, within its size.
    #[test]
    fn files_have_their_size_and_the_divergence_that_was_expected() {
        let files = ModelFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let text = include_str!("../../tests/fixtures/perplexity/text.txt");
        let options = LoadOptions { activations: Activations::F32, ..LoadOptions::default() };
        let model = Model::load_with(ModelFiles::open(&files.path).unwrap(), options.clone()).unwrap();
        let mut tokens = model.tokenizer().unwrap().encode(text).unwrap();
        tokens.truncate(96);
        let measured = |other: &Path| {
            let other = Model::load_with(ModelFiles::open(other).unwrap(), options.clone()).unwrap();
            let (mut sum, mut count) = (0.0, 0);
            let windows = Windows::Sliding { window: 96, stride: 96 };
            score(&model, Some(&other), &tokens, windows, None, |scored| {
                sum += scored.iter().map(|one| one.divergence).sum::<f64>();
                count += scored.len();
                Ok(())
            })
            .unwrap();
            sum / f64::from(count as u32)
        };
        let write = |made: &Allotment, out: &Path| match made.most_common() {
            None => {
                let recipe = Recipe { allotment: Some(made), ..GgufType::Q4_0.into() };
                to_gguf(&files, recipe, out, &mut |_, _| true).unwrap().unwrap()
            }
            Some(of) => {
                let recipe = Recipe { allotment: Some(made), ..of.into() };
                to_mlx(&files, recipe, out, &mut |_, _| true).unwrap().unwrap()
            }
        };
        for container in [Container::Gguf, Container::Mlx { group: 64 }] {
            let mut before = f64::INFINITY;
            for bits in [5.0, 6.0, 8.0] {
                let what = format!("{bits} of {container:?}");
                let made = allotted(&files, container, Size::Bits(bits)).unwrap().unwrap();
                assert!(made.bits <= bits && made.bits > bits - 0.3, "{what}: {made:?}");
                assert!(made.counts().len() > 1 && made.unmeasured == 0, "{what}: {:?}", made.counts());
                let out = dir.path().join(&what);
                assert_eq!(write(&made, &out).bytes_out, made.bytes, "{what}");
                let divergence = measured(&out);
                assert!(divergence < before, "{what}: {divergence}, {before}");
                let ratio = divergence / made.expected;
                assert!(
                    (0.4..2.5).contains(&ratio),
                    "{what}: {divergence}, and {} was expected",
                    made.expected
                );
                before = divergence;
            }
        }
        // At the size of all in one type it is nearer than that.
        let whole = dir.path().join("whole.gguf");
        let report = to_gguf(&files, GgufType::Q5_0, &whole, &mut |_, _| true).unwrap().unwrap();
        let made = allotted(&files, Container::Gguf, Size::Bytes(report.bytes_out)).unwrap().unwrap();
        let out = dir.path().join("mixed.gguf");
        write(&made, &out);
        let [whole, mixed] = [whole, out].map(|path| measured(&path));
        assert!(mixed < whole, "{mixed} in types that were chosen, {whole} in one");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let files = ModelFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories")).unwrap();
        let error = allotted(&files, Container::Gguf, Size::Bytes(1000)).unwrap_err().to_string();
        assert!(error.contains("a weight: with the smallest types it has"), "{error}");
        let measure = Measure { text: "Hi", tokens: 96, imatrix: None, threads: Some(2) };
        let error = allot(&files, Container::Gguf, Size::Bits(6.0), measure, &mut |_, _| true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected at least 16"), "{error}");
        let measure = Measure { text: &"Once ".repeat(40), ..measure };
        assert_eq!(
            allot(&files, Container::Gguf, Size::Bits(6.0), measure, &mut |done, _| done < 2).unwrap(),
            None
        );
    }

    #[test]
    fn what_helps_most_for_a_byte_gets_more() {
        let options = [vec![(10, 8.0), (12, 4.0), (20, 0.0)], vec![(10, 2.0), (12, 1.5), (20, 0.0)]];
        let all = |budget| chosen(&options, budget);
        assert_eq!(all(20), [0, 0]);
        assert_eq!(all(22), [1, 0]);
        assert_eq!(all(24), [1, 1]);
        // 8 bytes more help the first by 4, and the second by 1.5.
        assert_eq!(all(30), [2, 0]);
        assert_eq!(all(32), [2, 1]);
        assert_eq!(all(40), [2, 2]);
        // What costs nothing gets no more.
        assert_eq!(chosen(&[vec![(10, 0.0), (20, 0.0)]], 100), [0]);
    }
}
