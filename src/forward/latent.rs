//! Latent attention: keys and values of all heads are made of one vector of a token, which is what is kept, beside a part of the keys
//! that rotates and that heads share. DeepSeek-AI 2024, "DeepSeek-V2", section 2.1.
//!
//! What makes keys of the vector is applied to the queries in its place, and what makes values to what attention gives: then a
//! token is multiplied by what is kept of each token before it, and by nothing else. It is always done so, prompt or not: the bits of
//! a token do not depend on how many come with it.

use super::blocks::{Linear, NormKind, RmsNorm, norm_spec};
use super::gguf_members::LLAMA_CPP;
use super::list::{Dim, GgufSpec, ModuleSpec, Name, StackSpec, WeightList};
use super::loader::Loader;
use super::sparse::MOST;
use super::step::Step;
use crate::alloc;
use crate::backend::ops::{Backend, KvRows, StateSpec};
use crate::backend::{Op, PreparedStack, Tensor};
use crate::config::rope;
use crate::config::{Config, LatentDims, Names, QueryScaling, RopeScaling, Rotation, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::quant::{Matrix, Stack};
use crate::tensor::Weight;
use crate::weights::Form;

/// What absence means for the fields of latent attention.
pub(super) const SHARED: Shared = Shared {
    names: Names { kv_heads: None, head_dim: "qk_rope_head_dim", ..Names::LLAMA },
    head_dim: Some(64),
    bos: None,
    eos: &[],
    ..Shared::LLAMA
};

/// Added to the mean squares of the norms of latent vectors, whatever `rms_norm_eps` says in a directory.
pub(super) const EPS: f32 = 1e-6;

const OUTPUT: Name = ("self_attn.o_proj", "attn_output");
const QUERY: Name = ("self_attn.q_proj", "attn_q");
const QUERY_DOWN: Name = ("self_attn.q_a_proj", "attn_q_a");
const QUERY_NORM: Name = ("self_attn.q_a_layernorm", "attn_q_a_norm");
const QUERY_UP: Name = ("self_attn.q_b_proj", "attn_q_b");
const DOWN: Name = ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa");
const NORM: Name = ("self_attn.kv_a_layernorm", "attn_kv_a_norm");
/// Keys and values of each head, in one.
const UP: Name = ("self_attn.kv_b_proj", "attn_kv_b");
/// What is applied to queries and to what attention gives, where a file has them apart.
const APART: [Name; 2] = [("self_attn.embed_q", "attn_k_b"), ("self_attn.unembed_out", "attn_v_b")];

/// Reads the fields of latent attention into `config`; absent ranks are those of `ranks` (of queries, and of keys and values), absent
/// parts of a head those of `parts` (what does not rotate of a key, and a value). A rank of 0 means that there is none.
pub(super) fn read(
    fields: &Fields<'_>,
    config: &mut Config,
    ranks: [usize; 2],
    parts: [usize; 2],
) -> Result<()> {
    let most = 1 << 16;
    let query_rank = match fields.is_null("q_lora_rank") {
        true => None,
        false => Some(fields.size_or("q_lora_rank", Some(ranks[0]), most)?).filter(|&rank| rank > 0),
    };
    check_heads(fields, config)?;
    let rope_dim = config.head_dim;
    let is_gguf = fields.flag(LLAMA_CPP)?.unwrap_or(false);
    let dims = LatentDims {
        query_rank,
        rank: fields.size_or("kv_lora_rank", Some(ranks[1]), most)?,
        nope_dim: fields.size_or("qk_nope_head_dim", Some(parts[0]), most)?,
        rope_dim,
        value_dim: fields.size_or("v_head_dim", Some(parts[1]), most)?,
        pairs: true,
        eps: if is_gguf { config.norm_eps } else { EPS },
    };
    config.head_dim = dims.nope_dim + rope_dim;
    config.latent = Some(dims);
    if is_gguf && let Some(params) = rope::parameters(fields)? {
        config.query_scaling = QueryScaling::of_parameters(&params, &config.rope)?;
    }
    if let Some(params) = rope::parameters(fields)?
        && config.rope.scaling != RopeScaling::None
        && let Some(all) = params.number("mscale_all_dim", 0.0, 1e6)?.filter(|&all| all != 0.0)
    {
        let factor = match config.rope.scaling {
            RopeScaling::Yarn { factor, .. } => factor,
            _ => params.number("factor", 1e-6, 1e6)?.unwrap_or(1.0),
        };
        scale_scores(config, all, factor);
    }
    Ok(())
}

/// Refuses more heads than there may be: each is two modules of the list of weights, in each layer.
pub(super) fn check_heads(fields: &Fields<'_>, config: &Config) -> Result<()> {
    let (heads, layers) = (config.num_attention_heads, config.num_hidden_layers);
    if heads.saturating_mul(layers) > MOST {
        let expected = format!("at most {}: {MOST} in {layers} layers", MOST / layers);
        return Err(fields.error("num_attention_heads", heads, expected));
    }
    Ok(())
}

/// Scores of a context that was stretched by `factor` are multiplied by `(0.1 · all · ln(factor) + 1)²`.
pub(super) fn scale_scores(config: &mut Config, all: f64, factor: f64) {
    let by = if factor > 1.0 { 0.1 * all * factor.ln() + 1.0 } else { 1.0 };
    config.attention_multiplier = Some(((config.head_dim as f64).powf(-0.5) * by * by) as f32);
}

/// `rope_interleave`: whether neighbours rotate together.
pub(super) fn interleave(fields: &Fields<'_>, config: &mut Config) -> Result<()> {
    if let Some(latent) = &mut config.latent {
        latent.pairs = fields.flag("rope_interleave")?.unwrap_or(true);
    }
    Ok(())
}

impl LatentDims {
    /// What a layer keeps.
    pub(super) fn state(&self) -> StateSpec {
        StateSpec::Latent { rank: self.rank, rope_dim: self.rope_dim }
    }

    /// Adds the weights of a layer whose names begin with `prefix` and with `blk`.
    pub(super) fn list(&self, list: &mut WeightList, config: &Config, [prefix, blk]: [&str; 2]) {
        let heads = config.num_attention_heads;
        let (hidden, rank) = (config.hidden_dim(), Dim { field: "kv_lora_rank", size: self.rank });
        let name = |(own, gguf): Name| [format!("{prefix}.{own}"), format!("{blk}.{gguf}")];
        let parts = |heads, first| Form::HeadParts { heads, first, pairs: self.pairs };
        let mut matrix = |of: Name, rows: Dim, columns: Dim, form: Form, bias: bool| {
            let [name, gguf] = name(of);
            let gguf = Some(GgufSpec { name: gguf, form, fused: Vec::new() });
            list.push(ModuleSpec {
                name,
                rows,
                columns: Some(columns),
                bias,
                form,
                gguf,
                stacked: Vec::new(),
            });
        };
        let query = Dim {
            field: "num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)",
            size: heads * (self.nope_dim + self.rope_dim),
        };
        let query_rank = self.query_rank.map(|size| Dim { field: "q_lora_rank", size });
        match &query_rank {
            None => matrix(QUERY, query, hidden.clone(), parts(heads, self.nope_dim), true),
            Some(rank) => {
                matrix(QUERY_DOWN, rank.clone(), hidden.clone(), Form::Plain, true);
                matrix(QUERY_UP, query, rank.clone(), parts(heads, self.nope_dim), true);
            }
        }
        let down = Dim { field: "kv_lora_rank + qk_rope_head_dim", size: self.rank + self.rope_dim };
        matrix(DOWN, down, hidden.clone(), parts(1, self.rank), true);
        let up = Dim {
            field: "num_attention_heads * (qk_nope_head_dim + v_head_dim)",
            size: heads * (self.nope_dim + self.value_dim),
        };
        matrix(UP, up, rank.clone(), Form::Plain, false);
        let values = Dim { field: "num_attention_heads * v_head_dim", size: heads * self.value_dim };
        matrix(OUTPUT, hidden, values, Form::Plain, true);
        if let Some(rank) = query_rank {
            list.push(norm_spec(name(QUERY_NORM), rank, NormKind::Rms { offset: 0.0 }));
        }
        list.push(norm_spec(name(NORM), rank.clone(), NormKind::Rms { offset: 0.0 }));
        let shapes = [
            [rank.clone(), Dim { field: "qk_nope_head_dim", size: self.nope_dim }],
            [Dim { field: "v_head_dim", size: self.value_dim }, rank],
        ];
        for (of, [rows, columns]) in APART.into_iter().zip(shapes) {
            let [stack, gguf] = name(of);
            list.push_stack(StackSpec {
                mlx: stack.clone(),
                gguf: gguf.clone(),
                each: (0..heads).map(|head| format!("{stack}.{head}")).collect(),
                fused: None,
                shape: [rows.size, columns.size],
                published: None,
            });
            for head in 0..heads {
                let own = head * rows.size..(head + 1) * rows.size;
                let fused = vec![(gguf.clone(), own.clone())];
                list.push(ModuleSpec {
                    name: format!("{stack}.{head}"),
                    rows: rows.clone(),
                    columns: Some(columns.clone()),
                    bias: false,
                    form: Form::Plain,
                    gguf: Some(GgufSpec { name: gguf.clone(), form: Form::Plain, fused }),
                    stacked: vec![(stack.clone(), own)],
                });
            }
        }
    }

    /// Loads the attention of layer `layer`, whose names begin with `prefix`.
    pub(super) fn load(&self, loader: &Loader<'_>, layer: usize, prefix: &str) -> Result<LatentAttention> {
        let (config, heads) = (loader.config, loader.config.num_attention_heads);
        let path = |name: Name| format!("{prefix}.{}", name.0);
        let norm = |name: Name| -> Result<RmsNorm> {
            Ok(RmsNorm::load(loader, &path(name), 0.0)?.with_eps(self.eps))
        };
        let parts = [("nope", heads * self.nope_dim), ("rope", heads * self.rope_dim)];
        let query = match self.query_rank {
            None => Query::Whole(Linear::split(loader, &path(QUERY), parts)?),
            Some(_) => Query::Low {
                down: Linear::load(loader, &path(QUERY_DOWN))?,
                norm: norm(QUERY_NORM)?,
                up: Linear::split(loader, &path(QUERY_UP), parts)?,
            },
        };
        let down = [("latent", self.rank), ("rope", self.rope_dim)];
        let [latent, key] = Linear::split(loader, &path(DOWN), down)?;
        let [keys, values] = self.heads(loader, heads, prefix)?;
        Ok(LatentAttention {
            layer,
            query,
            latent,
            key,
            norm: norm(NORM)?,
            keys: loader.ops.stack(&keys),
            values: loader.ops.stack(&values),
            output: Linear::load(loader, &path(OUTPUT))?,
            rope_dim: self.rope_dim,
            rotation: config.rotations.get(layer).copied().unwrap_or(Rotation::Global),
            scale: config.attention_scale(layer),
        })
    }

    /// What is applied to the queries of each head, `[H, rank, nope_dim]`, and to what attention gives, `[H, value_dim, rank]`.
    fn heads(&self, loader: &Loader<'_>, heads: usize, prefix: &str) -> Result<[Stack; 2]> {
        let path = |name: Name| format!("{prefix}.{}", name.0);
        if loader.has(&format!("{}.0", path(APART[0]))) {
            let stack = |name: Name| -> Result<Stack> {
                let each = (0..heads).map(|head| loader.matrix(&format!("{}.{head}", path(name))));
                Ok(Stack::new(each.collect::<Result<Vec<_>>>()?))
            };
            return Ok([stack(APART[0])?, stack(APART[1])?]);
        }
        let whole = loader.matrix(&path(UP))?;
        let (mut keys, mut values) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
        for head in 0..heads {
            let first = head * (self.nope_dim + self.value_dim);
            let middle = first + self.nope_dim;
            keys.push(turned(&whole.rows("keys", first..middle))?);
            values.push(whole.rows("values", middle..middle + self.value_dim));
        }
        Ok([Stack::new(keys), Stack::new(values)])
    }
}

/// The matrix with its rows as columns: in its own type, or in `f32` where it is in blocks of its rows.
fn turned(matrix: &Matrix) -> Result<Matrix> {
    const WHAT: &str = "weights in another order";
    let (weight, shape) = match matrix {
        Matrix::Dense(weight) => (weight.clone(), weight.shape().to_vec()),
        Matrix::Quantized(weight) => {
            let values = weight.widened()?;
            (Weight::of_values(weight.name(), weight.shape(), values), weight.shape().to_vec())
        }
    };
    let mut bytes = alloc::zeroed::<u8>(weight.bytes().len(), WHAT)?;
    let shape = [shape[1], shape[0]];
    Form::Transposed.copy(weight.bytes(), &shape, weight.dtype().size(), &mut bytes);
    let len = bytes.len();
    Ok(Matrix::Dense(Weight::new(weight.name(), weight.dtype(), &shape, std::sync::Arc::new(bytes), 0..len)))
}

/// Where queries come from: the part that does not rotate, and the part that does.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a layer, which is never moved")]
enum Query {
    Whole([Linear; 2]),
    /// Through a vector of lower rank.
    Low {
        down: Linear,
        norm: RmsNorm,
        up: [Linear; 2],
    },
}

/// Attention over latent vectors.
#[derive(Debug)]
pub struct LatentAttention {
    layer: usize,
    query: Query,
    /// `[rank, D]`.
    latent: Linear,
    /// The part of the keys that rotates, `[rope_dim, D]`.
    key: Linear,
    norm: RmsNorm,
    /// `[H, rank, nope_dim]`.
    keys: PreparedStack,
    /// `[H, value_dim, rank]`.
    values: PreparedStack,
    output: Linear,
    rope_dim: usize,
    /// None where no part rotates.
    rotation: Rotation,
    scale: f32,
}

impl LatentAttention {
    /// `[T, D]` → `[T, D]`; caches this step's latent vectors and what rotates.
    pub fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let ([nope, rope], latent, key) = match &self.query {
            Query::Whole([nope, rope]) => {
                let [nope, rope, latent] = step.project([nope, rope, &self.latent], x)?;
                ([nope, rope], latent, self.key.forward(step, x)?)
            }
            Query::Low { down, norm, up: [nope, rope] } => {
                let [low, latent, key] = step.project([down, &self.latent, &self.key], x)?;
                let low = norm.forward(step, &low)?;
                ([nope.forward(step, &low)?, rope.forward(step, &low)?], latent, key)
            }
        };
        let (rope, key) = match self.rotation {
            Rotation::None => (step.scale_queries(rope)?, key),
            rotation => {
                let rope = step.rope_queries(&rope, self.rope_dim, rotation)?;
                (rope, step.rope(&key, self.rope_dim, rotation)?)
            }
        };
        let latent = self.norm.forward(step, &latent)?;
        let nope = step.scale_queries(nope)?;
        let q = step.run(&Op::HeadLinear { x: &nope, weight: &self.keys, beside: Some(&rope) })?; // [T, H * (rank + rope_dim)]
        step.kv_write(self.layer, KvRows { k: &latent, v: &key })?;
        let attended = step.attention(self.layer, &q, None, (self.scale, None), [None, None])?; // [T, H * rank]
        let values = step.run(&Op::HeadLinear { x: &attended, weight: &self.values, beside: None })?;
        self.output.forward(step, &values)
    }
}
