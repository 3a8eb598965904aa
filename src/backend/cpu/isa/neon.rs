//! NEON: eight lanes in two registers, so that sums have the order of AVX2, and with it its bits.
//!
//! NEON is in the baseline of aarch64. Halves are converted by `asm!`: the type of a vector of them is younger than the oldest
//! compiler that backstop takes.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use half::{bf16, f16};

use super::{Isa, Simd};

/// Proof that NEON is there, and of what it has for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neon {
    bytes: Bytes,
}

/// How bytes are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    /// `smull` and `smlal`: products of sixteen bits.
    Long,
    /// `sdot`: four products a lane, both sides signed.
    Dot,
    /// `usdot` and `usmmla`: eight products a lane, one side signed.
    Matrix,
}

impl Neon {
    /// The token, where the processor and the operating system have the features.
    pub fn detect() -> Option<Self> {
        // Miri has no `asm!`.
        let here = !cfg!(miri) && is_aarch64_feature_detected!("neon");
        let (dot, matrix) = (is_aarch64_feature_detected!("dotprod"), is_aarch64_feature_detected!("i8mm"));
        let bytes = match (dot, matrix) {
            (true, true) => Bytes::Matrix,
            (true, false) => Bytes::Dot,
            _ => Bytes::Long,
        };
        here.then_some(Self { bytes })
    }

    /// What it has for bytes.
    #[inline(always)]
    pub(super) const fn bytes(self) -> Bytes {
        self.bytes
    }

    /// `neon-i8mm`, `neon-dotprod` or `neon`.
    pub(super) const fn name(self) -> &'static str {
        match self.bytes {
            Bytes::Matrix => "neon-i8mm",
            Bytes::Dot => "neon-dotprod",
            Bytes::Long => "neon",
        }
    }

    /// The token without the best of its instructions for bytes.
    pub(super) fn lesser(self) -> Self {
        let bytes = if self.bytes == Bytes::Matrix { Bytes::Dot } else { Bytes::Long };
        Self { bytes }
    }
}

/// Eight floats.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Floats(pub(super) float32x4_t, pub(super) float32x4_t);

/// `f` of both registers.
#[inline(always)]
fn map(a: Floats, f: impl Fn(float32x4_t) -> float32x4_t) -> Floats {
    Floats(f(a.0), f(a.1))
}

/// `f` of both registers of `a` and `b`.
#[inline(always)]
fn zip(a: Floats, b: Floats, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Floats {
    Floats(f(a.0, b.0), f(a.1, b.1))
}

/// `n <= 4` elements from `p`, zeros in the other lanes.
///
/// # Safety
/// `p` must be valid for reads of `n` elements.
#[inline(always)]
unsafe fn load_some(p: *const f32, n: usize) -> float32x4_t {
    op!({
        let zero = vdupq_n_f32(0.0);
        match n {
            0 => zero,
            1 => vsetq_lane_f32::<0>(p.read_unaligned(), zero),
            2 => vcombine_f32(vld1_f32(p), vdup_n_f32(0.0)),
            3 => {
                let low = vcombine_f32(vld1_f32(p), vdup_n_f32(0.0));
                vsetq_lane_f32::<2>(p.add(2).read_unaligned(), low)
            }
            _ => vld1q_f32(p),
        }
    })
}

/// Stores the first `n <= 4` lanes at `p`.
///
/// # Safety
/// `p` must be valid for writes of `n` elements.
#[inline(always)]
unsafe fn store_some(p: *mut f32, n: usize, v: float32x4_t) {
    op!({
        match n {
            0 => {}
            1 => p.write_unaligned(vgetq_lane_f32::<0>(v)),
            2 => vst1_f32(p, vget_low_f32(v)),
            3 => {
                vst1_f32(p, vget_low_f32(v));
                p.add(2).write_unaligned(vgetq_lane_f32::<2>(v));
            }
            _ => vst1q_f32(p, v),
        }
    })
}

/// The eight halves in `v`, widened. The instructions note in FPSR what they met, which `preserves_flags` would deny.
#[inline(always)]
fn widen(v: uint16x8_t) -> Floats {
    op!({
        let (low, high): (float32x4_t, float32x4_t);
        asm!("fcvtl {out:v}.4s, {v:v}.4h", out = lateout(vreg) low, v = in(vreg) v,
            options(pure, nomem, nostack));
        asm!("fcvtl2 {out:v}.4s, {v:v}.8h", out = lateout(vreg) high, v = in(vreg) v,
            options(pure, nomem, nostack));
        Floats(low, high)
    })
}

/// `v` rounded to halves: to the nearest, ties to even, as Rust has it for all floats.
#[inline(always)]
fn narrow(v: Floats) -> uint16x8_t {
    op!({
        let out: uint16x8_t;
        asm!("fcvtn {out:v}.4h, {low:v}.4s", "fcvtn2 {out:v}.8h, {high:v}.4s",
            out = out(vreg) out, low = in(vreg) v.0, high = in(vreg) v.1,
            options(pure, nomem, nostack));
        out
    })
}

/// Rounds four floats to bfloats, in the lower halves.
#[inline(always)]
fn to_bf16(v: float32x4_t) -> uint16x4_t {
    op!({
        let bits = vreinterpretq_u32_f32(v);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        // A NaN stays one: rounding could carry its payload away.
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
        vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(v, v), up, quiet))
    })
}

#[inline(always)]
fn lesser(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    op!(vbslq_f32(vcltq_f32(a, b), a, b))
}

#[inline(always)]
fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    op!(vbslq_f32(vcgtq_f32(a, b), a, b))
}

/// Asks for the cache line of `p`; never faults.
#[inline(always)]
pub(super) fn prefetch_l1(p: *const u8) {
    #[cfg(not(miri))]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        asm!("prfm pldl1keep, [{p}]", p = in(reg) p.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(miri)]
    let _ = p;
}

/// The same into L2.
#[inline(always)]
pub(super) fn prefetch_l2(p: *const u8) {
    #[cfg(not(miri))]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        asm!("prfm pldl2keep, [{p}]", p = in(reg) p.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(miri)]
    let _ = p;
}

// SAFETY: each instruction is in the baseline, and touches the eight lanes of its element type or the first `n` of them.
unsafe impl Simd for Neon {
    type V = Floats;
    const LANES: usize = 8;
    // 32 of four lanes.
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn isa(self) -> Isa {
        Isa::Neon(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        op!({
            let v = vdupq_n_f32(x);
            Floats(v, v)
        })
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> Floats {
        op!(Floats(vld1q_f32(p), vld1q_f32(p.add(4))))
    }
    #[inline(always)]
    unsafe fn load_partial_ptr(self, p: *const f32, n: usize) -> Floats {
        op!({
            debug_assert!(n <= 8);
            match n {
                0..4 => Floats(load_some(p, n), vdupq_n_f32(0.0)),
                _ => Floats(vld1q_f32(p), load_some(p.add(4), n - 4)),
            }
        })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32, v: Floats) {
        op!({
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
        })
    }
    #[inline(always)]
    unsafe fn store_partial_ptr(self, p: *mut f32, n: usize, v: Floats) {
        op!({
            debug_assert!(n <= 8);
            match n {
                0..4 => store_some(p, n, v.0),
                _ => {
                    vst1q_f32(p, v.0);
                    store_some(p.add(4), n - 4, v.1);
                }
            }
        })
    }
    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const f16) -> Floats {
        op!(widen(vld1q_u16(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const bf16) -> Floats {
        op!({
            let v = vld1q_u16(p.cast());
            let up = |v| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(v)));
            Floats(up(vget_low_u16(v)), up(vget_high_u16(v)))
        })
    }
    #[inline(always)]
    unsafe fn load_u8_ptr(self, p: *const u8) -> Floats {
        op!({
            let v = vmovl_u8(vld1_u8(p));
            let float = |v| vcvtq_f32_u32(vmovl_u16(v));
            Floats(float(vget_low_u16(v)), float(vget_high_u16(v)))
        })
    }
    #[inline(always)]
    unsafe fn load_u4_ptr(self, p: *const u32, nibble: usize) -> Floats {
        op!({
            let by = vdupq_n_s32(-4 * nibble as i32);
            let float = |v| vcvtq_f32_u32(vandq_u32(vshlq_u32(v, by), vdupq_n_u32(15)));
            Floats(float(vld1q_u32(p)), float(vld1q_u32(p.add(4))))
        })
    }
    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut f16, v: Floats) {
        op!(vst1q_u16(p.cast(), narrow(v)))
    }
    #[inline(always)]
    unsafe fn store_bf16_ptr(self, p: *mut bf16, v: Floats) {
        op!(vst1q_u16(p.cast(), vcombine_u16(to_bf16(v.0), to_bf16(v.1))))
    }
    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        op!(zip(a, b, |a, b| vaddq_f32(a, b)))
    }
    #[inline(always)]
    fn sub(self, a: Floats, b: Floats) -> Floats {
        op!(zip(a, b, |a, b| vsubq_f32(a, b)))
    }
    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        op!(zip(a, b, |a, b| vmulq_f32(a, b)))
    }
    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        op!(zip(a, b, |a, b| vdivq_f32(a, b)))
    }
    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        op!(Floats(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)))
    }
    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        zip(a, b, lesser)
    }
    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        zip(a, b, greater)
    }
    #[inline(always)]
    fn neg(self, a: Floats) -> Floats {
        op!(map(a, |a| vnegq_f32(a)))
    }
    #[inline(always)]
    fn abs(self, a: Floats) -> Floats {
        op!(map(a, |a| vabsq_f32(a)))
    }
    #[inline(always)]
    fn sqrt(self, a: Floats) -> Floats {
        op!(map(a, |a| vsqrtq_f32(a)))
    }
    #[inline(always)]
    fn round(self, a: Floats) -> Floats {
        op!(map(a, |a| vrndnq_f32(a)))
    }
    #[inline(always)]
    fn scale_pow2(self, a: Floats, n: Floats) -> Floats {
        op!({
            // Two factors, each a normal number: the first product is exact, the second rounds once.
            zip(a, n, |a, n| {
                let n = vcvtq_s32_f32(n);
                let half = vshrq_n_s32::<1>(n);
                let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
                vmulq_f32(vmulq_f32(a, power(half)), power(vsubq_s32(n, half)))
            })
        })
    }
    #[inline(always)]
    fn select_lt(self, a: Floats, b: Floats, x: Floats, y: Floats) -> Floats {
        op!(Floats(vbslq_f32(vcltq_f32(a.0, b.0), x.0, y.0), vbslq_f32(vcltq_f32(a.1, b.1), x.1, y.1)))
    }
    #[inline(always)]
    fn copysign(self, a: Floats, b: Floats) -> Floats {
        op!(zip(a, b, |a, b| vbslq_f32(vdupq_n_u32(1 << 31), b, a)))
    }
    #[inline(always)]
    fn reduce_add(self, a: Floats) -> f32 {
        op!({
            let v = vaddq_f32(a.0, a.1);
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: Floats) -> f32 {
        op!({
            let v = greater(a.0, a.1);
            let (low, high) = (vget_low_f32(v), vget_high_f32(v));
            let v = vbsl_f32(vcgt_f32(low, high), low, high);
            let (a, b) = (vget_lane_f32::<0>(v), vget_lane_f32::<1>(v));
            if a > b { a } else { b }
        })
    }
    #[inline(always)]
    fn reduce_add4(self, sums: [Floats; 4]) -> [f32; 4] {
        op!({
            let [a, b, c, d] = sums.map(|v| vaddq_f32(v.0, v.1));
            // Distance 2 of two vectors at once: [a a b b]; then 1, between neighbours.
            let both = |a, b| {
                let low = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
                vaddq_f32(low, vcombine_f32(vget_high_f32(a), vget_high_f32(b)))
            };
            let v = vpaddq_f32(both(a, b), both(c, d));
            let mut out = [0.0; 4];
            vst1q_f32(out.as_mut_ptr(), v);
            out
        })
    }
}
