//! Encoders: what BERT and its kin are, each a description of the same few parts. Every token sees the whole text, or a window
//! around it. Norms come behind each part or, where there is a last one behind all layers, before it.

use super::blocks::{Attention, LayerNorm, Linear, Mlp};
use super::list::{Dim, GgufSpec, InMlx, ModuleSpec, WeightList};
use super::loader::Loader;
use super::pooling::Head;
use super::step::Step;
use super::{Arguments, Forward};
use crate::backend::ops::{Backend, StateSpec};
use crate::backend::{PreparedMatrix, PreparedVector, Tensor};
use crate::config::{Config, Rotation};
use crate::error::{Error, Result};
use crate::json::{Fields, Value};
use crate::tensor::Weight;
use crate::weights::Form;

/// The projections of attention.
#[derive(Debug, Clone, Copy)]
pub(super) enum EncoderQkv {
    /// Three modules.
    Apart([&'static str; 3]),
    /// One, whose rows are queries, then keys, then values.
    Fused(&'static str),
}

/// The modules of the feed-forward part.
#[derive(Debug, Clone, Copy)]
pub(super) enum EncoderMlp {
    /// In and out.
    Plain([&'static str; 2]),
    /// Gate, up, down.
    Gated([&'static str; 3]),
    /// Gate over up in one module, and down.
    GatedFused([&'static str; 2]),
}

/// An encoder. Names of a layer's modules are those within it.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    /// What all families share.
    pub config: Config,
    /// The embedding.
    pub words: &'static str,
    /// The embedding of positions, in families that do not rotate.
    pub positions: Option<&'static str>,
    /// The embedding of which of two texts a token is of, and its rows.
    pub segments: Option<(&'static str, usize)>,
    /// The table of what attention adds to the scores of keys by distance, `[buckets, H]`, in families that have one.
    pub relative: Option<&'static str>,
    /// The norm of their sum.
    pub embedding_norm: &'static str,
    /// What the names of layers begin with, up to their numbers.
    pub layers: &'static str,
    /// Queries, keys and values.
    pub qkv: EncoderQkv,
    /// The output of attention.
    pub output: &'static str,
    /// The norm of attention: of the stream and what attention adds or, before it, of what attention reads. Of these the first
    /// layer has none: it would follow that of the embedding.
    pub attention_norm: &'static str,
    /// The feed-forward part.
    pub mlp: EncoderMlp,
    /// Its norm, likewise.
    pub mlp_norm: &'static str,
    /// The norm behind all layers, where norms come before parts.
    pub last_norm: Option<&'static str>,
    /// What it classifies by.
    pub head: Option<Head>,
}

impl Encoder {
    /// Boxed, as a family hands it on.
    pub fn boxed(mut self) -> Result<Box<dyn Arguments>> {
        self.config.bidirectional = true;
        Ok(Box::new(self))
    }

    fn path(&self, layer: usize, name: &str) -> String {
        format!("{}.{layer}.{name}", self.layers)
    }

    /// The norm of attention of a layer, where it has one.
    fn attention_norm(&self, layer: usize) -> Option<&'static str> {
        (layer > 0 || self.last_norm.is_none()).then_some(self.attention_norm)
    }

    fn list_layer(&self, list: &mut WeightList, layer: usize) {
        let config = &self.config;
        let gguf = |name: &str| format!("blk.{layer}.{name}");
        let norms =
            [(self.attention_norm(layer), "attn_output_norm"), (Some(self.mlp_norm), "layer_output_norm")];
        for (name, there) in norms {
            let Some(name) = name else { continue };
            list.push(norm_spec([self.path(layer, name), gguf(there)], config.hidden_dim()));
        }
        let matrix = |name: &str, there: &str, rows: Dim, columns: Dim| {
            matrix_spec([self.path(layer, name), gguf(there)], rows, columns, true)
        };
        let hidden = || config.hidden_dim();
        match self.qkv {
            EncoderQkv::Apart(names) => {
                let dims = [config.query_dim(layer), config.key_dim(), config.key_dim()];
                let mut first = 0;
                for ((name, there), rows) in names.into_iter().zip(["attn_q", "attn_k", "attn_v"]).zip(dims) {
                    let within = first..first + rows.size;
                    first = within.end;
                    let mut spec = matrix(name, there, rows, hidden());
                    let fused = spec.gguf.iter_mut().map(|spec| &mut spec.fused);
                    fused.for_each(|fused| fused.push((gguf("attn_qkv"), within.clone())));
                    list.push(spec);
                }
            }
            EncoderQkv::Fused(name) => list.push(matrix(name, "attn_qkv", config.qkv_dim(), hidden())),
        }
        list.push(matrix(self.output, "attn_output", hidden(), config.query_dim(layer)));
        match self.mlp {
            EncoderMlp::Plain([up, down]) => {
                list.push(matrix(up, "ffn_up", config.inner_dim(), hidden()));
                list.push(matrix(down, "ffn_down", hidden(), config.inner_dim()));
            }
            EncoderMlp::Gated([gate, up, down]) => {
                list.push(matrix(gate, "ffn_gate", config.inner_dim(), hidden()));
                list.push(matrix(up, "ffn_up", config.inner_dim(), hidden()));
                list.push(matrix(down, "ffn_down", hidden(), config.inner_dim()));
            }
            EncoderMlp::GatedFused([both, down]) => {
                let rows = Dim { field: "2 * intermediate_size", size: 2 * config.intermediate_size };
                list.push(matrix(both, "ffn_up", rows, hidden()));
                list.push(matrix(down, "ffn_down", hidden(), config.inner_dim()));
            }
        }
    }

    fn load_layer(&self, loader: &Loader<'_>, layer: usize, bias: Option<&PreparedVector>) -> Result<Layer> {
        let config = &self.config;
        let linear = |name: &str| Linear::load(loader, &self.path(layer, name));
        let norm = |name: &str| LayerNorm::load(loader, &self.path(layer, name), 0.0);
        let qkv = match self.qkv {
            EncoderQkv::Apart([q, k, v]) => [linear(q)?, linear(k)?, linear(v)?],
            EncoderQkv::Fused(name) => {
                let (width, kv_width) = (config.query_dim(layer).size, config.key_dim().size);
                let parts = [("q", width), ("k", kv_width), ("v", kv_width)];
                Linear::split(loader, &self.path(layer, name), parts)?
            }
        };
        let (activation, inner) = (config.hidden_act, config.intermediate_size);
        let mlp = match self.mlp {
            EncoderMlp::Plain([up, down]) => Mlp::Plain { fc1: linear(up)?, fc2: linear(down)?, activation },
            EncoderMlp::Gated([gate, up, down]) => {
                Mlp::Gated { gate: linear(gate)?, up: linear(up)?, down: linear(down)?, activation }
            }
            EncoderMlp::GatedFused([both, down]) => {
                let parts = [("gate", inner), ("up", inner)];
                let [gate, up] = Linear::split(loader, &self.path(layer, both), parts)?;
                Mlp::Gated { gate, up, down: linear(down)?, activation }
            }
        };
        let mut attention = Attention::of(config, layer, qkv, linear(self.output)?);
        if let Some(bias) = bias {
            attention = attention.with_bias(bias.clone());
        }
        Ok(Layer {
            attention,
            attention_norm: self.attention_norm(layer).map(norm).transpose()?,
            mlp,
            mlp_norm: norm(self.mlp_norm)?,
        })
    }
}

/// Rows of a table of distances: half of them are of keys behind their query.
pub(super) const BUCKETS: usize = 32;
/// From this distance on, all have one row.
const REACH: i64 = 128;

/// The row of a key that lies `away` behind its query: one for each of the nearest, then more and more together.
fn bucket(away: i64) -> usize {
    const SIDE: usize = BUCKETS / 2;
    const EXACT: usize = SIDE / 2;
    let (side, distance) = (if away > 0 { SIDE } else { 0 }, away.unsigned_abs() as usize);
    if distance < EXACT {
        return side + distance;
    }
    // In `f32`, as the tables were trained.
    let far = (distance as f64 / EXACT as f64).ln() as f32;
    let whole = (REACH as f64 / EXACT as f64).ln() as f32;
    side + (EXACT + (far / whole * (SIDE - EXACT) as f32) as usize).min(SIDE - 1)
}

/// A table of distances `[buckets, H]` as attention takes it, `[H * (2 r + 1)]`.
fn by_distance(table: &Weight) -> Result<Weight> {
    let values = table.widened()?;
    let heads = values.len() / BUCKETS;
    let of = |head: usize| (-REACH..=REACH).map(move |away| (bucket(away), head));
    let all: Vec<f32> = (0..heads).flat_map(of).map(|(bucket, head)| values[bucket * heads + head]).collect();
    Ok(Weight::of_values(table.name(), &[all.len()], all))
}

/// A module by its name in a Hugging Face checkpoint and in GGUF.
fn matrix_spec([name, gguf]: [String; 2], rows: Dim, columns: Dim, bias: bool) -> ModuleSpec {
    let gguf = Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() });
    ModuleSpec { name, rows, columns: Some(columns), bias, form: Form::Plain, gguf, stacked: Vec::new() }
}

fn norm_spec(names: [String; 2], rows: Dim) -> ModuleSpec {
    let none = Dim { field: "", size: 0 };
    ModuleSpec { columns: None, ..matrix_spec(names, rows, none, true) }
}

/// The numbers of a model for sequence classification, by the class that its configuration names; none of another.
pub(super) fn labels(fields: &Fields<'_>) -> Result<Option<usize>> {
    let classes = fields.list("architectures")?.unwrap_or_default();
    let classifies =
        |class: &Value| matches!(class, Value::String(name) if name.ends_with("ForSequenceClassification"));
    if !classes.iter().any(classifies) {
        return Ok(None);
    }
    let named = fields.object("id2label")?.map(|labels| labels.members().len());
    Ok(Some(named.or(fields.size("num_labels", 1, 1 << 16)?).unwrap_or(2)))
}

/// The matrices that are read as numbers: those of heads, and of distances.
const EXACT: &[&str] = &[
    "relative_attention_bias",
    "pooler.dense",
    "classifier",
    "classifier.dense",
    "classifier.out_proj",
    "head.dense",
    "pre_classifier",
];

/// The dimension of what a head of `labels` gives.
pub(super) fn labels_dim(labels: usize) -> Dim {
    Dim { field: "num_labels", size: labels }
}

impl Arguments for Encoder {
    fn is_encoder(&self) -> bool {
        true
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    fn weights(&self) -> WeightList {
        let config = &self.config;
        let mut list = WeightList::default();
        let mut table = |name: &str, gguf: &str, rows: Dim| {
            let names = [name, gguf].map(str::to_owned);
            list.push(matrix_spec(names, rows, config.hidden_dim(), false));
        };
        table(self.words, "token_embd", config.vocab_dim());
        if let Some(name) = self.positions {
            table(name, "position_embd", config.positions_dim());
        }
        if let Some((name, size)) = self.segments {
            table(name, "token_types", Dim { field: "type_vocab_size", size });
        }
        if let Some(name) = self.relative {
            let columns = Dim { field: "num_attention_heads", size: config.num_attention_heads };
            let rows = Dim { field: "relative_attention_num_buckets", size: BUCKETS };
            list.push(matrix_spec([name.to_owned(), "attn_rel_b".to_owned()], rows, columns, false));
        }
        let norm = |name: &str, gguf: &str| norm_spec([name, gguf].map(str::to_owned), config.hidden_dim());
        list.push(norm(self.embedding_norm, "token_embd_norm"));
        (0..config.num_hidden_layers).for_each(|layer| self.list_layer(&mut list, layer));
        if let Some(name) = self.last_norm {
            list.push(norm(name, "output_norm"));
        }
        if let Some(head) = &self.head {
            head.list(&mut list);
        }
        list.set_in_mlx(InMlx { exact: EXACT, ..InMlx::default() });
        list
    }

    /// Keys and values live for one step. A window lies on both sides, so that nothing is behind it before a text ends.
    fn states(&self) -> Vec<StateSpec> {
        let (heads, dim) = (self.config.num_key_value_heads, self.config.head_dim);
        vec![StateSpec::Kv { heads, k_dim: dim, v_dim: dim, window: None }; self.config.num_hidden_layers]
    }

    fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
        let table = |name: &str| Ok::<_, Error>(loader.ops.matrix(&loader.matrix(name)?));
        let bias = self.relative.map(|name| by_distance(&loader.vector(name)?)).transpose()?;
        let bias = bias.map(|bias| loader.ops.vector(&bias));
        let layers = 0..self.config.num_hidden_layers;
        Ok(Box::new(EncoderPass {
            states: self.states(),
            model_type: self.config.model_type,
            words: table(self.words)?,
            segments: self.segments.map(|(name, _)| table(name)).transpose()?,
            positions: self.positions.map(table).transpose()?,
            embedding_norm: LayerNorm::load(loader, self.embedding_norm, 0.0)?,
            layers: layers
                .map(|layer| self.load_layer(loader, layer, bias.as_ref()))
                .collect::<Result<_>>()?,
            last_norm: self.last_norm.map(|name| LayerNorm::load(loader, name, 0.0)).transpose()?,
        }))
    }
}

/// One block.
#[derive(Debug)]
struct Layer {
    attention: Attention,
    attention_norm: Option<LayerNorm>,
    mlp: Mlp,
    mlp_norm: LayerNorm,
}

impl Layer {
    /// `[T, D]` → `[T, D]`, norms behind the parts.
    fn norms_behind(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let attended = self.attention.forward(step, x)?;
        let mut x = step.add(x, &attended)?;
        if let Some(norm) = &self.attention_norm {
            x = norm.forward(step, &x)?;
        }
        let fed = self.mlp.forward(step, &x)?;
        self.mlp_norm.forward(step, &step.add(&x, &fed)?)
    }

    /// The same with norms before them.
    fn norms_before(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let normed = self.attention_norm.as_ref().map(|norm| norm.forward(step, x)).transpose()?;
        let attended = self.attention.forward(step, normed.as_ref().unwrap_or(x))?;
        let x = step.add(x, &attended)?;
        let normed = self.mlp_norm.forward(step, &x)?;
        let fed = self.mlp.forward(step, &normed)?;
        step.add(&x, &fed)
    }
}

/// The forward pass of an encoder.
#[derive(Debug)]
struct EncoderPass {
    states: Vec<StateSpec>,
    model_type: &'static str,
    words: PreparedMatrix,             // [V, D]
    segments: Option<PreparedMatrix>,  // [S, D]
    positions: Option<PreparedMatrix>, // [P, D]
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    last_norm: Option<LayerNorm>,
}

impl Forward for EncoderPass {
    fn states(&self) -> Vec<StateSpec> {
        self.states.clone()
    }

    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let mut x = step.embedding(&self.words, 1.0)?; // [T, D]
        if let Some(segments) = &self.segments {
            x = step.add(&x, &step.segment_rows(segments)?)?;
        }
        if let Some(positions) = &self.positions {
            x = step.add(&x, &step.position_rows(positions)?)?;
        }
        x = self.embedding_norm.forward(step, &x)?;
        step.tap(|| "embeddings".to_owned(), &x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = match &self.last_norm {
                None => layer.norms_behind(step, &x)?,
                Some(_) => layer.norms_before(step, &x)?,
            };
            step.tap(|| format!("layers.{i}"), &x)?;
        }
        match &self.last_norm {
            Some(norm) => norm.forward(step, &x),
            None => Ok(x),
        }
    }

    fn logits(&self, _: &Step<'_>, _: &Tensor) -> Result<Tensor> {
        Err(Error::no_text(self.model_type))
    }
}

/// Which layers rotate: none.
pub(super) fn unrotated(config: &mut Config) {
    config.rotations = vec![Rotation::None; config.num_hidden_layers];
}
