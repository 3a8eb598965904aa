//! AVX-512 (F, BW, DQ, VL): 16 lanes, masked loads and stores, `vscalefps` for powers of two.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Avx2, Isa, Kernel, Simd};

/// Proof that AVX-512 F, BW, DQ and VL are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512 {
    vnni: bool,
    /// AVX2, FMA and F16C, which are asked for, too.
    narrow: Avx2,
}

impl Avx512 {
    /// The token, where the processor and the operating system have the features.
    pub fn detect() -> Option<Self> {
        let narrow = Avx2::detect()?.plain();
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Self { vnni: is_x86_feature_detected!("avx512vnni"), narrow })
    }

    /// Whether AVX-512 VNNI is there, too.
    pub(super) const fn vnni(self) -> bool {
        self.vnni
    }

    /// AVX2, FMA and F16C, without AVX-VNNI.
    pub(super) fn narrow(self) -> Avx2 {
        self.narrow
    }

    /// The token without VNNI.
    pub(super) fn plain(self) -> Self {
        Self { vnni: false, ..self }
    }
}

/// Compiles `kernel` for the features of [`Avx512::detect`].
///
/// # Safety
/// They must be there: `token` proves it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn shim<K: Kernel>(token: Avx512, kernel: K) -> K::Out {
    kernel.run(token)
}

/// The lowest `n` lanes, `n <= 16`.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

// SAFETY: each instruction is one that detection found, and touches the sixteen lanes of its element type or, through its mask, the first
// `n`.
unsafe impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn isa(self) -> Isa {
        Isa::Avx512(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m512 {
        op!(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn load_partial_ptr(self, p: *const f32, n: usize) -> __m512 {
        op!(_mm512_maskz_loadu_ps(mask(n), p))
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32, v: __m512) {
        op!(_mm512_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn store_partial_ptr(self, p: *mut f32, n: usize, v: __m512) {
        op!(_mm512_mask_storeu_ps(p, mask(n), v))
    }
    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const f16) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const bf16) -> __m512 {
        op!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_u8_ptr(self, p: *const u8) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))))
    }
    #[inline(always)]
    unsafe fn load_u4_ptr(self, p: *const u32, nibble: usize) -> __m512 {
        op!({
            // The lookup reads the low four bits of a lane alone: no mask, and no conversion.
            let values = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
            let shift = _mm512_set1_epi32(4 * nibble as i32);
            _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_loadu_si512(p.cast()), shift), values)
        })
    }
    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut f16, v: __m512) {
        op!(_mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)))
    }
    #[inline(always)]
    unsafe fn store_bf16_ptr(self, p: *mut bf16, v: __m512) {
        op!({
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            // A NaN stays one: rounding could carry its payload away.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let rounded = _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, up, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(rounded))
        })
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn neg(self, a: __m512) -> __m512 {
        op!(_mm512_xor_ps(a, _mm512_set1_ps(-0.0)))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        op!(_mm512_andnot_ps(_mm512_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        op!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        op!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn scale_pow2(self, a: __m512, n: __m512) -> __m512 {
        op!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }
    #[inline(always)]
    fn copysign(self, a: __m512, b: __m512) -> __m512 {
        op!({
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        op!({
            let v8 = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
            let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps::<1>(v2, v2)))
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        op!({
            let v8 = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
            let v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_max_ss(v2, _mm_shuffle_ps::<1>(v2, v2)))
        })
    }
    #[inline(always)]
    fn reduce_add4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        op!({
            // Distance 8: quarters 0,1 against quarters 2,3 of two vectors at once.
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
            // Distance 4: even quarters against odd ones; quarter i is now what is left of operand i.
            let v = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            // Distances 2 and 1, inside each quarter.
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0x4e>(v));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0xb1>(v));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, v)));
            sums
        })
    }
}
