//! Filters and the draw.

use super::constraint::Mask;
use super::options::SamplingOptions;
use super::{penalties, philox};
use crate::alloc;
use crate::error::{Error, Result};

/// What memory is taken for.
const WHAT: &str = "candidates for a token";

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token chosen.
    pub token: u32,
    /// How likely the model found it; none where [`SamplingOptions::logprobs`] does not ask.
    pub logprobs: Option<Logprobs>,
}

/// Natural log-probabilities under the model's own distribution: log-softmax of the logits as given, before constraints,
/// biases, penalties, filters and temperature. So a chosen token may be less likely than all of `top`.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// That of the chosen token.
    pub token: f32,
    /// The most likely tokens, the chosen one among them or not, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// What is known where a token is to be chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct DrawPlace<'a> {
    /// All tokens so far, the prompt's first. Their number is the position that keys the draw.
    pub tokens: &'a [u32],
    /// How many of them are the prompt's.
    pub prompt: usize,
    /// The tokens that a constraint allows.
    pub mask: Option<&'a Mask>,
    /// Tokens that may not come yet.
    pub banned: &'a [u32],
    /// Tokens that never come.
    pub suppressed: &'a [u32],
}

/// Draws tokens from logits. Equal inputs give equal tokens, bit for bit: sums are taken in f64 in a fixed order, and
/// the random number is a function of (seed, sequence, position) alone.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    vocab: usize,
    /// The logits after biases and penalties. `[V]`
    adjusted: Vec<f32>,
    candidates: Vec<(u32, f32)>,
}

/// Most likely first, the lowest index first among equals.
fn by_rank(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

impl Sampler {
    /// A sampler for logits of `vocab` elements.
    ///
    /// # Errors
    /// As [`SamplingOptions::validate`].
    pub fn new(options: SamplingOptions, vocab: usize) -> Result<Self> {
        options.validate(vocab)?;
        Ok(Self { options, vocab, adjusted: Vec::new(), candidates: Vec::new() })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Chooses the token at `place` from `logits` (`[V]`; −∞ masks a token).
    ///
    /// # Errors
    /// [`Error::Sampling`] where a logit is NaN or +∞, or no token is left to choose.
    pub fn sample(&mut self, logits: &[f32], place: DrawPlace<'_>) -> Result<Sampled> {
        if logits.len() != self.vocab {
            let got = logits.len();
            return Err(Error::Sampling(format!("{got} logits, expected {}", self.vocab)));
        }
        if let Some(i) = unfit(logits) {
            return Err(Error::Sampling(format!("the logit of token {i} is {}", logits[i])));
        }
        let position = place.tokens.len() as u64;
        let free = place.mask.is_none() && place.banned.is_empty() && place.suppressed.is_empty();
        let plain = free && !penalties::active(&self.options);
        let token = if plain {
            self.choose(logits, position)?
        } else {
            self.adjusted.clear();
            alloc::reserve(&mut self.adjusted, logits.len(), WHAT)?;
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjusted.extend_from_slice(logits);
            if let Some(mask) = place.mask {
                mask.apply(&mut adjusted);
            }
            for &token in place.banned.iter().chain(place.suppressed) {
                if let Some(l) = adjusted.get_mut(token as usize) {
                    *l = f32::NEG_INFINITY;
                }
            }
            let applied = penalties::apply(&self.options, &mut adjusted, place.tokens, place.prompt);
            let token = applied.and_then(|()| self.choose(&adjusted, position));
            self.adjusted = adjusted;
            token?
        };
        let logprobs = self.options.logprobs.map(|top| self.logprobs(logits, token, top)).transpose()?;
        Ok(Sampled { token, logprobs })
    }

    fn logprobs(&mut self, logits: &[f32], token: u32, top: usize) -> Result<Logprobs> {
        let (max, sum) = softmax_sum(logits.iter().copied());
        let log_total = f64::from(max) + sum.ln();
        let logprob = |t: u32| (f64::from(logits[t as usize]) - log_total) as f32;
        Ok(Logprobs { token: logprob(token), top: self.top(logits, top, logprob)? })
    }

    fn top(&mut self, logits: &[f32], n: usize, logprob: impl Fn(u32) -> f32) -> Result<Vec<(u32, f32)>> {
        let n = n.min(logits.len());
        if n == 0 {
            return Ok(Vec::new());
        }
        let all = &mut self.candidates;
        all.clear();
        alloc::reserve(all, logits.len(), WHAT)?;
        all.extend((0u32..).zip(logits.iter().copied()));
        if n < all.len() {
            all.select_nth_unstable_by(n - 1, by_rank);
            all.truncate(n);
        }
        all.sort_unstable_by(by_rank);
        Ok(all.iter().filter(|c| c.1 > f32::NEG_INFINITY).map(|c| (c.0, logprob(c.0))).collect())
    }

    fn choose(&mut self, logits: &[f32], position: u64) -> Result<u32> {
        let Some((best, max)) = largest(logits) else {
            return Err(Error::Sampling("all tokens are masked".into()));
        };
        let o = &self.options;
        if o.temperature == 0.0 {
            return Ok(best);
        }
        let kept = &mut self.candidates;
        kept.clear();
        alloc::reserve(kept, logits.len(), WHAT)?;
        kept.extend((0u32..).zip(logits.iter().copied()).filter(|c| c.1 > f32::NEG_INFINITY));
        if o.top_k > 0 && o.top_k < kept.len() {
            kept.select_nth_unstable_by(o.top_k - 1, by_rank);
            kept.truncate(o.top_k);
            kept.sort_unstable_by(by_rank);
        }
        if o.top_p < 1.0 {
            top_p(kept, o.top_p);
        }
        if o.min_p > 0.0 {
            let floor = f64::from(max) + f64::from(o.min_p).ln();
            kept.retain(|c| f64::from(c.1) >= floor);
        }
        // The difference is taken in f64: dividing f32 logits by a tiny temperature could overflow.
        let temperature = f64::from(o.temperature);
        let weight = |l: f32| ((f64::from(l) - f64::from(max)) / temperature).exp();
        let total: f64 = kept.iter().map(|c| weight(c.1)).sum();
        let target = philox::uniform(o.seed, o.sequence, position) * total;
        let mut sum = 0.0;
        let mut last = best;
        for &(token, l) in kept.iter() {
            let w = weight(l);
            if w > 0.0 {
                sum += w;
                last = token;
                if sum > target {
                    break;
                }
            }
        }
        Ok(last)
    }
}

/// Logits that are looked at together: as many as a compiler makes a few vectors of.
const BLOCK: usize = 64;

/// The first logit that is NaN or +∞.
fn unfit(logits: &[f32]) -> Option<usize> {
    let unfit = |l: &f32| l.is_nan() || *l == f32::INFINITY;
    // Without a branch for each, which would keep vectors from being used.
    let block = logits.chunks(BLOCK).position(|block| block.iter().fold(false, |any, l| any | unfit(l)))?;
    logits[block * BLOCK..].iter().position(unfit).map(|i| block * BLOCK + i)
}

/// The first of the largest logits, none of which is NaN; none where all are −∞.
fn largest(logits: &[f32]) -> Option<(u32, f32)> {
    let (mut best, mut at) = (f32::NEG_INFINITY, None);
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        let mut lanes = [f32::NEG_INFINITY; BLOCK];
        lanes[..block.len()].copy_from_slice(block);
        let mut width = BLOCK / 2;
        while width > 0 {
            for lane in 0..width {
                let other = lanes[lane + width];
                lanes[lane] = if other > lanes[lane] { other } else { lanes[lane] };
            }
            width /= 2;
        }
        if lanes[0] > best {
            (best, at) = (lanes[0], Some(i * BLOCK));
        }
    }
    let at = at?;
    let first = logits[at..].iter().position(|l| *l == best)?;
    Some(((at + first) as u32, best))
}

/// The maximum, and Σ exp(l − max) in the order given.
fn softmax_sum(logits: impl Iterator<Item = f32> + Clone) -> (f32, f64) {
    let max = logits.clone().fold(f32::NEG_INFINITY, f32::max);
    (max, logits.map(|l| (f64::from(l) - f64::from(max)).exp()).sum())
}

/// Keeps the smallest prefix, by rank, whose probability reaches `p`. Ranks only as many candidates as it needs:
/// 256 at first, eight times more each time that they do not reach `p`.
fn top_p(kept: &mut Vec<(u32, f32)>, p: f32) {
    let (max, total) = softmax_sum(kept.iter().map(|c| c.1));
    let target = f64::from(p) * total;
    let mut ranked = 0;
    let mut sum = 0.0;
    let mut n = 256;
    while ranked < kept.len() {
        let end = n.min(kept.len());
        if end < kept.len() {
            kept[ranked..].select_nth_unstable_by(end - ranked - 1, by_rank);
        }
        kept[ranked..end].sort_unstable_by(by_rank);
        while ranked < end {
            sum += (f64::from(kept[ranked].1) - f64::from(max)).exp();
            ranked += 1;
            if sum >= target {
                kept.truncate(ranked);
                return;
            }
        }
        n *= 8;
    }
}
