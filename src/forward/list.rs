//! The list of a model's weights: what a family's file says once of each, and all that follows from it. Checkpoints are
//! checked against it and loaded by it, GGUF files are read and written by its names.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::quant::Format;
use crate::tensor::Shape;
use crate::weights::{Adopted, AdoptedDims, Checkpoint, Form, TensorInfo, quantized};

/// A module's name in a Hugging Face checkpoint, and its name in GGUF: in a layer, those within it.
pub(super) type Name = (&'static str, &'static str);

/// A dimension of a weight, and the fields of the configuration that it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dim {
    /// `hidden_size`, or `num_attention_heads * head_dim`.
    pub field: &'static str,
    /// Elements.
    pub size: usize,
}

/// The dimensions that the configuration knows.
impl Config {
    pub(crate) fn vocab_dim(&self) -> Dim {
        Dim { field: "vocab_size", size: self.vocab_size }
    }

    pub(crate) fn hidden_dim(&self) -> Dim {
        Dim { field: "hidden_size", size: self.hidden_size }
    }

    pub(crate) fn inner_dim(&self) -> Dim {
        Dim { field: "intermediate_size", size: self.intermediate_size }
    }

    pub(crate) fn query_dim(&self, layer: usize) -> Dim {
        Dim { field: "num_attention_heads * head_dim", size: self.heads(layer) * self.head_dim }
    }

    pub(crate) fn key_dim(&self) -> Dim {
        Dim { field: "num_key_value_heads * head_dim", size: self.num_key_value_heads * self.head_dim }
    }

    pub(crate) fn qkv_dim(&self) -> Dim {
        Dim {
            field: "(num_attention_heads + 2 * num_key_value_heads) * head_dim",
            size: (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim,
        }
    }

    pub(crate) fn head_dim(&self) -> Dim {
        Dim { field: "head_dim", size: self.head_dim }
    }

    pub(crate) fn positions_dim(&self) -> Dim {
        Dim { field: "max_position_embeddings", size: self.max_position_embeddings }
    }
}

/// One module of a model: its weight, and its bias where it may have one.
#[derive(Debug, Clone)]
pub(crate) struct ModuleSpec {
    /// The path in a Hugging Face checkpoint, without `.weight`.
    pub name: String,
    /// Rows of the weight; the elements of a vector.
    pub rows: Dim,
    /// Columns of a matrix; none of a vector.
    pub columns: Option<Dim>,
    /// Whether the checkpoint may hold a bias, as long as the weight has rows.
    pub bias: bool,
    /// How it lies in a Hugging Face checkpoint.
    pub form: Form,
    /// Where it is in a GGUF file, where it has a name there.
    pub gguf: Option<GgufSpec>,
    /// Tensors of directories that hold it among others, and its rows there: those of an expert in `[E, N, K]`, counted over
    /// all experts. Each is the path without `.weight`, or the whole name.
    pub stacked: Vec<(String, Range<usize>)>,
}

/// A module in a GGUF file.
#[derive(Debug, Clone)]
pub(crate) struct GgufSpec {
    /// The path, without `.weight`.
    pub name: String,
    /// How it lies there.
    pub form: Form,
    /// Tensors that files have in its place and that of others, and its rows there.
    pub fused: Vec<(String, Range<usize>)>,
}

impl ModuleSpec {
    /// Dimensions of the weight.
    pub fn shape(&self) -> Shape {
        std::iter::once(self.rows.size).chain(self.columns.as_ref().map(|columns| columns.size)).collect()
    }

    /// Whether its tensor goes by the module's name alone.
    pub fn is_bare(&self) -> bool {
        self.stacked.first().is_some_and(|(name, _)| *name == self.name)
    }
}

/// One projection of all experts of a layer, as MLX directories and GGUF files hold it: `[E, N, K]`.
#[derive(Debug, Clone)]
pub(crate) struct StackSpec {
    /// The path in an MLX directory, without `.weight`.
    pub mlx: String,
    /// The path in a GGUF file.
    pub gguf: String,
    /// The module of each expert.
    pub each: Vec<String>,
    /// The modules that hold it over or under another projection in some checkpoints, and its first row there.
    pub fused: Option<(Vec<String>, usize)>,
    /// Rows and columns of an expert.
    pub shape: [usize; 2],
    /// A format that what has it keeps when the rest is quantized.
    pub published: Option<Format>,
}

/// What mlx-lm quantizes otherwise than the rest of a family: ends of modules' paths.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InMlx {
    /// In eight bits.
    pub eight_bits: &'static [&'static str],
    /// Not at all.
    pub exact: &'static [&'static str],
}

/// What of a matrix each of several ranks has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// Some of its rows, and as many elements of its bias: of a fused projection, some of each part's.
    Rows,
    /// Some of its columns; its products are summed over the ranks.
    Columns,
}

/// A module that a tensor holds, its rows there, and how they lie.
type HeldRows<'a> = (&'a ModuleSpec, Range<usize>, Form);

/// Every module of a model, in the order of its layers.
#[derive(Debug, Clone, Default)]
pub(crate) struct WeightList {
    modules: Vec<ModuleSpec>,
    by_name: HashMap<String, usize>,
    by_gguf: HashMap<String, Vec<usize>>,
    by_stack: HashMap<String, Vec<usize>>,
    stacks: Vec<StackSpec>,
    in_mlx: InMlx,
    tables: HashSet<String>,
    splits: HashMap<String, Split>,
}

impl WeightList {
    /// Adds a module.
    pub fn push(&mut self, module: ModuleSpec) {
        let at = self.modules.len();
        self.by_name.insert(module.name.clone(), at);
        if let Some(gguf) = &module.gguf {
            let fused = gguf.fused.iter().map(|(name, _)| name).filter(|name| **name != gguf.name);
            for name in std::iter::once(&gguf.name).chain(fused) {
                self.by_gguf.entry(name.clone()).or_default().push(at);
            }
        }
        for (name, _) in &module.stacked {
            self.by_stack.entry(name.clone()).or_default().push(at);
        }
        self.modules.push(module);
    }

    /// Adds a stack of modules that are on the list.
    pub fn push_stack(&mut self, stack: StackSpec) {
        self.stacks.push(stack);
    }

    /// Every stack, in the order of the layers.
    pub fn stacks(&self) -> &[StackSpec] {
        &self.stacks
    }

    /// Says what mlx-lm quantizes otherwise than the rest.
    pub fn set_in_mlx(&mut self, in_mlx: InMlx) {
        self.in_mlx = in_mlx;
    }

    /// What mlx-lm quantizes otherwise than the rest.
    pub fn in_mlx(&self) -> InMlx {
        self.in_mlx
    }

    /// Adds a matrix of which rows are looked up, and nothing else.
    pub fn push_table(&mut self, module: ModuleSpec) {
        self.tables.insert(module.name.clone());
        self.push(module);
    }

    /// Adds a matrix of which each of several ranks has a part.
    pub fn push_split(&mut self, module: ModuleSpec, split: Split) {
        self.splits.insert(module.name.clone(), split);
        self.push(module);
    }

    /// What of the module `name` each of several ranks has, where that is not all of it.
    pub fn split_of(&self, name: &str) -> Option<Split> {
        self.splits.get(name).copied()
    }

    /// Whether a tensor, by its name in a Hugging Face checkpoint, is of such a matrix.
    pub fn is_of_table(&self, tensor: &str) -> bool {
        self.of_tensor(tensor).is_some_and(|module| self.tables.contains(&module.name))
    }

    /// The names of all modules.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(|module| &*module.name)
    }

    /// The module `name`.
    pub fn get(&self, name: &str) -> Option<&ModuleSpec> {
        self.by_name.get(name).map(|&at| &self.modules[at])
    }

    /// The module that a tensor belongs to, by the tensor's name in a Hugging Face checkpoint.
    pub fn of_tensor(&self, tensor: &str) -> Option<&ModuleSpec> {
        let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
        self.get(module).or_else(|| self.get(tensor))
    }

    /// Names the tensors of a checkpoint as the list does: those of a GGUF file by their names there, those of a directory
    /// that begin with one of `prefixes`, a pair of what they begin with and what the list has in its place; one with a dot first is
    /// what they hold.
    ///
    /// # Errors
    /// Two tensors of one name.
    pub fn adopt(&self, checkpoint: &mut Checkpoint, prefixes: &[(&str, &str)]) -> Result<()> {
        if checkpoint.gguf().is_some() {
            return checkpoint.adopt(|info| self.adopted_from_gguf(info));
        }
        checkpoint.adopt(|info| {
            let stored = info.name();
            let name = canonical(stored, prefixes);
            let parts = self.stacked(&name, info);
            if !parts.is_empty() {
                return parts;
            }
            let module = name.rsplit_once('.').and_then(|(module, leaf)| Some((self.get(module)?, leaf)));
            let form = match module {
                Some((module, "weight" | "bias")) if info.dtype().is_some() => module.form,
                _ => Form::Plain,
            };
            // A bias has one dimension, which is no matrix to be turned.
            let form = if info.shape().len() == 1 && form == Form::Transposed { Form::Plain } else { form };
            // Of a convolution of channels, each has a matrix of one row, or of one column.
            let is_matrix = module.is_some_and(|(module, leaf)| module.columns.is_some() && leaf == "weight");
            let dims = match info.shape() {
                [_, 1, _] | [_, _, 1] if is_matrix => AdoptedDims::Squeezed,
                _ => AdoptedDims::Same,
            };
            match name == stored && form == Form::Plain && dims == AdoptedDims::Same {
                true => Vec::new(),
                false => vec![Adopted { name, form, rows: None, of: None, dims }],
            }
        })
    }

    /// The modules that are held by a tensor of a directory, each of which has some of its rows.
    fn stacked(&self, name: &str, info: &TensorInfo) -> Vec<Adopted> {
        let (shape, is_dense) = (info.shape(), info.dtype().is_some());
        let split = name.rsplit_once('.');
        let parts = split.and_then(|(stack, leaf)| Some((stack, self.by_stack.get(stack)?, leaf)));
        let bare = match () {
            () if name.ends_with("bias") => "bias",
            () if name.ends_with("_scales") => "scales",
            () => "weight",
        };
        let is_bare = parts.is_none();
        let Some((stack, modules, leaf)) = parts.or_else(|| Some((name, self.by_stack.get(name)?, bare)))
        else {
            return self.stacked_scales(name, shape);
        };
        // Every module has as many of the rows: all of them are those of the last.
        let held = |module: &ModuleSpec| {
            let rows = module.stacked.iter().find(|(of, _)| of == stack).map(|(_, rows)| rows.clone());
            rows.unwrap_or_default()
        };
        let part = |module: &ModuleSpec| -> (Range<usize>, Form, AdoptedDims) {
            let rows = held(module);
            let expert = rows.start / rows.len().max(1);
            let of_expert = |height: usize| expert * height..(expert + 1) * height;
            match (shape, &module.columns) {
                // A vector that some files have as one row.
                ([1, _] | [1, 1, _, 1], None) => (0..1, Form::Plain, AdoptedDims::Vector),
                // Of an expert, a row of the biases of all.
                ([_, _], Some(_)) if leaf == "bias" => (of_expert(1), Form::Plain, AdoptedDims::Vector),
                // Stacks with a name of their own below them are MLX's, whose rows are rows; so are those that transformers writes of
                // what it read turned.
                (&[_, height, width], Some(columns))
                    if module.form.is_turned()
                        && is_dense
                        && leaf == "weight"
                        && (!is_bare
                            || (module.form == Form::Transposed
                                && [height, width] == [module.rows.size, columns.size]
                                && height != width)) =>
                {
                    (of_expert(module.rows.size), Form::Plain, AdoptedDims::Same)
                }
                _ if !is_bare && module.form.is_turned() => {
                    (of_expert(module.rows.size), Form::Plain, AdoptedDims::Same)
                }
                _ if leaf == "weight" && is_dense => (rows, module.form, AdoptedDims::Same),
                _ => (rows, Form::Plain, AdoptedDims::Same),
            }
        };
        let found: Vec<&ModuleSpec> = modules.iter().map(|&at| &self.modules[at]).collect();
        let all = found.iter().map(|module| part(module).0.end).max();
        let adopted = found.into_iter().map(|module| {
            let (rows, form, dims) = part(module);
            Adopted { name: format!("{}.{leaf}", module.name), form, rows: Some(rows), of: all, dims }
        });
        adopted.collect()
    }

    /// The modules whose scales of blocks a tensor holds beside the stack of their codes, as `transformers` has FP8 experts: `[E]`, or
    /// `[E, N, K]` of as many blocks an expert. None where a block would be of two modules.
    fn stacked_scales(&self, name: &str, shape: &[usize]) -> Vec<Adopted> {
        let found =
            name.strip_suffix("_scale_inv").and_then(|stack| Some((stack, self.by_stack.get(stack)?)));
        let (Some((stack, modules)), &[experts, ref each @ ..]) = (found, shape) else { return Vec::new() };
        let (down, [] | [_, _]) = (each.first().copied().unwrap_or(1), each) else { return Vec::new() };
        let modules = modules.iter().map(|&at| &self.modules[at]);
        let held: Vec<_> = modules
            .filter_map(|module| {
                let (_, rows) = module.stacked.iter().find(|(of, _)| of == stack)?;
                Some((module, rows.clone()))
            })
            .collect();
        let all = held.iter().map(|(_, rows)| rows.end).max().unwrap_or(0);
        let of_expert = all.checked_div(experts).filter(|each| each * experts == all);
        let height = of_expert.and_then(|each| Some((each, each.checked_div(down)?)));
        let Some((of_expert, height)) = height.filter(|(each, height)| *height > 0 && height * down == *each)
        else {
            return Vec::new();
        };
        let part = |rows: &Range<usize>| -> Option<Range<usize>> {
            let (expert, from) = (rows.start / of_expert, rows.start % of_expert);
            let first = expert * down + from / height;
            match down {
                1 => Some(first..first + 1),
                _ if from.is_multiple_of(height) && rows.len().is_multiple_of(height) => {
                    Some(first..first + rows.len() / height)
                }
                _ => None,
            }
        };
        let adopted = held.iter().map(|(module, rows)| {
            let name = format!("{}.weight_scale_inv", module.name);
            let (form, dims) = (Form::Plain, AdoptedDims::Same);
            Some(Adopted { name, form, rows: Some(part(rows)?), of: Some(experts.checked_mul(down)?), dims })
        });
        adopted.collect::<Option<Vec<_>>>().unwrap_or_default()
    }

    /// The modules that a tensor of a GGUF file holds, by its path, each with its rows there and how they lie, and how many rows it has.
    pub fn of_gguf(&self, path: &str) -> (Vec<HeldRows<'_>>, usize) {
        let modules = self.by_gguf.get(path).into_iter().flatten().map(|&at| &self.modules[at]);
        let held = modules.filter(|module| module.columns.is_some()).filter_map(|module| {
            let gguf = module.gguf.as_ref()?;
            let own = (gguf.name == path).then_some(0..module.rows.size);
            let rows = gguf.fused.iter().find(|(fused, _)| fused == path).map(|(_, rows)| rows.clone());
            Some((module, rows.or(own)?, gguf.form))
        });
        let held: Vec<_> = held.collect();
        let all = held.iter().map(|(_, rows, _)| rows.end).max().unwrap_or(0);
        (held, all)
    }

    /// The modules that a path of a quantized model's configuration means: one, or all of a stack.
    pub fn meant_by(&self, path: &str) -> Vec<String> {
        match self.by_stack.get(path) {
            Some(modules) => modules.iter().map(|&at| self.modules[at].name.clone()).collect(),
            None => vec![path.to_owned()],
        }
    }

    fn adopted_from_gguf(&self, info: &TensorInfo) -> Vec<Adopted> {
        // A vector whose tensor has the name of the module, as some files have norms, too.
        let named = self.by_gguf.get(info.name()).and_then(|modules| modules.first());
        if let Some(module) = named.map(|&at| &self.modules[at]).filter(|module| module.columns.is_none()) {
            // Mamba's have a row for each head.
            let dims = if info.shape().len() >= 2 { AdoptedDims::Flat } else { AdoptedDims::Same };
            let name = format!("{}.weight", module.name);
            return vec![Adopted { name, form: Form::Plain, rows: None, of: None, dims }];
        }
        let Some((stored, leaf)) = info.name().rsplit_once('.') else { return Vec::new() };
        let found = self.by_gguf.get(stored).into_iter().flatten().map(|&at| &self.modules[at]);
        let held = |module: &ModuleSpec| -> Option<Range<usize>> {
            let fused = &module.gguf.as_ref()?.fused;
            fused.iter().find(|(fused, _)| fused == stored).map(|(_, rows)| rows.clone())
        };
        // Of a tensor that holds several: all of its rows, which are those of the last.
        let all = found.clone().filter_map(held).map(|rows| rows.end).max();
        let adopted = found.filter_map(|module| {
            let gguf = module.gguf.as_ref()?;
            let form = match gguf.form {
                Form::PlusOne if leaf != "weight" => Form::Plain,
                form => form,
            };
            let rows = held(module);
            // Of an expert, a row of the biases of all.
            if let ("bias", [_, _], Some(_), Some(rows)) = (leaf, info.shape(), &module.columns, &rows) {
                let each = rows.len().max(1);
                let (expert, of) = (rows.start / each, all.map(|all| all / each));
                let (name, dims) = (format!("{}.bias", module.name), AdoptedDims::Vector);
                return Some(Adopted { name, form: Form::Plain, rows: Some(expert..expert + 1), of, dims });
            }
            let dims = match (info.shape(), &module.columns) {
                // Of stretches of a row, which have weights of their own.
                ([_, _], None) if rows.is_none() => AdoptedDims::Flat,
                ([_, _], None) => AdoptedDims::Vector,
                ([_], Some(_)) if leaf == "weight" => AdoptedDims::Row,
                // Of a convolution of channels.
                ([_, _, _, ..], Some(_)) if rows.is_none() => AdoptedDims::Matrix,
                _ => AdoptedDims::Same,
            };
            let of = all.filter(|_| rows.is_some());
            Some(Adopted { name: format!("{}.{leaf}", module.name), form, rows, of, dims })
        });
        adopted.collect()
    }

    /// Checks the dimensions of the configuration against the shapes of the checkpoint's matrices, whatever their type: of
    /// quantized ones, the shapes that they stand for. Where they differ, the weights are right and the configuration is
    /// refused. Tensors that are missing are left to [`Checkpoint::get`], which names them.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, its value, and the tensor that contradicts it.
    pub fn check(&self, config: &Config, checkpoint: &Checkpoint) -> Result<()> {
        for module in &self.modules {
            let Some(columns) = &module.columns else { continue };
            check_matrix(config, checkpoint, &module.name, &module.rows, columns)?;
        }
        Ok(())
    }
}

/// The name of the list for a name of a file.
pub(crate) fn canonical(stored: &str, prefixes: &[(&str, &str)]) -> String {
    let found = prefixes.iter().find_map(|(prefix, list)| Some((stored.strip_prefix(prefix)?, list)));
    let mut name = found.map_or_else(|| stored.to_owned(), |(rest, list)| format!("{list}{rest}"));
    for (within, list) in prefixes.iter().filter(|(within, _)| within.starts_with('.')) {
        if name.contains(within) {
            name = name.replacen(within, list, 1);
        }
    }
    name
}

fn check_matrix(
    config: &Config,
    checkpoint: &Checkpoint,
    module: &str,
    rows: &Dim,
    columns: &Dim,
) -> Result<()> {
    let name = format!("{module}.weight");
    let packed = config
        .quantization
        .as_ref()
        .and_then(|of| quantized::describe(checkpoint, of, module, Some(columns.size)));
    let shape: Shape = match (packed, checkpoint.find(&name)) {
        (Some((_, shape)), _) => shape.as_slice().into(),
        // Words and bytes, whose number says nothing about columns: the loader finds what is wrong.
        (None, Some(info)) if matches!(&*info.dtype_name(), "U32" | "U8") => return Ok(()),
        (None, Some(info)) => info.shape().into(),
        (None, None) => return Ok(()),
    };
    let (dim, expected) = match *shape {
        [r, c] if (r, c) == (rows.size, columns.size) => return Ok(()),
        [r, _] if r != rows.size => (rows, format!("{r}, the rows of {name} {shape:?}")),
        [_, c] => (columns, format!("{c}, the columns of {name} {shape:?}")),
        _ => (rows, format!("{name} to be a matrix, and it is {shape:?}")),
    };
    let file = match checkpoint.gguf() {
        Some(_) => checkpoint.path().to_owned(),
        None => checkpoint.path().join("config.json"),
    };
    Err(Error::config(&file, dim.field, dim.size, expected))
}
