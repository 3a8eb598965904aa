//! How tokens are chosen, as data.

use crate::error::{Error, Result};

/// How the next token is chosen from the logits.
///
/// Tokens that a constraint forbids are taken out first. The order is then llama.cpp's: biases, penalties, top-k, top-p,
/// min-p, then the temperature; top-p and min-p therefore look at the distribution before the temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// 0 takes the most likely token; otherwise logits are divided by it. 0 to 100.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all. At most 2^20.
    pub top_k: usize,
    /// Keeps the smallest set of most likely tokens whose probability reaches `top_p`; 1 keeps all. Above 0, to 1.
    pub top_p: f32,
    /// Keeps tokens with at least `min_p` times the probability of the most likely; 0 keeps all. 0 to 1.
    pub min_p: f32,
    /// Divides positive logits of tokens seen before, in the prompt or since, and multiplies negative ones; 1 is off. 0.1
    /// to 10.
    pub repeat_penalty: f32,
    /// Subtracted from the logit of each token generated before; 0 is off. −2 to 2.
    pub presence_penalty: f32,
    /// Subtracted once per time that a token was generated; 0 is off. −2 to 2.
    pub frequency_penalty: f32,
    /// How many of the last tokens `repeat_penalty` looks at; 0 is all of them. The others look at all that were generated,
    /// as in OpenAI's API. At most 2^20.
    pub penalty_window: usize,
    /// Added to the logits of these tokens. At most 1,024 different tokens, each −100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// The key of the draws.
    pub seed: u64,
    /// Which of several texts for one prompt and seed this is: each number has draws of its own.
    pub sequence: u64,
    /// Whether log-probabilities are reported, and of how many of the most likely tokens beside the chosen one. At most 20.
    pub logprobs: Option<usize>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            logit_bias: Vec::new(),
            seed: 0,
            sequence: 0,
            logprobs: None,
        }
    }
}

impl SamplingOptions {
    /// Whether the next token is the largest logit, whatever came before it: what a backend can choose by itself.
    pub fn is_plainly_greedy(&self) -> bool {
        self.temperature == 0.0
            && self.repeat_penalty == 1.0
            && self.presence_penalty == 0.0
            && self.frequency_penalty == 0.0
            && self.logit_bias.is_empty()
    }

    /// Checks every option against its range.
    ///
    /// # Errors
    /// [`Error::Option`] with the option, its value and the accepted range.
    pub fn validate(&self, vocab: usize) -> Result<()> {
        let bad = |option, got: String, expected| Err(Error::Option { option, got, expected });
        let in_range = |v: f32, low: f32, high: f32| v >= low && v <= high;
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0, "a number from 0 to 100"),
            ("min_p", self.min_p, 0.0, 1.0, "a number from 0 to 1"),
            ("repeat_penalty", self.repeat_penalty, 0.1, 10.0, "a number from 0.1 to 10"),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0, "a number from -2 to 2"),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "a number from -2 to 2"),
        ];
        for (name, value, low, high, expected) in ranges {
            if !in_range(value, low, high) {
                return bad(name, value.to_string(), expected);
            }
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", self.top_p.to_string(), "a number above 0, at most 1");
        }
        for (name, value) in [("top_k", self.top_k), ("penalty_window", self.penalty_window)] {
            if value > 1 << 20 {
                return bad(name, value.to_string(), "0 to 1048576");
            }
        }
        if let Some(top) = self.logprobs.filter(|&top| top > 20) {
            return bad("logprobs", top.to_string(), "0 to 20");
        }
        if self.logit_bias.len() > 1024 {
            return bad("logit_bias", format!("{} tokens", self.logit_bias.len()), "at most 1024 tokens");
        }
        let mut ids: Vec<u32> = self.logit_bias.iter().map(|b| b.0).collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|w| w[0] == w[1]) {
            return bad("logit_bias", format!("token {} twice", pair[0]), "each token once");
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab {
                return bad("logit_bias", format!("token {token}"), "token ids of the vocabulary");
            }
            if !in_range(bias, -100.0, 100.0) {
                return bad("logit_bias", format!("{bias} for token {token}"), "biases from -100 to 100");
            }
        }
        Ok(())
    }
}
