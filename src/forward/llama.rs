//! `llama`: pre-norm, rotary grouped-query attention, SwiGLU. Mistral and Qwen differ by what their checkpoints hold.
//! Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models".

use super::blocks::{Attention, Mlp, RmsNorm, Vocabulary};
use super::step::Step;
use super::{Forward, Loader};
use crate::backend::Tensor;
use crate::error::Result;

/// One layer; fields are named as in the checkpoint.
#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

#[derive(Debug)]
struct Llama {
    vocabulary: Vocabulary,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

/// The family as its checkpoint names it.
pub(super) fn load(loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
    load_with(loader, Attention::load, Mlp::gated)
}

/// A family whose parts are loaded in another way.
pub(super) fn load_with(
    loader: &Loader<'_>,
    attention: impl Fn(&Loader<'_>, usize, &str) -> Result<Attention>,
    mlp: impl Fn(&Loader<'_>, &str) -> Result<Mlp>,
) -> Result<Box<dyn Forward>> {
    let hidden = loader.config.hidden_size;
    let layers = loader.layers(|loader, layer, prefix| {
        Ok(Layer {
            input_layernorm: RmsNorm::load(loader, &format!("{prefix}.input_layernorm"), hidden)?,
            self_attn: attention(loader, layer, &format!("{prefix}.self_attn"))?,
            post_attention_layernorm: RmsNorm::load(
                loader,
                &format!("{prefix}.post_attention_layernorm"),
                hidden,
            )?,
            mlp: mlp(loader, &format!("{prefix}.mlp"))?,
        })
    })?;
    let norm = RmsNorm::load(loader, "model.norm", hidden)?;
    Ok(Box::new(Llama { vocabulary: Vocabulary::load(loader)?, layers, norm }))
}

impl Forward for Llama {
    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let mut x = self.vocabulary.embed(step)?; // [T, D]
        step.tap(|| "embed_tokens".to_owned(), &x)?;
        let mut h = match self.layers.first() {
            Some(first) => first.input_layernorm.forward(step, &x)?,
            None => self.norm.forward(step, &x)?,
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let attended = layer.self_attn.forward(step, &h)?;
            [x, h] = layer.post_attention_layernorm.add_forward(step, &x, &attended)?;
            let fed = layer.mlp.forward(step, &h)?;
            let next = self.layers.get(i + 1).map_or(&self.norm, |next| &next.input_layernorm);
            [x, h] = next.add_forward(step, &x, &fed)?;
            step.tap(|| format!("layers.{i}"), &x)?;
        }
        Ok(h)
    }

    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(step, hidden)
    }
}
