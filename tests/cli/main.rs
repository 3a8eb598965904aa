//! The real binary, driven as a person or a script drives it.

#![cfg(unix)]

mod adapters;
mod bench;
mod bundle;
mod chat;
mod complete;
mod doctor;
mod examples;
mod form;
mod gguf;
mod imatrix;
mod inspect;
mod launch;
#[cfg(target_os = "linux")]
mod loading;
mod options;
mod parity;
mod perplexity;
mod quantize;
#[path = "../support/ring.rs"]
mod ring;
mod run;
#[path = "../support/script.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod script;
mod serve;
mod signals;
mod support;
mod template;
mod terminal;
mod thoughts;
