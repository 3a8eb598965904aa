//! The configuration against the weights: where they differ, the weights are right and the configuration is refused.

use super::{Config, Family};
use crate::error::{Error, Result};
use crate::tensor::Shape;
use crate::weights::{Checkpoint, quantized};

impl Config {
    /// Checks the dimensions of the configuration against the shapes of the checkpoint's matrices, whatever their
    /// type: of quantized ones, the shapes that they stand for. Tensors that are missing are left to [`Checkpoint::get`], which names them.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, its value, and the tensor that contradicts it.
    pub fn check_weights(&self, checkpoint: &Checkpoint) -> Result<()> {
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let check = |module: &str, rows: (&str, usize), columns: (&str, usize)| {
            let name = format!("{module}.weight");
            let packed = self
                .quantization
                .as_ref()
                .and_then(|of| quantized::describe(checkpoint, of, module, Some(columns.1)));
            let shape: Shape = match (packed, checkpoint.find(&name)) {
                (Some((_, shape)), _) => shape.as_slice().into(),
                // Words, whose number says nothing about columns: the loader finds what is wrong.
                (None, Some(info)) if info.dtype_name() == "U32" => return Ok(()),
                (None, Some(info)) => info.shape().into(),
                (None, None) => return Ok(()),
            };
            let got = match *shape {
                [r, c] if (r, c) == (rows.1, columns.1) => return Ok(()),
                [r, _] if r != rows.1 => (rows, format!("{r}, the rows of {name} {shape:?}")),
                [_, c] => (columns, format!("{c}, the columns of {name} {shape:?}")),
                _ => (rows, format!("{name} to be a matrix, and it is {shape:?}")),
            };
            let ((field, value), expected) = got;
            let file = match checkpoint.gguf() {
                Some(_) => checkpoint.path().to_owned(),
                None => checkpoint.path().join("config.json"),
            };
            Err(Error::config(&file, field, value, expected))
        };

        let (vocab, hidden) = (("vocab_size", self.vocab_size), ("hidden_size", self.hidden_size));
        let heads = ("num_attention_heads * head_dim", q);
        let kv_heads = ("num_key_value_heads * head_dim", kv);
        let inner = ("intermediate_size", self.intermediate_size);
        check("model.embed_tokens", vocab, hidden)?;
        if !self.tie_word_embeddings {
            check("lm_head", vocab, hidden)?;
        }
        for layer in 0..self.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            if self.family == Family::Phi3 {
                let fused = ("(num_attention_heads + 2 * num_key_value_heads) * head_dim", q + 2 * kv);
                check(&name("self_attn.qkv_proj"), fused, hidden)?;
                check(
                    &name("mlp.gate_up_proj"),
                    ("2 * intermediate_size", 2 * self.intermediate_size),
                    hidden,
                )?;
            } else {
                check(&name("self_attn.q_proj"), heads, hidden)?;
                check(&name("self_attn.k_proj"), kv_heads, hidden)?;
                check(&name("self_attn.v_proj"), kv_heads, hidden)?;
            }
            if self.family == Family::Phi {
                check(&name("self_attn.dense"), hidden, heads)?;
                check(&name("mlp.fc1"), inner, hidden)?;
                check(&name("mlp.fc2"), hidden, inner)?;
            } else {
                check(&name("self_attn.o_proj"), hidden, heads)?;
                check(&name("mlp.down_proj"), hidden, inner)?;
            }
            if !matches!(self.family, Family::Phi | Family::Phi3) {
                check(&name("mlp.gate_proj"), inner, hidden)?;
                check(&name("mlp.up_proj"), inner, hidden)?;
            }
        }
        Ok(())
    }
}
