//! `backstop chat`: a conversation, turn by turn. The engine keeps what it computed of the turns, so that each is read once.

use std::io::{StdinLock, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use backstop::{Chat, Message, Model, Options};
use rustyline::error::ReadlineError;
use rustyline::{
    Behavior, Cmd, ConditionalEventHandler, Config, DefaultEditor, Event, EventContext, EventHandler,
    KeyEvent, Movement, RepeatCount,
};

use super::args::ChatArgs;
use super::stream::{Answer, Output, stream};
use super::{Closed, INTERRUPTED, Loaded, Usage, input, names, summary, term};

const HELP: &str = "\
/help         this list
/reset        begin a new conversation
/system TEXT  set the instruction before the conversation, and begin a new one; without TEXT, take it away
/exit         end, as Ctrl-D or Ctrl-C do at an empty prompt
//TEXT        say TEXT with one slash in front
Ctrl-C stops an answer; the arrow keys edit, and go through what was said before.";

pub fn chat(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    super::check_sampling(&args.sampling)?;
    let from = names::replace(&args.model, args.path.as_deref());
    let Loaded { model, .. } = super::load(&from, &args.session)?;
    let sampling = super::resolve_sampling(&args.sampling, &model)?;
    let options = Options { max_tokens: args.sampling.max_tokens, sampling, ..Options::default() };
    let mut session = Session::new(model, options);
    session.summary = !args.no_summary;
    if let Some(system) = &args.system {
        session.set_system(system)?;
    }
    let interactive = super::is_interactive();
    let mut lines = if interactive { Lines::editor()? } else { Lines::Pipe(stdin().lock(), 0) };
    if interactive {
        session.greet();
    }
    while let Some(line) = lines.next()? {
        match session.take(&line) {
            Ok(Next::Line) => {}
            Ok(Next::Interrupted) if interactive => {}
            Ok(Next::Interrupted) => return Ok(ExitCode::from(INTERRUPTED)),
            Ok(Next::End) => break,
            Err(error) if interactive && !error.is::<Closed>() => {
                super::report(&error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What follows a line.
enum Next {
    Line,
    Interrupted,
    End,
}

struct Session {
    model: Model,
    options: Options,
    system: Option<String>,
    said: Said,
    out: Output,
    /// Whether a line of numbers follows each answer.
    summary: bool,
}

/// What was said so far.
enum Said {
    /// By turns, for the model's chat template.
    Turns(Chat),
    /// As one text, which a model without a template continues.
    Text(String),
}

impl Session {
    fn new(model: Model, options: Options) -> Self {
        let mut session = Self {
            model,
            options,
            system: None,
            said: Said::Text(String::new()),
            out: Output::new(),
            summary: true,
        };
        session.reset();
        if !session.model.has_template() {
            let name = &session.model.info().name;
            term::note(format_args!(
                "note: {name} has no chat template: each line is added to one text, which it continues"
            ));
        }
        session
    }

    fn greet(&self) {
        let info = self.model.info();
        let line = format!(
            "{} on {}: {}. /help lists the commands, Ctrl-D ends.",
            info.name,
            self.model.engine().backend(),
            info.selection.reason
        );
        term::note(term::dim(&line));
    }

    fn reset(&mut self) {
        self.said = if self.model.has_template() {
            let system = self.system.iter().map(|text| Message::new("system", text.as_str()));
            Said::Turns(Chat::new(system.collect()))
        } else {
            Said::Text(String::new())
        };
    }

    fn set_system(&mut self, text: &str) -> anyhow::Result<()> {
        if !self.model.has_template() {
            return Err(super::no_template_for_system(&self.model).into());
        }
        self.system = (!text.is_empty()).then(|| text.to_owned());
        self.reset();
        Ok(())
    }

    /// Takes a line: a command, or a turn.
    fn take(&mut self, line: &str) -> anyhow::Result<Next> {
        let (command, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        match command {
            "" => {}
            "/help" => term::note(HELP),
            "/exit" | "/quit" => return Ok(Next::End),
            "/reset" => {
                self.reset();
                term::note(term::dim("a new conversation"));
            }
            "/system" => {
                self.set_system(rest.trim())?;
                term::note(term::dim("a new conversation"));
            }
            _ if command.starts_with("//") => return self.say(&line[line.find('/').unwrap_or(0) + 1..]),
            _ if command.starts_with('/') => {
                let what = format!(
                    "there is no command {command}: /help lists them, and //… says a text with a slash"
                );
                return Err(Usage(what).into());
            }
            _ => return self.say(line),
        }
        Ok(Next::Line)
    }

    /// Says `line` and streams the answer. A turn that brought nothing is as if it had not been.
    fn say(&mut self, line: &str) -> anyhow::Result<Next> {
        let answer = match &mut self.said {
            Said::Turns(chat) => {
                chat.messages.push(Message::new("user", line));
                let result = stream(|| self.model.chat(chat, &self.options), Some(&mut self.out));
                match &result {
                    Ok(answer) if !answer.reply.content.is_empty() || !answer.interrupted() => {
                        chat.messages.push(answer.reply.to_message());
                    }
                    _ => drop(chat.messages.pop()),
                }
                result
            }
            Said::Text(text) => {
                let before = text.len();
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                text.push_str(line);
                let result = stream(|| self.model.generate(text, &self.options), Some(&mut self.out));
                match &result {
                    Ok(answer) => text.push_str(&answer.reply.content),
                    Err(_) => text.truncate(before),
                }
                result
            }
        };
        let answer: Answer = answer.map_err(|error| match error.downcast_ref() {
            Some(backstop::Error::ContextFull { .. }) => {
                anyhow!("the conversation no longer fits: /reset begins a new one ({error})")
            }
            _ => error,
        })?;
        self.out.end_line()?;
        if self.summary {
            term::note(term::dim(&summary::turn(&answer, &self.model, &self.options)));
        }
        Ok(if answer.interrupted() { Next::Interrupted } else { Next::Line })
    }
}

/// Where lines come from.
enum Lines {
    /// A person, with editing and history.
    Editor(Box<DefaultEditor>, Option<PathBuf>),
    /// A file or a pipe, and the bytes read of it.
    Pipe(StdinLock<'static>, u64),
}

impl Lines {
    fn editor() -> anyhow::Result<Self> {
        // Lines that are given out belong to stdout; what is typed, to the terminal.
        let config = Config::builder().behavior(Behavior::PreferTerm).auto_add_history(true).build();
        let mut editor =
            DefaultEditor::with_config(config).context("the terminal cannot be used for editing")?;
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(ClearFirst)));
        let history = history_file();
        if let Some(file) = &history {
            // The first time there is none.
            let _ = editor.load_history(file);
        }
        Ok(Self::Editor(Box::new(editor), history))
    }

    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Editor(editor, history) => match editor.readline("> ") {
                Ok(line) => {
                    if let Some(file) = history
                        && let Err(error) = save(editor, file)
                    {
                        tracing::warn!("the history is not kept: {}: {error}", file.display());
                        *history = None;
                    }
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(error).context("the terminal"),
            },
            Self::Pipe(from, offset) => {
                let Some(mut bytes) = input::read_line(from).context("stdin")? else { return Ok(None) };
                let start = *offset;
                *offset += bytes.len() as u64;
                input::trim_line_end(&mut bytes);
                input::utf8(bytes, start).context("stdin").map(Some)
            }
        }
    }
}

fn save(editor: &mut DefaultEditor, file: &PathBuf) -> rustyline::Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    editor.append_history(file)
}

/// `$XDG_STATE_HOME/backstop/chat_history`, by default under `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .or_else(|| set("LOCALAPPDATA"))?;
    Some(state.join("backstop").join("chat_history"))
}

/// Ctrl-C takes back what was typed; only where that is nothing does it end.
struct ClearFirst;

impl ConditionalEventHandler for ClearFirst {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        (!context.line().is_empty()).then_some(Cmd::Kill(Movement::WholeBuffer))
    }
}
