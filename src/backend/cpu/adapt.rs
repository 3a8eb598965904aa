//! What adapters add to products, on the CPU's kernels.

use std::ops::Range;

use smallvec::smallvec;

use super::backend::{CpuBackend, OneProduct};
use super::operands::CpuMatrix;
use crate::backend::ops::{Ids, MatrixOperand};
use crate::error::Result;
use crate::tensor::HostTensor;

impl CpuBackend {
    /// `(into[R] + scale · (x[R] · Aᵀ) · Bᵀ) ∘ c + d` in the rows `R`, and `into` in the others: of `x` `[T, K]` and `into` `[T, N]`, by `A`
    /// `[r, K]` and `B` `[N, r]`. Nothing is computed of the others.
    pub(super) fn adapt(
        &self,
        [x, into]: [&HostTensor; 2],
        rows: Range<usize>,
        [low, high]: [&CpuMatrix; 2],
        scale: f32,
        columns: Option<[&CpuMatrix; 2]>,
    ) -> Result<HostTensor> {
        let (width, rank, height) = (x.shape()[1], low.shape()[0], into.shape()[1]);
        let mut between = self.buffer(rows.len() * rank)?; // [R, r]
        let x = &x.data()[rows.start * width..rows.end * width];
        self.multiply(x, smallvec![OneProduct { weight: low, bias: None, out: &mut between }])?;
        between.iter_mut().for_each(|value| *value *= scale);
        let mut more = self.buffer(rows.len() * height)?; // [R, N]
        self.multiply(&between, smallvec![OneProduct { weight: high, bias: None, out: &mut more }])?;
        let mut sum = into.copy(|len| self.buffer(len))?;
        let own = &mut sum.data_mut()[rows.start * height..rows.end * height];
        let Some([by, plus]) = columns else {
            own.iter_mut().zip(&*more).for_each(|(own, more)| *own += more);
            return Ok(sum);
        };
        let second = |table| self.embedding(table, Ids::Known(&[1]), 1.0);
        let (by, plus) = (second(by)?, second(plus)?);
        for (own, more) in own.chunks_exact_mut(height.max(1)).zip(more.chunks_exact(height.max(1))) {
            for (((own, more), by), plus) in own.iter_mut().zip(more).zip(by.data()).zip(plus.data()) {
                *own = (*own + more) * by + plus;
            }
        }
        Ok(sum)
    }
}
