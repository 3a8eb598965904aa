//! Whole models: every fixture against transformers' logits, on every backend, in one pass, cached and chunked.

mod adapters;
mod encoders;
mod fixtures;
mod gguf;
mod pages;
mod ranks;
mod stacks;
mod stories;
mod weights;
