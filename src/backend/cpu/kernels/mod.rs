//! The CPU kernels. A safe wrapper checks every length once; inside it one body, generic over the
//! [`Simd`](super::isa::Simd) token, runs through [`Isa::dispatch`](super::isa::Isa::dispatch). Kernels neither allocate
//! nor spawn: callers bring a [`Pool`] and scratch.

pub mod attention;
pub mod math;
pub mod matmul;
pub mod norm;
pub mod pointwise;
pub mod quant;
pub mod recurrent;
pub mod reference;
pub mod reference_ops;
pub mod rope;
pub mod route;

use super::pool::Pool;

/// Rows of a task: a quarter of a thread's share, and no fewer than make `least` elements.
fn rows_per_task(pool: &Pool, rows: usize, width: usize, least: usize) -> usize {
    rows.div_ceil(4 * pool.threads()).max(least.div_ceil(width)).max(1)
}
