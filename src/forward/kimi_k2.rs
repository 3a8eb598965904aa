//! `kimi_k2`: DeepSeek V3 with more experts and fewer heads.
//! Kimi Team 2025, "Kimi K2: Open Agentic Intelligence".

use super::{Family, deepseek_v3};

pub(super) static FAMILY: Family = Family {
    model_type: "kimi_k2",
    shared: deepseek_v3::SHARED,
    arguments: deepseek_v3::arguments,
    gguf: None,
    prefixes: &[],
};
