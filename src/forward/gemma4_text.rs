//! `gemma4_text`, the text of `gemma4`: two sizes of heads, values that are keys or those of another layer, embeddings for each layer,
//! and experts beside the dense part.
//! Google DeepMind 2026, Gemma 4.
//!
//! Its layers are not those of [`super::dense`]: too much differs from one to the next.

use super::blocks::norm_spec;
use super::blocks::{Linear, Mlp, NormKind, RmsNorm, Vocabulary};
use super::layer_embeddings::{EmbeddingDims, LayerEmbeddings, OwnEmbedding};
use super::list::{Dim, GgufSpec, ModuleSpec, Name, WeightList};
use super::loader::Loader;
use super::sparse::{ExpertNames, Sparse, SparseMlp, experts};
use super::step::Step;
use super::{Arguments, Family, Forward, Gguf, GgufExperts, gemma4_gguf};
use crate::backend::Tensor;
use crate::backend::ops::{KvRows, Router, StateSpec};
use crate::config::rope::{self, RopeRules};
use crate::config::{Activation, Config, Names, Rope, RopeScaling, Rotation, Shared};
use crate::error::Result;
use crate::json::{Fields, Value, quote};
use crate::weights::Form;

/// Of layers that see everything, and of those with a window.
const FULL: RopeRules =
    RopeRules { by_layer_type: true, proportional: true, ..RopeRules::theta(1_000_000.0) };
const SLIDING: RopeRules = RopeRules { theta: 10_000.0, ..FULL };

pub(super) const SHARED: Shared = Shared {
    names: Names { act: "hidden_activation", ..Names::LLAMA },
    vocab: Some(262_144),
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    context: 131_072,
    act: "gelu_pytorch_tanh",
    tied: true,
    rope: FULL,
    bos: Some(2),
    eos: &[1],
    ..Shared::LLAMA
};

pub(super) static FAMILY: Family = Family {
    model_type: "gemma4_text",
    shared: SHARED,
    arguments: |fields, config| described(fields, config, 512, 256),
    gguf: Some(Gguf {
        activations: &[Activation::GeluTanh],
        numbers: &[("final_logit_softcapping", "final_logit_softcapping")],
        experts: Some(GgufExperts { used: "top_k_experts", optional: true, ..GgufExperts::SOFTMAX }),
        by_layer: true,
        members: gemma4_gguf::members,
        entries: None,
        ..Gguf::plain("gemma4")
    }),
    prefixes: super::TEXT_PART,
};

pub(super) const EMBED: Name = ("model.embed_tokens", "token_embd");
pub(super) const NORM: Name = ("model.norm", "output_norm");
pub(super) const HEAD: Name = ("lm_head", "output");
pub(super) const INPUT_NORM: Name = ("input_layernorm", "attn_norm");
pub(super) const ATTENTION_NORM: Name = ("post_attention_layernorm", "post_attention_norm");
pub(super) const MLP_NORM: Name = ("pre_feedforward_layernorm", "ffn_norm");
pub(super) const MLP_OUT_NORM: Name = ("post_feedforward_layernorm", "post_ffw_norm");
const SCALAR: Name = ("layer_scalar", "layer_output_scale");
pub(super) const QUERY: Name = ("self_attn.q_proj", "attn_q");
pub(super) const KEY: Name = ("self_attn.k_proj", "attn_k");
pub(super) const VALUE: Name = ("self_attn.v_proj", "attn_v");
pub(super) const OUTPUT: Name = ("self_attn.o_proj", "attn_output");
pub(super) const QUERY_NORM: Name = ("self_attn.q_norm", "attn_q_norm");
pub(super) const KEY_NORM: Name = ("self_attn.k_norm", "attn_k_norm");
pub(super) const GATE: Name = ("mlp.gate_proj", "ffn_gate");
pub(super) const UP: Name = ("mlp.up_proj", "ffn_up");
pub(super) const DOWN: Name = ("mlp.down_proj", "ffn_down");
const ROUTER_SCALE: Name = ("router.scale", "ffn_gate_inp.scale");
const EXPERTS_NORM: Name = ("pre_feedforward_layernorm_2", "pre_ffw_norm_2");
/// Of what the dense part gives, and of what experts give.
const BOTH_NORMS: [Name; 2] = [
    ("post_feedforward_layernorm_1", "post_ffw_norm_1"),
    ("post_feedforward_layernorm_2", "post_ffw_norm_2"),
];

pub(super) const PLAIN: NormKind = NormKind::Rms { offset: 0.0 };

/// Heads of keys and values: how many, and elements of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heads {
    count: usize,
    dim: usize,
}

/// A Gemma 4. Heads of layers with a window are those of the configuration.
#[derive(Debug)]
struct Gemma4 {
    config: Config,
    /// Of layers that see everything.
    full: Heads,
    /// Whether the values of these are their keys.
    keys_are_values: bool,
    /// The first of the layers that use keys and values of another.
    first_shared: usize,
    /// Whether the dense part of these has twice the width.
    double_wide: bool,
    embeddings: Option<EmbeddingDims>,
    sparse: Option<Sparse>,
}

/// Reads what the family has beside the shared fields; `window` and `width`, of the embeddings for each layer, are what absence means.
pub(super) fn described(
    fields: &Fields<'_>,
    mut config: Config,
    window: usize,
    width: usize,
) -> Result<Box<dyn Arguments>> {
    const BIDIRECTIONAL: &str = "use_bidirectional_attention";
    match fields.string(BIDIRECTIONAL)? {
        // Of pictures alone.
        None | Some("vision") => {}
        Some(other) => {
            return Err(fields.error(BIDIRECTIONAL, quote(other), "null or \"vision\": attention is causal"));
        }
    }
    config.final_logit_softcapping =
        fields.number("final_logit_softcapping", 1e-6, 1e6)?.map(|cap| cap as f32);
    config.attention_multiplier = Some(1.0);
    config.has_head_norms = true;
    let window = fields.size_or("sliding_window", Some(window), 1 << 30)?;
    config.set_windows(fields, Some(window), |layer| !(layer + 1).is_multiple_of(6))?;
    // Whatever its type says.
    if let Some(last) = config.windows.last_mut() {
        *last = None;
    }
    let keys_are_values = fields.flag("attention_k_eq_v")?.unwrap_or(false);
    let full = full_heads(fields, &config, keys_are_values)?;
    let of = |kind, rules, dim| rope::of_layer_type(fields, kind, rules, dim, config.max_position_embeddings);
    let quarter = RopeScaling::Proportional { turning: full.dim / 8, factor: 1.0 };
    let of_full = of("full_attention", FULL, full.dim)?;
    let sliding = of("sliding_attention", SLIDING, config.head_dim)?;
    config.rope = of_full.unwrap_or(Rope { theta: FULL.theta, dims: full.dim, scaling: quarter });
    let plain = Rope { theta: SLIDING.theta, dims: config.head_dim, scaling: RopeScaling::None };
    config.set_local_rope(sliding.unwrap_or(plain));
    let sparse = sparse(fields, &config)?;
    config.experts = sparse.as_ref().map(|sparse| sparse.size);
    Ok(Box::new(Gemma4 {
        full,
        keys_are_values,
        first_shared: first_shared(fields, &config, 0)?,
        double_wide: fields.flag("use_double_wide_mlp")?.unwrap_or(false),
        embeddings: EmbeddingDims::read(fields, &config, width)?,
        sparse,
        config,
    }))
}

/// The heads of layers that see everything: of `per_layer_config`, as transformers 5 writes it, or of fields of their own.
fn full_heads(fields: &Fields<'_>, config: &Config, keys_are_values: bool) -> Result<Heads> {
    const EACH: &str = "per_layer_config";
    let (layers, heads) = (config.num_hidden_layers, config.num_attention_heads);
    let own = Heads { count: config.num_key_value_heads, dim: config.head_dim };
    let full = if fields.get(EACH).is_some() {
        let mut of_layers = vec![own; layers];
        for (key, value) in fields.object(EACH)?.iter().flat_map(|each| each.members()) {
            let name = format!("{EACH}.{key}");
            let layer = key.parse::<usize>().ok().filter(|&layer| layer < layers);
            let expected = || format!("the number of a layer, below {layers}");
            let layer = layer.ok_or_else(|| fields.error(&name, "there", expected()))?;
            let Value::Object(members) = value else { return Err(fields.error(&name, value, "an object")) };
            let read = ["head_dim", "num_key_value_heads"];
            if let Some(other) = members.keys().find(|member| !read.contains(&member.as_str())) {
                let expected = format!("absent: of a layer's own fields {} are read", read.join(" and "));
                return Err(fields.error(format!("{name}.{other}"), "there", expected));
            }
            let own_fields = fields.within(members);
            of_layers[layer] = Heads {
                count: own_fields.size_or(read[1], Some(own.count), heads)?,
                dim: own_fields.size_or(read[0], Some(own.dim), 1 << 16)?,
            };
        }
        let full = of_layers[layers - 1];
        for (layer, (of, window)) in of_layers.iter().zip(&config.windows).enumerate() {
            let alike = if window.is_some() { own } else { full };
            if *of != alike {
                let said = |of: &Heads| format!("{} heads of {}", of.count, of.dim);
                let expected = format!("{}, as others of its type have", said(&alike));
                return Err(fields.error(format!("{EACH}.{layer}"), said(of), expected));
            }
        }
        full
    } else {
        let count = match keys_are_values {
            true => fields.size("num_global_key_value_heads", 1, heads)?.unwrap_or(own.count),
            false => own.count,
        };
        Heads { count, dim: fields.size_or("global_head_dim", Some(512), 1 << 16)? }
    };
    if !heads.is_multiple_of(full.count) {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        return Err(fields.error("num_global_key_value_heads", full.count, expected));
    }
    match full.dim.is_multiple_of(2) {
        true => Ok(full),
        false => Err(fields.error("global_head_dim", full.dim, "an even number")),
    }
}

/// The first of the layers that use keys and values of another: the last one of their type before it. `absent` is what absence means.
pub(super) fn first_shared(fields: &Fields<'_>, config: &Config, absent: usize) -> Result<usize> {
    const NAME: &str = "num_kv_shared_layers";
    let layers = config.num_hidden_layers;
    let shared = fields.size(NAME, 0, layers - 1)?.unwrap_or(absent);
    if shared >= layers {
        return Err(fields.missing(NAME, format!("an integer from 0 to {}", layers - 1)));
    }
    let (before, after) = config.windows.split_at(layers - shared);
    let alike = |a: &Option<usize>, b: &Option<usize>| a.is_some() == b.is_some();
    match after.iter().all(|layer| before.iter().any(|other| alike(layer, other))) {
        true => Ok(layers - shared),
        false => Err(fields.error(NAME, shared, "a layer of each type before these")),
    }
}
/// Experts, where layers have them.
fn sparse(fields: &Fields<'_>, config: &Config) -> Result<Option<Sparse>> {
    const NAMES: [&str; 3] = ["num_experts", "top_k_experts", "moe_intermediate_size"];
    if !fields.flag("enable_moe_block")?.unwrap_or(false) {
        return Ok(None);
    }
    for name in NAMES {
        fields.required(name, 1, 1 << 20)?;
    }
    let size = experts(fields, NAMES, [1; 3])?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    Ok(Some(Sparse {
        router: ("router.proj", "ffn_gate_inp"),
        routing: Router { normalise: Some(0.0), ..softmax.routing },
        scales: Some(("router.per_expert_scale", "ffn_down_exps.scale")),
        names: ExpertNames {
            each: "experts",
            fused: "experts.gate_up_proj",
            fused_down: "experts.down_proj",
            stacks: "experts.switch_glu",
            ..ExpertNames::PLAIN
        },
        ..softmax
    }))
}

pub(super) fn matrix([name, gguf]: [String; 2], rows: Dim, columns: Dim, bias: bool) -> ModuleSpec {
    ModuleSpec {
        name,
        rows,
        columns: Some(columns),
        bias,
        form: Form::Plain,
        gguf: Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() }),
        stacked: Vec::new(),
    }
}

/// A vector whose tensor has the name of the module itself.
pub(super) fn bare(names: [String; 2], dim: Dim) -> ModuleSpec {
    let stacked = vec![(names[0].clone(), 0..dim.size)];
    ModuleSpec { stacked, ..norm_spec(names, dim, PLAIN) }
}

pub(super) fn path(layer: usize, (own, _): Name) -> String {
    format!("model.layers.{layer}.{own}")
}

impl Gemma4 {
    fn is_full(&self, layer: usize) -> bool {
        self.config.windows[layer].is_none()
    }

    fn heads(&self, layer: usize) -> Heads {
        let config = &self.config;
        match self.is_full(layer) {
            true => self.full,
            false => Heads { count: config.num_key_value_heads, dim: config.head_dim },
        }
    }

    /// The layer whose keys and values a layer uses: mostly its own.
    fn source(&self, layer: usize) -> usize {
        let alike = |other: &usize| self.is_full(*other) == self.is_full(layer);
        match layer < self.first_shared {
            true => layer,
            false => (0..self.first_shared).rev().find(alike).unwrap_or(layer),
        }
    }

    fn is_wide(&self, layer: usize) -> bool {
        self.double_wide && layer >= self.first_shared
    }

    /// The widths of queries, of keys and of a head.
    fn head_dims(&self, layer: usize) -> [Dim; 3] {
        let (config, Heads { count, dim }) = (&self.config, self.heads(layer));
        if !self.is_full(layer) {
            return [config.query_dim(layer), config.key_dim(), config.head_dim()];
        }
        let query = config.num_attention_heads * dim;
        [
            Dim { field: "num_attention_heads * global_head_dim", size: query },
            Dim { field: "num_global_key_value_heads * global_head_dim", size: count * dim },
            Dim { field: "global_head_dim", size: dim },
        ]
    }

    fn list_layer(&self, list: &mut WeightList, layer: usize) {
        let (config, hidden) = (&self.config, || self.config.hidden_dim());
        let prefixes = [format!("model.layers.{layer}"), format!("blk.{layer}")];
        let prefixes = prefixes.each_ref().map(String::as_str);
        let name = |(own, gguf): Name| [format!("{}.{own}", prefixes[0]), format!("{}.{gguf}", prefixes[1])];
        for norm in [INPUT_NORM, ATTENTION_NORM, MLP_NORM, MLP_OUT_NORM] {
            list.push(norm_spec(name(norm), hidden(), PLAIN));
        }
        list.push(bare(name(SCALAR), Dim { field: "1", size: 1 }));

        let [query, key, head] = self.head_dims(layer);
        list.push(matrix(name(QUERY), query.clone(), hidden(), true));
        list.push(norm_spec(name(QUERY_NORM), head.clone(), PLAIN));
        // Files may hold keys and values that nothing reads.
        if self.source(layer) == layer {
            list.push(matrix(name(KEY), key.clone(), hidden(), true));
            list.push(norm_spec(name(KEY_NORM), head, PLAIN));
            if !(self.keys_are_values && self.is_full(layer)) {
                list.push(matrix(name(VALUE), key, hidden(), true));
            }
        }
        list.push(matrix(name(OUTPUT), hidden(), query, true));

        let inner = match self.is_wide(layer) {
            true => Dim { field: "2 * intermediate_size", size: 2 * config.intermediate_size },
            false => config.inner_dim(),
        };
        list.push(matrix(name(GATE), inner.clone(), hidden(), true));
        list.push(matrix(name(UP), inner.clone(), hidden(), true));
        list.push(matrix(name(DOWN), hidden(), inner, true));

        if let Some(sparse) = &self.sparse {
            list.push(bare(name(ROUTER_SCALE), hidden()));
            for norm in [EXPERTS_NORM, BOTH_NORMS[0], BOTH_NORMS[1]] {
                list.push(norm_spec(name(norm), hidden(), PLAIN));
            }
            sparse.list(list, config, prefixes);
        }
        if let Some(embeddings) = self.embeddings {
            embeddings.list_layer(list, config, prefixes);
        }
    }

    fn load_layer(&self, loader: &Loader<'_>, layer: usize) -> Result<Layer> {
        let (config, activation) = (&self.config, self.config.hidden_act);
        let norm = |name: Name| RmsNorm::load(loader, &path(layer, name), 0.0);
        let linear = |name: Name| Linear::load(loader, &path(layer, name));
        let (prefix, head_dim) = (format!("model.layers.{layer}"), self.heads(layer).dim);
        let own = match self.source(layer) == layer {
            false => None,
            true => Some(KeysAndValues {
                key: linear(KEY)?,
                value: match self.keys_are_values && self.is_full(layer) {
                    true => None,
                    false => Some(linear(VALUE)?),
                },
                key_norm: norm(KEY_NORM)?,
                value_norm: RmsNorm::plain(loader, head_dim),
            }),
        };
        let beside = match &self.sparse {
            None => None,
            Some(sparse) => Some(Beside {
                router_norm: RmsNorm::scaled(
                    loader,
                    &path(layer, ROUTER_SCALE),
                    (config.hidden_size as f32).powf(-0.5),
                )?,
                input_norm: norm(EXPERTS_NORM)?,
                experts: sparse.load(loader, layer, &prefix)?,
                norms: [norm(BOTH_NORMS[0])?, norm(BOTH_NORMS[1])?],
            }),
        };
        let embedded = self.embeddings.map(|of| of.load_layer(loader, &prefix)).transpose()?;
        let scalar = loader.vector(&path(layer, SCALAR))?.widened()?;
        Ok(Layer {
            input_norm: norm(INPUT_NORM)?,
            attention: Attention {
                layer,
                query: linear(QUERY)?,
                query_norm: norm(QUERY_NORM)?,
                own,
                output: linear(OUTPUT)?,
                rotation: if self.is_full(layer) { Rotation::Global } else { Rotation::Local },
                head_dim,
                window: config.windows[layer],
                scale: config.attention_scale(layer),
            },
            attention_norm: norm(ATTENTION_NORM)?,
            mlp_norm: norm(MLP_NORM)?,
            mlp: Mlp::Gated { gate: linear(GATE)?, up: linear(UP)?, down: linear(DOWN)?, activation },
            beside,
            mlp_out_norm: norm(MLP_OUT_NORM)?,
            embedded,
            scalar: scalar.first().copied().unwrap_or(1.0),
        })
    }
}

impl Arguments for Gemma4 {
    fn config(&self) -> &Config {
        &self.config
    }

    fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    fn weights(&self) -> WeightList {
        let config = &self.config;
        let mut list = WeightList::default();
        let name = |(own, gguf): Name| [own.to_owned(), gguf.to_owned()];
        list.push(matrix(name(EMBED), config.vocab_dim(), config.hidden_dim(), false));
        if let Some(embeddings) = self.embeddings {
            embeddings.list(&mut list, config);
        }
        (0..config.num_hidden_layers).for_each(|layer| self.list_layer(&mut list, layer));
        list.push(norm_spec(name(NORM), config.hidden_dim(), PLAIN));
        if !config.tie_word_embeddings {
            list.push(matrix(name(HEAD), config.vocab_dim(), config.hidden_dim(), true));
        }
        list
    }

    fn states(&self) -> Vec<StateSpec> {
        let of = |layer: usize| match self.source(layer) {
            other if other != layer => StateSpec::SharedWith(other),
            _ => {
                let Heads { count, dim } = self.heads(layer);
                StateSpec::Kv { heads: count, k_dim: dim, v_dim: dim, window: self.config.windows[layer] }
            }
        };
        (0..self.config.num_hidden_layers).map(of).collect()
    }

    fn more_activations(&self) -> usize {
        let config = &self.config;
        let layers = config.num_hidden_layers;
        let wide = if self.is_wide(layers - 1) { 3 * config.intermediate_size } else { 0 };
        let embedded = self.embeddings.map_or(0, |of| of.activations(layers));
        let beside = if self.sparse.is_some() { 3 * config.hidden_size } else { 0 };
        wide + embedded + beside
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
        let vocabulary = Vocabulary::load(loader, EMBED.0, HEAD.0)?.root_scaled();
        let embeddings = self.embeddings.map(|of| of.load(loader)).transpose()?;
        let layers = (0..self.config.num_hidden_layers)
            .map(|layer| self.load_layer(loader, layer))
            .collect::<Result<_>>()?;
        let norm = RmsNorm::load(loader, NORM.0, 0.0)?;
        Ok(Box::new(Decoder { states: self.states(), vocabulary, embeddings, layers, norm }))
    }
}

/// Attention, over keys and values of its own or of another layer.
#[derive(Debug)]
pub(super) struct Attention {
    pub layer: usize,
    pub query: Linear,
    pub query_norm: RmsNorm,
    pub own: Option<KeysAndValues>,
    pub output: Linear,
    pub rotation: Rotation,
    pub head_dim: usize,
    pub window: Option<usize>,
    pub scale: f32,
}

/// A layer's own keys and values.
#[derive(Debug)]
pub(super) struct KeysAndValues {
    pub key: Linear,
    /// None where values are the keys, before their norm.
    pub value: Option<Linear>,
    pub key_norm: RmsNorm,
    pub value_norm: RmsNorm,
}

impl Attention {
    /// `[T, D]` → `[T, D]`; caches this step's keys and values, where they are its own.
    pub fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let q = match &self.own {
            None => self.query.forward(step, x)?,
            Some(own) => {
                let (q, k, v) = match &own.value {
                    None => (self.query.forward(step, x)?, own.key.forward(step, x)?, None),
                    Some(value) => {
                        let [q, k, v] = step.project([&self.query, &own.key, value], x)?;
                        (q, k, Some(v))
                    }
                };
                let v = own.value_norm.forward(step, v.as_ref().unwrap_or(&k))?; // [T, KH * P]
                let k = own.key_norm.forward(step, &k)?;
                let k = step.rope(&k, self.head_dim, self.rotation)?;
                step.kv_write(self.layer, KvRows { k: &k, v: &v })?;
                q
            }
        };
        let q = self.query_norm.forward(step, &q)?;
        let q = step.rope(&q, self.head_dim, self.rotation)?; // [T, H * P]
        let attended = step.attention(self.layer, &q, self.window, (self.scale, None), [None, None])?;
        self.output.forward(step, &attended)
    }
}

/// Experts beside the dense part.
#[derive(Debug)]
struct Beside {
    router_norm: RmsNorm,
    input_norm: RmsNorm,
    experts: SparseMlp,
    norms: [RmsNorm; 2],
}

impl Beside {
    /// What both give, of the residual stream `x` and what the dense part gave, `[T, D]` each.
    fn forward(&self, step: &Step<'_>, x: &Tensor, dense: &Tensor) -> Result<Tensor> {
        let of_router = self.router_norm.forward(step, x)?;
        let own = self.input_norm.forward(step, x)?;
        let sparse = self.experts.forward_by(step, &of_router, &own)?;
        let dense = self.norms[0].forward(step, dense)?;
        step.add(&dense, &self.norms[1].forward(step, &sparse)?)
    }
}

/// One block.
#[derive(Debug)]
struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    attention_norm: RmsNorm,
    mlp_norm: RmsNorm,
    mlp: Mlp,
    beside: Option<Beside>,
    mlp_out_norm: RmsNorm,
    embedded: Option<OwnEmbedding>,
    /// Of all that the layer hands on.
    scalar: f32,
}

impl Layer {
    /// `[T, D]` → `[T, D]`, with the tokens' embeddings for this layer `[T, P]`.
    fn forward(&self, step: &mut Step<'_>, x: &Tensor, embedding: Option<&Tensor>) -> Result<Tensor> {
        let h = self.input_norm.forward(step, x)?;
        let attended = self.attention.forward(step, &h)?;
        let attended = self.attention_norm.forward(step, &attended)?;
        let [x, h] = self.mlp_norm.add_forward(step, x, &attended)?;
        let mut fed = self.mlp.forward(step, &h)?;
        if let Some(beside) = &self.beside {
            fed = beside.forward(step, &x, &fed)?;
        }
        let mut x = step.add(&x, &self.mlp_out_norm.forward(step, &fed)?)?;
        if let (Some(own), Some(embedding)) = (&self.embedded, embedding) {
            x = step.add(&x, &own.forward(step, &x, embedding)?)?;
        }
        if self.scalar == 1.0 { Ok(x) } else { step.scale(&x, self.scalar) }
    }
}

/// The forward pass.
#[derive(Debug)]
struct Decoder {
    states: Vec<StateSpec>,
    vocabulary: Vocabulary,
    embeddings: Option<LayerEmbeddings>,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

impl Forward for Decoder {
    fn states(&self) -> Vec<StateSpec> {
        self.states.clone()
    }

    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let mut x = self.vocabulary.embed(step)?; // [T, D]
        step.tap(|| "embed_tokens".to_owned(), &x)?;
        let embeddings = match &self.embeddings {
            Some(embeddings) => embeddings.forward(step, &x)?,
            None => Vec::new(),
        };
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(step, &x, embeddings.get(i))?;
            step.tap(|| format!("layers.{i}"), &x)?;
        }
        self.norm.forward(step, &x)
    }

    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(step, hidden)
    }
}
