//! The backends under test, their inputs, and the comparison that prints its worst element.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use backstop::backend::batch::Run;
use backstop::backend::cpu::{Activations, CpuBackend};
use backstop::backend::kv::KvShape;
use backstop::backend::ops::{Backend, KvRows, OpKind, Projection};
use backstop::backend::{
    Faults, LayerState, LlmBackendDispatch, Op, Policy, PreparedMatrix, PreparedVector, Routing, Tensor,
};
use backstop::quant::{Matrix, MatrixRef};
use backstop::tensor::{DType, HostTensor, Weight};
use half::{bf16, f16};

use crate::tolerance;

pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Numbers of rows: one, few, a block of 64 and one more, and a real prompt's remainder.
pub const ROWS: [usize; 7] = [1, 2, 3, 7, 17, 64, 65];

/// A backend with its type of activations, and how near to its bounds each op came.
pub struct Rig {
    pub name: &'static str,
    pub dtype: DType,
    pub dispatch: LlmBackendDispatch,
    nearest: RefCell<BTreeMap<OpKind, (f64, usize)>>,
}

/// The value of an element in exact arithmetic, and the magnitudes that its error is measured by.
#[derive(Debug, Clone, Copy)]
pub struct Element {
    pub value: f64,
    /// Of what is rounded to the type of activations on the way.
    pub rounded: f64,
    /// Of what is computed in `f32` on the way: the sum of the terms' magnitudes.
    pub summed: f64,
}

impl Element {
    /// A value that only its own rounding keeps from being exact.
    pub fn rounded(value: f64) -> Self {
        Self { value, rounded: value.abs(), summed: 0.0 }
    }
}

/// `x` in the precision of `dtype`.
pub fn round(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
    }
}

/// `len` values, about normal with deviation `size`, a function of `seed` alone (splitmix64).
pub fn values(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(len as u64);
    (0..len)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            // The sum of four uniform numbers of variance 1/12.
            let sum: f32 = (0..4).map(|i| ((z >> (16 * i)) & 0xffff) as f32 / 65536.0 - 0.5).sum();
            sum * 1.732 * size
        })
        .collect()
}

/// A weight in `dtype`.
pub fn weight(dtype: DType, shape: &[usize], values: &[f32]) -> Weight {
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    };
    let len = bytes.len();
    Weight::new("test", dtype, shape, Arc::new(bytes), 0..len)
}

/// A projection `[n, k]` whose products with inputs of deviation 1 have about deviation 1.
pub fn projection(dtype: DType, seed: u64, n: usize, k: usize) -> Weight {
    weight(dtype, &[n, k], &values(seed, n * k, 1.0 / (k as f32).sqrt()))
}

pub fn with<'a>(
    weight: &'a PreparedMatrix,
    bias: Option<&'a PreparedVector>,
) -> Projection<'a, LlmBackendDispatch> {
    Projection { weight, bias }
}

/// A matrix as `on` prepares it.
pub fn matrix<'a>(on: &LlmBackendDispatch, weight: impl Into<MatrixRef<'a>>) -> PreparedMatrix {
    on.matrix(&match weight.into() {
        MatrixRef::Dense(weight) => Matrix::Dense(weight.clone()),
        MatrixRef::Quantized(weight) => Matrix::Quantized(weight.clone()),
    })
}

fn routing() -> Routing {
    Routing::new(Policy::Deny, Faults::default())
}

/// The CPU kernels on `threads` threads.
pub fn cpu(threads: usize) -> LlmBackendDispatch {
    LlmBackendDispatch::cpu(
        CpuBackend::new(Some(threads), None).with_activations(Activations::F32),
        routing(),
    )
}

/// The CPU kernels, and MLX in each type of activations where this build has it.
pub fn rigs() -> Vec<Rig> {
    let rig = |name, dtype, dispatch| Rig { name, dtype, dispatch, nearest: RefCell::default() };
    #[allow(unused_mut)] // only MLX adds to it
    let mut all = vec![rig("cpu", DType::F32, cpu(2))];
    #[cfg(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64")))]
    for (name, dtype) in [("mlx f32", DType::F32), ("mlx f16", DType::F16), ("mlx bf16", DType::BF16)] {
        let dispatch = LlmBackendDispatch::mlx(
            dtype,
            CpuBackend::new(Some(1), None).with_activations(Activations::F32),
            routing(),
        )
        .unwrap();
        all.push(rig(name, dtype, dispatch));
    }
    if all.len() == 1 {
        println!("skipped: this build has no MLX (cargo xtask test has)");
    }
    all
}

impl Rig {
    pub fn is_cpu(&self) -> bool {
        self.name == "cpu"
    }

    /// [`values`], rounded to this backend's type of activations.
    pub fn values(&self, seed: u64, len: usize, size: f32) -> Vec<f32> {
        values(seed, len, size).into_iter().map(|x| round(self.dtype, x)).collect()
    }

    /// A matrix as this backend prepares it.
    pub fn matrix<'a>(&self, weight: impl Into<MatrixRef<'a>>) -> PreparedMatrix {
        matrix(&self.dispatch, weight)
    }

    /// A norm's weight, or a bias, as this backend prepares it.
    pub fn vector(&self, weight: &Weight) -> PreparedVector {
        self.dispatch.vector(weight)
    }

    /// `values` as an activation.
    pub fn tensor(&self, shape: &[usize], values: &[f32]) -> Tensor {
        self.dispatch.to_backend(HostTensor::from_vec(shape, values.to_vec())).unwrap()
    }

    /// An op's outputs in host memory.
    #[track_caller]
    pub fn run(&self, op: &Op<'_>) -> Vec<HostTensor> {
        let outputs = self.dispatch.run(op).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let shapes = op.output_shapes();
        assert_eq!(outputs.len(), shapes.len(), "{} on {}", op.kind(), self.name);
        for (output, shape) in outputs.iter().zip(&shapes) {
            assert_eq!(output.shape(), shape.as_slice(), "{} on {}", op.kind(), self.name);
        }
        outputs.iter().map(|output| self.dispatch.to_host(output).unwrap()).collect()
    }

    /// The output of an op that has one.
    #[track_caller]
    pub fn run1(&self, op: &Op<'_>) -> HostTensor {
        let mut outputs = self.run(op);
        assert_eq!(outputs.len(), 1);
        outputs.remove(0)
    }

    /// Runs an op with one output and compares it.
    #[track_caller]
    pub fn check(&self, op: &Op<'_>, what: &str, expected: &[Element]) {
        let got = self.run1(op);
        self.compare(op.kind(), what, &got, expected);
    }

    /// Asserts that every element is within the bound of its op and type, and says of the worst one which it is.
    #[track_caller]
    pub fn compare(&self, op: OpKind, what: &str, got: &HostTensor, expected: &[Element]) {
        assert_eq!(got.data().len(), expected.len(), "{op} on {}: {what}", self.name);
        let mut worst = (0.0_f64, 0);
        for (i, (&got, expected)) in got.data().iter().zip(expected).enumerate() {
            let of_bound = (f64::from(got) - expected.value).abs() / self.bound(op, expected);
            if of_bound > worst.0 || of_bound.is_nan() {
                worst = (of_bound, i);
            }
            if of_bound.is_nan() {
                break;
            }
        }
        let (of_bound, i) = worst;
        if of_bound > 1.0 || of_bound.is_nan() {
            let width = got.shape().last().copied().unwrap_or(1).max(1);
            let (value, got_value) = (expected[i].value, got.data()[i]);
            panic!(
                "{op} on {} ({what}), shape {:?}: worst at [{}, {}]: got {got_value:e}, expected {value:e}, error {:.3e}, \
                 at most {:.3e}",
                self.name,
                got.shape(),
                i / width,
                i % width,
                (f64::from(got_value) - value).abs(),
                self.bound(op, &expected[i]),
            );
        }
        let mut nearest = self.nearest.borrow_mut();
        let (largest, cases) = nearest.entry(op).or_default();
        *largest = largest.max(of_bound);
        *cases += 1;
    }

    fn bound(&self, op: OpKind, expected: &Element) -> f64 {
        let tolerance::OpBound { rounded, summed } = tolerance::op(op, self.dtype);
        rounded * tolerance::unit(self.dtype) * expected.rounded
            + summed * tolerance::unit(DType::F32) * expected.summed
            + tolerance::smallest(self.dtype)
    }

    /// A cache that holds `k` `[tokens, heads * k_dim]` and `v` `[tokens, heads * v_dim]`, written in one run.
    #[track_caller]
    pub fn cache(&self, shape: KvShape, k: &[f32], v: &[f32]) -> LayerState {
        let mut layer = self.dispatch.state(&shape, None);
        self.append(&mut layer, k, v);
        layer
    }

    /// Writes `k` and `v` behind what `layer` holds.
    #[track_caller]
    pub fn append(&self, layer: &mut LayerState, k: &[f32], v: &[f32]) {
        let [k_width, v_width] = layer.shape().widths();
        let (len, start) = (k.len() / k_width, layer.len());
        let (k, v) = (self.tensor(&[len, k_width], k), self.tensor(&[len, v_width], v));
        let run = Run { sequence: 0, row: 0, len, start };
        self.dispatch.write(layer, KvRows { k: &k, v: &v }, &run).unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert!(self.dispatch.report().is_clean(), "{}: an op fell back", self.name);
        for (op, (largest, cases)) in self.nearest.borrow().iter() {
            println!("{op} on {}: at most {largest:.2} of the bound in {cases} cases", self.name);
        }
    }
}
