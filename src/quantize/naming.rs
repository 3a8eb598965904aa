//! What a model's tensors are called in a GGUF file, and how they lie there.

use std::f64::consts::PI;

use super::source::Source;
use super::stacks::Joined;
use super::types::{GgufType, Traits};
use crate::config::{Config, RopeScaling};
use crate::error::{Error, Result};
use crate::forward::{Gguf, ModuleSpec, WeightList};
use crate::model::ModelFiles;
use crate::quant::GgmlType;
use crate::tensor::DType;
use crate::weights::Form;
use crate::weights::gguf::TensorType;
use crate::weights::gguf::write::Entries;

/// Writes what a family has in the metadata.
pub(super) type OwnEntries = fn(&Config, &mut Entries) -> Result<(), &'static str>;

/// The names of a model's tensors.
pub(super) struct Naming<'m> {
    config: &'m Config,
    pub gguf: &'m Gguf,
    pub own_entries: OwnEntries,
    list: &'m WeightList,
    /// Whether it is a GGUF file already, whose names and order stay.
    pub stored: bool,
}

/// A tensor of the file.
pub(super) struct Named {
    pub name: String,
    pub order: Order,
    /// Columns of a matrix that gets a type.
    pub columns: Option<usize>,
    pub is_router: bool,
    /// Whether it stays in the blocks that it is published in.
    pub is_kept: bool,
}

impl Named {
    /// The type that it gets where that of all is `of`.
    pub fn kind(&self, of: GgufType, traits: Traits) -> TensorType {
        match self.columns {
            Some(columns) => of.of(&self.name, columns, traits),
            None if self.is_kept => TensorType::Blocks(GgmlType::MXFP4),
            None => TensorType::Dense(DType::F32),
        }
    }
}

impl<'m> Naming<'m> {
    /// Those of `files`, whose weights are `list`.
    ///
    /// # Errors
    /// A family that is not written.
    pub fn of(files: &'m ModelFiles, list: &'m WeightList) -> Result<Self> {
        let config = files.config();
        let refuse = || refused(files, &format!("is a {}", config.model_type));
        let gguf = files.architecture.gguf().ok_or_else(refuse)?;
        let own_entries = gguf.entries.ok_or_else(refuse)?;
        Ok(Self { config, gguf, own_entries, list, stored: files.checkpoint.gguf().is_some() })
    }

    /// The tensor that it becomes; none where the family has no use for it: the part that sees pictures.
    ///
    /// # Errors
    /// One that has no name in GGUF.
    pub fn name(&self, joined: &Joined<'_>) -> Result<Option<Named>> {
        let source = joined.source();
        let (name, order) = match joined.stack {
            Some(stack) => (format!("{}.{}", stack.gguf, joined.leaf), Order::STORED),
            None if self.stored => (source.stored_name().to_owned(), Order::STORED),
            None => match self.list.of_tensor(&source.name) {
                Some(module) => Order::of(self.config, self.gguf, module, source)?,
                None => return Ok(None),
            },
        };
        let is_router = joined.columns().is_some() && name.contains(".ffn_gate_inp");
        let is_kept = joined.kept().is_some();
        let columns = joined.columns().filter(|_| !is_router && !is_kept);
        Ok(Some(Named { name, order, columns, is_router, is_kept }))
    }
}

/// The module whose weight it is, and how its rows lie in what is read: in a GGUF file where `stored`. None of a stack.
pub(super) fn module_of<'l>(
    list: &'l WeightList,
    joined: &Joined<'_>,
    stored: bool,
) -> Option<(&'l str, Form)> {
    let (module, _) = joined.source().name.rsplit_once('.').filter(|(_, leaf)| *leaf == "weight")?;
    let spec = list.get(module).filter(|_| joined.stack.is_none())?;
    let form = match &spec.gguf {
        Some(gguf) if stored => gguf.form,
        _ => spec.form.turned(),
    };
    Some((&*spec.name, form))
}

/// What this version does not write.
pub(super) fn refused(files: &ModelFiles, what: &str) -> Error {
    Error::format(&files.path, format!("{what}; this version writes no such GGUF file"))
}

/// What of a tensor's rows and values llama.cpp has otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    /// How rows lie in the directory.
    pub from: Form,
    /// How they lie in the file.
    pub to: Form,
    /// What the values are multiplied with: queries, where scores are divided by another number.
    pub factor: f32,
    /// What is then added to them: 1 to the weights of Gemma's norms.
    pub offset: f32,
}

impl Order {
    /// All as it is stored.
    const STORED: Self = Self { from: Form::Plain, to: Form::Plain, factor: 1.0, offset: 0.0 };

    /// The tensor's name in the file, and what is done to it.
    fn of(config: &Config, gguf: &Gguf, module: &ModuleSpec, source: &Source<'_>) -> Result<(String, Self)> {
        let Some(stored) = &module.gguf else { return Err(source.fail("has no name in GGUF".to_owned())) };
        let (rows, expected) = (source.shape.first().copied(), module.rows.size);
        if rows != Some(expected) {
            let (got, field) = (&source.shape, module.rows.field);
            return Err(source.fail(format!("shape is {got:?}, expected {expected} rows, {field}")));
        }
        let leaf = source.name.rsplit_once('.').map_or("weight", |(_, leaf)| leaf);
        let offset = if stored.form == Form::PlusOne && leaf == "weight" { 1.0 } else { 0.0 };
        // A norm of queries, where there is one, undoes what their projection is multiplied with.
        let part = stored.name.rsplit_once('.').map_or("", |(_, part)| part);
        let scaled = if config.has_head_norms { "attn_q_norm" } else { "attn_q" };
        let factor = match (gguf.scalar, config.query_pre_attn_scalar) {
            (Some(scalar), Some(own)) if part == scaled => (scalar(config) / own).sqrt(),
            _ => 1.0,
        };
        let order = Self { from: module.form.turned(), to: stored.form, factor, offset: offset * factor };
        Ok((format!("{}.{leaf}", stored.name), order))
    }
}

/// What frequencies are divided by, one for each pair, as tensors.
pub(super) fn factor_tensors(config: &Config) -> Vec<(&'static str, Vec<f32>)> {
    match &config.rope.scaling {
        RopeScaling::LongRope { short_factor, long_factor, .. } => vec![
            ("rope_factors_long.weight", long_factor.clone()),
            ("rope_factors_short.weight", short_factor.clone()),
        ],
        _ => llama3_factors(config).map(|factors| ("rope_freqs.weight", factors)).into_iter().collect(),
    }
}

/// What frequencies are divided by, one for each pair: `rope_freqs.weight`.
fn llama3_factors(config: &Config) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } = config.rope.scaling
    else {
        return None;
    };
    let factors = (0..config.rope.dims).step_by(2).map(|i| {
        let wavelength = 2.0 * PI * config.rope.theta.powf(i as f64 / config.rope.dims as f64);
        let turns = original as f64 / wavelength;
        let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    });
    Some(factors.collect())
}
