//! `ernie4_5`: Llama, rotated in neighbouring pairs.
//! Baidu 2025, "ERNIE 4.5 Technical Report".

use super::dense::{Dense, Pairs};
use super::{Arguments, Family, Gguf};
use crate::config::rope::RopeRules;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;

pub(super) const SHARED: Shared = Shared {
    kv_heads: Some(2),
    head_dim: Some(128),
    context: 131_072,
    eps: 1e-5,
    tied: true,
    rope: RopeRules::theta(500_000.0),
    ..Shared::LLAMA
};

pub(super) static FAMILY: Family = Family {
    model_type: "ernie4_5",
    shared: SHARED,
    arguments,
    gguf: Some(Gguf::plain("ernie4_5")),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    if let Some(ratio) = fields.number("compression_ratio", 0.0, 1e6)?.filter(|&ratio| ratio != 1.0) {
        return Err(fields.error("compression_ratio", ratio, "1.0: positions are not divided"));
    }
    Dense { pairs: Pairs::Everywhere, ..Dense::llama(config) }.boxed()
}
