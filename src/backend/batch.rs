//! One step as data: the tokens of several sequences side by side, and where each stands.

use super::ops::Ids;
pub use super::ops::{Mask, RopeStep, Run};
use super::values::Tensor;

/// Token ids of a step, `[T]`: known, or still to be computed by the backend (the greedy choice of the step before,
/// so that this step's graph can be built while that one runs).
#[derive(Debug)]
pub enum Tokens {
    /// Ids that the host knows.
    Known(Vec<u32>),
    /// Ids that are a lazy array on the backend; their number is the tensor's only dimension.
    Pending(Tensor),
}

impl Tokens {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Self::Known(ids) => ids.len(),
            Self::Pending(ids) => ids.shape().first().copied().unwrap_or(0),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As an op takes them.
    pub fn ids(&self) -> Ids<'_, Tensor> {
        match self {
            Self::Known(ids) => Ids::Known(ids),
            Self::Pending(ids) => Ids::Pending(ids),
        }
    }
}

/// One step: ragged, without padding.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, all runs side by side, `[T]`.
    pub tokens: Tokens,
    /// The runs, in the order of their rows; each sequence at most once.
    pub runs: Vec<Run>,
    /// The rows whose logits are wanted, ascending.
    pub outputs: Vec<usize>,
}

impl Batch {
    /// A batch over `(start, ids)` of one sequence after the other, asking for the logits of each one's last token.
    pub fn of(sequences: &[(usize, &[u32])]) -> Self {
        let mut tokens = Vec::new();
        let mut runs = Vec::new();
        let mut outputs = Vec::new();
        for (sequence, (start, ids)) in sequences.iter().enumerate() {
            runs.push(Run { sequence, row: tokens.len(), len: ids.len(), start: *start });
            tokens.extend_from_slice(ids);
            if !ids.is_empty() {
                outputs.push(tokens.len() - 1);
            }
        }
        Self { tokens: Tokens::Known(tokens), runs, outputs }
    }

    /// Number of rows, `T`.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The absolute position of each row, `[T]`.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.runs.iter().flat_map(|run| run.start..run.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_covers_prefix_window_and_several_sequences() {
        let batch = Batch::of(&[(3, &[1, 2]), (0, &[5, 6, 7])]);
        assert_eq!(Mask::causal(&batch.runs, None).unwrap().visible, [0..4, 0..5, 0..1, 0..2, 0..3]);
        assert_eq!(Mask::causal(&batch.runs, Some(2)).unwrap().visible, [2..4, 3..5, 0..1, 0..2, 1..3]);
        assert_eq!(batch.outputs, [1, 4]);
        assert_eq!(batch.positions().collect::<Vec<_>>(), [3, 4, 0, 1, 2]);
    }

    #[test]
    fn tokens_of_whole_texts_see_what_is_around_them() {
        let batch = Batch::of(&[(0, &[1, 2, 3, 4, 5]), (0, &[6, 7])]);
        let all = Mask::around(&batch.runs, None).unwrap();
        assert_eq!(all.visible, [0..5, 0..5, 0..5, 0..5, 0..5, 0..2, 0..2]);
        assert!(batch.runs.iter().all(|run| all.is_full(run)));
        // One on either side.
        for window in [2, 3] {
            let near = Mask::around(&batch.runs, Some(window)).unwrap();
            assert_eq!(near.visible, [0..2, 0..3, 1..4, 2..5, 3..5, 0..2, 0..2]);
        }
    }

    #[test]
    fn a_decode_step_sees_everything_unless_a_window_cuts() {
        let batch = Batch::of(&[(9, &[1])]);
        assert!(Mask::causal(&batch.runs, None).unwrap().is_full(&batch.runs[0]));
        assert!(Mask::causal(&batch.runs, Some(10)).unwrap().is_full(&batch.runs[0]));
        assert!(!Mask::causal(&batch.runs, Some(9)).unwrap().is_full(&batch.runs[0]));
    }
}
