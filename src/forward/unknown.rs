//! What of a model that is of no known family is not understood: its configuration's keys, and its weights, that no family has.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Architecture, FAMILIES, Family};
use crate::config::Names;
use crate::error::Result;
use crate::files;
use crate::json::{self, Fields, Object, Value};
use crate::weights::Checkpoint;

/// Keys that say nothing of the forward pass, or that every family reads.
const KEYS: [&str; 58] = [
    "model_type",
    "architectures",
    "auto_map",
    "_name_or_path",
    "transformers_version",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "attention_bias",
    "mlp_bias",
    "use_bias",
    "dtype",
    "torch_dtype",
    "quantization",
    "quantization_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "use_cache",
    "initializer_range",
    "initializer_std",
    "attention_dropout",
    "hidden_dropout",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
    "pretraining_tp",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
    "is_encoder_decoder",
    "is_decoder",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "task_specific_params",
    "problem_type",
];

/// Names of one kind that no family understands, with the numbers of layers left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unknown {
    /// Keys of `config.json`.
    pub keys: Vec<String>,
    /// Weights, `*` for each number in their names.
    pub weights: Vec<String>,
}

impl Unknown {
    /// What no family understands of the model in a directory, where its `model_type` is of none.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn of(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("config.json");
        if files::is_dir(&path) || !files::is_there(&path) {
            return Ok(None);
        }
        let bytes = files::read_json(&path)?;
        let object = json::parse_object(&path, &json::of_python(&bytes))?;
        if super::knows(&Fields::new(&path, &object))? {
            return Ok(None);
        }
        let text = match object.get("text_config") {
            Some(Value::Object(text)) => text,
            _ => &object,
        };
        Ok(Some(Self::beside(text, &Checkpoint::open(dir)?)))
    }

    fn beside(object: &Object, checkpoint: &Checkpoint) -> Self {
        let names: BTreeSet<&str> = FAMILIES.iter().flat_map(|family| fields(&family.shared.names)).collect();
        let known = |key: &str| KEYS.contains(&key) || names.contains(key);
        let keys = object.keys().filter(|key| !known(key)).cloned().collect();
        let modules: BTreeSet<String> = FAMILIES.iter().flat_map(|family| family.module_patterns()).collect();
        let weights: BTreeSet<String> = checkpoint
            .tensors()
            .map(|info| pattern(info.name()))
            .filter(|name| !name.rsplit_once('.').is_some_and(|(module, _)| modules.contains(module)))
            .collect();
        Self { keys, weights: weights.into_iter().collect() }
    }
}

fn fields(names: &Names) -> impl Iterator<Item = &'static str> + use<> {
    let own = [names.hidden_size, names.intermediate_size, names.layers, names.heads, names.context];
    own.into_iter().chain([names.eps, names.act]).chain(names.kv_heads)
}

/// A name with `*` for each number in it.
fn pattern(name: &str) -> String {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').map(|part| if number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

impl Family {
    /// The modules of a small model of this family, with `*` for the numbers of layers.
    fn module_patterns(&'static self) -> Vec<String> {
        let smallest = self.smallest();
        smallest.map(|of| of.weights().names().map(pattern).collect()).unwrap_or_default()
    }

    /// A model of one layer.
    pub(super) fn smallest(&'static self) -> Result<Architecture> {
        let names = &self.shared.names;
        let sizes = [
            ("vocab_size", 8),
            (names.hidden_size, 16),
            (names.intermediate_size, 8),
            (names.layers, 1),
            (names.heads, 2),
            (names.kv_heads.unwrap_or("num_key_value_heads"), 1),
            ("sliding_window", 4),
            // Of experts, where the family has no number of its own.
            ("n_routed_experts", 2),
            ("num_experts_per_tok", 1),
            ("n_shared_experts", 1),
            ("n_group", 1),
            ("topk_group", 1),
            // Of Gemma 3n, whose layers share keys by default.
            ("num_kv_shared_layers", 0),
            // Of Mamba 2, whose heads make up a multiple of the width.
            ("mamba_n_heads", 2),
        ];
        let mut object = Object::new();
        for (name, size) in sizes {
            object.insert(name.to_owned(), Value::UInt(size));
        }
        // Of Kimi's delta nets.
        let mut nets = Object::new();
        nets.insert("kda_layers".to_owned(), Value::Array(vec![Value::UInt(1)]));
        nets.extend(
            [("num_heads", 2), ("head_dim", 4)].map(|(name, size)| (name.to_owned(), Value::UInt(size))),
        );
        object.insert("linear_attn_config".to_owned(), Value::Object(nets));
        // With an output head of its own, which many do not have.
        object.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
        self.read(&Fields::new(Path::new("config.json"), &object), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_a_smallest_model() {
        for family in FAMILIES {
            let smallest = family.smallest().unwrap_or_else(|error| panic!("{}: {error}", family.model_type));
            // One of each kind, where layers are of several kinds by default.
            assert!((1..=2).contains(&smallest.states().len()), "{}", family.model_type);
            assert!(family.module_patterns().len() >= 6, "{}", family.model_type);
        }
    }

    #[test]
    fn numbers_in_names_are_left_out() {
        assert_eq!(
            pattern("model.layers.12.mlp.experts.3.w1.weight"),
            "model.layers.*.mlp.experts.*.w1.weight"
        );
    }
}
