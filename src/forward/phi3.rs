//! `phi3`: Llama with fused projections, split by rows without a copy: Phi 3 to 4.
//! Abdin et al. 2024, "Phi-3 Technical Report".

use super::dense::{Dense, MlpNames, Qkv};
use super::{Arguments, Family, Gguf};
use crate::config::rope::RopeRules;
use crate::config::{Config, RopeScaling, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "phi3",
    shared: Shared {
        context: 4096,
        eps: 1e-5,
        rope: RopeRules { longrope_only: true, ..RopeRules::partial(1.0) },
        eos: &[32_000],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        members: |members, _| members.window(true).map(drop),
        entries: Some(entries),
        ..Gguf::plain("phi3")
    }),
    prefixes: &[],
};

/// `qkv_proj` is `[(H + 2 KH) * head_dim, D]`: the query rows, then the key rows, then the value rows. `gate_up_proj` is
/// `[2 I, D]`: the gate's rows, then the rows of what it gates.
fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    config.set_all_windows(sliding_window(fields, None)?);
    Dense {
        qkv: Qkv::Fused { name: ("self_attn.qkv_proj", "attn_qkv"), by_head: false },
        mlp: MlpNames::GatedFused([("mlp.gate_up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")]),
        ..Dense::llama(config)
    }
    .boxed()
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    if let RopeScaling::LongRope { original, attention_factor, .. } = config.rope.scaling {
        let original = u32::try_from(original).map_err(|_| "has a size over 32 bits")?;
        entries.uint("phi3.rope.scaling.original_context_length", original);
        entries.float("phi3.rope.scaling.attn_factor", attention_factor);
    }
    super::gguf::window_that_llama_cpp_ignores(config, entries)
}
