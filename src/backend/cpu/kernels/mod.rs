//! The CPU kernels. A safe wrapper checks every length once; inside it one body, generic over the
//! [`Simd`](super::isa::Simd) token, runs through [`Isa::dispatch`](super::isa::Isa::dispatch). Kernels neither allocate
//! nor spawn: callers bring a [`Pool`](super::pool::Pool) and scratch.

pub mod math;
pub mod matmul;
pub mod reference;
