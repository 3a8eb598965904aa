//! A place in the engine: a sequence with what the model keeps of it, its part of the memory, and where it stands.
//!
//! ```text
//!            a step with it and others in it failed
//!           ┌─────────────────┬────────────► Apart ──┐
//!           │                 │                │     │
//! queue ─► Prefill ───────────┼──────────────────────┤
//!           │                 │                │     ▼ logits
//!           │               Decode ◄── goes on ── (choose) ◄─ it is there ─── Held
//!           │                 └────── logits ───────►│ └ its constraint is late ►┘
//!           │ has all its rows                 │     │ last token
//!           └────────────────────► Ended ◄─────┴─────┘
//! ```
//!
//! A sequence that is embedded or scored knows `Prefill`, `Apart` and `Ended` alone: it ends when it has the rows that it asked
//! for. From every phase an error, a panic or the one who asked leads to `Ended`. A request that waits for a place or for memory
//! has no slot: it is in the [`Queue`]. A slot that ended is taken out in the same turn.
//!
//! [`Queue`]: super::queue::Queue

use std::borrow::{Borrow, BorrowMut};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::draft::{Drafting, Pace, Price};
use super::memory::{Lease, Memory};
use super::request::{self, Space};
use super::runtime::{Runtime, StepOutputs};
use super::sequence::{Choice, Sequence, SequenceKind};
use crate::alloc;
use crate::backend::batch::Run;
use crate::backend::{LayerState, RecurrentState};
use crate::error::{Error, Result, panic_text};
use crate::forward::step::SequenceState;

/// How long the mask of a token behind a guess is waited for, and those of all guesses of a step.
const GUESS: Duration = Duration::from_millis(1);
const GUESSES: Duration = Duration::from_millis(4);

/// Where a sequence stands.
pub(super) enum Phase {
    /// The tokens that were given are computed, in steps with others.
    Prefill,
    /// It was in a step that failed with others in it. All of its tokens are computed anew in steps of its own, so that only the
    /// one at fault ends.
    Apart,
    /// Its last token is to be computed.
    Decode,
    /// Its next token cannot be chosen before its mask is known: its logits `[V]`. Or it is chosen, and its constraint has yet to
    /// follow it: empty. It takes no part in steps.
    Held(Vec<f32>),
    /// Whoever asked knows of it.
    Ended {
        /// Whether what it computed is good for others.
        keep: bool,
    },
}

/// A place with a sequence in it.
pub(super) struct Slot {
    pub sequence: Sequence,
    pub state: SequenceState,
    pub lease: Lease,
    /// Whose it is.
    space: Space,
    /// The last step that took any of it, as the engine counts them.
    pub turn: u64,
    phase: Phase,
    /// What guesses its next tokens, if anything does.
    draft: Option<Box<Drafting>>,
    /// Where steps of the prompt are to end, ascending: [`Sequence::stops`] of a model with recurrent layers.
    stops: Vec<usize>,
}

impl Borrow<SequenceState> for Slot {
    fn borrow(&self) -> &SequenceState {
        &self.state
    }
}

impl BorrowMut<SequenceState> for Slot {
    fn borrow_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }
}

impl Slot {
    pub fn new(
        sequence: Sequence,
        mut state: SequenceState,
        lease: Lease,
        (space, turn): (Space, u64),
        draft: Option<Box<Drafting>>,
    ) -> Self {
        state.second = sequence.second();
        let recurrent = !state.kv.recurrent.is_empty() && sequence.is_kept();
        let stops = if recurrent { sequence.stops() } else { Vec::new() };
        Self { sequence, state, lease, space, turn, phase: Phase::Prefill, draft, stops }
    }

    /// Whose it is.
    pub fn owner(&self) -> &str {
        request::owner(&self.space)
    }

    /// Tokens whose keys and values are cached.
    pub fn cached(&self) -> usize {
        self.state.history.len()
    }

    /// Tokens that the next steps are to compute.
    pub fn waiting(&self) -> usize {
        match self.phase {
            Phase::Prefill | Phase::Apart | Phase::Decode => self.sequence.goal() - self.cached(),
            Phase::Held(_) | Phase::Ended { .. } => 0,
        }
    }

    /// How many of them come before the next place where a step is to end.
    pub fn before_stop(&self) -> usize {
        let cached = self.cached();
        self.stops.iter().find(|&&stop| stop > cached).map_or(usize::MAX, |stop| stop - cached)
    }

    /// Whether it is where a copy of what its recurrent layers keep is to be kept.
    pub fn is_at_stop(&self) -> bool {
        matches!(self.phase, Phase::Prefill | Phase::Apart)
            && self.stops.binary_search(&self.cached()).is_ok()
    }

    pub fn is_decoding(&self) -> bool {
        matches!(self.phase, Phase::Decode)
    }

    pub fn is_apart(&self) -> bool {
        matches!(self.phase, Phase::Apart)
    }

    pub fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Held(_))
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// Whether the backend may choose the next token by itself, and the sequence goes on behind that one.
    pub fn may_run_ahead(&self, context: usize) -> bool {
        match &self.sequence.kind {
            SequenceKind::Generate(it) => it.may_run_ahead() && self.sequence.tokens.len() + 1 < context,
            SequenceKind::Embed(_) | SequenceKind::Score(_) => false,
        }
    }

    /// Its drafts, where something is guessed: at most `most` tokens, in a step of such a `price`.
    pub fn guess(
        &mut self,
        most: usize,
        context: usize,
        price: Price,
        pace: &mut Pace,
    ) -> Option<&mut Drafting> {
        let Sequence { tokens, prompt, .. } = &self.sequence;
        let draft = self.draft.as_mut()?;
        let SequenceKind::Generate(it) = &self.sequence.kind else { return None };
        let most = most.min(it.room(tokens.len(), context));
        let guessed = catch_unwind(AssertUnwindSafe(|| draft.guess(tokens, *prompt, most, price, pace)));
        match guessed.unwrap_or_else(|panic| Err(Error::Engine(panic_text(&*panic).to_owned()))) {
            Ok(0) => None,
            Ok(_) => self.draft.as_deref_mut(),
            Err(error) => {
                tracing::warn!(%error, "a sequence goes on without drafts");
                self.draft = None;
                None
            }
        }
    }

    /// The guesses that the next step takes behind its last token.
    pub fn offered(&self) -> &[u32] {
        self.draft.as_ref().map_or(&[], |draft| draft.offered())
    }

    /// Whether what the model makes of its tokens is wanted.
    pub fn wants_hidden(&self) -> bool {
        self.sequence.wants_hidden() || self.draft.as_ref().is_some_and(|draft| draft.sees())
    }

    /// Whether guessing its tokens takes time.
    pub fn computes_guesses(&self) -> bool {
        self.draft.as_ref().is_some_and(|draft| draft.computes())
    }

    /// The drafts that the next step takes some of.
    pub fn draft_mut(&mut self) -> Option<&mut Drafting> {
        self.draft.as_deref_mut()
    }

    /// Takes what a step gave of `run`: `rows` of its logits. Until `deadline` it waits for its constraint. Whether
    /// the prompt is through with it, and the sequence goes on. A panic ends this sequence alone.
    pub fn take(
        &mut self,
        run: &Run,
        outputs: &StepOutputs,
        rows: Range<usize>,
        deadline: Instant,
        context: usize,
        pace: &mut Pace,
    ) -> bool {
        self.sequence.show(run.end());
        let begins = matches!(self.phase, Phase::Prefill | Phase::Apart);
        self.guarded(|slot| {
            match &mut slot.sequence.kind {
                SequenceKind::Generate(_) => {
                    let right = match rows.is_empty() {
                        true => run.len,
                        false => slot.verify(run, outputs, rows, deadline, context, pace)?,
                    };
                    slot.show_draft(run, outputs, right);
                }
                SequenceKind::Embed(it) => {
                    let Some(hidden) = &outputs.hidden else {
                        return Err(Error::Engine("a step gave no hidden states".into()));
                    };
                    let tokens = slot.sequence.tokens.len();
                    it.add(run.start, hidden.view().rows(run.rows()), tokens)?;
                    if it.finish(tokens)? {
                        slot.end();
                    }
                }
                SequenceKind::Score(it) => {
                    let heard = it.give(outputs.logits.view().rows(rows));
                    if it.rows.is_empty() || !heard {
                        slot.end();
                    }
                }
            }
            Ok(())
        });
        begins && matches!(self.phase, Phase::Decode | Phase::Held(_))
    }

    /// Goes on where its constraint was late and is there by `deadline`; whether it was.
    pub fn settle(&mut self, deadline: Instant, context: usize) -> bool {
        let SequenceKind::Generate(it) = &mut self.sequence.kind else { return false };
        if !matches!(self.phase, Phase::Held(_)) || !it.wait(deadline) {
            return false;
        }
        if let Phase::Held(logits) = std::mem::replace(&mut self.phase, Phase::Decode) {
            self.guarded(|slot| slot.choose(&logits, context, None));
        }
        true
    }

    /// Shows its drafts what the model made of the first `right` tokens of `run`.
    fn show_draft(&mut self, run: &Run, outputs: &StepOutputs, right: usize) {
        let Some(draft) = self.draft.as_mut().filter(|draft| draft.sees()) else { return };
        let Some(hidden) = &outputs.hidden else { return };
        if let Err(error) = draft.see(run.start, hidden.view().rows(run.row..run.row + right)) {
            tracing::warn!(%error, "a sequence goes on without drafts");
            self.draft = None;
        }
    }

    /// Chooses a token from the first of `rows`, and from each row behind it while what is chosen is what was guessed. The caches
    /// then hold what was right. How many tokens of the run were right.
    fn verify(
        &mut self,
        run: &Run,
        outputs: &StepOutputs,
        rows: Range<usize>,
        deadline: Instant,
        context: usize,
        pace: &mut Pace,
    ) -> Result<usize> {
        let drafted = rows.len() - 1;
        let guess = self.draft.as_mut().map(|draft| draft.take()).unwrap_or_default();
        if let SequenceKind::Generate(it) = &mut self.sequence.kind {
            it.drafted(drafted);
        }
        let (mut deadline, last) = (deadline, Instant::now() + GUESSES);
        // Those that were chosen, and those whose next row is wanted.
        let (mut chosen, mut right, mut held) = (0, 0, false);
        for (i, row) in rows.enumerate() {
            let logits = outputs.logits.row(row);
            let SequenceKind::Generate(it) = &mut self.sequence.kind else { break };
            if !it.wait(deadline) {
                self.phase = Phase::Held(alloc::copy_of(logits, "logits that wait for their mask")?);
                held = true;
                break;
            }
            let guessed = guess.tokens.get(i).copied().filter(|_| i < drafted);
            self.choose(logits, context, guessed)?;
            if self.is_held() {
                held = true;
                break;
            }
            let is_right = guessed.is_some() && guessed == self.sequence.tokens.last().copied();
            chosen += usize::from(is_right);
            if self.is_ended() || self.sequence.is_cancelled() || !is_right {
                break;
            }
            right += 1;
            deadline = (Instant::now() + GUESS).min(last);
        }
        if drafted == 0 {
            return Ok(run.len);
        }
        if let Some(draft) = &mut self.draft {
            draft.judge(&guess, drafted, chosen, held, pace);
        }
        if right < drafted {
            // What recurrent layers keep may go back by a whole step alone, and the rest is computed again.
            let (kv, to) = (&mut self.state.kv, run.end() - drafted + right);
            let to = if kv.reaches(to) { to } else { run.start };
            kv.truncate(to);
            self.state.history.truncate(to);
            self.sequence.show(to);
        }
        Ok(run.len - drafted + right)
    }

    /// Whether its caches hold all that it has computed; more where the next step was started ahead.
    pub fn is_whole(&self) -> bool {
        self.state.kv.len() >= self.cached()
    }

    /// Goes on without guesses, where the step that failed had some of it, or made more for them; whether it had.
    pub fn drop_draft(&mut self) -> bool {
        self.draft.take_if(|draft| !draft.offered().is_empty() || draft.sees()).is_some()
    }

    fn choose(&mut self, logits: &[f32], context: usize, guessed: Option<u32>) -> Result<()> {
        match self.sequence.choose(logits, context, guessed)? {
            Choice::GoesOn => self.phase = Phase::Decode,
            Choice::Held => self.phase = Phase::Held(Vec::new()),
            Choice::Last => self.end(),
        }
        Ok(())
    }

    /// Does what concerns this sequence alone: an error or a panic ends it, and nothing else.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) {
        let result = catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|panic| {
            let doing = match self.sequence.kind {
                SequenceKind::Generate(_) => "choosing a token",
                SequenceKind::Embed(_) | SequenceKind::Score(_) => "giving an answer",
            };
            let what = panic_text(&*panic);
            tracing::error!(what, "{doing} panicked");
            Err(Error::Engine(format!("{doing} panicked: {what}")))
        });
        if let Err(error) = result {
            self.fail(error);
        }
    }

    /// Ends it, since it was cancelled.
    pub fn cancel(&mut self) {
        self.sequence.finish_cancelled();
        self.end();
    }

    /// Whoever asked has been told of the end.
    fn end(&mut self) {
        self.phase = Phase::Ended { keep: self.sequence.is_kept() };
    }

    /// Ends it with an error. What it computed is not kept.
    pub fn fail(&mut self, error: Error) {
        let before = std::mem::replace(&mut self.phase, Phase::Ended { keep: false });
        if !matches!(before, Phase::Ended { .. }) {
            self.sequence.fail(error);
        }
    }

    /// Notes that a step failed with it and others in it, after which its caches are not to be continued.
    pub fn restart(&mut self, runtime: &Runtime, memory: &mut Memory) {
        if let Phase::Ended { keep } = &mut self.phase {
            *keep = false;
            return;
        }
        let sequence = &self.sequence;
        let tokens = &sequence.tokens[..sequence.skippable()];
        match memory.restart(runtime, sequence.prompt, tokens, &mut self.lease) {
            Ok(state) => {
                let adapter = self.state.adapter.take();
                self.state = SequenceState { second: self.sequence.second(), adapter, ..state };
                self.phase = Phase::Apart;
                self.sequence.show(self.cached());
            }
            Err(error) => {
                self.state = runtime.sequence(sequence.prompt);
                self.fail(error);
            }
        }
    }

    /// Whether its caches, after a step failed, are what they were before.
    pub fn is_as_before(&self) -> bool {
        let kv = &self.state.kv;
        let on_host = kv.layers.iter().all(|layer| matches!(layer, LayerState::Host(_)))
            && kv.recurrent.iter().all(|state| matches!(state, RecurrentState::Host(_)));
        on_host && kv.len() == self.state.history.len()
    }

    /// Goes on by itself from where it is; `false` where its caches may not be what its tokens say.
    pub fn set_apart(&mut self) -> bool {
        let whole = self.is_as_before();
        if whole && !matches!(self.phase, Phase::Ended { .. }) {
            self.phase = Phase::Apart;
        }
        whole
    }

    /// Whose answer it was, and its tokens, where one with drafts ended as it was to.
    pub fn answer(&self) -> Option<(&Space, &[u32])> {
        let Sequence { tokens, prompt, .. } = &self.sequence;
        let ended = matches!(self.phase, Phase::Ended { keep: true }) && self.draft.is_some();
        ended.then(|| (&self.space, &tokens[*prompt..]))
    }

    /// Gives back what it had, once it has ended.
    pub fn release(self, runtime: &Runtime, memory: &mut Memory) {
        let Self { mut state, lease, phase, .. } = self;
        if !matches!(phase, Phase::Ended { keep: true }) {
            state.history.clear();
        }
        memory.release(runtime, state, lease);
    }
}
