//! `starcoder2`: layer norms, biases everywhere, a feed-forward part without a gate.
//! Lozhkov et al. 2024, "StarCoder 2 and The Stack v2".

use super::dense::{Dense, MlpNames, NormKind};
use super::gguf::window_that_llama_cpp_ignores;
use super::gguf_members::LAYER_EPS;
use super::{Arguments, Family, Gguf};
use crate::config::{Activation, Config, Names, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "starcoder2",
    shared: Shared {
        names: Names { eps: "norm_epsilon", ..Names::LLAMA },
        kv_heads: Some(2),
        context: 4096,
        eps: 1e-5,
        act: "gelu_pytorch_tanh",
        tied: true,
        bos: Some(50_256),
        eos: &[50_256],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        eps: LAYER_EPS,
        activations: &[Activation::GeluTanh],
        members: |members, _| members.window(true).map(drop),
        entries: Some(window_that_llama_cpp_ignores),
        ..Gguf::plain("starcoder2")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    for (name, fine) in [("norm_type", "layer_norm"), ("mlp_type", "default")] {
        if let Some(other) = fields.string(name)?.filter(|&value| value != fine) {
            return Err(fields.error(name, crate::json::quote(other), fine));
        }
    }
    config.set_all_windows(sliding_window(fields, None)?);
    Dense {
        norms: NormKind::Layer { offset: 0.0 },
        mlp: MlpNames::Plain([("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")]),
        ..Dense::llama(config)
    }
    .boxed()
}
