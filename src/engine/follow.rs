//! What every rank but the first does: the steps that it says.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ranks::{Message, Step};
use super::runtime::Runtime;
use crate::backend::PageAndPane;
use crate::backend::kv::PAGE;
use crate::backend::ranks::Order;
use crate::error::{Error, Result};
use crate::forward::step::SequenceState;

/// What a rank has of sequences and of pages, by the numbers that the first one gave them.
#[derive(Default)]
struct Kept {
    states: BTreeMap<u32, SequenceState>,
    pages: BTreeMap<u32, PageAndPane>,
}

impl Kept {
    fn carry_out(&mut self, runtime: &Runtime, order: Order) -> Result<()> {
        let unknown = |what: &str, number: u32| Error::Engine(format!("{what} {number} is not known here"));
        match order {
            Order::Keep { sequence, len, first, pages } => {
                let (first, len) = (first as usize, len as usize);
                let state = self.states.get_mut(&sequence).ok_or_else(|| unknown("sequence", sequence))?;
                if state.kv.len() > len {
                    state.kv.truncate(len);
                }
                let made = runtime.pages(state, first..first + pages.len())?.unwrap_or_default();
                if made.len() != pages.len() || state.kv.len() != len {
                    let what = format!("{} of {} pages of a sequence can be kept", made.len(), pages.len());
                    return Err(Error::Engine(what));
                }
                self.pages.extend(pages.into_iter().zip(made));
            }
            Order::Begin { sequence, prompt, len, pages } => {
                let page =
                    |number: u32| self.pages.get(&number).cloned().ok_or_else(|| unknown("page", number));
                let pages = pages.into_iter().map(page).collect::<Result<Vec<PageAndPane>>>()?;
                if (len as usize).div_ceil(PAGE) != pages.len() {
                    return Err(Error::Engine(format!("{} pages of {len} tokens", pages.len())));
                }
                // What the tokens are is the first one's to know.
                let state = runtime.restore(prompt as usize, &vec![0; len as usize], &pages, None)?;
                self.states.insert(sequence, state);
            }
            Order::Forget(sequence) => _ = self.states.remove(&sequence),
            Order::ForgetPage(page) => _ = self.pages.remove(&page),
        }
        Ok(())
    }
}

/// Does what the first rank says, until that ends.
///
/// # Errors
/// Where another rank is lost, or this one fails at a step: the others then wait for it, and it has to end.
pub(super) fn follow(runtime: &Runtime) -> Result<()> {
    let Some(company) = runtime.company() else { return Ok(()) };
    let mut kept = Kept::default();
    loop {
        let (orders, message) = company.listen(runtime.dispatch())?;
        for order in orders {
            company.heard(kept.carry_out(runtime, order))?;
        }
        match message {
            Message::Wait(time) => std::thread::sleep(Duration::from_millis(time.into())),
            Message::End => return Ok(()),
            Message::Step(words) => {
                let lost = || Error::Engine("what rank 0 says is no step".to_owned());
                let step = Step::read(&words).ok_or_else(lost)?;
                let mut own = Vec::new();
                for (&[number, prompt, second], run) in step.sequences.iter().zip(&step.batch.runs) {
                    let known = kept.states.remove(&number);
                    let mut state = known.unwrap_or_else(|| runtime.sequence(prompt as usize));
                    state.second = if second == u32::MAX { usize::MAX } else { second as usize };
                    if state.kv.len() > run.start {
                        state.kv.truncate(run.start);
                    }
                    own.push(state);
                }
                company.begin(step.batch.rows());
                company.heard(runtime.launch(&step.batch, &mut own, true).map(drop))?;
                let numbers = step.sequences.iter().map(|&[number, ..]| number);
                kept.states.extend(numbers.zip(own));
            }
        }
    }
}
