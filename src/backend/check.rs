//! The check of a GPU's kernels at its first use: a grouped attention, a quantized product, and products with the matrices of
//! experts, of small fixed shapes, computed on the device and on the CPU. A kernel that computes wrong would go unnoticed otherwise:
//! no call of it fails.

use std::sync::Arc;

use parking_lot::Mutex;

use super::cpu::{Activations, CpuBackend};
use super::fallback::{Faults, KeptOff};
use super::kv::{HostKv, KvShape};
use super::mlx::MlxBackend;
use super::ops::{Backend, ExpertProjection, Gating, Mask, Op, OpKind, Operands, Projection, Run};
use crate::config::Activation;
use crate::error::Result;
use crate::quant::{Format, Matrix, Plane, QuantWeight, Stack, write_floats};
use crate::tensor::{DType, HostTensor, Weight};

/// What the matrices are called.
const NAME: &str = "start-up check";

/// What was found in this process, by the type of activations.
static FOUND: Mutex<Vec<(DType, Vec<KeptOff>)>> = Mutex::new(Vec::new());

/// How far a result may be from the CPU's, in units of the largest element. These are for telling a kernel that is wrong, which
/// is off by about the whole, from one that rounds: parity has bounds of its own.
fn tolerance(dtype: DType) -> f32 {
    match dtype {
        // Some GPUs cut the operands of products in f32 to eleven bits.
        DType::F32 => 5e-3,
        DType::F16 => 1e-2,
        // Sums of 256 products that are kept in bf16.
        DType::BF16 => 5e-2,
    }
}

/// The ops whose kernels compute wrong on a GPU, or fail. Nothing is checked elsewhere, unless `faults` ask for it.
pub(super) fn wrong_kernels(mlx: &MlxBackend, dtype: DType, faults: &Faults) -> Vec<KeptOff> {
    let fault = faults.check();
    if fault.is_some() {
        return checked(mlx, dtype, fault);
    }
    if !mlx.is_gpu() {
        return Vec::new();
    }
    let mut found = FOUND.lock();
    if let Some((_, wrong)) = found.iter().find(|(of, _)| *of == dtype) {
        return wrong.clone();
    }
    let wrong = checked(mlx, dtype, None);
    found.push((dtype, wrong.clone()));
    wrong
}

/// Checks each kernel; the result of the op `fault` is made wrong first.
fn checked(mlx: &MlxBackend, dtype: DType, fault: Option<OpKind>) -> Vec<KeptOff> {
    let cpu = CpuBackend::new(Some(1), None).with_activations(Activations::F32);
    let both = Both { mlx, cpu: &cpu, dtype, fault };
    let mut checks =
        vec![(OpKind::Attention, false, both.attention()), (OpKind::Linear, true, both.quantized_product())];
    match both.experts(false) {
        Ok(None) => checks.push((OpKind::Experts, true, both.experts(true))),
        wrong => checks.push((OpKind::Experts, false, wrong)),
    }
    // What the check left on the device serves nobody else.
    mlx.weights().clear();
    mlx.begin_step();
    let wrong = checks.into_iter().filter_map(|(op, quantized, outcome)| {
        let reason = match outcome {
            Ok(None) => return None,
            Ok(Some(off)) => format!("wrong in the start-up check: {off}"),
            Err(error) => format!("failed in the start-up check: {error}"),
        };
        Some(KeptOff { op, quantized, reason, asked: false })
    });
    wrong.collect()
}

/// The two that are to agree.
struct Both<'a> {
    mlx: &'a MlxBackend,
    cpu: &'a CpuBackend,
    dtype: DType,
    fault: Option<OpKind>,
}

impl Both<'_> {
    /// Four query heads to each of two key heads, for one token and for several, which are kernels of their own.
    fn attention(&self) -> Result<Option<String>> {
        const HEADS: usize = 8;
        const HEAD_DIM: usize = 64;
        let shape = KvShape::new(2, HEAD_DIM, self.dtype.into());
        for (start, len) in [(70, 1), (40, 17)] {
            let [width, _] = shape.widths();
            let mut kv = HostKv::new(shape);
            kv.write(0, &values(1, (start + len) * width), &values(2, (start + len) * width))?;
            let mask = Mask::causal(&[Run { sequence: 0, row: 0, len, start }], None)?;
            let (width, scale) = (HEADS * HEAD_DIM, (HEAD_DIM as f32).powf(-0.5));
            let x = HostTensor::from_vec(&[len, width], values(3, len * width));
            let on_mlx = (self.mlx.to_backend(self.cpu.to_host(&x)?)?, self.mlx.kv_from_host(&kv)?);
            let (q, kvs) = (&on_mlx.0, [&on_mlx.1]);
            let got = self.mlx.run1(&Op::Attention {
                q,
                kv: &kvs,
                mask: &mask,
                scale,
                soft_cap: None,
                sinks: None,
                bias: None,
            })?;
            let (q, kvs) = (&x, [&kv]);
            let expected = self.cpu.run1(&Op::Attention {
                q,
                kv: &kvs,
                mask: &mask,
                scale,
                soft_cap: None,
                sinks: None,
                bias: None,
            })?;
            let off = self.compare(OpKind::Attention, &got, &expected)?;
            if off.is_some() {
                return Ok(off);
            }
        }
        Ok(None)
    }

    /// Affine codes of four bits in groups of 64, for one row and for many, which are kernels of their own.
    fn quantized_product(&self) -> Result<Option<String>> {
        const SHAPE: [usize; 2] = [64, 256];
        let weight = self.matrix(4, SHAPE, true);
        let (on_mlx, on_cpu) = (self.mlx.matrix(&weight), self.cpu.matrix(&weight));
        for rows in [1, 33] {
            let x = HostTensor::from_vec(&[rows, SHAPE[1]], values(7, rows * SHAPE[1]));
            let there = self.mlx.to_backend(self.cpu.to_host(&x)?)?;
            let projection = Projection { weight: &on_mlx, bias: None };
            let got = self.mlx.run1(&Op::Linear { x: &there, projection })?;
            let projection = Projection { weight: &on_cpu, bias: None };
            let expected = self.cpu.run1(&Op::Linear { x: &x, projection })?;
            let off = self.compare(OpKind::Linear, &got, &expected)?;
            if off.is_some() {
                return Ok(off);
            }
        }
        Ok(None)
    }

    /// Two of four experts for each row, whose matrices are gathered: for one row, and for many, whose ids are put in order first.
    fn experts(&self, quantized: bool) -> Result<Option<String>> {
        const EXPERTS: usize = 4;
        const USED: usize = 2;
        const WIDTH: usize = 128;
        const INNER: usize = 64;
        let stack = |seed: usize, shape| {
            let of = |expert| self.matrix((seed + 3 * expert) as u64, shape, quantized);
            Stack::new((0..EXPERTS).map(of).collect::<Vec<_>>())
        };
        let stacks = [stack(11, [INNER, WIDTH]), stack(31, [INNER, WIDTH]), stack(51, [WIDTH, INNER])];
        let on_mlx = stacks.each_ref().map(|stack| self.mlx.stack(stack));
        let on_cpu = stacks.each_ref().map(|stack| self.cpu.stack(stack));
        for rows in [1, 65] {
            let x = HostTensor::from_vec(&[rows, WIDTH], values(8, rows * WIDTH));
            let weights = HostTensor::from_vec(&[rows, USED], values(9, rows * USED));
            let ids = (0..rows).flat_map(|row| [row % EXPERTS, (row * 3 + 1) % EXPERTS]);
            let ids = HostTensor::from_u32(&[rows, USED], ids.map(|id| id as u32).collect());
            let there = |of: &HostTensor| self.mlx.to_backend(self.cpu.to_host(of)?);
            let on_device = [there(&x)?, there(&ids)?, there(&weights)?];
            let got = self.mlx.run1(&experts(&on_device, &on_mlx))?;
            let expected = self.cpu.run1(&experts(&[x, ids, weights], &on_cpu))?;
            let off = self.compare(OpKind::Experts, &got, &expected)?;
            if off.is_some() {
                return Ok(off);
            }
        }
        Ok(None)
    }

    /// A matrix of values from −0.1 to 0.1, about: of the activations' type, or in affine codes of four bits in groups of 64.
    fn matrix(&self, seed: u64, shape: [usize; 2], quantized: bool) -> Matrix {
        let count = shape[0] * shape[1];
        let floats = |values: Vec<f32>| {
            let mut bytes = vec![0; values.len() * self.dtype.size()];
            write_floats(self.dtype, &values, &mut bytes);
            bytes
        };
        if !quantized {
            let bytes = floats(values(seed, count).into_iter().map(|x| 0.1 * x).collect());
            let len = bytes.len();
            return Matrix::Dense(Weight::new(NAME, self.dtype, &shape, Arc::new(bytes), 0..len));
        }
        let format = Format::Affine { bits: 4, group: 64, scales: self.dtype };
        let codes = values(seed, count / 2).into_iter().map(|x| ((x + 1.0) * 127.5) as u8).collect();
        let of_groups = |seed, from: f32| {
            floats(values(seed, count / 64).into_iter().map(|x| from + 0.005 * x).collect())
        };
        let planes = [codes, of_groups(seed + 1, 0.0125), of_groups(seed + 2, -0.1)].map(Plane::owned);
        Matrix::Quantized(QuantWeight::new(NAME, format, shape, planes))
    }

    /// How far what `op` gave on MLX is off, if that is too far.
    fn compare(
        &self,
        op: OpKind,
        got: &<MlxBackend as Operands>::Tensor,
        expected: &HostTensor,
    ) -> Result<Option<String>> {
        let mut got = self.mlx.to_host(got)?;
        if self.fault == Some(op) {
            got.data_mut().iter_mut().for_each(|x| *x = -*x);
        }
        Ok(off(got.data(), expected.data(), tolerance(self.dtype)))
    }
}

/// `x`, ids and weights with gate, up and down.
fn experts<'a, B: Operands>(
    [x, ids, weights]: &'a [B::Tensor; 3],
    [gate, up, down]: &'a [B::Stack; 3],
) -> Op<'a, B> {
    let of = |weight| ExpertProjection { weight, bias: None };
    let gating = Gating::Plain(Activation::Silu);
    Op::Experts { x, ids, weights, gate: Some(of(gate)), up: of(up), down: of(down), gating, on_input: false }
}

/// How far `got` is off, if that is more than `tolerance`, in units of the largest element expected.
fn off(got: &[f32], expected: &[f32], tolerance: f32) -> Option<String> {
    let size = expected.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    let apart = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs());
    // A NaN is further off than anything.
    let apart =
        apart.fold(0.0_f32, |most, apart| if apart.is_nan() { f32::INFINITY } else { most.max(apart) });
    (apart > tolerance * size)
        .then(|| format!("off by {:.2} of the largest element, at most {tolerance}", apart / size))
}

/// Values from −1 to 1 that follow no pattern.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        // Xorshift, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_compute_right_pass_in_every_type() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let Ok(mlx) = MlxBackend::new(dtype) else {
                return println!("skipped: this build has no MLX (cargo xtask test has)");
            };
            let wrong = checked(&mlx, dtype, None);
            assert!(wrong.is_empty(), "{dtype}: {wrong:?}");
            assert!(mlx.weights().is_empty(), "the check leaves weights behind");
            for (op, quantized) in
                [(OpKind::Attention, false), (OpKind::Linear, true), (OpKind::Experts, false)]
            {
                let wrong = checked(&mlx, dtype, Some(op));
                assert_eq!(wrong.len(), 1, "{dtype}: {wrong:?}");
                assert_eq!((wrong[0].op, wrong[0].quantized, wrong[0].asked), (op, quantized, false));
                assert!(
                    wrong[0].reason.starts_with("wrong in the start-up check: off by "),
                    "{}",
                    wrong[0].reason
                );
            }
        }
    }

    #[test]
    fn what_is_no_number_is_off() {
        assert_eq!(off(&[1.0, -0.5], &[1.0, -0.501], 1e-2), None);
        assert!(off(&[1.0, -0.5], &[1.0, 0.5], 1e-2).is_some());
        assert!(off(&[f32::NAN, 1.0], &[1.0, 1.0], 1e-2).is_some());
        assert!(off(&[1.0, f32::NAN], &[1.0, 1.0], 1e-2).is_some());
    }
}
