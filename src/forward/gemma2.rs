//! `gemma2`: norms before and after each part, GeGLU, soft-capped scores and logits, windows on alternating layers.
//! Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size".

use super::blocks::{Attention, Mlp, RmsNorm, Vocabulary};
use super::step::Step;
use super::{Forward, Loader};
use crate::backend::Tensor;
use crate::error::Result;
use crate::tensor::DType;

/// One layer; fields are named as in the checkpoint.
#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

#[derive(Debug)]
struct Gemma2 {
    vocabulary: Vocabulary,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

pub(super) fn load(loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
    let hidden = loader.config.hidden_size;
    let norm = |name: &str| RmsNorm::with_offset(loader, name, hidden, 1.0);
    let layers = loader.layers(|loader, layer, prefix| {
        Ok(Layer {
            input_layernorm: norm(&format!("{prefix}.input_layernorm"))?,
            self_attn: Attention::load(loader, layer, &format!("{prefix}.self_attn"))?,
            post_attention_layernorm: norm(&format!("{prefix}.post_attention_layernorm"))?,
            pre_feedforward_layernorm: norm(&format!("{prefix}.pre_feedforward_layernorm"))?,
            mlp: Mlp::gated(loader, &format!("{prefix}.mlp"))?,
            post_feedforward_layernorm: norm(&format!("{prefix}.post_feedforward_layernorm"))?,
        })
    })?;
    let vocabulary = Vocabulary::load(loader)?;
    // The checkpoint's authors round √D to the type of the weights.
    let scale = (hidden as f32).sqrt();
    let scale = match vocabulary.table().dtype() {
        DType::F32 => scale,
        DType::F16 => half::f16::from_f32(scale).to_f32(),
        DType::BF16 => half::bf16::from_f32(scale).to_f32(),
    };
    Ok(Box::new(Gemma2 { vocabulary: vocabulary.scaled(scale), layers, norm: norm("model.norm")? }))
}

impl Forward for Gemma2 {
    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let mut x = self.vocabulary.embed(step)?; // [T, D]
        step.tap(|| "embed_tokens".to_owned(), &x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let h = layer.input_layernorm.forward(step, &x)?;
            let attended = layer.self_attn.forward(step, &h)?;
            let attended = layer.post_attention_layernorm.forward(step, &attended)?;
            let h;
            [x, h] = layer.pre_feedforward_layernorm.add_forward(step, &x, &attended)?;
            let fed = layer.mlp.forward(step, &h)?;
            let fed = layer.post_feedforward_layernorm.forward(step, &fed)?;
            x = step.add(&x, &fed)?;
            step.tap(|| format!("layers.{i}"), &x)?;
        }
        self.norm.forward(step, &x)
    }

    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(step, hidden)
    }
}
