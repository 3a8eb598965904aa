//! Models by their names: from a hub on loopback, which fails as it is told to.

#![cfg(unix)]

mod asked;
mod bundled;
mod cache;
mod clients;
mod commands;
mod faults;
mod first;
mod hostile;
mod kills;
#[path = "../support/noise.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod models;
mod named;
mod parts;
mod pulled;
mod served;
#[path = "../support/signals.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod signals;
#[path = "../support/terminal.rs"]
mod terminal;
#[cfg(target_os = "linux")]
mod tls;
