//! `nomic_bert`: BERT with rotary positions and SwiGLU, and without biases.
//! Nussbaum et al. 2024, "Nomic Embed: Training a Reproducible Long Context Text Embedder".

use std::collections::BTreeMap;

use super::encoder::{Encoder, EncoderMlp, EncoderQkv};
use super::{Arguments, Family, Gguf, bert};
use crate::config::rope::RopeRules;
use crate::config::{Activation, Config, Shared, only};
use crate::error::Result;
use crate::json::{Fields, Object, Value};

const NAME: &str = "nomic_bert";

pub(super) static FAMILY: Family = Family {
    model_type: NAME,
    shared: Shared {
        vocab: Some(30_528),
        context: 2048,
        act: "silu",
        rope: RopeRules {
            theta_name: "rotary_emb_base",
            partial_name: "rotary_emb_fraction",
            partial: Some(1.0),
            ..RopeRules::theta(1000.0)
        },
        ..bert::SHARED
    },
    arguments,
    gguf: Some(Gguf { rotates: true, activations: &[Activation::Silu], ..Gguf::encoder("nomic-bert") }),
    prefixes: &[("nomic_bert.", ""), ("bert.", "")],
};

/// What repositories of 2024, before transformers had the family, call the fields.
const OLD_NAMES: [(&str, &str); 7] = [
    ("n_embd", "hidden_size"),
    ("n_inner", "intermediate_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_positions", "max_position_embeddings"),
    ("layer_norm_epsilon", "layer_norm_eps"),
    ("activation_function", "hidden_act"),
];

/// The members of a configuration of this family by their names of today, and what its file calls them, where that is another.
pub(super) fn renamed(object: &mut Object) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    if object.get("model_type") != Some(&Value::String(NAME.to_owned())) {
        return names;
    }
    for (old, new) in OLD_NAMES {
        if object.contains_key(new) {
            continue;
        }
        if let Some(value) = object.remove(old) {
            let value = match value {
                Value::String(act) if act == "swiglu" => Value::String("silu".to_owned()),
                Value::String(act) if act == "geglu" => Value::String("gelu".to_owned()),
                other => other,
            };
            object.insert(new.to_owned(), value);
            names.insert(new.to_owned(), old.to_owned());
        }
    }
    names
}

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    const UNBUILT: [&str; 5] =
        ["prenorm", "parallel_block", "causal", "use_rms_norm", "rotary_emb_interleaved"];
    for name in UNBUILT {
        only(fields, name, false, "no such model of this family is published")?;
    }
    const EVERY: &str = "moe_every_n_layers";
    if let Some(every) = fields.size(EVERY, 0, 1024)?.filter(|&every| every > 0) {
        return Err(fields.error(EVERY, every, "0: layers of experts are not built in this family"));
    }
    for name in ["rotary_scaling_factor", "rotary_emb_scale_base"] {
        if let Some(value) = fields.get(name) {
            return Err(fields.error(name, value, "null: positions are not stretched"));
        }
    }
    let rotations = config.rotations.clone();
    let mut encoder = bert::described(fields, config)?;
    encoder.config.rotations = rotations;
    encoder.config.labels = None;
    Encoder {
        positions: None,
        embedding_norm: "emb_ln",
        layers: "encoder.layers",
        qkv: EncoderQkv::Fused("attn.Wqkv"),
        output: "attn.out_proj",
        attention_norm: "norm1",
        mlp: EncoderMlp::Gated(["mlp.fc12", "mlp.fc11", "mlp.fc2"]),
        mlp_norm: "norm2",
        ..encoder
    }
    .boxed()
}
