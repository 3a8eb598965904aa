//! What a forward pass asks of a backend: [`Backend`], the ops as data, how their shapes are checked, and how a fused op is
//! composed of plain ones.
//!
//! An [`Op`] borrows its operands, which are of the types of one backend. [`Op::check`] is the one place that knows which shapes
//! fit; [`compose()`] is the executable specification of the fused ops, and what a backend without a fused kernel runs.

mod backend;
mod check;
mod compose;
mod experts;
mod kind;
mod op;
mod operand;
mod recur;
mod recurrent;
mod state;
mod step;
mod write;

pub use backend::{Backend, EVAL, Outputs};
pub use compose::compose;
pub use experts::{ExpertGroups, ExpertProjection, GateKind, Gating, Router, Scores};
pub use kind::OpKind;
pub use op::{Ids, Op, Projection};
pub use operand::{MatrixOperand, Operands, StackOperand, State, TensorOperand, VectorOperand};
pub use recur::Recur;
pub use recurrent::{PANEL, Recurrent, RecurrentShape};
pub use state::{Mark, StateLayout, StateSpec};
pub(crate) use state::{held, held_behind};
pub use step::{Mask, RopeStep, Run};
pub use write::KvRows;
