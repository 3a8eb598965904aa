//! What is known of fallbacks: counters that outlive a request, and the test-only hook that makes ops fail.

use std::collections::BTreeMap;
#[cfg(feature = "fault-injection")]
use std::sync::Arc;

use parking_lot::Mutex;

use super::ops::OpKind;

/// Counts of fallbacks (one op computed by the CPU instead) and replays (a whole step), by reason.
#[derive(Debug, Default)]
pub struct FallbackReport {
    fallbacks: Mutex<BTreeMap<(OpKind, String), u64>>,
    replays: Mutex<BTreeMap<String, u64>>,
}

impl FallbackReport {
    /// Counts a fallback; the first of its kind is logged.
    #[cfg_attr(not(has_mlx), expect(dead_code, reason = "only MLX falls back"))]
    pub(super) fn count_fallback(&self, op: OpKind, reason: &str) {
        let mut fallbacks = self.fallbacks.lock();
        match fallbacks.get_mut(&(op, reason.to_owned())) {
            Some(count) => *count += 1,
            None => {
                tracing::warn!(%op, reason, "MLX could not do this op: the CPU kernel computes it");
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

/// Faults that a test injects: the k-th call of an op fails or panics, or the k-th evaluation fails. Clones share one plan, so
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

    /// Why this evaluation is to fail, if it is.
    #[cfg_attr(not(has_mlx), expect(dead_code, reason = "only MLX evaluates lazily"))]
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
