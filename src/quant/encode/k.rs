//! Quantizers of the K-quants, whose blocks of 256 have scales that are quantized themselves. ggml says how blocks are read,
//! not how they are chosen; here the square error is made small: the codes of a group and its scale in turn (the scale that
//! fits the codes best is a linear regression, the codes that fit a scale best are the nearest), from several starts; then
//! the scales' own codes among their neighbours, and what those are multiplied with, by regression again.

use half::f16;

use super::ROUND;

/// Elements of a block.
const BLOCK: usize = 256;
/// Rounds of choosing a block's two factors anew: later ones change nothing that can be measured.
const ROUNDS: usize = 3;

/// Codes that the largest scale of a block has at first: the others fall on other codes with each.
const STARTS: [f32; 3] = [63.0, 61.0, 59.0];

/// The nearest integer of a value of magnitude below 2^22.
fn nearest(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

/// Elements of a group of Q4_K and Q5_K, and such groups of a block.
const GROUP: usize = 32;
const GROUPS: usize = BLOCK / GROUP;

/// What a group of Q4_K or Q5_K becomes: `w = d · scale · code - dmin · min`.
#[derive(Clone, Copy)]
struct Group {
    scale: f32,
    min: f32,
    codes: [f32; GROUP],
    error: f32,
}

/// The codes nearest to `values` for a step and what is taken off, and their square error.
fn codes_of(values: &[f32; GROUP], most: f32, step: f32, min: f32) -> ([f32; GROUP], f32) {
    let inverse = super::inverse(step);
    let (mut codes, mut error) = ([0.0; GROUP], 0.0);
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = nearest(((x + min) * inverse).max(0.0).min(most));
        let off = step * *code - min - x;
        error += off * off;
    }
    (codes, error)
}

/// The step and what is taken off, at least 0, that fit the codes best; none where all codes are equal.
fn regression(values: &[f32; GROUP], codes: &[f32; GROUP]) -> Option<(f32, f32)> {
    let (mut q, mut qq, mut x, mut qx) = (0.0, 0.0, 0.0, 0.0);
    for (&code, &value) in codes.iter().zip(values) {
        q += code;
        qq += code * code;
        x += value;
        qx += code * value;
    }
    let determinant = GROUP as f32 * qq - q * q;
    if determinant <= 0.0 {
        return None;
    }
    let step = (GROUP as f32 * qx - q * x) / determinant;
    let least = (qq * x - q * qx) / determinant;
    // A block has no way to add to its codes.
    let (step, min) = if least > 0.0 { (qx / qq, 0.0) } else { (step, -least) };
    (step > 0.0).then_some((step, min))
}

/// A good step and what is taken off, as real numbers.
fn free(values: &[f32; GROUP], most: f32) -> (f32, f32) {
    let least = values.iter().copied().fold(0.0, f32::min);
    let range = values.iter().copied().fold(f32::NEG_INFINITY, f32::max) - least;
    if range <= 0.0 {
        return (0.0, -least);
    }
    let mut best = (f32::INFINITY, range / most, -least);
    // Steps that leave the ends out, and such as reach over them.
    for start in -5..=5 {
        let (mut step, mut min) = (range / (most + 0.2 * start as f32), -least);
        for _ in 0..2 {
            let Some(fit) = regression(values, &codes_of(values, most, step, min).0) else { break };
            (step, min) = fit;
            let (_, error) = codes_of(values, most, step, min);
            if error < best.0 {
                best = (error, step, min);
            }
        }
    }
    (best.1, best.2)
}

/// Q4_K and Q5_K: `BITS` bits, eight groups with scales and mins of six bits.
pub(in crate::quant) fn with_min<const BITS: u32>(values: &[f32], block: &mut [u8]) {
    let most = ((1_u32 << BITS) - 1) as f32;
    let groups: [&[f32; GROUP]; GROUPS] = std::array::from_fn(|i| {
        let group = values[GROUP * i..][..GROUP].try_into();
        group.unwrap_or_else(|_| unreachable!("a block has {BLOCK} values"))
    });
    let wanted = groups.map(|values| free(values, most));
    let largest = |part: fn(&(f32, f32)) -> f32| wanted.iter().map(part).fold(0.0, f32::max);
    let (scale, min) = (largest(|of| of.0), largest(|of| of.1));
    let narrow = |x: f32| f16::from_f32(x).to_f32();
    let mut best: Option<(f32, f32, f32, [Group; GROUPS])> = None;
    for most_scale in STARTS {
        let (mut d, mut dmin) = (narrow(scale / most_scale), narrow(min / 63.0));
        let mut before = f32::INFINITY;
        for _ in 0..ROUNDS {
            let found: [Group; GROUPS] =
                std::array::from_fn(|i| fitted(groups[i], most, (d, dmin), wanted[i]));
            let error: f32 = found.iter().map(|group| group.error).sum();
            if best.as_ref().is_none_or(|best| error < best.0) {
                best = Some((error, d, dmin, found));
            }
            if error >= before {
                break;
            }
            before = error;
            (d, dmin) = factors(&groups, &found, (d, dmin));
        }
    }
    let Some((_, d, dmin, found)) = best else { return };
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

/// The codes of a group's scale and min near those that are wanted, and its codes, with the least error.
fn fitted(values: &[f32; GROUP], most: f32, (d, dmin): (f32, f32), wanted: (f32, f32)) -> Group {
    let near = |wanted: f32, of: f32| {
        let at = (wanted * super::inverse(of)).min(63.0).round();
        [at, (at - 1.0).max(0.0), (at + 1.0).min(63.0)]
    };
    let mut best = Group { scale: 0.0, min: 0.0, codes: [0.0; GROUP], error: f32::INFINITY };
    for scale in near(wanted.0, d) {
        for min in near(wanted.1, dmin) {
            let (codes, error) = codes_of(values, most, d * scale, dmin * min);
            if error < best.error {
                best = Group { scale, min, codes, error };
            }
        }
    }
    best
}

/// The two factors of a block that fit its groups' codes best, in `f16`.
fn factors(groups: &[&[f32; GROUP]; GROUPS], found: &[Group; GROUPS], before: (f32, f32)) -> (f32, f32) {
    // x ≈ d · a - dmin · b
    let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    for (values, group) in groups.iter().zip(found) {
        for (&x, &code) in values.iter().zip(&group.codes) {
            let (a, b, x) = (f64::from(group.scale * code), f64::from(group.min), f64::from(x));
            aa += a * a;
            ab += a * b;
            bb += b * b;
            ax += a * x;
            bx += b * x;
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

/// Elements of a group of Q6_K, and such groups of a block.
const SMALL: usize = 16;
const SMALLS: usize = BLOCK / SMALL;

/// What a group of Q6_K becomes: `w = d · scale · (code - 32)`.
#[derive(Clone, Copy)]
struct Signed {
    scale: f32,
    codes: [f32; SMALL],
    error: f32,
}

fn signed(values: &[f32; SMALL], step: f32) -> ([f32; SMALL], f32) {
    let inverse = super::inverse(step);
    let (mut codes, mut error) = ([0.0; SMALL], 0.0);
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = nearest((x * inverse).clamp(-32.0, 31.0));
        let off = step * *code - x;
        error += off * off;
    }
    (codes, error)
}

fn ratio(values: &[f32; SMALL], codes: &[f32; SMALL]) -> f32 {
    let (mut qx, mut qq) = (0.0, 0.0);
    for (&x, &code) in values.iter().zip(codes) {
        qx += code * x;
        qq += code * code;
    }
    if qq > 0.0 { qx / qq } else { 0.0 }
}

/// A good step, as a real number; its sign lets the value of the largest magnitude have the code that is one further out.
fn free_step(values: &[f32; SMALL]) -> f32 {
    let edge = values.iter().fold(0.0_f32, |edge, &x| if x.abs() > edge.abs() { x } else { edge });
    let mut best = (f32::INFINITY, 0.0);
    for start in -10..=10 {
        let mut step = -edge / (32.0 + 0.1 * start as f32);
        for _ in 0..2 {
            step = ratio(values, &signed(values, step).0);
            let (_, error) = signed(values, step);
            if error < best.0 {
                best = (error, step);
            }
        }
    }
    best.1
}

/// Q6_K: sixteen groups with signed scales of eight bits.
pub(in crate::quant) fn q6_k(values: &[f32], block: &mut [u8]) {
    let groups: [&[f32; SMALL]; SMALLS] = std::array::from_fn(|i| {
        let group = values[SMALL * i..][..SMALL].try_into();
        group.unwrap_or_else(|_| unreachable!("a block has {BLOCK} values"))
    });
    let wanted = groups.map(free_step);
    let largest = wanted.iter().fold(0.0_f32, |edge, &x| if x.abs() > edge.abs() { x } else { edge });
    let mut d = f16::from_f32(largest / -128.0).to_f32();
    let mut best: Option<(f32, f32, [Signed; SMALLS])> = None;
    for _ in 0..ROUNDS {
        let found: [Signed; SMALLS] = std::array::from_fn(|i| {
            let at = (wanted[i] * super::inverse(d)).clamp(-128.0, 127.0).round();
            let mut best = Signed { scale: 0.0, codes: [0.0; SMALL], error: f32::INFINITY };
            for scale in [at, (at - 1.0).max(-128.0), (at + 1.0).min(127.0)] {
                let (codes, error) = signed(groups[i], d * scale);
                if error < best.error {
                    best = Signed { scale, codes, error };
                }
            }
            best
        });
        let error: f32 = found.iter().map(|group| group.error).sum();
        if best.as_ref().is_some_and(|best| best.0 <= error) {
            break;
        }
        best = Some((error, d, found));
        let (mut ax, mut aa) = (0.0_f64, 0.0_f64);
        for (values, group) in groups.iter().zip(&found) {
            for (&x, &code) in values.iter().zip(&group.codes) {
                let a = f64::from(group.scale * code);
                ax += a * f64::from(x);
                aa += a * a;
            }
        }
        let next = f16::from_f64(ax / aa).to_f32();
        if aa == 0.0 || !next.is_finite() {
            break;
        }
        d = next;
    }
    let Some((_, d, found)) = best else { return };
    block.fill(0);
    for (i, group) in found.iter().enumerate() {
        block[192 + i] = group.scale as i8 as u8;
        for (j, &code) in group.codes.iter().enumerate() {
            let (at, code) = (SMALL * i + j, (code + 32.0) as u8);
            block[at / 128 * 64 + at % 64] |= (code & 15) << (at / 64 % 2 * 4);
            block[128 + at / 128 * 32 + at % 32] |= code >> 4 << (at / 32 % 4 * 2);
        }
    }
    block[208..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
}
