//! The real binary, driven as a person or a script drives it.

#![cfg(unix)]

mod bench;
mod chat;
mod examples;
mod form;
mod gguf;
mod inspect;
mod options;
mod parity;
mod quantize;
mod run;
mod support;
mod template;
mod terminal;
