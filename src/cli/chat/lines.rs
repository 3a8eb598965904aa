//! Where the lines of a conversation come from: a person's typing, with history and completion, or a pipe.

use std::io::{StdinLock, stdin};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Behavior, Cmd, CompletionType, ConditionalEventHandler, Config, Context, Editor, Event, EventContext,
    EventHandler, Helper, KeyCode, KeyEvent, Modifiers, Movement, RepeatCount,
};

use super::super::{here, input, state, term};
use super::commands::COMMANDS;
use super::{expanded, settings};

/// What a text of several lines begins and ends with.
const QUOTES: &str = "\"\"\"";

/// Where lines come from.
pub enum Lines {
    /// A person, with editing and history.
    Editor { editor: Box<Editor<Typing, FileHistory>>, continued: Continued, history: Option<PathBuf> },
    /// A file or a pipe, and the bytes read of it.
    Pipe(StdinLock<'static>, u64),
}

impl Lines {
    pub fn pipe() -> Self {
        Self::Pipe(stdin().lock(), 0)
    }

    /// A person's; `keep` has what is said in a file from one conversation to the next.
    pub fn editor(keep: bool) -> anyhow::Result<Self> {
        // Lines that are given out belong to stdout; what is typed, to the terminal.
        let config =
            Config::builder().behavior(Behavior::PreferTerm).completion_type(CompletionType::List).build();
        let mut editor = Editor::with_config(config).context("the terminal cannot be used for editing")?;
        editor.set_helper(Some(Typing));
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(ClearFirst)));
        let continued = Continued::default();
        let enter = KeyEvent(KeyCode::Enter, Modifiers::NONE);
        editor.bind_sequence(enter, EventHandler::Conditional(Box::new(GoOn(Arc::clone(&continued)))));
        let history = state::file("chat_history").filter(|_| keep);
        if let Some(file) = &history {
            // The first time there is none.
            let _ = editor.load_history(file);
        }
        Ok(Self::Editor { editor: Box::new(editor), continued, history })
    }

    /// The next line, or several that are one text; nothing at the end.
    pub fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Editor { editor, continued, history } => {
                let mut interrupted = false;
                loop {
                    continued.lock().clear();
                    match editor.readline("> ") {
                        Ok(line) => {
                            let line = without_marks(&line, &continued.lock());
                            editor.add_history_entry(line.as_str()).context("the history")?;
                            if let Some(file) = history
                                && let Err(error) = save(editor, file)
                            {
                                tracing::warn!("the history is not kept: {}: {error}", file.display());
                                *history = None;
                            }
                            return Ok(Some(line));
                        }
                        Err(ReadlineError::Interrupted) if !interrupted => {
                            interrupted = true;
                            term::note(term::dim("Ctrl-C once more, or Ctrl-D, ends"));
                        }
                        Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
                        Err(error) => return Err(error).context("the terminal"),
                    }
                }
            }
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

/// What stands between `"""` and `"""`, without the line ends beside these.
pub fn unquoted(text: &str) -> Option<String> {
    let inner = text.trim().strip_prefix(QUOTES)?.strip_suffix(QUOTES)?;
    let inner = inner.strip_prefix('\n').unwrap_or(inner);
    Some(inner.strip_suffix('\n').unwrap_or(inner).to_owned())
}

/// Whether `"""` was opened, and is to be closed in a line that comes.
fn is_open(text: &str) -> bool {
    let text = text.trim();
    let text = text.strip_prefix("/system").unwrap_or(text).trim_start();
    text.starts_with(QUOTES) && unquoted(text).is_none()
}

/// Keeps what was said, for its owner alone.
fn save(editor: &mut Editor<Typing, FileHistory>, file: &Path) -> rustyline::Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    editor.append_history(file)?;
    if std::fs::metadata(file).is_ok_and(|file| file.permissions().mode() & 0o077 != 0) {
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o600))?;
    }
    Ok(())
}

/// Ctrl-C takes back what was typed; only where that is nothing does it end.
struct ClearFirst;

impl ConditionalEventHandler for ClearFirst {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        (!context.line().is_empty()).then_some(Cmd::Kill(Movement::WholeBuffer))
    }
}

/// What stood before the cursor each time that Enter came behind a backslash.
type Continued = Arc<Mutex<Vec<String>>>;

/// Enter behind a backslash goes on in the next line.
struct GoOn(Continued);

impl ConditionalEventHandler for GoOn {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        let (line, at) = (context.line(), context.pos());
        let goes_on = at == line.len() && line.ends_with('\\') && !is_open(line);
        goes_on.then(|| {
            self.0.lock().push(line.to_owned());
            Cmd::Insert(1, "\n".to_owned())
        })
    }
}

/// A text without the backslashes that were typed to go on behind them. What is pasted keeps its own.
fn without_marks(text: &str, continued: &[String]) -> String {
    let goes_on = |before: &&String| text.strip_prefix(&***before).is_some_and(|rest| rest.starts_with('\n'));
    let marks: Vec<usize> = continued.iter().filter(goes_on).map(|before| before.len() - 1).collect();
    text.char_indices().filter(|(at, _)| !marks.contains(at)).map(|(_, c)| c).collect()
}

/// What helps a person to type.
pub struct Typing;

impl Helper for Typing {}
impl Highlighter for Typing {}
impl Hinter for Typing {
    type Hint = String;
}

impl Validator for Typing {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_open(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Typing {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        Ok(completed(&line[..at], here::names))
    }
}

/// Where what can be completed begins, and how it may go on.
fn completed(typed: &str, models: impl FnOnce() -> Vec<String>) -> (usize, Vec<Pair>) {
    let pair =
        |text: &str, more: &str| Pair { display: text.to_owned(), replacement: format!("{text}{more}") };
    let begins = |from: usize| {
        let word = typed[from..].to_owned();
        move |name: &&str| name.starts_with(&word)
    };
    if !typed.starts_with('/') {
        return (typed.len(), Vec::new());
    }
    let Some((command, rest)) = typed.split_once(' ') else {
        let all = COMMANDS
            .iter()
            .flat_map(|spelling| spelling.names.iter().map(move |name| (*name, spelling.arguments)));
        let found = all.filter(|(name, _)| begins(0)(name));
        return (0, found.map(|(name, more)| pair(name, if more.is_empty() { "" } else { " " })).collect());
    };
    let rest = rest.trim_start();
    let from = typed.len() - rest.len();
    match command {
        "/set" => match rest.split_once(' ') {
            None => {
                let names = settings::NAMES.iter().map(|(name, _)| *name).filter(begins(from));
                (from, names.map(|name| pair(name, " ")).collect())
            }
            Some((setting, value)) => {
                let from = typed.len() - value.trim_start().len();
                let values = settings::NAMES
                    .iter()
                    .filter(|(name, _)| *name == setting)
                    .flat_map(|(_, values)| *values);
                (from, values.copied().filter(begins(from)).map(|value| pair(value, "")).collect())
            }
        },
        "/save" => paths(typed, from),
        "/load" => {
            let (at, mut found) = paths(typed, from);
            // A path's last part is completed, or a whole name.
            if at == from || found.is_empty() {
                let models = models();
                let names: Vec<&str> = models.iter().map(String::as_str).filter(begins(from)).collect();
                found.extend(names.into_iter().map(|name| pair(name, "")));
                return (from, found);
            }
            (at, found)
        }
        _ => (typed.len(), Vec::new()),
    }
}

/// The files whose path begins as what stands at `from` does.
fn paths(typed: &str, from: usize) -> (usize, Vec<Pair>) {
    let path = &typed[from..];
    let begun = path.rfind('/').map_or(0, |slash| slash + 1);
    let (dir, begun_name) = path.split_at(begun);
    let dir = if dir.is_empty() { PathBuf::from(".") } else { expanded(dir) };
    let mut found: Vec<Pair> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // Files that are hidden have to be begun, and a name with line ends could not be typed.
            let hidden = name.starts_with('.') && !begun_name.starts_with('.');
            if !name.starts_with(begun_name) || hidden || name.contains(char::is_control) {
                return None;
            }
            let slash = if entry.path().is_dir() { "/" } else { "" };
            let name = format!("{name}{slash}");
            Some(Pair { display: name.clone(), replacement: name })
        })
        .collect();
    found.sort_by(|a, b| a.display.cmp(&b.display));
    (from + begun, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quotes_hold_several_lines() {
        for (text, inner) in [
            ("\"\"\"a\"\"\"", Some("a")),
            (" \"\"\"\na\n b \\\n\"\"\" ", Some("a\n b \\")),
            ("\"\"\"\"\"\"", Some("")),
            ("\"\"\"a", None),
            ("\"\"\"\"", None),
            ("a \"\"\"b\"\"\"", None),
        ] {
            assert_eq!(unquoted(text).as_deref(), inner, "{text}");
        }
        for (text, open) in [
            ("\"\"\"a", true),
            ("\"\"\"\"\"", true),
            ("/system \"\"\"a\nb", true),
            ("\"\"\"a\nb\"\"\"", false),
            ("/system \"\"\"a\"\"\"", false),
            ("a \"\"\"", false),
            ("/save \"\"\"", false),
        ] {
            assert_eq!(is_open(text), open, "{text}");
        }
    }

    #[test]
    fn a_backslash_goes_where_it_was_typed_to_go_on() {
        for (text, continued, left) in [
            ("a\\\nb", &["a\\"][..], "a\nb"),
            ("a\\\nb\\\nc", &["a\\", "a\\\nb\\"], "a\nb\nc"),
            // Pasted, and changed behind its back.
            ("a\\\nb", &[], "a\\\nb"),
            ("x\\\nb", &["a\\"], "x\\\nb"),
            ("a\\", &["a\\"], "a\\"),
        ] {
            let continued: Vec<String> = continued.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(without_marks(text, &continued), left, "{text:?}");
        }
    }

    #[test]
    fn commands_settings_models_and_paths_are_completed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("ab")).unwrap();
        for name in ["a.json", "b.json", ".hidden"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let completed = |typed: &str| {
            let models = || vec!["qwen3:8b".to_owned(), "org/a b".to_owned()];
            let (from, found) = super::completed(typed, models);
            (from, found.into_iter().map(|pair| pair.replacement).collect::<Vec<_>>())
        };
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(completed("/s"), (0, list(&["/system ", "/set ", "/save ", "/show"])));
        assert_eq!(completed("/re"), (0, list(&["/reset", "/regenerate", "/retry"])));
        assert_eq!(completed("/set top"), (5, list(&["top-k ", "top-p "])));
        assert_eq!(completed("/set thoughts f"), (14, list(&["fold"])));
        assert_eq!(completed("/load qw"), (6, list(&["qwen3:8b"])));
        assert_eq!(completed("/load org/"), (6, list(&["org/a b"])));
        let root = dir.path().display().to_string();
        let from = root.len() + 7;
        assert_eq!(completed(&format!("/load {root}/a")), (from, list(&["a.json", "ab/"])));
        assert_eq!(completed(&format!("/save {root}/")), (from, list(&["a.json", "ab/", "b.json"])));
        assert_eq!(completed(&format!("/save {root}/.")), (from, list(&[".hidden"])));
        assert_eq!(completed("hello /s"), (8, list(&[])));
        assert_eq!(completed("/undo a"), (7, list(&[])));
    }
}
