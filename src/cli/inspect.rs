//! `backstop inspect`: what a model is and needs, from its headers alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use backstop::backend::LlmBackendKind;
use backstop::backend::kv::KvType;
use backstop::backend::ops::StateSpec;
use backstop::backend::ranks::Rank;
use backstop::backend::select::{self, BackendRequest, Bytes, MemoryNeed, Selection};
use backstop::config::{Config, Experts, GenerationConfig, RopeScaling};
use backstop::forward::{Pooling, Unknown};
use backstop::weights::Stored;
use backstop::{LoadOptions, ModelFiles, backends};
use serde_json::{Value, json};

use super::args::InspectArgs;
use super::stream::print;
use super::summary::{aligned, count};
use super::term;
use super::{Usage, names, typed};

pub fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let path = args.model.as_deref().map(|typed| names::path(typed, &args.fetch, BackendRequest::Auto));
    let path = path.transpose()?;
    let mut files = match path.as_deref() {
        None => super::bundle::default_files()?,
        Some(path) => {
            ModelFiles::open(path).map_err(|error| with_what_is_unknown(error.into(), Some(path)))?
        }
    };
    if let Some(ranks) = args.ranks {
        let first = Rank::new(0, ranks).map_err(typed)?;
        files.architecture = files.architecture.of_rank(first).map_err(typed)?;
    }
    let facts = Facts::of(files, args.ctx, args.kv_type)?;
    if args.json {
        print(&format!("{}\n", facts.json()))?;
    } else {
        print(&facts.table())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An error about a model, with what of it no family understands where that is why.
fn with_what_is_unknown(error: anyhow::Error, dir: Option<&Path>) -> anyhow::Error {
    /// Names of a list that are shown.
    const MOST: usize = 12;
    let Some(Ok(Some(unknown))) = dir.map(Unknown::of) else { return error };
    let listed = |names: &[String]| {
        let more = names.len().saturating_sub(MOST);
        let shown = names[..names.len() - more].join(", ");
        if more > 0 { format!("{shown}, and {more} more") } else { shown }
    };
    let mut text = format!("{error:#}");
    for (what, names) in [("keys", &unknown.keys), ("weights", &unknown.weights)] {
        if !names.is_empty() {
            let _ = write!(text, "\n{what} that no family has: {}", listed(names));
        }
    }
    anyhow::Error::msg(text)
}

/// What is known of a model without its weights.
struct Facts {
    files: ModelFiles,
    tensors: Vec<Stored>,
    /// Whether there is a chat template, or what is wrong with it.
    template: Result<bool, String>,
    /// How a text becomes a vector, or what is wrong with the files that say it.
    pooling: Result<Pooling, String>,
    /// The context that it gets here on the CPU where nobody says.
    default: usize,
    /// The context that the choice of a backend is about.
    context: usize,
    /// What K and V would be kept in.
    kv_type: KvType,
    selection: Selection,
    /// Memory by context, ascending, and backend.
    needs: Vec<(usize, LlmBackendKind, MemoryNeed)>,
}

/// Tensors of one type and shape, layer after layer.
struct Kind<'a> {
    /// The name, `*` for its numbers.
    name: String,
    first: &'a Stored,
    tensors: usize,
    bytes: u64,
}

/// Tensors and bytes of one type.
#[derive(Default)]
struct Share {
    tensors: usize,
    bytes: u64,
}

impl Facts {
    fn of(files: ModelFiles, asked: Option<usize>, kv_type: Option<KvType>) -> anyhow::Result<Self> {
        let most = files.config().max_context();
        if let Some(asked) = asked.filter(|&asked| asked > most) {
            return Err(Usage(format!(
                "--ctx is {asked}, expected at most {most}, what the model was trained for"
            ))
            .into());
        }
        let defaults = LoadOptions { kv_type, ..LoadOptions::default() };
        let memory = select::memory_for(LlmBackendKind::Cpu);
        let default = files.fitting_context(LlmBackendKind::Cpu, &defaults, memory);
        let context = asked.unwrap_or(default);
        let kv_type = kv_type.unwrap_or(files.dtype().into());
        let need = |context: usize, backend: LlmBackendKind| {
            let (context, kv_type) = (Some(context), Some(kv_type));
            let options = LoadOptions { context, kv_type, ..LoadOptions::default() };
            files.memory_need(files.memory_setting(backend, &options))
        };
        let selection = select::select(BackendRequest::Auto, &need(context, LlmBackendKind::Mlx))?;
        // Four times as much at each step, as far as the model goes.
        let usual = (0..16).map(|i| 512 << (2 * i)).take_while(|&context| context < most);
        let contexts: BTreeSet<usize> = usual.chain([context, most]).collect();
        // Several ranks compute on MLX alone.
        let kinds = match files.architecture.rank().is_alone() {
            true => &[LlmBackendKind::Cpu, LlmBackendKind::Mlx][..],
            false => &[LlmBackendKind::Mlx],
        };
        let needs = contexts.into_iter().flat_map(|context| kinds.iter().map(move |&kind| (context, kind)));
        let needs = needs.map(|(context, kind)| (context, kind, need(context, kind))).collect();
        let template =
            files.template(None).map(|template| template.is_some()).map_err(|error| error.to_string());
        let pooling = files.pooling().map_err(|error| error.to_string());
        let tensors = files.tensors();
        Ok(Self { files, tensors, template, pooling, default, context, kv_type, selection, needs })
    }

    fn shares(&self) -> BTreeMap<String, Share> {
        let mut shares = BTreeMap::<String, Share>::new();
        for tensor in &self.tensors {
            let share = shares.entry(tensor.kind.clone()).or_default();
            share.tensors += 1;
            share.bytes += tensor.bytes;
        }
        shares
    }

    /// Tensors of one type and shape whose names differ in numbers alone, in the order of their first.
    fn kinds(&self) -> Vec<Kind<'_>> {
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        let mut places = HashMap::new();
        for tensor in &self.tensors {
            let parts = tensor.name.split('.');
            let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            let name = parts.map(|part| if number(part) { "*" } else { part }).collect::<Vec<_>>().join(".");
            let place = places.entry((name, &tensor.kind, &tensor.shape)).or_insert_with_key(|(name, ..)| {
                kinds.push(Kind { name: name.clone(), first: tensor, tensors: 0, bytes: 0 });
                kinds.len() - 1
            });
            kinds[*place].tensors += 1;
            kinds[*place].bytes += tensor.bytes;
        }
        kinds
    }

    /// The tensors, a line for each kind.
    fn tensor_table(&self) -> String {
        let mut lines = vec![["tensors", "type", "shape", "count", "bytes"].map(str::to_owned)];
        for Kind { name, first, tensors, bytes } in self.kinds() {
            let shape = format!("{:?}", first.shape.as_slice());
            lines.push([
                term::one_line(&name),
                first.kind.clone(),
                shape,
                tensors.to_string(),
                Bytes(bytes).to_string(),
            ]);
        }
        aligned(&lines, 3)
    }

    fn weight_files(&self) -> usize {
        self.files.checkpoint.tensors().map(|tensor| tensor.file()).collect::<BTreeSet<_>>().len()
    }

    fn table(&self) -> String {
        let (files, config, kv_type) = (&self.files, self.files.config(), self.kv_type);
        let mut table = String::new();
        let mut row = |name: &str, what: String| {
            let _ = writeln!(table, "{name:<13} {}", term::one_line(&what));
        };
        row("model", files.name());
        row("architecture", {
            let Config { model_type, num_hidden_layers, hidden_size, intermediate_size, .. } = config;
            format!(
                "{model_type}: {num_hidden_layers} layers, hidden {hidden_size}, feed-forward {intermediate_size}"
            )
        });
        if let Some(Experts { count, used, inner, .. }) = config.experts {
            row("experts", format!("{count} of {inner} a layer, {used} for each token"));
        }
        row("attention", attention(files));
        row("rope", rope(config));
        row("vocabulary", {
            let head = match (config.bidirectional || config.headless, config.tie_word_embeddings) {
                (true, _) => "no",
                (false, true) => "the embedding is the",
                (false, false) => "its own",
            };
            format!("{} tokens, {head} output head", config.vocab_size)
        });
        if let Some(embeddings) = self.embeddings() {
            row("embeddings", embeddings);
        }
        if let Some(scores) = self.scores() {
            row("scores", scores);
        }
        if files.is_layer_ahead() {
            row(
                "drafts",
                "nothing else: a layer that guesses further tokens, for --draft beside its model".to_owned(),
            );
        } else if files.guesses_ahead() {
            row("drafts", "its own: a layer behind the last guesses further tokens".to_owned());
        }
        row("parameters", count(self.parameters()));
        row("weights", self.weights());
        row("kv cache", format!("{} a token, {kv_type}", Bytes(files.kv_token_bytes(kv_type))));
        row("context", {
            let trained = config.max_position_embeddings;
            let most = Some(config.max_context()).filter(|&most| most > trained);
            let most = most.map(|most| format!("{most} at most, ")).unwrap_or_default();
            format!("{trained} tokens trained, {most}{} by default", self.default)
        });
        row(
            "template",
            match &self.template {
                Ok(true) => "yes".to_owned(),
                Ok(false) if config.bidirectional => "none, and it generates no text".to_owned(),
                Ok(false) => "none: the text is continued as it is".to_owned(),
                Err(what) => format!("cannot be used: {what}"),
            },
        );
        row("sampling", sampling(&files.generation));
        row("backend", {
            let Selection { kind, reason } = &self.selection;
            format!("auto takes {kind} at {} tokens: {reason}", self.context)
        });
        row("backends", backends().map(|backend| backend.to_string()).join("; "));
        table + "\n" + &self.tensor_table() + "\n" + &self.memory()
    }

    /// Its vectors, where it was trained for them or is for nothing else.
    fn embeddings(&self) -> Option<String> {
        let pooling = match &self.pooling {
            Ok(pooling) => pooling,
            Err(what) => return Some(format!("cannot be used: {what}")),
        };
        let said = match pooling.is_trained() {
            true => "as its files say",
            false if self.files.config().bidirectional => "no file says how",
            false => return None,
        };
        let dense = match pooling.dense_layers() {
            0 => String::new(),
            count => format!(", {count} dense"),
        };
        let scaled = if pooling.normalizes() { ", of length 1" } else { "" };
        Some(format!("{} elements, {}{dense}{scaled} ({said})", pooling.width(), pooling.pool().name()))
    }

    /// What it gives of a pair of texts, where it has a head for that.
    fn scores(&self) -> Option<String> {
        if self.files.ranks_by_logits() {
            return Some("one of a pair of texts, by what the model would say next".to_owned());
        }
        let labels = self.files.config().labels?;
        Some(match labels {
            1 => "one of a pair of texts: a cross-encoder".to_owned(),
            labels => format!("{labels} of a text, which are no score of a pair"),
        })
    }

    fn parameters(&self) -> u64 {
        self.files.parameters()
    }

    fn weights(&self) -> String {
        let types: Vec<String> = (self.shares().iter())
            .map(|(name, share)| format!("{name} {} in {} tensors", Bytes(share.bytes), share.tensors))
            .collect();
        let files = match self.weight_files() {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        format!("{} in {files}: {}", Bytes(self.files.checkpoint.total_bytes()), types.join(", "))
    }

    /// Memory by context and backend, a line each: weights are in another form on each.
    fn memory(&self) -> String {
        let of = self.files.architecture.rank().of();
        let total = if of == 1 { "memory".to_owned() } else { format!("memory of each of {of} ranks") };
        let head = ["context", "on", "kv cache", "weights", "activations", "reserve", &total];
        let mut lines = vec![head.map(str::to_owned)];
        for (context, kind, need) in &self.needs {
            let bytes = [need.kv, need.weights, need.activations, MemoryNeed::RESERVE, need.total()];
            let [kv, weights, activations, reserve, total] = bytes.map(|bytes| Bytes(bytes).to_string());
            lines.push([context.to_string(), kind.to_string(), kv, weights, activations, reserve, total]);
        }
        aligned(&lines, 0)
    }

    fn json(&self) -> Value {
        let (files, config) = (&self.files, self.files.config());
        let (shares, kv_type) = (self.shares(), self.kv_type);
        let types: Vec<Value> = (shares.iter())
            .map(|(name, share)| json!({ "type": name, "tensors": share.tensors, "bytes": share.bytes }))
            .collect();
        let memory: Vec<Value> = (self.needs.iter())
            .map(|(context, kind, need)| {
                json!({
                    "context": context,
                    "backend": kind.name(),
                    "weights": need.weights,
                    "kv_cache": need.kv,
                    "recurrent_states": files.recurrent_bytes(*kind),
                    "activations": need.activations,
                    "reserve": MemoryNeed::RESERVE,
                    "total": need.total(),
                })
            })
            .collect();
        let generation = &files.generation;
        let backends = backends().map(|backend| {
            let (name, device, why) =
                (backend.name, backend.there.as_ref().ok(), backend.there.as_ref().err());
            json!({ "name": name, "device": device, "why_not": why })
        });
        json!({
            "name": files.name(),
            "path": files.path.display().to_string(),
            "builtin": files.is_builtin(),
            "architecture": {
                "model_type": config.model_type,
                "layers": config.num_hidden_layers,
                "hidden_size": config.hidden_size,
                "intermediate_size": config.intermediate_size,
                "experts": config.experts.map(|of| json!({
                    "count": of.count, "used": of.used, "intermediate_size": of.inner,
                })),
                "attention_heads": config.num_attention_heads,
                "key_value_heads": config.num_key_value_heads,
                "head_dim": config.head_dim,
                "vocab_size": config.vocab_size,
                "tied_embeddings": config.tie_word_embeddings,
                "sliding_window": config.sliding_window,
                "sliding_layers": config.windows.iter().flatten().count(),
                "rope": { "theta": config.rope.theta, "dims": config.rope.dims, "scaling": scaling(config).0 },
            },
            "generates": !config.bidirectional && !config.headless,
            "guesses_ahead": files.guesses_ahead(),
            "embeddings": self.pooling.as_ref().ok().filter(|it| it.is_trained() || config.bidirectional).map(|it| json!({
                "dimensions": it.width(),
                "pooling": it.pool().name(),
                "dense_layers": it.dense_layers(),
                "normalized": it.normalizes(),
                "from_files": it.is_trained(),
            })),
            "embeddings_error": self.pooling.as_ref().err(),
            "labels": config.labels,
            "ranks": config.labels == Some(1) || files.ranks_by_logits(),
            "parameters": self.parameters(),
            "weights": {
                "bytes": files.checkpoint.total_bytes(),
                "files": self.weight_files(),
                "tensors": files.checkpoint.tensors().len(),
                "types": types,
                "table": self.kinds().iter().map(|kind| json!({
                    "name": kind.name,
                    "type": kind.first.kind,
                    "shape": kind.first.shape.as_slice(),
                    "tensors": kind.tensors,
                    "bytes": kind.bytes,
                })).collect::<Vec<_>>(),
            },
            "kv_cache": { "type": kv_type.name(), "bytes_per_token": files.kv_token_bytes(kv_type) },
            "context": {
                "trained": config.max_position_embeddings,
                "most": config.max_context(),
                "default": self.default,
            },
            "chat_template": self.template.as_ref().is_ok_and(|&there| there),
            "chat_template_error": self.template.as_ref().err(),
            "generation": {
                "do_sample": generation.do_sample,
                "temperature": generation.temperature,
                "top_k": generation.top_k,
                "top_p": generation.top_p,
                "min_p": generation.min_p,
                "repetition_penalty": generation.repetition_penalty,
                "suppress_tokens": generation.suppress_tokens,
            },
            "ranks": files.architecture.rank().of(),
            "memory": memory,
            "backend": {
                "kind": self.selection.kind.name(),
                "reason": self.selection.reason,
                "context": self.context,
            },
            "backends": backends,
        })
    }
}

fn attention(files: &ModelFiles) -> String {
    let config = files.config();
    let states = files.architecture.states();
    if states.iter().all(|state| matches!(state, StateSpec::Recurrent(_))) {
        return format!("none, a state of fixed size in each of {} layers", states.len());
    }
    let mut text = format!(
        "{} heads of {}, {} for keys and values",
        config.num_attention_heads, config.head_dim, config.num_key_value_heads
    );
    let sliding = config.windows.iter().flatten().count();
    if let Some(window) = config.sliding_window.filter(|_| sliding > 0) {
        let what = match (config.chunked, config.bidirectional) {
            (true, _) => "chunks",
            (false, true) => "a window on both sides",
            (false, false) => "a window",
        };
        let _ = write!(text, ", {what} of {window} tokens in {sliding} of {} layers", config.windows.len());
    }
    // A layer that has two states has keys and values beside the other.
    let both = states.len() > config.windows.len();
    let (mut others, mut shared, mut recurrent) = (BTreeMap::<_, usize>::new(), 0, 0);
    for state in states {
        let own = (config.head_dim, config.num_key_value_heads);
        match state {
            StateSpec::Kv { heads, k_dim, .. } if (k_dim, heads) != own => {
                *others.entry((k_dim, heads)).or_default() += 1;
            }
            StateSpec::SharedWith(_) => shared += 1,
            StateSpec::Recurrent(_) => recurrent += 1,
            StateSpec::Kv { .. } | StateSpec::Latent { .. } => {}
        }
    }
    for ((dim, heads), layers) in others {
        let _ = write!(text, ", heads of {dim} and {heads} for keys and values in {layers}");
    }
    if shared > 0 {
        let _ = write!(text, ", keys and values of others in {shared}");
    }
    if let Some(latent) = &config.latent {
        let _ = write!(text, ", of vectors of {} and {} that rotate", latent.rank, latent.rope_dim);
    }
    if recurrent > 0 {
        let place = if both { "beside them" } else { "in place of them" };
        let layers = config.windows.len();
        let _ = write!(text, ", a state of fixed size {place} in {recurrent} of {layers} layers");
    }
    text
}

fn rope(config: &Config) -> String {
    let mut text = format!("theta {}", config.rope.theta);
    if config.rope.dims < config.head_dim {
        let _ = write!(text, ", {} of {} elements of a head", config.rope.dims, config.head_dim);
    }
    match scaling(config) {
        (None, _) => {}
        (Some(name), None) => text = format!("{text}, {name}"),
        (Some(name), Some(factor)) => text = format!("{text}, {name} by {factor}"),
    }
    text
}

/// The rotary embedding's scaling: its name in `config.json`, and its factor.
fn scaling(config: &Config) -> (Option<&'static str>, Option<f64>) {
    match config.rope.scaling {
        RopeScaling::None => (None, None),
        RopeScaling::Linear { factor } => (Some("linear"), Some(factor)),
        RopeScaling::Dynamic { factor, .. } => (Some("dynamic"), Some(factor)),
        RopeScaling::Llama3 { factor, .. } => (Some("llama3"), Some(factor)),
        RopeScaling::Proportional { .. } => (Some("proportional"), None),
        RopeScaling::Factors { .. } => (Some("factors"), None),
        RopeScaling::Yarn { factor, .. } => (Some("yarn"), Some(factor)),
        RopeScaling::LongRope { .. } => (Some("longrope"), None),
    }
}

fn sampling(generation: &GenerationConfig) -> String {
    let mut parts = Vec::new();
    let mut part =
        |name: &str, value: Option<String>| parts.extend(value.map(|value| format!("{name} {value}")));
    part("temperature", generation.temperature.map(|value| value.to_string()));
    part("top-k", generation.top_k.map(|value| value.to_string()));
    part("top-p", generation.top_p.map(|value| value.to_string()));
    part("min-p", generation.min_p.map(|value| value.to_string()));
    part("repeat-penalty", generation.repetition_penalty.map(|value| value.to_string()));
    match (generation.do_sample, parts.is_empty()) {
        (Some(false), _) => "the most likely token".to_owned(),
        (_, false) => parts.join(", "),
        (Some(true), true) => "temperature 1".to_owned(),
        (None, true) => "the most likely token (the model names no other)".to_owned(),
    }
}
