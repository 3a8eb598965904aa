//! What a recurrent layer keeps of a sequence in host memory.
//!
//! A step reads what was there and writes what comes in a second buffer: so it can be taken back, and a step that fails has changed
//! nothing. Of a step of few tokens, some of which may be guesses, it is kept how the state is advanced by the first of them; that is
//! memory of the step, and none of what [`Recurrent::bytes`] counts. Matrices lie in panels of [`PANEL`] columns, each of which a thread
//! advances by itself.

use std::fmt;
use std::sync::Arc;

use super::ops::{PANEL, Recurrent, RecurrentShape};
use crate::alloc;
use crate::error::{Error, Result};

const WHAT: &str = "the states of recurrent layers";

/// The state of one layer and one sequence.
#[derive(Debug, Clone)]
pub struct HostRecurrent {
    shape: RecurrentShape,
    rows: Part,
    matrices: Part,
}

/// Which part of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecurrentPart {
    /// The rows that the convolution's next one sees, `[taps, channels]`, the oldest first.
    Rows,
    /// The matrices, `[heads, panels, rows, PANEL]`.
    Matrices,
}

/// Tokens of a step at most, for it to be kept how its first ones advance a state.
pub const REPLAYED: usize = 32;

/// Advances a part of a state by the first tokens of the last step, in the order and with the bits of that step.
#[derive(Clone)]
pub struct Replay(Arc<ReplayFn>);

type ReplayFn = dyn Fn(usize, &[f32], &mut [f32]) + Send + Sync;

impl Replay {
    /// `advance(tokens, before, after)` writes all of `after`.
    pub fn new(advance: impl Fn(usize, &[f32], &mut [f32]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(advance))
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Replay")
    }
}

#[derive(Debug, Clone, Default)]
struct Part {
    /// Tokens seen.
    len: usize,
    /// Empty until the first step; zeros stand for no token.
    now: Vec<f32>,
    /// Tokens seen before the last step, whose values `other` holds.
    before: Option<usize>,
    other: Vec<f32>,
    /// How the tokens since then advanced it, where they were few.
    replay: Option<Replay>,
}

impl Part {
    fn reaches(&self, len: usize) -> bool {
        let begins = |before: usize| before == len || before < len && self.replay.is_some();
        len >= self.len || self.before.is_some_and(begins)
    }

    fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        match (self.before, &self.replay) {
            (Some(before), _) if before == len => {
                std::mem::swap(&mut self.now, &mut self.other);
                (self.len, self.before, self.replay) = (len, None, None);
            }
            (Some(before), Some(Replay(advance))) if before < len => {
                advance(len - before, &self.other, &mut self.now);
                self.len = len;
            }
            _ => {
                (self.len, self.before, self.replay) = (0, None, None);
                self.now.fill(0.0);
            }
        }
    }

    /// What was there at `start`, and room for what will be; whether it was taken.
    fn begin(&mut self, start: usize, elements: usize) -> Result<(&[f32], &mut [f32])> {
        self.truncate(start);
        if self.len != start {
            let what = format!("position {start}, and the state has seen {} tokens", self.len);
            return Err(Error::shape("recurrent", what));
        }
        for buffer in [&mut self.now, &mut self.other] {
            if buffer.len() != elements {
                *buffer = alloc::zeroed(elements, WHAT)?;
            }
        }
        // What is written over is not what was before.
        (self.before, self.replay) = (None, None);
        Ok((&self.now, &mut self.other))
    }

    fn commit(&mut self, start: usize, end: usize, replay: Option<Replay>) {
        std::mem::swap(&mut self.now, &mut self.other);
        (self.before, self.len, self.replay) = (Some(start), end, replay);
    }
}

impl HostRecurrent {
    /// A state that has seen nothing.
    pub fn new(shape: RecurrentShape) -> Self {
        Self { shape, rows: Part::default(), matrices: Part::default() }
    }

    /// A copy of what is held, without what was there before the last step.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn copy(&self) -> Result<Self> {
        let part = |of: &Part| {
            Ok::<_, Error>(Part { len: of.len, now: alloc::copy_of(&of.now, WHAT)?, ..Part::default() })
        };
        Ok(Self { shape: self.shape, rows: part(&self.rows)?, matrices: part(&self.matrices)? })
    }

    fn part(&mut self, part: RecurrentPart) -> (&mut Part, usize) {
        let [rows, matrices] = Self::elements(&self.shape);
        match part {
            RecurrentPart::Rows => (&mut self.rows, rows),
            RecurrentPart::Matrices => (&mut self.matrices, matrices),
        }
    }

    /// How many the rows are, and the matrices.
    fn elements(shape: &RecurrentShape) -> [usize; 2] {
        let RecurrentShape { taps, channels, heads, rows, columns } = *shape;
        [taps * channels, heads * columns.div_ceil(PANEL) * rows * PANEL]
    }

    /// Hands the bytes of its rows and of its matrices to `to`, as they lie in memory: as many as
    /// [`RecurrentShape::bytes_on`] says of the CPU.
    ///
    /// # Errors
    /// Those of `to`; [`Error::OutOfMemory`].
    pub(crate) fn give(&self, to: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for (part, elements) in [&self.rows, &self.matrices].into_iter().zip(Self::elements(&self.shape)) {
            match part.now.len() == elements {
                true => to(bytemuck::cast_slice(&part.now))?,
                false => to(bytemuck::cast_slice(&alloc::zeroed::<f32>(elements, WHAT)?))?,
            }
        }
        Ok(())
    }

    /// A state that has seen `len` tokens, whose bytes `from` fills in as [`Self::give`] gave them.
    ///
    /// # Errors
    /// Those of `from`; [`Error::OutOfMemory`].
    pub(crate) fn take(
        shape: &RecurrentShape,
        len: usize,
        from: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let mut part = |elements| {
            let mut now: Vec<f32> = alloc::zeroed(elements, WHAT)?;
            from(bytemuck::cast_slice_mut(&mut now))?;
            Ok::<_, Error>(Part { len, now, ..Part::default() })
        };
        let [rows, matrices] = Self::elements(shape);
        Ok(Self { shape: *shape, rows: part(rows)?, matrices: part(matrices)? })
    }

    /// The values of `part` after `start` tokens, and room for those after the step, all of which is to be written.
    ///
    /// # Errors
    /// Where the state is at another place, and cannot go there; [`Error::OutOfMemory`].
    pub fn begin(&mut self, part: RecurrentPart, start: usize) -> Result<(&[f32], &mut [f32])> {
        let (part, elements) = self.part(part);
        part.begin(start, elements)
    }

    /// Takes what was written since [`Self::begin`] for the state after `end` tokens, which `replay` advances by the first of them.
    pub fn commit(&mut self, part: RecurrentPart, start: usize, end: usize, replay: Option<Replay>) {
        self.part(part).0.commit(start, end, replay);
    }

    /// Rows `[taps, channels]` and matrices `[heads, rows, columns]`, and how many tokens each has seen: for a move to another backend.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn read(&self) -> Result<[(usize, Vec<f32>); 2]> {
        let RecurrentShape { taps, channels, heads, rows, columns } = self.shape;
        let mut history = alloc::zeroed(taps * channels, WHAT)?;
        if !self.rows.now.is_empty() {
            history.copy_from_slice(&self.rows.now);
        }
        let mut matrices = alloc::zeroed(heads * rows * columns, WHAT)?;
        if !self.matrices.now.is_empty() {
            for (row, to) in matrices.chunks_exact_mut(columns.max(1)).enumerate() {
                for (panel, to) in to.chunks_mut(PANEL).enumerate() {
                    let at = self.panel(row / rows, panel) + row % rows * PANEL;
                    to.copy_from_slice(&self.matrices.now[at..at + to.len()]);
                }
            }
        }
        Ok([(self.rows.len, history), (self.matrices.len, matrices)])
    }

    /// A state of what [`Self::read`] gave.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn of(shape: RecurrentShape, [rows, matrices]: [(usize, Vec<f32>); 2]) -> Result<Self> {
        let mut state = Self::new(shape);
        let panels = shape.columns.div_ceil(PANEL);
        let mut paneled = alloc::zeroed(shape.heads * panels * shape.rows * PANEL, WHAT)?;
        for (row, from) in matrices.1.chunks_exact(shape.columns.max(1)).enumerate() {
            for (panel, from) in from.chunks(PANEL).enumerate() {
                let at = state.panel(row / shape.rows, panel) + row % shape.rows * PANEL;
                paneled[at..at + from.len()].copy_from_slice(from);
            }
        }
        state.rows = Part { len: rows.0, now: rows.1, ..Part::default() };
        state.matrices = Part { len: matrices.0, now: paneled, ..Part::default() };
        Ok(state)
    }

    /// Where panel `panel` of head `head` begins.
    fn panel(&self, head: usize, panel: usize) -> usize {
        (head * self.shape.columns.div_ceil(PANEL) + panel) * self.shape.rows * PANEL
    }
}

impl Recurrent for HostRecurrent {
    fn shape(&self) -> &RecurrentShape {
        &self.shape
    }

    fn len(&self) -> usize {
        match (self.shape.taps * self.shape.channels, self.shape.heads) {
            (0, _) => self.matrices.len,
            (_, 0) => self.rows.len,
            _ => self.rows.len.min(self.matrices.len),
        }
    }

    fn bytes(&self) -> usize {
        let parts = [&self.rows, &self.matrices];
        parts.map(|part| size_of_val(&part.now[..]) + size_of_val(&part.other[..])).iter().sum()
    }

    fn reaches(&self, len: usize) -> bool {
        self.rows.reaches(len) && self.matrices.reaches(len)
    }

    fn truncate(&mut self, len: usize) {
        self.rows.truncate(len);
        self.matrices.truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: RecurrentShape = RecurrentShape { taps: 3, channels: 5, heads: 2, rows: 4, columns: 70 };

    fn advance(state: &mut HostRecurrent, start: usize, end: usize) {
        for (part, by) in [(RecurrentPart::Rows, 1.0), (RecurrentPart::Matrices, 2.0)] {
            let (old, new) = state.begin(part, start).unwrap();
            for (i, (new, old)) in new.iter_mut().zip(old).enumerate() {
                *new = old + by * (end - start) as f32 + i as f32;
            }
            state.commit(part, start, end, None);
        }
    }

    #[test]
    fn a_step_can_be_taken_back_and_two_cannot() {
        let mut state = HostRecurrent::new(SHAPE);
        assert_eq!((state.len(), state.bytes()), (0, 0));
        advance(&mut state, 0, 3);
        let at_3 = state.read().unwrap();
        advance(&mut state, 3, 10);
        assert_eq!(state.len(), 10);
        state.truncate(12);
        assert_eq!(state.len(), 10);
        state.truncate(3);
        assert_eq!((state.len(), state.read().unwrap()), (3, at_3.clone()));
        // What is taken back is forgotten, and what lies before it was never kept.
        advance(&mut state, 3, 4);
        assert!(state.begin(RecurrentPart::Rows, 2).is_err());
        state.truncate(2);
        assert_eq!(state.len(), 0);
        assert!(
            state.read().unwrap().iter().all(|(len, values)| *len == 0 && values.iter().all(|x| *x == 0.0))
        );
        advance(&mut state, 0, 3);
        assert_eq!(state.read().unwrap(), at_3);
    }

    /// Of a step whose tokens can be replayed, any number of the first ones may stay, one after the other.
    #[test]
    fn a_step_of_few_tokens_can_be_taken_back_in_part() {
        let mut state = HostRecurrent::new(SHAPE);
        advance(&mut state, 0, 3);
        let at_3 = state.read().unwrap();
        for (part, by) in [(RecurrentPart::Rows, 1.0), (RecurrentPart::Matrices, 2.0)] {
            let (old, new) = state.begin(part, 3).unwrap();
            let add = move |tokens: usize, old: &[f32], new: &mut [f32]| {
                new.iter_mut().zip(old).for_each(|(new, old)| *new = old + by * tokens as f32);
            };
            add(7, old, new);
            state.commit(part, 3, 10, Some(Replay::new(add)));
        }
        let after = |tokens: f32| {
            let mut read = at_3.clone();
            for ((len, values), by) in read.iter_mut().zip([1.0, 2.0]) {
                *len += tokens as usize;
                values.iter_mut().for_each(|x| *x += by * tokens);
            }
            read
        };
        assert_eq!(state.read().unwrap(), after(7.0));
        for left in [6, 4, 1] {
            assert!(state.reaches(3 + left) && !state.reaches(2));
            state.truncate(3 + left);
            assert_eq!((state.len(), state.read().unwrap()), (3 + left, after(left as f32)));
        }
        // It goes on from there, and what was before is then no more.
        advance(&mut state, 4, 5);
        assert!(state.reaches(4) && !state.reaches(3));
        state.truncate(4);
        assert_eq!(state.read().unwrap(), after(1.0));
    }

    #[test]
    fn bytes_make_the_state_that_they_are_of() {
        use crate::backend::kind::LlmBackendKind;
        for shape in [SHAPE, RecurrentShape { taps: 0, ..SHAPE }, RecurrentShape { heads: 0, ..SHAPE }] {
            let (mut state, mut bytes) = (HostRecurrent::new(shape), Vec::new());
            state
                .give(&mut |part| {
                    bytes.extend_from_slice(part);
                    Ok(())
                })
                .unwrap();
            assert!(
                bytes.len() as u64 == shape.bytes_on(LlmBackendKind::Cpu) && bytes.iter().all(|&x| x == 0)
            );
            advance(&mut state, 0, 3);
            bytes.clear();
            state
                .give(&mut |part| {
                    bytes.extend_from_slice(part);
                    Ok(())
                })
                .unwrap();
            let mut rest = &bytes[..];
            let mut take = |part: &mut [u8]| {
                std::io::Read::read_exact(&mut rest, part).unwrap();
                Ok(())
            };
            let mut again = HostRecurrent::take(&shape, 3, &mut take).unwrap();
            assert!(rest.is_empty() && again.len() == 3 && again.read().unwrap() == state.read().unwrap());
            // It goes on as the other does.
            for state in [&mut state, &mut again] {
                advance(state, 3, 5);
            }
            assert_eq!(again.read().unwrap(), state.read().unwrap());
        }
    }

    #[test]
    fn a_step_that_fails_has_changed_nothing() {
        let mut state = HostRecurrent::new(SHAPE);
        advance(&mut state, 0, 3);
        let before = state.read().unwrap();
        state.begin(RecurrentPart::Matrices, 3).unwrap().1.fill(f32::NAN);
        assert_eq!((state.len(), state.read().unwrap()), (3, before));
    }

    #[test]
    fn what_moves_to_another_backend_comes_back() {
        let mut state = HostRecurrent::new(SHAPE);
        advance(&mut state, 0, 7);
        let read = state.read().unwrap();
        assert_eq!(read[1].1.len(), 2 * 4 * 70);
        let moved = HostRecurrent::of(SHAPE, read.clone()).unwrap();
        assert_eq!((moved.len(), moved.read().unwrap()), (7, read));
    }
}
