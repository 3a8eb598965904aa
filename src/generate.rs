//! The library call: text in, pieces of text out, on an engine with this one sequence among others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use crate::engine::{Event, FinishReason, Request, Sink, Stats, receive};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::sample::{SamplingOptions, StopMatcher};
use crate::text::{Detokenizer, Message};

/// How text is generated.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Tokens to generate at most; [`Model::default_max_tokens`] where absent, and never more than the context leaves.
    pub max_tokens: Option<usize>,
    /// How the next token is chosen.
    pub sampling: SamplingOptions,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the generation, beside the model's own; they give no text.
    pub stop_tokens: Vec<u32>,
    /// Generate on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
}

/// A piece of generated text.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Text that is now certain: whole characters, and nothing that may still become a stop. May be empty.
    pub text: String,
    /// The token that brought it; none in the last piece, which brings what was held back.
    pub token: Option<u32>,
    /// The token's log-probability under the model, before temperature and filters.
    pub logprob: f32,
    /// Why it ended, in the last piece.
    pub finish: Option<FinishReason>,
}

/// A running generation: an iterator of its pieces, the last one with the reason why it ended. Dropping it ends it.
#[derive(Debug)]
pub struct Generation {
    events: Receiver<Event>,
    text: Assembler,
}

/// Turns what the engine reports of one sequence into pieces of text. Dropping it ends the sequence.
#[derive(Debug)]
pub(crate) struct Assembler {
    cancel: Arc<AtomicBool>,
    cached: Arc<AtomicUsize>,
    /// None where the model has no tokenizer: the pieces then bring tokens and no text.
    detokenizer: Option<Detokenizer>,
    stops: StopMatcher,
    /// Tokens that end the text and are not part of it.
    eos: Vec<u32>,
    /// Tokens of the prompt.
    prompt: Vec<u32>,
    /// Tokens generated.
    tokens: Vec<u32>,
    stats: Option<Stats>,
    stopped: bool,
    ended: bool,
}

/// Ends a [`Generation`] from elsewhere, as from a handler of Ctrl-C.
#[derive(Debug, Clone)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Ends the generation before its next token.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Model {
    /// Generates from plain text, without a chat template.
    ///
    /// # Errors
    /// An empty prompt of a model without a beginning-of-sequence token, a prompt longer than the context, an option out
    /// of range.
    ///
    /// ```
    /// let model = backstop::Model::builtin()?;
    /// let options = backstop::Options { max_tokens: Some(8), ..Default::default() };
    /// let mut text = String::new();
    /// for piece in model.generate("Once upon a time", &options)? {
    ///     text += &piece?.text;
    /// }
    /// assert!(!text.is_empty());
    /// # Ok::<(), backstop::Error>(())
    /// ```
    pub fn generate(&self, prompt: &str, options: &Options) -> Result<Generation> {
        self.generate_tokens(self.tokenizer()?.encode(prompt)?, options)
    }

    /// Generates the assistant's turn of a conversation, by the model's chat template.
    ///
    /// # Errors
    /// As [`Self::generate`], and those of the template.
    pub fn chat(&self, messages: &[Message], options: &Options) -> Result<Generation> {
        self.generate_tokens(self.encode_chat(messages)?, options)
    }

    /// Generates from token ids.
    ///
    /// # Errors
    /// As [`Self::generate`], and an id outside the vocabulary.
    pub fn generate_tokens(&self, prompt: Vec<u32>, options: &Options) -> Result<Generation> {
        let (sender, events) = channel();
        let text = self.start(prompt, options, Sink::new(move |event| sender.send(event).is_ok()))?;
        Ok(Generation { events, text })
    }

    /// Starts a sequence whose events go to `events`, and gives what makes text of them.
    ///
    /// # Errors
    /// As [`Self::generate_tokens`].
    pub(crate) fn start(&self, prompt: Vec<u32>, options: &Options, events: Sink) -> Result<Assembler> {
        let info = self.info();
        let vocab = info.config.vocab_size;
        options.sampling.validate(vocab)?;
        if prompt.is_empty() {
            return Err(Error::Prompt("it has no token".into()));
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Prompt(format!("token id {id} is outside the vocabulary of {vocab}")));
        }
        if prompt.len() >= info.context {
            return Err(Error::ContextFull {
                prompt: prompt.len(),
                context: info.context,
                trained: info.config.max_context(),
            });
        }
        let room = info.context - prompt.len();
        let max_tokens = match options.max_tokens {
            Some(0) => {
                return Err(Error::Option { option: "max_tokens", got: "0".into(), expected: "at least 1" });
            }
            asked => asked.or_else(|| self.default_max_tokens(prompt.len())).unwrap_or(room).min(room),
        };
        if let Some(id) = options.stop_tokens.iter().find(|&&id| id as usize >= vocab) {
            let expected = "token ids of the vocabulary";
            return Err(Error::Option { option: "stop_tokens", got: id.to_string(), expected });
        }
        let mut eos = if options.ignore_eos { Vec::new() } else { self.eos() };
        eos.extend(&options.stop_tokens);
        let cancel = Arc::new(AtomicBool::new(false));
        let cached = Arc::new(AtomicUsize::new(0));
        let text = Assembler {
            cancel: Arc::clone(&cancel),
            cached: Arc::clone(&cached),
            detokenizer: self.tokenizer().ok().map(|tokenizer| Detokenizer::new(tokenizer, &prompt)),
            stops: StopMatcher::new(&options.stop)?,
            eos: eos.clone(),
            prompt: prompt.clone(),
            tokens: Vec::new(),
            stats: None,
            stopped: false,
            ended: false,
        };
        self.engine.submit(Request {
            prompt,
            sampling: options.sampling.clone(),
            max_tokens,
            eos,
            cancel,
            cached,
            events,
        })?;
        Ok(text)
    }

    /// Ids that end a sequence: those of `generation_config.json` and of `config.json`.
    fn eos(&self) -> Vec<u32> {
        let info = self.info();
        let mut ids = info.generation.eos_token_ids.clone();
        ids.extend(&info.config.eos_token_ids);
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl Generation {
    /// Ends the generation before its next token; the last piece then says so.
    pub fn cancel(&self) {
        self.text.cancel();
    }

    /// What ends this generation from elsewhere.
    pub fn canceller(&self) -> Canceller {
        Canceller(Arc::clone(&self.text.cancel))
    }

    /// Tells, from anywhere, how many tokens of the prompt have been read: a long one takes several steps.
    pub fn prompt_progress(&self) -> impl Fn() -> usize + Send + 'static {
        let (cached, len) = (Arc::clone(&self.text.cached), self.text.prompt.len());
        move || cached.load(Ordering::Relaxed).min(len)
    }

    /// What it took; known once the last piece has come.
    pub fn stats(&self) -> Option<Stats> {
        self.text.stats()
    }

    /// Tokens of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.text.prompt
    }

    /// Tokens generated so far, an end-of-sequence token included.
    pub fn tokens(&self) -> &[u32] {
        &self.text.tokens
    }

    /// Reads to the end and returns the text.
    ///
    /// # Errors
    /// The first error of a piece.
    pub fn text(self) -> Result<String> {
        self.map(|piece| piece.map(|piece| piece.text)).collect()
    }
}

impl Iterator for Generation {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.text.ended {
            let event = receive(&self.events).unwrap_or_else(Event::Failed);
            if let Some(piece) = self.text.take(event) {
                return Some(piece);
            }
        }
        None
    }
}

impl Assembler {
    /// The piece that an event brings; none once the text has ended, or where the event came after a stop.
    pub fn take(&mut self, event: Event) -> Option<Result<Piece>> {
        if self.ended {
            return None;
        }
        let result = match event {
            // What came after the stop is not part of the text.
            Event::Token { .. } if self.stopped => return None,
            Event::Token { token, logprob } => self.piece(token, logprob),
            Event::Finished { reason, stats } => self.last(reason, stats),
            Event::Failed(error) => Err(error),
        };
        if result.is_err() {
            self.ended = true;
            self.cancel();
        }
        Some(result)
    }

    /// What it took; known once the last piece has come.
    pub fn stats(&self) -> Option<Stats> {
        self.stats
    }

    /// The stop string that ended it.
    pub fn stop(&self) -> Option<&str> {
        self.stops.matched()
    }

    fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    fn piece(&mut self, token: u32, logprob: f32) -> Result<Piece> {
        self.tokens.push(token);
        let text = match &mut self.detokenizer {
            Some(detokenizer) if !self.eos.contains(&token) => {
                let text = detokenizer.push(token)?;
                self.stops.push(&text)
            }
            _ => String::new(),
        };
        if self.stops.matched().is_some() {
            self.stopped = true;
            self.cancel();
        }
        Ok(Piece { text, token: Some(token), logprob, finish: None })
    }

    fn last(&mut self, reason: FinishReason, stats: Stats) -> Result<Piece> {
        self.ended = true;
        self.stats = Some(Stats { generated_tokens: self.tokens.len(), ..stats });
        if self.stopped {
            return Ok(Piece {
                text: String::new(),
                token: None,
                logprob: 0.0,
                finish: Some(FinishReason::Stop),
            });
        }
        let held = self.detokenizer.as_mut().map_or(Ok(String::new()), Detokenizer::finish)?;
        let mut text = self.stops.push(&held);
        text += &self.stops.finish();
        Ok(Piece { text, token: None, logprob: 0.0, finish: Some(reason) })
    }
}

impl Drop for Assembler {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Generates from `prompt` with the built-in model and its defaults: one line, no file.
///
/// # Errors
/// A prompt longer than the model's context.
///
/// ```
/// let story = backstop::generate("Once upon a time")?;
/// assert!(story.split_whitespace().count() > 5);
/// # Ok::<(), backstop::Error>(())
/// ```
pub fn generate(prompt: &str) -> Result<String> {
    let model = Model::builtin()?;
    let options = Options { sampling: model.default_sampling(), ..Options::default() };
    model.generate(prompt, &options)?.text()
}

impl Model {
    /// The tokens that `generation_config.json` lets a prompt of `prompt_len` tokens generate: `max_new_tokens`, else what
    /// the prompt leaves of `max_length`. None where it sets no bound, or a `max_length` that the prompt alone fills.
    pub fn default_max_tokens(&self, prompt_len: usize) -> Option<usize> {
        let generation = &self.info().generation;
        let left = || generation.max_length?.checked_sub(prompt_len).filter(|&left| left > 0);
        generation.max_new_tokens.or_else(left)
    }

    /// The sampling that `generation_config.json` asks for; greedy where it asks for none.
    pub fn default_sampling(&self) -> SamplingOptions {
        let generation = &self.info().generation;
        let default = SamplingOptions::default();
        if generation.do_sample == Some(false) {
            return default;
        }
        SamplingOptions {
            temperature: match (generation.temperature, generation.do_sample) {
                (Some(temperature), _) => temperature,
                (None, Some(true)) => 1.0,
                (None, _) => default.temperature,
            },
            top_k: generation.top_k.unwrap_or(default.top_k),
            top_p: generation.top_p.unwrap_or(default.top_p),
            min_p: generation.min_p.unwrap_or(default.min_p),
            repeat_penalty: generation.repetition_penalty.unwrap_or(default.repeat_penalty),
            ..default
        }
    }
}
