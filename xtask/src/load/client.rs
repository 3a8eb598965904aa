//! A client of the routes that complete: one request on one connection, read as it comes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long an answer may keep a client waiting.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What came of a request.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// The text of each choice; of a refusal, its body.
    pub texts: Vec<String>,
    /// Events with text, or with a choice: about one for each token.
    pub events: usize,
    /// Tokens by the server's own count.
    pub tokens: usize,
    /// From the request to the first such event, in seconds.
    pub first: Option<f64>,
    /// From the request to the end.
    pub total: f64,
    /// Whether it came to its end.
    pub whole: bool,
}

impl Answer {
    /// The text of the first choice.
    pub fn text(&self) -> &str {
        self.texts.first().map_or("", String::as_str)
    }

    fn add(&mut self, index: usize, text: &str) {
        if self.texts.len() <= index {
            self.texts.resize(index + 1, String::new());
        }
        self.texts[index] += text;
    }
}

/// How a client reads.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reading {
    /// It is done after so many events.
    pub leave: Option<usize>,
    /// Then it stays for so long without reading, and reads what there is still to come.
    pub stop: Option<Duration>,
    /// It reads so many bytes at a time at most, and pauses before each time.
    pub pace: Option<(usize, Duration)>,
}

/// A reader that takes its time.
struct Paced(TcpStream, Option<(usize, Duration)>);

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some((most, pause)) = self.1 else { return self.0.read(buffer) };
        thread::sleep(pause);
        let most = most.min(buffer.len());
        self.0.read(&mut buffer[..most])
    }
}

/// A connection that waits for answers, but not for ever.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let connection = TcpStream::connect(address).context("cannot connect")?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

/// The head of a POST of JSON with the header lines `more`.
pub fn head(address: SocketAddr, path: &str, key: Option<&str>, more: &str) -> String {
    let key = key.map_or_else(String::new, |key| format!("x-api-key: {key}\r\n"));
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n{key}connection: close\r\n{more}\r\n"
    )
}

/// A POST of `body`, head and all.
pub fn post(address: SocketAddr, path: &str, key: Option<&str>, body: &[u8]) -> Vec<u8> {
    let length = format!("content-length: {}\r\n", body.len());
    [head(address, path, key, &length).as_bytes(), body].concat()
}

/// Sends `request` and reads whatever comes to the end of the connection, which may also break off.
pub fn raw(address: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut connection = connect(address)?;
    // Who refuses may answer before all is sent.
    let _ = connection.write_all(request);
    let mut answer = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("no answer in {} s", PATIENCE.as_secs())
            }
            Err(_) => return Ok(answer),
        }
    }
}

/// The status of an answer; none where nothing came.
pub fn status(answer: &[u8]) -> Result<Option<u16>> {
    if answer.is_empty() {
        return Ok(None);
    }
    let line = answer.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    Ok(Some(status.with_context(|| format!("no status in {line:?}"))?))
}

/// Sends `body` and reads the stream to its end, or until `leave` events have come, and then goes away.
pub fn stream(address: SocketAddr, path: &str, body: &Value, leave: Option<usize>) -> Result<Answer> {
    ask(address, path, None, body, Reading { leave, ..Reading::default() })
}

/// Sends `body` and reads the answer, streamed or not, as `reading` says.
pub fn ask(
    address: SocketAddr,
    path: &str,
    key: Option<&str>,
    body: &Value,
    reading: Reading,
) -> Result<Answer> {
    let start = Instant::now();
    let mut connection = connect(address)?;
    connection.write_all(&post(address, path, key, body.to_string().as_bytes()))?;
    let mut answer = Answer::default();
    if reading.leave == Some(0) {
        let _ = connection.shutdown(Shutdown::Both);
        return Ok(answer);
    }
    let capacity = reading.pace.map_or(8 << 10, |(most, _)| most);
    let mut reader = BufReader::with_capacity(capacity, Paced(connection, reading.pace));
    let mut line = String::new();
    reader.read_line(&mut line).context("no answer")?;
    answer.status = status(line.as_bytes())?.context("no answer")?;
    let mut rest = String::new();
    let mut stopped = false;
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => break,
            // Who does not read is cut off.
            Err(_) if stopped || reading.pace.is_some() => break,
            other => other.context("the answer broke off")?,
        };
        let Some(data) = line.trim_end().strip_prefix("data: ") else {
            // Heads, sizes of chunks, names of events and, where it is no stream, the body.
            rest.push_str(&line);
            continue;
        };
        if data == "[DONE]" {
            answer.whole = true;
            continue;
        }
        let event: Value = match serde_json::from_str(data) {
            Err(_) if !line.ends_with('\n') && (stopped || reading.pace.is_some()) => break,
            parsed => parsed.with_context(|| format!("no JSON: {data}"))?,
        };
        take(&mut answer, &event, start)?;
        if !stopped && reading.leave.is_some_and(|leave| answer.events >= leave) {
            let Some(stop) = reading.stop else { return Ok(answer) };
            stopped = true;
            thread::sleep(stop);
        }
    }
    // Behind the head's other lines.
    let body = rest.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if answer.status != 200 {
        answer.texts = vec![body.to_owned()];
    } else if !answer.whole && !stopped && reading.pace.is_none() {
        ensure!(body.starts_with('{'), "the stream has no end: {:?}", answer.texts);
        let body: Value = serde_json::from_str(body).with_context(|| format!("no JSON: {body}"))?;
        answer.texts = texts(&body).with_context(|| format!("no text in {body}"))?;
        answer.whole = true;
    }
    answer.total = start.elapsed().as_secs_f64();
    Ok(answer)
}

/// Takes what an event of any of the APIs brings.
fn take(answer: &mut Answer, event: &Value, start: Instant) -> Result<()> {
    if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
        bail!("the stream holds an error: {error}");
    }
    if let Some(tokens) = event.pointer("/usage/completion_tokens").and_then(Value::as_u64) {
        answer.tokens = tokens as usize;
    }
    let (index, text) = match (event["type"].as_str(), event.pointer("/choices/0")) {
        (_, Some(choice)) => {
            let text = choice["text"].as_str().or_else(|| choice.pointer("/delta/content")?.as_str());
            (choice["index"].as_u64().unwrap_or(0), text.unwrap_or_default())
        }
        (Some("response.output_text.delta"), _) => (0, event["delta"].as_str().unwrap_or_default()),
        (Some("content_block_delta"), _) => {
            (0, event.pointer("/delta/text").and_then(Value::as_str).unwrap_or_default())
        }
        (Some("response.completed" | "response.incomplete" | "message_stop"), _) => {
            answer.whole = true;
            return Ok(());
        }
        (Some(kind @ ("response.failed" | "error")), _) => bail!("the stream ends with {kind}: {event}"),
        _ => return Ok(()),
    };
    answer.first.get_or_insert_with(|| start.elapsed().as_secs_f64());
    answer.events += 1;
    answer.add(index as usize, text);
    Ok(())
}

/// The texts of an answer that is no stream.
fn texts(body: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(choices) = body["choices"].as_array() {
        let of =
            |choice: &Value| choice.get("text").or_else(|| choice.pointer("/message/content")).and_then(text);
        return choices.iter().map(of).collect();
    }
    let blocks = match body["output"].as_array() {
        Some(items) => items.iter().find_map(|item| item["content"].as_array())?,
        None => body["content"].as_array()?,
    };
    Some(vec![blocks.iter().filter_map(|block| block["text"].as_str()).collect()])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_found_in_the_answers_of_every_api() {
        for body in [
            json!({ "choices": [{ "text": "ab" }] }),
            json!({ "choices": [{ "message": { "content": "ab" } }] }),
            json!({ "output": [{ "type": "reasoning" }, { "content": [{ "type": "output_text", "text": "ab" }] }] }),
            json!({ "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }),
        ] {
            assert_eq!(texts(&body), Some(vec!["ab".to_owned()]), "{body}");
        }
        assert_eq!(texts(&json!({ "error": {} })), None);
    }

    #[test]
    fn events_of_every_api_are_taken() {
        let mut answer = Answer::default();
        for event in [
            json!({ "choices": [{ "index": 1, "text": "a" }] }),
            json!({ "choices": [{ "index": 1, "delta": { "content": "b" } }] }),
            json!({ "type": "response.output_text.delta", "delta": "c" }),
            json!({ "type": "content_block_delta", "delta": { "text": "d" } }),
            json!({ "type": "ping" }),
            json!({ "type": "message_stop" }),
        ] {
            take(&mut answer, &event, Instant::now()).unwrap();
        }
        assert_eq!((answer.texts, answer.events, answer.whole), (vec!["cd".into(), "ab".into()], 4, true));
        let error = json!({ "type": "error", "error": { "message": "x" } });
        assert!(take(&mut Answer::default(), &error, Instant::now()).is_err());
    }

    #[test]
    fn a_status_is_read_or_missing() {
        assert_eq!(status(b"HTTP/1.1 413 Payload Too Large\r\nx").unwrap(), Some(413));
        assert_eq!(status(b"").unwrap(), None);
        assert!(status(b"SSH-2.0\r\n").is_err());
    }
}
