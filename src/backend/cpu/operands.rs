//! The operands of the CPU's ops: host tensors, pages in host memory, and weights in the form in which the kernels read them.

use std::cell::OnceCell;
use std::fmt;
use std::rc::Rc;

use super::kernels::quant::PackedMatrix;
use super::pool::Pool;
use crate::backend::kv::{HostKv, KvShape, PAGE};
use crate::backend::ops::{MatrixOperand, StackOperand, State, TensorOperand, VectorOperand};
use crate::error::Result;
use crate::quant::{Matrix, Plane, QuantWeight, Stack};
use crate::tensor::{ElementType, HostTensor, Weight};

impl TensorOperand for HostTensor {
    fn shape(&self) -> &[usize] {
        self.shape()
    }

    fn element(&self) -> ElementType {
        self.element()
    }
}

impl State for HostKv {
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
        self.give_back(PAGE);
    }

    fn truncate(&mut self, len: usize) {
        self.truncate(len);
    }
}

/// A matrix for the CPU's kernels: read where its file has it, or packed for the kernels of its blocks when it is first
/// multiplied by. Clones share what was packed.
#[derive(Clone)]
pub struct CpuMatrix(Rc<Prepared>);

struct Prepared {
    source: Matrix,
    packed: OnceCell<PackedMatrix>,
}

impl fmt::Debug for CpuMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source.fmt(f)
    }
}

impl MatrixOperand for CpuMatrix {
    fn source(&self) -> &Matrix {
        &self.0.source
    }
}

/// A matrix as a product reads it.
pub(super) enum Readable<'a> {
    /// Where its file has it.
    Dense(&'a Weight),
    /// In blocks that no kernel reads: decoded for this product.
    Decoded(Weight),
    /// In panels.
    Packed(&'a PackedMatrix),
}

impl CpuMatrix {
    /// `source`, of which nothing is made yet.
    pub(crate) fn new(source: Matrix) -> Self {
        Self(Rc::new(Prepared { source, packed: OnceCell::new() }))
    }

    /// What a product reads; blocks are packed the first time.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(super) fn readable(&self, pool: &Pool) -> Result<Readable<'_>> {
        Ok(match &self.0.source {
            Matrix::Dense(weight) => Readable::Dense(weight),
            Matrix::Quantized(weight) if PackedMatrix::supports(weight.format()) => {
                Readable::Packed(get_or_try(&self.0.packed, || pack(pool, weight))?)
            }
            Matrix::Quantized(weight) => {
                Readable::Decoded(Weight::of_values(weight.name(), weight.shape(), weight.widened()?))
            }
        })
    }
}

/// The matrices of a layer's experts, each of which is read or packed when a row first goes to it. Clones share what was packed.
#[derive(Clone)]
pub struct CpuStack {
    source: Stack,
    each: Rc<[CpuMatrix]>,
}

impl fmt::Debug for CpuStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl StackOperand for CpuStack {
    fn source(&self) -> &Stack {
        &self.source
    }
}

impl CpuStack {
    /// `source`, of which nothing is made yet.
    pub(crate) fn new(source: Stack) -> Self {
        let each = source.each().iter().cloned().map(CpuMatrix::new).collect();
        Self { source, each }
    }

    /// The matrix of expert `expert`.
    pub(super) fn expert(&self, expert: usize) -> &CpuMatrix {
        &self.each[expert]
    }
}

/// Packs all of a matrix. What it was made of leaves memory, where it is a part of a mapped file, or can be made of one again.
fn pack(pool: &Pool, weight: &QuantWeight) -> Result<PackedMatrix> {
    let held = weight.held()?;
    let packed = PackedMatrix::pack(pool, &held)?;
    held.planes().iter().for_each(Plane::release);
    Ok(packed)
}

/// What `cell` holds, or what `make` makes for it.
fn get_or_try<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let made = make()?;
            Ok(cell.get_or_init(|| made))
        }
    }
}

/// The weight of a norm, or a bias, widened to `f32` when it is first used. Clones share the values.
#[derive(Clone)]
pub struct CpuVector(Rc<Widened>);

struct Widened {
    source: Weight,
    values: OnceCell<Box<[f32]>>,
}

impl fmt::Debug for CpuVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source.fmt(f)
    }
}

impl VectorOperand for CpuVector {
    fn source(&self) -> &Weight {
        &self.0.source
    }
}

impl CpuVector {
    /// `source`, of which nothing is made yet.
    pub(crate) fn new(source: Weight) -> Self {
        Self(Rc::new(Widened { source, values: OnceCell::new() }))
    }

    /// The values.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(super) fn values(&self) -> Result<&[f32]> {
        let values = get_or_try(&self.0.values, || self.0.source.widened().map(Vec::into_boxed_slice));
        values.map(|values| &**values)
    }
}
