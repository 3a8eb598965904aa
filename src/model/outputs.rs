//! What is asked of a model beside text: vectors and logits of tokens.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::channel;

use super::Model;
use crate::alloc;
use crate::engine::{Answer, CancelOnDrop, Request, RequestKind, RowSink, ScoreRequest, receive};
use crate::error::{Error, Result};

/// What memory is taken for.
const TOKENS: &str = "the tokens of a prompt";

impl Model {
    /// A vector `[D]` for `tokens`: the mean of the last hidden states over them, scaled to length 1. It is a sequence among
    /// others: it waits for its part of the memory, and shares their steps. All tokens are computed, also those whose keys and
    /// values are kept, since a mean takes every hidden state.
    ///
    /// # Errors
    /// As [`Self::logits`].
    ///
    /// ```
    /// let model = backstop::Model::builtin()?;
    /// let [cat, dog] = ["A cat", "A dog"].map(|text| model.tokenizer()?.encode(text));
    /// let (cat, dog) = (model.embed(&cat?)?, model.embed(&dog?)?);
    /// let cosine: f32 = cat.iter().zip(&dog).map(|(x, y)| x * y).sum();
    /// assert!(cosine > 0.0 && cosine < 1.0);
    /// # Ok::<(), backstop::Error>(())
    /// ```
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let (sender, answers) = channel();
        // Nobody listens any more where the receiver is gone.
        let _asked =
            self.start_embed(alloc::copy_of(tokens, TOKENS)?, move |vector| drop(sender.send(vector)))?;
        receive(&answers)?
    }

    /// Begins to embed `tokens`; the vector goes to `take` on the engine's thread, which it must not block. Dropping what is
    /// returned cancels it, and `take` is then dropped.
    ///
    /// # Errors
    /// As [`Self::logits`], what the backend reports apart: that is given to `take`.
    pub(crate) fn start_embed(
        &self,
        tokens: Vec<u32>,
        take: impl FnOnce(Result<Vec<f32>>) + Send + 'static,
    ) -> Result<CancelOnDrop> {
        self.submit(tokens, RequestKind::Embed(Answer::new(take)))
    }

    /// Queues tokens that nothing is generated from.
    fn submit(&self, tokens: Vec<u32>, kind: RequestKind) -> Result<CancelOnDrop> {
        self.check_tokens(&tokens)?;
        self.engine.check_memory(tokens.len(), 0)?;
        let asked = CancelOnDrop::default();
        self.engine.submit(Request {
            tokens,
            kind,
            space: None,
            cancel: Arc::clone(&asked.0),
            cached: Arc::default(),
        })?;
        Ok(asked)
    }

    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.info.config.vocab_size;
        if tokens.is_empty() || tokens.len() > self.info.context {
            return Err(Error::ContextFull {
                prompt: tokens.len(),
                at_least: false,
                context: self.info.context,
                trained: self.info.config.max_context(),
            });
        }
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Prompt(format!("token id {id} is outside the vocabulary of {vocab}")));
        }
        Ok(())
    }

    /// The logits after each token of `tokens`: a row of vocabulary size per token.
    ///
    /// # Errors
    /// No token, more than the context holds, an id outside the vocabulary, keys and values that do not fit into the memory for
    /// them, and what the backend reports.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.check_tokens(tokens)?;
        self.logits_of(tokens, 0..tokens.len())
    }

    /// The logits after the tokens at the positions `rows`: a row of vocabulary size for each. They are those of
    /// [`Self::logits`]; what is kept of the tokens before the first of them is not computed again, and none behind the last is.
    ///
    /// # Errors
    /// As [`Self::logits`], and no row, or one behind the last token.
    ///
    /// ```
    /// let model = backstop::Model::builtin()?;
    /// let tokens = model.tokenizer()?.encode("Once upon a time")?;
    /// let last = model.logits_of(&tokens, tokens.len() - 1..tokens.len())?;
    /// assert_eq!(last[0].len(), model.info().config.vocab_size);
    /// # Ok::<(), backstop::Error>(())
    /// ```
    pub fn logits_of(&self, tokens: &[u32], rows: Range<usize>) -> Result<Vec<Vec<f32>>> {
        let count = rows.len();
        let (sender, answers) = channel();
        let sink = RowSink::new(move |row| {
            let row = row.and_then(|row| alloc::copy_of(row, "logits"));
            let good = row.is_ok();
            sender.send(row).is_ok() && good
        });
        let kind = RequestKind::Score(ScoreRequest { rows, sink });
        let _asked = self.submit(alloc::copy_of(tokens, TOKENS)?, kind)?;
        // Rows that cannot be are told of in place of the first.
        (0..count.max(1)).map(|_| receive(&answers)?).collect()
    }
}
