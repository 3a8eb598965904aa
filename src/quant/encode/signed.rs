//! Quantizers of blocks without mins: groups of codes that stand for integers on both sides of zero, times a scale; made small is
//! the square error, weighed by column, as in `k`.

use half::f16;

use super::super::ggml::IQ4_VALUES;
use super::{BLOCK, ROUNDS, narrow, nearest, sum};

/// What codes stand for.
trait Levels {
    /// The one of the largest magnitude, which is below zero, as a number above it; and the largest above zero.
    const EDGES: [f32; 2];
    /// How far apart the steps are that are tried, as a part of the step.
    const GRID: f32;
    /// Whether steps of both signs are tried: with many levels they are alike.
    const BOTH: bool;

    /// The nearest to `x`.
    fn nearest(x: f32) -> f32;
}

/// Integers from `-HALF` to `HALF - 1`.
struct Integers<const HALF: i8>;

impl<const HALF: i8> Levels for Integers<HALF> {
    const EDGES: [f32; 2] = [HALF as f32, (HALF - 1) as f32];
    const GRID: f32 = if HALF >= 32 { 0.1 / HALF as f32 } else { 0.025 };
    const BOTH: bool = HALF < 32;

    fn nearest(x: f32) -> f32 {
        nearest(x.clamp(-Self::EDGES[0], Self::EDGES[1]))
    }
}

/// Those of IQ4_NL and IQ4_XS.
struct Table;

impl Levels for Table {
    const EDGES: [f32; 2] = [127.0, 113.0];
    const GRID: f32 = 0.025;
    const BOTH: bool = true;

    fn nearest(x: f32) -> f32 {
        NEAREST[(2.0 * x.clamp(-128.0, 127.0) + 256.0) as usize]
    }
}

/// The value of the table that is nearest to each half: between two halves it is the same, since the bounds are halves.
static NEAREST: [f32; 511] = {
    let mut nearest = [0.0; 511];
    let mut i = 0;
    while i < nearest.len() {
        let mut code = 0;
        // Bounds are halves of sums: twice the value against the sum of two.
        while code < 15 && i as i32 - 256 >= IQ4_VALUES[code] as i32 + IQ4_VALUES[code + 1] as i32 {
            code += 1;
        }
        nearest[i] = IQ4_VALUES[code] as f32;
        i += 1;
    }
    nearest
};

/// The place in the table of the value that is nearest to `x`.
fn code_of(x: f32) -> usize {
    let pairs = IQ4_VALUES.iter().zip(&IQ4_VALUES[1..]);
    pairs.map(|(&a, &b)| usize::from(x > (f32::from(a) + f32::from(b)) / 2.0)).sum()
}

/// The values of a group, and what their squared errors are multiplied with.
#[derive(Clone, Copy)]
struct Wanted<'a, const G: usize> {
    values: &'a [f32; G],
    weights: &'a [f32; G],
}

impl<const G: usize> Wanted<'_, G> {
    /// The levels nearest to the values for a step, and their error.
    fn levels<L: Levels>(self, step: f32) -> ([f32; G], f32) {
        let inverse = super::inverse(step);
        let (mut levels, mut terms) = ([0.0; G], [0.0; G]);
        for (level, &x) in levels.iter_mut().zip(self.values) {
            *level = L::nearest(x * inverse);
        }
        for (((term, &level), &x), &weight) in
            terms.iter_mut().zip(&levels).zip(self.values).zip(self.weights)
        {
            let off = step * level - x;
            *term = weight * (off * off);
        }
        (levels, sum(terms))
    }

    /// The step that fits levels best.
    fn ratio(self, levels: &[f32; G]) -> f32 {
        let (mut qx, mut qq) = ([0.0; G], [0.0; G]);
        let each = levels.iter().zip(self.values).zip(self.weights);
        for ((qx, qq), ((&level, &x), &weight)) in qx.iter_mut().zip(&mut qq).zip(each) {
            let weighed = weight * level;
            (*qx, *qq) = (weighed * x, weighed * level);
        }
        let (qx, qq) = (sum(qx), sum(qq));
        if qq > 0.0 { qx / qq } else { 0.0 }
    }

    /// A good step, as a real number; its sign lets the value of the largest magnitude have the level that is farthest out.
    fn free<L: Levels>(self) -> f32 {
        let edge = self.values.iter().fold(0.0_f32, |edge, &x| if x.abs() > edge.abs() { x } else { edge });
        let mut best = (f32::INFINITY, 0.0);
        let [below, above] = L::EDGES;
        for end in [-below, above].into_iter().take(if L::BOTH { 2 } else { 1 }) {
            for start in -10..=10 {
                let mut levels = self.levels::<L>(edge / (end * (1.0 + L::GRID * start as f32))).0;
                for _ in 0..2 {
                    let step = self.ratio(&levels);
                    let error;
                    (levels, error) = self.levels::<L>(step);
                    if error < best.0 {
                        best = (error, step);
                    }
                }
            }
        }
        best.1
    }
}

/// What a group becomes: `w = d · scale · level`.
#[derive(Clone, Copy)]
struct Group<const G: usize> {
    scale: f32,
    levels: [f32; G],
    error: f32,
}

/// `d`, and `N` groups whose scales are from `-top` to `top - 1`.
fn fitted_block<L: Levels, const G: usize, const N: usize>(
    values: &[f32],
    weights: Option<&[f32]>,
    top: f32,
) -> (f32, [Group<G>; N]) {
    let weights = weights.unwrap_or(&super::ONES);
    let (values, weights) = (values.as_chunks::<G>().0, weights.as_chunks::<G>().0);
    let wanted: [Wanted<'_, G>; N] =
        std::array::from_fn(|i| Wanted { values: &values[i], weights: &weights[i] });
    let weighed = wanted.map(Wanted::free::<L>);
    // Where weights differ, what fits without them may share the block's factor better.
    let plain = wanted.map(|Wanted { values, .. }| Wanted { values, weights: &[1.0; G] }.free::<L>());
    let ways = if weighed == plain { &[weighed][..] } else { &[weighed, plain] };
    let none = Group { scale: 0.0, levels: [0.0; G], error: f32::INFINITY };
    let mut best = (f32::INFINITY, 0.0, [none; N]);
    // With few scales, the others fall on other ones with each start.
    let starts = if top > 64.0 { &[0.0][..] } else { &[0.0, 1.0, 2.0] };
    for (free, start) in ways.iter().flat_map(|free| starts.iter().map(move |start| (free, start))) {
        let largest = free.iter().fold(0.0_f32, |edge, &x| if x.abs() > edge.abs() { x } else { edge });
        let mut d = narrow(largest / (start - top));
        let mut before = f32::INFINITY;
        for _ in 0..ROUNDS {
            let groups: [Group<G>; N] = std::array::from_fn(|i| {
                let at = (free[i] * super::inverse(d)).clamp(-top, top - 1.0).round();
                let mut best = none;
                for scale in [at, (at - 1.0).max(-top), (at + 1.0).min(top - 1.0)] {
                    let (levels, error) = wanted[i].levels::<L>(d * scale);
                    if error < best.error {
                        best = Group { scale, levels, error };
                    }
                }
                best
            });
            let error: f32 = groups.iter().map(|group| group.error).sum();
            if error < best.0 {
                best = (error, d, groups);
            }
            if error >= before {
                break;
            }
            before = error;
            let (mut ax, mut aa) = (0.0_f64, 0.0_f64);
            for (wanted, group) in wanted.iter().zip(&groups) {
                for ((&x, &level), &weight) in wanted.values.iter().zip(&group.levels).zip(wanted.weights) {
                    let (a, weight) = (f64::from(group.scale * level), f64::from(weight));
                    ax += weight * (a * f64::from(x));
                    aa += weight * (a * a);
                }
            }
            let next = f16::from_f64(ax / aa).to_f32();
            if aa == 0.0 || !next.is_finite() {
                break;
            }
            d = next;
        }
    }
    (best.1, best.2)
}

/// Q6_K: sixteen groups with signed scales of eight bits.
pub(in crate::quant) fn q6_k(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let (d, found) = fitted_block::<Integers<32>, 16, 16>(values, weights, 128.0);
    block.fill(0);
    for (i, group) in found.iter().enumerate() {
        block[192 + i] = group.scale as i8 as u8;
        for (j, &level) in group.levels.iter().enumerate() {
            let (at, code) = (16 * i + j, (level + 32.0) as u8);
            block[at / 128 * 64 + at % 64] |= (code & 15) << (at / 64 % 2 * 4);
            block[128 + at / 128 * 32 + at % 32] |= code >> 4 << (at / 32 % 4 * 2);
        }
    }
    block[208..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
}

/// Q3_K: sixteen groups with scales of six bits, 32 added, in 12 bytes.
pub(in crate::quant) fn q3_k(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let (d, found) = fitted_block::<Integers<4>, 16, 16>(values, weights, 32.0);
    block.fill(0);
    for (i, group) in found.iter().enumerate() {
        let scale = (group.scale + 32.0) as u8;
        block[96 + i % 8] |= (scale & 15) << (i / 8 * 4);
        block[104 + i % 4] |= scale >> 4 << (i / 4 * 2);
        for (j, &level) in group.levels.iter().enumerate() {
            let (at, code) = (16 * i + j, (level + 4.0) as u8);
            block[32 + at / 128 * 32 + at % 32] |= (code & 3) << (at / 32 % 4 * 2);
            block[at % 32] |= code >> 2 << (at / 32);
        }
    }
    block[108..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
}

/// IQ4_XS: eight groups with scales of six bits, 32 added: the high two bits of each in two bytes, the low four in four.
pub(in crate::quant) fn iq4_xs(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let (d, found) = fitted_block::<Table, 32, 8>(values, weights, 32.0);
    block.fill(0);
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (i, group) in found.iter().enumerate() {
        let scale = (group.scale + 32.0) as u8;
        block[2 + i / 4] |= scale >> 4 << (i % 4 * 2);
        block[4 + i / 2] |= (scale & 15) << (i % 2 * 4);
        super::put_nibbles(&group.levels.map(|level| code_of(level) as u8), &mut block[8 + 16 * i..][..16]);
    }
}

/// A scale in `f16`, and the levels of 32 values.
fn one_group<L: Levels>(values: &[f32], weights: Option<&[f32]>) -> (f32, [f32; 32]) {
    let (values, weights) = (values.as_chunks::<32>().0, weights.unwrap_or(&super::ONES).as_chunks::<32>().0);
    let (Some(values), Some(weights)) = (values.first(), weights.first()) else { return (0.0, [0.0; 32]) };
    let wanted = Wanted { values, weights };
    // What fits without them may be nearer once it is in f16.
    let ways = [wanted, Wanted { values, weights: &[1.0; 32] }].map(|way| {
        let d = narrow(way.free::<L>());
        let (levels, error) = wanted.levels::<L>(d);
        (error, d, levels)
    });
    let (_, d, levels) = if ways[1].0 < ways[0].0 { ways[1] } else { ways[0] };
    (d, levels)
}

/// IQ4_NL: a scale in `f16`.
pub(in crate::quant) fn iq4_nl(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let (d, levels) = one_group::<Table>(values, weights);
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    super::put_nibbles(&levels.map(|level| code_of(level) as u8), &mut block[2..]);
}

/// The scale and the codes of Q4_0, where columns have weights.
pub(super) fn four_bits(values: &[f32], weights: &[f32]) -> (f32, [u8; 32]) {
    let (d, levels) = one_group::<Integers<8>>(values, Some(weights));
    (d, levels.map(|level| (level + 8.0) as u8))
}

/// The scale and the codes of Q5_0, where columns have weights.
pub(super) fn five_bits(values: &[f32], weights: &[f32]) -> (f32, [u8; 32]) {
    let (d, levels) = one_group::<Integers<16>>(values, Some(weights));
    (d, levels.map(|level| (level + 16.0) as u8))
}

const _: () = assert!(BLOCK == 256);
