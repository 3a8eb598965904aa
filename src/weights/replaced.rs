//! Matrices that stand for those of the files: to see what a rounding costs before it is written.

use super::Checkpoint;
use crate::quant::Matrix;

impl Checkpoint {
    /// Has `matrix`, its rows in the model's order, stand for that of the module `module`.
    pub(crate) fn replace(&mut self, module: &str, matrix: Matrix) {
        self.replaced.insert(module.into(), matrix);
    }

    /// What stands for the matrix of the module `module`, if anything does.
    pub(crate) fn replaced(&self, module: &str) -> Option<&Matrix> {
        self.replaced.get(module)
    }
}
