//! The library call: text in, pieces of text out, on an engine with this one sequence among others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use crate::alloc;
use crate::engine::{Event, FinishReason, GenerateRequest, Request, RequestKind, Sink, Stats, receive};
use crate::error::{Error, Result};
use crate::model::{LEAST_CONTEXT, Model};
use crate::sample::{Constraint, Logprobs, SamplingOptions, StopMatcher};
use crate::text::{Detokenizer, Infill, Reply, ReplyEvent, ReplyParser};

/// How text is generated.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Tokens to generate at most, and never more than the context leaves. Where absent, [`Model::default_max_tokens`], and
    /// never more than the sequence's share of the KV cache's memory, or 4,096 where that is less.
    pub max_tokens: Option<usize>,
    /// Tokens to generate before the model may end the text. Not with a constraint.
    pub min_tokens: usize,
    /// What the text is to be, made by [`Model::constraint`]. The text ends where nothing can follow.
    pub constraint: Option<Constraint>,
    /// How the next token is chosen.
    pub sampling: SamplingOptions,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the generation, beside the model's own; they give no text.
    pub stop_tokens: Vec<u32>,
    /// Generate on past the model's end-of-sequence tokens. A constraint still ends by one, where the text may go on.
    pub ignore_eos: bool,
    /// Whose kept beginnings of prompts this one may go on from, and who may go on from its: those with an equal one. Where they
    /// are of several people, nobody then learns how the prompts of others begin.
    pub cache_salt: Option<Arc<str>>,
    /// The name of the adapter that it is generated with; the model's own ([`Model::with_adapter`]) where absent.
    pub adapter: Option<Arc<str>>,
    /// Special tokens whose texts are part of the text, such as the marks around tool calls; others give none.
    pub visible: Vec<u32>,
}

/// A piece of generated text.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Text that is now certain: whole characters, and nothing that may still become a stop. May be empty. In a turn of a
    /// conversation it is what the model says, without marks, thoughts and calls of tools.
    pub text: String,
    /// What the model thinks before it answers, in a turn of a conversation.
    pub reasoning: String,
    /// The token that brought it; none in the last piece, which brings what was held back.
    pub token: Option<u32>,
    /// How likely the model found the token, where [`SamplingOptions::logprobs`] asks; see [`Logprobs`].
    pub logprobs: Option<Logprobs>,
    /// Why it ended, in the last piece.
    pub finish: Option<FinishReason>,
}

/// A running generation: an iterator of its pieces, the last one with the reason why it ended. Dropping it ends it.
#[derive(Debug)]
pub struct Generation {
    events: Receiver<Event>,
    text: Assembler,
    /// Tells the parts of a turn apart; none where all is text.
    parser: Option<ReplyParser>,
    reply: Reply,
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
    conforms: Option<bool>,
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
    /// An empty prompt of a model without a beginning-of-sequence token, a prompt longer than the context, more tokens than
    /// the memory of the KV cache can ever hold, an option out of range.
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
        self.generate_tokens(self.encode_prompt(prompt, true)?, options)
    }

    /// The tokens of a prompt. Special tokens that are written in it are read as such where `parse` says so.
    ///
    /// # Errors
    /// [`Error::ContextFull`] for one that has more tokens than the context holds, whichever they are: nothing of it is encoded.
    /// Else those of [`crate::text::Tokenizer::encode_prompt`].
    pub fn encode_prompt(&self, text: &str, parse: bool) -> Result<Vec<u32>> {
        self.check_length(text)?;
        self.tokenizer()?.encode_prompt(text, parse)
    }

    /// Generates what stands between two texts, by a model that was trained to, as models of code are.
    ///
    /// # Errors
    /// Those of [`Self::infill_prompt`] and [`Self::generate_tokens`].
    pub fn infill(&self, infill: &Infill, options: &Options) -> Result<Generation> {
        let (tokens, ends) = self.infill_prompt(infill, None)?;
        let stop_tokens = [&options.stop_tokens[..], &ends].concat();
        self.generate_tokens(tokens, &Options { stop_tokens, ..options.clone() })
    }

    /// The tokens behind which the model fills in, and those that end what it does. Where there is a number they are at most `most`,
    /// and what is furthest from the place is left out ([`InfillMarks::encode`](crate::text::InfillMarks::encode)).
    ///
    /// # Errors
    /// [`Error::Prompt`] for a model whose vocabulary has no marks for it, [`Error::ContextFull`] for texts that are longer than
    /// the context where nothing is left out, and those of [`Tokenizer::encode`](crate::text::Tokenizer::encode).
    pub fn infill_prompt(&self, infill: &Infill, most: Option<usize>) -> Result<(Vec<u32>, Vec<u32>)> {
        let tokenizer = self.tokenizer()?;
        let marks = tokenizer.infill_marks().ok_or_else(|| {
            let name = &self.info().name;
            Error::Prompt(format!("{name} has no tokens to fill in the middle by, such as <|fim_prefix|>"))
        })?;
        if most.is_none() {
            let others = infill.others.iter().map(|(_, text)| text);
            [&infill.prefix, &infill.suffix]
                .into_iter()
                .chain(others)
                .try_for_each(|text| self.check_length(text))?;
        }
        let info = self.info();
        let marks = marks.of_model(&info.name);
        let tokens = marks.encode(tokenizer, infill, most.unwrap_or(usize::MAX))?;
        if tokens.len() > info.context {
            return Err(self.full(tokens.len(), false));
        }
        Ok((tokens, marks.ends().to_vec()))
    }

    /// Refuses a text that has more tokens than the context holds, whichever they are.
    pub(crate) fn check_length(&self, text: &str) -> Result<()> {
        let (least, info) = (self.tokenizer()?.least_tokens(text.len()), self.info());
        if least > info.context {
            return Err(self.full(least, true));
        }
        Ok(())
    }

    /// What is said of a prompt of so many tokens, or `at_least` as many, that the context does not hold.
    fn full(&self, prompt: usize, at_least: bool) -> Error {
        let info = self.info();
        Error::ContextFull { prompt, at_least, context: info.context, trained: info.config.max_context() }
    }

    /// Generates from token ids.
    ///
    /// # Errors
    /// As [`Self::generate`], and an id outside the vocabulary.
    pub fn generate_tokens(&self, prompt: Vec<u32>, options: &Options) -> Result<Generation> {
        self.generate_parsed(prompt, None, options)
    }

    /// Generates from token ids what `parser` tells apart.
    ///
    /// # Errors
    /// As [`Self::generate_tokens`].
    pub(crate) fn generate_parsed(
        &self,
        prompt: Vec<u32>,
        parser: Option<ReplyParser>,
        options: &Options,
    ) -> Result<Generation> {
        let (sender, events) = channel();
        let text = self.start(prompt, options, Sink::new(move |event| sender.send(event).is_ok()))?;
        Ok(Generation { events, text, parser, reply: Reply::default() })
    }

    /// Starts a sequence whose events go to `events`, and gives what makes text of them.
    ///
    /// # Errors
    /// As [`Self::generate_tokens`].
    pub(crate) fn start(&self, prompt: Vec<u32>, options: &Options, events: Sink) -> Result<Assembler> {
        self.check_generates()?;
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
                at_least: false,
                context: info.context,
                trained: info.config.max_context(),
            });
        }
        let room = info.context - prompt.len();
        let max_tokens = match options.max_tokens {
            Some(0) => {
                return Err(Error::Option { option: "max_tokens", got: "0".into(), expected: "at least 1" });
            }
            Some(asked) => asked.min(room),
            // What nobody asked for is not refused for its memory, and does not keep others from theirs.
            None => {
                let memory = self.engine.kv_tokens();
                let share = self.engine.kv_tokens_each().saturating_sub(prompt.len());
                let memory = memory.saturating_sub(prompt.len()).max(1).min(share.max(LEAST_CONTEXT));
                self.default_max_tokens(prompt.len()).unwrap_or(room).min(room).min(memory)
            }
        };
        self.engine.check_memory(prompt.len(), max_tokens)?;
        if let Some(id) = options.stop_tokens.iter().find(|&&id| id as usize >= vocab) {
            let expected = "token ids of the vocabulary";
            return Err(Error::Option { option: "stop_tokens", got: id.to_string(), expected });
        }
        if options.min_tokens > 0 && options.constraint.is_some() {
            let got = format!("{} beside a constraint", options.min_tokens);
            return Err(Error::Option {
                option: "min_tokens",
                got,
                expected: "0 where a constraint ends the text",
            });
        }
        if options.min_tokens > max_tokens {
            let got = format!("{} of at most {max_tokens} tokens", options.min_tokens);
            return Err(Error::Option {
                option: "min_tokens",
                got,
                expected: "at most max_tokens, and what the context leaves",
            });
        }
        let adapter = match &options.adapter {
            Some(name) => Some(self.adapter_named(name)?),
            None => self.adapter.clone(),
        };
        let ends = !options.ignore_eos || options.constraint.is_some();
        let mut eos = if ends { self.eos().to_vec() } else { Vec::new() };
        eos.extend(&options.stop_tokens);
        let cancel = Arc::new(AtomicBool::new(false));
        let cached = Arc::new(AtomicUsize::new(0));
        let text = Assembler {
            cancel: Arc::clone(&cancel),
            cached: Arc::clone(&cached),
            detokenizer: self.tokenizer().ok().map(|tokenizer| {
                let made = Detokenizer::new(tokenizer, &prompt).with_visible(&options.visible);
                // What was enforced is given out to the letter.
                if options.constraint.is_some() { made.unstripped() } else { made }
            }),
            stops: StopMatcher::new(&options.stop)?,
            eos: eos.clone(),
            prompt: alloc::copy_of(&prompt, "the tokens of a prompt")?,
            tokens: Vec::new(),
            stats: None,
            conforms: None,
            stopped: false,
            ended: false,
        };
        let generate = GenerateRequest {
            sampling: options.sampling.clone(),
            constraint: options.constraint.clone(),
            min_tokens: options.min_tokens,
            max_tokens,
            eos,
            marks: self.eos().to_vec(),
            suppressed: self.suppressed(),
            events,
        };
        let kind = RequestKind::Generate(Box::new(generate));
        let space = options.cache_salt.clone();
        self.engine.submit(Request { tokens: prompt, kind, space, adapter, cancel, cached })?;
        Ok(text)
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

    /// Whether the text is what its constraint asks for, once the last piece has come; none without a constraint. It is
    /// not where `max_tokens`, a stop string or [`Self::cancel`] ended it in the middle.
    pub fn conforms(&self) -> Option<bool> {
        self.text.conforms()
    }

    /// The stop string that ended it.
    pub fn stop(&self) -> Option<&str> {
        self.text.stop()
    }

    /// Tokens of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.text.prompt
    }

    /// Tokens generated so far, an end-of-sequence token included.
    pub fn tokens(&self) -> &[u32] {
        &self.text.tokens
    }

    /// What has come so far: text, and in a turn of a conversation thoughts and calls of tools.
    pub fn reply(&self) -> &Reply {
        &self.reply
    }

    /// Reads to the end and returns the text.
    ///
    /// # Errors
    /// The first error of a piece.
    pub fn text(mut self) -> Result<String> {
        self.by_ref().try_for_each(|piece| piece.map(drop))?;
        Ok(std::mem::take(&mut self.reply).content)
    }

    /// The piece with its text told apart.
    fn parsed(&mut self, piece: Piece) -> Piece {
        let mut events = match &mut self.parser {
            _ if piece.text.is_empty() => Vec::new(),
            Some(parser) => parser.push(&piece.text),
            None => vec![ReplyEvent::Content(piece.text)],
        };
        if self.parser.as_ref().is_some_and(ReplyParser::is_done) {
            self.text.stop_here();
        }
        if piece.finish.is_some() {
            events.extend(self.parser.as_mut().map(ReplyParser::finish).unwrap_or_default());
        }
        let mut piece = Piece { text: String::new(), ..piece };
        for event in events {
            match &event {
                ReplyEvent::Content(text) | ReplyEvent::CallBroken { text, .. } => piece.text += text,
                ReplyEvent::Reasoning(text) => piece.reasoning += text,
                ReplyEvent::Call { .. } | ReplyEvent::Arguments { .. } | ReplyEvent::CallEnd { .. } => {}
            }
            self.reply.take(event);
        }
        piece
    }
}

impl Iterator for Generation {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.text.ended {
            let event = receive(&self.events).unwrap_or_else(Event::Failed);
            if let Some(piece) = self.text.take(event) {
                return Some(piece.map(|piece| self.parsed(piece)));
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
            Event::Token { token, logprobs } => self.piece(token, logprobs),
            Event::Finished { reason, stats, conforms } => self.last(reason, stats, conforms),
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

    /// Whether the text is what its constraint asks for, once the last piece has come; none without one.
    pub fn conforms(&self) -> Option<bool> {
        self.conforms
    }

    /// The stop string that ended it.
    pub fn stop(&self) -> Option<&str> {
        self.stops.matched()
    }

    /// Ends the text here: what comes after it is not part of it, and it has then come to its end as by a stop string.
    pub fn stop_here(&mut self) {
        self.stopped = true;
        self.cancel();
    }

    fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    fn piece(&mut self, token: u32, logprobs: Option<Logprobs>) -> Result<Piece> {
        self.tokens.push(token);
        let text = match &mut self.detokenizer {
            Some(detokenizer) if !self.eos.contains(&token) => {
                let text = detokenizer.push(token)?;
                self.stops.push(&text)
            }
            _ => String::new(),
        };
        if self.stops.matched().is_some() {
            self.stop_here();
        }
        Ok(Piece { text, reasoning: String::new(), token: Some(token), logprobs, finish: None })
    }

    fn last(&mut self, reason: FinishReason, stats: Stats, conforms: Option<bool>) -> Result<Piece> {
        self.ended = true;
        // What lies behind a stop string is no part of the text.
        let generated_tokens = self.tokens.len();
        let accepted_tokens = stats.accepted_tokens.min(generated_tokens.saturating_sub(1));
        self.stats = Some(Stats { generated_tokens, accepted_tokens, ..stats });
        let (mut text, mut reason) = (String::new(), reason);
        if !self.stopped {
            let held = self.detokenizer.as_mut().map_or(Ok(String::new()), Detokenizer::finish)?;
            text = self.stops.push(&held);
            text += &self.stops.finish();
        }
        let cut = self.stopped || self.stops.matched().is_some();
        if cut {
            reason = FinishReason::Stop;
        }
        self.conforms = conforms.map(|conforms| conforms && !cut);
        Ok(Piece { text, reasoning: String::new(), token: None, logprobs: None, finish: Some(reason) })
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
        self.info().generation.sampling()
    }
}

impl crate::config::GenerationConfig {
    /// The sampling that it asks for; greedy where it asks for none.
    pub(crate) fn sampling(&self) -> SamplingOptions {
        let default = SamplingOptions::default();
        if self.do_sample == Some(false) {
            return default;
        }
        SamplingOptions {
            temperature: match (self.temperature, self.do_sample) {
                (Some(temperature), _) => temperature,
                (None, Some(true)) => 1.0,
                (None, _) => default.temperature,
            },
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repeat_penalty: self.repetition_penalty.unwrap_or(default.repeat_penalty),
            ..default
        }
    }
}
