//! What is asked of a model beside text: vectors and logits of tokens.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::channel;

use super::{Model, ModelFiles};
use crate::alloc;
use crate::engine::{
    Answer, CancelOnDrop, EmbedRequest, Request, RequestKind, RowSink, ScoreRequest, receive,
};
use crate::error::{Error, Result};
use crate::forward::{Pooling, score_squash};

/// What memory is taken for.
const TOKENS: &str = "the tokens of a prompt";

impl ModelFiles {
    /// How a text becomes a vector: as sentence-transformers' files beside the model say, else by the mean of its hidden states.
    ///
    /// # Errors
    /// A file that is malformed, and a module that is not known.
    pub fn pooling(&self) -> Result<Pooling> {
        let width = self.config().hidden_size;
        let own = match self.path.is_dir() {
            true => Pooling::load(&self.path, width)?,
            false => None,
        };
        Ok(own.unwrap_or_else(|| Pooling::mean(width)))
    }

    /// How a pair of texts becomes a score, where the model is a cross-encoder.
    ///
    /// # Errors
    /// A weight that is missing, and a function of the score that is not known.
    pub fn ranking(&self) -> Result<Option<Pooling>> {
        let (Some(head), Some(1)) = (self.architecture.head(), self.config().labels) else { return Ok(None) };
        head.load(&self.checkpoint, score_squash(&self.path, 1)?).map(Some)
    }
}

impl Model {
    /// A vector `[D]` for `tokens`, as the model's files say ([`ModelFiles::pooling`]); without any, the mean of the last hidden
    /// states over them, scaled to length 1. It is a sequence among others: it waits for its part of the memory, and shares their
    /// steps. All tokens are computed, also those whose keys and values are kept. A prompt that the model was trained with
    /// (`query: …`) is the caller's to write.
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

    /// The first `dimensions` elements of a vector of [`Self::embed`], of length 1 where the whole has: for models that were
    /// trained so that these say the most (Matryoshka embeddings).
    ///
    /// # Errors
    /// No dimension, more than there are, and fewer of a model that was not trained to embed.
    pub fn shortened(&self, vector: Vec<f32>, dimensions: usize) -> Result<Vec<f32>> {
        self.check_dimensions(dimensions)?;
        Ok(self.pooling.shortened(vector, dimensions))
    }

    /// Refuses a number of dimensions that [`Self::shortened`] does.
    pub(crate) fn check_dimensions(&self, dimensions: usize) -> Result<()> {
        let width = self.pooling.width();
        if dimensions == 0 || dimensions > width || dimensions < width && !self.pooling.is_trained() {
            let expected = match self.pooling.is_trained() {
                true => "at least 1, and no more than the model's vectors have",
                false => "all that a vector has: no file of this model says that it was trained to embed",
            };
            return Err(Error::Option {
                option: "dimensions",
                got: format!("{dimensions} of {width}"),
                expected,
            });
        }
        Ok(())
    }

    /// How a text becomes a vector.
    pub fn pooling(&self) -> &Pooling {
        &self.pooling
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
        let (pooling, answer) = (Arc::clone(&self.pooling), Answer::new(take));
        self.submit(tokens, RequestKind::Embed(EmbedRequest { pooling, second: usize::MAX, answer }))
    }

    /// How well `document` answers `query`, as a cross-encoder scores them: the larger, the better. What the number means is the
    /// model's own; most give one from 0 to 1.
    ///
    /// # Errors
    /// [`Error::Task`] of a model that is no cross-encoder; those of the tokenizer, and of [`Self::embed`].
    pub fn rank(&self, query: &str, document: &str) -> Result<f32> {
        let pair = self.encode_pair(query, document, true)?;
        let (sender, answers) = channel();
        let _asked = self.start_rank(pair, move |score| drop(sender.send(score)))?;
        receive(&answers)?
    }

    /// The tokens of a query and a document, and where those of the second begin. Special tokens that are written in them are
    /// read as such where `parse` says so.
    ///
    /// # Errors
    /// As [`Self::rank`], before anything is computed.
    pub(crate) fn encode_pair(&self, query: &str, document: &str, parse: bool) -> Result<(Vec<u32>, usize)> {
        self.check_ranks()?;
        self.check_length(query)?;
        self.check_length(document)?;
        self.tokenizer()?.encode_pair(query, document, parse)
    }

    /// Begins to score what [`Self::encode_pair`] gave, otherwise as [`Self::start_embed`].
    ///
    /// # Errors
    /// As [`Self::rank`].
    pub(crate) fn start_rank(
        &self,
        (tokens, second): (Vec<u32>, usize),
        take: impl FnOnce(Result<f32>) + Send + 'static,
    ) -> Result<CancelOnDrop> {
        let pooling = Arc::clone(self.ranking()?);
        let answer = Answer::new(move |vector: Result<Vec<f32>>| {
            take(vector.map(|vector| vector.first().copied().unwrap_or_default()));
        });
        self.submit(tokens, RequestKind::Embed(EmbedRequest { pooling, second, answer }))
    }

    /// Refuses a model that is no cross-encoder.
    pub(crate) fn check_ranks(&self) -> Result<()> {
        self.ranking().map(drop)
    }

    /// What makes a score of a pair.
    ///
    /// # Errors
    /// [`Error::Task`] of a model that is no cross-encoder.
    fn ranking(&self) -> Result<&Arc<Pooling>> {
        self.ranking.as_ref().ok_or_else(|| {
            let what = match self.info.config.labels {
                Some(_) => "it gives several numbers for a pair of texts, and no one score of them",
                None => "it is no cross-encoder, and has no score for a pair of texts",
            };
            Error::Task { model: self.info.name.clone(), what }
        })
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
        if tokens.is_empty() {
            return Err(Error::Prompt("it has no token".to_owned()));
        }
        if tokens.len() > self.info.context {
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
        self.check_generates()?;
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
        self.check_generates()?;
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
