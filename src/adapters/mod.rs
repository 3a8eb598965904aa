//! Adapters from files: PEFT's directories, mlx-lm's, and GGUF files, as what they add to the modules of a model.
//!
//! Every tensor is one of a pair, of a module that the model has and of its shape, or the adapter is refused by the tensor's name.

mod gguf;
mod mlx;
mod peft;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::alloc;
use crate::error::{Error, Result};
use crate::files::{self, Home};
use crate::forward::{Adapter, Architecture, ModuleSpec, Update, WeightList};
use crate::tensor::Weight;
use crate::weights::{Access, Checkpoint, Form, TensorInfo};

/// What memory is taken for.
const WHAT: &str = "an adapter";
/// The largest rank: beyond it, an adapter is larger than most matrices it adds to.
const MOST_RANK: usize = 4096;

/// Reads the adapter `path` of the model that `architecture` describes, and multiplies what it adds by `by`.
///
/// # Errors
/// A file that cannot be read or is malformed, a form that is not known, a method or a module that is not built, and a tensor of another
/// shape than the model's.
pub fn read(path: &Path, by: f32, architecture: &Architecture) -> Result<Adapter> {
    if !by.is_finite() {
        let expected = "a finite number";
        return Err(Error::Option { option: "the scale of an adapter", got: by.to_string(), expected });
    }
    if architecture.config().bidirectional {
        let what = "adapters of encoders are not built: they are for models that generate".to_owned();
        return Err(Error::Task { model: architecture.config().model_type.to_owned(), what });
    }
    let list = architecture.weights();
    let target = Target { path, by, architecture, list: &list };
    let adapter = match () {
        () if files::is_dir(path) && files::exists(&path.join(peft::TENSORS)) => peft::read(&target),
        () if files::is_dir(path) && files::exists(&path.join(mlx::TENSORS)) => mlx::read(&target),
        () if files::is_dir(path) && files::exists(&path.join("adapter_model.bin")) => Err(Error::format(
            path,
            "its adapter_model.bin is pickled Python, which is not read: save it as safetensors (PEFT does by default)",
        )),
        () if !files::is_dir(path) && files::is_there(path) && crate::weights::gguf::is_gguf(path)? => {
            gguf::read(&target)
        }
        () => {
            let what = if files::is_there(path) { "holds no adapter" } else { "does not exist" };
            let expected = format!(
                "expected a directory of PEFT ({}) or of mlx-lm ({}), or a GGUF file",
                peft::TENSORS,
                mlx::TENSORS
            );
            Err(Error::format(path, format!("{what}: {expected}")))
        }
    }?;
    // Names of several spellings may be of one module.
    let mut seen = BTreeSet::new();
    match adapter.updates.iter().find(|update| !seen.insert((&update.module, update.first))) {
        Some(twice) => {
            let (path, name) = (path.to_owned(), twice.module.clone());
            Err(Error::Weight { path, name, what: "the adapter has it twice".to_owned() })
        }
        None => Ok(adapter),
    }
}

/// What an adapter is read for.
struct Target<'a> {
    path: &'a Path,
    by: f32,
    architecture: &'a Architecture,
    list: &'a WeightList,
}

/// What a tensor of an adapter is of its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    /// `A`.
    Low,
    /// `B`.
    High,
    /// `m`.
    Magnitude,
}

/// The tensors of one module, by their names in the file.
#[derive(Debug, Default)]
struct Found<'a> {
    low: Option<&'a TensorInfo>,
    high: Option<&'a TensorInfo>,
    magnitude: Option<&'a TensorInfo>,
}

/// The same of a file in its directory, out of which no link may lead.
fn open_in(dir: &Path, name: &str) -> Result<Checkpoint> {
    let path = dir.join(name);
    Home::of(dir)?.resolve(&path, name)?;
    open(&path)
}

/// Opens the tensors of an adapter, as copies that nobody else can change.
fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open_by(path, Access::Read)
}

/// The tensors of a file, by their modules; `leaf` says of a name which module's it is, and what of it.
fn modules<'a>(
    checkpoint: &'a Checkpoint,
    leaf: impl Fn(&'a str) -> Option<(&'a str, Leaf)>,
) -> Result<BTreeMap<&'a str, Found<'a>>> {
    let mut modules: BTreeMap<&str, Found<'_>> = BTreeMap::new();
    for info in checkpoint.tensors() {
        let Some((module, leaf)) = leaf(info.name()) else {
            return Err(info.fail("it is no matrix of an adapter that is built: A, B, or a magnitude".into()));
        };
        let found = modules.entry(module).or_default();
        let place = match leaf {
            Leaf::Low => &mut found.low,
            Leaf::High => &mut found.high,
            Leaf::Magnitude => &mut found.magnitude,
        };
        if place.replace(info).is_some() {
            return Err(info.fail(format!("{module} has two of its kind")));
        }
    }
    if modules.is_empty() {
        return Err(Error::format(checkpoint.path(), "it has no tensor of an adapter"));
    }
    Ok(modules)
}

impl Found<'_> {
    /// `A` and `B`, which must both be there.
    fn pair(&self) -> Result<[&TensorInfo; 2]> {
        match (self.low, self.high, self.magnitude) {
            (Some(low), Some(high), _) => Ok([low, high]),
            (Some(one), None, _) | (None, Some(one), _) | (None, None, Some(one)) => {
                Err(one.fail("the other matrix of its pair is missing".to_owned()))
            }
            (None, None, None) => Err(Error::Engine("a module of an adapter without tensors".to_owned())),
        }
    }
}

/// A matrix of an adapter in the model's order: `form` is how its rows lie, and where `turned` its rows are columns.
fn matrix(checkpoint: &Checkpoint, info: &TensorInfo, form: Form, turned: bool) -> Result<Weight> {
    let &[rows, columns] = info.shape() else {
        return Err(info.fail(format!("shape is {:?}, expected two dimensions", info.shape())));
    };
    let stored = match info.format() {
        None => checkpoint.get(info.name(), info.shape())?,
        Some(_) => {
            let module = info.name();
            return Err(info.fail(format!("{module} is in blocks, expected F32, F16 or BF16")));
        }
    };
    finite(info, &stored)?;
    if !turned {
        return reordered(&stored, form);
    }
    let shape = [columns, rows];
    let mut bytes: Vec<u8> = alloc::zeroed(stored.bytes().len(), WHAT)?;
    Form::Transposed.copy(stored.bytes(), &shape, stored.dtype().size(), &mut bytes);
    reordered(&owned(&stored, &shape, &bytes)?, form)
}

/// A matrix with its rows (which are rows however the model's file has its own matrix), which lie in `form`, in the model's order.
fn reordered(stored: &Weight, form: Form) -> Result<Weight> {
    if matches!(form, Form::Plain | Form::Transposed | Form::PlusOne) {
        return Ok(stored.clone());
    }
    let mut bytes: Vec<u8> = alloc::zeroed(stored.bytes().len(), WHAT)?;
    let stride = bytes.len().checked_div(stored.shape()[0]).unwrap_or(0).max(1);
    for (row, to) in bytes.chunks_exact_mut(stride).enumerate() {
        to.copy_from_slice(&stored.bytes()[form.stored_row(row, stored.shape()[0]) * stride..][..stride]);
    }
    owned(stored, stored.shape(), &bytes)
}

/// A weight of the type of `like` over a copy of `bytes`, aligned.
fn owned(like: &Weight, shape: &[usize], bytes: &[u8]) -> Result<Weight> {
    Ok(Weight::new(like.name(), like.dtype(), shape, crate::weights::aligned(bytes)?, 0..bytes.len()))
}

/// The values of a vector of an adapter in the model's order.
fn vector(checkpoint: &Checkpoint, info: &TensorInfo, form: Form) -> Result<Vec<f32>> {
    let stored = checkpoint.get(info.name(), info.shape())?;
    finite(info, &stored)?;
    let values = stored.widened()?;
    let rows = values.len();
    let stored = |row: usize| if form.is_turned() { row } else { form.stored_row(row, rows) };
    Ok((0..rows).map(|row| values[stored(row)]).collect())
}

/// Refuses numbers that are none.
fn finite(info: &TensorInfo, weight: &Weight) -> Result<()> {
    match weight.widened()?.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(info.fail("it holds a number that is not finite".to_owned())),
    }
}

impl Target<'_> {
    /// The module that a path of a directory names.
    fn module(&self, path: &str, info: &TensorInfo) -> Result<&ModuleSpec> {
        let name = self.architecture.module_named(self.list, path);
        let module = name.and_then(|name| self.list.get(&name)).filter(|module| module.columns.is_some());
        module.ok_or_else(|| {
            let model = self.architecture.config().model_type;
            info.fail(format!("{path} is no module of this {model} model that adapters are built for"))
        })
    }

    /// The update of rows of a module from row `first` on, checked against its shape.
    fn update(
        &self,
        module: &ModuleSpec,
        first: usize,
        [low, high]: [(&TensorInfo, Weight); 2],
        scale: f64,
        magnitude: Option<Vec<f32>>,
    ) -> Result<Update> {
        let (&[rank, width], &[height, high_rank]) = (low.1.shape(), high.1.shape()) else {
            return Err(low.0.fail("expected a matrix".to_owned()));
        };
        let columns = module.columns.as_ref().map_or(0, |columns| columns.size);
        if width != columns || rank == 0 || rank > MOST_RANK {
            let what = format!(
                "A is {:?}, expected [1 to {MOST_RANK}, {columns}] for {}",
                [rank, width],
                module.name
            );
            return Err(low.0.fail(what));
        }
        if high_rank != rank || height == 0 || first + height > module.rows.size {
            let rows = module.rows.size;
            let what =
                format!("B is {:?}, expected [{rows}, {rank}] for {}", [height, high_rank], module.name);
            return Err(high.0.fail(what));
        }
        let scale = (scale * f64::from(self.by)) as f32;
        if !scale.is_finite() {
            return Err(low.0.fail(format!("what it adds is multiplied by {scale}")));
        }
        let module = module.name.clone();
        Ok(Update { module, first, low: low.1, high: high.1, scale, magnitude })
    }

    /// The adapter of all updates; `method` is what it is called.
    fn adapter(&self, method: &str, updates: Vec<Update>) -> Adapter {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        let mut ranks: Vec<usize> = Vec::new();
        for Update { module, first, low, high, scale, magnitude } in &updates {
            part(module.as_bytes());
            part(&(*first as u64).to_le_bytes());
            for weight in [low, high] {
                part(format!("{} {:?}", weight.dtype(), weight.shape()).as_bytes());
                part(weight.bytes());
            }
            part(&scale.to_le_bytes());
            match magnitude {
                Some(values) => values.iter().for_each(|value| part(&value.to_le_bytes())),
                None => part(b"none"),
            }
            ranks.push(low.shape()[0]);
        }
        let key = hasher.finalize().to_hex().to_string();
        let (least, most) = (ranks.iter().min().copied(), ranks.iter().max().copied());
        let rank = match (least, most) {
            (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
            (least, _) => least.unwrap_or_default().to_string(),
        };
        Adapter { path: self.path.to_owned(), kind: format!("{method}, rank {rank}"), updates, key }
    }
}
