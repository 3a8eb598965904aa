//! What every backend says of its operands: enough to check an op, and to count its work.

use std::fmt;

use super::recurrent::Recurrent;
use super::state::Mark;
use crate::backend::kv::KvShape;
use crate::quant::{Matrix, Stack};
use crate::tensor::{ElementType, Weight};

/// The types of what a backend computes with.
pub trait Operands: Sized {
    /// An activation where the backend keeps it.
    type Tensor: TensorOperand;
    /// A matrix of a linear layer or an embedding in the form that the kernels read.
    type Matrix: MatrixOperand;
    /// The matrices of a layer's experts in the form that the kernels read.
    type Stack: StackOperand;
    /// A norm's weight or a bias in the form that the kernels read.
    type Vector: VectorOperand;
    /// What one layer keeps of one sequence.
    type State: State;
    /// What one recurrent layer keeps of one sequence.
    type Recurrent: Recurrent;
}

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

/// The matrices `[E, N, K]` of a layer's experts that a backend prepared. Clones share what was prepared.
pub trait StackOperand: fmt::Debug + Clone {
    /// What it was prepared of.
    fn source(&self) -> &Stack;

    /// `[E, N, K]`.
    fn shape(&self) -> [usize; 3] {
        self.source().shape()
    }

    /// Whether it is in blocks.
    fn is_quantized(&self) -> bool {
        self.source().each().iter().any(|matrix| matches!(matrix, Matrix::Quantized(_)))
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

    /// The first position of which it still has everything: what lies before was given back, behind a window.
    fn first(&self) -> usize;

    /// Gives back the memory of what lies behind the window of the next token, but for a page, so that a step can be taken back.
    /// Positions stay what they are. A backend may keep it all.
    fn give_back(&mut self);

    /// The place that it is at, to which it can go back.
    fn mark(&self) -> Mark {
        Mark { len: self.len() }
    }

    /// Goes back to a place that it was at: the tokens since are forgotten. Where what the next token would see of the tokens
    /// before was given back, everything is forgotten.
    fn rollback(&mut self, to: Mark) {
        self.truncate(to.len);
    }

    /// Forgets the tokens from `len` on; where what the next token would see of those before was given back, all of them.
    fn truncate(&mut self, len: usize);
}
