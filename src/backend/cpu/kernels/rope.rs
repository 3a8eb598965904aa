//! Rotary position embedding (Su et al., 2021), the half-split form: pairs `(i, i + dims/2)` of each head are rotated
//! by the row's angles; what lies beyond `dims` passes through.

use super::rows_per_task;
use crate::backend::cpu::isa::{Isa, Kernel, Simd};
use crate::backend::cpu::pool::Pool;

/// Elements of a task: about 4 µs, several times what handing it to another thread costs.
const TASK: usize = 16 * 1024;

/// The heads of a step and the angles they are rotated by.
#[derive(Debug, Clone, Copy)]
pub struct Rope<'a> {
    /// Elements of a row, whole heads.
    pub width: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Rotated elements of a head, even, at most `head_dim`.
    pub dims: usize,
    /// Cosines, `[T, dims/2]`.
    pub cos: &'a [f32],
    /// Sines, `[T, dims/2]`.
    pub sin: &'a [f32],
}

struct Rotate<'a> {
    rope: Rope<'a>,
    /// The first row of `x` in the tables.
    row: usize,
    x: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rope { width, head_dim, dims, cos, sin } = self.rope;
        let half = dims / 2;
        let (cos, sin) = (&cos[self.row * half..], &sin[self.row * half..]);
        for (row, x) in self.x.chunks_exact_mut(width).enumerate() {
            let (cos, sin) = (&cos[row * half..(row + 1) * half], &sin[row * half..(row + 1) * half]);
            for head in x.chunks_exact_mut(head_dim) {
                let (low, high) = head[..dims].split_at_mut(half);
                let pairs = low.chunks_mut(S::LANES).zip(high.chunks_mut(S::LANES));
                let angles = cos.chunks(S::LANES).zip(sin.chunks(S::LANES));
                for ((low, high), (cos, sin)) in pairs.zip(angles) {
                    if low.len() == S::LANES {
                        let (a, b) = (s.load(low), s.load(high));
                        let (a, b) = rotate(s, a, b, s.load(cos), s.load(sin));
                        s.store(low, a);
                        s.store(high, b);
                    } else {
                        let (a, b) = (s.load_partial(low), s.load_partial(high));
                        let (a, b) = rotate(s, a, b, s.load_partial(cos), s.load_partial(sin));
                        s.store_partial(low, a);
                        s.store_partial(high, b);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn rotate<S: Simd>(s: S, a: S::V, b: S::V, cos: S::V, sin: S::V) -> (S::V, S::V) {
    (s.fma(a, cos, s.neg(s.mul(b, sin))), s.fma(b, cos, s.mul(a, sin)))
}

impl Rope<'_> {
    fn check(&self, len: usize) {
        let Self { width, head_dim, dims, cos, sin } = *self;
        assert!(head_dim > 0 && width > 0 && width.is_multiple_of(head_dim), "rope: heads");
        assert!(dims <= head_dim && dims.is_multiple_of(2), "rope: {dims} of {head_dim} elements");
        let angles = len / width * (dims / 2);
        assert!(len.is_multiple_of(width) && cos.len() == angles && sin.len() == angles, "rope: lengths");
    }
}

/// Rotates the heads of `x`, `[T, width]`, in place: absolute error about 1e-7 of the pair's magnitude.
///
/// # Panics
/// Where the lengths do not fit each other.
pub fn rope_in_place(pool: &Pool, isa: Isa, rope: Rope<'_>, x: &mut [f32]) {
    rope.check(x.len());
    let rows = rows_per_task(pool, x.len() / rope.width, rope.width, TASK);
    pool.run_chunks(x, rows * rope.width, |task, x| {
        isa.dispatch(Rotate { rope, row: task * rows, x });
    });
}

/// As [`rope_in_place`], from `x` to `out`.
///
/// # Panics
/// As [`rope_in_place`].
pub fn rope(pool: &Pool, isa: Isa, rope: Rope<'_>, x: &[f32], out: &mut [f32]) {
    rope.check(x.len());
    assert_eq!(x.len(), out.len(), "rope: lengths");
    let rows = rows_per_task(pool, x.len() / rope.width, rope.width, TASK);
    pool.run_chunks(out, rows * rope.width, |task, out| {
        // The copy is still in L1 when it is rotated.
        for (row, out) in out.chunks_exact_mut(rope.width).enumerate() {
            let row = task * rows + row;
            out.copy_from_slice(&x[row * rope.width..(row + 1) * rope.width]);
            isa.dispatch(Rotate { rope, row, x: out });
        }
    });
}

#[cfg(test)]
mod tests {
    use approx::abs_diff_eq;

    use super::*;
    use crate::backend::cpu::kernels::reference_ops;

    #[test]
    fn heads_are_rotated_as_in_the_reference() {
        const SIZES: &[(usize, usize)] = if cfg!(miri) {
            &[(2, 2), (6, 4), (40, 34), (5, 0)]
        } else {
            &[(2, 2), (6, 4), (16, 16), (64, 64), (80, 32), (96, 96), (128, 50), (5, 0)]
        };
        for isa in Isa::available() {
            for &(head_dim, dims) in SIZES {
                let (rows, width) = (70, 3 * head_dim);
                let x: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
                let angles: Vec<f32> = (0..rows * dims / 2).map(|i| i as f32 * 0.61).collect();
                let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
                let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
                let tables = Rope { width, head_dim, dims, cos: &cos, sin: &sin };
                let mut out = vec![f32::NAN; x.len()];
                rope(&Pool::new(2), isa, tables, &x, &mut out);
                let half = dims / 2;
                for (i, (head, out)) in x.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
                    let row = i / 3 * half..(i / 3 + 1) * half;
                    let want = reference_ops::rope(head, &cos[row.clone()], &sin[row]);
                    for (out, want) in out.iter().zip(want) {
                        let near = abs_diff_eq!(f64::from(*out), want, epsilon = 6e-7);
                        assert!(near, "{head_dim}/{dims} on {isa}: {out}, want {want}");
                    }
                    assert_eq!(head[dims..], out[dims..]);
                }
                for threads in [1, 3] {
                    let mut same = x.clone();
                    rope_in_place(&Pool::new(threads), isa, tables, &mut same);
                    assert!(same.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
                let mut last = x[69 * width..].to_vec();
                let tables = Rope { cos: &cos[69 * half..], sin: &sin[69 * half..], ..tables };
                rope_in_place(&Pool::new(1), isa, tables, &mut last);
                assert_eq!(last, out[69 * width..]);
            }
        }
    }
}
