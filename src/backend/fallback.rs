//! What is known of fallbacks: counters that outlive a request, and the test-only hook that makes ops fail.

use std::collections::BTreeMap;

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

/// Faults that a test injects: the k-th call of an op fails, or the k-th evaluation. Without the feature
/// `fault-injection` there is nothing to set, and asking costs nothing.
#[derive(Debug, Default)]
pub struct Faults {
    #[cfg(feature = "fault-injection")]
    plan: Mutex<Plan>,
}

#[cfg(feature = "fault-injection")]
#[derive(Debug, Default)]
struct Plan {
    /// The op, its calls until the fault, and how many calls fail from there.
    op: Option<(OpKind, u64, u64)>,
    /// Evaluations until the fault, and how many fail from there.
    evaluation: Option<(u64, u64)>,
}

#[cfg(feature = "fault-injection")]
impl Faults {
    /// The `k`-th call (from 0) of `op` fails, and `count - 1` calls after it.
    pub fn op(op: OpKind, k: u64, count: u64) -> Self {
        Self { plan: Mutex::new(Plan { op: Some((op, k, count)), evaluation: None }) }
    }

    /// The `k`-th evaluation (from 0) fails, and `count - 1` after it.
    pub fn evaluation_at(k: u64, count: u64) -> Self {
        Self { plan: Mutex::new(Plan { op: None, evaluation: Some((k, count)) }) }
    }
}

impl Faults {
    /// Why this call of `op` is to fail, if it is.
    pub(super) fn call(&self, op: OpKind) -> Option<String> {
        #[cfg(feature = "fault-injection")]
        if let Some((kind, before, left)) = &mut self.plan.lock().op
            && *kind == op
        {
            return tick(before, left);
        }
        let _ = op;
        None
    }

    /// Why this evaluation is to fail, if it is.
    #[cfg_attr(not(has_mlx), expect(dead_code, reason = "only MLX evaluates lazily"))]
    pub(super) fn evaluation(&self) -> Option<String> {
        #[cfg(feature = "fault-injection")]
        if let Some((before, left)) = &mut self.plan.lock().evaluation {
            return tick(before, left);
        }
        None
    }
}

#[cfg(feature = "fault-injection")]
fn tick(before: &mut u64, left: &mut u64) -> Option<String> {
    if *before > 0 {
        *before -= 1;
        return None;
    }
    if *left == 0 {
        return None;
    }
    *left -= 1;
    Some("injected fault".to_owned())
}
