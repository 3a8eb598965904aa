//! What becomes of the last hidden states where no token is to follow: one vector for a text, by what sentence-transformers writes
//! beside a model (`modules.json`), or the numbers of a head that classifies.

use std::path::Path;

use super::list::{Dim, ModuleSpec, WeightList};
use crate::alloc;
use crate::backend::cpu::kernels::reference_ops::gelu;
use crate::error::Result;
use crate::files;
use crate::json::{self, Fields, Value, quote};
use crate::weights::{Checkpoint, Form};

/// What memory is taken for.
const VECTOR: &str = "a vector of a text";
/// What sentence-transformers calls it among what modules hand to each other.
const VECTOR_NAME: &str = "sentence_embedding";
/// The widest vector that a dense module makes.
const MAX_WIDTH: usize = 1 << 20;

/// Which hidden states of a text are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// The mean of all tokens'.
    Mean,
    /// The first token's.
    First,
    /// The last token's.
    Last,
}

impl Pool {
    /// What it is called where one types it.
    pub const NAMES: [&str; 3] = ["mean", "cls", "last"];

    /// What it is called in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean of all tokens",
            Self::First => "the first token",
            Self::Last => "the last token",
        }
    }
}

impl std::str::FromStr for Pool {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "mean" => Ok(Self::Mean),
            "cls" => Ok(Self::First),
            "last" => Ok(Self::Last),
            _ => Err(format!("expected one of {}", Self::NAMES.join(", "))),
        }
    }
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squash {
    /// The number itself.
    Identity,
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
    /// `tanh(x)`.
    Tanh,
    /// `x · Φ(x)`.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

impl Squash {
    /// Those that PyTorch has as modules; `name` is the class with the modules that it is in.
    pub(super) fn of_class(name: &str) -> Option<Self> {
        Some(match name.strip_prefix("torch.nn.")?.rsplit('.').next()? {
            "Identity" => Self::Identity,
            "Sigmoid" => Self::Sigmoid,
            "Tanh" => Self::Tanh,
            "GELU" => Self::Gelu,
            "ReLU" => Self::Relu,
            _ => return None,
        })
    }

    /// What is accepted of [`Self::of_class`].
    const CLASSES: &'static str = "Identity, Sigmoid, Tanh, GELU or ReLU of torch.nn";

    pub(super) fn of(self, x: f64) -> f64 {
        match self {
            Self::Identity => x,
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::Gelu => gelu(x),
            Self::Relu => x.max(0.0),
        }
    }
}

/// What is done to the vector of a text, one after the other.
#[derive(Debug, Clone)]
enum Stage {
    /// `f(W · x + b)`.
    Dense {
        /// `[N, K]`.
        weight: Vec<f32>,
        /// `[N]`.
        bias: Vec<f32>,
        /// K.
        columns: usize,
        squash: Squash,
    },
    /// Layer norm.
    Norm { weight: Vec<f32>, bias: Vec<f32>, eps: f64 },
    /// Scaled to length 1.
    Normalize,
}

/// How the hidden states `[T, D]` of a text become one vector. It is computed in `f64`, once a text.
#[derive(Debug, Clone)]
pub struct Pooling {
    pool: Pool,
    stages: Vec<Stage>,
    width: usize,
    /// Whether anybody says so.
    trained: bool,
}

/// Refuses a module that reads or writes something else than the vector of a text.
fn of_vectors(fields: &Fields<'_>) -> Result<()> {
    for name in ["module_input_name", "module_output_name"] {
        if let Some(other) = fields.string(name)?.filter(|name| *name != VECTOR_NAME) {
            return Err(fields.error(name, quote(other), format!("{VECTOR_NAME}, the vector of a text")));
        }
    }
    Ok(())
}

impl Pooling {
    /// The mean of hidden states of `width` elements, scaled to length 1: what a model that was not trained to embed has to offer.
    pub fn mean(width: usize) -> Self {
        Self { pool: Pool::Mean, stages: vec![Stage::Normalize], width, trained: false }
    }

    /// The hidden states of `pool`, scaled to length 1.
    pub fn plain(pool: Pool, width: usize) -> Self {
        Self { pool, trained: true, ..Self::mean(width) }
    }

    /// The same of other hidden states, as whoever loads the model says.
    pub fn with_pool(self, pool: Pool) -> Self {
        Self { pool, trained: true, ..self }
    }

    /// Which hidden states are taken.
    pub fn pool(&self) -> Pool {
        self.pool
    }

    /// Elements of the vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether the model's files, or whoever loads it, say how: it was trained to embed.
    pub fn is_trained(&self) -> bool {
        self.trained
    }

    /// Whether vectors have length 1.
    pub fn normalizes(&self) -> bool {
        matches!(self.stages.last(), Some(Stage::Normalize))
    }

    /// Dense layers between hidden states and the vector.
    pub fn dense_layers(&self) -> usize {
        self.stages.iter().filter(|stage| matches!(stage, Stage::Dense { .. })).count()
    }

    /// Whether the hidden state of a text's token at `position` of `tokens` is taken.
    pub(crate) fn takes(&self, position: usize, tokens: usize) -> bool {
        match self.pool {
            Pool::Mean => true,
            Pool::First => position == 0,
            Pool::Last => position + 1 == tokens,
        }
    }

    /// The vector of a text of `tokens` tokens; `sum` is that of the hidden states that are taken.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn vector(&self, sum: &[f64], tokens: usize) -> Result<Vec<f32>> {
        // The direction of a mean is that of the sum.
        let directs = matches!(self.stages.first(), Some(Stage::Normalize));
        let by = if self.pool == Pool::Mean && !directs { 1.0 / tokens.max(1) as f64 } else { 1.0 };
        let mut x = alloc::collect(sum.iter().map(|x| x * by), VECTOR)?;
        for stage in &self.stages {
            x = stage.forward(x)?;
        }
        alloc::collect(x.iter().map(|&x| x as f32), VECTOR)
    }

    /// The first `width` elements of a vector, of length 1 where the whole has (Matryoshka embeddings, arXiv:2205.13147).
    pub(crate) fn shortened(&self, mut vector: Vec<f32>, width: usize) -> Vec<f32> {
        vector.truncate(width);
        if self.normalizes() && width < self.width {
            let by = to_one(vector.iter().map(|&x| f64::from(x)));
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) * by) as f32);
        }
        vector
    }

    /// The module `Pooling` in `dir`.
    pub(super) fn read(dir: &Path, width: usize) -> Result<Self> {
        let path = dir.join("config.json");
        let object = json::parse_object(&path, &files::read_json(&path)?)?;
        let fields = Fields::new(&path, &object);
        for name in ["word_embedding_dimension", "embedding_dimension"] {
            if let Some(got) = fields.size(name, 1, MAX_WIDTH)?.filter(|&got| got != width) {
                return Err(fields.error(name, got, format!("{width}, the model's hidden_size")));
            }
        }
        if fields.flag("include_prompt")? == Some(false) {
            tracing::warn!(
                "{}: include_prompt is false: sentence-transformers pools a prompt's tokens in no text, and here \
                 a prompt that is written before a text is a part of it",
                path.display()
            );
        }
        const FLAGS: [(&str, &str); 6] = [
            ("pooling_mode_cls_token", "cls"),
            ("pooling_mode_mean_tokens", "mean"),
            ("pooling_mode_max_tokens", "max"),
            ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
            ("pooling_mode_weightedmean_tokens", "weightedmean"),
            ("pooling_mode_lasttoken", "lasttoken"),
        ];
        const EXPECTED: &str = "one of mean, cls and lasttoken";
        let mut modes = Vec::new();
        match fields.get("pooling_mode") {
            Some(Value::String(mode)) => modes.push(("pooling_mode", mode.as_str())),
            Some(other) => return Err(fields.error("pooling_mode", other, EXPECTED)),
            None => {
                for (flag, mode) in FLAGS {
                    if fields.flag(flag)? == Some(true) {
                        modes.push((flag, mode));
                    }
                }
            }
        }
        let pool = match modes[..] {
            [] | [(_, "mean")] => Pool::Mean,
            [(_, "cls")] => Pool::First,
            [(_, "lasttoken")] => Pool::Last,
            [(name, mode)] => return Err(fields.error(name, quote(mode), EXPECTED)),
            [_, (name, _), ..] => return Err(fields.error(name, "true beside another", EXPECTED)),
        };
        Ok(Self { pool, stages: Vec::new(), width, trained: true })
    }

    /// The module `Normalize` in `dir`, where it need not have a file.
    pub(super) fn add_normalize(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join("config.json");
        if files::exists(&path) {
            let object = json::parse_object(&path, &files::read_json(&path)?)?;
            of_vectors(&Fields::new(&path, &object))?;
        }
        self.stages.push(Stage::Normalize);
        Ok(())
    }

    /// The module `Dense` in `dir`.
    pub(super) fn add_dense(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join("config.json");
        let object = json::parse_object(&path, &files::read_json(&path)?)?;
        let fields = Fields::new(&path, &object);
        let columns = fields.required("in_features", 1, MAX_WIDTH)?;
        let rows = fields.required("out_features", 1, MAX_WIDTH)?;
        if columns != self.width {
            return Err(fields.error(
                "in_features",
                columns,
                format!("{}, what comes before it", self.width),
            ));
        }
        crate::config::only(&fields, "use_residual", false, "nothing is added to what it makes")?;
        of_vectors(&fields)?;
        let class = fields.string("activation_function")?.unwrap_or("torch.nn.modules.activation.Tanh");
        let squash = Squash::of_class(class)
            .ok_or_else(|| fields.error("activation_function", quote(class), Squash::CLASSES))?;
        let has_bias = fields.flag("bias")?.unwrap_or(true);
        let checkpoint = Checkpoint::open(dir)?;
        let weight = checkpoint.get("linear.weight", &[rows, columns])?.widened()?;
        let bias = match has_bias {
            true => checkpoint.get("linear.bias", &[rows])?.widened()?,
            false => Vec::new(),
        };
        self.stages.push(Stage::Dense { weight, bias, columns, squash });
        self.width = rows;
        Ok(())
    }
}

impl Stage {
    fn forward(&self, x: Vec<f64>) -> Result<Vec<f64>> {
        match self {
            Self::Dense { weight, bias, columns, squash } => {
                let row = |(i, row): (usize, &[f32])| {
                    let product: f64 = row.iter().zip(&x).map(|(&w, &x)| f64::from(w) * x).sum();
                    squash.of(product + bias.get(i).map_or(0.0, |&b| f64::from(b)))
                };
                alloc::collect(weight.chunks_exact(*columns).enumerate().map(row), VECTOR)
            }
            Self::Norm { weight, bias, eps } => {
                let count = x.len().max(1) as f64;
                let mean = x.iter().sum::<f64>() / count;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                let by = 1.0 / (variance + eps).sqrt();
                let element = |(i, (x, &w)): (usize, (&f64, &f32))| {
                    (x - mean) * by * f64::from(w) + bias.get(i).map_or(0.0, |&b| f64::from(b))
                };
                alloc::collect(x.iter().zip(weight).enumerate().map(element), VECTOR)
            }
            Self::Normalize => {
                let by = to_one(x.iter().copied());
                Ok(x.into_iter().map(|x| x * by).collect())
            }
        }
    }
}

/// What scales a vector to length 1; 0 for one that has none.
fn to_one(values: impl Iterator<Item = f64>) -> f64 {
    let length = values.map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 { 1.0 / length } else { 0.0 }
}

/// The head of a model that classifies texts, as its family describes it: modules of the list of weights.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// Which hidden states it reads.
    pub pool: Pool,
    /// What it does to them.
    pub stages: Vec<HeadStage>,
}

/// A part of a head.
#[derive(Debug, Clone)]
pub(crate) enum HeadStage {
    /// A linear layer and what follows it.
    Dense { module: &'static str, rows: Dim, columns: Dim, squash: Squash },
    /// Layer norm.
    Norm { module: &'static str, dim: Dim, eps: f32 },
}

impl Head {
    /// Adds its modules to the list.
    pub fn list(&self, list: &mut WeightList) {
        for stage in &self.stages {
            let (name, rows, columns) = match stage {
                HeadStage::Dense { module, rows, columns, .. } => (module, rows, Some(columns.clone())),
                HeadStage::Norm { module, dim, .. } => (module, dim, None),
            };
            list.push(ModuleSpec {
                name: (*name).to_owned(),
                rows: rows.clone(),
                columns,
                bias: true,
                form: Form::Plain,
                gguf: None,
                stacked: Vec::new(),
            });
        }
    }

    /// Its weights, out of a checkpoint that was adopted, with `squash` behind its last part.
    ///
    /// # Errors
    /// A weight that is missing, or not dense.
    pub fn load(&self, checkpoint: &Checkpoint, squash: Squash) -> Result<Pooling> {
        let mut pooling = Pooling { pool: self.pool, stages: Vec::new(), width: 0, trained: true };
        for stage in &self.stages {
            let (module, shape) = match stage {
                HeadStage::Dense { module, rows, columns, .. } => (module, vec![rows.size, columns.size]),
                HeadStage::Norm { module, dim, .. } => (module, vec![dim.size]),
            };
            let weight = checkpoint.get(&format!("{module}.weight"), &shape)?.widened()?;
            let name = format!("{module}.bias");
            let bias = match checkpoint.find(&name) {
                Some(_) => checkpoint.get(&name, &shape[..1])?.widened()?,
                None => Vec::new(),
            };
            pooling.width = shape[0];
            pooling.stages.push(match stage {
                HeadStage::Dense { columns, squash, .. } => {
                    Stage::Dense { weight, bias, columns: columns.size, squash: *squash }
                }
                HeadStage::Norm { eps, .. } => Stage::Norm { weight, bias, eps: f64::from(*eps) },
            });
        }
        if let Some(Stage::Dense { squash: last, .. }) = pooling.stages.last_mut() {
            *last = squash;
        }
        Ok(pooling)
    }
}

/// What becomes of the numbers of a cross-encoder with `labels` of them, by its `config.json` or sentence-transformers' file.
///
/// # Errors
/// A file that is malformed, and a function that is not known.
pub(crate) fn score_squash(dir: &Path, labels: usize) -> Result<Squash> {
    let read = |name: &str| -> Result<Option<Squash>> {
        let path = dir.join(name);
        if !files::exists(&path) {
            return Ok(None);
        }
        let object = json::parse_object(&path, &files::read_json(&path)?)?;
        let fields = Fields::new(&path, &object);
        let own = fields.object("sentence_transformers")?;
        let own = own.map(|own| own.string("activation_fn")).transpose()?.flatten();
        let name = match own.or(fields.string("activation_fn")?) {
            Some(name) => Some(name),
            None => fields.string("sbert_ce_default_activation_function")?,
        };
        let squash = |name: &str| {
            Squash::of_class(name).ok_or_else(|| fields.error("activation_fn", quote(name), Squash::CLASSES))
        };
        name.map(squash).transpose()
    };
    if let Some(squash) = read("config_sentence_transformers.json")? {
        return Ok(squash);
    }
    let usual = if labels == 1 { Squash::Sigmoid } else { Squash::Identity };
    Ok(read("config.json")?.unwrap_or(usual))
}
