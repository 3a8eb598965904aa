//! Routing and what is known of fallbacks: the policy, counters that outlive a request, ops that never go to MLX, the breaker that gives MLX up, and
//! the test-only hook that makes ops fail.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::inputs::InputSums;
use super::ops::{EVAL, OpKind};
use super::profile::Profile;
use crate::error::{Error, Result};

/// What happens when MLX cannot do an op, or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The CPU computes it; it is logged and counted.
    #[default]
    Allow,
    /// It is an error: parity tests run so, since otherwise they would compare the CPU with itself.
    Deny,
}

/// What the dispatch keeps beside its backends.
#[derive(Debug, Default)]
pub struct Routing {
    pub(super) policy: Policy,
    pub(super) report: Arc<FallbackReport>,
    pub(super) faults: Faults,
    kept_off: Vec<KeptOff>,
    pub(super) breaker: RefCell<Breaker>,
    /// Times of ops, while they are asked for.
    pub(super) profile: RefCell<Option<Profile>>,
    /// What matrices are multiplied with, while it is asked for.
    pub(super) inputs: RefCell<Option<InputSums>>,
}

impl Routing {
    /// Routing under `policy`, with injected `faults` (none outside tests).
    pub fn new(policy: Policy, faults: Faults) -> Self {
        Self { policy, faults, ..Self::default() }
    }

    /// With `ops` computed by the CPU wherever MLX runs the model. That is no failure, and no error under [`Policy::Deny`].
    pub fn with_cpu_ops(mut self, ops: &[OpKind]) -> Self {
        self.kept_off.extend(ops.iter().copied().map(KeptOff::asked));
        self
    }
}

impl Routing {
    /// The fault that a test injected into this call of `op`, if any.
    pub(super) fn injected(&self, op: OpKind, backend: &'static str) -> Result<()> {
        match self.faults.call(op) {
            None => Ok(()),
            Some(reason) => Err(Error::Op { op: op.name(), backend, reason }),
        }
    }

    /// Keeps more ops off MLX.
    pub(super) fn keep_all_off(&mut self, ops: Vec<KeptOff>) {
        self.kept_off.extend(ops);
    }

    /// The failure that a test injected into this evaluation, if any.
    pub(super) fn injected_evaluation(&self) -> Result<()> {
        self.faults.evaluation().map_or(Ok(()), |reason| Err(eval_failed(&reason)))
    }

    /// Why `op` never goes to MLX, if it does not; `quantized` says whether this call of it is on a matrix in blocks.
    pub(super) fn kept_off(&self, op: OpKind, quantized: impl Fn() -> bool) -> Option<&KeptOff> {
        self.kept_off.iter().find(|kept| kept.op == op && (!kept.quantized || quantized()))
    }

    /// Counts a call of an op that is kept off MLX.
    ///
    /// # Errors
    /// Under [`Policy::Deny`], where nobody asked for it.
    pub(super) fn keep_off(&self, kept: &KeptOff) -> Result<()> {
        if self.policy == Policy::Deny && !kept.asked {
            return Err(Error::Op { op: kept.op.name(), backend: "mlx", reason: kept.reason.clone() });
        }
        self.report.count_fallback(kept.op, &kept.reason);
        Ok(())
    }

    /// Records that MLX could not do `op`.
    ///
    /// # Errors
    /// Under [`Policy::Deny`], and for a failed evaluation, which is replayed as a step and not by op.
    pub(super) fn fell_back(&self, op: OpKind, error: &Error) -> Result<()> {
        let reason = match error {
            Error::Op { op: EVAL, reason, .. } => return Err(eval_failed(reason)),
            Error::Op { reason, .. } => reason.clone(),
            // Without the number of bytes, of which there is another each time.
            Error::OutOfMemory { what, .. } if self.policy == Policy::Allow => {
                format!("no memory for {what}")
            }
            Error::OutOfMemory { what, bytes } => return Err(Error::OutOfMemory { what, bytes: *bytes }),
            other => other.to_string(),
        };
        if self.policy == Policy::Deny {
            return Err(Error::Op { op: op.name(), backend: "mlx", reason });
        }
        self.report.count_fallback(op, &reason);
        Ok(())
    }
}

fn eval_failed(reason: &str) -> Error {
    Error::Op { op: EVAL, backend: "mlx", reason: reason.to_owned() }
}

/// Counts of fallbacks (one op computed by the CPU instead) and replays (a whole step), by reason.
#[derive(Debug, Default)]
pub struct FallbackReport {
    fallbacks: Mutex<BTreeMap<(OpKind, String), u64>>,
    replays: Mutex<BTreeMap<String, u64>>,
    left: Mutex<Option<String>>,
}

impl FallbackReport {
    /// Counts a fallback; the first of its kind is logged.
    pub(super) fn count_fallback(&self, op: OpKind, reason: &str) {
        let mut fallbacks = self.fallbacks.lock();
        match fallbacks.get_mut(&(op, reason.to_owned())) {
            Some(count) => *count += 1,
            None => {
                tracing::warn!(%op, reason, "the CPU kernel computes this op instead of MLX");
                fallbacks.insert((op, reason.to_owned()), 1);
            }
        }
    }

    /// Counts a replay; the first for its reason is logged.
    pub(super) fn count_replay(&self, reason: &str) {
        let mut replays = self.replays.lock();
        let count = replays.entry(reason.to_owned()).or_insert(0);
        if *count == 0 {
            tracing::warn!(reason, "an evaluation failed: the step is replayed on the CPU");
        }
        *count += 1;
    }

    /// Records that the model stays on the CPU, which happens once.
    pub(super) fn leave(&self, reason: &str) {
        tracing::warn!(
            reason,
            "{} evaluations in a row failed for one reason: the model stays on the CPU",
            Breaker::LIMIT
        );
        *self.left.lock() = Some(reason.to_owned());
    }

    /// Why the model stays on the CPU, though MLX was taken, where it does: the reason for which evaluations failed.
    pub fn left_mlx(&self) -> Option<String> {
        self.left.lock().clone()
    }

    /// Every op that fell back: the op, the reason and how often.
    pub fn fallbacks(&self) -> Vec<(OpKind, String, u64)> {
        self.fallbacks.lock().iter().map(|((op, reason), count)| (*op, reason.clone(), *count)).collect()
    }

    /// Every reason for which steps were replayed, and how often.
    pub fn replays(&self) -> Vec<(String, u64)> {
        self.replays.lock().iter().map(|(reason, count)| (reason.clone(), *count)).collect()
    }

    /// Whether nothing fell back and nothing was replayed.
    pub fn is_clean(&self) -> bool {
        self.fallbacks.lock().is_empty() && self.replays.lock().is_empty()
    }
}

/// The evaluations in a row that failed for one reason.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    reason: String,
    failures: u32,
}

impl Breaker {
    /// Failures after which MLX is not asked again: one may be a matter of memory that others held, a second is no accident.
    pub const LIMIT: u32 = 3;

    /// A step's evaluation failed; whether that is once too often.
    pub fn failed(&mut self, reason: &str) -> bool {
        // The bytes that an allocation asked for, say, differ from step to step.
        let reason: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.reason != reason {
            *self = Self { reason, failures: 0 };
        }
        self.failures += 1;
        self.failures >= Self::LIMIT
    }

    /// The results of a step were read.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// Ops that never go to MLX, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptOff {
    /// The op.
    pub op: OpKind,
    /// Whether only calls of it on matrices in blocks are meant.
    pub quantized: bool,
    /// Why, for the report.
    pub reason: String,
    /// Whether somebody asked for it: then it is no failure.
    pub asked: bool,
}

impl KeptOff {
    /// An op that somebody asked the CPU to compute.
    pub fn asked(op: OpKind) -> Self {
        Self { op, quantized: false, reason: "asked for by --cpu-ops".to_owned(), asked: true }
    }
}

/// Faults that a test injects: the k-th call of an op fails or panics, the k-th evaluation fails, or an op computes wrong in the
/// start-up check. Clones share one plan, so
/// that a test can change it while a model runs. Without the feature `fault-injection` there is nothing to set, and asking
/// costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    #[cfg(feature = "fault-injection")]
    plan: Arc<Mutex<Plan>>,
}

#[cfg(feature = "fault-injection")]
#[derive(Debug, Default)]
struct Plan {
    /// The op whose calls fail, and which.
    op: Option<(OpKind, Window)>,
    /// The op whose calls panic, and which.
    panic: Option<(OpKind, Window)>,
    /// Which evaluations fail.
    evaluation: Option<Window>,
    /// The op whose result in the start-up check is wrong; it is then made on any device.
    check: Option<OpKind>,
}

/// Calls that are left alone, and how many are hit from there.
#[cfg(feature = "fault-injection")]
#[derive(Debug)]
struct Window {
    before: u64,
    left: u64,
}

#[cfg(feature = "fault-injection")]
impl Faults {
    /// The `k`-th call (from 0) of `op` fails, and `count - 1` calls after it.
    pub fn op(op: OpKind, k: u64, count: u64) -> Self {
        Self::of(Plan { op: Some((op, Window { before: k, left: count })), ..Plan::default() })
    }

    /// The `k`-th call (from 0) of `op` panics, and `count - 1` calls after it.
    pub fn panic(op: OpKind, k: u64, count: u64) -> Self {
        Self::of(Plan { panic: Some((op, Window { before: k, left: count })), ..Plan::default() })
    }

    /// The `k`-th evaluation (from 0) fails, and `count - 1` after it.
    pub fn evaluation_at(k: u64, count: u64) -> Self {
        Self::of(Plan { evaluation: Some(Window { before: k, left: count }), ..Plan::default() })
    }

    /// The start-up check is made on whatever device there is, and finds that `op` computes wrong.
    pub fn wrong_in_check(op: OpKind) -> Self {
        Self::of(Plan { check: Some(op), ..Plan::default() })
    }

    fn of(plan: Plan) -> Self {
        Self { plan: Arc::new(Mutex::new(plan)) }
    }

    /// Puts the plan of `other` in the place of this one, counted from here on.
    pub fn replace(&self, other: &Self) {
        let plan = std::mem::take(&mut *other.plan.lock());
        *self.plan.lock() = plan;
    }
}

impl Faults {
    /// Why this call of `op` is to fail, if it is.
    pub(super) fn call(&self, op: OpKind) -> Option<String> {
        #[cfg(feature = "fault-injection")]
        {
            let mut plan = self.plan.lock();
            if hit(&mut plan.panic, op) {
                drop(plan);
                panic!("injected panic in {op}");
            }
            if hit(&mut plan.op, op) {
                return Some(INJECTED.to_owned());
            }
        }
        let _ = op;
        None
    }

    /// The op that is to compute wrong in the start-up check, if there is one.
    pub(super) fn check(&self) -> Option<OpKind> {
        #[cfg(feature = "fault-injection")]
        if let Some(op) = self.plan.lock().check {
            return Some(op);
        }
        None
    }

    /// Why this evaluation is to fail, if it is.
    pub(super) fn evaluation(&self) -> Option<String> {
        #[cfg(feature = "fault-injection")]
        if self.plan.lock().evaluation.as_mut().is_some_and(Window::tick) {
            return Some(INJECTED.to_owned());
        }
        None
    }
}

#[cfg(feature = "fault-injection")]
const INJECTED: &str = "injected fault";

#[cfg(feature = "fault-injection")]
fn hit(fault: &mut Option<(OpKind, Window)>, op: OpKind) -> bool {
    fault.as_mut().filter(|(kind, _)| *kind == op).is_some_and(|(_, window)| window.tick())
}

#[cfg(feature = "fault-injection")]
impl Window {
    /// Whether the next call is hit.
    fn tick(&mut self) -> bool {
        if self.before > 0 {
            self.before -= 1;
            return false;
        }
        let hit = self.left > 0;
        self.left = self.left.saturating_sub(1);
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_of_one_reason_in_a_row_are_too_many() {
        let mut breaker = Breaker::default();
        assert_eq!([(); 3].map(|()| breaker.failed("no memory")), [false, false, true]);

        let mut breaker = Breaker::default();
        assert!(!breaker.failed("no memory") && !breaker.failed("no memory"));
        breaker.succeeded();
        assert!(!breaker.failed("no memory") && !breaker.failed("no memory"));
        // Another reason is counted by itself, and the first one anew.
        assert!(
            !breaker.failed("lost device") && !breaker.failed("no memory") && !breaker.failed("no memory")
        );
        assert!(breaker.failed("no memory"));

        // The numbers in a reason make no other one of it.
        let mut breaker = Breaker::default();
        assert!(!breaker.failed("cannot allocate 17 bytes") && !breaker.failed("cannot allocate 4096 bytes"));
        assert!(breaker.failed("cannot allocate 8 bytes"));
    }
}
