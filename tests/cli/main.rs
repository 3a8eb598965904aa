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
mod options;
mod parity;
mod perplexity;
mod quantize;
mod run;
mod serve;
mod signals;
mod support;
mod template;
mod terminal;
