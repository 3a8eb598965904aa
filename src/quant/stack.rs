//! The matrices of a layer's experts.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{Matrix, Plane};

/// Matrices of one shape `[N, K]`, one for each of `E` experts. Clones share them.
#[derive(Clone)]
pub struct Stack {
    each: Arc<[Matrix]>,
    shape: [usize; 2],
}

impl Stack {
    /// The matrices of all experts, in their order.
    ///
    /// # Panics
    /// Where their shapes differ, or there is none.
    pub fn new(each: impl IntoIterator<Item = Matrix>) -> Self {
        let each: Arc<[Matrix]> = each.into_iter().collect();
        let shape = |matrix: &Matrix| match *matrix.as_ref().shape() {
            [rows, columns] => [rows, columns],
            ref other => panic!("an expert's matrix is {other:?}"),
        };
        let Some(first) = each.first().map(shape) else { panic!("a stack of no experts") };
        assert!(each.iter().all(|matrix| shape(matrix) == first), "experts of one shape");
        Self { each, shape: first }
    }

    /// `[E, N, K]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.each.len(), self.shape[0], self.shape[1]]
    }

    /// The matrix of each expert.
    pub fn each(&self) -> &[Matrix] {
        &self.each
    }

    /// What tells the stack from every other one that is there at the same time.
    pub fn key(&self) -> (usize, usize) {
        (self.each.as_ptr() as usize, self.each.len())
    }

    /// The planes of all experts, each as one where they lie side by side in a file; `None` for dense matrices, for those whose
    /// planes are made, and for those that lie apart.
    pub fn planes(&self) -> Option<SmallVec<[Plane; 3]>> {
        let mut joined: SmallVec<[Plane; 3]> = SmallVec::new();
        for matrix in &*self.each {
            let Matrix::Quantized(weight) = matrix else { return None };
            if weight.is_made() || weight.order().is_some() {
                return None;
            }
            if joined.is_empty() {
                joined.extend(weight.planes().iter().cloned());
                continue;
            }
            for (whole, plane) in joined.iter_mut().zip(weight.planes()) {
                *whole = whole.joined(plane)?;
            }
        }
        Some(joined)
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.each.len(), self.each[0])
    }
}
