//! A write to a layer's state.

use std::fmt;

use super::{Operands, Run, State, TensorOperand};
use crate::backend::kv::KvShape;
use crate::error::{Error, Result};

/// The step's activations that a layer caches: K `[T, heads * k_dim]` and V `[T, heads * v_dim]`.
pub struct KvRows<'a, B: Operands> {
    /// Keys, after the rotary embedding.
    pub k: &'a B::Tensor,
    /// Values.
    pub v: &'a B::Tensor,
}

impl<B: Operands> Clone for KvRows<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Operands> Copy for KvRows<'_, B> {}

impl<B: Operands> fmt::Debug for KvRows<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvRows").field("k", self.k).field("v", self.v).finish()
    }
}

impl<B: Operands> KvRows<'_, B> {
    /// Checks every shape, so that backends need not.
    ///
    /// # Errors
    /// [`Error::Shape`] where `run` leaves a gap after what `state` holds, or its rows are not those of `state`'s heads.
    pub fn check(&self, state: &B::State, run: &Run) -> Result<()> {
        let shape = state.shape();
        let KvShape { heads, k_dim, v_dim, .. } = *shape;
        let [k_width, v_width] = shape.widths();
        let (k, v) = (self.k.shape(), self.v.shape());
        let fits = |shape: &[usize], width: usize| {
            width > 0 && matches!(*shape, [rows, columns] if rows >= run.rows().end && columns == width)
        };
        if k.first() != v.first() || !fits(k, k_width) || !fits(v, v_width) {
            let rows = run.rows();
            let dims = if k_dim == v_dim { k_dim.to_string() } else { format!("{k_dim} and {v_dim}") };
            return Err(Error::shape(
                "kv_write",
                format!("k is {k:?} and v {v:?}, expected rows {rows:?} of {heads} heads of {dims}"),
            ));
        }
        super::check::floats::<B>("kv_write", self.k)?;
        super::check::floats::<B>("kv_write", self.v)?;
        if run.start > state.len() {
            let (start, len) = (run.start, state.len());
            return Err(Error::shape(
                "kv_write",
                format!("position {start}, expected at most the {len} cached"),
            ));
        }
        Ok(())
    }
}
