//! What a row of logits says of the next token.

/// The distribution of the next token.
pub(crate) struct Distribution<'a> {
    logits: &'a [f32],
    /// `ln Σ e^logit`.
    log_sum: f64,
    /// The first of the largest.
    likeliest: u32,
}

impl<'a> Distribution<'a> {
    /// Of logits `[V]`.
    pub fn of(logits: &'a [f32]) -> Self {
        let (mut most, mut likeliest) = (f32::NEG_INFINITY, 0);
        for (id, &logit) in (0..).zip(logits) {
            if logit > most {
                (most, likeliest) = (logit, id);
            }
        }
        let most = f64::from(most);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
        Self { logits, log_sum: most + sum.ln(), likeliest }
    }

    /// The token of the largest logit, the first of several.
    pub fn likeliest(&self) -> u32 {
        self.likeliest
    }

    /// `ln Σ e^logit`.
    pub fn log_sum(&self) -> f64 {
        self.log_sum
    }

    /// `ln p` of a token of the vocabulary.
    pub fn log_p(&self, token: u32) -> f64 {
        f64::from(self.logits[token as usize]) - self.log_sum
    }

    /// `Σ p (ln p − ln q)`: never below zero, and infinite where a logit is not a number.
    pub fn divergence(&self, other: &Self) -> f64 {
        let sum: f64 = (0..self.logits.len() as u32)
            .map(|token| {
                let (p, q) = (self.log_p(token), other.log_p(token));
                // Where the reference says never, the limit is zero.
                if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
            })
            .sum();
        if sum.is_nan() { f64::INFINITY } else { sum.max(0.0) }
    }
}
