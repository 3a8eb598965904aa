//! Adapters: what is added to the products of a model's layers without touching its weights. A product with `W` becomes
//! `W x + s · B (A x)`; with a magnitude `m` (DoRA), `m ∘ (W x + s · B (A x)) / ‖W + s B A‖`, of the norm of each row.
//!
//! Papers: LoRA (arXiv:2106.09685), rsLoRA (arXiv:2312.03732), DoRA (arXiv:2402.09353).

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use smallvec::SmallVec;

use crate::alloc;
use crate::backend::ops::{Backend, MatrixOperand, VectorOperand};
use crate::backend::{LlmBackendDispatch, PreparedMatrix, PreparedVector};
use crate::error::{Error, Result};
use crate::quant::Matrix;
use crate::tensor::Weight;

/// What memory is taken for.
const WHAT: &str = "an adapter";

/// What an adapter adds to one module of a model.
#[derive(Debug)]
pub struct Update {
    /// The module, by its name in the list of weights.
    pub module: String,
    /// The first row of the module that this is of.
    pub first: usize,
    /// `A`, `[r, K]`.
    pub low: Weight,
    /// `B`, `[N, r]`, its rows in the model's order.
    pub high: Weight,
    /// `s`.
    pub scale: f32,
    /// `m`, `[N]`.
    pub magnitude: Option<Vec<f32>>,
}

/// An adapter as its files have it, of one model.
pub struct Adapter {
    /// What it was read from, in words.
    pub path: PathBuf,
    /// `LoRA`, `rsLoRA` or `DoRA`, and its rank.
    pub kind: String,
    /// What it adds, each module once.
    pub updates: Vec<Update>,
    /// A hash of all that its results depend on.
    pub key: String,
}

impl Adapter {
    /// Bytes that it takes in memory while it is loaded: its tensors, and for each magnitude a factor and a sum of both kinds of rows.
    pub fn bytes(&self) -> u64 {
        let of = |update: &Update| {
            let columns = update.magnitude.as_ref().map_or(0, |m| 5 * size_of_val(&m[..]));
            update.low.bytes().len() + update.high.bytes().len() + columns
        };
        self.updates.iter().map(|update| of(update) as u64).sum()
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adapter({} of {})", self.kind, self.path.display())
    }
}

/// Which place it is of those of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceId(pub(super) usize);

/// A product that adapters may add to: that with some rows of a module.
#[derive(Debug)]
struct Place {
    rows: Range<usize>,
    weight: PreparedMatrix,       // [N, K]
    bias: Option<PreparedVector>, // [N]
}

/// Where adapters may add to the products of a model.
#[derive(Debug, Default)]
pub struct Places {
    all: Vec<Place>,
    by_module: HashMap<String, Vec<usize>>,
}

/// What an adapter adds at one place, prepared for the backends.
#[derive(Debug)]
pub(super) struct Part {
    pub low: PreparedMatrix,  // [r, K]
    pub high: PreparedMatrix, // [N, r]
    pub scale: f32,
    pub columns: Option<[PreparedMatrix; 2]>, // [2, N] each
}

/// An adapter at the places of a model.
#[derive(Debug)]
pub struct Bound {
    parts: Vec<Option<Part>>,
}

impl Bound {
    pub(super) fn part(&self, PlaceId(at): PlaceId) -> Option<&Part> {
        self.parts.get(at)?.as_ref()
    }
}

/// Rows of a step that have an adapter, in their order.
pub(crate) type Adapters = SmallVec<[(Range<usize>, Rc<Bound>); 2]>;

impl Places {
    pub(super) fn add(
        &mut self,
        module: &str,
        first: usize,
        weight: &PreparedMatrix,
        bias: Option<&PreparedVector>,
    ) -> PlaceId {
        let at = self.all.len();
        let rows = first..first + weight.shape()[0];
        self.all.push(Place { rows, weight: weight.clone(), bias: bias.cloned() });
        self.by_module.entry(module.to_owned()).or_default().push(at);
        PlaceId(at)
    }

    /// Whether adapters may add to the module `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_module.contains_key(name)
    }

    /// The places at which an adapter adds, prepared.
    ///
    /// # Errors
    /// [`Error::Weight`] for a module that has no place for adapters, and one of another shape; [`Error::OutOfMemory`].
    pub(crate) fn bind(&self, adapter: &Adapter, ops: &LlmBackendDispatch) -> Result<Bound> {
        let mut parts: Vec<Option<Part>> = self.all.iter().map(|_| None).collect();
        for update in &adapter.updates {
            let refuse = |what: String| Error::Weight {
                path: adapter.path.clone(),
                name: update.module.clone(),
                what,
            };
            let (&[rank, width], &[height, high_rank]) = (update.low.shape(), update.high.shape()) else {
                return Err(refuse("its matrices of an adapter have other dimensions than two".to_owned()));
            };
            let wanted = update.first..update.first + height;
            let at = self.by_module.get(&update.module).map(Vec::as_slice).unwrap_or_default();
            let overlap = |at: usize| {
                let rows = &self.all[at].rows;
                rows.start.max(wanted.start)..rows.end.min(wanted.end)
            };
            // A product has an update for all of its rows or for none, and every row of an update is of a product.
            let whole = |at: usize| overlap(at) == self.all[at].rows || overlap(at).is_empty();
            if at.iter().map(|&at| overlap(at).len()).sum::<usize>() != height
                || !at.iter().all(|&at| whole(at))
            {
                return Err(refuse("adapters of this module are not built".to_owned()));
            }
            for &at in at.iter().filter(|&&at| !overlap(at).is_empty()) {
                let place = &self.all[at];
                if high_rank != rank || place.weight.shape()[1] != width {
                    let got = format!("A is {:?} and B {:?}", update.low.shape(), update.high.shape());
                    let columns = place.weight.shape()[1];
                    return Err(refuse(format!("{got}, expected [r, {columns}] and [{height}, r]")));
                }
                if parts[at].is_some() {
                    return Err(refuse("the adapter has it twice".to_owned()));
                }
                let rows = place.rows.start - update.first..place.rows.end - update.first;
                let part = place.part(update, rows, ops)?;
                let none = || refuse("a magnitude over the norm of its row is no finite number".to_owned());
                parts[at] = Some(part.ok_or_else(none)?);
            }
        }
        Ok(Bound { parts })
    }
}

impl Place {
    /// What rows `rows` of an update add here; none where a magnitude over the norm of its row is no finite number.
    fn part(&self, update: &Update, rows: Range<usize>, ops: &LlmBackendDispatch) -> Result<Option<Part>> {
        let high = update.high.rows("high", rows.clone());
        let columns = match &update.magnitude {
            None => None,
            Some(magnitude) => {
                let norms = norms(self.weight.source(), &update.low, &high, update.scale)?;
                let height = norms.len();
                let mut by: Vec<f32> = Vec::new();
                let mut plus: Vec<f32> = alloc::zeroed(2 * height, WHAT)?;
                alloc::reserve(&mut by, 2 * height, WHAT)?;
                by.resize(height, 1.0);
                by.extend(magnitude[rows].iter().zip(&norms).map(|(m, norm)| m / norm));
                if let Some(bias) = &self.bias {
                    // The magnitude is of the product alone.
                    let bias = bias.source().widened()?;
                    for ((plus, bias), by) in plus[height..].iter_mut().zip(bias).zip(&by[height..]) {
                        *plus = bias - by * bias;
                    }
                }
                if by.iter().chain(&plus).any(|x| !x.is_finite()) {
                    return Ok(None);
                }
                let table =
                    |values| ops.matrix(&Matrix::Dense(Weight::of_values(WHAT, &[2, height], values)));
                Some([table(by), table(plus)])
            }
        };
        let matrix = |weight: Weight| ops.matrix(&Matrix::Dense(weight));
        Ok(Some(Part { low: matrix(update.low.clone()), high: matrix(high), scale: update.scale, columns }))
    }
}

/// The norm of each row of `W + scale · B A`, of a matrix in blocks or not.
pub(crate) fn norms(weight: &Matrix, low: &Weight, high: &Weight, scale: f32) -> Result<Vec<f32>> {
    let mut norms: Vec<f32> = alloc::zeroed(high.shape()[0], WHAT)?;
    merged_rows(weight, low, high, scale, |row, values| {
        norms[row] = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32;
        Ok(())
    })?;
    Ok(norms)
}

/// Calls `each` with every row of `W + scale · B A`, first to last.
///
/// # Errors
/// Those of `each`; [`Error::OutOfMemory`].
pub(crate) fn merged_rows(
    weight: &Matrix,
    low: &Weight,
    high: &Weight,
    scale: f32,
    mut each: impl FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    /// Rows that are decoded at once.
    const ROWS: usize = 64;
    let (low_values, high_values) = (low.widened()?, high.widened()?);
    let (&[rank, width], &[height, _]) = (low.shape(), high.shape()) else { return Ok(()) };
    for first in (0..height).step_by(ROWS) {
        let some = first..(first + ROWS).min(height);
        let mut values = match weight.rows("rows", some.clone()) {
            Matrix::Dense(weight) => weight.widened()?,
            Matrix::Quantized(weight) => weight.widened()?,
        };
        for (row, values) in some.zip(values.chunks_exact_mut(width.max(1))) {
            for (by, low) in
                high_values[row * rank..][..rank].iter().zip(low_values.chunks_exact(width.max(1)))
            {
                let by = by * scale;
                values.iter_mut().zip(low).for_each(|(value, low)| *value += by * low);
            }
            each(row, values)?;
        }
    }
    Ok(())
}
