//! Hybrids: decoders whose layers are of several kinds of parts, Mamba 2 among them. Each part joins the residual stream, and reads it
//! behind a norm of its own.

use super::blocks::{Attention, Linear, Mlp, NormKind, RmsNorm, Vocabulary, norm_spec};
use super::list::{Dim, GgufSpec, ModuleSpec, Name, WeightList};
use super::loader::Loader;
use super::mamba::{Mamba, MambaLayer};
use super::sparse::{Sparse, SparseMlp};
use super::step::Step;
use super::{Arguments, Forward};
use crate::backend::Tensor;
use crate::backend::ops::StateSpec;
use crate::config::Config;
use crate::error::Result;
use crate::weights::Form;

/// A kind of part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// A Mamba 2.
    Mamba,
    /// Attention over keys and values.
    Attention,
    /// A feed-forward part.
    Mlp,
    /// Experts in its place.
    Experts,
}

/// The modules of the feed-forward part.
#[derive(Debug, Clone, Copy)]
pub(super) enum MlpParts {
    /// Gate, up and down, of which directories may have the first two as one, gate over up, and the last by another name.
    Gated { names: [Name; 3], fused: [&'static str; 2] },
    /// In and out.
    Plain([Name; 2]),
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
}

impl Hybrid {
    /// Boxed, as a family hands it on.
    pub fn boxed(mut self) -> Result<Box<dyn Arguments>> {
        self.config.experts = self.sparse.as_ref().map(Sparse::described);
        if self.has(Part::Mamba) {
            self.config.mixer_width = self.mamba.width();
        }
        Ok(Box::new(self))
    }

    /// Whether a layer has such a part.
    pub fn has(&self, part: Part) -> bool {
        self.parts.iter().flatten().any(|(of, _)| *of == part)
    }

    fn list_part(&self, list: &mut WeightList, part: Part, prefixes: [&str; 2]) {
        let config = &self.config;
        let hidden = || config.hidden_dim();
        let inner = || Dim { field: self.inner, size: config.intermediate_size };
        let name = |(own, gguf): Name| [format!("{}.{own}", prefixes[0]), format!("{}.{gguf}", prefixes[1])];
        match part {
            Part::Mamba => self.mamba.list(list, config, prefixes),
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
                MlpParts::Gated { names: [gate, up, down], fused: [gate_up, all_down] } => {
                    let width = config.intermediate_size;
                    for (of, first) in [(gate, 0), (up, width)] {
                        let stacked = vec![(format!("{}.{gate_up}", prefixes[0]), first..first + width)];
                        let module = matrix(name(of), inner(), hidden());
                        list.push(ModuleSpec { stacked, ..module });
                    }
                    let stacked = vec![(format!("{}.{all_down}", prefixes[0]), 0..config.hidden_size)];
                    list.push(ModuleSpec { stacked, ..matrix(name(down), hidden(), inner()) });
                }
            },
        }
    }

    /// Loads a part of `layer`, whose names begin with `prefix`; what it keeps is the model's `state`-th.
    fn load_part(
        &self,
        loader: &Loader<'_>,
        part: Part,
        [layer, state]: [usize; 2],
        prefix: &str,
    ) -> Result<Block> {
        let linear = |(own, _): Name| Linear::load(loader, &format!("{prefix}.{own}"));
        let activation = self.config.hidden_act;
        Ok(match (part, &self.sparse) {
            (Part::Mamba, _) => Block::Mamba(Box::new(self.mamba.load(loader, state, prefix)?)),
            (Part::Attention, _) => {
                let [q, k, v, output] = self.attention;
                let qkv = [linear(q)?, linear(k)?, linear(v)?];
                let attention = Attention::of(&self.config, layer, qkv, linear(output)?);
                Block::Attention(Box::new(attention.of_state(state)))
            }
            (Part::Experts, Some(sparse)) => Block::Experts(Box::new(sparse.load(loader, layer, prefix)?)),
            (Part::Experts | Part::Mlp, _) => Block::Mlp(match self.mlp {
                MlpParts::Plain([fc1, fc2]) => {
                    Mlp::Plain { fc1: linear(fc1)?, fc2: linear(fc2)?, activation }
                }
                MlpParts::Gated { names: [gate, up, down], .. } => {
                    Mlp::Gated { gate: linear(gate)?, up: linear(up)?, down: linear(down)?, activation }
                }
            }),
        })
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
        let kept = |(part, _): &(Part, Name)| match part {
            Part::Mamba => Some(self.mamba.state()),
            Part::Attention => Some(StateSpec::Kv { heads, k_dim: dim, v_dim: dim, window: None }),
            Part::Mlp | Part::Experts => None,
        };
        self.parts.iter().flatten().filter_map(kept).collect()
    }

    fn more_activations(&self) -> usize {
        let shared = self.sparse.as_ref().and_then(|sparse| sparse.shared);
        shared.map_or(0, |shared| 3 * shared.inner)
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
        let mut parts = Vec::new();
        let mut state = 0;
        for (layer, of) in self.parts.iter().enumerate() {
            let prefix = format!("{}.{layer}", self.layers);
            for (i, &(part, (norm, _))) in of.iter().enumerate() {
                parts.push(Joined {
                    norm: RmsNorm::load(loader, &format!("{prefix}.{norm}"), 0.0)?,
                    block: self.load_part(loader, part, [layer, state], &prefix)?,
                    ends: (i + 1 == of.len()).then_some(layer),
                });
                state += usize::from(matches!(part, Part::Mamba | Part::Attention));
            }
        }
        Ok(Box::new(Decoder {
            states: self.states(),
            vocabulary: Vocabulary::load(loader, self.embed_tokens.0, self.lm_head.0)?,
            parts,
            norm: RmsNorm::load(loader, self.norm.0, 0.0)?,
            residual: self.config.residual_multiplier,
        }))
    }
}

/// What a part computes.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a part, which is never moved")]
enum Block {
    Mamba(Box<MambaLayer>),
    Attention(Box<Attention>),
    Mlp(Mlp),
    Experts(Box<SparseMlp>),
}

impl Block {
    /// `[T, D]` → `[T, D]`.
    fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mamba(mamba) => mamba.forward(step, x),
            Self::Attention(attention) => attention.forward(step, x),
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
    residual: f32,
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
            let mut added = part.block.forward(step, &h)?;
            if self.residual != 1.0 {
                added = step.scale(&added, self.residual)?;
            }
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
