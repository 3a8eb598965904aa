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

/// Waits until weights that were packed are on the pages on which they are to be, for a time: that goes on behind a load, and a
/// measurement is not to have it beside it.
pub fn settle(most: std::time::Duration) {
    crate::alloc::settle(most);
}
