//! Which experts rows go to, and rows by expert.

use std::ops::Range;

use crate::alloc;
use crate::backend::cpu::pool::{Parts, Pool};
use crate::backend::ops::{ExpertGroups, GateKind, Router, Scores};
use crate::error::{Error, Result};

/// Fewest scores of a task: some 10 µs.
const TASK: usize = 1024;

/// The experts of each row of `logits` `[T, E]`, best first, into `ids` `[T, k]`, and their weights into `weights` `[T, k]`, as
/// [`Op::Route`](crate::backend::ops::Op::Route) has it. Scalar, in `f32` and in the order of ids: the bits of a row depend on it
/// alone.
///
/// # Errors
/// [`Error::OutOfMemory`].
///
/// # Panics
/// Where the lengths do not fit each other.
pub fn route(
    pool: &Pool,
    logits: &[f32],
    [bias, scales]: [Option<&[f32]>; 2],
    router: &Router,
    ids: &mut [u32],
    weights: &mut [f32],
) -> Result<()> {
    let used = router.used;
    let rows = ids.len() / used;
    assert_eq!((ids.len(), weights.len()), (rows * used, rows * used), "route: ids and weights");
    let experts = logits.len().checked_div(rows).unwrap_or(0);
    assert_eq!(logits.len(), rows * experts, "route: logits of {rows} rows");
    assert!(scales.is_none_or(|scales| scales.len() == experts), "route: scales of {experts} experts");
    if rows == 0 {
        return Ok(());
    }
    // Scores, and what chooses by them, of a row for each thread.
    let mut rooms = alloc::zeroed(pool.threads() * 2 * experts, "the scores of experts")?;
    let rooms = Parts::new(&mut rooms);
    let (ids, weights) = (Parts::new(ids), Parts::new(weights));
    let each = TASK.div_ceil(experts.max(1));
    pool.run_on(rows.div_ceil(each), |worker, task| {
        // SAFETY: tasks that run at the same time have different workers.
        let (scores, choice) =
            unsafe { rooms.slice(worker * 2 * experts, 2 * experts) }.split_at_mut(experts);
        for row in task * each..rows.min((task + 1) * each) {
            // SAFETY: rows are different.
            let (ids, weights) = unsafe { (ids.slice(row * used, used), weights.slice(row * used, used)) };
            scores.copy_from_slice(&logits[row * experts..][..experts]);
            choose(router, bias, scores, choice, ids, weights);
            if let Some(scales) = scales {
                ids.iter().zip(weights).for_each(|(&id, weight)| *weight *= scales[id as usize]);
            }
        }
    });
    Ok(())
}

/// The experts of one row, whose logits are in `scores`; `choice` is room for as many.
fn choose(
    router: &Router,
    bias: Option<&[f32]>,
    scores: &mut [f32],
    choice: &mut [f32],
    ids: &mut [u32],
    weights: &mut [f32],
) {
    match router.scores {
        Scores::Softmax => softmax(scores),
        Scores::SoftmaxOfChosen | Scores::SigmoidOfChosen | Scores::SparseMixer { .. } => {}
        Scores::Sigmoid => scores.iter_mut().for_each(|x| *x = sigmoid(*x)),
        Scores::SqrtSoftplus => scores.iter_mut().for_each(|x| *x = softplus(*x).sqrt()),
    }
    choice.copy_from_slice(scores);
    if let Some(bias) = bias {
        choice.iter_mut().zip(bias).for_each(|(choice, bias)| *choice += bias);
    }
    if let Some(groups) = router.groups {
        close(groups, choice);
    }
    for (at, (id, weight)) in ids.iter_mut().zip(weights.iter_mut()).enumerate() {
        let best = take_best(choice);
        (*id, *weight) = (best as u32, scores[best]);
        if let Scores::SparseMixer { near } = router.scores {
            // The best itself is taken by now.
            *weight = 1.0 / (1.0 + rest_of_near(near, scores[best], scores, choice));
        }
        debug_assert!(at < scores.len());
    }
    match router.scores {
        Scores::SoftmaxOfChosen => softmax(weights),
        Scores::SigmoidOfChosen => weights.iter_mut().for_each(|x| *x = sigmoid(*x)),
        _ => {}
    }
    if let Some(eps) = router.normalise {
        let sum = sum(weights) + eps;
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    if router.scale != 1.0 {
        weights.iter_mut().for_each(|weight| *weight *= router.scale);
    }
}

/// The exponentials, relative to `best`, of the scores that were not taken and are near it.
fn rest_of_near(near: f32, best: f32, scores: &[f32], choice: &[f32]) -> f32 {
    let candidates = scores.iter().zip(choice).filter(|(_, choice)| !is_taken(**choice));
    // Where that is no number, as of zeros, it is not far.
    let is_far = |x: f32| (best - x) / x.abs().max(best) > near;
    candidates.filter(|(x, _)| !is_far(**x)).map(|(x, _)| f64::from(*x - best).exp()).sum::<f64>() as f32
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// What has been taken, or is in a closed group. Below every score, minus infinity included, and above none but itself.
const TAKEN: f32 = f32::from_bits(0xffc0_dead);

fn is_taken(x: f32) -> bool {
    x.to_bits() == TAKEN.to_bits()
}

/// The place of the largest value that was not taken, the first of equal ones; NaNs come last. It is taken. Of none, the first.
fn take_best(choice: &mut [f32]) -> usize {
    let mut best: Option<usize> = None;
    for (i, &x) in choice.iter().enumerate() {
        let better = |best: f32| x > best || (best.is_nan() && !x.is_nan());
        if !is_taken(x) && best.is_none_or(|best| better(choice[best])) {
            best = Some(i);
        }
    }
    let best = best.unwrap_or(0);
    if let Some(taken) = choice.get_mut(best) {
        *taken = TAKEN;
    }
    best
}

/// Takes the experts of all groups but the best.
fn close(groups: ExpertGroups, choice: &mut [f32]) {
    let size = choice.len() / groups.count;
    let rate = |group: &[f32]| {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &x in group {
            if x > first {
                (first, second) = (x, first);
            } else if x > second {
                second = x;
            }
        }
        if groups.best == 1 { first } else { first + second }
    };
    let is_open = |group: usize| {
        let own = rate(&choice[group * size..][..size]);
        // Groups before it with no lower rate, and groups behind it with a higher one, go first.
        let better = (0..groups.count).filter(|&other| {
            let rate = rate(&choice[other * size..][..size]);
            rate > own || (rate == own && other < group)
        });
        better.count() < groups.used
    };
    // At most 64 groups are worth a name; more are closed from a list.
    let open: smallvec::SmallVec<[bool; 64]> = (0..groups.count).map(is_open).collect();
    for (group, open) in choice.chunks_exact_mut(size).zip(open) {
        if !open {
            group.fill(TAKEN);
        }
    }
}

/// In `f64`: the order of many adds no error.
fn sum(x: &[f32]) -> f32 {
    x.iter().copied().map(f64::from).sum::<f64>() as f32
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum = sum(x);
    x.iter_mut().for_each(|x| *x /= sum);
}

/// The rows of a step by the experts that they go to: all of the first expert that any goes to, then those of the next. Of one
/// expert they are in the order of the step.
#[derive(Debug, Default)]
pub struct Grouped {
    /// The row of the step that each is: `[T · k]`.
    pub rows: Vec<u32>,
    /// Experts that have any, and which of these rows are theirs.
    pub experts: Vec<(usize, Range<usize>)>,
    /// Where row `t` of the step comes to be for its `j`-th expert, `[T, k]`.
    pub places: Vec<u32>,
}

impl Grouped {
    /// The heads of `rows` rows, each of which goes to a matrix of its own; the rows are those of all heads, a row's side by side.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn heads(rows: usize, heads: usize) -> Result<Self> {
        let mut picked = alloc::zeroed(rows * heads, "the rows of heads")?;
        for (at, row) in picked.iter_mut().enumerate() {
            *row = ((at % rows) * heads + at / rows) as u32;
        }
        let experts = (0..heads).map(|head| (head, head * rows..(head + 1) * rows)).collect();
        Ok(Self { rows: picked, experts, places: Vec::new() })
    }

    /// By `ids` `[T, used]` of `experts` experts.
    ///
    /// # Errors
    /// [`Error::Shape`] where an id is none of an expert; [`Error::OutOfMemory`].
    pub fn new(ids: &[u32], used: usize, experts: usize) -> Result<Self> {
        let mut ends = alloc::zeroed::<usize>(experts + 1, "the rows of experts")?;
        for &id in ids {
            match ends.get_mut(id as usize + 1).filter(|_| (id as usize) < experts) {
                Some(count) => *count += 1,
                None => return Err(Error::shape("experts", format!("expert {id} of {experts}"))),
            }
        }
        let mut grouped = Self::default();
        for expert in 0..experts {
            let rows = ends[expert]..ends[expert] + ends[expert + 1];
            ends[expert + 1] = rows.end;
            if !rows.is_empty() {
                grouped.experts.push((expert, rows));
            }
        }
        // From here on where the next row of an expert goes.
        let next = &mut ends;
        grouped.rows = alloc::zeroed(ids.len(), "the rows of experts")?;
        grouped.places = alloc::zeroed(ids.len(), "the rows of experts")?;
        for (at, (&id, place)) in ids.iter().zip(&mut grouped.places).enumerate() {
            let next = &mut next[id as usize];
            grouped.rows[*next] = (at / used) as u32;
            *place = *next as u32;
            *next += 1;
        }
        Ok(grouped)
    }
}

/// `out[t] = Σ_j weights[t, j] · y[places[t, j]]`, added in the order of `j`; `y` `[T · k, N]`, `out` `[T, N]`.
///
/// # Panics
/// Where the lengths do not fit each other.
pub fn combine(pool: &Pool, y: &[f32], places: &[u32], weights: &[f32], width: usize, out: &mut [f32]) {
    let rows = out.len().checked_div(width).unwrap_or(0);
    let used = places.len().checked_div(rows).unwrap_or(0);
    assert_eq!((places.len(), weights.len(), y.len()), (rows * used, rows * used, rows * used * width));
    // Columns in pieces, so that a single row is shared, too.
    const PIECE: usize = 512;
    let pieces = width.div_ceil(PIECE);
    let out = Parts::new(out);
    pool.run(rows * pieces, |task| {
        let (row, from) = (task / pieces, task % pieces * PIECE);
        let len = PIECE.min(width - from);
        // SAFETY: pieces of rows do not overlap.
        let out = unsafe { out.slice(row * width + from, len) };
        let mut terms = places[row * used..][..used].iter().zip(&weights[row * used..]);
        let term = |(&place, &weight): (&u32, &f32)| (&y[place as usize * width + from..][..len], weight);
        let Some((first, weight)) = terms.next().map(term) else { return out.fill(0.0) };
        out.iter_mut().zip(first).for_each(|(out, y)| *out = weight * y);
        for (y, weight) in terms.map(term) {
            out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * y);
        }
    });
}

/// Each stretch of a row of `x` times the function of an element of `gates`: `x` `[T, D]`, `gates` `[T, G]`, `G` dividing `D`.
///
/// # Panics
/// Where the lengths do not fit each other.
pub fn gate_stretches(
    pool: &Pool,
    x: &[f32],
    gates: &[f32],
    kind: GateKind,
    stretch: usize,
    out: &mut [f32],
) {
    assert_eq!((x.len(), out.len()), (gates.len() * stretch, gates.len() * stretch), "gate: stretches");
    let each = TASK.div_ceil(stretch.max(1));
    pool.run_chunks(out, each * stretch, |task, out| {
        let first = task * each;
        let x = x[first * stretch..].chunks_exact(stretch);
        for ((out, x), gate) in out.chunks_exact_mut(stretch).zip(x).zip(&gates[first..]) {
            let by = match kind {
                GateKind::Sigmoid => sigmoid(*gate),
                GateKind::Softplus => softplus(*gate),
            };
            out.iter_mut().zip(x).for_each(|(out, x)| *out = x * by);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(router: &Router, bias: Option<&[f32]>, logits: &[f32]) -> (Vec<u32>, Vec<f32>) {
        scaled(router, [bias, None], logits)
    }

    fn scaled(router: &Router, bias_and_scales: [Option<&[f32]>; 2], logits: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let (mut ids, mut weights) = (vec![9; router.used], vec![f32::NAN; router.used]);
        route(&Pool::new(1), logits, bias_and_scales, router, &mut ids, &mut weights).unwrap();
        (ids, weights)
    }

    fn router(scores: Scores, used: usize) -> Router {
        Router { scores, used, groups: None, normalise: None, scale: 1.0 }
    }

    fn assert_close(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-6 * expected.abs().max(1.0), "{got} {expected}");
        }
    }

    #[test]
    fn each_kind_of_scores_gives_the_weights_of_its_formula() {
        let logits = [1.0, 3.0, -2.0, 2.0];
        let exp: Vec<f64> = logits.iter().map(|&x: &f32| f64::from(x).exp()).collect();
        let all: f64 = exp.iter().sum();
        let (ids, weights) = routed(&router(Scores::Softmax, 2), None, &logits);
        assert_eq!(ids, [1, 3]);
        assert_close(&weights, &[exp[1] / all, exp[3] / all]);

        let (ids, weights) = routed(&router(Scores::SigmoidOfChosen, 1), None, &logits);
        assert_eq!(ids, [1]);
        assert_close(&weights, &[1.0 / (1.0 + (-3.0_f64).exp())]);

        // 2 is a third below 3, 1 two thirds; of 2, 1 is half below.
        let mixed = |near| routed(&router(Scores::SparseMixer { near }, 2), None, &logits);
        assert_eq!(mixed(0.1), (vec![1, 3], vec![1.0, 1.0]));
        assert_close(&mixed(0.4).1, &[exp[1] / (exp[1] + exp[3]), 1.0]);
        assert_close(&mixed(0.6).1, &[exp[1] / (exp[1] + exp[3]), exp[3] / (exp[3] + exp[0])]);

        let (ids, weights) = routed(&router(Scores::SoftmaxOfChosen, 2), None, &logits);
        assert_eq!(ids, [1, 3]);
        assert_close(&weights, &[exp[1] / (exp[1] + exp[3]), exp[3] / (exp[1] + exp[3])]);

        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let sigmoids = Router { normalise: Some(1e-20), scale: 2.5, ..router(Scores::Sigmoid, 2) };
        // The bias chooses, and does not weigh.
        let (ids, weights) = routed(&sigmoids, Some(&[0.0, -9.0, 9.0, 0.0]), &logits);
        assert_eq!(ids, [2, 3]);
        let sum = sigmoid(-2.0) + sigmoid(2.0);
        assert_close(&weights, &[2.5 * sigmoid(-2.0) / sum, 2.5 * sigmoid(2.0) / sum]);

        // What scales an expert does not choose it, and comes after the division by the sum.
        let normalised = Router { normalise: Some(0.0), scale: 3.0, ..router(Scores::Softmax, 2) };
        let (ids, weights) = scaled(&normalised, [None, Some(&[9.0, 0.5, 9.0, -2.0])], &logits);
        assert_eq!(ids, [1, 3]);
        let sum = exp[1] + exp[3];
        assert_close(&weights, &[1.5 * exp[1] / sum, -6.0 * exp[3] / sum]);

        let (ids, weights) = routed(&router(Scores::SqrtSoftplus, 4), None, &logits);
        assert_eq!(ids, [1, 3, 0, 2]);
        assert_close(&weights, &[3.0, 2.0, 1.0, -2.0].map(|x: f64| x.exp().ln_1p().sqrt()));
    }

    #[test]
    fn the_lower_id_wins_a_tie_and_nan_comes_last() {
        let (ids, weights) = routed(&router(Scores::Softmax, 3), None, &[0.5; 4]);
        assert_eq!((ids, weights), (vec![0, 1, 2], vec![0.25; 3]));
        let odd = [f32::NAN, f32::NEG_INFINITY, 1.0, f32::NAN];
        let (ids, _) = routed(&router(Scores::SoftmaxOfChosen, 4), None, &odd);
        assert_eq!(ids, [2, 1, 0, 3]);
        let (ids, _) = routed(&router(Scores::Softmax, 2), None, &[f32::NAN; 3]);
        assert_eq!(ids, [0, 1]);
    }

    #[test]
    fn experts_come_from_the_best_groups_alone() {
        let groups = |used, best| Some(ExpertGroups { count: 3, used, best });
        let of = |groups| Router { groups, ..router(Scores::SoftmaxOfChosen, 2) };
        // By the best of each: 9, 6, 5; by the best two: 9, 11, 8.
        let logits = [9.0, 0.0, 6.0, 5.0, 5.0, 3.0];
        assert_eq!(routed(&of(groups(1, 1)), None, &logits).0, [0, 1]);
        assert_eq!(routed(&of(groups(1, 2)), None, &logits).0, [2, 3]);
        assert_eq!(routed(&of(groups(2, 2)), None, &logits).0, [0, 2]);
        // Of equal groups, the first.
        assert_eq!(routed(&of(groups(1, 2)), None, &[1.0; 6]).0, [0, 1]);
    }

    #[test]
    fn rows_are_grouped_in_the_order_of_experts_and_of_the_step() {
        let grouped = Grouped::new(&[3, 1, 1, 3, 3, 0], 2, 5).unwrap();
        assert_eq!(grouped.experts, [(0, 0..1), (1, 1..3), (3, 3..6)]);
        assert_eq!(grouped.rows, [2, 0, 1, 0, 1, 2]);
        assert_eq!(grouped.places, [3, 1, 2, 4, 5, 0]);
        assert!(Grouped::new(&[5], 1, 5).unwrap_err().to_string().contains("expert 5 of 5"));
        assert!(Grouped::new(&[u32::MAX], 1, 5).is_err());
    }

    #[test]
    fn what_experts_give_is_weighed_and_added() {
        let y = [1.0, 2.0, 10.0, 20.0, 100.0, 200.0, 1000.0, 2000.0];
        let mut out = [f32::NAN; 4];
        combine(&Pool::new(2), &y, &[2, 0, 1, 3], &[1.0, 2.0, 3.0, 0.5], 2, &mut out);
        assert_eq!(out, [102.0, 204.0, 530.0, 1060.0]);
        let mut gated = [f32::NAN; 4];
        gate_stretches(
            &Pool::new(1),
            &[1.0, 2.0, 3.0, 4.0],
            &[0.0, f32::INFINITY],
            GateKind::Sigmoid,
            2,
            &mut gated,
        );
        assert_eq!(gated, [0.5, 1.0, 3.0, 4.0]);
    }
}
