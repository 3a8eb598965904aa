//! `backstop serve`, the real binary, over sockets: what it answers, what it refuses, and what it outlives.

#![cfg(unix)]

mod adapters;
mod agents;
mod answers;
#[cfg(feature = "fault-injection")]
mod blocked;
mod broken;
mod buffers;
mod disk;
mod editors;
mod embeddings;
mod encoders;
mod ends;
#[cfg(feature = "fault-injection")]
mod faults;
mod guards;
mod hostile;
mod limits;
mod memory;
mod ollama;
#[path = "../support/script.rs"]
mod script;
mod several;
mod streams;
mod support;
mod timings;
mod waiting;
