//! What the disk is asked of requests that wait, and what it answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::Worker;
use crate::engine::disk::Answer;
use crate::error::panic_text;

/// How long a request waits for what the disk has of its beginning. Reading is weighed against computing, which takes longer.
const DISK_PATIENCE: Duration = Duration::from_secs(30);

/// What the disk is asked for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looking {
    /// Nothing.
    No,
    /// Whether it has more of its beginning than memory has.
    Found,
    /// That, for which so many bytes were set aside.
    Read(u64),
    /// Nothing any more: the disk takes too long. What was set aside is until it answers; nobody waits for it before.
    Late(u64),
}

impl Worker {
    /// Has nobody wait for a disk that does not answer.
    pub(super) fn wait_no_longer(&mut self) {
        let set_aside = match self.looking {
            Looking::No | Looking::Late(_) => return,
            Looking::Found => 0,
            Looking::Read(bytes) => bytes,
        };
        if self.asked.elapsed() < DISK_PATIENCE {
            return;
        }
        tracing::warn!("the cache on disk does not answer: prompts are computed anew until it does");
        self.looking = Looking::Late(set_aside);
        while self.queue.first_parked().is_some() {
            self.queue.unpark();
        }
    }

    /// Has the beginning of the next parked request looked for; those that need none go on.
    pub(super) fn look(&mut self) {
        while self.looking == Looking::No
            && let Some(request) = self.queue.first_parked()
        {
            // What can never run is refused in its turn, and what panics is not looked for.
            let wanted = catch_unwind(AssertUnwindSafe(|| {
                self.check(request).ok()?;
                let (prompt, tokens) = (request.tokens.len(), &request.tokens[..request.skippable()]);
                self.memory.wanted(&self.runtime, prompt, tokens, &request.beginnings())
            }));
            let wanted = wanted.ok().flatten();
            match wanted.zip(self.memory.disk()).is_some_and(|(find, disk)| disk.find(find)) {
                true => (self.looking, self.asked) = (Looking::Found, Instant::now()),
                false => self.queue.unpark(),
            }
        }
    }

    /// Takes an answer of the disk; a panic is one for nothing.
    pub(super) fn guarded_answer(&mut self, answer: Answer) {
        let set_aside = match self.looking {
            Looking::Late(bytes) => {
                self.memory.put_back(bytes);
                self.looking = Looking::No;
                return self.queue.memory_freed();
            }
            Looking::Read(bytes) => bytes,
            Looking::No | Looking::Found => 0,
        };
        self.looking = Looking::No;
        let goes_on = catch_unwind(AssertUnwindSafe(|| self.answer(answer, set_aside)));
        if let Err(panic) = &goes_on {
            tracing::error!(what = panic_text(&**panic), "what the disk has of a request panicked");
        }
        if !goes_on.unwrap_or(false) {
            self.queue.unpark();
        }
        self.look();
    }

    /// Takes an answer of the disk for the first parked request; whether another one follows.
    fn answer(&mut self, answer: Answer, set_aside: u64) -> bool {
        let Some(request) = self.queue.first_parked() else {
            self.memory.put_back(set_aside);
            return false;
        };
        match answer {
            Answer::Found(plan) => {
                let bytes = plan.bytes;
                if !request.is_cancelled() && self.memory.set_aside(bytes) {
                    if self.memory.disk().is_some_and(|disk| disk.load(plan)) {
                        (self.looking, self.asked) = (Looking::Read(bytes), Instant::now());
                        return true;
                    }
                    self.memory.put_back(bytes);
                }
                self.memory.found_nothing();
            }
            Answer::Loaded(brought) => {
                let (prompt, tokens) = (request.tokens.len(), &request.tokens[..request.skippable()]);
                self.memory.bring(&self.runtime, prompt, tokens, &request.beginnings(), brought);
                self.queue.memory_freed();
            }
            Answer::Nothing => {
                self.memory.put_back(set_aside);
                self.memory.found_nothing();
                self.queue.memory_freed();
            }
        }
        false
    }
}
