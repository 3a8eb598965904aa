//! The CPU backend: threads, instruction sets and kernels, in pure Rust.

pub mod isa;
pub mod kernels;
pub mod limits;
pub mod pool;
