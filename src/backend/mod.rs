//! Backends: the op traits, the dispatch over them, and the KV cache.

pub mod cpu;
pub mod kv;
