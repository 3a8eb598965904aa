//! What stands for MLX in a build without it: types of which there is no value, so that the dispatch is written once.

use std::fmt;
use std::ops::Range;

use super::kv::{HostKv, KvShape};
use super::ops::{
    Backend, KvRows, MatrixOperand, Op, OpKind, Operands, Outputs, Recur, Recurrent, RecurrentShape, Run,
    StackOperand, State, TensorOperand, VectorOperand,
};
use super::ranks::Rank;
use super::recurrent::HostRecurrent;
use crate::error::{Error, Result};
use crate::quant::{Matrix, Stack};
use crate::tensor::{DType, ElementType, HostTensor, Weight};

/// No value. Types that hold it look like any other from outside, so that no arm for them is unreachable there.
#[derive(Debug, Clone)]
enum Never {}

/// Types of which there is no value.
macro_rules! absent {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone)]
            pub struct $name(Never);
        )+
    };
}

absent! {
    /// No backend.
    MlxBackend,
    /// No tensor.
    MlxTensor,
    /// No matrix.
    MlxMatrix,
    /// No matrices of experts.
    MlxStack,
    /// No vector.
    MlxVector,
    /// No state.
    MlxKv,
    /// No state of a recurrent layer.
    MlxRecurrent,
    /// No page.
    MlxPage,
    /// No cache of weights.
    WeightCache,
}

/// A device of MLX; none answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Whether it is a GPU.
    pub gpu: bool,
    /// Bytes that it recommends to use at most, where it says so.
    pub recommended_bytes: Option<u64>,
}

impl DeviceInfo {
    /// Says why there is no device.
    ///
    /// # Errors
    /// Always.
    pub fn query() -> Result<Self> {
        Err(Error::Backend { backend: "mlx", reason: why() })
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no device")
    }
}

fn why() -> String {
    match std::env::consts::OS {
        "linux" => "this build has no MLX (`cargo xtask with-mlx` makes one that has)".into(),
        "macos" => "this build has no MLX, which does not run on Intel Macs".into(),
        other => format!("this build has no MLX, which does not run on {other}"),
    }
}

impl MlxBackend {
    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn new(_dtype: DType) -> Result<Self> {
        Err(Error::Backend { backend: "mlx", reason: "this build has no MLX".into() })
    }

    pub(super) fn is_gpu(&self) -> bool {
        match self.0 {}
    }

    pub(super) fn give_up(&self) {
        match self.0 {}
    }

    /// There is none.
    pub fn weights(&self) -> &WeightCache {
        match self.0 {}
    }

    pub(super) fn kv_to_host(&self, _kv: &MlxKv) -> Result<HostKv> {
        match self.0 {}
    }

    pub(super) fn recurrent_to_host(&self, _state: &MlxRecurrent) -> Result<HostRecurrent> {
        match self.0 {}
    }

    pub(super) fn recurrent_from_host(&self, _host: &HostRecurrent) -> Result<MlxRecurrent> {
        match self.0 {}
    }

    pub(super) fn kv_from_host(&self, _host: &HostKv) -> Result<MlxKv> {
        match self.0 {}
    }

    pub(super) fn snapshot(&self, _layers: &[&MlxKv], _range: Range<usize>) -> Result<Vec<Vec<MlxPage>>> {
        match self.0 {}
    }

    pub(super) fn restore(
        &self,
        _of: (KvShape, Option<usize>),
        _pages: &[&MlxPage],
        _len: usize,
    ) -> Result<MlxKv> {
        match self.0 {}
    }

    pub(super) fn argmax(&self, _logits: &MlxTensor) -> Result<MlxTensor> {
        match self.0 {}
    }

    pub(super) fn join(&self) -> Result<Rank> {
        match self.0 {}
    }

    pub(super) fn rank(&self) -> Rank {
        match self.0 {}
    }

    pub(super) fn sum_words(&self, _words: &[u32]) -> Result<Vec<u32>> {
        match self.0 {}
    }
}

impl WeightCache {
    /// None is held.
    pub fn is_empty(&self) -> bool {
        match self.0 {}
    }

    /// There is none.
    pub fn len(&self) -> usize {
        match self.0 {}
    }

    /// There is none.
    pub fn clear_unused(&self) {
        match self.0 {}
    }

    pub(super) fn clear(&self) {
        match self.0 {}
    }
}

/// Handles of arrays, and bytes.
#[cfg(any(test, feature = "fuzzing"))]
impl MlxPage {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        match self.0 {}
    }
}

/// Handles of arrays, and bytes.
#[cfg(any(test, feature = "fuzzing"))]
impl MlxKv {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        match self.0 {}
    }
}

impl TensorOperand for MlxTensor {
    fn shape(&self) -> &[usize] {
        match self.0 {}
    }

    fn element(&self) -> ElementType {
        match self.0 {}
    }
}

impl MatrixOperand for MlxMatrix {
    fn source(&self) -> &Matrix {
        match self.0 {}
    }
}

impl StackOperand for MlxStack {
    fn source(&self) -> &Stack {
        match self.0 {}
    }
}

impl VectorOperand for MlxVector {
    fn source(&self) -> &Weight {
        match self.0 {}
    }
}

impl State for MlxKv {
    fn len(&self) -> usize {
        match self.0 {}
    }

    fn shape(&self) -> &KvShape {
        match self.0 {}
    }

    fn bytes(&self) -> usize {
        match self.0 {}
    }

    fn first(&self) -> usize {
        match self.0 {}
    }

    fn give_back(&mut self) {
        match self.0 {}
    }

    fn truncate(&mut self, _len: usize) {
        match self.0 {}
    }
}

impl MlxRecurrent {
    pub(super) fn copy(&self) -> Self {
        match self.0 {}
    }
}

impl Recurrent for MlxRecurrent {
    fn shape(&self) -> &RecurrentShape {
        match self.0 {}
    }

    fn len(&self) -> usize {
        match self.0 {}
    }

    fn bytes(&self) -> usize {
        match self.0 {}
    }

    fn reaches(&self, _len: usize) -> bool {
        match self.0 {}
    }

    fn truncate(&mut self, _len: usize) {
        match self.0 {}
    }
}

impl Operands for MlxBackend {
    type Tensor = MlxTensor;
    type Matrix = MlxMatrix;
    type Stack = MlxStack;
    type Vector = MlxVector;
    type State = MlxKv;
    type Recurrent = MlxRecurrent;
}

impl Backend for MlxBackend {
    fn describe(&self) -> String {
        match self.0 {}
    }

    fn matrix(&self, _matrix: &Matrix) -> MlxMatrix {
        match self.0 {}
    }

    fn stack(&self, _stack: &Stack) -> MlxStack {
        match self.0 {}
    }

    fn vector(&self, _weight: &Weight) -> MlxVector {
        match self.0 {}
    }

    fn fuses(&self, _op: OpKind) -> bool {
        match self.0 {}
    }

    fn supports(&self, _op: &Op<'_, Self>) -> Result<()> {
        match self.0 {}
    }

    fn run(&self, _op: &Op<'_, Self>) -> Result<Outputs<Self>> {
        match self.0 {}
    }

    fn state(&self, _shape: &KvShape, _window: Option<usize>) -> MlxKv {
        match self.0 {}
    }

    fn write(&self, _state: &mut MlxKv, _rows: KvRows<'_, Self>, _run: &Run) -> Result<()> {
        match self.0 {}
    }

    fn recurrent(&self, _shape: &RecurrentShape) -> MlxRecurrent {
        match self.0 {}
    }

    fn recur(
        &self,
        _states: &mut [&mut MlxRecurrent],
        _op: &Recur<'_, Self>,
        _runs: &[Run],
    ) -> Result<MlxTensor> {
        match self.0 {}
    }

    fn evaluate(
        &self,
        _results: &[&MlxTensor],
        _states: &[&MlxKv],
        _recurrent: &[&MlxRecurrent],
        _wait: bool,
    ) -> Result<()> {
        match self.0 {}
    }

    fn to_backend(&self, _tensor: HostTensor) -> Result<MlxTensor> {
        match self.0 {}
    }

    fn to_host(&self, _tensor: &MlxTensor) -> Result<HostTensor> {
        match self.0 {}
    }
}
