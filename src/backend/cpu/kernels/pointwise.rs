//! Elementwise kernels: activations, sums, products, caps, and the widening of embedding rows.
//!
//! An element's bits depend on the element alone: a lane of a partial vector computes what a full one does.

use half::{bf16, f16};

use super::{math, rows_per_task};
use crate::backend::cpu::isa::{Element, Isa, Kernel, Simd};
use crate::backend::cpu::pool::Pool;
use crate::tensor::DType;

/// Elements of a task: 128 KiB of operands, or about 5 µs of exponentials, several times what handing it to another
/// thread costs. A decode step's rows are below: they run on the calling thread.
const TASK: usize = 16 * 1024;

/// A function of one element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// `x / (1 + e^-x)`: relative error below 4e-7 where the result is normal.
    Silu,
    /// `x/2 · (1 + erf(x / √2))`: absolute error below 3e-7 · max(1, |result|).
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`, as `x / (1 + e^-2u)`: absolute error below
    /// 3e-7 · max(1, |result|).
    GeluTanh,
    /// `max(x, 0)²`, correctly rounded.
    Relu2,
    /// `x` times this.
    Scale(f32),
    /// `cap · tanh(x / cap)`: relative error below 5e-7.
    SoftCap(f32),
}

impl Unary {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        match self {
            Self::Silu => math::silu(s, x),
            Self::Gelu => {
                let erf = math::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
                let half = s.mul(s.splat(0.5), x);
                s.mul(half, s.add(s.splat(1.0), erf))
            }
            Self::GeluTanh => {
                // -2u = x (a + b x²), a = -2 √(2/π), b = 0.044715 a.
                let t = s.fma(s.mul(x, x), s.splat(-0.071_354_814), s.splat(-1.595_769_2));
                s.div(x, s.add(s.splat(1.0), math::exp(s, s.mul(x, t))))
            }
            // What is no number stays none, which the square of the maximum would hide.
            Self::Relu2 => s.mul(x, s.max(x, s.splat(0.0))),
            Self::Scale(by) => s.mul(x, s.splat(by)),
            Self::SoftCap(cap) => {
                let cap = s.splat(cap);
                s.mul(cap, math::tanh(s, s.div(x, cap)))
            }
        }
    }
}

/// A function of two elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a · b`.
    Mul,
    /// `f(a) · b`, with the bits of the two apart.
    Gated(Unary),
    /// `a · sigmoid(b)`.
    Sigmoid,
    /// `g · sigmoid(alpha · g) · (u + 1)`, with `g = min(a, limit)` and `u` the part of `b` within `±limit`.
    Clamped {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// The largest `g`, and magnitude of `u`.
        limit: f32,
    },
}

/// What the one loop over vectors applies: monomorphic, so that the choice is made once per task.
trait Apply: Copy {
    fn apply<S: Simd>(self, s: S, a: S::V, b: S::V) -> S::V;
}

macro_rules! applies {
    ($($name:ident($self:ident, $s:ident, $a:ident, $b:ident) $(: $field:ty)? => $e:expr;)*) => { $(
        #[derive(Clone, Copy)]
        struct $name $(($field))?;

        impl Apply for $name {
            #[inline(always)]
            fn apply<S: Simd>($self, $s: S, $a: S::V, $b: S::V) -> S::V {
                $e
            }
        }
    )* };
}

applies! {
    Silu(self, s, a, _b) => Unary::Silu.apply(s, a);
    Gelu(self, s, a, _b) => Unary::Gelu.apply(s, a);
    GeluTanh(self, s, a, _b) => Unary::GeluTanh.apply(s, a);
    Relu2(self, s, a, _b) => Unary::Relu2.apply(s, a);
    Scale(self, s, a, _b): f32 => Unary::Scale(self.0).apply(s, a);
    SoftCap(self, s, a, _b): f32 => Unary::SoftCap(self.0).apply(s, a);
    Add(self, s, a, b) => s.add(a, b);
    Mul(self, s, a, b) => s.mul(a, b);
    SiluMul(self, s, a, b) => s.mul(Unary::Silu.apply(s, a), b);
    GeluMul(self, s, a, b) => s.mul(Unary::Gelu.apply(s, a), b);
    GeluTanhMul(self, s, a, b) => s.mul(Unary::GeluTanh.apply(s, a), b);
    Relu2Mul(self, s, a, b) => s.mul(Unary::Relu2.apply(s, a), b);
    ScaleMul(self, s, a, b): f32 => s.mul(Unary::Scale(self.0).apply(s, a), b);
    SoftCapMul(self, s, a, b): f32 => s.mul(Unary::SoftCap(self.0).apply(s, a), b);
    SigmoidMul(self, s, a, b) => s.mul(a, math::sigmoid(s, b));
    Clamped(self, s, a, b): [f32; 2] => {
        let [alpha, limit] = self.0;
        let (g, u) = (s.min(a, s.splat(limit)), s.max(s.min(b, s.splat(limit)), s.splat(-limit)));
        s.mul(s.mul(g, math::sigmoid(s, s.mul(g, s.splat(alpha)))), s.add(u, s.splat(1.0)))
    };
}

/// `out = f(a, b)`; without `a`, `out` is its own first operand, and without `b`, that is the second too.
struct Map<'a, F> {
    f: F,
    a: Option<&'a [f32]>,
    b: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl<F: Apply> Kernel for Map<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { f, a, b, out } = self;
        let len = out.len();
        let to = out.as_mut_ptr();
        let a = a.map_or(to.cast_const(), |a| {
            assert!(a.len() == len);
            a.as_ptr()
        });
        let b = b.map_or(a, |b| {
            assert!(b.len() == len);
            b.as_ptr()
        });
        let whole = len / S::LANES * S::LANES;
        // SAFETY: all operands have `len` elements; an element is read before it is written, and by one iteration.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                s.store_ptr(to.add(i), f.apply(s, s.load_ptr(a.add(i)), s.load_ptr(b.add(i))));
            }
            let rest = len - whole;
            if rest > 0 {
                let (a, b) = (s.load_partial_ptr(a.add(whole), rest), s.load_partial_ptr(b.add(whole), rest));
                s.store_partial_ptr(to.add(whole), rest, f.apply(s, a, b));
            }
        }
    }
}

fn map<F: Apply + Sync>(pool: &Pool, isa: Isa, f: F, a: Option<&[f32]>, b: Option<&[f32]>, out: &mut [f32]) {
    // Whole cache lines, so that threads do not share one.
    let chunk = rows_per_task(pool, out.len().div_ceil(16), 16, TASK) * 16;
    pool.run_chunks(out, chunk, |task, out| {
        let part = task * chunk..task * chunk + out.len();
        isa.dispatch(Map { f, a: a.map(|a| &a[part.clone()]), b: b.map(|b| &b[part]), out });
    });
}

/// `out = f(x)`.
///
/// # Panics
/// Where the lengths differ.
pub fn unary(pool: &Pool, isa: Isa, f: Unary, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "{f:?}: lengths");
    let x = Some(x);
    match f {
        Unary::Silu => map(pool, isa, Silu, x, None, out),
        Unary::Gelu => map(pool, isa, Gelu, x, None, out),
        Unary::GeluTanh => map(pool, isa, GeluTanh, x, None, out),
        Unary::Relu2 => map(pool, isa, Relu2, x, None, out),
        Unary::Scale(by) => map(pool, isa, Scale(by), x, None, out),
        Unary::SoftCap(cap) => map(pool, isa, SoftCap(cap), x, None, out),
    }
}

/// `x = f(x)`.
pub fn unary_in_place(pool: &Pool, isa: Isa, f: Unary, x: &mut [f32]) {
    match f {
        Unary::Silu => map(pool, isa, Silu, None, None, x),
        Unary::Gelu => map(pool, isa, Gelu, None, None, x),
        Unary::GeluTanh => map(pool, isa, GeluTanh, None, None, x),
        Unary::Relu2 => map(pool, isa, Relu2, None, None, x),
        Unary::Scale(by) => map(pool, isa, Scale(by), None, None, x),
        Unary::SoftCap(cap) => map(pool, isa, SoftCap(cap), None, None, x),
    }
}

fn binary_any(pool: &Pool, isa: Isa, f: Binary, a: Option<&[f32]>, b: &[f32], out: &mut [f32]) {
    assert!(b.len() == out.len() && a.is_none_or(|a| a.len() == out.len()), "{f:?}: lengths");
    let b = Some(b);
    match f {
        Binary::Add => map(pool, isa, Add, a, b, out),
        Binary::Mul => map(pool, isa, Mul, a, b, out),
        Binary::Sigmoid => map(pool, isa, SigmoidMul, a, b, out),
        Binary::Clamped { alpha, limit } => map(pool, isa, Clamped([alpha, limit]), a, b, out),
        Binary::Gated(Unary::Silu) => map(pool, isa, SiluMul, a, b, out),
        Binary::Gated(Unary::Gelu) => map(pool, isa, GeluMul, a, b, out),
        Binary::Gated(Unary::GeluTanh) => map(pool, isa, GeluTanhMul, a, b, out),
        Binary::Gated(Unary::Relu2) => map(pool, isa, Relu2Mul, a, b, out),
        Binary::Gated(Unary::Scale(by)) => map(pool, isa, ScaleMul(by), a, b, out),
        Binary::Gated(Unary::SoftCap(cap)) => map(pool, isa, SoftCapMul(cap), a, b, out),
    }
}

/// `out = f(a, b)`.
///
/// # Panics
/// Where the lengths differ.
pub fn binary(pool: &Pool, isa: Isa, f: Binary, a: &[f32], b: &[f32], out: &mut [f32]) {
    binary_any(pool, isa, f, Some(a), b, out);
}

/// `a = f(a, b)`: a residual sum, or an activated gate times `up`.
///
/// # Panics
/// Where the lengths differ.
pub fn binary_in_place(pool: &Pool, isa: Isa, f: Binary, a: &mut [f32], b: &[f32]) {
    binary_any(pool, isa, f, None, b, a);
}

struct Mix<'a> {
    x: &'a [f32],
    by: &'a [f32],
    into: Option<&'a [f32]>,
    /// Stretches of a row of `x`, and results of a row.
    counts: [usize; 2],
    /// Elements of a stretch.
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Mix<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (width, [stretches, results]) = (self.width, self.counts);
        let rows = self.x.chunks_exact(stretches * width).zip(self.by.chunks_exact(stretches * results));
        for (row, ((x, by), out)) in rows.zip(self.out.chunks_exact_mut(results * width)).enumerate() {
            let into = self.into.map(|into| &into[row * results * width..][..results * width]);
            for (r, (by, out)) in by.chunks_exact(stretches).zip(out.chunks_exact_mut(width)).enumerate() {
                let into = into.map(|into| &into[r * width..][..width]);
                for (i, to) in out.chunks_mut(S::LANES).enumerate() {
                    let part = i * S::LANES..i * S::LANES + to.len();
                    let mut sum = into.map_or(s.zero(), |into| s.load_partial(&into[part.clone()]));
                    for (by, x) in by.iter().zip(x.chunks_exact(width)) {
                        sum = s.fma(s.splat(*by), s.load_partial(&x[part.clone()]), sum);
                    }
                    s.store_partial(to, sum);
                }
            }
        }
    }
}

/// `out[r] = into[r] + Σ_s by[r, s] · x[s]` over the stretches of `width` elements of each row, in the order of `s`: `x` is
/// `[rows, S * width]`, `by` `[rows, R * S]`, `out` and `into`, zeros without it, `[rows, R * width]`. `counts` are `S` and `R`.
///
/// # Panics
/// Where a count or the width is zero, or the lengths do not fit each other.
#[allow(clippy::too_many_arguments)]
pub fn mix(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    by: &[f32],
    into: Option<&[f32]>,
    counts: [usize; 2],
    width: usize,
    out: &mut [f32],
) {
    let [stretches, results] = counts;
    assert!(width > 0 && stretches > 0 && results > 0, "mix: counts");
    let rows = out.len() / (results * width);
    assert_eq!(out.len(), rows * results * width, "mix: out");
    assert_eq!((x.len(), by.len()), (rows * stretches * width, rows * results * stretches), "mix: operands");
    assert!(into.is_none_or(|into| into.len() == out.len()), "mix: into");
    let each = rows_per_task(pool, rows, stretches * results * width, TASK);
    pool.run_chunks(out, each * results * width, |task, out| {
        let (first, count) = (task * each, out.len() / (results * width));
        let into = into.map(|into| &into[first * results * width..][..out.len()]);
        let x = &x[first * stretches * width..][..count * stretches * width];
        let by = &by[first * results * stretches..][..count * results * stretches];
        isa.dispatch(Mix { x, by, into, counts, width, out });
    });
}

struct Widen<'a, T> {
    table: *const T,
    width: usize,
    ids: &'a [u32],
    scale: f32,
    out: &'a mut [f32],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.scale);
        for (id, out) in self.ids.iter().zip(self.out.chunks_exact_mut(self.width)) {
            // SAFETY: `embedding` checked that every id's row lies inside the table.
            unsafe {
                let row = self.table.add(*id as usize * self.width);
                for (i, to) in out.chunks_mut(S::LANES).enumerate() {
                    let p = row.add(i * S::LANES);
                    if to.len() == S::LANES {
                        s.store(to, s.mul(T::load(s, p), scale));
                    } else {
                        let v = T::load_partial(s, p, to.len());
                        s.store_partial(to, s.mul(v, scale));
                    }
                }
            }
        }
    }
}

/// Rows `ids` of an embedding table, widened and times `scale`: `out` is `[ids, width]`. The table's bytes are those of
/// a weight, `[V, width]` of `dtype`, at any alignment.
///
/// # Panics
/// Where an id is not below `V`, or the lengths do not fit.
#[allow(clippy::too_many_arguments)]
pub fn embedding(
    pool: &Pool,
    isa: Isa,
    dtype: DType,
    table: &[u8],
    width: usize,
    ids: &[u32],
    scale: f32,
    out: &mut [f32],
) {
    assert_eq!(out.len(), ids.len() * width, "embedding: out");
    if out.is_empty() {
        return;
    }
    let rows = table.len() / (width * dtype.size());
    assert!(ids.iter().all(|&id| (id as usize) < rows), "embedding: an id is not below {rows}");
    let chunk = rows_per_task(pool, ids.len(), width, TASK);
    pool.run_chunks(out, chunk * width, |task, out| {
        let ids = &ids[task * chunk..][..out.len() / width];
        match dtype {
            DType::F32 => isa.dispatch(Widen::<f32> { table: table.as_ptr().cast(), width, ids, scale, out }),
            DType::F16 => isa.dispatch(Widen::<f16> { table: table.as_ptr().cast(), width, ids, scale, out }),
            DType::BF16 => {
                isa.dispatch(Widen::<bf16> { table: table.as_ptr().cast(), width, ids, scale, out })
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::kernels::reference_ops as reference;
    use crate::tensor::Weight;

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// 100003 numbers in `-high..high`, fewer for Miri.
    fn line(high: f32) -> Vec<f32> {
        let half = if cfg!(miri) { 251 } else { 50_001 };
        (0..=2 * half).map(|i| (i as f32 / half as f32 - 1.0) * high).collect()
    }

    #[test]
    fn functions_keep_their_stated_accuracy() {
        let pool = Pool::new(2);
        let check = |isa: Isa, f: Unary, high: f32, exact: &dyn Fn(f64) -> f64, relative: Option<f64>| {
            let x = line(high);
            let mut out = vec![f32::NAN; x.len()];
            unary(&pool, isa, f, &x, &mut out);
            // One rounding more where nothing is fused.
            let more = if matches!(isa, Isa::Portable(_)) { 1.5 } else { 1.0 };
            for (x, got) in x.iter().zip(&out) {
                let want = exact(f64::from(*x));
                let error = (f64::from(*got) - want).abs();
                let bound = match relative {
                    Some(bound) => bound * want.abs().max(f64::from(f32::MIN_POSITIVE)),
                    None => 3e-7 * want.abs().max(1.0),
                };
                assert!(error <= bound * more, "{f:?} on {isa}: {x} gives {got}, want {want}");
            }
        };
        for isa in Isa::available() {
            for high in [0.1, 2.0, 12.0, 80.0] {
                check(isa, Unary::Silu, high, &reference::silu, Some(4e-7));
                check(isa, Unary::Gelu, high, &reference::gelu, None);
                check(isa, Unary::GeluTanh, high, &reference::gelu_tanh, None);
                check(isa, Unary::Relu2, high, &|x| x.max(0.0) * x.max(0.0), Some(1e-7));
                check(isa, Unary::Scale(0.37), high, &|x| x * f64::from(0.37f32), Some(1e-7));
                check(isa, Unary::SoftCap(30.0), high, &|x| reference::soft_cap(x, 30.0), Some(5e-7));
            }
        }
    }

    const ALL: [Unary; 6] =
        [Unary::Silu, Unary::Gelu, Unary::GeluTanh, Unary::Relu2, Unary::Scale(1.7), Unary::SoftCap(2.5)];

    #[test]
    fn an_element_depends_on_itself_alone() {
        let x = line(9.0);
        let b: Vec<f32> = x.iter().rev().map(|x| x * 0.3).collect();
        for isa in Isa::available() {
            for f in ALL {
                let mut want = vec![0.0; x.len()];
                unary(&Pool::new(1), isa, f, &x, &mut want);
                let mut in_place = x.clone();
                unary_in_place(&Pool::new(3), isa, f, &mut in_place);
                assert_eq!(bits(&want), bits(&in_place), "{f:?} on {isa}");
                for len in 0..40 {
                    let mut part = vec![0.0; len];
                    unary(&Pool::new(1), isa, f, &x[5..5 + len], &mut part);
                    assert_eq!(bits(&part), bits(&want[5..5 + len]), "{f:?} of {len} on {isa}");
                }
                let parts: Vec<f32> = want.iter().zip(&b).map(|(a, b)| a * b).collect();
                let mut fused = x.clone();
                binary_in_place(&Pool::new(2), isa, Binary::Gated(f), &mut fused, &b);
                assert_eq!(bits(&parts), bits(&fused), "gated {f:?} on {isa}");
            }
            let mut out = vec![0.0; x.len()];
            binary(&Pool::new(3), isa, Binary::Add, &x, &b, &mut out);
            assert!(out.iter().zip(x.iter().zip(&b)).all(|(out, (a, b))| *out == a + b));
            binary(&Pool::new(3), isa, Binary::Mul, &x, &b, &mut out);
            assert!(out.iter().zip(x.iter().zip(&b)).all(|(out, (a, b))| *out == a * b));
        }
    }

    #[test]
    fn limits() {
        for isa in Isa::available() {
            for f in [Unary::Silu, Unary::Gelu, Unary::GeluTanh] {
                let mut x = [1e30, -1e30, 0.0, f32::INFINITY, f32::NAN];
                unary_in_place(&Pool::new(1), isa, f, &mut x);
                assert_eq!(x[..4], [1e30, 0.0, 0.0, f32::INFINITY], "{f:?} on {isa}");
                assert!(x[4].is_nan());
            }
            let mut x = [1e30, -1e30, 0.0, f32::INFINITY, f32::NAN, -3.0, 1.5];
            unary_in_place(&Pool::new(1), isa, Unary::Relu2, &mut x);
            assert_eq!(x[..4], [f32::INFINITY, 0.0, 0.0, f32::INFINITY], "on {isa}");
            assert_eq!((x[4].is_nan(), x[5], x[6]), (true, 0.0, 2.25), "on {isa}");
        }
    }

    #[test]
    fn embedding_rows_are_widened_exactly() {
        let values: Vec<f32> = (0..7 * 37).map(|i| i as f32 * 0.11 - 9.0).collect();
        let ids = [3, 0, 6, 6, 1];
        for isa in Isa::available() {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let bytes: Vec<u8> = match dtype {
                    DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                    DType::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                };
                // One byte off, as in a mapped file.
                let shifted: Vec<u8> = std::iter::once(0).chain(bytes.iter().copied()).collect();
                let len = bytes.len();
                let wide = Weight::new("w", dtype, &[7, 37], std::sync::Arc::new(bytes), 0..len).to_f32();
                let mut out = vec![f32::NAN; ids.len() * 37];
                embedding(&Pool::new(2), isa, dtype, &shifted[1..], 37, &ids, 1.5, &mut out);
                for (id, row) in ids.iter().zip(out.chunks(37)) {
                    let want: Vec<f32> = wide[*id as usize * 37..][..37].iter().map(|x| x * 1.5).collect();
                    assert_eq!(row, want, "{dtype} on {isa}");
                }
            }
        }
    }
}
