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
use crate::forward::modules::{self, Made};
use crate::forward::{Pool, Pooling};
use crate::weights::gguf::Metadata;

/// What memory is taken for.
const TOKENS: &str = "the tokens of a prompt";

impl ModelFiles {
    /// How a text becomes a vector: as sentence-transformers' files beside the model say, else by the mean of its hidden states.
    ///
    /// # Errors
    /// A file that is malformed, and a module that is not known.
    pub fn pooling(&self) -> Result<Pooling> {
        let width = self.config().hidden_size;
        if let Some(pool) =
            self.checkpoint.gguf().map(|metadata| pool_of_metadata(metadata)).transpose()?.flatten()
        {
            // Files of this kind do not say how long a vector is; llama.cpp's server makes all of length 1.
            return Ok(Pooling::plain(pool, width));
        }
        Ok(match self.made()? {
            Some(Made::Vectors(pooling)) => pooling,
            Some(Made::Scores(_)) | None => Pooling::mean(width),
        })
    }

    /// Warns of what is not followed, or not said, of vectors made by `pooling`.
    pub(super) fn warn_of_vectors(&self, pooling: &Pooling) {
        let (name, encoder) = (self.name(), self.config().bidirectional);
        if !pooling.is_trained() && encoder && self.config().labels.is_none() {
            tracing::warn!(
                "{name}: no file says how it pools: vectors are the mean of all tokens, scaled to length 1; \
                 --pooling mean, cls or last says it"
            );
        }
        if !crate::files::is_dir(&self.path) || !matches!(self.made(), Ok(Some(Made::Vectors(_)))) {
            return;
        }
        if modules::members(&self.path, "sentence_bert_config.json")
            .is_ok_and(|members| members.get("modality_config").is_some_and(|of| of["message"].is_object()))
        {
            tracing::warn!(
                "{name}: sentence-transformers writes each text by the chat template before it is embedded; here a text \
                 is taken as it is, and what the template puts around it is the client's to write"
            );
        }
        if let Ok(Some((prompt, text))) = modules::default_prompt(&self.path) {
            let text = crate::json::quote(&text);
            tracing::warn!(
                "{name}: sentence-transformers writes the prompt {text} ({prompt}) before each text where nobody names \
                 another; here it is the client's to write"
            );
        }
        let config = modules::members(&self.path, "config.json").unwrap_or_default();
        if let Some(code) = config.get("auto_map").and_then(|map| map["AutoModel"].as_str())
            && !encoder
        {
            let code = crate::json::quote(code);
            tracing::warn!(
                "{name}: its vectors are made for code of its own ({code}), which is not run: where that lets tokens see \
                 those behind them, they are others here (is_causal: false in config.json says so)"
            );
        }
    }

    /// The tokens that a text is cut to where one asks for it, and says no number: what sentence-transformers cuts it to, as far as
    /// `context` goes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn cut_length(&self, context: usize) -> Result<usize> {
        for (file, name) in
            [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
        {
            if !crate::files::is_dir(&self.path) {
                break;
            }
            let members = but_for_reads(modules::members(&self.path, file))?.unwrap_or_default();
            let said = members.get(name).and_then(serde_json::Value::as_u64).filter(|&length| length > 0);
            if let Some(said) = said.and_then(|length| usize::try_from(length).ok()) {
                return Ok(said.min(context));
            }
        }
        Ok(context)
    }

    /// Whether they make vectors of it.
    pub(super) fn makes_vectors(&self) -> bool {
        matches!(self.made(), Ok(Some(Made::Vectors(_))))
    }

    /// What sentence-transformers' files beside the model make of it.
    pub(super) fn made(&self) -> Result<Option<Made>> {
        match crate::files::is_dir(&self.path) {
            true => modules::load(&self.path, self.config().hidden_size, self.config().vocab_size),
            false => Ok(None),
        }
    }
}

/// What was read, or why that cannot be used; a read that fails is an error.
pub(super) fn but_for_reads<T>(read: Result<T>) -> Result<Result<T>> {
    match read {
        Err(error @ Error::Io { .. }) => Err(error),
        read => Ok(read),
    }
}

/// Which hidden states a GGUF file says are pooled; none where it says nothing of it.
///
/// # Errors
/// [`Error::Config`] for a way that is not known, or makes no vector.
fn pool_of_metadata(metadata: &Metadata) -> Result<Option<Pool>> {
    let key = format!("{}.pooling_type", metadata.string("general.architecture")?.unwrap_or_default());
    Ok(match metadata.uint(&key)? {
        None | Some(0) => None,
        Some(1) => Some(Pool::Mean),
        Some(2) => Some(Pool::First),
        Some(3) => Some(Pool::Last),
        Some(_) => return Err(metadata.refuse(&key, "1 (mean), 2 (cls) or 3 (last)")),
    })
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
        Ok(self.pooling()?.shortened(vector, dimensions))
    }

    /// Refuses a number of dimensions that [`Self::shortened`] does.
    pub(crate) fn check_dimensions(&self, dimensions: usize) -> Result<()> {
        let pooling = self.pooling()?;
        let width = pooling.width();
        if dimensions == 0 || dimensions > width || dimensions < width && !pooling.is_trained() {
            let expected = match pooling.is_trained() {
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
    ///
    /// # Errors
    /// [`Error::Task`] of a model whose files say so in a way that is not known.
    pub fn pooling(&self) -> Result<&Arc<Pooling>> {
        self.pooling.as_ref().map_err(|what| self.cannot(what))
    }

    /// The tokens that a text is cut to where one asks for it, and says no number: what the model's files say, else its context.
    pub fn cut_length(&self) -> usize {
        self.cut_length
    }

    /// What this model is not for, and why.
    pub(super) fn cannot(&self, what: &str) -> Error {
        Error::Task { model: self.info.name.clone(), what: what.to_owned() }
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
        let (pooling, answer) = (Arc::clone(self.pooling()?), Answer::new(take));
        self.submit(tokens, RequestKind::Embed(EmbedRequest { pooling, second: usize::MAX, answer }))
    }

    /// This model for the one with such a key, who has a part of the engine's time for what is embedded, ranked and scored.
    #[cfg(feature = "server")]
    pub(crate) fn asked_by(self, key: Option<Arc<str>>) -> Self {
        Self { asked_by: key, ..self }
    }

    /// Queues tokens that nothing is generated from.
    pub(super) fn submit(&self, tokens: Vec<u32>, kind: RequestKind) -> Result<CancelOnDrop> {
        self.check_tokens(&tokens)?;
        self.engine.check_memory(tokens.len(), 0)?;
        let asked = CancelOnDrop::default();
        self.engine.submit(Request {
            tokens,
            kind,
            space: self.asked_by.clone(),
            adapter: self.adapter.clone(),
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
        // Rows that cannot be are told of in place of the first.
        self.logits_rows(tokens, rows)?.collect()
    }

    /// [`Self::logits_of`], a row at a time.
    pub(crate) fn logits_rows(
        &self,
        tokens: &[u32],
        rows: Range<usize>,
    ) -> Result<impl Iterator<Item = Result<Vec<f32>>> + use<>> {
        let count = rows.len();
        let (sender, answers) = channel();
        let asked = self.each_row(alloc::copy_of(tokens, TOKENS)?, rows, move |row| {
            let row = row.and_then(|row| alloc::copy_of(row, "logits"));
            let good = row.is_ok();
            sender.send(row).is_ok() && good
        })?;
        Ok((0..count.max(1)).map(move |_| {
            let _asked = &asked;
            receive(&answers)?
        }))
    }

    /// Begins to read `tokens`; the logits after those at the positions `rows` go to `take`, one after the other, on the engine's
    /// thread, which it must not block. It says whether anybody still listens. Dropping what is returned cancels it.
    ///
    /// # Errors
    /// As [`Self::logits_of`], what the backend reports apart: that is given to `take`.
    pub(crate) fn each_row(
        &self,
        tokens: Vec<u32>,
        rows: Range<usize>,
        take: impl FnMut(Result<&[f32]>) -> bool + Send + 'static,
    ) -> Result<CancelOnDrop> {
        self.check_generates()?;
        self.submit(tokens, RequestKind::Score(ScoreRequest { rows, sink: RowSink::new(take) }))
    }
}
