//! What may live on either backend: tensors, weights and states of the dispatch.

use std::fmt;

use super::cpu::{CpuMatrix, CpuStack, CpuVector};
use super::kv::{HostKv, KvShape};
use super::mlx::{MlxKv, MlxMatrix, MlxRecurrent, MlxStack, MlxTensor, MlxVector};
use super::ops::{
    MatrixOperand, Recurrent, RecurrentShape, StackOperand, State, TensorOperand, VectorOperand,
};
use super::recurrent::HostRecurrent;
use crate::error::Result;
use crate::quant::{Matrix, Stack};
use crate::tensor::{ElementType, HostTensor, Weight};

/// Activations or ids where they were made.
#[derive(Debug)]
pub enum Tensor {
    /// In host memory.
    Host(HostTensor),
    /// A lazy MLX array, floats in the type of activations.
    Mlx(MlxTensor),
}

impl Tensor {
    /// Dimensions, outermost first; activations of a step are `[T, D]`.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Host(tensor) => tensor.shape(),
            Self::Mlx(tensor) => tensor.shape(),
        }
    }

    /// A host tensor over `values`.
    pub fn from_vec(shape: &[usize], values: Vec<f32>) -> Self {
        Self::Host(HostTensor::from_vec(shape, values))
    }
}

impl From<HostTensor> for Tensor {
    fn from(tensor: HostTensor) -> Self {
        Self::Host(tensor)
    }
}

impl TensorOperand for Tensor {
    fn shape(&self) -> &[usize] {
        self.shape()
    }

    fn element(&self) -> ElementType {
        match self {
            Self::Host(tensor) => tensor.element(),
            Self::Mlx(tensor) => TensorOperand::element(tensor),
        }
    }
}

/// A matrix that was prepared for the backends of a dispatch. Clones share what was prepared. What the CPU's kernels want is made
/// when they are first asked, which is never where MLX does it all.
#[derive(Clone)]
pub struct PreparedMatrix {
    pub(super) cpu: CpuMatrix,
    pub(super) mlx: Option<MlxMatrix>,
}

impl fmt::Debug for PreparedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cpu.fmt(f)
    }
}

impl MatrixOperand for PreparedMatrix {
    fn source(&self) -> &Matrix {
        self.cpu.source()
    }
}

/// The matrices of a layer's experts that were prepared for the backends of a dispatch. Clones share what was prepared.
#[derive(Clone)]
pub struct PreparedStack {
    pub(super) cpu: CpuStack,
    pub(super) mlx: Option<MlxStack>,
}

impl fmt::Debug for PreparedStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cpu.fmt(f)
    }
}

impl StackOperand for PreparedStack {
    fn source(&self) -> &Stack {
        self.cpu.source()
    }
}

/// A norm's weight, or a bias, that was prepared for the backends of a dispatch. Clones share what was prepared.
#[derive(Clone)]
pub struct PreparedVector {
    pub(super) cpu: CpuVector,
    pub(super) mlx: Option<MlxVector>,
}

impl fmt::Debug for PreparedVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cpu.fmt(f)
    }
}

impl VectorOperand for PreparedVector {
    fn source(&self) -> &Weight {
        self.cpu.source()
    }
}

/// What one layer keeps of one sequence, where the backend that wrote it keeps it.
#[derive(Debug)]
pub enum LayerState {
    /// Pages in host memory.
    Host(HostKv),
    /// Arrays on MLX.
    Mlx(MlxKv),
}

impl LayerState {
    /// Tokens cached.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(kv) => kv.len(),
            Self::Mlx(kv) => State::len(kv),
        }
    }

    /// Whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is kept for each token.
    pub fn shape(&self) -> &KvShape {
        match self {
            Self::Host(kv) => kv.shape(),
            Self::Mlx(kv) => State::shape(kv),
        }
    }

    /// The first position that is still held.
    pub fn first(&self) -> usize {
        match self {
            Self::Host(kv) => kv.first(),
            Self::Mlx(kv) => State::first(kv),
        }
    }

    /// Forgets the tokens from `len` on; where what the next token would see of those before was given back, all of them.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Host(kv) => kv.truncate(len),
            Self::Mlx(kv) => State::truncate(kv, len),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(kv) => kv.bytes(),
            Self::Mlx(kv) => State::bytes(kv),
        }
    }
}

impl State for LayerState {
    fn len(&self) -> usize {
        self.len()
    }

    fn shape(&self) -> &KvShape {
        self.shape()
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn first(&self) -> usize {
        self.first()
    }

    fn give_back(&mut self) {
        match self {
            Self::Host(kv) => State::give_back(kv),
            Self::Mlx(kv) => State::give_back(kv),
        }
    }

    fn truncate(&mut self, len: usize) {
        self.truncate(len);
    }
}

/// What one recurrent layer keeps of one sequence, where the backend that wrote it keeps it.
#[allow(clippy::large_enum_variant, reason = "one value a layer, which is never moved")]
#[derive(Debug)]
pub enum RecurrentState {
    /// In host memory.
    Host(HostRecurrent),
    /// Arrays on MLX.
    Mlx(MlxRecurrent),
}

impl RecurrentState {
    /// A copy of what is held, without what was there before the last step.
    pub(super) fn copy(&self) -> Result<Self> {
        Ok(match self {
            Self::Host(state) => Self::Host(state.copy()?),
            Self::Mlx(state) => Self::Mlx(state.copy()),
        })
    }
}

impl Recurrent for RecurrentState {
    fn shape(&self) -> &RecurrentShape {
        match self {
            Self::Host(state) => state.shape(),
            Self::Mlx(state) => state.shape(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Host(state) => state.len(),
            Self::Mlx(state) => state.len(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Host(state) => state.bytes(),
            Self::Mlx(state) => state.bytes(),
        }
    }

    fn reaches(&self, len: usize) -> bool {
        match self {
            Self::Host(state) => state.reaches(len),
            Self::Mlx(state) => state.reaches(len),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Host(state) => state.truncate(len),
            Self::Mlx(state) => state.truncate(len),
        }
    }
}
