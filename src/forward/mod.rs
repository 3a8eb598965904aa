//! Forward passes: a file a family, the blocks that they are built of, and the table of families, a line each.

pub mod adapt;
mod afmoe;
mod bert;
pub mod blocks;
mod camembert;
mod cohere2;
mod deepseek_v2;
mod deepseek_v3;
mod delta;
mod dense;
mod distilbert;
mod dots1;
mod encoder;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod falcon_h1;
mod gemma2;
mod gemma3_text;
mod gemma3n_gguf;
mod gemma3n_text;
mod gemma4_gguf;
mod gemma4_text;
mod gemma4_unified_text;
mod gguf;
mod gguf_delta;
mod gguf_experts;
mod gguf_latent;
mod gguf_mamba;
mod gguf_members;
mod glm4;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granitemoe;
mod granitemoehybrid;
mod hunyuan_v1_dense;
mod hunyuan_v1_moe;
mod hybrid;
mod kimi_k2;
mod kimi_linear;
mod laguna;
mod latent;
mod layer_embeddings;
mod lfm2;
mod lfm2_moe;
mod list;
mod llama;
mod llama4_text;
mod loader;
mod mamba;
mod mamba2;
mod minimax_m2;
mod ministral3;
mod mistral;
mod mistral4;
mod mixtral;
mod modernbert;
pub(crate) mod modules;
mod mpnet;
mod muse_glimmer_text;
mod nemotron;
mod nemotron_h;
mod nomic_bert;
mod normal;
mod olmo2;
mod olmo3;
mod olmo_hybrid;
mod olmoe;
mod phi;
mod phi3;
mod phimoe;
mod pooling;
mod project;
mod qwen2;
mod qwen2_5_vl_text;
mod qwen2_moe;
mod qwen3;
mod qwen3_5_moe_text;
mod qwen3_5_text;
mod qwen3_moe;
mod qwen3_next;
mod qwen3_vl_moe_text;
mod qwen3_vl_text;
mod roberta;
mod seed_oss;
mod short_conv;
mod smollm3;
mod sparse;
mod stablelm;
mod starcoder2;
pub mod step;
mod taps;
#[cfg(test)]
mod tests;
mod unknown;
mod xlm_roberta;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::backend::ops::StateSpec;
use crate::backend::ranks::Rank;
use crate::backend::{LlmBackendDispatch, PreparedMatrix, Tensor};
use crate::config::{Config, IS_CAUSAL, Shared};
use crate::error::{Error, Result};
use crate::files;
use crate::json::Fields;
use crate::json::{self, Value, quote};
use crate::quant::Quantization;
use crate::weights::Checkpoint;
use step::Step;

pub use adapt::{Adapter, Places, Update};
pub(crate) use dense::FIRST;
pub(crate) use gguf::{Gguf, config_from_gguf, generation_from_gguf};
pub(crate) use gguf_experts::{GgufExperts, GgufNorm};
pub(crate) use list::{InMlx, ModuleSpec, Split, StackSpec, WeightList};
pub use loader::Loader;
pub(crate) use pooling::{Head, score_squash};
pub use pooling::{Pool, Pooling};
pub use unknown::Unknown;

/// The table of families, in the order that errors list them.
pub(crate) static FAMILIES: [&Family; 70] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &phi::FAMILY,
    &phi3::FAMILY,
    &gemma2::FAMILY,
    &gemma3_text::FAMILY,
    &ministral3::FAMILY,
    &smollm3::FAMILY,
    &olmo2::FAMILY,
    &olmo3::FAMILY,
    &granite::FAMILY,
    &seed_oss::FAMILY,
    &glm4::FAMILY,
    &cohere2::FAMILY,
    &exaone4::FAMILY,
    &ernie4_5::FAMILY,
    &starcoder2::FAMILY,
    &gpt2::FAMILY,
    &gpt_neox::FAMILY,
    &stablelm::FAMILY,
    &hunyuan_v1_dense::FAMILY,
    &nemotron::FAMILY,
    &qwen2_5_vl_text::FAMILY,
    &qwen3_vl_text::FAMILY,
    &mixtral::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &olmoe::FAMILY,
    &granitemoe::FAMILY,
    &glm4_moe::FAMILY,
    &dots1::FAMILY,
    &ernie4_5_moe::FAMILY,
    &minimax_m2::FAMILY,
    &hunyuan_v1_moe::FAMILY,
    &gpt_oss::FAMILY,
    &qwen3_vl_moe_text::FAMILY,
    &afmoe::FAMILY,
    &deepseek_v2::FAMILY,
    &deepseek_v3::FAMILY,
    &kimi_k2::FAMILY,
    &glm4_moe_lite::FAMILY,
    &mistral4::FAMILY,
    &phimoe::FAMILY,
    &llama4_text::FAMILY,
    &laguna::FAMILY,
    &qwen3_5_text::FAMILY,
    &qwen3_5_moe_text::FAMILY,
    &qwen3_next::FAMILY,
    &olmo_hybrid::FAMILY,
    &kimi_linear::FAMILY,
    &lfm2::FAMILY,
    &lfm2_moe::FAMILY,
    &gemma3n_text::FAMILY,
    &gemma4_text::FAMILY,
    &gemma4_unified_text::FAMILY,
    &muse_glimmer_text::FAMILY,
    &granitemoehybrid::FAMILY,
    &nemotron_h::FAMILY,
    &mamba2::FAMILY,
    &falcon_h1::FAMILY,
    &bert::FAMILY,
    &xlm_roberta::FAMILY,
    &roberta::FAMILY,
    &camembert::FAMILY,
    &distilbert::FAMILY,
    &mpnet::FAMILY,
    &modernbert::FAMILY,
    &nomic_bert::FAMILY,
];

/// Models whose text is a part: the `model_type` of the whole, and that of the text where the part does not say.
const WHOLES: [(&str, &str); 12] = [
    ("gemma3", "gemma3_text"),
    ("gemma3n", "gemma3n_text"),
    ("gemma4", "gemma4_text"),
    ("gemma4_unified", "gemma4_unified_text"),
    ("llama4", "llama4_text"),
    ("mistral3", "mistral"),
    ("muse_glimmer", "muse_glimmer_text"),
    ("qwen3_5", "qwen3_5_text"),
    ("qwen3_5_moe", "qwen3_5_moe_text"),
    ("qwen3_vl", "qwen3_vl_text"),
    ("qwen3_vl_moe", "qwen3_vl_moe_text"),
    ("qwen2_5_vl", "qwen2_5_vl_text"),
];

/// What names of the text's tensors begin with in a model that it is a part of, as its publishers, transformers and MLX have it.
const TEXT_PART: &[(&str, &str)] = &[
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("embed_tokens.", "model.embed_tokens."),
    ("layers.", "model.layers."),
    ("norm.", "model.norm."),
];

/// The same of a decoder without its head, as embedders are published.
const BARE: Prefixes =
    &[("embed_tokens.", "model.embed_tokens."), ("layers.", "model.layers."), ("norm.", "model.norm.")];

/// Members of the whole's configuration that hold for the text where its own part does not have them.
const OUTER: [&str; 10] = [
    "tie_word_embeddings",
    "vocab_size",
    "quantization",
    "quantization_config",
    "bos_token_id",
    "eos_token_id",
    "dtype",
    "torch_dtype",
    "rope_scaling",
    "rope_theta",
];

/// What the names of classes end with that have another head than one over the vocabulary.
const HEADS: [&str; 4] =
    ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForRewardModel"];

/// A family, as its file declares it.
pub(crate) struct Family {
    /// The `model_type` of `config.json`.
    pub model_type: &'static str,
    /// What it calls the fields that all families share, and what their absence means.
    pub shared: Shared,
    /// Reads what it has beside these.
    pub arguments: fn(&Fields<'_>, Config) -> Result<Box<dyn Arguments>>,
    /// Its form in GGUF, where it has one.
    pub gguf: Option<Gguf>,
    /// What the names of tensors may begin with in a directory, and what the list of weights has in its place.
    pub prefixes: Prefixes,
}

/// Pairs of what names begin with in a file, and what the list of weights has in its place; what has a dot first, they may hold.
type Prefixes = &'static [(&'static str, &'static str)];

impl Family {
    /// The family of a `model_type`.
    pub fn named(model_type: &str) -> Option<&'static Self> {
        FAMILIES.into_iter().find(|family| family.model_type == model_type)
    }

    /// Resolves the fields of a configuration of this family.
    fn read(&'static self, fields: &Fields<'_>, prefixes: Option<Prefixes>) -> Result<Architecture> {
        let config = self.shared.read(fields, self.model_type)?;
        let arguments = (self.arguments)(fields, config)?;
        if !arguments.is_encoder() {
            check_decoder(fields, arguments.as_ref())?;
        }
        let prefixes = prefixes.unwrap_or(self.prefixes);
        Ok(Architecture { family: self, prefixes, arguments: arguments.into() })
    }
}

/// Whether a checkpoint whose tensors have their names has an output head.
fn has_head(checkpoint: &Checkpoint) -> bool {
    let of_head = |name: &str| name.starts_with("lm_head.") || name.starts_with("embed_out.");
    checkpoint.tensors().any(|info| of_head(info.name()))
}

/// Refuses what makes a decoder another model than one that generates, and is not built.
fn check_decoder(fields: &Fields<'_>, arguments: &dyn Arguments) -> Result<()> {
    const CLASSES: &str = "architectures";
    let classifies = |class: &&Value| matches!(class, Value::String(name) if HEADS.iter().any(|head| name.ends_with(head)));
    if let Some(class) = fields.list(CLASSES)?.into_iter().flatten().find(classifies) {
        let expected = "a class that generates or embeds: heads of decoders that classify are not built";
        return Err(fields.error(CLASSES, class, expected));
    }
    let config = arguments.config();
    let is_plain = |state: &StateSpec| matches!(state, StateSpec::Kv { window: None, .. });
    let plain = !config.chunked
        && config.windows.iter().all(Option::is_none)
        && arguments.states().iter().all(is_plain);
    if fields.flag(IS_CAUSAL)? == Some(false) && !plain {
        let expected = "true: layers with a window, latent vectors or states see no token behind them";
        return Err(fields.error(IS_CAUSAL, "false", expected));
    }
    Ok(())
}

/// The arguments of a family, resolved: what a model is, before its weights are there.
pub(crate) trait Arguments: fmt::Debug + Send + Sync {
    /// What all families share.
    fn config(&self) -> &Config;

    /// The same, to be changed.
    fn config_mut(&mut self) -> &mut Config;

    /// Every weight, once.
    fn weights(&self) -> WeightList;

    /// What each layer keeps of a sequence.
    fn states(&self) -> Vec<StateSpec>;

    /// Activations of a row, live at once, beside those of [`Self::config`] and [`Self::states`].
    fn more_activations(&self) -> usize {
        0
    }

    /// Whether it is an encoder, whose tokens see both sides whatever the configuration says.
    fn is_encoder(&self) -> bool {
        false
    }

    /// What it classifies texts by, where it does.
    fn head(&self) -> Option<&Head> {
        None
    }

    /// The part of `rank`, of a model that several compute together.
    ///
    /// # Errors
    /// A family that is not split, and a size that the number of ranks does not divide.
    fn of_rank(&self, rank: Rank) -> Result<Box<dyn Arguments>> {
        let got = format!("{} for a model of the family {}", rank.of(), self.config().model_type);
        Err(Error::Option { option: "ranks", got, expected: "one: it is not split yet" })
    }

    /// Whose part it is.
    fn rank(&self) -> Rank {
        Rank::ALONE
    }

    /// The layer behind the last that guesses the token after the next, where the files may have one.
    fn ahead(&self) -> Option<Ahead> {
        None
    }

    /// Goes on without it.
    fn leave_ahead(&mut self) {}

    /// Builds the forward pass of the weights on the list.
    ///
    /// # Errors
    /// A weight that is missing or does not have the configured shape.
    fn load(&self, loader: &Loader<'_>) -> Result<Box<dyn Forward>>;

    /// Builds that of the layer ahead of `model`, which this one built.
    ///
    /// # Errors
    /// As [`Self::load`].
    fn load_ahead(&self, _: &Loader<'_>, _model: &dyn Forward) -> Result<Option<Box<dyn Forward>>> {
        Ok(None)
    }
}

/// A layer behind the last that guesses the token after the next, before its weights are there.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// What all families share, of a model of this layer alone.
    pub config: Config,
    /// What it keeps of a sequence.
    pub states: Vec<StateSpec>,
    /// Modules that checkpoints with such a layer have: what joins both inputs, their norms, and the last norm.
    pub needed: [String; 4],
    /// Its weights, which are on the list of the model's, too.
    pub list: WeightList,
}

/// A model as its configuration describes it: the family, and the family's arguments.
#[derive(Clone)]
pub struct Architecture {
    family: &'static Family,
    prefixes: Prefixes,
    arguments: Arc<dyn Arguments>,
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.arguments.fmt(f)
    }
}

impl Architecture {
    /// Reads and resolves a `config.json`. Where it says nothing of quantization, an `hf_quant_config.json` beside it may.
    ///
    /// # Errors
    /// As [`Self::parse`]; [`crate::Error::Io`] where a file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let mut object = json::parse_object(path, &json::of_python(&files::read_json(path)?))?;
        let beside = path.with_file_name("hf_quant_config.json");
        if !object.contains_key("quantization")
            && !object.contains_key("quantization_config")
            && crate::files::exists(&beside)
        {
            let mut settings = json::parse_object(&beside, &files::read_json(&beside)?)?;
            settings.insert("quant_method".to_owned(), Value::String("modelopt".to_owned()));
            object.insert("quantization_config".to_owned(), Value::Object(settings));
        }
        Self::of_object(path, object)
    }

    /// Resolves the bytes of a `config.json`; `path` is for errors.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for what is not one JSON object without duplicate keys; [`crate::Error::Config`] for a
    /// family that is not known, and a value that is missing, mistyped or cannot be run, methods of quantization included.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::of_object(path, json::parse_object(path, &json::of_python(bytes))?)
    }

    fn of_object(path: &Path, mut object: json::Object) -> Result<Self> {
        let names = nomic_bert::renamed(&mut object);
        let fields = Fields::renamed(path, &object, &names);
        let name = fields.string("model_type")?;
        match WHOLES.into_iter().find(|(whole, _)| Some(*whole) == name) {
            Some((_, text)) => Self::of_text(path, &fields, text),
            None => family(&fields)?.read(&fields, None),
        }
    }

    /// Resolves the configuration of the text, `text` where it does not name itself, that is a part of a whole's.
    fn of_text(path: &Path, whole: &Fields<'_>, text: &str) -> Result<Self> {
        // The first of these models had the members of the text beside those of the rest.
        let (mut object, nested) = match whole.object("text_config")? {
            Some(part) => (part.members().clone(), true),
            None => (whole.members().clone(), false),
        };
        if !nested || !object.contains_key("model_type") {
            object.insert("model_type".to_owned(), Value::String(text.to_owned()));
        }
        let mut names: BTreeMap<String, String> =
            object.keys().map(|name| (name.clone(), format!("text_config.{name}"))).collect();
        if !nested {
            names.clear();
        }
        for name in OUTER {
            // Whether the head is the embedding is said outside, where it is said there at all.
            let wins = name == "tie_word_embeddings" || !object.contains_key(name);
            if let Some(value) = whole.get(name).filter(|_| nested && wins) {
                object.insert(name.to_owned(), value.clone());
                names.remove(name);
            }
        }
        let fields = Fields::renamed(path, &object, &names);
        family(&fields)?.read(&fields, Some(TEXT_PART))
    }

    /// Resolves the metadata of a GGUF model.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a value that is missing, mistyped or cannot be run.
    pub fn from_gguf(checkpoint: &Checkpoint) -> Result<Self> {
        config_from_gguf(checkpoint)
    }

    /// What all families share.
    pub fn config(&self) -> &Config {
        self.arguments.config()
    }

    /// The same, to be changed: only a description that nobody else holds is.
    #[cfg(test)]
    pub(crate) fn config_mut(&mut self) -> &mut Config {
        Arc::get_mut(&mut self.arguments).unwrap().config_mut()
    }

    /// Its form in GGUF, where it has one.
    pub(crate) fn gguf(&self) -> Option<&'static Gguf> {
        self.family.gguf.as_ref()
    }

    /// Every weight, once.
    pub(crate) fn weights(&self) -> WeightList {
        self.arguments.weights()
    }

    /// The name on the list of the module that directories, of whichever kind, call `path`.
    pub(crate) fn module_named(&self, list: &WeightList, path: &str) -> Option<String> {
        let tensor = format!("{path}.weight");
        let names =
            [tensor.clone(), list::canonical(&tensor, self.prefixes), list::canonical(&tensor, TEXT_PART)];
        let mut modules = names.iter().filter_map(|name| name.strip_suffix(".weight"));
        modules.find(|name| list.get(name).is_some()).map(str::to_owned)
    }

    /// The name that `name` of the list has in a directory that calls a tensor `stored`, where its text is part of a model.
    pub(crate) fn in_layout(&self, stored: &str, name: &str) -> Option<String> {
        let prefixes = self.prefixes.iter().filter(|prefix| TEXT_PART.contains(prefix));
        let mut held = prefixes.filter(|(file, _)| stored.starts_with(file));
        held.find_map(|(file, list)| Some(format!("{file}{}", name.strip_prefix(list)?)))
    }

    /// What each layer keeps of a sequence.
    pub fn states(&self) -> Vec<StateSpec> {
        self.arguments.states()
    }

    /// Activations of a row, live at once, beside those of [`Self::config`] and [`Self::states`].
    pub(crate) fn more_activations(&self) -> usize {
        self.arguments.more_activations()
    }

    /// What it classifies texts by, where it does.
    pub(crate) fn head(&self) -> Option<&Head> {
        self.arguments.head()
    }

    /// The part of `rank`, of a model that several compute together.
    ///
    /// # Errors
    /// A family that is not split, and a size that the number of ranks does not divide.
    pub fn of_rank(&self, rank: Rank) -> Result<Self> {
        if rank.is_alone() {
            return Ok(self.clone());
        }
        Ok(Self { arguments: self.arguments.of_rank(rank)?.into(), ..self.clone() })
    }

    /// Whose part of the weights it is.
    pub fn rank(&self) -> Rank {
        self.arguments.rank()
    }

    /// Whether it would generate but for its head, which is in no file.
    pub(crate) fn lacks_head(&self, checkpoint: &Checkpoint) -> bool {
        let config = self.config();
        !config.bidirectional && !config.tie_word_embeddings && !has_head(checkpoint)
    }

    /// Takes it for one without a head.
    pub(crate) fn leave_head(&mut self) {
        if let Some(arguments) = Arc::get_mut(&mut self.arguments) {
            arguments.config_mut().headless = true;
        }
    }

    /// Names the tensors of a checkpoint as the list of weights does, and checks the configuration against their shapes.
    ///
    /// # Errors
    /// Two tensors of one name; [`crate::Error::Config`] naming the field, its value, and the tensor that contradicts it.
    pub fn adopt(&mut self, checkpoint: &mut Checkpoint) -> Result<()> {
        let list = self.weights();
        list.adopt(checkpoint, self.prefixes)?;
        if let Some(arguments) = Arc::get_mut(&mut self.arguments) {
            arguments.config_mut().headless &= !has_head(checkpoint);
        }
        if let Some(arguments) = Arc::get_mut(&mut self.arguments)
            && let Some(Quantization::Mlx(mlx)) = &mut arguments.config_mut().quantization
        {
            let modules = std::mem::take(&mut mlx.modules).into_iter();
            let named = modules.map(|(path, of)| (list::canonical(&path, self.prefixes), of));
            mlx.modules = named
                .flat_map(|(path, of)| list.meant_by(&path).into_iter().map(move |path| (path, of)))
                .collect();
        }
        match self.leave_absent_ahead(checkpoint) {
            true => self.check_weights(checkpoint),
            false => list.check(self.config(), checkpoint),
        }
    }

    /// Goes on without the layer ahead where the checkpoint has none, or one of other shapes, which is said; whether it does.
    fn leave_absent_ahead(&mut self, checkpoint: &Checkpoint) -> bool {
        let Some(ahead) = self.arguments.ahead() else { return false };
        let is_there = checkpoint.find(&format!("{}.weight", ahead.needed[0])).is_some();
        let fits = if is_there { self.check_ahead(&ahead, checkpoint) } else { Ok(()) };
        if let Err(error) = &fits {
            tracing::warn!(%error, "the layer that guesses further tokens is left out");
        }
        let leaves = !is_there || fits.is_err();
        if let Some(arguments) = Arc::get_mut(&mut self.arguments).filter(|_| leaves) {
            arguments.leave_ahead();
        }
        leaves
    }

    /// Whether a checkpoint has what a layer ahead begins and ends with, and all that it has of it in its shapes.
    fn check_ahead(&self, ahead: &Ahead, checkpoint: &Checkpoint) -> Result<()> {
        let lacks = |module: &&String| checkpoint.find(&format!("{module}.weight")).is_none();
        // Of a GGUF file the last norm may be the model's.
        let needed = &ahead.needed[..ahead.needed.len() - usize::from(checkpoint.gguf().is_some())];
        match needed.iter().find(lacks) {
            Some(missing) => Err(Error::Weight {
                path: checkpoint.path().to_owned(),
                name: missing.clone(),
                what: "is missing".to_owned(),
            }),
            None => ahead.list.check(self.config(), checkpoint),
        }
    }

    /// The layer behind the last that guesses the token after the next, where there is one.
    pub(crate) fn ahead(&self) -> Option<Ahead> {
        self.arguments.ahead()
    }

    /// Checks the configuration against the shapes of the checkpoint's matrices.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the field, its value, and the tensor that contradicts it.
    pub fn check_weights(&self, checkpoint: &Checkpoint) -> Result<()> {
        self.weights().check(self.config(), checkpoint)
    }

    /// Builds the forward pass of a checkpoint that was adopted, its weights prepared for `ops`; `with_ahead`, that of the layer
    /// that guesses further tokens, too, where there is one that can be loaded.
    ///
    /// # Errors
    /// A weight that is missing or does not have the configured shape.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        ops: &LlmBackendDispatch,
        with_ahead: bool,
    ) -> Result<Loaded> {
        let list = self.weights();
        let loader = Loader::new(self.config(), &list, checkpoint, (ops, self.arguments.rank()));
        let forward = self.arguments.load(&loader)?;
        let ahead = match with_ahead {
            true => {
                let before = loader.linears();
                self.ahead_of(&loader, &*forward).unwrap_or_else(|error| {
                    tracing::warn!(%error, "the layer that guesses further tokens is left out");
                    loader.forget_linears(before);
                    None
                })
            }
            false => None,
        };
        let (linears, places) = loader.into_parts();
        Ok(Loaded { forward, ahead, linears, places })
    }

    /// The layer ahead of `model` in a checkpoint that was adopted and has this layer alone, and the matrices of its linear layers.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_ahead(
        &self,
        checkpoint: &Checkpoint,
        ops: &LlmBackendDispatch,
        model: &dyn Forward,
    ) -> Result<(Option<LoadedAhead>, Vec<PreparedMatrix>)> {
        let list = self.weights();
        let loader = Loader::new(self.config(), &list, checkpoint, (ops, self.arguments.rank()));
        let ahead = self.ahead_of(&loader, model)?;
        Ok((ahead, loader.into_parts().0))
    }

    fn ahead_of(&self, loader: &Loader<'_>, model: &dyn Forward) -> Result<Option<LoadedAhead>> {
        let Some(ahead) = self.arguments.ahead() else { return Ok(None) };
        let forward = self.arguments.load_ahead(loader, model)?;
        Ok(forward.map(|forward| (ahead.config, forward)))
    }
}

/// The forward pass of a layer ahead, and what all families share of a model of that layer alone.
pub type LoadedAhead = (Config, Box<dyn Forward>);

/// A loaded model's forward pass.
pub trait Forward: fmt::Debug {
    /// What each layer keeps of a sequence.
    fn states(&self) -> Vec<StateSpec>;

    /// The step's tokens → hidden states `[T, D]`, the last norm applied; the caches hold the step's keys and values.
    ///
    /// # Errors
    /// Those of the ops.
    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor>;

    /// Hidden states → logits `[S, V]` of the rows that the batch asks for.
    ///
    /// # Errors
    /// Those of the ops.
    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor>;

    /// Its embedding and head, where a layer ahead may share them.
    fn vocabulary(&self) -> Option<&blocks::Vocabulary> {
        None
    }
}

/// A forward pass, and the matrices of its linear layers, which a backend may want to ready.
#[derive(Debug)]
pub struct Loaded {
    /// The forward pass.
    pub forward: Box<dyn Forward>,
    /// The layer ahead.
    pub ahead: Option<LoadedAhead>,
    /// Every matrix that it multiplies by, in the order of the layers.
    pub linears: Vec<PreparedMatrix>,
    /// Where adapters may add to them.
    pub places: Places,
}

/// Whether a configuration names a family, or a model whose text may be of one.
fn knows(fields: &Fields<'_>) -> Result<bool> {
    let name = fields.string("model_type")?;
    Ok(name
        .is_some_and(|name| Family::named(name).is_some() || WHOLES.iter().any(|(whole, _)| *whole == name)))
}

/// The family that a configuration names.
fn family(fields: &Fields<'_>) -> Result<&'static Family> {
    let accepted = || FAMILIES.map(|family| family.model_type).join(", ");
    let name = fields.string("model_type")?.ok_or_else(|| fields.missing("model_type", accepted()))?;
    Family::named(name)
        .ok_or_else(|| fields.error("model_type", quote(name), format!("one of {}", accepted())))
}
