//! Recurrences: causal convolutions of channels, the gated delta rule, and the selective scan.
//!
//! All advance token by token: the bits of a token depend on the state before it and on itself, whatever the step cuts off. A
//! panel of [`PANEL`] columns of a matrix goes through all tokens of a run while it is in the first cache; a column is a chain of
//! `fma` over the rows, and no sum crosses columns.

use crate::backend::cpu::isa::{Isa, Kernel, Simd};
use crate::backend::cpu::pool::{Parts, Pool};
use crate::backend::ops::PANEL;

/// Elements of a task of a convolution: some 4 µs of work.
const TASK: usize = 16 * 1024;

/// Vectors of a panel at most.
const VECTORS: usize = 16;

/// What a convolution computes of one run.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// The `taps` rows before the run, `[taps, C]`.
    pub before: &'a [f32],
    /// `[T, C]`.
    pub x: &'a [f32],
    /// `[taps + 1, C]`.
    pub weight: &'a [f32],
    /// `[C]`.
    pub bias: Option<&'a [f32]>,
    pub channels: usize,
}

/// `out[t] = Σ_j weight[j] ∘ rows[t + j] + bias`, where `rows` are those before the run and then its own: `out` is `[T, C]`. The last
/// `taps` rows go to `after`.
///
/// # Panics
/// Where the lengths do not fit each other.
pub fn convolve(pool: &Pool, of: &Convolution<'_>, out: &mut [f32], after: &mut [f32]) {
    let &Convolution { before, x, weight, bias, channels } = of;
    let taps = before.len() / channels;
    assert_eq!((x.len(), before.len()), (out.len(), after.len()), "convolution: rows");
    assert_eq!(weight.len(), (taps + 1) * channels, "convolution: weight");
    let row = |at: usize| match at.checked_sub(taps) {
        None => &before[at * channels..][..channels],
        Some(at) => &x[at * channels..][..channels],
    };
    let rows = x.len() / channels;
    let each = TASK.div_ceil(channels).min(rows.div_ceil(4 * pool.threads())).max(1);
    pool.run_chunks(out, each * channels, |task, out| {
        for (t, out) in (task * each..).zip(out.chunks_exact_mut(channels)) {
            match bias {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
            for (j, weight) in weight.chunks_exact(channels).enumerate() {
                for ((out, w), x) in out.iter_mut().zip(weight).zip(row(t + j)) {
                    *out += w * x;
                }
            }
        }
    });
    shift(before, x, after);
}

/// The last rows of those `before` and of `x` behind them, as many as there were before: what a [`convolve`] of `x` leaves.
///
/// # Panics
/// Where `after` is not as long as `before`.
pub fn shift(before: &[f32], x: &[f32], after: &mut [f32]) {
    let kept = before.len().saturating_sub(x.len());
    let (old, new) = after.split_at_mut(kept);
    old.copy_from_slice(&before[before.len() - kept..]);
    new.copy_from_slice(&x[x.len() - (before.len() - kept)..]);
}

/// Queries and keys of length 1, the queries divided by the root of their elements, in place: `qk` `[T, 2 · heads · dim]`.
pub fn unit(pool: &Pool, qk: &mut [f32], heads: usize, dim: usize) {
    let root = (dim as f32).powf(-0.5);
    let width = 2 * heads * dim;
    let each = TASK.div_ceil(width.max(1)).max(1);
    pool.run_chunks(qk, each * width, |_, rows| {
        for row in rows.chunks_exact_mut(width) {
            for (head, x) in row.chunks_exact_mut(dim).enumerate() {
                // In `f64`: the order adds no error.
                let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                let by = 1.0 / (squares as f32 + 1e-6).sqrt() * if head < heads { root } else { 1.0 };
                x.iter_mut().for_each(|x| *x *= by);
            }
        }
    });
}

/// What becomes of the factors of the rule before they meet a matrix, in place: `beta`, `[T, H]`, `strength` times its sigmoid; `gate`,
/// `[T, G]`, the decay `exp(rate · softplus(gate + shift))`, by a rate for each head, of which a row has `G / H` gates and shifts.
///
/// # Panics
/// Where the gates are no multiple of the rates.
pub fn factors(beta: &mut [f32], strength: f32, gate: &mut [f32], rate: &[f32], shift: &[f32]) {
    assert!(shift.len().is_multiple_of(rate.len()), "delta: gates");
    for beta in beta {
        *beta = strength * (1.0 / (1.0 + (-*beta).exp()));
    }
    let each = shift.len() / rate.len();
    for row in gate.chunks_exact_mut(shift.len()) {
        for ((row, shift), rate) in row.chunks_exact_mut(each).zip(shift.chunks_exact(each)).zip(rate) {
            for (gate, shift) in row.iter_mut().zip(shift) {
                *gate = (rate * softplus(*gate + shift)).exp();
            }
        }
    }
}

fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The steps of a scan, in place of what they are made of: `dt` becomes `softplus(dt + shift)` within `limits`, and `decay`
/// `exp(rate · dt)`, `[T, H]` each.
///
/// # Panics
/// Where the first limit is not below the second, or equal to it.
pub fn steps(dt: &mut [f32], decay: &mut [f32], rate: &[f32], shift: &[f32], [least, most]: [f32; 2]) {
    let heads = rate.len();
    for (dt, decay) in dt.chunks_exact_mut(heads).zip(decay.chunks_exact_mut(heads)) {
        for (((dt, decay), rate), shift) in dt.iter_mut().zip(decay).zip(rate).zip(shift) {
            *dt = softplus(*dt + shift).clamp(least, most);
            *decay = (rate * *dt).exp();
        }
    }
}

/// What the delta rule computes of one run.
#[derive(Debug, Clone, Copy)]
pub struct Delta<'a> {
    /// As [`unit`] leaves them, `[T, 2 · key_heads · rows]`.
    pub qk: &'a [f32],
    /// `[T, H · columns]`, and elements between rows.
    pub v: &'a [f32],
    pub v_stride: usize,
    /// As [`factors`] leaves them, `[T, H]`.
    pub beta: &'a [f32],
    /// The same, `[T, H]` or `[T, H · rows]`.
    pub decay: &'a [f32],
    pub key_heads: usize,
    /// Whether heads of values take those of keys in turn.
    pub in_turn: bool,
    pub heads: usize,
    pub rows: usize,
    pub columns: usize,
}

/// Advances the matrices `[heads, panels, rows, PANEL]` from `before` to `after`, and writes what each token
/// gets, `[T, H · columns]`, where that is wanted.
///
/// # Panics
/// Where the lengths do not fit each other.
pub fn delta(
    pool: &Pool,
    isa: Isa,
    of: Delta<'_>,
    before: &[f32],
    after: &mut [f32],
    out: Option<&mut [f32]>,
) {
    let panels = of.columns.div_ceil(PANEL);
    let size = of.rows * PANEL;
    let tokens = of.beta.len() / of.heads;
    assert_eq!((before.len(), after.len()), (of.heads * panels * size, of.heads * panels * size));
    assert_eq!(of.qk.len(), tokens * 2 * of.key_heads * of.rows, "delta: queries and keys");
    assert!([of.beta.len(), of.beta.len() * of.rows].contains(&of.decay.len()), "delta: decays");
    let given = tokens * of.heads * of.columns;
    assert!(out.as_ref().is_none_or(|out| out.len() == given), "delta: output");
    assert!(of.v.len() + of.v_stride >= tokens * of.v_stride + of.heads * of.columns, "delta: values");
    assert!(of.heads.is_multiple_of(of.key_heads), "delta: heads");
    let (after, out) = (Parts::new(after), out.map(Parts::new));
    pool.run(of.heads * panels, |task| {
        // SAFETY: panels do not overlap.
        let matrix = unsafe { after.slice(task * size, size) };
        matrix.copy_from_slice(&before[task * size..][..size]);
        isa.dispatch(Panel { of, head: task / panels, panel: task % panels, matrix, out: out.as_ref() });
    });
}

/// A panel of a head's matrix, through all tokens.
struct Panel<'a> {
    of: Delta<'a>,
    head: usize,
    panel: usize,
    matrix: &'a mut [f32],
    out: Option<&'a Parts<'a, f32>>,
}

impl Kernel for Panel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { of, head, panel, matrix, out } = self;
        let Delta { rows, columns, heads, key_heads, in_turn, .. } = of;
        const { assert!(PANEL / S::LANES <= VECTORS && PANEL.is_multiple_of(S::LANES)) };
        let vectors = PANEL / S::LANES;
        let (first, width) = (panel * PANEL, PANEL.min(columns - panel * PANEL));
        let group = if in_turn { head % key_heads } else { head / (heads / key_heads) };
        let decays = of.decay.len() / of.beta.len().max(1);
        for t in 0..of.beta.len() / heads {
            let qk = &of.qk[t * 2 * key_heads * rows..][..2 * key_heads * rows];
            let (q, k) = (&qk[group * rows..][..rows], &qk[(key_heads + group) * rows..][..rows]);
            let beta = s.splat(of.beta[t * heads + head]);
            // Of all rows, or of each.
            let decays = &of.decay[(t * heads + head) * decays..][..decays];
            let mut decay = s.splat(decays[0]);
            let mut v = [0.0; PANEL];
            v[..width].copy_from_slice(&of.v[t * of.v_stride + head * columns + first..][..width]);
            let mut sums = [s.zero(); VECTORS];
            for (r, (row, &k)) in matrix.chunks_exact_mut(PANEL).zip(k).enumerate() {
                let k = s.splat(k);
                if decays.len() > 1 {
                    decay = s.splat(decays[r]);
                }
                for n in 0..vectors {
                    let part = &mut row[n * S::LANES..(n + 1) * S::LANES];
                    let x = s.mul(s.load(part), decay);
                    s.store(part, x);
                    sums[n] = s.fma(k, x, sums[n]);
                }
            }
            let mut changes = [s.zero(); VECTORS];
            for n in 0..vectors {
                let v = s.load(&v[n * S::LANES..(n + 1) * S::LANES]);
                changes[n] = s.mul(beta, s.sub(v, sums[n]));
            }
            let mut given = [s.zero(); VECTORS];
            for ((row, &k), &q) in matrix.chunks_exact_mut(PANEL).zip(k).zip(q) {
                let (k, q) = (s.splat(k), s.splat(q));
                for n in 0..vectors {
                    let part = &mut row[n * S::LANES..(n + 1) * S::LANES];
                    let x = s.fma(k, changes[n], s.load(part));
                    s.store(part, x);
                    given[n] = s.fma(q, x, given[n]);
                }
            }
            let mut y = [0.0; PANEL];
            for n in 0..vectors {
                s.store(&mut y[n * S::LANES..(n + 1) * S::LANES], given[n]);
            }
            if let Some(out) = out {
                // SAFETY: these columns of a token's row belong to this panel alone.
                let out = unsafe { out.slice((t * heads + head) * columns + first, width) };
                out.copy_from_slice(&y[..width]);
            }
        }
    }
}

/// What the selective scan computes of one run.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    /// Values, keys and queries, `[T, H · columns + 2 · groups · rows]`.
    pub vkq: &'a [f32],
    /// As [`steps`] leaves them, `[T, H]` each.
    pub delta: &'a [f32],
    pub decay: &'a [f32],
    /// `[H]`.
    pub skip: &'a [f32],
    pub groups: usize,
    pub heads: usize,
    pub rows: usize,
    pub columns: usize,
}

/// Advances the matrices `[heads, panels, rows, PANEL]` from `before` to `after`, and writes what each token
/// gets, `[T, H · columns]`, where that is wanted.
///
/// # Panics
/// Where the lengths do not fit each other.
pub fn scan(pool: &Pool, isa: Isa, of: Scan<'_>, before: &[f32], after: &mut [f32], out: Option<&mut [f32]>) {
    let panels = of.columns.div_ceil(PANEL);
    let size = of.rows * PANEL;
    let tokens = of.delta.len() / of.heads;
    assert_eq!((before.len(), after.len()), (of.heads * panels * size, of.heads * panels * size));
    assert_eq!(
        of.vkq.len(),
        tokens * (of.heads * of.columns + 2 * of.groups * of.rows),
        "scan: values and keys"
    );
    let given = tokens * of.heads * of.columns;
    assert!(out.as_ref().is_none_or(|out| out.len() == given), "scan: output");
    assert_eq!(of.decay.len(), of.delta.len(), "scan: decays");
    assert!(of.heads.is_multiple_of(of.groups) && of.skip.len() == of.heads, "scan: heads");
    let (after, out) = (Parts::new(after), out.map(Parts::new));
    pool.run(of.heads * panels, |task| {
        // SAFETY: panels do not overlap.
        let matrix = unsafe { after.slice(task * size, size) };
        matrix.copy_from_slice(&before[task * size..][..size]);
        isa.dispatch(ScanPanel { of, head: task / panels, panel: task % panels, matrix, out: out.as_ref() });
    });
}

/// A panel of a head's matrix, through all tokens of a scan.
struct ScanPanel<'a> {
    of: Scan<'a>,
    head: usize,
    panel: usize,
    matrix: &'a mut [f32],
    out: Option<&'a Parts<'a, f32>>,
}

impl Kernel for ScanPanel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { of, head, panel, matrix, out } = self;
        let Scan { rows, columns, heads, groups, .. } = of;
        const { assert!(PANEL / S::LANES <= VECTORS && PANEL.is_multiple_of(S::LANES)) };
        let vectors = PANEL / S::LANES;
        let (first, width) = (panel * PANEL, PANEL.min(columns - panel * PANEL));
        let (values, group) = (heads * columns, head / (heads / groups));
        let skip = s.splat(of.skip[head]);
        for (t, token) in of.vkq.chunks_exact(values + 2 * groups * rows).enumerate() {
            let (own, kq) = token.split_at(values);
            let (k, q) = (&kq[group * rows..][..rows], &kq[(groups + group) * rows..][..rows]);
            let (delta, decay) = (s.splat(of.delta[t * heads + head]), s.splat(of.decay[t * heads + head]));
            let mut v = [0.0; PANEL];
            v[..width].copy_from_slice(&own[head * columns + first..][..width]);
            let mut changes = [s.zero(); VECTORS];
            for n in 0..vectors {
                changes[n] = s.mul(delta, s.load(&v[n * S::LANES..(n + 1) * S::LANES]));
            }
            let mut given = [s.zero(); VECTORS];
            for ((row, &k), &q) in matrix.chunks_exact_mut(PANEL).zip(k).zip(q) {
                let (k, q) = (s.splat(k), s.splat(q));
                for n in 0..vectors {
                    let part = &mut row[n * S::LANES..(n + 1) * S::LANES];
                    let x = s.fma(k, changes[n], s.mul(s.load(part), decay));
                    s.store(part, x);
                    given[n] = s.fma(q, x, given[n]);
                }
            }
            let mut y = [0.0; PANEL];
            for ((y, v), given) in y.chunks_exact_mut(S::LANES).zip(v.chunks_exact(S::LANES)).zip(given) {
                s.store(y, s.fma(skip, s.load(v), given));
            }
            if let Some(out) = out {
                // SAFETY: these columns of a token's row belong to this panel alone.
                let out = unsafe { out.slice((t * heads + head) * columns + first, width) };
                out.copy_from_slice(&y[..width]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_of_a_head_or_of_each_row_of_its_matrix() {
        let (rate, shift) = ([-0.5_f32, -2.0], [0.1_f32, -0.2, 0.3, 4.0, -30.0, 60.0]);
        let (mut beta, mut gate) = ([0.0_f32, 3.0], [0.0_f32, 1.0, -1.0, 0.5, 0.0, 40.0]);
        let (beta_in, gate_in) = (beta, gate);
        factors(&mut beta, 2.0, &mut gate, &rate, &shift);
        for (got, of) in beta.iter().zip(beta_in) {
            let want = 2.0 / (1.0 + f64::from(-of).exp());
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} {want}");
        }
        for (i, got) in gate.iter().enumerate() {
            let open = f64::from(gate_in[i] + shift[i]);
            let want = (f64::from(rate[i / 3]) * open.exp().ln_1p()).exp();
            assert!((f64::from(*got) - want).abs() < 1e-6, "{i}: {got} {want}");
        }
        let (mut one, mut two) = ([0.3_f32, -0.7], [0.3_f32, -0.7]);
        factors(&mut [], 1.0, &mut one, &rate, &shift[..2]);
        factors(&mut [], 1.0, &mut two[..1], &rate[..1], &shift[..1]);
        factors(&mut [], 1.0, &mut two[1..], &rate[1..], &shift[1..2]);
        assert_eq!(one, two);
    }

    fn values(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn a_convolution_sees_the_rows_before() {
        let (channels, taps) = (3, 2);
        let (x, weight, bias) = (values(1, 5 * channels), values(2, 3 * channels), values(3, channels));
        let before = values(4, taps * channels);
        let rows: Vec<f32> = before.iter().chain(&x).copied().collect();
        let pool = Pool::new(2);
        let (mut out, mut after) = (vec![0.0; x.len()], vec![0.0; before.len()]);
        let of = Convolution { before: &before, x: &x, weight: &weight, bias: Some(&bias), channels };
        convolve(&pool, &of, &mut out, &mut after);
        for (t, out) in out.chunks(channels).enumerate() {
            for (c, out) in out.iter().enumerate() {
                let terms = (0..=taps)
                    .map(|j| f64::from(weight[j * channels + c]) * f64::from(rows[(t + j) * channels + c]));
                let want = terms.sum::<f64>() + f64::from(bias[c]);
                assert!((f64::from(*out) - want).abs() < 1e-6, "{t} {c}: {out} {want}");
            }
        }
        assert_eq!(after, rows[5 * channels..]);
        // In any cutting, with the same bits.
        let (mut state, mut cut) = (before.clone(), Vec::new());
        for part in x.chunks(2 * channels) {
            let (mut out, mut after) = (vec![0.0; part.len()], vec![0.0; state.len()]);
            let of = Convolution { before: &state, x: part, ..of };
            convolve(&pool, &of, &mut out, &mut after);
            (state, cut) = (after, [cut, out].concat());
        }
        assert_eq!((cut, state), (out, after));
    }

    #[test]
    fn the_rule_is_that_of_the_recurrence_and_has_the_same_bits_in_any_cutting() {
        let sizes = [
            (1, 1, 3, 5, 1),
            (2, 4, 16, 64, 1),
            (1, 3, 8, 70, 1),
            (2, 6, 4, 6, 1),
            (2, 4, 16, 64, 16),
            (3, 3, 5, 70, 5),
        ];
        let cases = sizes.into_iter().flat_map(|sizes| [(sizes, false), (sizes, true)]);
        for ((key_heads, heads, rows, columns, decays), in_turn) in cases {
            let tokens = 9;
            let mut qk = values(1, tokens * 2 * key_heads * rows);
            let v = values(2, tokens * heads * columns);
            let (mut beta, mut decay) = (values(3, tokens * heads), values(4, tokens * heads * decays));
            let pool = Pool::new(2);
            unit(&pool, &mut qk, key_heads, rows);
            factors(&mut beta, 2.0, &mut decay, &vec![-0.7; heads], &vec![0.3; heads * decays]);
            let panels = columns.div_ceil(PANEL);
            let size = heads * panels * rows * PANEL;
            let run = |isa: Isa, threads: usize, cut: usize| {
                let (mut state, mut all) = (vec![0.0; size], Vec::new());
                for first in (0..tokens).step_by(cut) {
                    let end = (first + cut).min(tokens);
                    let part = |x: &'_ [f32], width: usize| x[first * width..end * width].to_vec();
                    let (qk, v) = (part(&qk, 2 * key_heads * rows), part(&v, heads * columns));
                    let (beta, decay) = (part(&beta, heads), part(&decay, heads * decays));
                    let of = Delta {
                        qk: &qk,
                        v: &v,
                        v_stride: heads * columns,
                        beta: &beta,
                        decay: &decay,
                        key_heads,
                        in_turn,
                        heads,
                        rows,
                        columns,
                    };
                    let (mut after, mut out) = (vec![f32::NAN; size], vec![f32::NAN; v.len()]);
                    delta(&Pool::new(threads), isa, of, &state, &mut after, Some(&mut out));
                    let mut alone = vec![0.0; size];
                    delta(&Pool::new(threads), isa, of, &state, &mut alone, None);
                    assert_eq!(alone, after, "the state does not depend on who wants what it gives");
                    (state, all) = (after, [all, out].concat());
                }
                (all, state)
            };
            let mut want = Vec::new();
            let mut matrices = vec![vec![0.0_f64; rows * columns]; heads];
            for t in 0..tokens {
                for (head, s) in matrices.iter_mut().enumerate() {
                    let group = if in_turn { head % key_heads } else { head / (heads / key_heads) };
                    let at = t * 2 * key_heads * rows;
                    let (q, k) =
                        (&qk[at + group * rows..][..rows], &qk[at + (key_heads + group) * rows..][..rows]);
                    for (r, row) in s.chunks_exact_mut(columns).enumerate() {
                        let decay = f64::from(decay[(t * heads + head) * decays + r % decays]);
                        row.iter_mut().for_each(|x| *x *= decay);
                    }
                    for c in 0..columns {
                        let dot: f64 = (0..rows).map(|r| f64::from(k[r]) * s[r * columns + c]).sum();
                        let v = f64::from(v[(t * heads + head) * columns + c]);
                        let u = f64::from(beta[t * heads + head]) * (v - dot);
                        (0..rows).for_each(|r| s[r * columns + c] += f64::from(k[r]) * u);
                        want.push((0..rows).map(|r| f64::from(q[r]) * s[r * columns + c]).sum::<f64>());
                    }
                }
            }
            for isa in Isa::available() {
                let whole = run(isa, 2, tokens);
                for (i, (got, want)) in whole.0.iter().zip(&want).enumerate() {
                    assert!((f64::from(*got) - want).abs() < 2e-6, "{isa}: {i} is {got}, want {want}");
                }
                for (threads, cut) in [(1, 1), (3, 4), (2, 8)] {
                    assert_eq!(run(isa, threads, cut), whole, "{isa}: {threads} threads, {cut} tokens");
                }
            }
        }
    }

    #[test]
    fn the_steps_of_a_scan_lie_within_their_limits() {
        let (rate, shift) = ([-0.5, -2.0], [0.25, -1.0]);
        let given = [-40.0, -3.0, 0.5, 4.0, 30.0, f32::NAN];
        for limits in [[0.0, f32::INFINITY], [0.1, 3.0]] {
            let (mut dt, mut decay) = (given, [f32::NAN; 6]);
            steps(&mut dt, &mut decay, &rate, &shift, limits);
            for (i, (dt, decay)) in dt.iter().zip(decay).enumerate().take(5) {
                let x = f64::from(given[i]) + f64::from(shift[i % 2]);
                let want = (x.max(0.0) + (-x.abs()).exp().ln_1p()).clamp(limits[0].into(), limits[1].into());
                let want_decay = (f64::from(rate[i % 2]) * want).exp();
                assert!((f64::from(*dt) - want).abs() <= 2e-6 * want, "{i}: {dt} {want}");
                assert!(
                    (f64::from(decay) - want_decay).abs() <= 2e-5 * want_decay,
                    "{i}: {decay} {want_decay}"
                );
            }
            assert!(dt[5].is_nan() && decay[5].is_nan());
        }
    }

    #[test]
    fn the_scan_is_that_of_the_recurrence_and_has_the_same_bits_in_any_cutting() {
        for (groups, heads, rows, columns) in [(1, 1, 3, 5), (2, 4, 16, 64), (1, 3, 8, 70)] {
            let tokens = 9;
            let width = heads * columns + 2 * groups * rows;
            let (vkq, skip) = (values(1, tokens * width), values(2, heads));
            let (mut delta, mut decay) = (values(3, tokens * heads), vec![0.0; tokens * heads]);
            steps(&mut delta, &mut decay, &vec![-0.7; heads], &vec![0.3; heads], [0.0, f32::INFINITY]);
            let size = heads * columns.div_ceil(PANEL) * rows * PANEL;
            let run = |isa: Isa, threads: usize, cut: usize| {
                let (mut state, mut all) = (vec![0.0; size], Vec::new());
                for first in (0..tokens).step_by(cut) {
                    let end = (first + cut).min(tokens);
                    let of = Scan {
                        vkq: &vkq[first * width..end * width],
                        delta: &delta[first * heads..end * heads],
                        decay: &decay[first * heads..end * heads],
                        skip: &skip,
                        groups,
                        heads,
                        rows,
                        columns,
                    };
                    let (mut after, mut out) =
                        (vec![f32::NAN; size], vec![f32::NAN; (end - first) * heads * columns]);
                    scan(&Pool::new(threads), isa, of, &state, &mut after, Some(&mut out));
                    let mut alone = vec![0.0; size];
                    scan(&Pool::new(threads), isa, of, &state, &mut alone, None);
                    assert_eq!(alone, after, "the state does not depend on who wants what it gives");
                    (state, all) = (after, [all, out].concat());
                }
                (all, state)
            };
            let mut want = Vec::new();
            let mut matrices = vec![vec![0.0_f64; rows * columns]; heads];
            for (t, token) in vkq.chunks(width).enumerate() {
                for (head, s) in matrices.iter_mut().enumerate() {
                    let group = head / (heads / groups);
                    let (own, kq) = token.split_at(heads * columns);
                    let (k, q) = (&kq[group * rows..][..rows], &kq[(groups + group) * rows..][..rows]);
                    for c in 0..columns {
                        let v = f64::from(own[head * columns + c]);
                        let mut y = f64::from(skip[head]) * v;
                        for r in 0..rows {
                            let x = &mut s[r * columns + c];
                            *x *= f64::from(decay[t * heads + head]);
                            *x += f64::from(delta[t * heads + head]) * f64::from(k[r]) * v;
                            y += f64::from(q[r]) * *x;
                        }
                        want.push(y);
                    }
                }
            }
            for isa in Isa::available() {
                let whole = run(isa, 2, tokens);
                for (i, (got, want)) in whole.0.iter().zip(&want).enumerate() {
                    assert!((f64::from(*got) - want).abs() < 1e-5, "{isa}: {i} is {got}, want {want}");
                }
                for (threads, cut) in [(1, 1), (3, 4), (2, 8)] {
                    assert_eq!(run(isa, threads, cut), whole, "{isa}: {threads} threads, {cut} tokens");
                }
            }
        }
    }
}
