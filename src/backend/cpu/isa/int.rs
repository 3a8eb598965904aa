//! Bytes times bytes: the instructions that differ in kind. Sums are exact integers, so every token has the same result.

#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "aarch64")]
use super::Neon;
#[cfg(target_arch = "x86_64")]
use super::vnni::{Vnni256, Vnni512};
#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};
use super::{Isa, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Vectors of as many `i32` as the float vectors have lanes, whose bytes are unsigned codes of four columns of a row.
///
/// # Safety
/// As that of [`Simd`], whose `LANES` they share: a load or store touches the bytes that it names and none more,
/// [`dot`](Self::dot) four of each row of `x` for each of its codes, and a value proves that its instructions may be executed.
pub unsafe trait IntSimd: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// The token of the float operations.
    type F: Simd;
    /// A vector of `LANES` `i32`.
    type I: Copy;

    /// What [`dot`](Self::dot) takes off codes of eight bits.
    const WIDE_BIAS: i32;
    /// Whether `G > 1` rows of `x` are multiplied two by two. They lie where [`place`] says then, and of the results, and of
    /// what [`each`](Self::each) and [`beside`](Self::beside) give for them, two belong to two rows, `2 i` and `2 i + 1`:
    /// [`apart`](Self::apart) parts them.
    const PAIRS: bool = false;

    /// The float operations.
    fn float(self) -> Self::F;
    /// `x` in every lane.
    fn splat_i32(self, x: i32) -> Self::I;
    /// `LANES` times four bytes from `p`, at any alignment.
    ///
    /// # Safety
    /// `p` must be valid for reads of `4 * LANES` bytes.
    unsafe fn load_bytes(self, p: *const u8) -> Self::I;
    /// The 16 bytes at `p`, again and again.
    ///
    /// # Safety
    /// `p` must be valid for reads of 16 bytes.
    unsafe fn load_table(self, p: *const u8) -> Self::I;
    /// Bitwise and.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Each lane shifted left by `N < 32` bits.
    fn shl<const N: u32>(self, a: Self::I) -> Self::I;
    /// Each lane shifted right by `N < 32` bits, zeros coming in.
    fn shr<const N: u32>(self, a: Self::I) -> Self::I;
    /// The upper four bits of each byte.
    #[inline(always)]
    fn high_nibbles(self, a: Self::I) -> Self::I {
        self.and(self.shr::<4>(a), self.splat_i32(0x0f0f_0f0f))
    }
    /// The byte of `table` for each byte of `index`, which is below 16.
    fn lookup(self, table: Self::I, index: Self::I) -> Self::I;
    /// Each lane as a float; exact below 2²⁴.
    fn to_float(self, a: Self::I) -> <Self::F as Simd>::V;
    /// Each lane's bits as a float.
    fn as_float(self, a: Self::I) -> <Self::F as Simd>::V;
    /// `LANES` unsigned bytes from `p` as floats.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` bytes.
    unsafe fn load_u8(self, p: *const u8) -> <Self::F as Simd>::V;
    /// `LANES` signed bytes from `p` as floats.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` bytes.
    unsafe fn load_i8(self, p: *const u8) -> <Self::F as Simd>::V;
    /// Writes `LANES` integers in `-128..=127` that are floats as bytes to `p`.
    ///
    /// # Safety
    /// `p` must be valid for writes of `LANES` bytes.
    unsafe fn store_i8(self, p: *mut i8, v: <Self::F as Simd>::V);

    /// What each of `G` rows has at `p`, `step` apart, in every lane that belongs to it.
    ///
    /// # Safety
    /// `p` must be valid for reads of `G` elements, `step` apart.
    #[inline(always)]
    unsafe fn each<const G: usize>(self, p: *const f32, step: usize) -> [<Self::F as Simd>::V; G] {
        // SAFETY: the caller's contract.
        array_of!(G, |g| self.float().splat(unsafe { *p.add(g * step) }))
    }
    /// The same of integers.
    ///
    /// # Safety
    /// As [`each`](Self::each).
    #[inline(always)]
    unsafe fn each_i32<const G: usize>(self, p: *const i32, step: usize) -> [Self::I; G] {
        // SAFETY: the caller's contract.
        array_of!(G, |g| self.splat_i32(unsafe { *p.add(g * step) }))
    }
    /// `v`, which is the same for each of `G` rows, as it meets their products.
    #[inline(always)]
    fn beside<const G: usize>(self, v: <Self::F as Simd>::V) -> [<Self::F as Simd>::V; G] {
        [v; G]
    }
    /// What belongs to `G` rows, a vector for each of them.
    #[inline(always)]
    fn apart<const G: usize>(self, v: [<Self::F as Simd>::V; G]) -> [<Self::F as Simd>::V; G] {
        v
    }

    /// `init + Σ_q Σ_b codes[q][4 lane + b] · x[4 q + b]` in each lane, for each of `G` inits and rows of `x`, side by side so
    /// that no instruction waits for the one before. Codes are below `2^bits`; those of eight bits
    /// have [`WIDE_BIAS`](Self::WIDE_BIAS) taken off first. `bits` is a constant to the caller, who is inlined.
    ///
    /// # Safety
    /// Each of `x` must be valid for reads of `4 * N` bytes, in `-127..=127`, or those of even rows for `8 * N` where rows are
    /// [`PAIRS`](Self::PAIRS).
    unsafe fn dot<const N: usize, const G: usize>(
        self,
        bits: u32,
        init: [Self::I; G],
        codes: &[Self::I; N],
        x: [*const i8; G],
    ) -> [Self::I; G];
}

/// Where, among the codes of a block of `columns` of `rows` rows of `x`, the eight columns from `8 * eight` on of row `row` lie.
#[inline(always)]
pub const fn place<S: IntSimd>(columns: usize, rows: usize, row: usize, eight: usize) -> usize {
    if S::PAIRS && rows > 1 {
        (row / 2) * 2 * columns + 16 * eight + 8 * (row % 2)
    } else {
        row * columns + 8 * eight
    }
}

/// A kernel's body, written once for all integer tokens.
pub trait IntKernel {
    /// What the kernel returns.
    type Out;
    /// The body; implementations are `#[inline(always)]`.
    fn run<S: IntSimd>(self, s: S) -> Self::Out;
}

/// The constants that [`IntSimd`] promises, as far as a compiler can tell.
const fn assert_int_simd<S: IntSimd>() {
    assert!(size_of::<S::I>() == <S::F as Simd>::LANES * size_of::<i32>());
}

const _: () = {
    assert_int_simd::<Portable>();
    #[cfg(target_arch = "x86_64")]
    assert_int_simd::<Avx2>();
    #[cfg(target_arch = "x86_64")]
    assert_int_simd::<Vnni256>();
    #[cfg(target_arch = "x86_64")]
    assert_int_simd::<Vnni512>();
    #[cfg(target_arch = "aarch64")]
    assert_int_simd::<Neon>();
    #[cfg(target_arch = "aarch64")]
    assert_int_simd::<neon::Dotprod>();
    #[cfg(target_arch = "aarch64")]
    assert_int_simd::<neon::Matrix>();
};

#[cfg(target_arch = "x86_64")]
macro_rules! wide256 {
    () => {
        type F = Avx2;
        type I = __m256i;

        #[inline(always)]
        fn splat_i32(self, x: i32) -> __m256i {
            op!(_mm256_set1_epi32(x))
        }
        #[inline(always)]
        unsafe fn load_bytes(self, p: *const u8) -> __m256i {
            op!(_mm256_loadu_si256(p.cast()))
        }
        #[inline(always)]
        unsafe fn load_table(self, p: *const u8) -> __m256i {
            op!(_mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())))
        }
        #[inline(always)]
        unsafe fn store_i8(self, p: *mut i8, v: __m256) {
            op!({
                let v = _mm256_cvtps_epi32(v);
                let words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                _mm_storel_epi64(p.cast(), _mm_packs_epi16(words, words));
            })
        }
        #[inline(always)]
        fn and(self, a: __m256i, b: __m256i) -> __m256i {
            op!(_mm256_and_si256(a, b))
        }
        #[inline(always)]
        fn or(self, a: __m256i, b: __m256i) -> __m256i {
            op!(_mm256_or_si256(a, b))
        }
        #[inline(always)]
        fn shl<const N: u32>(self, a: __m256i) -> __m256i {
            op!(_mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)))
        }
        #[inline(always)]
        fn shr<const N: u32>(self, a: __m256i) -> __m256i {
            op!(_mm256_srl_epi32(a, _mm_cvtsi32_si128(N as i32)))
        }
        #[inline(always)]
        fn lookup(self, table: __m256i, index: __m256i) -> __m256i {
            op!(_mm256_shuffle_epi8(table, index))
        }
        #[inline(always)]
        fn to_float(self, a: __m256i) -> __m256 {
            op!(_mm256_cvtepi32_ps(a))
        }
        #[inline(always)]
        fn as_float(self, a: __m256i) -> __m256 {
            op!(_mm256_castsi256_ps(a))
        }
        #[inline(always)]
        unsafe fn load_u8(self, p: *const u8) -> __m256 {
            op!(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))))
        }
        #[inline(always)]
        unsafe fn load_i8(self, p: *const u8) -> __m256 {
            op!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))))
        }
    };
}

/// Four bytes of `x` for quad `q`.
///
/// # Safety
/// `x` must be valid for reads of `4 * (q + 1)` bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn quad(x: *const i8, q: usize) -> i32 {
    // SAFETY: the caller's contract.
    unsafe { x.add(4 * q).cast::<i32>().read_unaligned() }
}

/// Pairs of products of codes below `2^bits` that a lane of 16 bits can add up: `n · 2 · (2^bits - 1) · 127 < 2^15`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
const fn depth(bits: u32) -> usize {
    (32767 / (2 * ((1 << bits) - 1) * 127)) as usize
}

/// Nothing but an order: what follows of one of these sums waits for what came before of all. Left to itself, the compiler
/// finishes some sums before it begins the others, each product waiting for the one before. AVX-512 must be there.
#[cfg(target_arch = "x86_64")]
macro_rules! in_step {
    ($name:ident, $($sum:ident)*) => {
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn $name([$($sum),*]: &mut [__m512i; [$(stringify!($sum)),*].len()]) {
            // SAFETY: no instruction.
            unsafe {
                std::arch::asm!(
                    concat!($("/* {", stringify!($sum), "} */"),*),
                    $($sum = inout(zmm_reg) *$sum,)*
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
in_step!(four_in_step, a b c d);
#[cfg(target_arch = "x86_64")]
in_step!(eight_in_step, a b c d e f g h);
#[cfg(target_arch = "x86_64")]
in_step!(sixteen_in_step, a b c d e f g h i j k l m n o p);

#[cfg(target_arch = "x86_64")]
// SAFETY: each instruction is one that detection found, and touches 64 bytes, a register, or what its name says of it.
unsafe impl IntSimd for Vnni512 {
    type F = Avx512;
    type I = __m512i;

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        op!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m512i {
        op!(_mm512_loadu_si512(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_table(self, p: *const u8) -> __m512i {
        op!(_mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512i) -> __m512i {
        op!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512i) -> __m512i {
        op!(_mm512_srli_epi32::<N>(a))
    }
    #[inline(always)]
    fn lookup(self, table: __m512i, index: __m512i) -> __m512i {
        op!(_mm512_shuffle_epi8(table, index))
    }
    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn as_float(self, a: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))))
    }

    const WIDE_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: __m512) {
        op!(_mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))))
    }
    #[inline(always)]
    fn float(self) -> Avx512 {
        self.wide()
    }
    #[inline(always)]
    unsafe fn dot<const N: usize, const G: usize>(
        self,
        _: u32,
        init: [__m512i; G],
        codes: &[__m512i; N],
        x: [*const i8; G],
    ) -> [__m512i; G] {
        let mut sum = init;
        if const { G == 1 } {
            // A row alone would wait for each product in turn: four chains, two for half a block.
            let mut chains = [op!(_mm512_setzero_si512()); 4];
            chains[0] = sum[0];
            unrolled!(q < N => {
                let chain = &mut chains[q % (N / 2)];
                *chain = op!(_mm512_dpbusd_epi32(*chain, codes[q], _mm512_set1_epi32(quad(x[0], q))));
            });
            let [a, b, c, d] = chains;
            sum[0] = op!(_mm512_add_epi32(a, b));
            if N > 4 {
                sum[0] = op!(_mm512_add_epi32(sum[0], _mm512_add_epi32(c, d)));
            }
            return sum;
        }
        unrolled!(q < N => {
            unrolled!(g < G => {
                sum[g] = op!(_mm512_dpbusd_epi32(sum[g], codes[q], _mm512_set1_epi32(quad(x[g], q))));
            });
            if let Ok(sums) = <&mut [_; 16]>::try_from(&mut sum[..]) {
                op!(sixteen_in_step(sums));
            }
            if let Ok(sums) = <&mut [_; 8]>::try_from(&mut sum[..]) {
                op!(eight_in_step(sums));
            }
            // Half blocks are done before it pays.
            if N == 8
                && let Ok(sums) = <&mut [_; 4]>::try_from(&mut sum[..])
            {
                op!(four_in_step(sums));
            }
        });
        sum
    }
}

#[cfg(target_arch = "x86_64")]
// SAFETY: each instruction is one that detection found, and touches 32 bytes, a register, or what its name says of it.
unsafe impl IntSimd for Vnni256 {
    wide256!();
    const WIDE_BIAS: i32 = 0;

    #[inline(always)]
    fn float(self) -> Avx2 {
        self.wide()
    }
    #[inline(always)]
    unsafe fn dot<const N: usize, const G: usize>(
        self,
        _: u32,
        init: [__m256i; G],
        codes: &[__m256i; N],
        x: [*const i8; G],
    ) -> [__m256i; G] {
        let mut sum = init;
        if const { G == 1 } {
            // A row alone would wait for each product in turn: four chains, two for half a block.
            let mut chains = [op!(_mm256_setzero_si256()); 4];
            chains[0] = sum[0];
            unrolled!(q < N => {
                let chain = &mut chains[q % (N / 2)];
                *chain = op!(_mm256_dpbusd_avx_epi32(*chain, codes[q], _mm256_set1_epi32(quad(x[0], q))));
            });
            let [a, b, c, d] = chains;
            sum[0] = op!(_mm256_add_epi32(a, b));
            if N > 4 {
                sum[0] = op!(_mm256_add_epi32(sum[0], _mm256_add_epi32(c, d)));
            }
            return sum;
        }
        unrolled!(q < N => {
            unrolled!(g < G => {
                sum[g] = op!(_mm256_dpbusd_avx_epi32(sum[g], codes[q], _mm256_set1_epi32(quad(x[g], q))));
            });
        });
        sum
    }
}

#[cfg(target_arch = "x86_64")]
// SAFETY: each instruction is one that detection found, and touches 32 bytes, a register, or what its name says of it.
unsafe impl IntSimd for Avx2 {
    wide256!();
    const WIDE_BIAS: i32 = 128;

    #[inline(always)]
    fn float(self) -> Avx2 {
        self
    }
    #[inline(always)]
    unsafe fn dot<const N: usize, const G: usize>(
        self,
        bits: u32,
        init: [__m256i; G],
        codes: &[__m256i; N],
        x: [*const i8; G],
    ) -> [__m256i; G] {
        let mut sum = init;
        let ones = op!(_mm256_set1_epi16(1));
        if bits == 8 {
            unrolled!(q < N => {
                // |w| · (x with the sign of w): a byte of each side must be unsigned.
                let w = op!(_mm256_xor_si256(codes[q], _mm256_set1_epi8(-128)));
                let magnitude = op!(_mm256_abs_epi8(w));
                unrolled!(g < G => {
                    sum[g] = op!({
                        let x = _mm256_sign_epi8(_mm256_set1_epi32(quad(x[g], q)), w);
                        let pairs = _mm256_maddubs_epi16(magnitude, x);
                        _mm256_add_epi32(sum[g], _mm256_madd_epi16(pairs, ones))
                    });
                });
            });
            return sum;
        }
        let depth = depth(bits);
        let mut pairs = [op!(_mm256_setzero_si256()); G];
        unrolled!(q < N => {
            unrolled!(g < G => {
                let products = op!(_mm256_maddubs_epi16(codes[q], _mm256_set1_epi32(quad(x[g], q))));
                pairs[g] = if q.is_multiple_of(depth) { products } else { op!(_mm256_add_epi16(pairs[g], products)) };
            });
            if q % depth == depth - 1 || q == N - 1 {
                unrolled!(g < G => {
                    sum[g] = op!(_mm256_add_epi32(sum[g], _mm256_madd_epi16(pairs[g], ones)));
                });
            }
        });
        sum
    }
}

// SAFETY: plain Rust; arrays of eight lanes are read and written whole.
unsafe impl IntSimd for Portable {
    type F = Self;
    type I = [u32; 8];
    const WIDE_BIAS: i32 = 0;

    #[inline(always)]
    fn float(self) -> Self {
        self
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> [u32; 8] {
        [x as u32; 8]
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> [u32; 8] {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[u32; 8]>().read_unaligned() }.map(u32::from_le)
    }
    #[inline(always)]
    unsafe fn load_table(self, p: *const u8) -> [u32; 8] {
        // SAFETY: the caller's contract.
        let four = unsafe { p.cast::<[u32; 4]>().read_unaligned() }.map(u32::from_le);
        std::array::from_fn(|i| four[i % 4])
    }
    #[inline(always)]
    fn and(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn or(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: [u32; 8]) -> [u32; 8] {
        a.map(|a| a << N)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: [u32; 8]) -> [u32; 8] {
        a.map(|a| a >> N)
    }
    #[inline(always)]
    fn lookup(self, table: [u32; 8], index: [u32; 8]) -> [u32; 8] {
        let bytes: [u8; 16] = std::array::from_fn(|i| table[i / 4].to_le_bytes()[i % 4]);
        index.map(|lane| u32::from_le_bytes(lane.to_le_bytes().map(|i| bytes[usize::from(i & 15)])))
    }
    #[inline(always)]
    fn to_float(self, a: [u32; 8]) -> <Self as Simd>::V {
        let floats = a.map(|a| a as i32 as f32);
        self.load(&floats)
    }
    #[inline(always)]
    fn as_float(self, a: [u32; 8]) -> <Self as Simd>::V {
        let floats = a.map(f32::from_bits);
        self.load(&floats)
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> <Self as Simd>::V {
        // SAFETY: the caller's contract.
        let floats = unsafe { p.cast::<[u8; 8]>().read() }.map(f32::from);
        self.load(&floats)
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> <Self as Simd>::V {
        // SAFETY: the caller's contract.
        let floats = unsafe { p.cast::<[i8; 8]>().read() }.map(f32::from);
        self.load(&floats)
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: <Self as Simd>::V) {
        let mut floats = [0.0; 8];
        self.store(&mut floats, v);
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[i8; 8]>().write_unaligned(floats.map(|value| value as i8)) }
    }
    #[inline(always)]
    unsafe fn dot<const N: usize, const G: usize>(
        self,
        _: u32,
        init: [[u32; 8]; G],
        codes: &[[u32; 8]; N],
        x: [*const i8; G],
    ) -> [[u32; 8]; G] {
        let mut sums = init;
        for (sum, x) in sums.iter_mut().zip(x) {
            for (q, codes) in codes.iter().enumerate() {
                for b in 0..4 {
                    // SAFETY: the caller's contract.
                    let x = i32::from(unsafe { *x.add(4 * q + b) });
                    for (sum, code) in sum.iter_mut().zip(codes) {
                        *sum = sum.wrapping_add(((code >> (8 * b) & 255) as i32 * x) as u32);
                    }
                }
            }
        }
        sums
    }
}

/// Compiles `kernel` for AVX-512 with VNNI.
///
/// # Safety
/// They must be there: `token` proves it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn shim_vnni512<K: IntKernel>(token: Vnni512, kernel: K) -> K::Out {
    kernel.run(token)
}

/// Compiles `kernel` for AVX2 with AVX-VNNI.
///
/// # Safety
/// They must be there: `token` proves it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
unsafe fn shim_vnni256<K: IntKernel>(token: Vnni256, kernel: K) -> K::Out {
    kernel.run(token)
}

/// Compiles `kernel` for AVX2.
///
/// # Safety
/// It must be there: `token` proves it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn shim_256<K: IntKernel>(token: Avx2, kernel: K) -> K::Out {
    kernel.run(token)
}

impl Isa {
    /// Runs `kernel` in code compiled for this instruction set and, where it has them, its instructions for bytes.
    #[inline]
    pub fn dispatch_int<K: IntKernel>(self, kernel: K) -> K::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => match Vnni512::of(token) {
                // SAFETY: the token exists, so detection found the features of the shim.
                Some(vnni) => unsafe { shim_vnni512(vnni, kernel) },
                // Without VNNI the wider registers win little: AVX2's instructions serve.
                // SAFETY: the token exists, so detection found the features of the shim.
                None => unsafe { shim_256(token.narrow(), kernel) },
            },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => match Vnni256::of(token) {
                // SAFETY: the token exists, so detection found the features of the shim.
                Some(vnni) => unsafe { shim_vnni256(vnni, kernel) },
                // SAFETY: as above.
                None => unsafe { shim_256(token, kernel) },
            },
            #[cfg(target_arch = "aarch64")]
            Self::Neon(token) => neon::dispatch(token, kernel),
            Self::Portable(token) => kernel.run(token),
        }
    }
}
