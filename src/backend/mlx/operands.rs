//! The operands of MLX's ops beside its tensors: weights that know the place of their arrays.

use std::fmt;
use std::rc::Rc;

use mlx_rs::Array;
use smallvec::SmallVec;

use super::array::MlxTensor;
use super::cache::{Slot, WeightCache};
use super::kv::MlxKv;
use crate::backend::kv::KvShape;
use crate::backend::ops::{MatrixOperand, State, TensorOperand, VectorOperand};
use crate::error::Result;
use crate::quant::Matrix;
use crate::quant::repack::MlxForm;
use crate::tensor::{ElementType, Weight};

impl TensorOperand for MlxTensor {
    fn shape(&self) -> &[usize] {
        self.shape()
    }

    fn element(&self) -> ElementType {
        self.element()
    }
}

impl State for MlxKv {
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

    /// The arrays are contiguous and grow in steps: all of it stays.
    fn give_back(&mut self) {}

    fn truncate(&mut self, len: usize) {
        self.truncate(len);
    }
}

/// A matrix on MLX. Clones share its arrays.
#[derive(Clone)]
pub struct MlxMatrix(Rc<Placed>);

/// A matrix and the places of its arrays.
struct Placed {
    source: Matrix,
    slots: SmallVec<[Rc<Slot>; 3]>,
}

impl fmt::Debug for MlxMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source.fmt(f)
    }
}

impl MatrixOperand for MlxMatrix {
    fn source(&self) -> &Matrix {
        &self.0.source
    }
}

impl MlxMatrix {
    /// Of a dense matrix, or of one whose planes are made, its own; else that of each plane.
    pub(super) fn slots(&self) -> &[Rc<Slot>] {
        &self.0.slots
    }

    /// Finds the place of a matrix in the cache; nothing is uploaded.
    pub(super) fn new(weights: &WeightCache, source: Matrix) -> Self {
        let slots = match &source {
            Matrix::Dense(weight) => SmallVec::from_iter([weights.weight(weight)]),
            Matrix::Quantized(weight) => match weight.format().on_mlx(weight.shape()[1]) {
                Some(MlxForm::Native) if !weight.is_made() => {
                    weight.planes().iter().map(|plane| weights.plane(plane)).collect()
                }
                Some(_) => SmallVec::from_iter([weights.made(weight)]),
                // What MLX has no form for never comes to be there.
                None => SmallVec::new(),
            },
        };
        Self(Rc::new(Placed { source, slots }))
    }
}

/// The weight of a norm, or a bias, on MLX. Clones share its arrays.
#[derive(Clone)]
pub struct MlxVector {
    source: Weight,
    slot: Rc<Slot>,
}

impl fmt::Debug for MlxVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl VectorOperand for MlxVector {
    fn source(&self) -> &Weight {
        &self.source
    }
}

impl MlxVector {
    /// Finds the place of a weight in the cache; nothing is uploaded.
    pub(super) fn new(weights: &WeightCache, source: Weight) -> Self {
        let slot = weights.weight(&source);
        Self { source, slot }
    }

    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.source.len()
    }

    /// In its own type.
    pub(super) fn array(&self) -> Result<Rc<Array>> {
        self.slot.own(&self.source)
    }

    /// Plus `offset`, in `f32`, in the dimensions `dims`.
    pub(super) fn shifted(&self, offset: f32, dims: &[i32]) -> Result<Rc<Array>> {
        self.slot.shifted(&self.source, offset, dims)
    }
}
