//! What blocks load themselves from: a checkpoint, by the list of the model's weights.

use std::cell::RefCell;

use super::adapt::{PlaceId, Places};
use super::list::{ModuleSpec, WeightList};
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
        ops: &'a LlmBackendDispatch,
    ) -> Self {
        Self { config, ops, list, checkpoint, linears: RefCell::default(), places: RefCell::default() }
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

    /// The bias of the module `module`, where it may have one and the checkpoint does.
    pub(super) fn bias(&self, module: &str) -> Result<Option<Weight>> {
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

    /// The matrix of the module `module`, in the format that the checkpoint has it in.
    pub(super) fn matrix(&self, module: &str) -> Result<Matrix> {
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
