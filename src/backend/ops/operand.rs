//! What every backend says of its operands: enough to check an op, and to count its work.

use std::fmt;

use crate::backend::kv::KvShape;
use crate::quant::Matrix;
use crate::tensor::{ElementType, Weight};

/// An activation, or ids.
pub trait TensorOperand: fmt::Debug {
    /// Dimensions, outermost first; activations of a step are `[T, D]`.
    fn shape(&self) -> &[usize];

    /// What its elements are; floats are in the backend's type of activations.
    fn element(&self) -> ElementType;
}

/// A matrix `[N, K]` that a backend prepared. Clones share what was prepared.
pub trait MatrixOperand: fmt::Debug + Clone {
    /// What it was prepared of.
    fn source(&self) -> &Matrix;

    /// `[N, K]`.
    fn shape(&self) -> &[usize] {
        self.source().as_ref().shape()
    }

    /// Whether it is in blocks.
    fn is_quantized(&self) -> bool {
        matches!(self.source(), Matrix::Quantized(_))
    }
}

/// The weight of a norm, or a bias, that a backend prepared. Clones share what was prepared.
pub trait VectorOperand: fmt::Debug + Clone {
    /// What it was prepared of.
    fn source(&self) -> &Weight;

    /// `[N]`.
    fn shape(&self) -> &[usize] {
        self.source().shape()
    }
}

/// What one layer keeps of one sequence.
pub trait State: fmt::Debug {
    /// Tokens that it has seen.
    fn len(&self) -> usize;

    /// Whether it has seen none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is kept of each token.
    fn shape(&self) -> &KvShape;

    /// Bytes held.
    fn bytes(&self) -> usize;

    /// Forgets the tokens from `len` on.
    fn truncate(&mut self, len: usize);
}
