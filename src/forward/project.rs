//! Products of a step, with what the adapters of its rows make of them.

use super::adapt::Part;
use super::blocks::Linear;
use super::step::Step;
use crate::backend::{Op, Tensor};
use crate::config::Activation;
use crate::error::{Error, Result};

impl Step<'_> {
    /// Whether any row has an adapter that adds to a product.
    fn adapts(&self, linear: &Linear) -> bool {
        let Some(place) = linear.place() else { return false };
        self.adapters.iter().any(|(_, bound)| bound.part(place).is_some())
    }

    /// The product `into` of `x` by `linear`, with what the adapters of its rows make of it.
    pub(super) fn adapted(&self, linear: &Linear, x: &Tensor, into: Tensor) -> Result<Tensor> {
        let Some(place) = linear.place().filter(|_| !self.adapters.is_empty()) else { return Ok(into) };
        let mut sum = into;
        for (rows, bound) in &self.adapters {
            let Some(Part { low, high, scale, columns }) = bound.part(place) else { continue };
            if x.shape().first() != Some(&self.batch.rows()) {
                let what =
                    format!("x is {:?}, expected the {} rows of the step", x.shape(), self.batch.rows());
                return Err(Error::shape("adapt", what));
            }
            let columns = columns.as_ref().map(|[by, plus]| [by, plus]);
            sum = self.run(&Op::Adapt { x, into: &sum, rows, low, high, scale: *scale, columns })?;
        }
        Ok(sum)
    }

    /// Three products of one input.
    pub(super) fn project(&self, linears: [&Linear; 3], x: &Tensor) -> Result<[Tensor; 3]> {
        let [a, b, c] = self.run_all(&Op::Qkv { x, projections: linears.map(Linear::projection) })?;
        if self.adapters.is_empty() {
            return Ok([a, b, c]);
        }
        let [of_a, of_b, of_c] = linears;
        Ok([self.adapted(of_a, x, a)?, self.adapted(of_b, x, b)?, self.adapted(of_c, x, c)?])
    }

    /// `act(gate(x)) ∘ up(x)`.
    pub(super) fn gate_up(
        &self,
        [gate, up]: [&Linear; 2],
        x: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        if !self.adapts(gate) && !self.adapts(up) {
            let (gate, up) = (gate.projection(), up.projection());
            return self.run(&Op::GateUp { x, gate, up, activation });
        }
        // Part by part: rows without an adapter have the bits that they have in the fused op.
        let gate = self.activate(&gate.forward(self, x)?, activation)?;
        self.run(&Op::Mul { a: &gate, b: &up.forward(self, x)? })
    }
}
