//! AVX2 with FMA and F16C: 8 lanes, partial vectors through `vmaskmovps`.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Isa, Kernel, Simd};

/// Proof that AVX2, FMA and F16C are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2 {
    vnni: bool,
}

impl Avx2 {
    /// The token, where the processor and the operating system have the features.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Self { vnni: is_x86_feature_detected!("avxvnni") })
    }

    /// Whether AVX-VNNI is there, too.
    pub(super) const fn vnni(self) -> bool {
        self.vnni
    }

    /// The token without VNNI.
    pub(super) fn plain(self) -> Self {
        Self { vnni: false }
    }
}

/// Compiles `kernel` for the features of [`Avx2::detect`].
///
/// # Safety
/// They must be there: `token` proves it.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn shim<K: Kernel>(token: Avx2, kernel: K) -> K::Out {
    kernel.run(token)
}

/// Eight times "on", eight times "off": the mask of `n` lanes starts at element `8 - n`.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// The mask of the lowest `n` lanes.
///
/// # Safety
/// AVX must be there and `n <= 8`.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    debug_assert!(n <= 8);
    // SAFETY: elements 8-n..16-n lie inside the table for n <= 8.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n).cast()) }
}

// SAFETY: each instruction is one that detection found, and touches the eight lanes of its element type or, through its mask, the first `n`.
unsafe impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn isa(self) -> Isa {
        Isa::Avx2(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m256 {
        op!(_mm256_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn load_partial_ptr(self, p: *const f32, n: usize) -> __m256 {
        op!(_mm256_maskload_ps(p, mask(n)))
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32, v: __m256) {
        op!(_mm256_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn store_partial_ptr(self, p: *mut f32, n: usize, v: __m256) {
        op!(_mm256_maskstore_ps(p, mask(n), v))
    }
    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const f16) -> __m256 {
        op!(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const bf16) -> __m256 {
        op!({
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_u8_ptr(self, p: *const u8) -> __m256 {
        op!(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))))
    }
    #[inline(always)]
    unsafe fn load_u4_ptr(self, p: *const u32, nibble: usize) -> __m256 {
        op!({
            let shift = _mm256_set1_epi32(4 * nibble as i32);
            let codes = _mm256_srlv_epi32(_mm256_loadu_si256(p.cast()), shift);
            _mm256_cvtepi32_ps(_mm256_and_si256(codes, _mm256_set1_epi32(15)))
        })
    }
    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut f16, v: __m256) {
        op!(_mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)))
    }
    #[inline(always)]
    unsafe fn store_bf16_ptr(self, p: *mut bf16, v: __m256) {
        op!({
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            // A NaN stays one: rounding could carry its payload away.
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let rounded = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan));
            let packed =
                _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded));
            _mm_storeu_si128(p.cast(), packed)
        })
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn neg(self, a: __m256) -> __m256 {
        op!(_mm256_xor_ps(a, _mm256_set1_ps(-0.0)))
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        op!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        op!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        op!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn scale_pow2(self, a: __m256, n: __m256) -> __m256 {
        op!({
            // Two factors, each a normal number: the first product is exact, the second rounds once.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let f = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let g = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
            _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(f)), _mm256_castsi256_ps(g))
        })
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        op!(_mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn copysign(self, a: __m256, b: __m256) -> __m256 {
        op!({
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        op!({
            let v4 = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps::<1>(v2, v2)))
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        op!({
            let v4 = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_max_ss(v2, _mm_shuffle_ps::<1>(v2, v2)))
        })
    }
    #[inline(always)]
    fn reduce_add4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        op!({
            // Distance 4: low halves against high halves of two vectors at once.
            let ac =
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, c), _mm256_permute2f128_ps::<0x31>(a, c));
            let bd =
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(b, d), _mm256_permute2f128_ps::<0x31>(b, d));
            // Distance 2: [a a b b | c c d d]; then 1, between neighbours.
            let v = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ac, bd), _mm256_shuffle_ps::<0xee>(ac, bd));
            let v = _mm256_add_ps(v, _mm256_permute_ps::<0xb1>(v));
            let both = _mm_shuffle_ps::<0x88>(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), both);
            sums
        })
    }
}
