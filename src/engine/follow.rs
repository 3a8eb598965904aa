//! What every rank but the first does: the steps that it says.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ranks::{Message, Step};
use super::runtime::Runtime;
use crate::error::{Error, Result};
use crate::forward::step::SequenceState;

/// Does what the first rank says, until that ends.
///
/// # Errors
/// Where another rank is lost, or this one fails at a step: the others then wait for it, and it has to end.
pub(super) fn follow(runtime: &Runtime) -> Result<()> {
    let Some(company) = runtime.company() else { return Ok(()) };
    let mut states: BTreeMap<u32, SequenceState> = BTreeMap::new();
    loop {
        match company.listen(runtime.dispatch())? {
            Message::Wait(time) => std::thread::sleep(Duration::from_millis(time.into())),
            Message::End => return Ok(()),
            Message::Step(words) => {
                company.begin();
                let lost = || Error::Engine("what rank 0 says is no step".to_owned());
                let step = Step::read(&words).ok_or_else(lost)?;
                step.gone.iter().for_each(|number| {
                    states.remove(number);
                });
                let mut own = Vec::new();
                for (&[number, prompt, second], run) in step.sequences.iter().zip(&step.batch.runs) {
                    let known = states.remove(&number);
                    let mut state = known.unwrap_or_else(|| runtime.sequence(prompt as usize));
                    state.second = if second == u32::MAX { usize::MAX } else { second as usize };
                    if state.kv.len() > run.start {
                        state.kv.truncate(run.start);
                    }
                    own.push(state);
                }
                company.heard(runtime.launch(&step.batch, &mut own, true).map(drop))?;
                let numbers = step.sequences.iter().map(|&[number, ..]| number);
                states.extend(numbers.zip(own));
            }
        }
    }
}
