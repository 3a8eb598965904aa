//! Embeddings for each layer: of a token a row for every layer, to which something is added that is made of its embedding. Each
//! layer adds to the residual stream what its own becomes. Google DeepMind 2025, Gemma 3n.

use super::blocks::norm_spec;
use super::blocks::{Linear, NormKind, RmsNorm, root_in};
use super::list::{Dim, GgufSpec, ModuleSpec, Name, WeightList};
use super::loader::Loader;
use super::step::Step;
use crate::alloc;
use crate::backend::ops::Ids;
use crate::backend::{Op, PreparedMatrix, Tensor};
use crate::config::{Activation, Config};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::Form;

/// Rows of all layers side by side, what is made of the embedding, and its norm.
const TABLE: Name = ("model.embed_tokens_per_layer", "per_layer_token_embd");
const MADE: Name = ("model.per_layer_model_projection", "per_layer_model_proj");
const MADE_NORM: Name = ("model.per_layer_projection_norm", "per_layer_proj_norm");
/// Of a layer.
const GATE: Name = ("per_layer_input_gate", "inp_gate");
const OUTPUT: Name = ("per_layer_projection", "proj");
const NORM: Name = ("post_per_layer_input_norm", "post_norm");

const WIDTH: &str = "hidden_size_per_layer_input";
const ROWS: &str = "vocab_size_per_layer_input";

/// How many embeddings there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct EmbeddingDims {
    /// Tokens that have them; those behind them have the first one's.
    rows: usize,
    /// Elements of one.
    width: usize,
}

impl EmbeddingDims {
    /// Reads them; none where their width is 0 or null. `absent` is what its absence means.
    pub fn read(fields: &Fields<'_>, config: &Config, absent: usize) -> Result<Option<Self>> {
        let width = match fields.is_null(WIDTH) {
            true => 0,
            false => fields.size(WIDTH, 0, 1 << 16)?.unwrap_or(absent),
        };
        if width == 0 {
            return Ok(None);
        }
        let of = Self::of_width(fields, config, width)?;
        if of.rows < config.vocab_size {
            return Err(fields.error(ROWS, of.rows, format!("at least vocab_size, {}", config.vocab_size)));
        }
        Ok(Some(of))
    }

    /// The same of a family that has them always, though maybe not of every token.
    pub fn required(fields: &Fields<'_>, config: &Config, absent: usize) -> Result<Self> {
        let width = fields.size_or(WIDTH, Some(absent), 1 << 16)?;
        Self::of_width(fields, config, width)
    }

    fn of_width(fields: &Fields<'_>, config: &Config, width: usize) -> Result<Self> {
        let rows = fields.size_or(ROWS, Some(262_144), 1 << 30)?;
        // A row for each layer, counted in 32 bits.
        let most = u32::MAX as usize / config.num_hidden_layers;
        match rows <= most {
            true => Ok(Self { rows, width }),
            false => Err(fields.error(ROWS, rows, format!("at most {most}"))),
        }
    }

    /// Activations of a row: those of all layers, and what a layer makes of its own.
    pub fn activations(self, layers: usize) -> usize {
        (layers + 3) * self.width
    }

    fn width(self) -> Dim {
        Dim { field: WIDTH, size: self.width }
    }

    /// Adds what all layers share.
    pub fn list(self, list: &mut WeightList, config: &Config) {
        let rows = Dim { field: ROWS, size: self.rows };
        let all = config.num_hidden_layers * self.width;
        let all = Dim { field: "num_hidden_layers * hidden_size_per_layer_input", size: all };
        let name = |(own, gguf): Name| [own.to_owned(), gguf.to_owned()];
        list.push_table(matrix(name(TABLE), rows, all.clone()));
        list.push(matrix(name(MADE), all, config.hidden_dim()));
        list.push(norm_spec(name(MADE_NORM), self.width(), NormKind::Rms { offset: 0.0 }));
    }

    /// Adds what a layer has, whose names begin with `prefix` and with `blk`.
    pub fn list_layer(self, list: &mut WeightList, config: &Config, [prefix, blk]: [&str; 2]) {
        let name = |(own, gguf): Name| [format!("{prefix}.{own}"), format!("{blk}.{gguf}")];
        list.push(matrix(name(GATE), self.width(), config.hidden_dim()));
        list.push(matrix(name(OUTPUT), config.hidden_dim(), self.width()));
        list.push(norm_spec(name(NORM), config.hidden_dim(), NormKind::Rms { offset: 0.0 }));
    }

    /// Loads what all layers share.
    pub fn load(self, loader: &Loader<'_>) -> Result<LayerEmbeddings> {
        let whole = loader.matrix(TABLE.0)?;
        let Some(table) = whole.in_rows_of(self.width) else {
            let what = format!("its format has no rows of {}, those of a layer", self.width);
            return Err(loader.wrong(TABLE.0, what));
        };
        // The sum of both is divided by √2: each is here. What is made is divided by √D before its norm: D times as much added to the
        // mean square is the same.
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let (eps, width) = (loader.config.norm_eps, loader.config.hidden_size as f32);
        Ok(LayerEmbeddings {
            scale: root_in(table.dtype(), self.width) * half,
            table: loader.ops.table(&table),
            rows: self.rows as u32,
            made: Linear::equal_parts(loader, MADE.0, self.width)?,
            norm: RmsNorm::scaled(loader, MADE_NORM.0, half)?.with_eps(eps * width),
        })
    }

    /// Loads what a layer has, whose names begin with `prefix`.
    pub fn load_layer(self, loader: &Loader<'_>, prefix: &str) -> Result<OwnEmbedding> {
        let path = |name: Name| format!("{prefix}.{}", name.0);
        Ok(OwnEmbedding {
            gate: Linear::load(loader, &path(GATE))?,
            output: Linear::load(loader, &path(OUTPUT))?,
            norm: RmsNorm::load(loader, &path(NORM), 0.0)?,
            activation: loader.config.hidden_act,
        })
    }
}

fn matrix([name, gguf]: [String; 2], rows: Dim, columns: Dim) -> ModuleSpec {
    ModuleSpec {
        name,
        rows,
        columns: Some(columns),
        bias: false,
        form: Form::Plain,
        gguf: Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() }),
        stacked: Vec::new(),
    }
}

/// The embeddings of all layers.
#[derive(Debug)]
pub(super) struct LayerEmbeddings {
    /// `[V * L, P]`, where its file has it.
    table: PreparedMatrix,
    /// `V`.
    rows: u32,
    scale: f32,
    /// For each layer `[P, D]`.
    made: Vec<Linear>,
    norm: RmsNorm,
}

impl LayerEmbeddings {
    /// Those of the step's tokens, whose embeddings are `x` `[T, D]`: for each layer `[T, P]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Vec<Tensor>> {
        let read;
        let tokens: &[u32] = match step.batch.tokens.ids() {
            Ids::Known(ids) => ids,
            // The table is not where they are.
            Ids::Pending(ids) => {
                read = step.ops.ids(ids)?;
                &read
            }
        };
        let layers = self.made.len() as u32;
        let of_layer = |(layer, made): (u32, &Linear)| -> Result<Tensor> {
            let row = |&id: &u32| if id < self.rows { id } else { 0 } * layers + layer;
            let rows = alloc::collect(tokens.iter().map(row), "the rows of a step")?;
            let (table, scale) = (&self.table, self.scale);
            let own = step.run(&Op::Embedding { table, tokens: Ids::Known(&rows), scale })?;
            let made = self.norm.forward(step, &made.forward(step, x)?)?;
            step.add(&made, &own)
        };
        (0..layers).zip(&self.made).map(of_layer).collect()
    }
}

/// What a layer makes of its embeddings.
#[derive(Debug)]
pub(super) struct OwnEmbedding {
    gate: Linear,   // [P, D]
    output: Linear, // [D, P]
    norm: RmsNorm,
    activation: Activation,
}

impl OwnEmbedding {
    /// What is added to the residual stream `x` `[T, D]`, of embeddings `[T, P]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor, embedding: &Tensor) -> Result<Tensor> {
        let gate = step.activate(&self.gate.forward(step, x)?, self.activation)?;
        let gated = step.run(&Op::Mul { a: &gate, b: embedding })?; // [T, P]
        self.norm.forward(step, &self.output.forward(step, &gated)?)
    }
}
