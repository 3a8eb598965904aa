//! `nemotron`: layer norms whose weights are less by one, a squared activation without a gate, half of each head rotated.
//! Parmar et al. 2024, "Nemotron-4 15B Technical Report".

use super::dense::{Dense, MlpNames, NormKind};
use super::gguf_members::LAYER_EPS;
use super::{Family, Gguf};
use crate::config::rope::RopeRules;
use crate::config::{Activation, Names, Shared};

pub(super) static FAMILY: Family = Family {
    model_type: "nemotron",
    shared: Shared {
        names: Names { eps: "norm_eps", ..Names::LLAMA },
        context: 4096,
        eps: 1e-5,
        act: "relu2",
        rope: RopeRules::partial(0.5),
        bos: Some(2),
        eos: &[3],
        ..Shared::LLAMA
    },
    arguments: |_, config| {
        Dense {
            norms: NormKind::Layer { offset: 1.0 },
            mlp: MlpNames::Plain([("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")]),
            ..Dense::llama(config)
        }
        .boxed()
    },
    gguf: Some(Gguf {
        eps: LAYER_EPS,
        activations: &[Activation::Relu2],
        members: |members, _| {
            // The converter writes no activation: there is one.
            members.put("hidden_act", "general.architecture", crate::json::Value::String("relu2".to_owned()));
            Ok(())
        },
        ..Gguf::plain("nemotron")
    }),
    prefixes: &[],
};
