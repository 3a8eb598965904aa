//! What the ops of a step share: where its runs stand, what each row may see, and the rotary tables.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::alloc;
use crate::backend::rope::Frequencies;
use crate::config::Rope;
use crate::error::Result;

/// The tokens of one sequence in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The sequence, as an index into the caches that the step is given.
    pub sequence: usize,
    /// The run's first row in the step's activations.
    pub row: usize,
    /// Number of tokens.
    pub len: usize,
    /// The absolute position of the first token: the number of tokens cached before it.
    pub start: usize,
}

impl Run {
    /// The run's rows in the step's activations.
    pub fn rows(&self) -> Range<usize> {
        self.row..self.row + self.len
    }

    /// Keys that exist once this run is written: the positions before its end.
    pub fn end(&self) -> usize {
        self.start + self.len
    }
}

/// A number that no other mask or table of this process has: backends key what they derive from one by it.
fn fresh_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What each row of a step may attend to: absolute key positions `first..=own`, built once per step and window and
/// shared by all its layers; `first..last` where a token sees those behind it. Causality and the window are here and nowhere
/// else; both backends read these ranges.
#[derive(Debug)]
pub struct Mask {
    /// Identifies this mask to a backend's per-step cache.
    pub id: u64,
    /// Visible key positions of each row, `[T]`; never empty: a token sees itself.
    pub visible: Vec<Range<usize>>,
    /// The runs that the rows belong to.
    pub runs: Vec<Run>,
}

impl Mask {
    /// The causal mask of a step, cut to the last `window` keys (the token itself included) where there is one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn causal(runs: &[Run], window: Option<usize>) -> Result<Self> {
        let mut visible = Vec::new();
        alloc::reserve(&mut visible, runs.iter().map(|run| run.len).sum(), "the mask of a step")?;
        visible.extend(runs.iter().flat_map(|run| run.start..run.end()).map(|position| {
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window.max(1)));
            first..position + 1
        }));
        Ok(Self { id: fresh_id(), visible, runs: runs.to_vec() })
    }

    /// The causal mask of a step, in which a token sees no key before the last multiple of `chunk`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn chunked(runs: &[Run], chunk: usize) -> Result<Self> {
        let mut mask = Self::causal(runs, None)?;
        for keys in &mut mask.visible {
            keys.start = (keys.end - 1) / chunk.max(1) * chunk.max(1);
        }
        Ok(mask)
    }

    /// The mask of whole texts whose tokens see those behind them, too: all of a text or, where there is a window, `window / 2` on
    /// either side.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn around(runs: &[Run], window: Option<usize>) -> Result<Self> {
        let mut mask = Self::causal(runs, None)?;
        for run in runs {
            let end = run.end();
            for (position, keys) in (run.start..end).zip(&mut mask.visible[run.rows()]) {
                *keys = match window.map(|window| window / 2) {
                    None => 0..end,
                    Some(half) => position.saturating_sub(half)..end.min(position.saturating_add(half + 1)),
                };
            }
        }
        Ok(mask)
    }

    /// Whether every row of `run` sees every key that exists once the run is written (a decode step without window).
    pub fn is_full(&self, run: &Run) -> bool {
        self.visible[run.rows()].iter().all(|keys| *keys == (0..run.end()))
    }
}

/// The rotary embedding of a step: cosines and sines of each row, built once and shared by all layers.
#[derive(Debug)]
pub struct RopeStep {
    /// Identifies these tables to a backend's per-step cache.
    pub id: u64,
    /// Rotated dimensions of each head, even, at most the head dimension; pairs are `(i, i + dims/2)`.
    pub dims: usize,
    /// Cosines times the attention factor, `[T, dims/2]`.
    pub cos: Vec<f32>,
    /// Sines times the attention factor, `[T, dims/2]`.
    pub sin: Vec<f32>,
    /// The runs, each with the frequencies that its sequence was started with.
    pub runs: Vec<(Run, Arc<Frequencies>)>,
    /// Whether rows are scaled, each by a factor of its own: the tables then are not what the frequencies alone give.
    pub scaled: bool,
}

impl RopeStep {
    /// Tables for `runs`, each with its sequence's frequencies.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(rope: &Rope, runs: Vec<(Run, Arc<Frequencies>)>) -> Result<Self> {
        let len = runs.iter().map(|(run, frequencies)| run.len * frequencies.inv_freq.len()).sum();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        alloc::reserve(&mut cos, len, "the rotary tables of a step")?;
        alloc::reserve(&mut sin, len, "the rotary tables of a step")?;
        for (run, frequencies) in &runs {
            rope.add_to_tables(frequencies, run.start..run.end(), &mut cos, &mut sin);
        }
        Ok(Self { id: fresh_id(), dims: rope.dims, cos, sin, runs, scaled: false })
    }

    /// With each row multiplied by a factor of its own: of whole rotated heads, the rotation and then the product.
    pub fn scaled(mut self, factors: impl Iterator<Item = f32>) -> Self {
        let half = (self.dims / 2).max(1);
        let rows = self.cos.chunks_exact_mut(half).zip(self.sin.chunks_exact_mut(half));
        for ((cos, sin), factor) in rows.zip(factors) {
            cos.iter_mut().chain(sin).for_each(|x| *x *= factor);
        }
        self.scaled = true;
        self
    }
}
