//! Writing a model with an adapter in its weights.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::source::Source;
use super::stacks::joined;
use super::{Names, PlannedTensor, Report, copy_small_files, sources, write_through};
use crate::error::{Error, Result};
use crate::forward::adapt::Update;
use crate::forward::{Adapter, ModuleSpec};
use crate::json;
use crate::model::ModelFiles;
use crate::tensor::DType;
use crate::weights::Form;
use crate::weights::output::Output;
use crate::weights::write::{SHARD, Shards};

/// What an adapter makes of the rows of a matrix.
pub(super) struct Merge<'s> {
    low: Vec<f32>,
    high: Vec<f32>,
    update: &'s Update,
    /// How the rows of the matrix lie where it is written, which is how they lie where it was read.
    form: Form,
    rows: usize,
}

impl<'s> Merge<'s> {
    fn of(update: &'s Update, module: &ModuleSpec) -> Result<Self> {
        let (low, high) = (update.low.widened()?, update.high.widened()?);
        Ok(Self { low, high, update, form: module.form, rows: module.rows.size })
    }

    /// Rows `at` of the matrix with what the adapter makes of them: `W + s · B A`, by its magnitude where it has one.
    pub fn apply(&self, at: Range<usize>, columns: usize, values: &mut [f32]) {
        let rank = self.update.low.shape()[0];
        for (row, values) in at.zip(values.chunks_exact_mut(columns.max(1))) {
            let row = self.form.model_row(row, self.rows);
            let high = &self.high[row * rank..][..rank];
            for (by, low) in high.iter().zip(self.low.chunks_exact(columns.max(1))) {
                let by = by * self.update.scale;
                values.iter_mut().zip(low).for_each(|(value, low)| *value += by * low);
            }
            if let Some(magnitude) = &self.update.magnitude {
                let square: f64 = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
                let by = magnitude[row] / square.sqrt() as f32;
                values.iter_mut().for_each(|value| *value *= by);
            }
        }
    }
}

/// Writes the model in a directory with an adapter in its weights into the new directory `out`: safetensors of the type that they have,
/// tokenizer and templates copied. A model that is quantized is decoded, to the type that its configuration names, and written as
/// it then is.
///
/// `out` appears when everything is on the disk, as that of [`super::to_mlx`]. `progress` is told how many bytes of how many are
/// read; where it says `false`, nothing is left and the answer is `None`. The report's `quantized` are matrices that were changed.
///
/// # Errors
/// [`Error::Format`] where `out` exists, and of a GGUF file, the built-in model, and one with stacks of experts; [`Error::Weight`]
/// for a module whose matrix is in no file, or that is stored turned, and for values that are not finite; [`Error::Io`].
pub fn fuse(
    files: &ModelFiles,
    adapter: &Adapter,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Report>> {
    if files.checkpoint.gguf().is_some() {
        let what = "is in GGUF; expected a directory of safetensors: fuse into that, and quantize the result";
        return Err(Error::format(&files.path, what));
    }
    let list = files.architecture.weights();
    if !list.stacks().is_empty() {
        let what = "has stacks of experts, which are not written with an adapter: load it beside the weights";
        return Err(Error::format(&files.path, what));
    }
    let sources: Vec<Source<'_>> = sources(files, &list)?;
    let names = Names::of(files, &list, &sources);
    let decoded = files.config().dtype.unwrap_or(DType::F16);
    let mut parts = Vec::new();
    let mut merged = Vec::new();
    for joined in joined(&list, &sources)? {
        let [name, path] = names.of_tensor(&joined);
        let module = joined.source().name.strip_suffix(".weight").and_then(|module| list.get(module));
        let update = module.and_then(|module| {
            let update = adapter.updates.iter().find(|update| update.module == module.name);
            update.map(|update| (update, module))
        });
        let merge = match update {
            Some((_, module)) if module.form.is_turned() => {
                let what = "is stored turned, and is not written with an adapter: load it beside the weights";
                return Err(joined.source().fail(what.to_owned()));
            }
            Some((update, module)) => {
                merged.push(module.name.as_str());
                Some(Merge::of(update, module)?)
            }
            None => None,
        };
        let dtype = joined.source().dtype().unwrap_or(decoded);
        let (format, named) = (None, None);
        parts.push(PlannedTensor {
            joined,
            name,
            path,
            dtype,
            format,
            named,
            is_kept: false,
            is_uneven: false,
            merge,
            importance: None,
        });
    }
    if let Some(update) = adapter.updates.iter().find(|update| !merged.contains(&update.module.as_str())) {
        let what = "has no matrix of its own in the model's files".to_owned();
        return Err(Error::Weight { path: files.path.clone(), name: update.module.clone(), what });
    }
    if parts.iter().any(|part| part.joined.is_decoded()) {
        tracing::warn!(
            "{} is quantized: its values are decoded, and written as {decoded} with the adapter in them",
            files.name()
        );
    }
    let mut report = Report {
        quantized: merged.len(),
        kept: parts.len() - merged.len(),
        bytes_in: parts.iter().map(|part| part.joined.bytes()).sum(),
        ..Report::default()
    };
    let output = Output::create(out)?;
    let dir = output.path();
    fs::create_dir(&dir).map_err(|e| Error::io(&dir, e))?;
    copy_small_files(&files.path, &dir)?;
    write_through(&dir.join("config.json"), config(&files.path.join("config.json"))?.as_bytes())?;
    let mut shards = Shards::create(&dir, parts.iter().flat_map(PlannedTensor::specs).collect(), SHARD)?;
    report.bytes_out = shards.total();
    files.checkpoint.advise_sequential();
    let mut read = 0;
    for part in &parts {
        let mut step = |bytes| {
            read += bytes;
            progress(read, report.bytes_in)
        };
        if !part.write(&mut shards, &mut step)? {
            return Ok(None);
        }
    }
    files.checkpoint.check()?;
    shards.finish()?;
    output.commit()?;
    Ok(Some(report))
}

/// `config.json`, its members in their order, without a quantization.
fn config(path: &Path) -> Result<String> {
    let fail = |e: serde_json::Error| Error::format(path, format!("not valid JSON: {e}"));
    let mut config = json::parse_members(path, &json::of_python(&crate::files::read_json(path)?))?;
    for name in ["quantization", "quantization_config"] {
        config.shift_remove(name);
    }
    serde_json::to_string_pretty(&config).map(|text| text + "\n").map_err(fail)
}
