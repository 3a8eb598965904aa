//! A dense decoder's layers, from a checkpoint.

use super::super::blocks::{Attention, Linear, Mlp, Norm};
use super::super::loader::Loader;
use super::decoder::{AttentionPart, FeedForward, Layer};
use super::{Dense, HeadNormOf, MlpNames, Name, Qkv};
use crate::backend::ops::{Backend, GateKind};
use crate::config::Rotation;
use crate::error::Result;

impl Dense {
    /// The last projection of a part: what parallel parts give is summed over the ranks together.
    fn part(&self, last: Linear) -> Linear {
        if self.parallel { last.unsummed() } else { last }
    }

    fn load_mlp(&self, loader: &Loader<'_>, layer: usize) -> Result<Mlp> {
        let [prefix, _] = self.prefixes(layer);
        let path = |name: Name| format!("{prefix}.{}", name.0);
        let (activation, inner) = (self.config.hidden_act, self.config.intermediate_size);
        Ok(match self.mlp {
            MlpNames::Gated([gate, up, down]) => Mlp::Gated {
                gate: Linear::load(loader, &path(gate))?,
                up: Linear::load(loader, &path(up))?,
                down: self.part(Linear::load(loader, &path(down))?),
                activation,
            },
            MlpNames::GatedFused([gate_up, down]) => {
                let [gate, up] = Linear::split(loader, &path(gate_up), [("gate", inner), ("up", inner)])?;
                Mlp::Gated { gate, up, down: self.part(Linear::load(loader, &path(down))?), activation }
            }
            MlpNames::Plain([fc1, fc2]) => Mlp::Plain {
                fc1: Linear::load(loader, &path(fc1))?,
                fc2: self.part(Linear::load(loader, &path(fc2))?),
                activation,
            },
        })
    }

    pub(super) fn load_layer(&self, loader: &Loader<'_>, layer: usize) -> Result<Layer> {
        let config = &self.config;
        let [prefix, _] = self.prefixes(layer);
        let path = |name: Name| format!("{prefix}.{}", name.0);
        let norm = |name: Option<Name>| name.map(|name| self.norm(loader, &path(name))).transpose();
        let out_norm = |name: Option<Name>| -> Result<Option<Norm>> {
            Ok(match (norm(name)?, self.out_eps) {
                (Some(norm), Some(eps)) => Some(norm.with_eps(eps)),
                (norm, _) => norm,
            })
        };
        let (width, kv_width) = (config.query_dim(layer).size, config.key_dim().size);
        let mut gate = None;
        let qkv = match self.qkv {
            Qkv::Latent => None,
            _ if !self.attends(layer) => None,
            Qkv::Apart([q, k, v]) if self.gated_queries => {
                let [own, of] = Linear::split(loader, &path(q), [("q", width), ("gate", width)])?;
                gate = Some(of);
                Some([own, Linear::load(loader, &path(k))?, Linear::load(loader, &path(v))?])
            }
            Qkv::Apart([q, k, v]) => Some([
                Linear::load(loader, &path(q))?,
                Linear::load(loader, &path(k))?,
                Linear::load(loader, &path(v))?,
            ]),
            Qkv::Fused { name, .. } => {
                let parts = [("q", width), ("k", kv_width), ("v", kv_width)];
                Some(Linear::split(loader, &path(name), parts)?)
            }
        };
        let attention = match (qkv, &config.latent) {
            _ if let Some(delta) = self.delta_of(layer) => {
                AttentionPart::Delta(Box::new(delta.load(loader, layer, &prefix)?))
            }
            _ if let Some(conv) = self.conv_of(layer) => {
                AttentionPart::Conv(Box::new(conv.load(loader, config, layer, &prefix)?))
            }
            (Some(qkv), _) => {
                let attention = self.load_attention(loader, layer, qkv)?;
                AttentionPart::Grouped(match gate {
                    Some(gate) => attention.with_gate(gate, GateKind::Sigmoid),
                    None => attention,
                })
            }
            (None, Some(latent)) => AttentionPart::Latent(Box::new(latent.load(loader, layer, &prefix)?)),
            (None, None) => unreachable!("latent attention of no width"),
        };
        let mlp = match self.sparse_of(layer) {
            Some(sparse) => FeedForward::Sparse(Box::new(sparse.load(loader, layer, &prefix)?)),
            None => FeedForward::Dense(self.load_mlp(loader, layer)?),
        };
        let [input_norm, attention_norm, mlp_norm, mlp_out_norm] = self.norms_of(layer);
        Ok(Layer {
            input_norm: norm(input_norm)?,
            attention,
            attention_norm: out_norm(attention_norm)?,
            mlp_norm: norm(mlp_norm)?,
            mlp,
            mlp_out_norm: out_norm(mlp_out_norm)?,
        })
    }

    fn load_attention(&self, loader: &Loader<'_>, layer: usize, qkv: [Linear; 3]) -> Result<Attention> {
        let config = &self.config;
        let [prefix, _] = self.prefixes(layer);
        let path = |name: Name| format!("{prefix}.{}", name.0);
        let output = self.part(Linear::load(loader, &path(self.output))?);
        let mut attention = Attention::of(config, layer, qkv, output);
        if let Some(of) = self.head_norms {
            let heads = [config.heads(layer), config.num_key_value_heads];
            let load = |(name, heads)| match of.of {
                HeadNormOf::EachHead => Norm::of_heads(loader, &path(name), heads),
                HeadNormOf::Head | HeadNormOf::Row => {
                    Norm::load(loader, &path(name), self.stored(loader, of.kind))
                }
            };
            let [q, k] = [(of.names[0], heads[0]), (of.names[1], heads[1])].map(load);
            attention = attention.with_norms([q?, k?], of.after_rope);
        }
        let rotates = config.rotations.get(layer) != Some(&Rotation::None);
        if let Some(of) = self.plain_head_norms.filter(|of| rotates || !of.after_rope) {
            let norms = [of.queries, 1.0].map(|by| Norm::plain(loader, config.head_dim, by));
            attention = attention.with_norms(norms, of.after_rope);
        }
        if let Some(gate) = self.attention_gate {
            attention = attention.with_gate(Linear::load(loader, &path(gate.name))?, gate.kind);
        }
        if let Some(sinks) = self.sinks {
            let all = loader.vector(&path(sinks))?;
            let own = all.rows("sinks", self.rank.share(0..all.len()));
            attention = attention.with_sinks(loader.ops.vector(&own));
        }
        Ok(attention)
    }
}
