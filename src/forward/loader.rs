//! What blocks load themselves from: a checkpoint, by the list of the model's weights.

use std::cell::RefCell;
use std::ops::Range;

use super::adapt::{PlaceId, Places};
use super::list::{ModuleSpec, Split, WeightList};
use crate::backend::ranks::Rank;
use crate::backend::{LlmBackendDispatch, PreparedMatrix, PreparedVector};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::quant::Matrix;
use crate::tensor::Weight;
use crate::weights::{Checkpoint, TensorInfo, quantized};

/// A checkpoint whose tensors are named as the list of weights names them.
pub struct Loader<'a> {
    /// The model's configuration.
    pub config: &'a Config,
    /// Where the model will run: it prepares each weight, once.
    pub ops: &'a LlmBackendDispatch,
    /// Whose part of the weights it is.
    rank: Rank,
    list: &'a WeightList,
    checkpoint: &'a Checkpoint,
    linears: RefCell<Vec<PreparedMatrix>>,
    places: RefCell<Places>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(
        config: &'a Config,
        list: &'a WeightList,
        checkpoint: &'a Checkpoint,
        (ops, rank): (&'a LlmBackendDispatch, Rank),
    ) -> Self {
        Self { config, ops, rank, list, checkpoint, linears: RefCell::default(), places: RefCell::default() }
    }

    /// Every matrix that was taken to be multiplied by, in that order, and where adapters may add to them.
    pub(super) fn into_parts(self) -> (Vec<PreparedMatrix>, Places) {
        (self.linears.into_inner(), self.places.into_inner())
    }

    /// Makes a place for adapters of the module `name` at the product with its rows from row `first` on.
    pub(super) fn place(
        &self,
        name: &str,
        first: usize,
        weight: &PreparedMatrix,
        bias: Option<&PreparedVector>,
    ) -> PlaceId {
        self.places.borrow_mut().add(name, first, weight, bias)
    }

    /// How many matrices were noted.
    pub(super) fn linears(&self) -> usize {
        self.linears.borrow().len()
    }

    /// Forgets those that were noted since there were `count`.
    pub(super) fn forget_linears(&self, count: usize) {
        self.linears.borrow_mut().truncate(count);
    }

    /// Notes a matrix that will be multiplied by.
    pub(super) fn multiplies(&self, matrix: &PreparedMatrix) {
        self.linears.borrow_mut().push(matrix.clone());
    }

    fn spec(&self, module: &str) -> Result<&'a ModuleSpec> {
        let what = || "it is not in the family's list of weights".to_owned();
        self.list.get(module).ok_or_else(|| Error::Weight {
            path: self.checkpoint.path().to_owned(),
            name: module.to_owned(),
            what: what(),
        })
    }

    /// What is wrong with the module `module`.
    pub(super) fn wrong(&self, module: &str, what: String) -> Error {
        Error::Weight { path: self.checkpoint.path().to_owned(), name: module.to_owned(), what }
    }

    /// Whether the checkpoint has the weight of the module `module`.
    pub(super) fn has(&self, module: &str) -> bool {
        self.checkpoint.find(&format!("{module}.weight")).is_some()
    }

    /// Whether the checkpoint is a GGUF file.
    pub(super) fn is_gguf(&self) -> bool {
        self.checkpoint.gguf().is_some()
    }

    /// Whether the weight of the module `module` had a last dimension of 1, which is none here.
    pub(super) fn has_lost_last(&self, module: &str) -> bool {
        self.checkpoint.find(&format!("{module}.weight")).is_some_and(TensorInfo::has_lost_last)
    }

    /// Whether the family's list has the module `module`.
    pub(super) fn lists(&self, module: &str) -> bool {
        self.list.get(module).is_some()
    }

    /// The vector of the module `module`, of the length that the list says.
    pub(super) fn vector(&self, module: &str) -> Result<Weight> {
        self.checkpoint.get(&format!("{module}.weight"), &self.spec(module)?.shape())
    }

    /// What of the module `module` this rank has, where that is not all of it.
    fn split_of(&self, module: &str) -> Option<Split> {
        self.list.split_of(module).filter(|_| !self.rank.is_alone())
    }

    /// Whether products with the module `module` are to be summed over the ranks.
    pub(super) fn is_summed(&self, module: &str) -> bool {
        self.split_of(module) == Some(Split::Columns)
    }

    /// This rank's part of rows `rows` of the module `module`.
    pub(super) fn rows_of(&self, module: &str, rows: Range<usize>) -> Range<usize> {
        match self.split_of(module) {
            Some(Split::Rows) => self.rank.share(rows),
            Some(Split::Columns) | None => rows,
        }
    }

    /// This rank's part of the bias of the module `module`, where it may have one and the checkpoint does.
    pub(super) fn bias(&self, module: &str) -> Result<Option<Weight>> {
        let Some(bias) = self.whole_bias(module)? else { return Ok(None) };
        Ok(match self.split_of(module) {
            None => Some(bias),
            Some(Split::Rows) => {
                let rows = self.rank.share(0..bias.len());
                Some(bias.rows(&self.rank.to_string(), rows))
            }
            // It is in the sum once.
            Some(Split::Columns) => self.rank.leads().then_some(bias),
        })
    }

    /// All of the bias of the module `module`, where it may have one and the checkpoint does.
    pub(super) fn whole_bias(&self, module: &str) -> Result<Option<Weight>> {
        let (spec, name) = (self.spec(module)?, format!("{module}.bias"));
        if !spec.bias || self.checkpoint.find(&name).is_none() {
            return Ok(None);
        }
        self.checkpoint.get(&name, &[spec.rows.size]).map(Some)
    }

    /// The bias of the module `module`, which has nothing else.
    pub(super) fn only_bias(&self, module: &str) -> Result<Weight> {
        self.checkpoint.get(&format!("{module}.bias"), &[self.spec(module)?.rows.size])
    }

    /// This rank's part of the matrix of the module `module`, in the format that the checkpoint has it in.
    pub(super) fn matrix(&self, module: &str) -> Result<Matrix> {
        let whole = self.whole(module)?;
        let [rows, columns] = [0, 1].map(|dim| whole.as_ref().shape()[dim]);
        let part = self.rank.to_string();
        match self.split_of(module) {
            None => Ok(whole),
            Some(Split::Rows) => Ok(whole.rows(&part, self.rank.share(0..rows))),
            Some(Split::Columns) => {
                let own = self.rank.share(0..columns);
                let each = own.len();
                whole.columns(&part, own)?.ok_or_else(|| {
                    let ranks = self.rank.of();
                    let format = match &whole {
                        Matrix::Dense(weight) => weight.dtype().to_string(),
                        Matrix::Quantized(weight) => weight.format().to_string(),
                    };
                    let what = format!(
                        "its {columns} columns are to be split over {ranks} ranks, {each} each, which is not possible in {format}"
                    );
                    self.wrong(module, what)
                })
            }
        }
    }

    /// All of the matrix of the module `module`, in the format that the checkpoint has it in.
    pub(super) fn whole(&self, module: &str) -> Result<Matrix> {
        let spec = self.spec(module)?;
        if !spec.bias
            && let Some(bias) = self.checkpoint.find(&format!("{module}.bias"))
        {
            return Err(bias.fail("is there, and this version has no form for it".to_owned()));
        }
        let shape = [spec.rows.size, spec.columns.as_ref().map_or(1, |columns| columns.size)];
        if let Some(matrix) = self.checkpoint.replaced(module) {
            return Ok(matrix.clone());
        }
        if let Some(quantization) = &self.config.quantization
            && let Some(matrix) = quantized::matrix(self.checkpoint, quantization, module, shape)?
        {
            return Ok(Matrix::Quantized(spec.form.reordered(matrix)));
        }
        self.checkpoint.matrix(module, shape)
    }
}
