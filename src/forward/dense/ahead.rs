//! A layer behind the last that guesses the token after the next one. For each token it sees what the model made of the token before,
//! normed, beside the token's own embedding, and is a layer like the others from there on; its head is the model's. Behind its first
//! guess it goes on with what it made itself. DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 2.2.

use super::super::blocks::{Linear, Norm, Vocabulary, norm_spec};
use super::super::list::{Dim, GgufSpec, ModuleSpec, WeightList};
use super::super::loader::Loader;
use super::super::step::Step;
use super::super::{Ahead, Arguments, Forward};
use super::decoder::Decoder;
use super::{Dense, NormKind};
use crate::backend::ops::StateSpec;
use crate::backend::{Op, Tensor};
use crate::config::{Config, Rotation};
use crate::error::Result;
use crate::weights::Form;

/// Tokens of a vocabulary that a part of the head is for. Byte-pair encodings number tokens as they were merged, the most common first: of
/// English and of programs 92 to 95 % are among these, and the head is most of what a guess costs in a small model.
pub(crate) const FIRST: usize = 32_768;

/// What a family's files call the parts of such a layer. GGUF files all have the same names.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct AheadNames {
    /// What the names of its layer begin with, up to the number.
    pub layers: &'static str,
    /// Whether it is numbered behind the model's own layers, and all other names are within it; else its number is 0.
    pub numbered: bool,
    /// The projection of both, side by side, back to their width.
    pub join: &'static str,
    /// The norms of the embedding, of what the model made, and of what the layer makes.
    pub norms: [&'static str; 3],
}

impl AheadNames {
    /// The field of Qwen's configurations that counts such layers. Of files that say one and have none it is left out.
    pub const FIELD: &str = "mtp_num_hidden_layers";

    /// Qwen's.
    pub const APART: Self = Self {
        layers: "mtp.layers",
        numbered: false,
        join: "mtp.fc",
        norms: ["mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"],
    };

    /// DeepSeek's and GLM's.
    pub const BEHIND: Self = Self {
        layers: "model.layers",
        numbered: true,
        join: "eh_proj",
        norms: ["enorm", "hnorm", "shared_head.norm"],
    };

    /// The names of the join and of the norms, in a directory and in GGUF.
    fn parts(self, number: usize) -> [[String; 2]; 4] {
        const GGUF: [&str; 4] = ["eh_proj", "enorm", "hnorm", "shared_head_norm"];
        let [embedding, hidden, last] = self.norms;
        let own = [self.join, embedding, hidden, last];
        std::array::from_fn(|i| {
            let name = match self.numbered {
                true => format!("{}.{number}.{}", self.layers, own[i]),
                false => own[i].to_owned(),
            };
            [name, format!("blk.{number}.nextn.{}", GGUF[i])]
        })
    }
}

impl Config {
    /// Of a model of one layer that is like the last one.
    fn of_last_layer(&self) -> Self {
        let last = |of: &[usize]| of.last().copied().into_iter().collect();
        Self {
            num_hidden_layers: 1,
            heads_by_layer: last(&self.heads_by_layer),
            rotations: vec![self.rotations.last().copied().unwrap_or(Rotation::Global)],
            windows: vec![self.windows.last().copied().flatten()],
            ..self.clone()
        }
    }
}

impl Dense {
    /// The decoder of one layer that the layer ahead is, beside its names.
    fn ahead_layer(&self) -> Option<(Self, AheadNames)> {
        let names = self.ahead?;
        let config = self.config.of_last_layer();
        let number = self.config.num_hidden_layers;
        let mut sparse = self.sparse.clone();
        if let Some(sparse) = &mut sparse {
            sparse.layers = vec![true];
            sparse.used.truncate(1);
        }
        let first = [if names.numbered { number } else { 0 }, number];
        let (delta, conv, ahead) = (None, None, None);
        let layer = Self { config, layers: names.layers, first, sparse, delta, conv, ahead, ..self.clone() };
        Some((layer, names))
    }

    /// Adds its weights to the list.
    pub(super) fn list_ahead(&self, list: &mut WeightList) {
        let Some((layer, names)) = self.ahead_layer() else { return };
        let config = &self.config;
        let [join, norms @ ..] = names.parts(config.num_hidden_layers);
        let [name, gguf] = join;
        list.push(ModuleSpec {
            name,
            rows: config.hidden_dim(),
            columns: Some(Dim { field: "2 * hidden_size", size: 2 * config.hidden_size }),
            bias: false,
            form: Form::Plain,
            gguf: Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() }),
            stacked: Vec::new(),
        });
        for name in norms {
            list.push(norm_spec(name, config.hidden_dim(), self.norms));
        }
        layer.list_layer(list, 0);
    }

    /// What it is, beside its weights.
    pub(super) fn describe_ahead(&self) -> Option<Ahead> {
        let (layer, names) = self.ahead_layer()?;
        let mut list = WeightList::default();
        self.list_ahead(&mut list);
        let needed = names.parts(self.config.num_hidden_layers).map(|[own, _]| own);
        Some(Ahead { states: layer.states(), config: layer.config, needed, list })
    }

    /// Its forward pass, which shares `vocabulary`.
    pub(super) fn load_layer_ahead(
        &self,
        loader: &Loader<'_>,
        vocabulary: Vocabulary,
    ) -> Result<Option<Box<dyn Forward>>> {
        let Some((layer, names)) = self.ahead_layer() else { return Ok(None) };
        let stored = |kind: NormKind| self.stored(loader, kind);
        let head_norms = layer.head_norms.map(|of| super::HeadNorms { kind: stored(of.kind), ..of });
        let layer = Dense { norms: stored(layer.norms), head_norms, ..layer };
        let [join, norms @ ..] = names.parts(self.config.num_hidden_layers);
        let norm = |[name, _]: &[String; 2]| Norm::load(loader, name, layer.norms);
        let [embedding, hidden, last] = &norms;
        let decoder = Decoder {
            states: layer.states(),
            vocabulary,
            embed_norm: None,
            positions: None,
            layers: vec![layer.load_layer(loader, 0)?],
            // Where a file has none it is the model's, as in llama.cpp.
            norm: match loader.has(&last[0]) {
                true => norm(last)?,
                false => Norm::load(
                    loader,
                    self.norm.0,
                    self.stored(loader, self.last_norm.unwrap_or(self.norms)),
                )?,
            },
            parallel: layer.parallel,
            residual: layer.config.residual_multiplier,
            summed: false,
        };
        let first = decoder.vocabulary.first_rows(loader, FIRST);
        let (embedding, hidden, join) = (norm(embedding)?, norm(hidden)?, Linear::fixed(loader, &join[0])?);
        Ok(Some(Box::new(AheadDecoder { embedding, hidden, join, decoder, first })))
    }
}

/// The forward pass of a layer ahead.
#[derive(Debug)]
struct AheadDecoder {
    embedding: Norm,
    hidden: Norm,
    join: Linear,
    decoder: Decoder,
    /// The head over the first [`FIRST`] tokens, of a larger vocabulary.
    first: Option<Linear>,
}

impl Forward for AheadDecoder {
    fn states(&self) -> Vec<StateSpec> {
        self.decoder.states()
    }

    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let embedded = self.embedding.forward(step, &self.decoder.vocabulary.embed(step)?)?;
        let carried = self.hidden.forward(step, step.carried()?)?;
        let both = step.run(&Op::Join { a: &embedded, b: &carried })?; // [T, 2 D]
        let x = self.join.forward(step, &both)?;
        self.decoder.through(step, x)
    }

    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        match &self.first {
            Some(head) if step.is_of_first() => self.decoder.vocabulary.logits_by(Some(head), step, hidden),
            _ => self.decoder.logits(step, hidden),
        }
    }
}
