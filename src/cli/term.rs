//! What depends on whether a person looks: colours, progress, control characters.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Writes a line to stderr; that nobody reads it is no error. What a file or a request put into it is shown, not obeyed.
pub fn note(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{}", unstyled(&line.to_string()));
}

/// `line` as [`visible`], but for our own styles.
fn unstyled(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut shown = visible(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        let ours = STYLES.iter().any(|style| part.starts_with(style));
        shown += if ours { "\x1b[" } else { "␛[" };
        shown += &visible(part);
    }
    shown
}

/// The ends of the sequences that [`styled`] writes.
const STYLES: [&str; 3] = ["1;31m", "2m", "0m"];

/// Whether stderr is a terminal that shows colours.
pub fn colours() -> bool {
    shows_colours(&stderr())
}

/// Whether it is a terminal that shows colours.
pub fn shows_colours(out: &impl IsTerminal) -> bool {
    let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
    out.is_terminal() && unset("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `text` in bold red on a terminal.
pub fn red(text: &str) -> Cow<'_, str> {
    styled(text, "1;31")
}

/// `text` dimmed on a terminal.
pub fn dim(text: &str) -> Cow<'_, str> {
    styled(text, "2")
}

fn styled<'a>(text: &'a str, code: &str) -> Cow<'a, str> {
    if colours() { format!("\x1b[{code}m{text}\x1b[0m").into() } else { text.into() }
}

/// `text` as it may go to a terminal: control characters but line ends and tabs are shown, not obeyed.
pub fn visible(text: &str) -> Cow<'_, str> {
    // Marks of direction could show a name in another order.
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t' || turns(c);
    if !text.contains(obeyed) {
        return text.into();
    }
    let show = |c: char| match c {
        // U+2400.. are pictures of the C0 controls.
        '\0'..='\x1f' if obeyed(c) => {
            char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
        c if obeyed(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(show).collect::<String>().into()
}

/// `text` as it may stand in a line of a table: line ends and tabs are shown, too.
pub fn one_line(text: &str) -> String {
    visible(text).replace('\n', "␊").replace('\t', "␉")
}

/// A line on a terminal that says what takes so long, until it is dropped. Nothing where stderr is not a terminal, or
/// for what is done before a person would wonder.
pub struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// What is over by then needs no line.
    const PATIENCE: Duration = Duration::from_millis(300);
    const TICK: Duration = Duration::from_millis(100);
    const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

    /// Shows what `what` says then, and the seconds since now.
    pub fn start(what: impl Fn() -> String + Send + 'static) -> Self {
        // One that obeys nothing would show what moves its cursor.
        if !stderr().is_terminal() || std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
            return Self(None);
        }
        let (stop, stopped) = channel();
        let started = Instant::now();
        let line = move || {
            let mut wait = Self::PATIENCE;
            let mut frames = Self::FRAMES.iter().cycle();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
                let seconds = started.elapsed().as_secs_f64();
                let frame = frames.next().unwrap_or(&' ');
                let what = one_line(&what());
                let _ = write!(stderr().lock(), "\r{frame} {what} … {seconds:.0} s\x1b[K");
                wait = Self::TICK;
            }
            if wait == Self::TICK {
                let _ = write!(stderr().lock(), "\r\x1b[K");
            }
        };
        let thread = std::thread::Builder::new().name("progress".into()).spawn(line);
        Self(thread.ok().map(|thread| (stop, thread)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(visible("a\tb\nč"), "a\tb\nč");
        assert_eq!(one_line("a\tb\nč"), "a␉b␊č");
        let line = "\x1b[1;31merror:\x1b[0m \x1b]0;title\x07 \x1b[31m\x1b[2J\x1b[";
        assert_eq!(unstyled(line), "\x1b[1;31merror:\x1b[0m ␛]0;title␇ ␛[31m␛[2J␛[");
        assert_eq!(visible("\x1b[31mred\x07\x7f\u{9b}1m"), "␛[31mred␇\u{fffd}\u{fffd}1m");
    }
}
