//! The feed-forward parts of experts: rows by expert, each expert that has any read once. And products of heads, which are the same
//! with a matrix for each head.

use std::ops::Range;

use smallvec::SmallVec;

use super::backend::{CpuBackend, OneProduct};
use super::kernels::pointwise::{self, Binary};
use super::kernels::quant::{self, PackedMatrix, QuantProjection, Rows};
use super::kernels::route::{Grouped, combine};
use super::operands::{CpuStack, CpuVector, Readable};
use crate::alloc;
use crate::backend::ops::{ExpertProjection, Gating, MatrixOperand, StackOperand};
use crate::error::Result;
use crate::quant::Matrix;
use crate::tensor::{Buffer, HostTensor};

/// A projection of experts: its matrices, the biases `[E, N]`, and where the result goes, `[T · k, N]`.
struct Product<'a> {
    weight: &'a CpuStack,
    bias: Option<&'a [f32]>,
    out: Buffer,
}

impl<'a> Product<'a> {
    fn new(cpu: &CpuBackend, of: ExpertProjection<'a, CpuBackend>, rows: usize) -> Result<Self> {
        let bias = of.bias.map(CpuVector::values).transpose()?;
        Ok(Self { weight: of.weight, bias, out: cpu.buffer(rows * of.weight.shape()[1])? })
    }
}

/// What is between the projections of experts.
struct Gated {
    grouped: Grouped,
    /// What they are given, `[T · k, D]`, where that is not rows of the input.
    given: Option<Buffer>,
    /// What their last projection is given, `[T · k, I]`.
    joined: Buffer,
}

impl CpuBackend {
    /// [`Op::Experts`](crate::backend::ops::Op::Experts), of shapes that fit.
    pub(super) fn experts(
        &self,
        [x, ids, weights]: [&HostTensor; 3],
        on_input: bool,
        gate_up: [Option<ExpertProjection<'_, Self>>; 2],
        down: ExpertProjection<'_, Self>,
        gating: Gating,
    ) -> Result<HostTensor> {
        let [experts, width, inner] = down.weight.shape();
        let rows = ids.shape().iter().product();
        let Gated { grouped, joined, .. } =
            self.gated([x, ids, weights], on_input, gate_up, experts, gating)?;
        let mut product = [Product::new(self, down, rows)?];
        self.products(&grouped, Rows { data: &joined, cols: inner, pick: None }, &mut product)?;
        let [Product { out: y, .. }] = product;
        let mut out = self.buffer(x.shape()[0] * width)?;
        let ones;
        let weights = match on_input {
            true => {
                ones = alloc::collect(std::iter::repeat_n(1.0, rows), "the weights of experts")?;
                &ones[..]
            }
            false => weights.data(),
        };
        let (pool, _) = self.kernels();
        combine(pool, &y, &grouped.places, weights, width, &mut out);
        Ok(HostTensor::new(&[x.shape()[0], width], out))
    }

    /// The rows of experts, and what is between their projections.
    fn gated(
        &self,
        [x, ids, weights]: [&HostTensor; 3],
        on_input: bool,
        gate_up: [Option<ExpertProjection<'_, Self>>; 2],
        experts: usize,
        gating: Gating,
    ) -> Result<Gated> {
        let (used, rows) = (ids.shape()[1], ids.shape().iter().product());
        let grouped = Grouped::new(ids.as_u32().unwrap_or_default(), used, experts)?;

        let mut products: SmallVec<[Product<'_>; 2]> = SmallVec::new();
        for projection in gate_up.into_iter().flatten() {
            products.push(Product::new(self, projection, rows)?);
        }
        let cols = x.shape()[1];
        let given = if on_input {
            let mut weighed = self.buffer(rows * cols)?;
            for (at, (&place, weight)) in grouped.places.iter().zip(weights.data()).enumerate() {
                let (row, to) =
                    (&x.data()[at / used * cols..][..cols], &mut weighed[place as usize * cols..][..cols]);
                to.iter_mut().zip(row).for_each(|(to, x)| *to = weight * x);
            }
            self.products(&grouped, Rows { data: &weighed, cols, pick: None }, &mut products)?;
            Some(weighed)
        } else {
            let picked = Rows { data: x.data(), cols, pick: Some(&grouped.rows) };
            self.products(&grouped, picked, &mut products)?;
            None
        };

        let mut products = products.into_iter().map(|product| product.out);
        let (Some(mut joined), second) = (products.next(), products.next()) else {
            unreachable!("there is the part that is up")
        };
        let (pool, isa) = self.kernels();
        match second {
            Some(up) => {
                let gated = match gating {
                    Gating::Plain(activation) => Binary::Gated(activation.into()),
                    Gating::Clamped { alpha, limit } => Binary::Clamped { alpha, limit },
                };
                pointwise::binary_in_place(pool, isa, gated, &mut joined, &up);
            }
            None => pointwise::unary_in_place(pool, isa, gating.alone()?.into(), &mut joined),
        }
        Ok(Gated { grouped, given, joined })
    }

    /// Calls `each` with an expert that has any rows, with these rows `[R, D]`, and with what its last projection is given,
    /// `[R, I]`.
    pub(in crate::backend) fn expert_inputs(
        &self,
        [x, ids, weights]: [&HostTensor; 3],
        on_input: bool,
        gate_up: [Option<ExpertProjection<'_, Self>>; 2],
        gating: Gating,
        mut each: impl FnMut(usize, &[f32], &[f32]),
    ) -> Result<()> {
        let Some(up) = gate_up[1] else { return Ok(()) };
        let [experts, inner, cols] = up.weight.shape();
        let Gated { grouped, given, joined } =
            self.gated([x, ids, weights], on_input, gate_up, experts, gating)?;
        let x = match &given {
            Some(weighed) => Rows { data: weighed, cols, pick: None },
            None => Rows { data: x.data(), cols, pick: Some(&grouped.rows) },
        };
        let mut gathered = Vec::new();
        for (expert, rows) in &grouped.experts {
            let joined = &joined[rows.start * inner..rows.end * inner];
            each(*expert, own_rows(x, rows.clone(), &mut gathered)?, joined);
        }
        Ok(())
    }

    /// [`Op::HeadLinear`](crate::backend::ops::Op::HeadLinear), of shapes that fit.
    pub(super) fn head_linear(
        &self,
        x: &HostTensor,
        weight: &CpuStack,
        beside: Option<&HostTensor>,
    ) -> Result<HostTensor> {
        let (rows, [heads, n, k]) = (x.shape()[0], weight.shape());
        let more = beside.map_or(0, |beside| beside.shape()[1] / heads.max(1));
        let grouped = Grouped::heads(rows, heads)?;
        let mut product = [Product { weight, bias: None, out: self.buffer(rows * heads * n)? }];
        let picked = Rows { data: x.data(), cols: k, pick: Some(&grouped.rows) };
        if rows > 0 {
            self.products(&grouped, picked, &mut product)?;
        }
        let [Product { out: by_head, .. }] = product;
        let width = n + more;
        let mut out = self.buffer(rows * heads * width)?;
        for (row, out) in out.chunks_exact_mut((heads * width).max(1)).enumerate() {
            for (head, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
                let (product, rest) = out.split_at_mut(n);
                product.copy_from_slice(&by_head[(head * rows + row) * n..][..n]);
                if let Some(beside) = beside {
                    rest.copy_from_slice(&beside.data()[(row * heads + head) * more..][..more]);
                }
            }
        }
        Ok(HostTensor::new(&[rows, heads * width], out))
    }

    /// The products of each expert's rows of `x`, which are in the order of experts.
    fn products(&self, grouped: &Grouped, x: Rows<'_>, products: &mut [Product<'_>]) -> Result<()> {
        let mut packed: SmallVec<[&PackedMatrix; 32]> = SmallVec::new();
        for (expert, _) in &grouped.experts {
            for product in &*products {
                let matrix = product.weight.expert(*expert);
                // Asked before, so that nothing is decoded for the question.
                let plain = matches!(matrix.source(), Matrix::Quantized(of) if of.order().is_none() && PackedMatrix::supports(of.format()));
                match plain.then(|| self.readable(matrix)).transpose()? {
                    Some(Readable::Packed(weight)) => packed.push(weight),
                    _ => return self.one_by_one(grouped, x, products),
                }
            }
        }
        let mut rest: SmallVec<[&mut [f32]; 2]> = SmallVec::new();
        let mut biases: SmallVec<[Option<&[f32]>; 2]> = SmallVec::new();
        for product in products.iter_mut() {
            biases.push(product.bias);
            rest.push(&mut product.out);
        }
        let mut parts: SmallVec<[QuantProjection<'_>; 32]> = SmallVec::new();
        let mut packed = packed.into_iter();
        for (expert, rows) in &grouped.experts {
            for ((rest, bias), weight) in rest.iter_mut().zip(&biases).zip(packed.by_ref()) {
                let n = weight.rows();
                let (out, left) = std::mem::take(rest).split_at_mut(rows.len() * n);
                *rest = left;
                let bias = bias.map(|bias| &bias[expert * n..][..n]);
                parts.push(QuantProjection { weight, bias, rows: rows.clone(), out });
            }
        }
        let (pool, isa) = self.kernels();
        quant::linear_group(pool, isa, self.activations(), x, &mut parts, &mut self.rounded())
    }

    /// The same, an expert after the other: of matrices that are not in panels, or have orders of their columns.
    fn one_by_one(&self, grouped: &Grouped, x: Rows<'_>, products: &mut [Product<'_>]) -> Result<()> {
        let mut gathered = Vec::new();
        for (expert, rows) in &grouped.experts {
            let x = own_rows(x, rows.clone(), &mut gathered)?;
            let mut parts = SmallVec::new();
            for product in products.iter_mut() {
                let n = product.weight.shape()[1];
                let bias = product.bias.map(|bias| &bias[expert * n..][..n]);
                let out = &mut product.out[rows.start * n..rows.end * n];
                parts.push(OneProduct { weight: product.weight.expert(*expert), bias, out });
            }
            self.multiply(x, parts)?;
        }
        Ok(())
    }
}

/// Rows `rows` of `x`, side by side: where they lie, or copied to `gathered`.
fn own_rows<'a>(x: Rows<'a>, rows: Range<usize>, gathered: &'a mut Vec<f32>) -> Result<&'a [f32]> {
    if x.pick.is_none() {
        return Ok(&x.data[rows.start * x.cols..rows.end * x.cols]);
    }
    gathered.clear();
    crate::alloc::reserve(gathered, rows.len() * x.cols, "activations of a step")?;
    rows.for_each(|row| gathered.extend_from_slice(x.row(row)));
    Ok(gathered)
}
