//! What recurrent layers keep of a sequence.

use std::fmt;

use crate::backend::kind::LlmBackendKind;

/// Columns of a panel of a matrix on the CPU: 4 registers of AVX-512, and 32 KiB of a matrix of 128 rows.
pub const PANEL: usize = 64;

/// What a recurrent layer keeps of a sequence, however long that is: the last rows that a convolution sees, and matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecurrentShape {
    /// Rows that the convolution's next one sees before itself: one less than it has taps; 0 without a convolution.
    pub taps: usize,
    /// Elements of such a row.
    pub channels: usize,
    /// Matrices; 0 where there are none.
    pub heads: usize,
    /// Rows of one: the elements of a key.
    pub rows: usize,
    /// Columns of one: the elements of a value.
    pub columns: usize,
}

impl RecurrentShape {
    /// Bytes of it on `backend`, in `f32`: the CPU keeps whole panels of columns.
    pub const fn bytes_on(&self, backend: LlmBackendKind) -> u64 {
        let columns = match backend {
            LlmBackendKind::Cpu => self.columns.next_multiple_of(PANEL),
            LlmBackendKind::Mlx => self.columns,
        };
        let elements = self.taps * self.channels + self.heads * self.rows * columns;
        (elements * size_of::<f32>()) as u64
    }
}

/// What a recurrent layer keeps of one sequence. It can go back by the last step, and some into one of few tokens.
pub trait Recurrent: fmt::Debug {
    /// What it keeps.
    fn shape(&self) -> &RecurrentShape;

    /// Tokens that it has seen.
    fn len(&self) -> usize;

    /// Whether it has seen none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    fn bytes(&self) -> usize;

    /// Whether it can go back to where it had seen `len` tokens.
    fn reaches(&self, len: usize) -> bool;

    /// Forgets the tokens from `len` on, where it can go back so far; otherwise all of them.
    fn truncate(&mut self, len: usize);
}
