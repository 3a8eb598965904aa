//! What there is of a model before it is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::TemplateChoice;
use crate::backend::LlmBackendKind;
use crate::backend::kv::KvType;
use crate::config::{Config, GenerationConfig};
use crate::engine::ModelBytes;
use crate::error::{Error, Result};
use crate::files::{self, bundle::Bundle};
use crate::forward::{Architecture, generation_from_gguf};
use crate::tensor::DType;
use crate::text::{ChatTemplate, SpecialTokens, Tokenizer};
use crate::weights::{Access, Checkpoint, Stored, TensorInfo, gguf, quantized};

/// What there is of a model before it is loaded: headers and small files, no weight is read.
#[derive(Debug)]
pub struct ModelFiles {
    /// The directory, the (first) GGUF file, or the name of the built-in model.
    pub path: PathBuf,
    /// What `config.json`, or the metadata in its place, describes.
    pub architecture: Architecture,
    /// `generation_config.json`, or what the metadata says in its place.
    pub generation: GenerationConfig,
    /// The weights' names, types and shapes.
    pub checkpoint: Checkpoint,
}

impl ModelFiles {
    /// Opens the directory or GGUF file `path`, reading headers alone. A directory without `config.json` may hold one
    /// model in GGUF files.
    ///
    /// # Errors
    /// A file that is missing, malformed or hostile, and a model that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_by(path, Access::Map)
    }

    /// As [`Self::open`], with another way to the weights' bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_by(path: &Path, access: Access) -> Result<Self> {
        if !files::is_dir(path) {
            if path.is_file()
                && let Some(bundle) = Bundle::open(path)?
            {
                return Self::open_by(&path.join(bundle.model), access);
            }
            let what = match files::is_there(path) {
                true if gguf::is_gguf(path)? => return Self::open_gguf(path, access),
                true => "is a file",
                false => "does not exist",
            };
            let what = format!("{what}; expected a directory with config.json, or a GGUF file");
            return Err(Error::format(path, what));
        }
        if !files::exists(&path.join("config.json"))
            && let Some(file) = Checkpoint::find_gguf(path)?
        {
            return Self::open_gguf(&file, access);
        }
        if !files::exists(&path.join("config.json")) {
            return Err(Error::format(path, format!("holds no model: {}", what_it_holds(path))));
        }
        let mut architecture = Architecture::read(&path.join("config.json"))?;
        let generation = GenerationConfig::load(&path.join("generation_config.json"))?;
        let mut checkpoint = Checkpoint::open_by(path, access)?;
        architecture.adopt(&mut checkpoint)?;
        let mut files = Self { path: path.to_owned(), architecture, generation, checkpoint };
        // The classes that embedders name may be those that generate.
        if files.architecture.lacks_head(&files.checkpoint) && files.makes_vectors() {
            files.architecture.leave_head();
        }
        Ok(files)
    }

    /// A model in a GGUF file, or in several of which `path` is the first.
    fn open_gguf(path: &Path, access: Access) -> Result<Self> {
        let mut checkpoint = Checkpoint::open_by(path, access)?;
        let Some(metadata) = checkpoint.gguf() else { return Err(Error::format(path, "not a GGUF file")) };
        let generation = generation_from_gguf(metadata)?;
        let mut architecture = Architecture::from_gguf(&checkpoint)?;
        architecture.adopt(&mut checkpoint)?;
        Ok(Self { path: path.to_owned(), architecture, generation, checkpoint })
    }

    /// The built-in model, which is part of the binary.
    ///
    /// # Errors
    /// None in a build that passed its tests.
    pub fn builtin() -> Result<Self> {
        let path = PathBuf::from(builtin::NAME);
        let mut architecture = Architecture::parse(&path.join("config.json"), builtin::CONFIG)?;
        let generation = GenerationConfig::parse(&path.join("generation_config.json"), builtin::GENERATION)?;
        let mut checkpoint = Checkpoint::from_static(builtin::NAME, builtin::WEIGHTS)?;
        architecture.adopt(&mut checkpoint)?;
        Ok(Self { path, architecture, generation, checkpoint })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.architecture.config()
    }

    /// Whether this is the built-in model.
    pub fn is_builtin(&self) -> bool {
        self.path == Path::new(builtin::NAME)
    }

    /// The model's name: its directory's, or its file's without the ending; in the Hugging Face cache its repository's.
    pub fn name(&self) -> String {
        let canonical = self.path.canonicalize();
        let path = canonical.as_deref().unwrap_or(&self.path);
        let folder = |path: &Path| path.parent()?.file_name()?.to_str().map(str::to_owned);
        // What is called by the hash of its bytes is known by the link to them.
        let path = if folder(path).as_deref() == Some("blobs") { &self.path } else { path };
        if folder(path).as_deref() == Some("snapshots")
            && let Some(repository) = path.parent().and_then(folder)
            && let Some((_, name)) = repository.rsplit_once("--")
        {
            return name.to_owned();
        }
        let name = path
            .file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        match self.checkpoint.gguf() {
            Some(_) => gguf::model_name(&name).to_owned(),
            None => name,
        }
    }

    /// The tensors as the model sees them, a quantized matrix as one, in the order of their names.
    pub fn tensors(&self) -> Vec<Stored> {
        quantized::stored(&self.checkpoint, self.config().quantization.as_ref())
    }

    /// How many numbers the weights are.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(Stored::elements).sum()
    }

    /// The type of the largest part of the weights, as the files name it: `affine4 g64`, `BF16`, `Q4_K`.
    pub fn weight_type(&self) -> String {
        let mut bytes = BTreeMap::<String, u64>::new();
        for tensor in self.tensors() {
            *bytes.entry(tensor.kind).or_default() += tensor.bytes;
        }
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(String::new, |(kind, _)| kind)
    }

    /// The type of the largest part of the weights, which activations on MLX and the KV cache take: of MLX's affine codes,
    /// that of the scales; blocks of a GGUF file, whose scales are `f16`, count as that.
    pub fn dtype(&self) -> DType {
        let mut bytes = [(DType::F32, 0), (DType::F16, 0), (DType::BF16, 0)];
        for tensor in self.checkpoint.tensors() {
            let dtype = tensor.dtype().or(tensor.format().map(|_| DType::F16));
            for (of, sum) in &mut bytes {
                if dtype == Some(*of) {
                    *sum += tensor.bytes();
                }
            }
        }
        bytes.iter().max_by_key(|(_, bytes)| *bytes).map_or(DType::F32, |(dtype, _)| *dtype)
    }

    /// The tokenizer; none where the directory has none, and the model is then run from token ids alone.
    ///
    /// # Errors
    /// A file that is malformed or hostile.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let rows = self.config().vocab_size;
        if let Some(metadata) = self.checkpoint.gguf() {
            return metadata.tokenizer(rows);
        }
        if self.is_builtin() {
            let path = self.path.join("tokenizer.json");
            return Tokenizer::from_bytes(&path, builtin::TOKENIZER, rows).map(Some);
        }
        Tokenizer::open(&self.path, rows)
    }

    /// The chat template, where the model has one.
    ///
    /// # Errors
    /// A template that does not parse.
    pub fn template(&self, tokenizer: Option<&Tokenizer>) -> Result<Option<ChatTemplate>> {
        self.template_as(None, tokenizer)
    }

    /// Another chat template than the model's own, where `choice` names one.
    ///
    /// # Errors
    /// As [`Self::template`], a file that cannot be read, and a name that no template has.
    pub fn template_as(
        &self,
        choice: Option<&TemplateChoice>,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Option<ChatTemplate>> {
        let mut template = match choice {
            Some(TemplateChoice::File(path)) => Some(ChatTemplate::read(path, self.special_tokens()?)?),
            Some(TemplateChoice::Named(name)) if name == "chatml" => {
                Some(ChatTemplate::chatml(self.special_tokens()?)?)
            }
            Some(TemplateChoice::Named(name)) => match self.own_template()? {
                Some(own) => Some(own.select(name)?),
                None => return Err(self.no_template(name)),
            },
            None => self.own_template()?,
        };
        if let (Some(template), Some(tokenizer)) = (&mut template, tokenizer) {
            // What a user types stays text, even where it looks like one of these.
            template.protect(tokenizer.special_texts())?;
        }
        Ok(template)
    }

    fn no_template(&self, name: &str) -> Error {
        let got = crate::json::quote(name);
        Error::Option { option: "chat_template", got, expected: "a file, or chatml: the model has none" }
    }

    /// The texts that templates know as `bos_token`, `eos_token`, ….
    fn special_tokens(&self) -> Result<BTreeMap<String, String>> {
        match self.checkpoint.gguf() {
            Some(metadata) => {
                let special = metadata.special_tokens()?.into_iter();
                Ok(special.map(|(name, text)| (name.to_owned(), text)).collect())
            }
            None if self.is_builtin() => Ok(BTreeMap::new()),
            None => Ok(SpecialTokens::load(&self.path)?.named),
        }
    }

    fn own_template(&self) -> Result<Option<ChatTemplate>> {
        match self.checkpoint.gguf() {
            Some(metadata) => {
                ChatTemplate::from_named(&self.path, metadata.chat_templates()?, self.special_tokens()?)
            }
            None if self.is_builtin() => {
                let path = self.path.join("tokenizer_config.json");
                ChatTemplate::from_config(&path, builtin::TOKENIZER_CONFIG)
            }
            None => ChatTemplate::load(&self.path),
        }
    }

    /// The bytes that all of it is read from, but for the tokenizer's.
    pub(super) fn bytes(&self) -> Result<ModelBytes> {
        if self.is_builtin() {
            return ModelBytes::new([], &[builtin::CONFIG, builtin::WEIGHTS]);
        }
        let settings = ["config.json", "hf_quant_config.json"].map(|name| self.path.join(name));
        let mut files: Vec<PathBuf> = settings.into_iter().filter(|path| files::exists(path)).collect();
        let weights: BTreeSet<&Path> = self.checkpoint.tensors().map(TensorInfo::file).collect();
        let first = (!files::is_dir(&self.path)).then_some(self.path.as_path());
        files.extend(first.into_iter().chain(weights).map(Path::to_owned));
        // The settings again as they were understood.
        ModelBytes::new(files, &[format!("{:?}", self.config()).as_bytes()])
    }

    /// Bytes that K and V of one token take in all layers.
    pub fn kv_token_bytes(&self, kind: KvType) -> u64 {
        let states = self.architecture.states();
        states.iter().map(|state| state.token_bytes(kind, LlmBackendKind::Cpu)).sum()
    }
}

/// What is in a directory that is no model's, and what is expected.
fn what_it_holds(dir: &Path) -> String {
    const MOST: usize = 8;
    let expected = "expected config.json with *.safetensors, or one model's GGUF file";
    let entries = files::names(dir).unwrap_or_default();
    let mut names: Vec<String> = entries.iter().take(256).map(|name| crate::json::quote(name)).collect();
    names.sort_unstable();
    match names.len() {
        0 => format!("it is empty, {expected}"),
        n if n > MOST => format!("{expected}; it has {}, …", names[..MOST].join(", ")),
        _ => format!("{expected}; it has {}", names.join(", ")),
    }
}

/// The built-in model's files, as `tools/builtin/train.py` made them.
pub(super) mod builtin {
    pub const NAME: &str = "stories (built in)";
    pub const CONFIG: &[u8] = include_bytes!("../../assets/stories/config.json");
    pub const GENERATION: &[u8] = include_bytes!("../../assets/stories/generation_config.json");
    pub const TOKENIZER: &[u8] = include_bytes!("../../assets/stories/tokenizer.json");
    pub const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../assets/stories/tokenizer_config.json");
    pub const WEIGHTS: &[u8] = include_bytes!("../../assets/stories/model.safetensors");
}
