//! Forward passes: one short file per family, from shared blocks.

pub mod rope;
