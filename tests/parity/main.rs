//! Parity: MLX against the CPU against implementations that are not ours. Every test runs under `Policy::Deny`: with
//! fallbacks allowed, it would compare the CPU with itself.

mod harness;
mod models;
mod ops;
#[path = "../support/ring.rs"]
mod ring;
mod tolerance;
