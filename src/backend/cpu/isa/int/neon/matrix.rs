//! Bytes times bytes by pairs: `usmmla` multiplies eight columns of two rows of codes by those of two rows of `x`, 32 products.
//!
//! Panels are those of the other instructions: two quads of four rows are zipped into eight columns of two rows, twice.

use std::arch::aarch64::*;
use std::arch::asm;

use super::super::super::neon::{Floats, Neon};
use super::super::{IntKernel, IntSimd};
use super::{Quads, Simd, Words, quads, zip};

/// `usdot` and `usmmla` beside NEON's other instructions. Codes have no sign for them, and lose nothing of eight bits.
#[derive(Debug, Clone, Copy)]
pub struct Matrix(Neon);

impl Matrix {
    /// A token whose bytes are [`Bytes::Matrix`](super::Bytes::Matrix).
    pub(super) fn new(token: Neon) -> Self {
        Self(token)
    }
}

/// `sum + Σ_b codes[4 lane + b] · x[4 QUAD + b]` in each lane.
#[inline]
#[target_feature(enable = "i8mm")]
fn usdot<const QUAD: usize>(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes registers alone.
    unsafe {
        asm!("usdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{quad}]",
            sum = inout(vreg) sum, codes = in(vreg) codes, x = in(vreg) x, quad = const QUAD,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `sum[2 i + j] + Σ_b codes[8 i + b] · x[8 j + b]`.
#[inline]
#[target_feature(enable = "i8mm")]
fn usmmla(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes registers alone.
    unsafe {
        asm!("usmmla {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum, codes = in(vreg) codes, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

impl Quads for Matrix {
    #[inline(always)]
    fn bytes(codes: Words, _: u32) -> [int8x16_t; 2] {
        op!([codes.0, codes.1].map(|v| vreinterpretq_s8_s32(v)))
    }
    #[inline(always)]
    unsafe fn quad<const QUAD: usize>(sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller's contract.
        unsafe { usdot::<QUAD>(sum, codes, x) }
    }
}

/// Two quads of eight rows: eight columns of rows 0 and 1, of 2 and 3, and so on.
#[inline(always)]
fn columns(first: Words, second: Words) -> [int8x16_t; 4] {
    op!({
        let both = |a, b| [vzip1q_s32(a, b), vzip2q_s32(a, b)].map(|v| vreinterpretq_s8_s32(v));
        let ([a, b], [c, d]) = (both(first.0, second.0), both(first.1, second.1));
        [a, b, c, d]
    })
}

/// Two elements at `p`, `step` apart, twice.
///
/// # Safety
/// `p` must be valid for reads of them.
#[inline(always)]
unsafe fn two(p: *const i32, step: usize) -> Words {
    op!({
        let both = if step == 1 {
            vreinterpretq_s32_u64(vdupq_n_u64(p.cast::<u64>().read_unaligned()))
        } else {
            vzip1q_s32(vdupq_n_s32(*p), vdupq_n_s32(*p.add(step)))
        };
        Words(both, both)
    })
}

// SAFETY: each instruction is one that detection found, and touches 32 bytes, a register, or what its name says of it.
unsafe impl IntSimd for Matrix {
    two_registers!(0);
    const PAIRS: bool = true;

    #[inline(always)]
    fn float(self) -> Neon {
        self.0
    }
    #[inline(always)]
    unsafe fn each<const G: usize>(self, p: *const f32, step: usize) -> [Floats; G] {
        // SAFETY: the caller's contract; the bits of a float are those of an integer.
        unsafe { self.each_i32::<G>(p.cast(), step).map(|v| self.as_float(v)) }
    }
    #[inline(always)]
    unsafe fn each_i32<const G: usize>(self, p: *const i32, step: usize) -> [Words; G] {
        // SAFETY: the caller's contract.
        unsafe {
            if G == 1 {
                return [self.splat_i32(*p); G];
            }
            std::array::from_fn(|g| two(p.add(g / 2 * 2 * step), step))
        }
    }
    #[inline(always)]
    fn beside<const G: usize>(self, v: Floats) -> [Floats; G] {
        if G == 1 {
            return [v; G];
        }
        let twice = |v| op!(Floats(vzip1q_f32(v, v), vzip2q_f32(v, v)));
        let both = [twice(v.0), twice(v.1)];
        std::array::from_fn(|g| both[g % 2])
    }
    #[inline(always)]
    fn apart<const G: usize>(self, v: [Floats; G]) -> [Floats; G] {
        if G == 1 {
            return v;
        }
        std::array::from_fn(|g| {
            let (low, high) = (v[g / 2 * 2], v[g / 2 * 2 + 1]);
            if g % 2 == 0 {
                op!(Floats(vuzp1q_f32(low.0, low.1), vuzp1q_f32(high.0, high.1)))
            } else {
                op!(Floats(vuzp2q_f32(low.0, low.1), vuzp2q_f32(high.0, high.1)))
            }
        })
    }
    #[inline(always)]
    unsafe fn dot<const N: usize, const G: usize>(
        self,
        bits: u32,
        init: [Words; G],
        codes: &[Words; N],
        x: [*const i8; G],
    ) -> [Words; G] {
        const { assert!(G == 1 || G.is_multiple_of(2)) };
        if G == 1 {
            // SAFETY: the token is proof of `usdot`, and the caller's contract.
            return unsafe { quads::<Self, N, G>(bits, init, codes, x) };
        }
        op!({
            let mut sums = init;
            for eight in 0..N / 2 {
                let [a, b, c, d] = columns(codes[2 * eight], codes[2 * eight + 1]);
                for pair in 0..G / 2 {
                    let x = vld1q_s8(x[2 * pair].add(16 * eight));
                    let [low, high] = [sums[2 * pair], sums[2 * pair + 1]];
                    sums[2 * pair] = Words(usmmla(low.0, a, x), usmmla(low.1, b, x));
                    sums[2 * pair + 1] = Words(usmmla(high.0, c, x), usmmla(high.1, d, x));
                }
            }
            sums
        })
    }
}

/// Compiles `kernel` for NEON with `usdot` and `usmmla`.
#[target_feature(enable = "dotprod,i8mm")]
pub(super) fn shim<K: IntKernel>(token: Matrix, kernel: K) -> K::Out {
    kernel.run(token)
}
