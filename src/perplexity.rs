//! How well a model predicts a text, and how far from it another is: what a quantization, a type of cache or a backend costs.
//!
//! A text longer than the context is cut into windows, of which some tokens are scored and those before them are what is known. How
//! it is cut decides the number, so [`Windows`] is a part of it: two numbers are of one kind where their windows are.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::sample::Distribution;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// Of `window` tokens, each `stride` behind the one before: every token that has one before it in its window is scored once,
    /// in the first window that it is in. As transformers' documentation has it.
    Sliding {
        /// Tokens of a window, at least two.
        window: usize,
        /// Tokens between the beginnings of two, from one to `window`.
        stride: usize,
    },
    /// One behind the other, of `window` tokens, whose first is what texts begin with where the model has that. Scored is what follows the
    /// middle of each; what is left at the end is not. As llama.cpp's `llama-perplexity` has it.
    Halves {
        /// Tokens of a window, at least four.
        window: usize,
    },
}

/// A part of a text, and which of its tokens are scored; both count from the text's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// What is read.
    pub tokens: Range<usize>,
    /// What is scored of it: never its first token.
    pub scored: Range<usize>,
}

impl Windows {
    /// The windows of a text of `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Option`] for windows and strides that cannot be; a text that is too short for one.
    pub fn cut(self, tokens: usize) -> Result<Vec<Window>> {
        let option = |option, got: usize, expected| Error::Option { option, got: got.to_string(), expected };
        let short = |least: usize| {
            Err(Error::Prompt(format!("the text has {tokens} tokens, expected at least {least} to score")))
        };
        match self {
            Self::Sliding { window, .. } if window < 2 => {
                Err(option("window", window, "at least two tokens"))
            }
            Self::Sliding { window, stride } if stride == 0 || stride > window => {
                Err(option("stride", stride, "from one to the tokens of a window"))
            }
            Self::Halves { window } if window < 4 => Err(option("window", window, "at least four tokens")),
            Self::Sliding { .. } if tokens < 2 => short(2),
            Self::Halves { window } if tokens < window => short(window),
            Self::Sliding { window, stride } => {
                let (mut windows, mut scored) = (Vec::new(), 1);
                for start in (0..tokens).step_by(stride) {
                    let end = (start + window).min(tokens);
                    let of_window = scored.max(start + 1)..end;
                    if !of_window.is_empty() {
                        windows.push(Window { tokens: start..end, scored: of_window });
                    }
                    scored = end;
                    if end == tokens {
                        break;
                    }
                }
                Ok(windows)
            }
            Self::Halves { window } => Ok((0..tokens / window)
                .map(|i| i * window..(i + 1) * window)
                .map(|tokens| Window { scored: tokens.start + window / 2 + 1..tokens.end, tokens })
                .collect()),
        }
    }

    /// Tokens of a window.
    pub fn window(self) -> usize {
        match self {
            Self::Sliding { window, .. } | Self::Halves { window } => window,
        }
    }
}

/// What a token of a text came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Where it is in the text.
    pub position: usize,
    /// Its id.
    pub token: u32,
    /// `-ln p`, of the model and of the one that it is compared with.
    pub surprise: [f64; 2],
    /// `KL(model ‖ other)`, in nats; 0 without another.
    pub divergence: f64,
    /// Whether both find the same token the likeliest.
    pub agree: bool,
}

/// A mean, and its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Its standard error: the deviation over the root of the count; 0 of fewer than two values.
    pub error: f64,
}

impl Mean {
    /// Of `values`.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count() as f64;
        let value = values.clone().sum::<f64>() / count.max(1.0);
        let squares: f64 = values.map(|x| (x - value) * (x - value)).sum();
        let error = if count > 1.0 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 };
        Self { value, error }
    }

    /// Of what has this mean as its logarithm, with an error of first order.
    pub fn exp(self) -> Self {
        let value = self.value.exp();
        Self { value, error: value * self.error }
    }
}

/// Scores the windows of `tokens` by `model`, and beside it by `other`, where there is one, of the same vocabulary. `begin` is the token that
/// takes the place of each window's first. What is scored is handed to `take`, window by window.
///
/// # Errors
/// Those of [`Windows::cut`] and [`Model::logits_of`]; another vocabulary.
pub fn score(
    model: &Model,
    other: Option<&Model>,
    tokens: &[u32],
    windows: Windows,
    begin: Option<u32>,
    mut take: impl FnMut(&[Scored]) -> Result<()>,
) -> Result<()> {
    let vocabulary = |model: &Model| model.info().config.vocab_size;
    if let Some(other) = other
        && vocabulary(other) != vocabulary(model)
    {
        let (a, b) = (vocabulary(model), vocabulary(other));
        let what =
            format!("the models have vocabularies of {a} and {b} tokens: nothing of them can be compared");
        return Err(Error::Prompt(what));
    }
    for window in windows.cut(tokens.len())? {
        let mut read = tokens[window.tokens.clone()].to_vec();
        if let (Some(begin), Some(first)) = (begin, read.first_mut()) {
            *first = begin;
        }
        let before =
            window.scored.start - 1 - window.tokens.start..window.scored.end - 1 - window.tokens.start;
        let mut of_other = other.map(|other| other.logits_rows(&read, before.clone())).transpose()?;
        let mut scored = Vec::with_capacity(window.scored.len());
        for (position, row) in window.scored.clone().zip(model.logits_rows(&read, before)?) {
            let (row, token) = (row?, tokens[position]);
            let distribution = Distribution::of(&row);
            let surprise = -distribution.log_p(token);
            let mut one = Scored { position, token, surprise: [surprise; 2], divergence: 0.0, agree: true };
            if let Some(row) = of_other.as_mut().and_then(Iterator::next).transpose()? {
                let other = Distribution::of(&row);
                one.surprise[1] = -other.log_p(token);
                one.divergence = distribution.divergence(&other);
                one.agree = distribution.likeliest() == other.likeliest();
            }
            scored.push(one);
        }
        take(&scored)?;
    }
    Ok(())
}

/// The value below which a `part` of `values` lie, which are sorted; between two it is between them.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let at = part.clamp(0.0, 1.0) * last as f64;
    let (low, share) = (at.floor() as usize, at.fract());
    let high = values[(low + 1).min(last)];
    if share == 0.0 { values[low] } else { values[low] + share * (high - values[low]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(windows: Windows, tokens: usize) -> Vec<(Range<usize>, Range<usize>)> {
        windows.cut(tokens).unwrap().into_iter().map(|window| (window.tokens, window.scored)).collect()
    }

    #[test]
    fn every_token_is_scored_once() {
        let sliding = |window, stride| Windows::Sliding { window, stride };
        assert_eq!(cut(sliding(8, 4), 5), [(0..5, 1..5)]);
        assert_eq!(cut(sliding(8, 4), 8), [(0..8, 1..8)]);
        assert_eq!(cut(sliding(8, 4), 13), [(0..8, 1..8), (4..12, 8..12), (8..13, 12..13)]);
        assert_eq!(cut(sliding(4, 4), 9), [(0..4, 1..4), (4..8, 5..8)]);
        for (window, stride) in [(2, 1), (7, 3), (16, 16), (16, 1)] {
            for tokens in 2..60 {
                let windows = sliding(window, stride).cut(tokens).unwrap();
                let scored: Vec<usize> = windows.iter().flat_map(|window| window.scored.clone()).collect();
                assert!(scored.is_sorted_by(|a, b| a < b), "{windows:?}");
                assert!(windows.iter().all(|Window { tokens, scored }| {
                    !scored.is_empty() && scored.start > tokens.start && scored.end <= tokens.end
                }));
                if stride < window {
                    assert_eq!(scored.len(), tokens - 1);
                }
            }
        }
        assert_eq!(cut(Windows::Halves { window: 8 }, 20), [(0..8, 5..8), (8..16, 13..16)]);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let said = |windows: Windows, tokens| windows.cut(tokens).unwrap_err().to_string();
        let stride = said(Windows::Sliding { window: 8, stride: 9 }, 20);
        assert!(stride.contains("stride") && stride.contains('9'), "{stride}");
        assert!(said(Windows::Sliding { window: 1, stride: 1 }, 20).contains("window"));
        assert!(said(Windows::Halves { window: 8 }, 7).contains("7 tokens, expected at least 8"));
        assert!(said(Windows::Sliding { window: 8, stride: 4 }, 1).contains("1 tokens, expected at least 2"));
    }

    #[test]
    fn means_and_quantiles_are_those_of_textbooks() {
        let mean = Mean::of([1.0, 2.0, 3.0, 4.0].into_iter());
        assert!(
            (mean.value - 2.5).abs() < 1e-12 && (mean.error - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12
        );
        assert_eq!(Mean::of([7.0].into_iter()), Mean { value: 7.0, error: 0.0 });
        let sorted = [0.0, 1.0, 2.0, 10.0];
        assert_eq!([0.0, 0.5, 1.0].map(|part| quantile(&sorted, part)), [0.0, 1.5, 10.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    /// The chain rule: the built-in model's surprise of a text is the sum of what it says of each token.
    #[test]
    fn a_text_in_one_window_has_the_models_own_probability() {
        let model = Model::builtin().unwrap();
        let tokens = model.tokenizer().unwrap().encode("Once upon a time there was a little girl.").unwrap();
        let logits = model.logits(&tokens).unwrap();
        let by_hand: f64 = (1..tokens.len())
            .map(|i| {
                let row = &logits[i - 1];
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                sum.ln() - f64::from(row[tokens[i] as usize])
            })
            .sum();
        let mut sum = 0.0;
        let windows = Windows::Sliding { window: 64, stride: 32 };
        let take = |scored: &[Scored]| {
            assert!(scored.iter().all(|one| one.divergence == 0.0 && one.agree));
            sum += scored.iter().map(|one| one.surprise[0]).sum::<f64>();
            Ok(())
        };
        score(&model, Some(&model), &tokens, windows, None, take).unwrap();
        assert!((sum - by_hand).abs() < 1e-9 * by_hand, "{sum} {by_hand}");
    }
}
