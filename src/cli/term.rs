//! What depends on whether a person looks: colours, progress, control characters.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write, stderr};
use std::sync::mpsc::channel;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::termios::tcgetwinsize;

/// Writes a line to stderr; that nobody reads it is no error. What a file or a request put into it is shown, not obeyed.
pub fn note(line: impl Display) {
    let line = format!("{}\n", unstyled(&line.to_string()));
    let _ = Log.write_all(line.as_bytes());
}

/// Whether the last line of the terminal is one that gives way to the next.
static CHANGING: Mutex<bool> = Mutex::new(false);

/// Takes such a line away.
fn cleared() -> MutexGuard<'static, bool> {
    let mut changing = CHANGING.lock();
    if std::mem::take(&mut *changing) {
        // That nobody reads it is no error.
        let _ = stderr().write_all(b"\r\x1b[K");
    }
    changing
}

/// Shows a line on the terminal in place of the one that was shown so before; none takes it away.
pub fn show_changing(line: Option<&str>) {
    let Some(line) = line else { return drop(cleared()) };
    let columns = tcgetwinsize(stderr()).map_or(0, |size| usize::from(size.ws_col));
    let mut changing = CHANGING.lock();
    *changing = true;
    let _ = write!(stderr(), "\r{}\x1b[K", fitting(&one_line(line), columns));
}

/// As much of a line as a terminal of so many columns shows in one of its own, without the last one, behind which it would go on in
/// the next; all of it where nobody knows how many there are.
fn fitting(line: &str, columns: usize) -> &str {
    if columns == 0 {
        return line;
    }
    let mut left = columns - 1;
    // From Hangul on they may take two.
    let end = line.char_indices().find(|(_, c)| {
        let width = if *c < '\u{1100}' { 1 } else { 2 };
        let fits = width <= left;
        left = left.saturating_sub(width);
        !fits
    });
    end.map_or(line, |(at, _)| &line[..at])
}

/// Takes a line that changes away for good, as far as the terminal takes anything soon: the process is about to end.
pub fn clear_at_end() {
    /// How long a terminal may stand still that would hold up the end.
    const SOON: Duration = Duration::from_secs(2);
    let (done, gone) = channel();
    let clear = move || {
        // None comes after it.
        std::mem::forget(cleared());
        let _ = done.send(());
    };
    if std::thread::Builder::new().name("end".into()).spawn(clear).is_ok() {
        let _ = gone.recv_timeout(SOON);
    }
}

/// Stderr, for whole lines: one that changes gives way to them.
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _none_between = cleared();
        stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

    #[test]
    fn a_line_that_changes_stays_one() {
        for (columns, shown) in
            [(0, "loading é日本"), (14, "loading é日本"), (13, "loading é日"), (9, "loading "), (1, "")]
        {
            assert_eq!(fitting("loading é日本", columns), shown, "{columns}");
        }
    }
}
