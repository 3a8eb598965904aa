//! `phi`: attention and feed-forward side by side under one layer norm, biases everywhere, partial rotary embedding.
//! Li et al. 2023, "Textbooks Are All You Need II: phi-1.5".

use super::blocks::{Attention, HeadNorm, LayerNorm, Linear, Mlp, Vocabulary};
use super::step::Step;
use super::{Forward, Loader};
use crate::backend::Tensor;
use crate::error::Result;

/// One layer; fields are named as in the checkpoint.
#[derive(Debug)]
struct Layer {
    input_layernorm: LayerNorm,
    self_attn: Attention,
    mlp: Mlp,
}

#[derive(Debug)]
struct Phi {
    vocabulary: Vocabulary,
    layers: Vec<Layer>,
    final_layernorm: LayerNorm,
}

pub(super) fn load(loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
    let config = loader.config;
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let width = config.num_attention_heads * config.head_dim;
    let kv_width = config.num_key_value_heads * config.head_dim;
    let layers = loader.layers(|loader, layer, prefix| {
        let qkv = [
            Linear::load(loader, &format!("{prefix}.self_attn.q_proj"), width, hidden)?,
            Linear::load(loader, &format!("{prefix}.self_attn.k_proj"), kv_width, hidden)?,
            Linear::load(loader, &format!("{prefix}.self_attn.v_proj"), kv_width, hidden)?,
        ];
        let dense = Linear::load(loader, &format!("{prefix}.self_attn.dense"), hidden, width)?;
        let mut self_attn = Attention::of(loader, layer, qkv, dense);
        if config.qk_layernorm {
            let norm = |name: &str| {
                let name = format!("{prefix}.self_attn.{name}_layernorm");
                LayerNorm::load(loader, &name, config.head_dim).map(HeadNorm::Layer)
            };
            self_attn = self_attn.with_norms([norm("q")?, norm("k")?]);
        }
        Ok(Layer {
            input_layernorm: LayerNorm::load(loader, &format!("{prefix}.input_layernorm"), hidden)?,
            self_attn,
            mlp: Mlp::Plain {
                fc1: Linear::load(loader, &format!("{prefix}.mlp.fc1"), inner, hidden)?,
                fc2: Linear::load(loader, &format!("{prefix}.mlp.fc2"), hidden, inner)?,
                activation: config.hidden_act,
            },
        })
    })?;
    let final_layernorm = LayerNorm::load(loader, "model.final_layernorm", hidden)?;
    Ok(Box::new(Phi { vocabulary: Vocabulary::load(loader)?, layers, final_layernorm }))
}

impl Forward for Phi {
    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let mut x = self.vocabulary.embed(step)?; // [T, D]
        step.tap(|| "embed_tokens".to_owned(), &x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let h = layer.input_layernorm.forward(step, &x)?;
            let attended = layer.self_attn.forward(step, &h)?;
            let fed = layer.mlp.forward(step, &h)?;
            x = step.add(&step.add(&attended, &fed)?, &x)?;
            step.tap(|| format!("layers.{i}"), &x)?;
        }
        self.final_layernorm.forward(step, &x)
    }

    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(step, hidden)
    }
}
