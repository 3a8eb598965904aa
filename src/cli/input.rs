//! Text from stdin: bounded, and UTF-8 or an error.

use std::io::{BufRead, Read, stdin};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{anyhow, bail};

use super::term;

/// Bytes that a prompt may have: what the tokenizer takes.
const MOST: u64 = 32 << 20;

/// Whether something is piped in: a file, a pipe or a socket, and not what a script leaves of a terminal, such as /dev/null.
pub fn is_piped() -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata("/dev/stdin").map(|meta| meta.file_type());
    kind.is_ok_and(|kind| kind.is_file() || kind.is_fifo() || kind.is_socket())
}

/// All of stdin. Where nothing comes for a while, it is said what is waited for.
pub fn read_stdin() -> anyhow::Result<Vec<u8>> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (done, waiting) = channel::<()>();
    let note = std::thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            term::note("note: reading stdin to its end; `< /dev/null` leaves it out");
        }
    });
    let bytes = read_all(&mut stdin().lock());
    drop(done);
    let _ = note.join();
    bytes
}

/// All of it.
pub fn read_all(from: &mut impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MOST + 1).read_to_end(&mut bytes)?;
    check_length(&bytes)?;
    Ok(bytes)
}

/// The next line, with its end; nothing at the end.
pub fn read_line(from: &mut impl BufRead) -> anyhow::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    from.take(MOST + 1).read_until(b'\n', &mut bytes)?;
    check_length(&bytes)?;
    Ok((!bytes.is_empty()).then_some(bytes))
}

fn check_length(bytes: &[u8]) -> anyhow::Result<()> {
    if bytes.len() as u64 > MOST {
        bail!("it is longer than a prompt may be, {MOST} bytes");
    }
    Ok(())
}

/// Takes one `\n` or `\r\n` off the end: every `echo` and editor adds it, and nobody means it.
pub fn trim_line_end(bytes: &mut Vec<u8>) {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
}

/// The bytes as text; `offset` is where they begin in the input.
pub fn utf8(bytes: Vec<u8>, offset: u64) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[at];
        anyhow!(
            "byte {} (0x{byte:02x}) is not UTF-8: convert the text first, as with iconv",
            offset + at as u64
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_dropped_and_bad_bytes_are_named() {
        for (bytes, left) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a\r", "a\r"), ("", "")] {
            let mut bytes = bytes.as_bytes().to_vec();
            trim_line_end(&mut bytes);
            assert_eq!(bytes, left.as_bytes());
        }
        let error = utf8(b"ab\xffc".to_vec(), 10).unwrap_err().to_string();
        assert!(error.starts_with("byte 12 (0xff) is not UTF-8"), "{error}");
        let mut endless = std::io::repeat(b'a');
        assert!(read_all(&mut endless).is_err());
    }
}
