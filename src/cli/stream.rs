//! A generation on its way to stdout: pieces as they come, Ctrl-C, a reader that goes away.

use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use anyhow::Context;
use backstop::Generation;
use backstop::engine::{FinishReason, Stats};
use backstop::text::Reply;

use super::interrupt::Interruptible;
use super::markdown::Markdown;
use super::progress::Progress;
use super::{Closed, term};

/// Stdout, which gets the generated text and nothing else. What the model thinks is shown on stderr, to a person.
pub struct Output {
    terminal: bool,
    /// Where its Markdown is shown in colours.
    markdown: Option<Markdown>,
    at_line_start: bool,
    pub thoughts: Thoughts,
    /// Whether thoughts were shown last.
    thinking: bool,
    /// What is shown in place of thoughts, and since when.
    folded: Option<(Progress, Instant)>,
}

/// What a person sees of a model's thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoughts {
    Show,
    /// How long they take.
    Fold,
    Hide,
}

impl Thoughts {
    pub fn name(self) -> &'static str {
        match self {
            Self::Show => "show",
            Self::Fold => "fold",
            Self::Hide => "hide",
        }
    }
}

impl Output {
    pub fn new() -> Self {
        Self {
            terminal: stdout().is_terminal(),
            markdown: None,
            at_line_start: true,
            thoughts: Thoughts::Show,
            thinking: false,
            folded: None,
        }
    }

    /// With Markdown in colours, where a person sees them and does not want it `plain`.
    pub fn of_conversation(plain: bool) -> Self {
        let out = Self::new();
        let markdown = (!plain && term::shows_colours(&stdout())).then(Markdown::default);
        Self { markdown, ..out }
    }

    /// Writes `text` at once.
    pub fn write(&mut self, text: &str) -> anyhow::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.end_thoughts();
        self.at_line_start = text.ends_with('\n');
        let shown = if self.terminal { term::visible(text) } else { text.into() };
        match &mut self.markdown {
            Some(markdown) => print(&markdown.push(&shown)),
            None => print(&shown),
        }
    }

    /// Shows what was held back of a text that is over.
    fn finish(&mut self) -> anyhow::Result<()> {
        match &mut self.markdown {
            Some(markdown) => print(&markdown.finish()),
            None => Ok(()),
        }
    }

    /// Shows what the model thinks.
    fn think(&mut self, text: &str) -> anyhow::Result<()> {
        if text.is_empty() || !stderr().is_terminal() {
            return Ok(());
        }
        self.finish()?;
        match self.thoughts {
            Thoughts::Hide => {}
            Thoughts::Fold => {
                self.folded
                    .get_or_insert_with(|| (Progress::start(|| "thinking".to_owned()), Instant::now()));
            }
            Thoughts::Show => {
                self.thinking = true;
                // That nobody reads it is no error.
                let _ = write!(stderr().lock(), "{}", term::dim(&term::visible(text)));
            }
        }
        Ok(())
    }

    /// Parts thoughts from what follows them.
    fn end_thoughts(&mut self) {
        if std::mem::take(&mut self.thinking) {
            term::note("\n");
        }
        if let Some((progress, since)) = self.folded.take() {
            drop(progress);
            term::note(term::dim(&format!("thought for {:.1} s", since.elapsed().as_secs_f64())));
        }
    }

    /// Ends the line.
    pub fn end_line(&mut self) -> anyhow::Result<()> {
        if self.at_line_start { Ok(()) } else { self.write("\n") }
    }

    /// Ends the line where a person would otherwise read on in the middle of it; elsewhere the text stays alone.
    pub fn end_line_on_terminal(&mut self) -> anyhow::Result<()> {
        if self.terminal { self.end_line() } else { Ok(()) }
    }
}

/// Writes to stdout and flushes.
///
/// # Errors
/// [`Closed`] where nobody reads it any more.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        result => result.context("stdout"),
    }
}

/// What was generated.
pub struct Answer {
    pub reply: Reply,
    pub tokens: Vec<u32>,
    /// One for each token, where they were asked for.
    pub logprobs: Vec<f32>,
    pub finish: FinishReason,
    /// Whether the text has the form that was asked for; none where none was.
    pub conforms: Option<bool>,
    pub stats: Stats,
    /// From the call to the first token.
    pub first_token: Option<Duration>,
    pub total: Duration,
}

impl Answer {
    /// Whether Ctrl-C ended it.
    pub fn interrupted(&self) -> bool {
        self.finish == FinishReason::Cancelled
    }
}

/// Runs the generation that `start` begins, and writes its text to `out` as it comes. Ctrl-C ends it early.
pub fn stream(
    start: impl FnOnce() -> backstop::Result<Generation>,
    mut out: Option<&mut Output>,
) -> anyhow::Result<Answer> {
    let started = Instant::now();
    let mut generation = start()?;
    let canceller = generation.canceller();
    let _interruptible = Interruptible::new(move || canceller.cancel())?;
    tracing::info!(prompt_tokens = generation.prompt().len(), "generating");
    let (tokens, read, shown) = (generation.prompt().len(), generation.prompt_progress(), out.is_some());
    let mut progress = Some(Progress::start(move || match read() {
        read if read < tokens => format!("reading {tokens} tokens, {read} read"),
        _ if shown => format!("reading {tokens} tokens"),
        _ => "generating".to_owned(),
    }));
    let (mut logprobs, mut first_token, mut finish) = (Vec::new(), None, FinishReason::Cancelled);
    for piece in &mut generation {
        if first_token.is_none() && out.is_some() {
            drop(progress.take());
        }
        let piece = piece.inspect_err(|_| {
            // The error is worth more than what cannot be written.
            let _ = out.as_deref_mut().map(|out| {
                out.end_thoughts();
                out.finish()?;
                out.end_line_on_terminal()
            });
        })?;
        if piece.token.is_some() {
            first_token.get_or_insert_with(|| started.elapsed());
            logprobs.extend(piece.logprobs.map(|logprobs| logprobs.token));
        }
        if let Some(out) = out.as_deref_mut() {
            out.think(&piece.reasoning)?;
            out.write(&piece.text)?;
        }
        finish = piece.finish.unwrap_or(finish);
    }
    drop(progress);
    if let Some(out) = out {
        out.end_thoughts();
        out.finish()?;
    }
    let stats = generation.stats().unwrap_or_default();
    let (tokens, conforms) = (generation.tokens().to_vec(), generation.conforms());
    let (reply, total) = (generation.reply().clone(), started.elapsed());
    Ok(Answer { reply, tokens, logprobs, finish, conforms, stats, first_token, total })
}
