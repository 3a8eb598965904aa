//! A loaded model on its backend, one step at a time: build, evaluate once, read the logits, replay on the CPU where an
//! evaluation fails.

use std::borrow::BorrowMut;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::ranks::Company;
use crate::alloc;
use crate::backend::batch::{Batch, Tokens};
use crate::backend::kv::{KvType, PAGE};
use crate::backend::ops::{Backend, EVAL, StateLayout};
use crate::backend::{
    KvCost, KvPage, LayerState, LlmBackendDispatch, PageAndPane, PartShapes, RecurrentState, Tensor,
};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::forward::adapt::{Adapters, Bound};
use crate::forward::step::{SequenceState, Step, Tap};
use crate::forward::{Adapter, Forward, LoadedAhead, Places};
use crate::tensor::HostTensor;
use crate::weights::Watch;

/// Tokens of a chunk when a sequence is computed anew on the CPU.
const REPLAY_CHUNK: usize = 512;

/// A model's forward pass, the dispatch that runs it, and what its caches look like.
pub struct Runtime {
    config: Arc<Config>,
    forward: Box<dyn Forward>,
    dispatch: Rc<LlmBackendDispatch>,
    states: StateLayout,
    watch: Watch,
    draft: Option<Rc<Runtime>>,
    /// Its layer that guesses further tokens, on the same dispatch.
    ahead: Option<Rc<Runtime>>,
    places: Places,
    /// Those that are loaded, as they are prepared.
    adapters: RefCell<Vec<(Arc<Adapter>, Rc<Bound>)>>,
    /// The other ranks that compute it, where there are any.
    company: Option<Company>,
}

/// A step whose results may still be lazy.
#[derive(Debug)]
pub struct Launched {
    /// `[S, V]`, or nothing where the batch asked for none.
    logits: Option<Tensor>,
    /// The last hidden states, normed. `[T, D]`
    hidden: Tensor,
}

/// The results of a step in host memory.
#[derive(Debug)]
pub struct StepOutputs {
    /// In the order of the batch's outputs. `[S, V]`
    pub logits: HostTensor,
    /// The last hidden states, normed, where they were asked for. `[T, D]`
    pub hidden: Option<HostTensor>,
}

impl Launched {
    /// The logits `[S, V]`, possibly lazy.
    pub fn logits(&self) -> Option<&Tensor> {
        self.logits.as_ref()
    }
}

impl Runtime {
    /// A runtime that keeps K and V in `kv_type`.
    ///
    /// # Errors
    /// A layer that shares its state with one that is not before it.
    pub fn new(
        config: Arc<Config>,
        forward: Box<dyn Forward>,
        dispatch: impl Into<Rc<LlmBackendDispatch>>,
        kv_type: KvType,
    ) -> Result<Self> {
        let dispatch = dispatch.into();
        let states = StateLayout::new(&forward.states(), kv_type)?;
        let (watch, places, adapters) = (Watch::default(), Places::default(), RefCell::default());
        let (draft, ahead, company) = (None, None, None);
        Ok(Self { config, forward, dispatch, states, watch, draft, ahead, places, adapters, company })
    }

    /// With a layer that guesses further tokens behind what the model makes of its text: what `config` and `forward` are of.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_ahead(self, (config, forward): LoadedAhead, kv_type: KvType, watch: Watch) -> Result<Self> {
        let ahead = Self::new(Arc::new(config), forward, Rc::clone(&self.dispatch), kv_type)?;
        Ok(Self { ahead: Some(Rc::new(ahead.watched(watch))), ..self })
    }

    /// Computed together with other ranks.
    pub(crate) fn among(self, company: Company) -> Self {
        Self { company: Some(company), ..self }
    }

    /// Whether it does what the first of several ranks says.
    pub(super) fn follows(&self) -> bool {
        !self.dispatch.rank().leads()
    }

    /// The other ranks that compute it, where there are any.
    pub(super) fn company(&self) -> Option<&Company> {
        self.company.as_ref()
    }

    /// What a step gave, which tells of the other ranks.
    fn heard<T>(&self, result: Result<T>) -> Result<T> {
        match &self.company {
            Some(company) => company.heard(result),
            None => result,
        }
    }

    /// The same of what began, which tells of them where it failed.
    fn unheard<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_ok() { result } else { self.heard(result) }
    }

    /// Its forward pass.
    pub(crate) fn forward(&self) -> &dyn Forward {
        &*self.forward
    }

    /// The layer that guesses further tokens.
    pub(crate) fn ahead(&self) -> Option<&Rc<Runtime>> {
        self.ahead.as_ref()
    }

    /// Has its texts guessed by a smaller model of the same vocabulary.
    ///
    /// # Errors
    /// One that cannot go back behind guesses that were wrong, or that writes no text.
    pub fn drafted_by(self, draft: Runtime) -> Result<Self> {
        let config = &draft.config;
        let why = match () {
            () if config.bidirectional || config.headless => Some("it writes no text"),
            () if !draft.states.recurrent().is_empty() => {
                Some("its recurrent layers cannot go back over several steps")
            }
            () => None,
        };
        match why {
            Some(why) => {
                let got = format!("of the family {}: {why}", config.model_type);
                Err(Error::Option {
                    option: "draft",
                    got,
                    expected: "a model that generates, by attention alone",
                })
            }
            None => Ok(Self { draft: Some(Rc::new(draft)), ..self }),
        }
    }

    /// What guesses its texts.
    pub(crate) fn draft(&self) -> Option<&Rc<Runtime>> {
        self.draft.as_ref()
    }

    /// Has weights that are read from their files looked after.
    #[must_use]
    pub fn watched(self, watch: Watch) -> Self {
        Self { watch, ..self }
    }

    /// With the places at which adapters may add.
    #[must_use]
    pub fn with_places(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// An adapter as it is prepared, which is done the first time.
    ///
    /// # Errors
    /// [`Error::Weight`] for a module that has no place for adapters, and one of another shape; [`Error::OutOfMemory`].
    pub fn adapter(&self, adapter: &Arc<Adapter>) -> Result<Rc<Bound>> {
        if self.company.is_some() {
            let got = "one".to_owned();
            return Err(Error::Option {
                option: "adapter",
                got,
                expected: "none where several ranks compute a model",
            });
        }
        let mut adapters = self.adapters.borrow_mut();
        if let Some((_, bound)) = adapters.iter().find(|(of, _)| Arc::ptr_eq(of, adapter)) {
            return Ok(Rc::clone(bound));
        }
        let bound = Rc::new(self.places.bind(adapter, &self.dispatch)?);
        adapters.push((Arc::clone(adapter), Rc::clone(&bound)));
        Ok(bound)
    }

    /// Whether adapters may add to the module `name`.
    pub(crate) fn has_place(&self, name: &str) -> bool {
        self.places.has(name)
    }

    /// Which rows of a step have which adapter.
    fn adapters_of(&self, batch: &Batch, sequences: &[impl BorrowMut<SequenceState>]) -> Result<Adapters> {
        let mut adapters = Adapters::new();
        for run in &batch.runs {
            let own = sequences.get(run.sequence).and_then(|state| state.borrow().adapter.as_ref());
            let Some(own) = own else { continue };
            let own = self.adapter(own)?;
            match adapters.last_mut() {
                Some((rows, last)) if rows.end == run.row && Rc::ptr_eq(last, &own) => {
                    rows.end = run.rows().end
                }
                _ => adapters.push((run.rows(), own)),
            }
        }
        Ok(adapters)
    }

    /// Frees the adapters that nobody else knows of; their bytes.
    pub(super) fn free_adapters(&self) -> u64 {
        let mut freed = 0;
        self.adapters.borrow_mut().retain(|(adapter, _)| {
            let used = Arc::strong_count(adapter) > 1;
            freed += if used { 0 } else { adapter.bytes() };
            used
        });
        if freed > 0
            && let Some(cache) = self.dispatch.weight_cache()
        {
            cache.clear_unused();
        }
        freed
    }

    /// Whether the weights' files are what they were when they were opened.
    ///
    /// # Errors
    /// [`Error::Changed`], from the first change on.
    pub fn check_files(&self) -> Result<()> {
        self.watch.check()
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where ops run.
    pub fn dispatch(&self) -> &LlmBackendDispatch {
        &self.dispatch
    }

    /// A sequence with nothing cached, whose prompt will have `prompt_len` tokens.
    pub fn sequence(&self, prompt_len: usize) -> SequenceState {
        SequenceState {
            kv: self.dispatch.sequence(&self.states),
            frequencies: self.config.ropes().map(|rope| Arc::new(rope.frequencies(prompt_len))).collect(),
            history: Vec::new(),
            second: usize::MAX,
            adapter: None,
            prompt: prompt_len,
            told: None,
        }
    }

    /// What K and V of sequences take in memory, where a step brings at most `step` tokens of each and what lies behind its windows
    /// is [given back](crate::backend::SequenceKv::give_back) after it.
    pub fn kv_cost(&self, step: usize) -> KvCost {
        self.dispatch.kv_cost(&self.states, step)
    }

    /// Bytes that what guesses its texts keeps of each token: nothing of it is shared or given back.
    pub fn draft_cost(&self) -> u64 {
        self.draft.as_ref().or(self.ahead.as_ref()).map_or(0, |draft| {
            let cost = draft.kv_cost(1);
            cost.token + cost.windowed
        })
    }

    /// All that changes the bits of a sequence's states on this machine, beside the model, in words; none where they are not
    /// the CPU's.
    pub(crate) fn bit_settings(&self) -> Option<String> {
        match &*self.dispatch {
            LlmBackendDispatch::Cpu { cpu, .. } => Some(cpu.bit_settings()),
            LlmBackendDispatch::Mlx { .. } => None,
        }
    }

    /// What the states of sequences are made of, apart from them.
    pub(crate) fn part_shapes(&self) -> PartShapes {
        PartShapes::new(&self.states)
    }

    /// Pages `range` of a sequence's caches, for others that begin with the same tokens: themselves in host memory, copies
    /// on MLX. The last one may be partly filled. None where a layer's cache is not where the backend keeps it, as after a
    /// fallback.
    ///
    /// # Errors
    /// A copy on MLX that fails.
    pub fn pages(&self, state: &SequenceState, range: Range<usize>) -> Result<Option<Vec<PageAndPane>>> {
        let first = range.start;
        let pages = self.dispatch.snapshot(&state.kv, range)?;
        Ok(match (&self.company, pages) {
            (Some(company), Some(pages)) => company.say_kept(state, first, pages),
            (_, pages) => pages,
        })
    }

    /// What the recurrent layers of a sequence keep, for others that begin with its tokens. None once MLX was given up.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; an evaluation that fails.
    pub fn snapshot(&self, state: &SequenceState) -> Result<Option<KvPage>> {
        if self.company.is_some() {
            return Ok(None);
        }
        self.dispatch.recurrent_snapshot(&state.kv)
    }

    /// A sequence whose prompt will have `prompt_len` tokens and begins with `tokens`, at least one, which are cached in
    /// `pages`: as many as they take, by a sequence of equal frequencies that began with them. `snapshot` is what recurrent layers keep
    /// behind them.
    ///
    /// # Errors
    /// A copy on MLX that fails.
    pub fn restore(
        &self,
        prompt_len: usize,
        tokens: &[u32],
        pages: &[PageAndPane],
        snapshot: Option<&KvPage>,
    ) -> Result<SequenceState> {
        debug_assert_eq!(pages.len(), tokens.len().div_ceil(PAGE), "the pages of the tokens");
        let kv = self.dispatch.restore(&self.states, pages, snapshot, tokens.len())?;
        let history = alloc::copy_of(tokens, "the tokens of a sequence")?;
        let state = SequenceState { kv, history, ..self.sequence(prompt_len) };
        match &self.company {
            Some(company) => company.say_begun(state, pages),
            None => Ok(state),
        }
    }

    /// Runs one step and returns its logits `[S, V]` in the order of `batch.outputs`.
    ///
    /// # Errors
    /// Those of the ops; a failed evaluation only under [`crate::backend::Policy::Deny`]. The sequences then hold what
    /// they held before.
    pub fn step(&self, batch: &Batch, sequences: &mut [impl BorrowMut<SequenceState>]) -> Result<HostTensor> {
        let launched = self.launch(batch, sequences, true);
        let result = launched.and_then(|launched| self.read(&launched));
        match result {
            Ok(logits) => {
                self.commit(batch, sequences);
                Ok(logits)
            }
            Err(error) => Ok(self.recover(batch, sequences, false, error)?.logits),
        }
    }

    /// Builds a step and starts its evaluation; with `wait`, evaluates it. Its keys and values count as cached from
    /// here on, its tokens as history only once [`Self::commit`] says so.
    ///
    /// # Errors
    /// As [`Self::step`], without the replay.
    pub fn launch(
        &self,
        batch: &Batch,
        sequences: &mut [impl BorrowMut<SequenceState>],
        wait: bool,
    ) -> Result<Launched> {
        let launched = self.build(batch, sequences, None)?;
        self.start(batch, sequences, &launched, wait)?;
        Ok(launched)
    }

    /// Runs a step that goes on behind `carried`, what the model made of the token before each of the step's: `[T, D]`. Its outputs,
    /// hidden states among them; `of_first`, logits of the first tokens of the vocabulary alone, where the forward pass has a head for
    /// these. It is not replayed.
    ///
    /// # Errors
    /// Those of the ops, and a failed evaluation: the sequences are then not to be continued.
    pub fn step_behind(
        &self,
        batch: &Batch,
        carried: HostTensor,
        of_first: bool,
        sequences: &mut [impl BorrowMut<SequenceState>],
    ) -> Result<StepOutputs> {
        let carried = self.dispatch.to_backend(carried)?;
        let launched = self.built(batch, sequences, Some((carried, of_first)), None)?;
        self.start(batch, sequences, &launched, true)?;
        let outputs = self.outputs(&launched, true)?;
        self.commit(batch, sequences);
        Ok(outputs)
    }

    /// Starts the evaluation of a step; with `wait`, evaluates it.
    fn start(
        &self,
        batch: &Batch,
        sequences: &[impl BorrowMut<SequenceState>],
        launched: &Launched,
        wait: bool,
    ) -> Result<()> {
        let states = batch.runs.iter().map(|run| &sequences[run.sequence].borrow().kv);
        let caches: Vec<&LayerState> = match launched.logits {
            // The logits depend on every layer's cache.
            Some(_) => Vec::new(),
            None => states.clone().flat_map(|kv| &kv.layers).collect(),
        };
        let recurrent: Vec<&RecurrentState> = states.flat_map(|kv| &kv.recurrent).collect();
        let mut results: Vec<&Tensor> = launched.logits.iter().collect();
        if self.company.is_some() {
            // All sums of the step, whether or not its results are wanted: the other ranks wait in each.
            results.push(&launched.hidden);
        }
        let evaluated = self.dispatch.evaluate(&results, &caches, &recurrent, wait);
        if wait { self.heard(evaluated) } else { self.unheard(evaluated) }
    }

    /// Builds a step without evaluating it: the cost of a graph, where the backend is lazy.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn build<'a>(
        &'a self,
        batch: &'a Batch,
        sequences: &'a mut [impl BorrowMut<SequenceState>],
        tap: Option<Tap<'a>>,
    ) -> Result<Launched> {
        self.built(batch, sequences, None, tap)
    }

    fn built<'a>(
        &'a self,
        batch: &'a Batch,
        sequences: &'a mut [impl BorrowMut<SequenceState>],
        carried: Option<(Tensor, bool)>,
        tap: Option<Tap<'a>>,
    ) -> Result<Launched> {
        if let Some(company) = &self.company
            && self.dispatch.rank().leads()
        {
            company.say_step(&self.dispatch, batch, sequences)?;
        }
        let _guard = self.company.as_ref().map(Company::guard);
        self.unheard(self.built_here(batch, sequences, carried, tap))
    }

    fn built_here<'a>(
        &'a self,
        batch: &'a Batch,
        sequences: &'a mut [impl BorrowMut<SequenceState>],
        carried: Option<(Tensor, bool)>,
        tap: Option<Tap<'a>>,
    ) -> Result<Launched> {
        // What [`Self::commit`] will add: it cannot fail.
        for run in &batch.runs {
            if let Some(state) = sequences.get_mut(run.sequence) {
                let history = &mut state.borrow_mut().history;
                let more = (run.start + run.len).saturating_sub(history.len());
                alloc::reserve_more(history, more, "the tokens of a sequence")?;
            }
        }
        let adapters = self.adapters_of(batch, sequences)?;
        let mut step = Step::new(&self.dispatch, batch, sequences, &self.config)?.with_adapters(adapters);
        if let Some(tap) = tap {
            step = step.with_tap(tap);
        }
        if let Some((carried, of_first)) = carried {
            step = step.carrying(carried).of_first(of_first);
        }
        let hidden = self.forward.hidden(&mut step)?;
        let logits = match batch.outputs.is_empty() {
            true => None,
            false => Some(self.forward.logits(&step, &hidden)?),
        };
        Ok(Launched { logits, hidden })
    }

    /// The logits of a step in host memory, `[S, V]`.
    ///
    /// # Errors
    /// A failed evaluation.
    pub fn read(&self, launched: &Launched) -> Result<HostTensor> {
        match &launched.logits {
            Some(logits) => self.heard(self.dispatch.to_host(logits)),
            None => Ok(HostTensor::from_vec(&[0, self.config.vocab_size], Vec::new())),
        }
    }

    /// The logits of a step and, `with_hidden`, its hidden states.
    ///
    /// # Errors
    /// A failed evaluation.
    pub fn outputs(&self, launched: &Launched, with_hidden: bool) -> Result<StepOutputs> {
        let logits = self.read(launched)?;
        let hidden = with_hidden.then(|| self.heard(self.dispatch.to_host(&launched.hidden))).transpose()?;
        if hidden.is_some() {
            self.dispatch.evaluation_succeeded();
        }
        Ok(StepOutputs { logits, hidden })
    }

    /// Records the tokens of a step that succeeded.
    pub fn commit(&self, batch: &Batch, sequences: &mut [impl BorrowMut<SequenceState>]) {
        // Of a step without logits nobody knows yet whether its evaluation will succeed.
        if !batch.outputs.is_empty() {
            self.dispatch.evaluation_succeeded();
        }
        let Tokens::Known(ids) = &batch.tokens else { return };
        for run in &batch.runs {
            let history = &mut sequences[run.sequence].borrow_mut().history;
            history.truncate(run.start);
            history.extend_from_slice(&ids[run.rows()]);
        }
    }

    /// After a step failed: its sequences as they were, and the step replayed on the CPU where `error` allows it.
    ///
    /// MLX writes its caches in place and a failed evaluation may leave them without data, so that the state before
    /// the step is computed anew from the tokens. It stays in host memory where the dispatch gave MLX up, and moves back with
    /// the next step elsewhere. The results are those of [`Self::outputs`].
    ///
    /// # Errors
    /// `error` itself where it is not to be replayed, else those of the CPU.
    pub fn recover(
        &self,
        batch: &Batch,
        sequences: &mut [impl BorrowMut<SequenceState>],
        with_hidden: bool,
        error: Error,
    ) -> Result<StepOutputs> {
        let evaluation_failed = matches!(error, Error::Op { op: EVAL, .. });
        for run in &batch.runs {
            let state = sequences[run.sequence].borrow_mut();
            if evaluation_failed {
                state.kv = self.dispatch.sequence(&self.states);
            } else {
                state.kv.truncate(run.start);
            }
        }
        if !self.dispatch.may_replay(&error) {
            if evaluation_failed {
                batch.runs.iter().for_each(|run| sequences[run.sequence].borrow_mut().history.clear());
            }
            return Err(error);
        }
        self.dispatch.replay(&error, || {
            for run in &batch.runs {
                let state = sequences[run.sequence].borrow_mut();
                let history = std::mem::take(&mut state.history);
                for (i, chunk) in history[..run.start].chunks(REPLAY_CHUNK).enumerate() {
                    let mut chunk = Batch::of(&[(i * REPLAY_CHUNK, chunk)]);
                    chunk.outputs.clear();
                    self.build(&chunk, std::slice::from_mut(state), None)?;
                }
                state.history = history;
            }
            let launched = self.build(batch, sequences, None)?;
            let outputs = self.outputs(&launched, with_hidden)?;
            self.commit(batch, sequences);
            Ok(outputs)
        })
    }
}
