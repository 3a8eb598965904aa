//! Tokens for byte products: proof that VNNI is there beside a token's other instructions.

use super::{Avx2, Avx512};

/// AVX-512 VNNI: `vpdpbusd` on 16 lanes.
#[derive(Debug, Clone, Copy)]
pub struct Vnni512(Avx512);

impl Vnni512 {
    /// The token, where detection found VNNI beside AVX-512.
    #[inline(always)]
    pub(super) fn of(token: Avx512) -> Option<Self> {
        token.vnni().then_some(Self(token))
    }

    /// The token of the float operations.
    #[inline(always)]
    pub(super) fn wide(self) -> Avx512 {
        self.0
    }
}

/// AVX-VNNI: `vpdpbusd` on 8 lanes.
#[derive(Debug, Clone, Copy)]
pub struct Vnni256(Avx2);

impl Vnni256 {
    /// The token, where detection found AVX-VNNI beside AVX2.
    #[inline(always)]
    pub(super) fn of(token: Avx2) -> Option<Self> {
        token.vnni().then_some(Self(token))
    }

    /// The token of the float operations.
    #[inline(always)]
    pub(super) fn wide(self) -> Avx2 {
        self.0
    }
}
