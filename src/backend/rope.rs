//! Rotary position embeddings: the frequencies of each scaling method, and the tables of cos and sin.
//!
//! Formulas and the order of roundings are those of transformers' `modeling_rope_utils.py`.

use std::f64::consts::PI;

use crate::config::{Rope, RopeScaling};

/// The frequencies of one sequence: fixed by the length of its prompt for as long as it lives.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Radians per position of each rotated pair, `[dims / 2]`.
    pub inv_freq: Vec<f32>,
    /// What cos and sin are multiplied by.
    pub attention_factor: f32,
}

impl Rope {
    /// The frequencies of a sequence whose prompt has `prompt_len` tokens, as in one pass over the prompt.
    ///
    /// Only the dynamic and longrope methods depend on `prompt_len`; both use their plain form up to `original`
    /// tokens. Cached keys were rotated with the frequencies of their sequence, so they stay as they are while it
    /// grows, and two sequences may share keys only where [`Rope::same_frequencies`] holds.
    pub fn frequencies(&self, prompt_len: usize) -> Frequencies {
        let plain = || self.periods(self.theta as f32).map(|period| 1.0 / period);
        let (inv_freq, attention_factor) = match &self.scaling {
            RopeScaling::None => (plain().collect(), 1.0),
            RopeScaling::Linear { factor } => {
                let factor = *factor as f32;
                (plain().map(|f| f / factor).collect(), 1.0)
            }
            RopeScaling::Dynamic { factor, original } if prompt_len > *original => {
                let base = self.dynamic_base(*factor, *original, prompt_len);
                (self.periods(base).map(|period| 1.0 / period).collect(), 1.0)
            }
            RopeScaling::Dynamic { .. } => (plain().collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let original = *original as f64;
                let of = |f| llama3(f, *factor, *low_freq_factor, *high_freq_factor, original);
                (plain().map(of).collect(), 1.0)
            }
            RopeScaling::Proportional { turning, factor } => {
                let factor = *factor as f32;
                let of = |(pair, f): (usize, f32)| if pair < *turning { f / factor } else { 0.0 };
                (plain().enumerate().map(of).collect(), 1.0)
            }
            RopeScaling::Factors { factors } => {
                (plain().zip(factors).map(|(f, factor)| f / factor).collect(), 1.0)
            }
            RopeScaling::Yarn { attention_factor, .. } => (self.yarn(), *attention_factor),
            RopeScaling::LongRope { short_factor, long_factor, original, attention_factor } => {
                let factors = if prompt_len > *original { long_factor } else { short_factor };
                let periods = self.periods(self.theta as f32);
                let inv_freq = periods.zip(factors).map(|(period, factor)| 1.0 / (factor * period)).collect();
                (inv_freq, *attention_factor)
            }
        };
        Frequencies { inv_freq, attention_factor }
    }

    /// Whether prompts of these two lengths get equal frequencies: the condition for sharing cached keys.
    pub fn same_frequencies(&self, a: usize, b: usize) -> bool {
        match &self.scaling {
            RopeScaling::Dynamic { original, .. } => a.max(*original) == b.max(*original),
            RopeScaling::LongRope { original, .. } => (a > *original) == (b > *original),
            _ => true,
        }
    }

    /// The tables of cos and sin for tokens at `positions`, each `[positions, dims / 2]`, row-major:
    /// `cos(position · inv_freq) · attention_factor`.
    ///
    /// A head's element `i` below `dims / 2` is rotated with element `i + dims / 2` (transformers' `rotate_half`);
    /// elements from `dims` on are not rotated. The angle is an `f32` product, as in transformers; its cos and sin are
    /// those of that angle, correctly rounded but for the last bit.
    pub fn tables(&self, frequencies: &Frequencies, positions: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let len = positions.len() * frequencies.inv_freq.len();
        let (mut cos, mut sin) = (Vec::with_capacity(len), Vec::with_capacity(len)); // [positions, dims / 2]
        self.add_to_tables(frequencies, positions.iter().copied(), &mut cos, &mut sin);
        (cos, sin)
    }

    /// Adds to such tables, which have room for it.
    pub(crate) fn add_to_tables(
        &self,
        frequencies: &Frequencies,
        positions: impl Iterator<Item = usize>,
        cos: &mut Vec<f32>,
        sin: &mut Vec<f32>,
    ) {
        let Frequencies { inv_freq, attention_factor } = frequencies;
        for position in positions {
            for &frequency in inv_freq {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32 * attention_factor);
                sin.push(s as f32 * attention_factor);
            }
        }
    }

    /// `base^(2i / dims)` for each pair, in `f32`.
    fn periods(&self, base: f32) -> impl Iterator<Item = f32> + use<> {
        let dims = self.dims;
        (0..dims / 2).map(move |i| pow(base, (2 * i) as f32 / dims as f32))
    }

    /// The base that dynamic NTK scaling uses for a prompt longer than `original`.
    fn dynamic_base(&self, factor: f64, original: usize, prompt_len: usize) -> f32 {
        let stretch = factor as f32 * prompt_len as f32 / original as f32 - (factor - 1.0) as f32;
        let exponent = self.dims as f64 / (self.dims as f64 - 2.0);
        self.theta as f32 * pow(stretch, exponent as f32)
    }

    /// YaRN: high frequencies stay, low ones are divided by `factor`, those between are blended.
    fn yarn(&self) -> Vec<f32> {
        let RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            return Vec::new();
        };
        let dims = self.dims as f64;
        let correction =
            |turns: f64| dims * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let (low, width) = (low as f32, (high - low) as f32);
        let periods = self.periods(self.theta as f32);
        periods
            .enumerate()
            .map(|(i, period)| {
                let ramp = ((i as f32 - low) / width).clamp(0.0, 1.0);
                let keep = 1.0 - ramp;
                1.0 / (factor as f32 * period) * (1.0 - keep) + 1.0 / period * keep
            })
            .collect()
    }
}

/// Llama 3.1's scaling of one frequency: by its wavelength against the original context.
fn llama3(frequency: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = (2.0 * PI) as f32 / frequency;
    if wavelength > (original / low) as f32 {
        return frequency / factor as f32;
    }
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
}

/// `f32` power, rounded once from `f64`.
fn pow(base: f32, exponent: f32) -> f32 {
    f64::from(base).powf(f64::from(exponent)) as f32
}

#[cfg(test)]
mod tests;
