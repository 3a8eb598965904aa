//! Models by their names: from a hub on loopback, which fails as it is told to.

#![cfg(unix)]

mod asked;
mod cache;
mod commands;
mod faults;
mod hostile;
mod kills;
mod pulled;
mod served;
#[cfg(target_os = "linux")]
mod tls;
