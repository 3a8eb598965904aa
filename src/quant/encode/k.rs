//! Quantizers of the K-quants with mins, whose blocks of 256 have scales that are quantized themselves, and of blocks of 32 with a min.
//! ggml says how blocks are read, not how they are chosen; here the square error, weighed by column where it is known what columns are
//! worth, is made small: the codes of a group and its scale in turn (the scale that fits the codes best is a linear regression, the
//! codes that fit a scale best are the nearest), from several starts; then the scales' own codes among their neighbours, and what
//! those are multiplied with, by regression again.

use half::f16;

use super::{BLOCK, ROUNDS, narrow, nearest, sum};

/// Codes by which the largest scale of a block falls short of the largest there is, of 63: the others fall on other codes with each.
const STARTS: [f32; 3] = [0.0, 2.0, 4.0];

/// Elements of a group of Q4_K and Q5_K, and such groups of a block.
const GROUP: usize = 32;
const GROUPS: usize = BLOCK / GROUP;

/// The values of a group, and what their squared errors are multiplied with.
#[derive(Clone, Copy)]
struct Wanted<'a, const G: usize> {
    values: &'a [f32; G],
    weights: &'a [f32; G],
}

/// What a group becomes: `w = d · scale · code - dmin · min`.
#[derive(Clone, Copy)]
struct Group<const G: usize> {
    scale: f32,
    min: f32,
    codes: [f32; G],
    error: f32,
}

/// What a block becomes.
struct Block<const G: usize, const N: usize> {
    d: f32,
    dmin: f32,
    groups: [Group<G>; N],
}

/// The codes nearest to the values for a step and what is taken off, and their error.
fn codes_of<const G: usize>(wanted: Wanted<'_, G>, most: f32, step: f32, min: f32) -> ([f32; G], f32) {
    let inverse = super::inverse(step);
    let (mut codes, mut terms) = ([0.0; G], [0.0; G]);
    for (code, &x) in codes.iter_mut().zip(wanted.values) {
        *code = nearest(((x + min) * inverse).max(0.0).min(most));
    }
    for (((term, &code), &x), &weight) in terms.iter_mut().zip(&codes).zip(wanted.values).zip(wanted.weights)
    {
        let off = step * code - min - x;
        *term = weight * (off * off);
    }
    (codes, sum(terms))
}

/// The step and what is taken off, at least 0 unless it is `signed`, that fit the codes best; none where all codes are equal.
fn regression<const G: usize>(wanted: Wanted<'_, G>, codes: &[f32; G], signed: bool) -> Option<(f32, f32)> {
    // Where one weight is most of the sum, the determinant is a small difference of large numbers.
    let mut terms = [[0.0_f64; G]; 5];
    let [one, q, qq, x, qx] = &mut terms;
    for (i, ((&code, &value), &weight)) in codes.iter().zip(wanted.values).zip(wanted.weights).enumerate() {
        let [code, value, weight] = [code, value, weight].map(f64::from);
        let weighed = weight * code;
        (one[i], q[i], qq[i], x[i], qx[i]) =
            (weight, weighed, weighed * code, weight * value, weighed * value);
    }
    let [one, q, qq, x, qx] = terms.map(sum);
    let determinant = one * qq - q * q;
    if determinant <= 1e-12 * (one * qq) {
        return None;
    }
    let step = (one * qx - q * x) / determinant;
    let least = (qq * x - q * qx) / determinant;
    // A block of groups has no way to add to its codes.
    let (step, min) = if least > 0.0 && !signed { (qx / qq, 0.0) } else { (step, -least) };
    (step > 0.0).then_some((step as f32, min as f32))
}

/// A good step and what is taken off, as real numbers.
fn free<const G: usize>(wanted: Wanted<'_, G>, most: f32, signed: bool) -> (f32, f32) {
    let first = if signed { f32::INFINITY } else { 0.0 };
    let least = wanted.values.iter().copied().fold(first, f32::min);
    let range = wanted.values.iter().copied().fold(f32::NEG_INFINITY, f32::max) - least;
    if range <= 0.0 {
        return (0.0, -least);
    }
    let mut best = (f32::INFINITY, range / most, -least);
    // Where weights differ, the least value may count for little.
    let uneven = wanted.weights.iter().any(|&weight| weight != wanted.weights[0]);
    let (lows, spread, rounds) = match (uneven, signed) {
        (true, true) => (&[0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4][..], 0.4, 5),
        (true, false) => (&[0.0, 0.12, 0.25][..], 0.4, 3),
        (false, _) => (&[0.0][..], 0.2, 2),
    };
    let starts = lows.iter().flat_map(|low| (-5..=5).map(move |start| (low * range, spread * start as f32)));
    // Steps that leave the ends out, and such as reach over them.
    for (low, start) in starts {
        let (step, min) = ((range - low) / (most + start), -least - low);
        if min < 0.0 && !signed {
            continue;
        }
        let (mut codes, error) = codes_of(wanted, most, step, min);
        if uneven && error < best.0 {
            best = (error, step, min);
        }
        for _ in 0..rounds {
            let Some((step, min)) = regression(wanted, &codes, signed) else { break };
            let error;
            (codes, error) = codes_of(wanted, most, step, min);
            if error < best.0 {
                best = (error, step, min);
            }
        }
    }
    (best.1, best.2)
}

/// A block of `N` groups of codes up to `most`, with scales and mins up to `top`; none of values that are no numbers.
fn fitted_block<const G: usize, const N: usize>(
    values: &[f32],
    weights: &[f32],
    most: f32,
    top: f32,
) -> Option<Block<G, N>> {
    let (values, weights) = (values.as_chunks::<G>().0, weights.as_chunks::<G>().0);
    let wanted: [Wanted<'_, G>; N] =
        std::array::from_fn(|i| Wanted { values: &values[i], weights: &weights[i] });
    let weighed = wanted.map(|wanted| free(wanted, most, false));
    // Where weights differ, what fits without them may share a block's factors better.
    let plain = wanted.map(|Wanted { values, .. }| free(Wanted { values, weights: &[1.0; G] }, most, false));
    let ways = if weighed == plain { &[weighed][..] } else { &[weighed, plain] };
    let mut best: Option<(f32, Block<G, N>)> = None;
    for (free, start) in ways.iter().flat_map(|free| STARTS.map(|start| (free, start))) {
        let largest = |part: fn(&(f32, f32)) -> f32| free.iter().map(part).fold(0.0, f32::max);
        let (scale, min) = (largest(|of| of.0), largest(|of| of.1));
        let (mut d, mut dmin) = (narrow(scale / (top - start * (top / 63.0))), narrow(min / top));
        let mut before = f32::INFINITY;
        for _ in 0..ROUNDS {
            let groups: [Group<G>; N] =
                std::array::from_fn(|i| fitted(wanted[i], most, top, (d, dmin), free[i]));
            let error: f32 = groups.iter().map(|group| group.error).sum();
            if best.as_ref().is_none_or(|best| error < best.0) {
                best = Some((error, Block { d, dmin, groups }));
            }
            if error >= before {
                break;
            }
            before = error;
            (d, dmin) = factors(&wanted, &groups, (d, dmin));
        }
    }
    Some(best?.1)
}

/// Q4_K and Q5_K: `BITS` bits, eight groups with scales and mins of six bits.
pub(in crate::quant) fn with_min<const BITS: u32>(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let most = ((1_u32 << BITS) - 1) as f32;
    let weights = weights.unwrap_or(&super::ONES);
    let Some(Block { d, dmin, groups: found }) = fitted_block::<GROUP, GROUPS>(values, weights, most, 63.0)
    else {
        return;
    };
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[2..4].copy_from_slice(&f16::from_f32(dmin).to_le_bytes());
    let (scales, mins) = (found.map(|of| of.scale as u8), found.map(|of| of.min as u8));
    for j in 0..4 {
        block[4 + j] = scales[j] | scales[j + 4] >> 4 << 6;
        block[8 + j] = mins[j] | mins[j + 4] >> 4 << 6;
        block[12 + j] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4;
    }
    let (high, low) = block[16..].split_at_mut(if BITS == 5 { GROUP } else { 0 });
    high.fill(0);
    for (i, group) in found.iter().enumerate() {
        for (j, &code) in group.codes.iter().enumerate() {
            let (code, byte) = (code as u8, &mut low[i / 2 * GROUP + j]);
            *byte = if i % 2 == 0 { code & 15 } else { *byte | (code & 15) << 4 };
            if let Some(byte) = high.get_mut(j) {
                *byte |= code >> 4 << i;
            }
        }
    }
}

/// Q2_K: sixteen groups with scales and mins of four bits.
pub(in crate::quant) fn q2_k(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let weights = weights.unwrap_or(&super::ONES);
    let Some(Block { d, dmin, groups }) = fitted_block::<16, 16>(values, weights, 3.0, 15.0) else { return };
    block.fill(0);
    for (i, group) in groups.iter().enumerate() {
        block[i] = group.scale as u8 | (group.min as u8) << 4;
        for (j, &code) in group.codes.iter().enumerate() {
            let at = 16 * i + j;
            block[16 + at / 128 * 32 + at % 32] |= (code as u8) << (at / 32 % 4 * 2);
        }
    }
    block[80..82].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    block[82..].copy_from_slice(&f16::from_f32(dmin).to_le_bytes());
}

/// Q4_1 and Q5_1 where columns have weights: `d`, `m` and codes up to `most` of `w = q · d + m`.
pub(super) fn one_group(values: &[f32; 32], weights: &[f32; 32], most: f32) -> (f32, f32, [u8; 32]) {
    let wanted = Wanted { values, weights };
    // What fits without them may be nearer once it is in f16.
    let ways = [wanted, Wanted { values, weights: &[1.0; 32] }].map(|way| {
        let (step, min) = free(way, most, true);
        let (step, min) = (narrow(step), narrow(min));
        let (codes, error) = codes_of(wanted, most, step, min);
        (error, step, min, codes)
    });
    let (_, step, min, codes) = if ways[1].0 < ways[0].0 { ways[1] } else { ways[0] };
    (step, -min, codes.map(|code| code as u8))
}

/// Affine groups where columns have weights: scale and bias of `w = q · scale + bias` as `round` has them, with codes up to `most`, and
/// the error.
pub(super) fn affine_group<const G: usize>(
    values: &[f32; G],
    weights: &[f32; G],
    most: f32,
    round: impl Fn(f32) -> f32,
    codes: &mut [u8],
) -> (f32, f32, f32) {
    let wanted = Wanted { values, weights };
    let mut best = (f32::INFINITY, 0.0, 0.0, [0.0; G]);
    for way in [wanted, Wanted { values, weights: &[1.0; G] }] {
        let (step, min) = free(way, most, true);
        let (mut step, mut min) = (round(step), round(min));
        for _ in 0..ROUNDS {
            let (codes, error) = codes_of(wanted, most, step, min);
            if error < best.0 {
                best = (error, step, min, codes);
            }
            // What the rounded step leaves over, the bias can take.
            let Some((next, _)) = regression(wanted, &codes, true) else { break };
            step = round(next);
            let (mut off, mut one) = (0.0_f64, 0.0_f64);
            for ((&code, &x), &weight) in codes.iter().zip(values).zip(weights) {
                off += f64::from(weight) * f64::from(step * code - x);
                one += f64::from(weight);
            }
            min = round((off / one) as f32);
        }
    }
    let (error, step, min, found) = best;
    for (out, code) in codes.iter_mut().zip(found) {
        *out = code as u8;
    }
    (step, -min, error)
}

/// The codes of a group's scale and min near those that are wanted, and its codes, with the least error.
fn fitted<const G: usize>(
    group: Wanted<'_, G>,
    most: f32,
    top: f32,
    (d, dmin): (f32, f32),
    wanted: (f32, f32),
) -> Group<G> {
    let near = |wanted: f32, of: f32| {
        let at = (wanted * super::inverse(of)).min(top).round();
        [at, (at - 1.0).max(0.0), (at + 1.0).min(top)]
    };
    let mut best = Group { scale: 0.0, min: 0.0, codes: [0.0; G], error: f32::INFINITY };
    for scale in near(wanted.0, d) {
        for min in near(wanted.1, dmin) {
            let (codes, error) = codes_of(group, most, d * scale, dmin * min);
            if error < best.error {
                best = Group { scale, min, codes, error };
            }
        }
    }
    best
}

/// The two factors of a block that fit its groups' codes best, in `f16`.
fn factors<const G: usize>(groups: &[Wanted<'_, G>], found: &[Group<G>], before: (f32, f32)) -> (f32, f32) {
    // x ≈ d · a - dmin · b
    let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    for (wanted, group) in groups.iter().zip(found) {
        for ((&x, &code), &weight) in wanted.values.iter().zip(&group.codes).zip(wanted.weights) {
            let (a, b, x) = (f64::from(group.scale * code), f64::from(group.min), f64::from(x));
            let weight = f64::from(weight);
            aa += weight * (a * a);
            ab += weight * (a * b);
            bb += weight * (b * b);
            ax += weight * (a * x);
            bx += weight * (b * x);
        }
    }
    let determinant = aa * bb - ab * ab;
    let (d, dmin) = if determinant > 1e-9 * aa * bb {
        ((ax * bb - ab * bx) / determinant, (ax * ab - aa * bx) / determinant)
    } else if aa > 0.0 {
        ((ax + f64::from(before.1) * ab) / aa, f64::from(before.1))
    } else {
        return before;
    };
    let narrow = |x: f64| f16::from_f64(x).to_f32();
    let fits = d > 0.0 && dmin >= 0.0 && narrow(d).is_finite() && narrow(dmin).is_finite();
    if fits { (narrow(d), narrow(dmin)) } else { before }
}
