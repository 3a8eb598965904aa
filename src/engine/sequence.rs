//! One sequence in flight: what it was asked, its tokens so far, and how the next one is chosen.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::guide::Guide;
use super::memory::Lease;
use super::{Event, FinishReason, Request, Stats};
use crate::error::{Error, Result, panic_text};
use crate::sample::{Place, Sampled, Sampler};

/// One sequence in flight; its caches are at the same index of the worker's states.
pub(super) struct Sequence {
    pub request: Request,
    pub sampler: Sampler,
    pub guide: Option<Guide>,
    /// Whether the text so far is what the constraint asks for; none without one.
    pub conforms: Option<bool>,
    /// Logits that wait for their mask. `[V]`
    pub held: Option<Vec<f32>>,
    /// Whether the next token is the largest logit, whatever came before.
    pub greedy: bool,
    /// The prompt and what was generated.
    pub tokens: Vec<u32>,
    /// Tokens whose keys and values are cached.
    pub cached: usize,
    pub stats: Stats,
    pub started: Instant,
    pub first_token: Option<Instant>,
    /// Whether it was in a step that failed with others in it: it is computed anew by itself, so that only the one at fault
    /// ends.
    pub apart: bool,
    pub ended: bool,
    /// Whether an error ended it: what it computed is not kept for others.
    pub failed: bool,
    /// Its part of the memory.
    pub lease: Lease,
    /// Whether the pages of its prompt are kept for others.
    pub shared: bool,
}

impl Sequence {
    fn send(&mut self, event: Event) {
        // Whoever asked may have gone; the sequence then ends as cancelled.
        if !self.request.events.send(event) {
            self.request.cancel.store(true, Ordering::Relaxed);
        }
    }

    pub fn finish(&mut self, reason: FinishReason) {
        if let Some(first) = self.first_token {
            self.stats.generation_time = first.elapsed();
        }
        self.ended = true;
        self.send(Event::Finished { reason, stats: self.stats, conforms: self.conforms });
    }

    pub fn fail(&mut self, error: Error) {
        (self.ended, self.failed) = (true, true);
        self.send(Event::Failed(error));
    }

    /// Waits until `deadline` for what has to be known before a token is chosen; whether it is.
    pub fn wait(&mut self, deadline: Instant) -> bool {
        self.guide.as_mut().is_none_or(|guide| guide.wait(deadline))
    }

    /// Chooses the next token from its logits `[V]`; a panic ends this sequence alone.
    pub fn choose(&mut self, logits: &[f32], context: usize) {
        let choose = || self.sample(logits).and_then(|sampled| self.accept(sampled, context));
        let result = catch_unwind(AssertUnwindSafe(choose)).unwrap_or_else(|panic| {
            let what = panic_text(&*panic);
            tracing::error!(what, "choosing a token panicked");
            Err(Error::Engine(format!("choosing a token panicked: {what}")))
        });
        if let Err(error) = result {
            self.fail(error);
        }
    }

    fn sample(&mut self, logits: &[f32]) -> Result<Sampled> {
        let early = self.stats.generated_tokens < self.request.min_tokens;
        let place = Place {
            tokens: &self.tokens,
            prompt: self.request.prompt.len(),
            mask: self.guide.as_ref().map(Guide::mask).transpose()?,
            banned: if early { &self.request.eos } else { &[] },
        };
        self.sampler.sample(logits, place)
    }

    /// Takes the chosen token.
    fn accept(&mut self, sampled: Sampled, context: usize) -> Result<()> {
        let Sampled { token, logprobs } = sampled;
        let now = Instant::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.stats.prompt_time = now - self.started;
        }
        let ends = self.request.eos.contains(&token);
        let mut complete = false;
        if let Some(guide) = &mut self.guide {
            if ends {
                // The token is not part of the text.
                self.conforms = Some(guide.may_end());
            } else {
                let progress = guide.accept(token)?;
                (complete, self.conforms) = (progress.complete, Some(progress.accepting));
            }
        }
        self.stats.generated_tokens += 1;
        self.tokens.push(token);
        self.send(Event::Token { token, logprobs });
        if ends || complete {
            self.finish(FinishReason::Stop);
        } else if self.stats.generated_tokens >= self.request.max_tokens || self.tokens.len() >= context {
            self.finish(FinishReason::Length);
        }
        Ok(())
    }
}
