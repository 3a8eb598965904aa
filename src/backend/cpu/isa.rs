//! Capability tokens: a kernel is written once, generic over a [`Simd`] token, and [`Isa::dispatch`] runs it inside a
//! function compiled for the features that detection found.
//!
//! A token's fields are private to the module of its detection, so holding one proves that its instructions may be executed.
//! Everything between a kernel's [`Kernel::run`] and the intrinsics is `#[inline(always)]`: a body that is not inlined
//! into the shim (a closure handed to the pool, a plain `fn`) would be compiled for the baseline and run many times
//! slower. A task of a parallel region therefore dispatches by itself: dispatching costs one branch.

/// An instruction of the token at hand.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! op {
    ($e:expr) => {{
        // SAFETY: the token exists, so detection found the features; a pointer is the caller's contract.
        unsafe { $e }
    }};
}

/// `$body` for each `$i` below `$n`, a constant of at most 16 or of the values that are named, written out one after the other: arrays of registers that a loop
/// goes through are kept in memory where the compiler does not unroll it, and how long a loop it unrolls depends on what is around.
/// The conditions are constants by themselves, so that no code is made of what is beyond `$n`.
macro_rules! unrolled {
    ($i:ident < $n:expr => $body:expr) => {
        unrolled!($i < $n, of 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 => $body)
    };
    ($i:ident < $n:expr, of $($at:literal)* => $body:expr) => {{
        const { assert!($n <= [$($at),*].len()) };
        $(#[allow(unconditional_panic)] // an array's elements beyond `$n`, which no code is made of
        if const { $at < $n } {
            let $i: usize = $at;
            $body;
        })*
    }};
}

/// `[of(0), of(1), …]` of `$n` values of a type that can be copied, as [`unrolled`]. [`std::array::from_fn`] and `map` would moreover
/// be functions by themselves, without their caller's instructions, each of which would be a call.
macro_rules! array_of {
    ($n:expr, |$i:ident| $of:expr) => {{
        let mut all = {
            let $i: usize = 0;
            [$of; $n]
        };
        unrolled!($i < $n => if $i > 0 {
            all[$i] = $of;
        });
        all
    }};
}

pub(crate) use {array_of, unrolled};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod int;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::fmt;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use int::{IntKernel, IntSimd, place};
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;

use half::{bf16, f16};

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// Vectors of `f32` and the operations on them that kernels need.
///
/// Lane `i` of a result depends on lane `i` of the operands alone (reductions apart), so a lane of a partial vector
/// has the bits that it would have in a full one.
///
/// # Safety
/// Kernels check lengths against [`LANES`](Self::LANES) and then hand out pointers. So `LANES` is a power of two, at most 16,
/// and a load or store touches that many elements of its type and no byte more; a partial one as many as it is told, and none
/// where that is 0. A value of the type proves that its instructions may be executed: none can be made but by detection.
pub unsafe trait Simd: Copy + Send + Sync + fmt::Debug + 'static {
    /// A vector of [`LANES`](Self::LANES) `f32`.
    type V: Copy;

    /// Elements in a vector: a power of two, at most 16.
    const LANES: usize;

    /// Vector registers that a kernel may keep live.
    const REGISTERS: usize;

    /// The token as a value, for the tasks that a kernel hands to the pool.
    fn isa(self) -> Isa;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::V;

    /// `LANES` elements from `p`, which need not be aligned.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` elements.
    unsafe fn load_ptr(self, p: *const f32) -> Self::V;

    /// `n <= LANES` elements from `p`, zeros in the other lanes.
    ///
    /// # Safety
    /// `p` must be valid for reads of `n` elements, `n <= LANES`.
    unsafe fn load_partial_ptr(self, p: *const f32, n: usize) -> Self::V;

    /// Stores all lanes at `p`, which need not be aligned.
    ///
    /// # Safety
    /// `p` must be valid for writes of `LANES` elements.
    unsafe fn store_ptr(self, p: *mut f32, v: Self::V);

    /// Stores the first `n <= LANES` lanes at `p`.
    ///
    /// # Safety
    /// `p` must be valid for writes of `n` elements, `n <= LANES`.
    unsafe fn store_partial_ptr(self, p: *mut f32, n: usize, v: Self::V);

    /// `LANES` halves from `p` (any alignment), widened exactly.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` elements.
    unsafe fn load_f16_ptr(self, p: *const f16) -> Self::V;

    /// `LANES` bfloats from `p` (any alignment), widened exactly.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` elements.
    unsafe fn load_bf16_ptr(self, p: *const bf16) -> Self::V;

    /// `LANES` unsigned bytes from `p` as floats.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` bytes.
    unsafe fn load_u8_ptr(self, p: *const u8) -> Self::V;

    /// Bits `4 nibble .. 4 nibble + 4` of `LANES` words from `p` (any alignment) as floats; `nibble < 8`.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` elements.
    unsafe fn load_u4_ptr(self, p: *const u32, nibble: usize) -> Self::V;

    /// Rounds to the nearest half, ties to even, and stores all lanes at `p` (any alignment).
    ///
    /// # Safety
    /// `p` must be valid for writes of `LANES` elements.
    unsafe fn store_f16_ptr(self, p: *mut f16, v: Self::V);

    /// Rounds to the nearest bfloat, ties to even, and stores all lanes at `p` (any alignment).
    ///
    /// # Safety
    /// `p` must be valid for writes of `LANES` elements.
    unsafe fn store_bf16_ptr(self, p: *mut bf16, v: Self::V);

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`, correctly rounded.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the ISA has FMA (all but [`Portable`] built without it).
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a < b ? a : b`: where either is NaN, `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`: where either is NaN, `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `-a`.
    fn neg(self, a: Self::V) -> Self::V;
    /// `|a|`.
    fn abs(self, a: Self::V) -> Self::V;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for integral `n` in `-252..=254`, rounded once; `a` in `[0.5, 2]` or NaN.
    fn scale_pow2(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a < b ? x : y`; where `a` or `b` is NaN, `y`.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;

    /// The sum of all lanes, in one fixed tree: lane `i` + lane `i + LANES/2`, then halves of that, down to one.
    fn reduce_add(self, a: Self::V) -> f32;
    /// The largest lane, by [`max`](Self::max) in the tree of [`reduce_add`](Self::reduce_add).
    fn reduce_max(self, a: Self::V) -> f32;
    /// Four sums, each with exactly the bits of [`reduce_add`](Self::reduce_add), for about the price of two.
    #[inline(always)]
    fn reduce_add4(self, a: [Self::V; 4]) -> [f32; 4] {
        [self.reduce_add(a[0]), self.reduce_add(a[1]), self.reduce_add(a[2]), self.reduce_add(a[3])]
    }

    /// Asks for the cache line of `p` in all levels; never faults.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        prefetch_l1(p);
    }

    /// Asks for the cache line of `p` in L2; never faults.
    #[inline(always)]
    fn prefetch_l2(self, p: *const u8) {
        prefetch_l2(p);
    }

    /// Zero in every lane.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The first `LANES` elements of `x`.
    ///
    /// # Panics
    /// Where `x` is shorter.
    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::V {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was just checked.
        unsafe { self.load_ptr(x.as_ptr()) }
    }

    /// All of `x`, zeros in the other lanes.
    ///
    /// # Panics
    /// Where `x` is longer than a vector.
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Self::V {
        assert!(x.len() <= Self::LANES);
        // SAFETY: the length was just checked.
        unsafe { self.load_partial_ptr(x.as_ptr(), x.len()) }
    }

    /// Stores all lanes in the first `LANES` elements of `x`.
    ///
    /// # Panics
    /// Where `x` is shorter.
    #[inline(always)]
    fn store(self, x: &mut [f32], v: Self::V) {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was just checked.
        unsafe { self.store_ptr(x.as_mut_ptr(), v) }
    }

    /// Fills `x` with the first lanes.
    ///
    /// # Panics
    /// Where `x` is longer than a vector.
    #[inline(always)]
    fn store_partial(self, x: &mut [f32], v: Self::V) {
        assert!(x.len() <= Self::LANES);
        // SAFETY: the length was just checked.
        unsafe { self.store_partial_ptr(x.as_mut_ptr(), x.len(), v) }
    }
}

/// The constants that [`Simd`] promises, as far as a compiler can tell.
const fn assert_simd<S: Simd>() {
    assert!(S::LANES.is_power_of_two() && S::LANES <= MAX_LANES);
    assert!(size_of::<S::V>() == S::LANES * size_of::<f32>());
}

const _: () = {
    assert_simd::<Portable>();
    #[cfg(target_arch = "x86_64")]
    assert_simd::<Avx2>();
    #[cfg(target_arch = "x86_64")]
    assert_simd::<Avx512>();
    #[cfg(target_arch = "aarch64")]
    assert_simd::<Neon>();
    assert_element::<f32>();
    assert_element::<f16>();
    assert_element::<bf16>();
};

/// An element type of weights and caches: how a vector of it is widened and rounded.
///
/// # Safety
/// A load or store touches [`Simd::LANES`] elements of the type and no byte more, a partial one as many as it is told; and
/// [`DTYPE`](Self::DTYPE) is the type's own, since bytes that are said to be of it are read as this type.
pub unsafe trait Element: bytemuck::Pod + Send + Sync + fmt::Debug {
    /// The type's name for the rest of the library.
    const DTYPE: crate::tensor::DType;

    /// `LANES` elements from `p`, which need not be aligned, widened exactly.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` elements.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;

    /// Stores all lanes at `p`, which need not be aligned, rounded to the nearest, ties to even.
    ///
    /// # Safety
    /// `p` must be valid for writes of `LANES` elements.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::V);

    /// `n <= LANES` elements from `p`, zeros in the other lanes.
    ///
    /// # Safety
    /// `p` must be valid for reads of `n` elements, `n <= LANES`.
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, p: *const Self, n: usize) -> S::V {
        let mut all: [Self; MAX_LANES] = bytemuck::Zeroable::zeroed();
        const { assert!(S::LANES <= MAX_LANES) };
        // SAFETY: the caller vouches for n <= LANES elements at p; `all` has room for n and, as just asserted, for a vector.
        unsafe {
            std::ptr::copy_nonoverlapping(
                p.cast::<u8>(),
                all.as_mut_ptr().cast::<u8>(),
                n * size_of::<Self>(),
            );
            Self::load(s, all.as_ptr())
        }
    }

    /// Stores the first `n <= LANES` lanes at `p`.
    ///
    /// # Safety
    /// `p` must be valid for writes of `n` elements, `n <= LANES`.
    #[inline(always)]
    unsafe fn store_partial<S: Simd>(s: S, p: *mut Self, n: usize, v: S::V) {
        let mut all: [Self; MAX_LANES] = bytemuck::Zeroable::zeroed();
        const { assert!(S::LANES <= MAX_LANES) };
        // SAFETY: the caller vouches for n <= LANES elements at p; `all` has room for n and, as just asserted, for a vector.
        unsafe {
            Self::store(s, all.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(all.as_ptr().cast::<u8>(), p.cast::<u8>(), n * size_of::<Self>());
        }
    }
}

/// The constant that [`Element`] promises, as far as a compiler can tell.
const fn assert_element<E: Element>() {
    assert!(size_of::<E>() == E::DTYPE.size());
}

// SAFETY: the token's loads and stores of this type touch what they promise; the partial ones are its own.
unsafe impl Element for f32 {
    const DTYPE: crate::tensor::DType = crate::tensor::DType::F32;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's contract is the same.
        unsafe { s.load_ptr(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::V) {
        // SAFETY: the caller's contract is the same.
        unsafe { s.store_ptr(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, p: *const Self, n: usize) -> S::V {
        // SAFETY: the caller's contract is the same.
        unsafe { s.load_partial_ptr(p, n) }
    }
    #[inline(always)]
    unsafe fn store_partial<S: Simd>(s: S, p: *mut Self, n: usize, v: S::V) {
        // SAFETY: the caller's contract is the same.
        unsafe { s.store_partial_ptr(p, n, v) }
    }
}

// SAFETY: the token's loads and stores of this type touch what they promise; the partial ones go by a copy of it.
unsafe impl Element for f16 {
    const DTYPE: crate::tensor::DType = crate::tensor::DType::F16;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's contract is the same.
        unsafe { s.load_f16_ptr(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::V) {
        // SAFETY: the caller's contract is the same.
        unsafe { s.store_f16_ptr(p, v) }
    }
}

// SAFETY: the token's loads and stores of this type touch what they promise; the partial ones go by a copy of it.
unsafe impl Element for bf16 {
    const DTYPE: crate::tensor::DType = crate::tensor::DType::BF16;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's contract is the same.
        unsafe { s.load_bf16_ptr(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::V) {
        // SAFETY: the caller's contract is the same.
        unsafe { s.store_bf16_ptr(p, v) }
    }
}

/// A kernel's body, written once for all tokens.
pub trait Kernel {
    /// What the kernel returns.
    type Out;

    /// The body; implementations are `#[inline(always)]`, so that it is compiled with the shim's features.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// An instruction set that this machine has: each variant holds the token that proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// AVX-512 F, BW, DQ and VL: 16 lanes, 32 registers; VNNI where the token says so.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// AVX2, FMA and F16C: 8 lanes, 16 registers; AVX-VNNI where the token says so.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// NEON: 8 lanes in two of 32 registers; `sdot`, or `usdot` and `usmmla`, where the token says so.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// Arrays of 8 lanes that the compiler vectorises for the build's baseline.
    Portable(Portable),
}

impl Isa {
    /// The best instruction set of this machine.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(token) = Avx512::detect() {
                return Self::Avx512(token);
            }
            if let Some(token) = Avx2::detect() {
                return Self::Avx2(token);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(token) = Neon::detect() {
            return Self::Neon(token);
        }
        Self::Portable(Portable)
    }

    /// Every instruction set of this machine, best first.
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx512::detect().map(Self::Avx512));
            all.extend(Avx2::detect().map(Self::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::detect().map(Self::Neon));
        all.push(Self::Portable(Portable));
        all
    }

    /// As [`available`](Self::available), and each of them without its instructions for bytes, the best of them first: those are
    /// other code for quantized weights, and the same for floats.
    pub fn variants() -> Vec<Self> {
        let lesser = |isa: &Self| {
            let lesser = match *isa {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512(token) => Self::Avx512(token.plain()),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2(token) => Self::Avx2(token.plain()),
                #[cfg(target_arch = "aarch64")]
                Self::Neon(token) => Self::Neon(token.lesser()),
                Self::Portable(_) => *isa,
            };
            (lesser != *isa).then_some(lesser)
        };
        Self::available().into_iter().flat_map(|isa| std::iter::successors(Some(isa), lesser)).collect()
    }

    /// The instruction set called `name`, where this machine has it.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::variants().into_iter().find(|isa| isa.name() == name)
    }

    /// `avx512-vnni`, `avx512`, `avx2-vnni`, `avx2`, `neon-i8mm`, `neon-dotprod`, `neon` or `portable`.
    pub const fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => {
                if token.vnni() {
                    "avx512-vnni"
                } else {
                    "avx512"
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => {
                if token.vnni() {
                    "avx2-vnni"
                } else {
                    "avx2"
                }
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon(token) => token.name(),
            Self::Portable(_) => "portable",
        }
    }

    /// Elements in one of its vectors of `f32`.
    pub const fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Avx512::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::LANES,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => Neon::LANES,
            Self::Portable(_) => Portable::LANES,
        }
    }

    /// Runs `kernel` in code compiled for this instruction set.
    #[inline]
    pub fn dispatch<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            // SAFETY: the token exists, so detection found the features of the shim.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => unsafe { avx512::shim(token, kernel) },
            // SAFETY: the token exists, so detection found the features of the shim.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => unsafe { avx2::shim(token, kernel) },
            // All of it is in the baseline.
            #[cfg(target_arch = "aarch64")]
            Self::Neon(token) => kernel.run(token),
            Self::Portable(token) => kernel.run(token),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[inline(always)]
fn prefetch_l1(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address, and SSE is in the x86-64 baseline.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    neon::prefetch_l1(p);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

#[inline(always)]
fn prefetch_l2(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address, and SSE is in the x86-64 baseline.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    neon::prefetch_l2(p);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}
