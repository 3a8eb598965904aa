//! The CPU backend: threads, instruction sets and kernels, in pure Rust.

mod adapt;
mod backend;
mod experts;
pub mod isa;
pub mod kernels;
pub mod limits;
mod operands;
pub mod pool;
mod recurrent;

pub use backend::CpuBackend;
pub use isa::Isa;
pub use kernels::quant::Activations;
pub use operands::{CpuMatrix, CpuStack, CpuVector};
