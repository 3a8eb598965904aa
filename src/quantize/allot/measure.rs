//! What rounding a matrix by itself does to the distributions of the next token.

use std::sync::Arc;

use half::bf16;

use super::{Choice, Measure};
use crate::alloc;
use crate::backend::cpu::Activations;
use crate::backend::select::BackendRequest;
use crate::engine::Drafts;
use crate::error::{Error, Result};
use crate::forward::{Adapter, Update};
use crate::model::{LoadOptions, Model, ModelFiles};
use crate::quant::{Format, Matrix, Plane, QuantWeight, write_floats};
use crate::quantize::{BUFFER, ELEMENTS};
use crate::sample::Distribution;
use crate::tensor::{DType, Weight};
use crate::weights::{Form, aligned};

/// By how many bits a weight the type that is measured is coarser than what is asked for.
const COARSER: f64 = 1.0;
/// Tokens whose log-probability is below this are counted as none.
const IMPOSSIBLE: f64 = -25.0;
/// Matrices for which the model is loaded anew, at most.
const LOADS: usize = 8;
/// Bytes for what the model keeps of the text.
const STATES: u64 = 1 << 30;
/// Tokens of a text that tell anything.
pub(super) const LEAST: usize = 16;
/// Bytes of a token, at most, on average.
const LONGEST: usize = 32;

/// What a unit of square error costs in each matrix; `None` where that cannot be measured.
pub(super) fn prices(
    files: &ModelFiles,
    choices: &[Choice<'_>],
    (bits, measure): (f64, Measure<'_>),
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Vec<Option<f64>>>> {
    let largest = choices.iter().map(|choice| choice.elements).max().unwrap_or(0);
    let options = LoadOptions {
        backend: BackendRequest::Cpu,
        // Rounding of activations would be larger than what is looked for.
        activations: Activations::F32,
        context: Some(measure.tokens.clamp(1, files.config().max_context())),
        max_sequences: Some(1),
        threads: measure.threads,
        // Adapters take their memory of that for keys and values.
        kv_memory: Some(STATES + 3 * largest),
        drafts: Drafts::Off,
        ..LoadOptions::default()
    };
    let model = Model::load_with(ModelFiles::open(&files.path)?, options.clone())?;
    let tokens = tokens(&model, measure)?;
    let rows = |model: &Model| model.logits_rows(&tokens, 0..tokens.len());
    let before: Vec<Before> = rows(&model)?.map(|row| Before::of(&row?)).collect::<Result<_>>()?;
    let moved = |model: &Model| {
        let mut sum = 0.0;
        for (before, after) in before.iter().zip(rows(model)?) {
            sum += before.divergence(&after?);
        }
        Ok::<_, Error>(sum / before.len() as f64)
    };

    let (total, mut done) = (choices.len() as u64, 0);
    let (mut prices, mut left) = (vec![None; choices.len()], Vec::new());
    for (choice, price) in choices.iter().zip(&mut prices) {
        if !progress(done, total) {
            return Ok(None);
        }
        let Some(probe) = choice.probe(bits) else {
            done += 1;
            continue;
        };
        let module = probe.module.to_owned();
        if !model.engine().with(move |runtime| runtime.has_place(&module))? {
            left.push((price, choice));
            continue;
        }
        let adapter = Arc::new(probe.adapter(choice)?);
        *price = probe.price(moved(&model.probed(&adapter)?)?);
        done += 1;
        drop(adapter);
        model.engine().free_adapters()?;
    }
    drop(model);
    // The head, what is looked up, and others that no adapter adds to: of many, the largest.
    left.sort_by_key(|(_, choice)| std::cmp::Reverse(choice.elements));
    done += left.len().saturating_sub(LOADS) as u64;
    left.truncate(LOADS);
    for (price, choice) in left {
        if !progress(done, total) {
            return Ok(None);
        }
        done += 1;
        let Some(probe) = choice.probe(bits) else { continue };
        let mut files = ModelFiles::open(&files.path)?;
        files.checkpoint.replace(probe.module, Matrix::Quantized(probe.matrix(choice)?));
        *price = probe.price(moved(&Model::load_with(files, options.clone())?)?);
    }
    progress(total, total);
    Ok(Some(prices))
}

/// The distribution of a token before anything is rounded.
struct Before {
    /// Tokens that are not next to impossible, with their logits.
    likely: Vec<(u32, f32)>,
    log_sum: f64,
}

impl Before {
    fn of(logits: &[f32]) -> Result<Self> {
        let of = Distribution::of(logits);
        let log_sum = of.log_sum();
        if !log_sum.is_finite() {
            return Err(Error::Engine("the model's own logits are no numbers".into()));
        }
        let is_likely = |&(token, _): &(u32, f32)| of.log_p(token) >= IMPOSSIBLE;
        let all = || (0..).zip(logits.iter().copied()).filter(is_likely);
        let mut likely = Vec::new();
        alloc::reserve(&mut likely, all().count(), BUFFER)?;
        likely.extend(all());
        Ok(Self { likely, log_sum })
    }

    /// `KL(before ‖ after)`; infinite where a logit is not a number.
    fn divergence(&self, after: &[f32]) -> f64 {
        let moved = Distribution::of(after).log_sum() - self.log_sum;
        let of = |&(token, logit): &(u32, f32)| {
            (f64::from(logit) - self.log_sum).exp() * f64::from(logit - after[token as usize])
        };
        let sum = self.likely.iter().map(of).sum::<f64>() + moved;
        if sum.is_nan() { f64::INFINITY } else { sum.max(0.0) }
    }
}

/// The first tokens of the text.
fn tokens(model: &Model, Measure { text, tokens, .. }: Measure<'_>) -> Result<Vec<u32>> {
    let most = tokens.min(model.info().context);
    // Longer tokens are rare, and no text is worth encoding that is not read.
    let end = most.saturating_mul(LONGEST).min(text.len());
    let end = (0..=end).rfind(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let mut read = model.tokenizer()?.encode(&text[..end])?;
    read.truncate(most);
    if read.len() < LEAST {
        let got = read.len();
        return Err(Error::Prompt(format!("the text has {got} tokens, expected at least {LEAST}")));
    }
    Ok(read)
}

impl Choice<'_> {
    /// How it is measured where the size asks for `bits` of a weight; none of experts.
    fn probe(&self, bits: f64) -> Option<Probe<'_>> {
        // What rounds nothing tells nothing.
        let rounding = self.types.iter().rposition(|(of, ..)| of.is_some())?;
        let (of, _, error) = self.types[self.near(bits - COARSER).min(rounding)];
        let ((module, form), of) = self.module.zip(of)?;
        (self.joined.pieces.len() == 1).then_some(Probe { module, form, of, error })
    }

    /// Its values, some rows at a time, in the order in which they lie in `form`.
    fn each(&self, form: Form, mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let piece = &self.joined.pieces[0];
        let (held, rows) = (piece.source.held()?, piece.rows.len());
        let at_once = (ELEMENTS / piece.source.columns().max(1)).max(1);
        let mut values = Vec::new();
        for first in (0..rows).step_by(at_once) {
            values.clear();
            let some = first..(first + at_once).min(rows);
            held.read(some, |row| piece.source_row(form.stored_row(row, rows)), &mut values)?;
            take(&values)?;
        }
        Ok(())
    }

    fn shape(&self) -> [usize; 2] {
        let piece = &self.joined.pieces[0];
        [piece.rows.len(), piece.source.columns()]
    }
}

/// A matrix that is rounded by itself.
struct Probe<'m> {
    module: &'m str,
    /// How its rows lie.
    form: Form,
    of: Format,
    /// The square error of that type.
    error: f64,
}

impl Probe<'_> {
    /// What a unit of square error costs where this one costs `moved`.
    fn price(&self, moved: f64) -> Option<f64> {
        let price = if self.error > 0.0 { moved / self.error } else { 0.0 };
        price.is_finite().then_some(price)
    }

    /// The rounded matrix.
    fn matrix(&self, choice: &Choice<'_>) -> Result<QuantWeight> {
        let mut planes: [Vec<u8>; 3] = Default::default();
        choice.each(self.form, |values| {
            let encoded = choice.encoded(self.of, values, choice.importance.as_deref())?;
            for (plane, more) in planes.iter_mut().zip(encoded) {
                alloc::reserve(plane, more.len(), BUFFER)?;
                plane.extend_from_slice(&more);
            }
            Ok(())
        })?;
        Ok(weight(self.module, self.of, choice.shape(), planes))
    }

    /// What rounding adds to the matrix.
    fn adapter(&self, choice: &Choice<'_>) -> Result<Adapter> {
        let [rows, columns] = choice.shape();
        let mut bytes: Vec<u8> = Vec::new();
        alloc::reserve(&mut bytes, rows * columns * size_of::<bf16>(), BUFFER)?;
        choice.each(self.form, |values| {
            let rounded = choice.rounded(self.of, values, choice.importance.as_deref())?;
            let added = rounded.iter().zip(values).map(|(rounded, value)| bf16::from_f32(rounded - value));
            added.for_each(|added| bytes.extend_from_slice(&added.to_le_bytes()));
            Ok(())
        })?;
        // The other factor is the identity, of the smaller side.
        let rank = rows.min(columns);
        let mut one = alloc::zeroed(rank * rank * size_of::<bf16>(), BUFFER)?;
        for at in 0..rank {
            let place = (at * rank + at) * size_of::<bf16>();
            one[place..place + size_of::<bf16>()].copy_from_slice(&bf16::ONE.to_le_bytes());
        }
        let weight = |shape: [usize; 2], bytes: &[u8]| -> Result<Weight> {
            Ok(Weight::new(self.module, DType::BF16, &shape, aligned(bytes)?, 0..bytes.len()))
        };
        let (added, one) = (weight([rows, columns], &bytes)?, weight([rank, rank], &one)?);
        let (low, high) = if rank == columns { (one, added) } else { (added, one) };
        let module = self.module.to_owned();
        let update = Update { module, first: 0, low, high, scale: 1.0, magnitude: None };
        Ok(Adapter {
            path: choice.name.clone().into(),
            kind: "a rounding".to_owned(),
            updates: vec![update],
            key: format!("{} in {}", choice.name, self.of),
        })
    }
}

impl Choice<'_> {
    /// Rows of its columns in a type.
    fn encoded(&self, of: Format, values: &[f32], importance: Option<&[f32]>) -> Result<[Vec<u8>; 3]> {
        let columns = self.columns();
        let rows = values.len() / columns.max(1);
        let mut planes: [Vec<u8>; 3] = Default::default();
        for (plane, width) in planes.iter_mut().zip(of.row_bytes(columns)) {
            *plane = alloc::zeroed(rows * width, BUFFER)?;
        }
        // Affine groups have their scales in the type of the matrix.
        let dtype = if let Format::Affine { scales, .. } = of { scales } else { DType::F32 };
        let mut bytes: Vec<u8> = alloc::zeroed(values.len() * dtype.size(), BUFFER)?;
        write_floats(dtype, values, &mut bytes);
        let out = planes.each_mut().map(|plane| &mut plane[..]);
        if of.encode_weighed(dtype, columns, &bytes, importance, out).is_some() {
            let what = format!("holds a value that is not finite in {of}, or too large for it");
            return Err(self.joined.source().fail(what));
        }
        Ok(planes)
    }

    /// The same, decoded.
    pub(super) fn rounded(&self, of: Format, values: &[f32], importance: Option<&[f32]>) -> Result<Vec<f32>> {
        let columns = self.columns();
        let planes = self.encoded(of, values, importance)?;
        let weight = weight(&self.name, of, [values.len() / columns.max(1), columns], planes);
        let mut decoded = alloc::zeroed(values.len(), BUFFER)?;
        for (row, out) in decoded.chunks_exact_mut(columns).enumerate() {
            weight.dequantize_row(row, out);
        }
        Ok(decoded)
    }
}

/// A matrix of the planes that a format has.
fn weight(name: &str, of: Format, shape: [usize; 2], planes: [Vec<u8>; 3]) -> QuantWeight {
    let count = of.row_bytes(shape[1]).len();
    QuantWeight::new(name, of, shape, planes.into_iter().take(count).map(Plane::owned))
}
