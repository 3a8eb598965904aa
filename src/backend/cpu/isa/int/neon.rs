//! Bytes times bytes on NEON. Where both sides are signed, codes of eight bits have 128 taken off.

use std::arch::aarch64::*;
use std::arch::asm;

use super::super::Simd;
use super::super::neon::{Bytes, Floats, Neon};
use super::{IntKernel, IntSimd};

/// `sdot` beside NEON's other instructions.
#[derive(Debug, Clone, Copy)]
pub struct Dotprod(Neon);

/// Eight lanes of 32 bits.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Words(int32x4_t, int32x4_t);

/// `f` of both registers of `a` and `b`, as bytes.
#[inline(always)]
fn zip(a: Words, b: Words, f: impl Fn(int32x4_t, int32x4_t) -> int32x4_t) -> Words {
    Words(f(a.0, b.0), f(a.1, b.1))
}

/// Both registers as bytes, with their highest bit turned over where they are codes of eight.
#[inline(always)]
fn signed(codes: Words, bits: u32) -> [int8x16_t; 2] {
    op!({
        let flip = vdupq_n_s8(if bits == 8 { -128 } else { 0 });
        [codes.0, codes.1].map(|v| veorq_s8(vreinterpretq_s8_s32(v), flip))
    })
}

/// Four bytes at `p`, again and again.
///
/// # Safety
/// `p` must be valid for reads of four bytes.
#[inline(always)]
unsafe fn quad(p: *const i8) -> int8x16_t {
    op!(vreinterpretq_s8_s32(vdupq_n_s32(p.cast::<i32>().read_unaligned())))
}

macro_rules! two_registers {
    ($bias:expr) => {
        type F = Neon;
        type I = Words;
        const WIDE_BIAS: i32 = $bias;

        #[inline(always)]
        fn splat_i32(self, x: i32) -> Words {
            op!({
                let v = vdupq_n_s32(x);
                Words(v, v)
            })
        }
        #[inline(always)]
        unsafe fn load_bytes(self, p: *const u8) -> Words {
            op!({
                let part = |at| vreinterpretq_s32_u8(vld1q_u8(p.add(at)));
                Words(part(0), part(16))
            })
        }
        #[inline(always)]
        unsafe fn load_table(self, p: *const u8) -> Words {
            op!({
                let v = vreinterpretq_s32_u8(vld1q_u8(p));
                Words(v, v)
            })
        }
        #[inline(always)]
        fn and(self, a: Words, b: Words) -> Words {
            op!(zip(a, b, |a, b| vandq_s32(a, b)))
        }
        #[inline(always)]
        fn or(self, a: Words, b: Words) -> Words {
            op!(zip(a, b, |a, b| vorrq_s32(a, b)))
        }
        #[inline(always)]
        fn shl<const N: u32>(self, a: Words) -> Words {
            op!({
                let by = vdupq_n_s32(N as i32);
                Words(vshlq_s32(a.0, by), vshlq_s32(a.1, by))
            })
        }
        #[inline(always)]
        fn shr<const N: u32>(self, a: Words) -> Words {
            op!({
                // A shift to the left by less than nothing.
                let by = vdupq_n_s32(-(N as i32));
                let shift = |a| vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), by));
                Words(shift(a.0), shift(a.1))
            })
        }
        #[inline(always)]
        fn high_nibbles(self, a: Words) -> Words {
            op!({
                let shift = |a| vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(a)));
                Words(shift(a.0), shift(a.1))
            })
        }
        #[inline(always)]
        fn lookup(self, table: Words, index: Words) -> Words {
            op!({
                zip(table, index, |table, index| {
                    let found = vqtbl1q_u8(vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(index));
                    vreinterpretq_s32_u8(found)
                })
            })
        }
        #[inline(always)]
        fn to_float(self, a: Words) -> Floats {
            op!(Floats(vcvtq_f32_s32(a.0), vcvtq_f32_s32(a.1)))
        }
        #[inline(always)]
        fn as_float(self, a: Words) -> Floats {
            op!(Floats(vreinterpretq_f32_s32(a.0), vreinterpretq_f32_s32(a.1)))
        }
        #[inline(always)]
        unsafe fn load_u8(self, p: *const u8) -> Floats {
            // SAFETY: the caller's contract is the same.
            unsafe { self.float().load_u8_ptr(p) }
        }
        #[inline(always)]
        unsafe fn load_i8(self, p: *const u8) -> Floats {
            op!({
                let v = vmovl_s8(vld1_s8(p.cast()));
                let float = |v| vcvtq_f32_s32(vmovl_s16(v));
                Floats(float(vget_low_s16(v)), float(vget_high_s16(v)))
            })
        }
        #[inline(always)]
        unsafe fn store_i8(self, p: *mut i8, v: Floats) {
            op!({
                let part = |v| vmovn_s32(vcvtq_s32_f32(v));
                vst1_s8(p, vmovn_s16(vcombine_s16(part(v.0), part(v.1))))
            })
        }
    };
}

mod matrix;

pub use matrix::Matrix;

/// Quads of products with codes of `bits` that a lane of 16 bits can add up: `n · 2^bits · 127 < 2^15`, and
/// `n · 2^7 · 127` of signed ones.
#[inline(always)]
const fn depth(bits: u32) -> usize {
    let most = if bits == 8 { 128 } else { (1 << bits) - 1 };
    (32767 / (most * 127)) as usize
}

// SAFETY: each instruction is in the baseline, and touches 32 bytes, a register, or what its name says of it.
unsafe impl IntSimd for Neon {
    two_registers!(128);

    #[inline(always)]
    fn float(self) -> Neon {
        self
    }
    #[inline(always)]
    unsafe fn dot<const N: usize, const G: usize>(
        self,
        bits: u32,
        init: [Words; G],
        codes: &[Words; N],
        x: [*const i8; G],
    ) -> [Words; G] {
        op!({
            let mut sums = init;
            let mut q = 0;
            while q < N {
                let end = N.min(q + depth(bits));
                // A lane of 16 bits for each byte of a register of codes: two registers.
                let mut long = [[[vdupq_n_s16(0); 2]; 2]; G];
                while q < end {
                    let codes = signed(codes[q], bits);
                    for (long, &x) in long.iter_mut().zip(&x) {
                        let x = quad(x.add(4 * q));
                        for (long, codes) in long.iter_mut().zip(codes) {
                            long[0] = vmlal_s8(long[0], vget_low_s8(codes), vget_low_s8(x));
                            long[1] = vmlal_high_s8(long[1], codes, x);
                        }
                    }
                    q += 1;
                }
                for (sum, long) in sums.iter_mut().zip(long) {
                    // Two neighbours become one, twice.
                    let [low, high] = long.map(|long| vpaddq_s32(vpaddlq_s16(long[0]), vpaddlq_s16(long[1])));
                    *sum = Words(vaddq_s32(sum.0, low), vaddq_s32(sum.1, high));
                }
            }
            sums
        })
    }
}

/// `sum + Σ_b codes[4 lane + b] · x[4 QUAD + b]` in each lane.
trait Quads {
    /// The bytes of codes as the instruction takes them.
    fn bytes(codes: Words, bits: u32) -> [int8x16_t; 2];

    /// The instruction.
    ///
    /// # Safety
    /// It must be there.
    unsafe fn quad<const QUAD: usize>(sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t;
}

/// The intrinsic is not stable in the oldest compiler that backstop takes.
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot<const QUAD: usize>(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes registers alone.
    unsafe {
        asm!("sdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{quad}]",
            sum = inout(vreg) sum, codes = in(vreg) codes, x = in(vreg) x, quad = const QUAD,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

impl Quads for Dotprod {
    #[inline(always)]
    fn bytes(codes: Words, bits: u32) -> [int8x16_t; 2] {
        signed(codes, bits)
    }
    #[inline(always)]
    unsafe fn quad<const QUAD: usize>(sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller's contract.
        unsafe { sdot::<QUAD>(sum, codes, x) }
    }
}

/// [`Quads::quad`] of quad `QUAD` of each row of `x`.
///
/// # Safety
/// The instruction must be there.
#[inline(always)]
unsafe fn step<Q: Quads, const QUAD: usize, const G: usize>(
    mut sums: [Words; G],
    [low, high]: [int8x16_t; 2],
    x: [int8x16_t; G],
) -> [Words; G] {
    for (sum, x) in sums.iter_mut().zip(x) {
        // SAFETY: the caller's contract.
        *sum = unsafe { Words(Q::quad::<QUAD>(sum.0, low, x), Q::quad::<QUAD>(sum.1, high, x)) };
    }
    sums
}

/// Four quads, from `codes[at]` on: a register of each row of `x`. Each step is written out, since the quad is a part of the
/// instruction.
///
/// # Safety
/// The instruction must be there, and each of `x` be valid for reads of `4 * at + 16` bytes.
#[inline(always)]
unsafe fn four<Q: Quads, const G: usize>(
    bits: u32,
    sums: [Words; G],
    codes: &[Words],
    at: usize,
    x: [*const i8; G],
) -> [Words; G] {
    op!({
        let x: [int8x16_t; G] = std::array::from_fn(|g| vld1q_s8(x[g].add(4 * at)));
        let sums = step::<Q, 0, G>(sums, Q::bytes(codes[at], bits), x);
        let sums = step::<Q, 1, G>(sums, Q::bytes(codes[at + 1], bits), x);
        let sums = step::<Q, 2, G>(sums, Q::bytes(codes[at + 2], bits), x);
        step::<Q, 3, G>(sums, Q::bytes(codes[at + 3], bits), x)
    })
}

/// All quads of a block, or of half of one.
///
/// # Safety
/// The instruction must be there, and each of `x` be valid for reads of `4 * N` bytes.
#[inline(always)]
unsafe fn quads<Q: Quads, const N: usize, const G: usize>(
    bits: u32,
    init: [Words; G],
    codes: &[Words; N],
    x: [*const i8; G],
) -> [Words; G] {
    const { assert!(N == 4 || N == 8) };
    // SAFETY: the caller's contract.
    unsafe {
        let sums = four::<Q, G>(bits, init, codes, 0, x);
        if N == 8 { four::<Q, G>(bits, sums, codes, 4, x) } else { sums }
    }
}

// SAFETY: each instruction is one that detection found, and touches 32 bytes, a register, or what its name says of it.
unsafe impl IntSimd for Dotprod {
    two_registers!(128);

    #[inline(always)]
    fn float(self) -> Neon {
        self.0
    }
    #[inline(always)]
    unsafe fn dot<const N: usize, const G: usize>(
        self,
        bits: u32,
        init: [Words; G],
        codes: &[Words; N],
        x: [*const i8; G],
    ) -> [Words; G] {
        // SAFETY: the token is proof of `sdot`, and the caller's contract.
        unsafe { quads::<Self, N, G>(bits, init, codes, x) }
    }
}

/// Compiles `kernel` for NEON with `sdot`.
#[target_feature(enable = "dotprod")]
fn shim_dotprod<K: IntKernel>(token: Dotprod, kernel: K) -> K::Out {
    kernel.run(token)
}

/// Runs `kernel` with what the token has for bytes.
#[inline]
pub(super) fn dispatch<K: IntKernel>(token: Neon, kernel: K) -> K::Out {
    match token.bytes() {
        // SAFETY: the token exists, so detection found the features of the shim.
        Bytes::Dot => unsafe { shim_dotprod(Dotprod(token), kernel) },
        // SAFETY: as above.
        Bytes::Matrix => unsafe { matrix::shim(Matrix::new(token), kernel) },
        Bytes::Long => kernel.run(token),
    }
}
