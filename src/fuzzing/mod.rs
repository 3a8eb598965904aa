//! What `cargo xtask fuzz` runs: each target takes any bytes and panics where a promise is broken. No panic, no hang and no memory
//! without end are promises of all of them; each states its own beside that.
//!
//! The same functions run over the seeds and over `fuzz/regressions/` in an ordinary test (`tests`).

mod adapters;
mod bits;
mod blocks;
mod engine;
mod files;
mod grammars;
#[cfg(feature = "hub")]
mod hub;
mod input;
mod seeds;
#[cfg(feature = "server")]
mod server;
#[cfg(test)]
mod tests;
mod texts;
mod tokenizers;

/// One thing that is fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line, and that of the folders of its inputs.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made of the fixtures in `tests/`.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "safetensors", run: files::safetensors, seeds: seeds::safetensors },
    Target { name: "gguf", run: files::gguf, seeds: seeds::gguf },
    Target { name: "model", run: files::model, seeds: seeds::model },
    Target { name: "adapter", run: adapters::adapter, seeds: adapters::adapters },
    Target { name: "tokenizer", run: tokenizers::tokenizer, seeds: seeds::tokenizer },
    Target { name: "template", run: texts::template, seeds: seeds::template },
    Target { name: "json", run: texts::json, seeds: seeds::json },
    Target { name: "sentinel", run: texts::sentinel, seeds: seeds::sentinel },
    Target { name: "reply", run: texts::reply, seeds: seeds::reply },
    Target { name: "stop", run: texts::stop, seeds: seeds::stop },
    Target { name: "grammar", run: grammars::grammar, seeds: seeds::grammar },
    Target { name: "blocks", run: blocks::blocks, seeds: seeds::blocks },
    Target { name: "engine", run: engine::turns, seeds: seeds::engine },
    Target { name: "bits", run: bits::bits, seeds: seeds::bits },
    #[cfg(feature = "hub")]
    Target { name: "name", run: hub::name, seeds: hub::names },
    #[cfg(feature = "hub")]
    Target { name: "listing", run: hub::listing, seeds: hub::listings },
    #[cfg(feature = "hub")]
    Target { name: "cache", run: hub::cache, seeds: hub::caches },
    #[cfg(feature = "server")]
    Target { name: "request", run: server::request, seeds: seeds::request },
    #[cfg(feature = "server")]
    Target { name: "http", run: server::http, seeds: seeds::http },
];
