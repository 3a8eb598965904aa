//! A model: a directory or the built-in one → configuration, weights, tokenizer, chat template, and an engine that runs
//! it on the backend that fits.

mod adapters;
mod build;
mod draft;
mod headers;
mod memory;
mod outputs;
mod rank;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::backend::cpu::{Activations, Isa};
use crate::backend::kv::KvType;
use crate::backend::ops::OpKind;
use crate::backend::ranks::Rank;
use crate::backend::select::{self, BackendRequest, MemoryNeed, Selection};
use crate::backend::{Faults, LlmBackendKind, Policy};
use crate::config::{Config, GenerationConfig};
use crate::engine::{Cache, CacheOptions, Drafts, Engine, EngineOptions, Machine, Ranks};
use crate::error::{Error, Result, panic_text};
use crate::forward::{Adapter, Architecture, Pool, Pooling};
use crate::refusals;
use crate::sample::{Constraint, Grammar, GrammarCompiler};
use crate::tensor::DType;
use crate::text::{ChatTemplate, Message, RenderOptions, Tokenizer};
use crate::weights::{LoadProgress, Watch};

use outputs::but_for_reads;
use rank::Ranking;

pub use adapters::{AdapterInfo, AdapterSource};
pub use headers::ModelFiles;
use headers::builtin;
pub use memory::{LEAST_CONTEXT, MemorySetting};

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Which backend runs it.
    pub backend: BackendRequest,
    /// Threads of the CPU kernels; one per core where absent.
    pub threads: Option<usize>,
    /// What the model shares with others, in place of `threads` of its own.
    pub machine: Option<Machine>,
    /// Bytes that the model may take with all that it keeps and computes; what the machine has for it where absent.
    pub memory: Option<u64>,
    /// Tokens that a sequence may hold; what the model was trained for, as far as memory allows, where absent.
    pub context: Option<usize>,
    /// The type that K and V are kept in; that of the weights where absent.
    pub kv_type: Option<KvType>,
    /// Bytes that the KV cache of all sequences may take, with what is kept of ended ones for others that begin alike; what
    /// the model leaves of the memory where absent, at most twice what all sequences take.
    pub kv_memory: Option<u64>,
    /// The type of activations on MLX; that of the weights where absent. It has no effect on the CPU, which computes in `f32`.
    pub dtype: Option<DType>,
    /// What happens when MLX cannot do an op.
    pub policy: Policy,
    /// Ops that the CPU computes though MLX runs the model. They have no effect where the CPU runs it all.
    pub cpu_ops: Vec<OpKind>,
    /// Most tokens of one sequence in one step; the engine's default where absent.
    pub prefill_chunk: Option<usize>,
    /// Most sequences in flight, others wait; the engine's default where absent.
    pub max_sequences: Option<usize>,
    /// Whether tokens are guessed before they are computed. On the CPU no bit of a text depends on it.
    pub drafts: Drafts,
    /// A smaller model of the same vocabulary whose guesses are checked, or a file with the layer that was published for it: a directory
    /// or GGUF file. [`Drafts::Auto`] is then [`Drafts::On`].
    pub draft: Option<PathBuf>,
    /// The instruction set of the CPU kernels; the best one where absent.
    pub isa: Option<Isa>,
    /// How the CPU's activations meet quantized weights.
    pub activations: Activations,
    /// The chat template, where the model's own is not to be taken.
    pub chat_template: Option<TemplateChoice>,
    /// Which hidden states make the vector of a text, where the model's files do not say, or say it otherwise.
    pub pooling: Option<Pool>,
    /// The `backstop` program, for grammars that have to be checked; see [`GrammarCompiler::with_checker`].
    pub checker: Option<PathBuf>,
    /// Where the beginnings of prompts are kept on disk, beside the memory and longer than the process lives; nowhere where
    /// absent. With MLX there is none.
    pub cache: Option<CacheOptions>,
    /// Adapters to load beside the weights.
    pub adapters: Vec<AdapterSource>,
    /// Whether other ranks compute the model with this one, as MLX's [variables](crate::backend::ranks::VARIABLES) say. It is alone where
    /// absent, whatever these are.
    pub ranks: Option<Ranks>,
    /// Told how far the load is.
    pub progress: LoadProgress,
    /// Faults to inject: nothing outside tests.
    pub faults: Faults,
}

/// Another chat template than the model's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateChoice {
    /// In a file.
    File(PathBuf),
    /// One of several that the model has, or `chatml`.
    Named(String),
}

/// What a loaded model is: what the summary and `inspect` show.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The model's name.
    pub name: String,
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its defaults of generation.
    pub generation: GenerationConfig,
    /// The type of its weights.
    pub dtype: DType,
    /// The type of activations: `f32` on the CPU.
    pub activation_dtype: DType,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// How many numbers they are.
    pub parameters: u64,
    /// The type of the largest part of them, as its files name it.
    pub weight_type: String,
    /// Whether it is a GGUF file.
    pub gguf: bool,
    /// The backend taken, and why.
    pub selection: Selection,
    /// Tokens that a sequence may hold.
    pub context: usize,
    /// The type that K and V are kept in.
    pub kv_type: KvType,
    /// Bytes that K and V of one token take in all layers.
    pub kv_token_bytes: u64,
    /// Bytes that K and V of all sequences may take.
    pub kv_memory: u64,
    /// Bytes that it may take: weights as they lie in memory, keys and values, what a step makes, and those of its draft model.
    pub memory: u64,
}

impl ModelInfo {
    /// Whether this is the built-in model.
    pub fn is_builtin(&self) -> bool {
        self.name == builtin::NAME
    }
}

/// A loaded model. Clones share it; the last one dropped frees it.
#[derive(Clone)]
pub struct Model {
    info: Arc<ModelInfo>,
    tokenizer: Option<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    eos: Arc<[u32]>,
    suppressed: Arc<[u32]>,
    /// Made with the first constraint.
    grammars: Arc<OnceLock<GrammarCompiler>>,
    /// See [`LoadOptions::checker`].
    checker: Option<Arc<Path>>,
    watch: Watch,
    /// How it embeds, or why it cannot.
    pooling: std::result::Result<Arc<Pooling>, String>,
    /// See [`Self::cut_length`].
    cut_length: usize,
    /// Of pairs, where it is a cross-encoder, or why it cannot.
    ranking: std::result::Result<Option<Arc<Ranking>>, String>,
    architecture: Architecture,
    adapters: Arc<parking_lot::RwLock<Vec<adapters::Named>>>,
    /// See [`Self::with_adapter`].
    pub(crate) adapter: Option<Arc<Adapter>>,
    /// See [`Self::asked_by`].
    asked_by: Option<Arc<str>>,
    pub(crate) engine: Engine,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({} on {})", self.info.name, self.engine.backend())
    }
}

impl LoadOptions {
    /// Whether a model on `backend` guesses by a layer of its own, where it has one: on MLX, which computes several rows in another order
    /// than one, for those who ask for it.
    fn by_own_layer(&self, backend: LlmBackendKind) -> bool {
        let wanted = match self.drafts {
            Drafts::Auto => backend == LlmBackendKind::Cpu,
            Drafts::On => true,
            Drafts::Off => false,
        };
        wanted && self.draft.is_none()
    }
}

impl ModelFiles {
    /// Takes the part of the rank that `options` name, and has MLX run it.
    fn over_ranks(&mut self, options: LoadOptions) -> Result<LoadOptions> {
        let Some(Ranks { rank, .. }) = options.ranks.filter(|ranks| !ranks.rank.is_alone()) else {
            return Ok(options);
        };
        if options.cpu_ops.contains(&OpKind::AllSum) {
            let expected = "ops that the CPU can compute: a sum over ranks is MLX's alone";
            return Err(Error::Option { option: "cpu_ops", got: OpKind::AllSum.to_string(), expected });
        }
        let alone = |option, got: &str| {
            let expected = "none where several ranks compute a model";
            Err(Error::Option { option, got: got.to_owned(), expected })
        };
        if options.draft.is_some() {
            return alone("draft", "a model");
        }
        if !options.adapters.is_empty() {
            return alone("adapter", "an adapter");
        }
        self.architecture = self.architecture.of_rank(rank)?;
        let backend = match options.backend {
            BackendRequest::Auto => BackendRequest::Mlx,
            backend => backend,
        };
        Ok(LoadOptions { backend, ..options })
    }
}

impl Model {
    /// Loads the directory or GGUF file `path` onto the backend that fits.
    ///
    /// # Errors
    /// A file that is missing, malformed or hostile, and a model that is not supported.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(ModelFiles::open(path.as_ref())?, LoadOptions::default())
    }

    /// The built-in model.
    ///
    /// # Errors
    /// None in a build that passed its tests.
    ///
    /// ```
    /// let model = backstop::Model::builtin()?;
    /// assert_eq!(model.info().config.model_type, "llama");
    /// # Ok::<(), backstop::Error>(())
    /// ```
    pub fn builtin() -> Result<Self> {
        Self::load_with(ModelFiles::builtin()?, LoadOptions::default())
    }

    /// Loads what was opened, as asked.
    ///
    /// # Errors
    /// As [`Self::load`], and a backend that cannot be had.
    pub fn load_with(mut files: ModelFiles, options: LoadOptions) -> Result<Self> {
        files.checkpoint.tell(&options.progress);
        let options = files.over_ranks(options)?;
        let dtype = files.dtype();
        let kv_type = options.kv_type.unwrap_or(dtype.into());
        let trained = files.config().max_context();
        match options.context {
            Some(0) => return Err(Error::Option { option: "ctx", got: "0".into(), expected: "at least 1" }),
            Some(asked) if asked > trained => return Err(Error::Context { asked, trained }),
            _ => {}
        }
        let draft = files.draft(&options)?;
        let beside = |need: MemoryNeed, backend, context| match &draft {
            Some(draft) => need.beside(&draft.need_as_draft(backend, context, &options)),
            None => need,
        };
        let need = |backend| {
            let setting = files.memory_setting(backend, &options);
            beside(files.memory_need(setting), backend, setting.context)
        };
        let selection = select::select(options.backend, &need(LlmBackendKind::Mlx))?;
        let memory = [options.memory, select::memory_for(selection.kind)].into_iter().flatten().min();
        let context = options.context.unwrap_or_else(|| match &draft {
            Some(draft) => files.fitting_context_beside(draft, selection.kind, &options, memory),
            None => files.fitting_context(selection.kind, &options, memory),
        });
        let setting = MemorySetting { context, ..files.memory_setting(selection.kind, &options) };
        let need = beside(files.memory_need(setting), selection.kind, context);
        // Weights are read from their file as far as there is room; what a step makes has to be in memory.
        if let Some(available) = memory.filter(|&available| need.activations > available) {
            let what = format!("{}: what a step computes on its way", files.name());
            return Err(Error::Memory { what, needed: need.activations, available });
        }
        let activation_dtype = build::activation_dtype(&files, &options, selection.kind);
        let defaults = EngineOptions::default();
        let max_sequences = options.max_sequences.unwrap_or(defaults.max_sequences);
        let kv_token_bytes = files.kv_token_bytes(kv_type);
        // What nobody bounds holds the adapters that are asked for, too.
        let mut adapter_bytes = 0_u64;
        for adapter in &options.adapters {
            let read = crate::adapters::read(&adapter.path, adapter.scale, &files.architecture)?;
            adapter_bytes = adapter_bytes.saturating_add(read.bytes());
        }
        let kv_memory = options.kv_memory.unwrap_or_else(|| {
            let most = need.kv.saturating_mul(2 * max_sequences.max(1) as u64);
            let left = memory.map(|memory| memory.saturating_sub(adapter_bytes));
            select::kv_memory(&need, left, most).saturating_add(adapter_bytes)
        });
        let config = Arc::new(files.config().clone());
        let info = ModelInfo {
            name: files.name(),
            config: Arc::clone(&config),
            generation: files.generation.clone(),
            dtype,
            activation_dtype,
            weight_bytes: files.checkpoint.total_bytes(),
            parameters: files.parameters(),
            weight_type: files.weight_type(),
            gguf: files.checkpoint.gguf().is_some(),
            selection: selection.clone(),
            context,
            kv_type,
            kv_token_bytes,
            kv_memory,
            memory: need.weights.saturating_add(need.activations).saturating_add(kv_memory),
        };
        let cache = options.cache.as_ref().map(|cache| Cache::open(cache, files.bytes()?));
        let engine_options = EngineOptions {
            cache: cache.transpose()?.map(Arc::new),
            context,
            prefill_chunk: options.prefill_chunk.unwrap_or(defaults.prefill_chunk),
            max_sequences,
            kv_memory,
            drafts: options.drafts,
            machine: options.machine.clone(),
            ..defaults
        };
        // Of a model that generates nobody may ask for either: what is wrong with them is told to those who do.
        let (pooling, ranking) = match config.bidirectional {
            true => (Ok(files.pooling()?), Ok(files.ranking()?)),
            false => (but_for_reads(files.pooling())?, but_for_reads(files.ranking())?),
        };
        let pooling = pooling.map(|pooling| match options.pooling {
            Some(pool) => pooling.with_pool(pool),
            None => pooling,
        });
        if let Ok(pooling) = &pooling {
            files.warn_of_vectors(pooling);
        }
        let cut_length = files.cut_length(context)?;
        let adapters = options.adapters.clone();
        let checker = options.checker.as_deref().map(Arc::from);
        let watch = files.checkpoint.watch();
        let architecture = files.architecture.clone();
        let files = Arc::new(files);
        let draft = draft.map(Arc::new);
        let (beside, choice, other) = (Arc::clone(&files), options.chat_template.clone(), draft.clone());
        // Neither needs the other, and each takes about as long as the other.
        let thread = std::thread::Builder::new().name("backstop-tokenizer".into());
        let texts = refusals::spawn(thread, move || {
            let tokenizer = beside.tokenizer()?;
            if let Some(draft) = &other {
                beside.check_vocabulary(tokenizer.as_ref(), draft)?;
            }
            let template = beside.template_as(choice.as_ref(), tokenizer.as_ref())?.map(Arc::new);
            // Asked now rather than in the first request.
            if let Some(template) = &template {
                for tools in [false, true] {
                    template.reply_format(tools);
                }
            }
            let mut eos = Vec::new();
            if let Some(tokenizer) = &tokenizer {
                eos.extend(tokenizer.eos());
                let tokens = tokenizer.added_texts();
                let ends = template.as_ref().map(|template| template.turn_ends(&tokens)).unwrap_or_default();
                eos.extend(ends.into_iter().filter_map(|text| tokenizer.token_id(text)));
                let ends = template.as_ref().map(|template| template.reply_format(true).ends());
                eos.extend(ends.into_iter().flatten().filter_map(|text| tokenizer.token_id(text)));
                if template.as_ref().is_some_and(|template| template.calls_are_unknown()) {
                    let name = beside.name();
                    tracing::warn!(
                        "{name}: its template writes tool calls in a form that is not known: calls stay text"
                    );
                }
            }
            Ok((tokenizer, template, eos))
        });
        let texts = texts.map_err(|source| Error::Thread { what: "a tokenizer", source })?;
        let engine = Engine::start(engine_options, move || {
            let pool = build::pool(&options);
            let runtime = build::runtime(&files, &options, selection.kind, &pool)?;
            match draft {
                Some(draft) if draft.is_layer_ahead() => build::with_layer_of(runtime, &draft, kv_type),
                Some(draft) => runtime.drafted_by(build::runtime(
                    &draft,
                    &draft::options(&options),
                    selection.kind,
                    &pool,
                )?),
                None => Ok(runtime),
            }
        });
        let texts = texts.join().map_err(|panic| Error::Tokenizer(panic_text(&*panic).into()))?;
        let (engine, (tokenizer, template, mut eos)) = (engine?, texts?);
        eos.extend(info.generation.eos_token_ids.iter().chain(&info.config.eos_token_ids));
        eos.sort_unstable();
        eos.dedup();
        let pooling = pooling.map(Arc::new).map_err(|error| error.to_string());
        let ranking = ranking.and_then(|ranking| {
            ranking.map(|ranking| ranking.with_template(template.as_deref()).map(Arc::new)).transpose()
        });
        let ranking = ranking.map_err(|error| error.to_string());
        let suppressed = info.generation.suppress_tokens.as_slice().into();
        let model = Self {
            info: Arc::new(info),
            tokenizer,
            template,
            eos: eos.into(),
            suppressed,
            grammars: Arc::default(),
            checker,
            watch,
            pooling,
            cut_length,
            ranking,
            architecture,
            adapters: Arc::default(),
            adapter: None,
            asked_by: None,
            engine,
        };
        for adapter in &adapters {
            model.load_adapter(adapter)?;
        }
        Ok(model)
    }

    /// Which of several ranks it is.
    pub fn own_rank(&self) -> Rank {
        self.engine.rank()
    }

    /// Does what the first of several ranks says, until that ends: what any other rank is for.
    ///
    /// # Errors
    /// Where another rank is lost.
    pub fn follow(&self) -> Result<()> {
        self.engine.follow()
    }

    /// Refuses a model that generates no text.
    pub(crate) fn check_generates(&self) -> Result<()> {
        match &*self.info.config {
            Config { bidirectional: true, .. } => Err(Error::no_text(&self.info.name)),
            Config { headless: true, .. } => Err(Error::no_head(&self.info.name)),
            _ => Ok(()),
        }
    }

    /// What this model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// A directory without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::Tokenizer(format!("{} has no tokenizer: it runs from token ids alone", self.info.name))
        })
    }

    /// Ids that end a text, ascending: those of `generation_config.json` and `config.json`, the `eos_token` of
    /// `tokenizer_config.json` or `special_tokens_map.json`, and what the chat template ends an assistant's turn with.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Ids that never come, ascending: `suppress_tokens` of `generation_config.json`.
    pub(crate) fn suppressed(&self) -> Arc<[u32]> {
        Arc::clone(&self.suppressed)
    }

    /// A constraint for [`crate::Options::constraint`]: the text will be what `grammar` says. The first one takes a pass
    /// over the vocabulary (a tenth of a second for 150,000 tokens).
    ///
    /// # Errors
    /// A model without a tokenizer, and those of [`GrammarCompiler::compile`]: what cannot be enforced is refused.
    ///
    /// ```
    /// use backstop::sample::Grammar;
    ///
    /// let model = backstop::Model::builtin()?;
    /// let constraint = Some(model.constraint(&Grammar::Regex("[0-9]{4}".into()))?);
    /// let options = backstop::Options { constraint, ..Default::default() };
    /// let text = model.generate("The year was ", &options)?.text()?;
    /// assert!(text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit()));
    /// # Ok::<(), backstop::Error>(())
    /// ```
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint> {
        self.grammars()?.compile(grammar)
    }

    pub(crate) fn grammars(&self) -> Result<&GrammarCompiler> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let mut made = GrammarCompiler::new(self.tokenizer()?, self.eos())?;
        if let Some(program) = &self.checker {
            made = made.with_checker(program.to_path_buf());
        }
        Ok(self.grammars.get_or_init(|| made))
    }

    /// Whether the files that its weights are still read from are what they were when they were opened. Where they are not, every
    /// request fails with the same error: the model has to be loaded anew.
    ///
    /// # Errors
    /// [`Error::Changed`], from the first change on.
    pub fn check_files(&self) -> Result<()> {
        self.watch.check()
    }

    /// Its engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether it has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Its chat template.
    ///
    /// # Errors
    /// A model without one.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.check_generates()?;
        self.template.as_deref().ok_or_else(|| {
            Error::Template(format!(
                "{} has none: give it plain text without one, or load it with a template (--chat-template FILE, or chatml)",
                self.info.name
            ))
        })
    }

    /// Token ids of a conversation by the model's chat template, the assistant's turn begun. Special tokens that are
    /// written in a message stay text.
    ///
    /// # Errors
    /// A model without a template, and a template that fails or is stopped at a limit.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        self.encode_chat_with(messages, &options)
    }

    /// Token ids of a conversation, with what else the chat template is given.
    ///
    /// # Errors
    /// As [`Self::encode_chat`].
    pub fn encode_chat_with(&self, messages: &[Message], options: &RenderOptions) -> Result<Vec<u32>> {
        self.tokenizer()?.encode_rendered(&self.template()?.render(messages, options)?)
    }
}
