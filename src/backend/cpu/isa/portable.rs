//! Arrays of eight lanes in plain Rust: the compiler vectorises them for the build's baseline.

use half::{bf16, f16};

use super::{Isa, Simd};

/// Needs no proof: plain Rust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portable;

/// Eight lanes, aligned as two NEON registers or one AVX register.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub struct F32x8([f32; 8]);

/// Whether the build's baseline has FMA; without it `f32::mul_add` is a library call.
const FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

#[inline(always)]
fn map(a: F32x8, f: impl Fn(f32) -> f32) -> F32x8 {
    let mut out = a;
    for x in &mut out.0 {
        *x = f(*x);
    }
    out
}

#[inline(always)]
fn zip(a: F32x8, b: F32x8, f: impl Fn(f32, f32) -> f32) -> F32x8 {
    let mut out = a;
    for i in 0..8 {
        out.0[i] = f(a.0[i], b.0[i]);
    }
    out
}

/// A half's value without branches, so that it vectorises: normal numbers by an exponent shift and a multiplication,
/// subnormal ones by subtracting the bias of a number that holds their bits as its fraction.
#[inline(always)]
pub(super) fn widen_f16(h: u16) -> f32 {
    let w = u32::from(h) << 16;
    let sign = w & 0x8000_0000;
    let magnitude = w << 1;
    let normal = f32::from_bits((magnitude >> 4) + (0xe0 << 23)) * f32::from_bits(0x0780_0000);
    let subnormal = f32::from_bits((magnitude >> 17) | (126 << 23)) - 0.5;
    let chosen = if magnitude < 1 << 27 { subnormal } else { normal };
    f32::from_bits(sign | chosen.to_bits())
}

// SAFETY: plain Rust; arrays of eight elements are read and written whole, or the first `n` of them.
unsafe impl Simd for Portable {
    type V = F32x8;
    const LANES: usize = 8;
    // NEON has 32 of 4 lanes: 16 of 8.
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn isa(self) -> Isa {
        Isa::Portable(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F32x8 {
        F32x8([x; 8])
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> F32x8 {
        // SAFETY: the caller vouches for 8 elements at p.
        F32x8(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_partial_ptr(self, p: *const f32, n: usize) -> F32x8 {
        debug_assert!(n <= 8);
        let mut v = [0.0; 8];
        for (i, x) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller vouches for n elements at p.
            *x = unsafe { p.add(i).read_unaligned() };
        }
        F32x8(v)
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32, v: F32x8) {
        // SAFETY: the caller vouches for 8 elements at p.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v.0) }
    }
    #[inline(always)]
    unsafe fn store_partial_ptr(self, p: *mut f32, n: usize, v: F32x8) {
        debug_assert!(n <= 8);
        for (i, x) in v.0.iter().enumerate().take(n) {
            // SAFETY: the caller vouches for n elements at p.
            unsafe { p.add(i).write_unaligned(*x) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const f16) -> F32x8 {
        // SAFETY: the caller vouches for 8 elements at p.
        let halves = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        let mut v = [0.0; 8];
        for i in 0..8 {
            v[i] = widen_f16(halves[i]);
        }
        F32x8(v)
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const bf16) -> F32x8 {
        // SAFETY: the caller vouches for 8 elements at p.
        let upper = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        let mut v = [0.0; 8];
        for i in 0..8 {
            v[i] = f32::from_bits(u32::from(upper[i]) << 16);
        }
        F32x8(v)
    }
    #[inline(always)]
    unsafe fn load_u8_ptr(self, p: *const u8) -> F32x8 {
        // SAFETY: the caller vouches for 8 bytes at p.
        F32x8(unsafe { p.cast::<[u8; 8]>().read() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn load_u4_ptr(self, p: *const u32, nibble: usize) -> F32x8 {
        // SAFETY: the caller vouches for 8 words at p.
        let words = unsafe { p.cast::<[u32; 8]>().read_unaligned() };
        F32x8(words.map(|word| (word >> (4 * nibble) & 15) as f32))
    }
    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut f16, v: F32x8) {
        // SAFETY: the caller vouches for 8 elements at p.
        unsafe { p.cast::<[f16; 8]>().write_unaligned(v.0.map(f16::from_f32_const)) }
    }
    #[inline(always)]
    unsafe fn store_bf16_ptr(self, p: *mut bf16, v: F32x8) {
        // SAFETY: the caller vouches for 8 elements at p.
        unsafe { p.cast::<[bf16; 8]>().write_unaligned(v.0.map(bf16::from_f32)) }
    }
    #[inline(always)]
    fn add(self, a: F32x8, b: F32x8) -> F32x8 {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F32x8, b: F32x8) -> F32x8 {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F32x8, b: F32x8) -> F32x8 {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F32x8, b: F32x8) -> F32x8 {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F32x8, b: F32x8, c: F32x8) -> F32x8 {
        let mut out = c;
        for i in 0..8 {
            out.0[i] = if FMA { a.0[i].mul_add(b.0[i], c.0[i]) } else { a.0[i] * b.0[i] + c.0[i] };
        }
        out
    }
    #[inline(always)]
    fn min(self, a: F32x8, b: F32x8) -> F32x8 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: F32x8, b: F32x8) -> F32x8 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn neg(self, a: F32x8) -> F32x8 {
        map(a, |a| -a)
    }
    #[inline(always)]
    fn abs(self, a: F32x8) -> F32x8 {
        map(a, f32::abs)
    }
    #[inline(always)]
    fn sqrt(self, a: F32x8) -> F32x8 {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    fn round(self, a: F32x8) -> F32x8 {
        // Adding and taking away 1.5 * 2^23 rounds |a| < 2^22 without a library call; larger ones are left alone,
        // and those between 2^22 and 2^23 are not rounded by any kernel.
        const MAGIC: f32 = 12_582_912.0;
        map(a, |a| if a.abs() < 4_194_304.0 { ((a + MAGIC) - MAGIC).copysign(a) } else { a })
    }
    #[inline(always)]
    fn scale_pow2(self, a: F32x8, n: F32x8) -> F32x8 {
        // Two factors, each a normal number: the first product is exact, the second rounds once.
        zip(a, n, |a, n| {
            // The bits of n + 1.5 * 2^23 end in the integer n: no float-to-integer conversion to saturate.
            let n = (n + 12_582_912.0).to_bits().wrapping_sub(0x4b40_0000) as i32;
            let half = n >> 1;
            let pow2 = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
            a * pow2(half) * pow2(n.wrapping_sub(half))
        })
    }
    #[inline(always)]
    fn select_lt(self, a: F32x8, b: F32x8, x: F32x8, y: F32x8) -> F32x8 {
        let mut out = y;
        for i in 0..8 {
            out.0[i] = if a.0[i] < b.0[i] { x.0[i] } else { y.0[i] };
        }
        out
    }
    #[inline(always)]
    fn copysign(self, a: F32x8, b: F32x8) -> F32x8 {
        zip(a, b, f32::copysign)
    }
    #[inline(always)]
    fn reduce_add(self, a: F32x8) -> f32 {
        let v = a.0;
        let v = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    fn reduce_max(self, a: F32x8) -> f32 {
        let max = |a: f32, b: f32| if a > b { a } else { b };
        let v = a.0;
        let v = [max(v[0], v[4]), max(v[1], v[5]), max(v[2], v[6]), max(v[3], v[7])];
        max(max(v[0], v[2]), max(v[1], v[3]))
    }
}
