//! Hybrids: decoders whose layers are of several kinds of parts, Mamba 2 among them. Each part joins the residual stream, and reads it
//! behind a norm of its own.

use super::blocks::{Attention, Linear, Mlp, NormKind, RmsNorm, Vocabulary, norm_spec};
use super::list::{Dim, GgufSpec, ModuleSpec, Name, WeightList};
use super::loader::Loader;
use super::mamba::{Mamba, MambaLayer, MambaScales};
use super::sparse::{Sparse, SparseMlp};
use super::step::Step;
use super::{Arguments, Forward};
use crate::backend::Tensor;
use crate::backend::ops::StateSpec;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::Form;

/// A kind of part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// A Mamba 2.
    Mamba,
    /// Attention over keys and values.
    Attention,
    /// Both, side by side: what they give is added.
    MambaAttention,
    /// A feed-forward part.
    Mlp,
    /// Experts in its place.
    Experts,
}

/// The modules of the feed-forward part.
#[derive(Debug, Clone, Copy)]
pub(super) enum MlpParts {
    /// Gate, up and down, of which directories may have the first two as one, gate over up, and the last by another name.
    Gated { names: [Name; 3], fused: Option<[&'static str; 2]> },
    /// In and out.
    Plain([Name; 2]),
}

/// What activations of parts are multiplied by. MLX's directories hold weights that are multiplied already, and the same numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Multipliers {
    /// Those of a Mamba 2.
    pub mamba: MambaScales,
    /// The input of attention, and what it gives.
    pub attention: [f32; 2],
    /// The gate of the feed-forward part, which is not 0, and what that part gives.
    pub mlp: [f32; 2],
}

impl Multipliers {
    const NONE: Self = Self { mamba: MambaScales::NONE, attention: [1.0; 2], mlp: [1.0; 2] };
}

/// A hybrid.
#[derive(Debug, Clone)]
pub(super) struct Hybrid {
    /// What all families share.
    pub config: Config,
    /// The embedding.
    pub embed_tokens: Name,
    /// What the names of layers begin with, up to their numbers.
    pub layers: &'static str,
    /// The last norm.
    pub norm: Name,
    /// The output head, where it is not the embedding.
    pub lm_head: Name,
    /// The parts of each layer, in their order, and their norms.
    pub parts: Vec<Vec<(Part, Name)>>,
    /// What layers with a Mamba 2 have.
    pub mamba: Mamba,
    /// Queries, keys, values, and the output of attention.
    pub attention: [Name; 4],
    /// The feed-forward part.
    pub mlp: MlpParts,
    /// What the field of its width, [`Config::intermediate_size`], is called.
    pub inner: &'static str,
    /// Experts.
    pub sparse: Option<Sparse>,
    /// What activations are multiplied by.
    pub multipliers: Option<Multipliers>,
}

impl Part {
    /// Whether it is a Mamba 2, or beside one.
    fn is_mamba(self) -> bool {
        matches!(self, Self::Mamba | Self::MambaAttention)
    }

    /// Whether it is attention, or beside it.
    fn is_attention(self) -> bool {
        matches!(self, Self::Attention | Self::MambaAttention)
    }

    /// What it keeps of a sequence, in how many states.
    fn states(self) -> usize {
        usize::from(self.is_mamba()) + usize::from(self.is_attention())
    }
}

impl Hybrid {
    /// Boxed, as a family hands it on.
    pub fn boxed(mut self) -> Result<Box<dyn Arguments>> {
        self.config.experts = self.sparse.as_ref().map(Sparse::described);
        if self.has(Part::is_mamba) {
            self.config.mixer_width = self.mamba.width();
        }
        Ok(Box::new(self))
    }

    /// Whether a layer has such a part.
    fn has(&self, is: impl Fn(Part) -> bool) -> bool {
        self.parts.iter().flatten().any(|&(part, _)| is(part))
    }

    fn list_part(&self, list: &mut WeightList, part: Part, prefixes: [&str; 2]) {
        let config = &self.config;
        let hidden = || config.hidden_dim();
        let inner = || Dim { field: self.inner, size: config.intermediate_size };
        let name = |(own, gguf): Name| [format!("{}.{own}", prefixes[0]), format!("{}.{gguf}", prefixes[1])];
        match part {
            Part::Mamba => self.mamba.list(list, config, prefixes),
            Part::MambaAttention => {
                self.list_part(list, Part::Mamba, prefixes);
                self.list_part(list, Part::Attention, prefixes);
            }
            Part::Experts => {
                if let Some(sparse) = &self.sparse {
                    sparse.list(list, config, prefixes);
                }
            }
            Part::Attention => {
                let (query, key) = (config.query_dim(0), config.key_dim());
                let shapes =
                    [(query.clone(), hidden()), (key.clone(), hidden()), (key, hidden()), (hidden(), query)];
                for (of, (rows, columns)) in self.attention.into_iter().zip(shapes) {
                    list.push(matrix(name(of), rows, columns));
                }
            }
            Part::Mlp => match self.mlp {
                MlpParts::Plain([fc1, fc2]) => {
                    list.push(matrix(name(fc1), inner(), hidden()));
                    list.push(matrix(name(fc2), hidden(), inner()));
                }
                MlpParts::Gated { names: [gate, up, down], fused } => {
                    let (width, all) = (config.intermediate_size, config.hidden_size);
                    let shapes = [(inner(), hidden()), (inner(), hidden()), (hidden(), inner())];
                    let held = fused.map(|[of_both, of_down]| {
                        [(of_both, 0..width), (of_both, width..2 * width), (of_down, 0..all)]
                    });
                    for (i, (of, (rows, columns))) in [gate, up, down].into_iter().zip(shapes).enumerate() {
                        let held = held.clone().map(|held| held[i].clone());
                        let held = held.map(|(of, rows)| (format!("{}.{of}", prefixes[0]), rows));
                        let stacked = held.into_iter().collect();
                        list.push(ModuleSpec { stacked, ..matrix(name(of), rows, columns) });
                    }
                }
            },
        }
    }

    /// Loads a part of `layer`, whose names begin with `prefix`; what it keeps is the model's `state`-th, and what follows.
    fn load_part(
        &self,
        loader: &Loader<'_>,
        by: Multipliers,
        part: Part,
        [layer, state]: [usize; 2],
        prefix: &str,
    ) -> Result<Block> {
        let linear = |(own, _): Name| Linear::load(loader, &format!("{prefix}.{own}"));
        let activation = self.config.hidden_act;
        let mamba = |state: usize| self.mamba.load(loader, by.mamba, state, prefix).map(Box::new);
        let attention = |state: usize| {
            let [q, k, v, output] = self.attention;
            let qkv = [linear(q)?, linear(k)?, linear(v)?];
            let attention = Attention::of(&self.config, layer, qkv, linear(output)?);
            Ok::<_, Error>(Box::new(attention.of_state(state)))
        };
        Ok(match (part, &self.sparse) {
            (Part::Mamba, _) => Block::Mamba(mamba(state)?),
            (Part::Attention, _) => Block::Attention(attention(state)?),
            (Part::MambaAttention, _) => {
                Block::Both { mamba: mamba(state)?, attention: attention(state + 1)?, by: by.attention }
            }
            (Part::Experts, Some(sparse)) => Block::Experts(Box::new(sparse.load(loader, layer, prefix)?)),
            (Part::Experts | Part::Mlp, _) => Block::Mlp(match self.mlp {
                MlpParts::Plain([fc1, fc2]) => {
                    Mlp::Plain { fc1: linear(fc1)?, fc2: linear(fc2)?, activation }
                }
                MlpParts::Gated { names, .. } => {
                    // The norm in front multiplies by the factor of the gate: what stands beside the gate has it, too.
                    let linear =
                        |(own, _): Name| Linear::with_bias_by(loader, &format!("{prefix}.{own}"), by.mlp[0]);
                    let [gate, up, down] = names.map(linear);
                    Mlp::Gated { gate: gate?, up: up?, down: down?, activation }
                }
            }),
        })
    }

    /// Whether the weights are multiplied already, as mlx-lm writes them, which leaves biases and values as they are.
    fn is_multiplied(&self, loader: &Loader<'_>) -> Result<bool> {
        let Some(multipliers) = self.multipliers else { return Ok(false) };
        let first = format!("{}.0", self.layers);
        if !self.mamba.is_of_mlx(loader, &first) {
            return Ok(false);
        }
        let [_, _, value, _] = self.attention.map(|(own, _)| format!("{first}.{own}"));
        if multipliers.attention[0] != 1.0 {
            let what = format!(
                "is not multiplied by attention_in_multiplier, as other weights of MLX's directories are; expected 1, and it is {:?}",
                multipliers.attention[0]
            );
            return Err(loader.wrong(&value, what));
        }
        let own = |(own, _): Name| format!("{first}.{own}");
        let mut paths: Vec<String> = self.mamba.projections(&first).into();
        paths.extend(self.attention.map(own));
        if let MlpParts::Gated { names, .. } = self.mlp {
            paths.extend(names.map(own));
        }
        for path in paths {
            if loader.bias(&path)?.is_some() {
                let what =
                    "has a bias, expected none beside weights that are multiplied, as in MLX's directories";
                return Err(loader.wrong(&path, what.to_owned()));
            }
        }
        Ok(true)
    }
}

fn matrix([name, gguf]: [String; 2], rows: Dim, columns: Dim) -> ModuleSpec {
    ModuleSpec {
        name,
        rows,
        columns: Some(columns),
        bias: true,
        form: Form::Plain,
        gguf: Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() }),
        stacked: Vec::new(),
    }
}

impl Arguments for Hybrid {
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
        let norm = NormKind::Rms { offset: 0.0 };
        let embedding = matrix(name(self.embed_tokens), config.vocab_dim(), config.hidden_dim());
        list.push(ModuleSpec { bias: false, ..embedding });
        for (layer, parts) in self.parts.iter().enumerate() {
            let prefixes = [format!("{}.{layer}", self.layers), format!("blk.{layer}")];
            let prefixes = prefixes.each_ref().map(String::as_str);
            for &(part, (own, gguf)) in parts {
                let names = [format!("{}.{own}", prefixes[0]), format!("{}.{gguf}", prefixes[1])];
                list.push(norm_spec(names, config.hidden_dim(), norm));
                self.list_part(&mut list, part, prefixes);
            }
        }
        list.push(norm_spec(name(self.norm), config.hidden_dim(), norm));
        if !config.tie_word_embeddings {
            list.push(matrix(name(self.lm_head), config.vocab_dim(), config.hidden_dim()));
        }
        list
    }

    /// Of the parts that keep something: a layer may have none.
    fn states(&self) -> Vec<StateSpec> {
        let (heads, dim) = (self.config.num_key_value_heads, self.config.head_dim);
        let kept = |&(part, _): &(Part, Name)| {
            let matrix = part.is_mamba().then(|| self.mamba.state());
            let kv = StateSpec::Kv { heads, k_dim: dim, v_dim: dim, window: None };
            matrix.into_iter().chain(part.is_attention().then_some(kv))
        };
        self.parts.iter().flatten().flat_map(kept).collect()
    }

    fn more_activations(&self) -> usize {
        let shared = self.sparse.as_ref().and_then(|sparse| sparse.shared);
        // What a Mamba 2 gives waits for the attention beside it.
        let waits = if self.has(|part| part == Part::MambaAttention) { self.config.hidden_size } else { 0 };
        shared.map_or(0, |shared| 3 * shared.inner) + waits
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
        let mut parts = Vec::new();
        let mut state = 0;
        let is_multiplied = self.is_multiplied(loader)?;
        let by = self.multipliers.filter(|_| !is_multiplied).unwrap_or(Multipliers::NONE);
        let [of_gate, of_mlp] = by.mlp;
        for (layer, of) in self.parts.iter().enumerate() {
            let prefix = format!("{}.{layer}", self.layers);
            for (i, &(part, (norm, _))) in of.iter().enumerate() {
                let norm = format!("{prefix}.{norm}");
                // Without experts: a gate's function is of its factor, and what stands beside the gate is divided by it behind the part.
                let (norm, scale) = match part {
                    Part::Mlp if of_gate != 1.0 => {
                        (RmsNorm::scaled(loader, &norm, of_gate)?, of_mlp / of_gate)
                    }
                    Part::Mlp => (RmsNorm::load(loader, &norm, 0.0)?, of_mlp),
                    _ => (RmsNorm::load(loader, &norm, 0.0)?, 1.0),
                };
                parts.push(Joined {
                    norm,
                    block: self.load_part(loader, by, part, [layer, state], &prefix)?,
                    by: scale * self.config.residual_multiplier,
                    ends: (i + 1 == of.len()).then_some(layer),
                });
                state += part.states();
            }
        }
        let mut vocabulary = Vocabulary::load(loader, self.embed_tokens.0, self.lm_head.0)?;
        if is_multiplied {
            vocabulary = vocabulary.multiplied(self.config.tie_word_embeddings);
        }
        let norm = RmsNorm::load(loader, self.norm.0, 0.0)?;
        Ok(Box::new(Decoder { states: self.states(), vocabulary, parts, norm }))
    }
}

/// What a part computes.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a part, which is never moved")]
enum Block {
    Mamba(Box<MambaLayer>),
    Attention(Box<Attention>),
    /// Side by side; what attention reads and gives is multiplied.
    Both {
        mamba: Box<MambaLayer>,
        attention: Box<Attention>,
        by: [f32; 2],
    },
    Mlp(Mlp),
    Experts(Box<SparseMlp>),
}

impl Block {
    /// `[T, D]` → `[T, D]`.
    fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mamba(mamba) => mamba.forward(step, x),
            Self::Attention(attention) => attention.forward(step, x),
            Self::Both { mamba, attention, by: [input, output] } => {
                let first = mamba.forward(step, x)?;
                let second = match input {
                    1.0 => attention.forward(step, x)?,
                    input => attention.forward(step, &step.scale(x, *input)?)?,
                };
                step.add(&first, &step.scaled(second, *output)?)
            }
            Self::Mlp(mlp) => mlp.forward(step, x),
            Self::Experts(experts) => experts.forward(step, x),
        }
    }
}

/// A part with the norm before it.
#[derive(Debug)]
struct Joined {
    norm: RmsNorm,
    block: Block,
    /// What it gives is multiplied by this.
    by: f32,
    /// The layer whose last part it is.
    ends: Option<usize>,
}

/// The forward pass of a hybrid.
#[derive(Debug)]
struct Decoder {
    states: Vec<StateSpec>,
    vocabulary: Vocabulary,
    parts: Vec<Joined>,
    norm: RmsNorm,
}

impl Forward for Decoder {
    fn states(&self) -> Vec<StateSpec> {
        self.states.clone()
    }

    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let mut x = self.vocabulary.embed(step)?; // [T, D]
        step.tap(|| "embed_tokens".to_owned(), &x)?;
        let mut h = self.parts.first().map_or(&self.norm, |part| &part.norm).forward(step, &x)?;
        for (i, part) in self.parts.iter().enumerate() {
            let added = part.block.forward(step, &h)?;
            let added = step.scaled(added, part.by)?;
            let next = self.parts.get(i + 1).map_or(&self.norm, |next| &next.norm);
            [x, h] = next.add_forward(step, &x, &added)?;
            if let Some(layer) = part.ends {
                step.tap(|| format!("layers.{layer}"), &x)?;
            }
        }
        Ok(h)
    }

    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(step, hidden)
    }
}
