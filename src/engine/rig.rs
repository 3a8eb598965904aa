//! An engine whose turns are taken by hand, for tests and for fuzzing: after each, its memory is counted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::load::{Gauges, Load};
use super::memory::Budget;
use super::request::Space;
use super::worker::Worker;
use super::{
    Command, Drafts, EngineOptions, Event, FinishReason, GenerateRequest, Request, RequestKind, Runtime,
    Sink, Stats,
};
use crate::backend::cpu::CpuBackend;
use crate::backend::kv::KvType;
use crate::backend::{LlmBackendDispatch, LlmBackendKind, Routing};
use crate::error::Error;
use crate::forward::Architecture;
use crate::sample::SamplingOptions;
use crate::tensor::DType;
use crate::weights::{Checkpoint, TensorInfo};

/// A sequence of numbers (SplitMix64) that a seed fixes.
pub(crate) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }
}

pub(super) fn runtime(model: &str, kind: LlmBackendKind, routing: Routing) -> Runtime {
    runtime_in(model, kind, routing, None)
}

/// The same with K and V in `kv`, or in the type of the weights.
fn runtime_in(model: &str, kind: LlmBackendKind, routing: Routing, kv: Option<KvType>) -> Runtime {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model);
    runtime_at(&path, kind, routing, kv)
}

/// The same of a directory, with the layer that guesses further tokens where there is one.
pub(super) fn runtime_at(path: &Path, kind: LlmBackendKind, routing: Routing, kv: Option<KvType>) -> Runtime {
    let mut architecture = Architecture::read(&path.join("config.json")).unwrap();
    let mut checkpoint = Checkpoint::open(path).unwrap();
    architecture.adopt(&mut checkpoint).unwrap();
    let largest = checkpoint.tensors().max_by_key(|tensor| tensor.bytes());
    let dtype = largest.and_then(TensorInfo::dtype).unwrap_or(DType::F32);
    let cpu = CpuBackend::new(Some(1), None);
    let dispatch = LlmBackendDispatch::of(kind, dtype, cpu, routing).unwrap();
    let loaded = architecture.load(&checkpoint, &dispatch, true).unwrap();
    let kv = kv.unwrap_or(dtype.into());
    let config = Arc::new(architecture.config().clone());
    let runtime = Runtime::new(config, loaded.forward, dispatch, kv).unwrap();
    match loaded.ahead {
        Some(ahead) => runtime.with_ahead(ahead, kv, checkpoint.watch()).unwrap(),
        None => runtime,
    }
}

/// A worker whose turns are taken by hand.
pub(crate) struct Rig {
    pub(super) worker: Worker,
    /// Whose requests come next.
    pub space: Space,
    /// Tokens that end their messages.
    pub marks: Vec<u32>,
    pub(super) commands: Sender<Command>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) budget: Budget,
    pub vocab: u32,
}

/// A request, and what came of it.
pub(crate) struct Asked {
    pub cancel: Arc<AtomicBool>,
    pub events: Receiver<Event>,
    pub tokens: Vec<u32>,
    pub end: Option<Result<(FinishReason, Stats), Error>>,
}

impl Asked {
    /// Takes what has come; how many tokens.
    pub fn look(&mut self) -> usize {
        let before = self.tokens.len();
        for event in self.events.try_iter() {
            match event {
                Event::Token { token, .. } => self.tokens.push(token),
                Event::Finished { reason, stats, .. } => self.end = Some(Ok((reason, stats))),
                Event::Failed(error) => self.end = Some(Err(error)),
            }
        }
        self.tokens.len() - before
    }

    #[cfg(test)]
    pub fn cached(&mut self) -> usize {
        self.look();
        self.end.as_ref().unwrap().as_ref().unwrap().1.cached_tokens
    }
}

impl Rig {
    /// An engine with memory for `tokens` in whole pages.
    pub fn new(model: &str, kind: LlmBackendKind, tokens: usize, options: EngineOptions) -> Self {
        Self::with(model, kind, tokens, options, Routing::default())
    }

    pub fn with(
        model: &str,
        kind: LlmBackendKind,
        tokens: usize,
        options: EngineOptions,
        routing: Routing,
    ) -> Self {
        Self::of(runtime(model, kind, routing), tokens, options)
    }

    /// Of a directory, with the layer that guesses further tokens where there is one.
    #[cfg(test)]
    pub fn at(path: &Path, kind: LlmBackendKind, tokens: usize, options: EngineOptions) -> Self {
        Self::of(runtime_at(path, kind, Routing::default(), None), tokens, options)
    }

    /// On the CPU, with K and V in `kv` and a cache on disk.
    #[cfg(test)]
    pub fn cached(model: &str, kv: Option<KvType>, tokens: usize, cache: super::Cache) -> Self {
        let options = EngineOptions {
            prefill_chunk: 64,
            step_tokens: 64,
            cache: Some(Arc::new(cache.always())),
            ..EngineOptions::default()
        };
        Self::of(runtime_in(model, LlmBackendKind::Cpu, Routing::default(), kv), tokens, options)
    }

    /// With guesses of another model where they pay.
    #[cfg(test)]
    pub fn drafted_by(model: &str, draft: &str, kind: LlmBackendKind, tokens: usize) -> Self {
        let [model, draft] = [model, draft].map(|model| runtime(model, kind, Routing::default()));
        let mut rig = Self::of(model.drafted_by(draft).unwrap(), tokens, EngineOptions::default());
        rig.worker.set_drafts(Drafts::Auto);
        rig
    }

    /// On the CPU, with K and V in `kv`.
    #[cfg(test)]
    pub fn keeping(model: &str, kv: KvType, tokens: usize, options: EngineOptions) -> Self {
        Self::of(runtime_in(model, LlmBackendKind::Cpu, Routing::default(), Some(kv)), tokens, options)
    }

    fn of(runtime: Runtime, tokens: usize, options: EngineOptions) -> Self {
        let cost = runtime.kv_cost(options.prefill_chunk);
        let vocab = runtime.config().vocab_size as u32;
        // Of recurrent layers, for a few sequences and as many copies.
        let beside = runtime.draft_cost();
        let bytes = tokens as u64 * (cost.token + cost.windowed + beside) + 4 * cost.fixed;
        let budget = Budget::new(bytes, cost).with_beside(beside);
        // What times decide is not to decide how many turns a test takes.
        let (context, drafts) = (1 << 14, Drafts::Off);
        let options = EngineOptions { context, drafts, kv_memory: budget.bytes, ..options };
        let (commands, inbox) = channel();
        let gauges = Arc::new(Gauges::new());
        let disk = super::disk(&options, &runtime, commands.clone()).unwrap();
        let shown = Arc::clone(&gauges);
        let worker = Worker::new(runtime, options, inbox, Arc::default(), shown, budget, disk);
        Self { worker, space: None, marks: Vec::new(), commands, gauges, budget, vocab }
    }

    pub fn ask(&self, prompt: Vec<u32>, max_tokens: usize) -> Asked {
        let (sender, events) = channel();
        let generate = GenerateRequest {
            sampling: SamplingOptions::default(),
            constraint: None,
            min_tokens: 0,
            max_tokens,
            eos: Vec::new(),
            marks: self.marks.clone(),
            suppressed: Arc::default(),
            events: Sink::new(move |event| sender.send(event).is_ok()),
        };
        let cancel = self.send(prompt, RequestKind::Generate(Box::new(generate)));
        Asked { cancel, events, tokens: Vec::new(), end: None }
    }

    /// Queues a request; what cancels it.
    pub fn send(&self, tokens: Vec<u32>, kind: RequestKind) -> Arc<AtomicBool> {
        let cancel = Arc::new(AtomicBool::new(false));
        self.gauges.queued.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            tokens,
            kind,
            space: self.space.clone(),
            adapter: None,
            cancel: Arc::clone(&cancel),
            cached: Arc::default(),
        };
        self.commands.send(Command::Run(request)).unwrap();
        cancel
    }

    /// Tokens that follow no pattern of another `seed`'s.
    pub fn prompt(&self, seed: u64, len: usize) -> Vec<u32> {
        let mut random = Random(seed);
        (0..len).map(|_| random.below(self.vocab.into()) as u32).collect()
    }

    /// One turn of the worker, after which its memory is counted by hand.
    pub fn turn(&mut self) -> Load {
        let before = self.gauges.load(self.budget.bytes);
        // An idle one would wait for a command.
        assert!(before.running + before.queued == 0 || self.worker.receive());
        self.worker.turn();
        let load = self.gauges.load(self.budget.bytes);
        let [kept, own] = self.worker.memory_by_hand();
        let total = |of: &BTreeMap<usize, u64>| of.values().sum::<u64>();
        assert_eq!(total(&kept), load.kv.kept, "what is kept");
        let mut all = kept;
        all.extend(own);
        assert_eq!(total(&all), load.kv.used, "what is used");
        assert!(load.kv.used - load.kv.kept <= load.kv.reserved, "more than was reserved: {load:?}");
        assert!(load.kv.kept + load.kv.reserved <= load.kv.budget, "over the budget: {load:?}");
        assert!(load.kv.shared <= load.kv.kept);
        load
    }

    /// Turns until `asked` has ended.
    pub fn finish(&mut self, asked: &mut Asked) {
        for _ in 0..10_000 {
            self.turn();
            asked.look();
            if asked.end.is_some() {
                return;
            }
        }
        panic!("it does not end");
    }

    /// The text of a prompt by an engine of its own.
    pub fn alone(model: &str, kind: LlmBackendKind, prompt: Vec<u32>, max_tokens: usize) -> Vec<u32> {
        let mut rig = Self::new(model, kind, 1 << 14, EngineOptions::default());
        let mut asked = rig.ask(prompt, max_tokens);
        rig.finish(&mut asked);
        asked.tokens
    }
}
