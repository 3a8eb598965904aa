//! A client of `/v1/completions`: one request on one connection, read as it comes.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long an answer may keep a client waiting.
const PATIENCE: Duration = Duration::from_secs(300);

/// What came of a request.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub text: String,
    /// Events with a choice: about one for each token.
    pub events: usize,
    /// Tokens by the server's own count.
    pub tokens: usize,
    /// From the request to the first event with a choice, in seconds.
    pub first: Option<f64>,
    /// From the request to the end.
    pub total: f64,
    /// Whether the stream came to its `[DONE]`.
    pub whole: bool,
}

/// Sends `body` and reads the stream to its end, or until `leave` events have come, and then goes away.
pub fn stream(address: SocketAddr, path: &str, body: &Value, leave: Option<usize>) -> Result<Answer> {
    let body = body.to_string();
    let start = Instant::now();
    let mut connection = TcpStream::connect(address).context("cannot connect")?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes())?;
    connection.write_all(body.as_bytes())?;
    let mut answer = Answer::default();
    if leave == Some(0) {
        let _ = connection.shutdown(Shutdown::Both);
        return Ok(answer);
    }
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line).context("no answer")?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    answer.status = status.with_context(|| format!("no status in {line:?}"))?;
    let mut rest = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).context("the answer broke off")? == 0 {
            break;
        }
        let Some(data) = line.trim_end().strip_prefix("data: ") else {
            // Heads, sizes of chunks and, where it is no stream, the error.
            rest.push_str(&line);
            continue;
        };
        if data == "[DONE]" {
            answer.whole = true;
            continue;
        }
        let event: Value = serde_json::from_str(data).with_context(|| format!("no JSON: {data}"))?;
        if let Some(error) = event.get("error") {
            bail!("the stream holds an error: {error}");
        }
        if let Some(tokens) = event.pointer("/usage/completion_tokens").and_then(Value::as_u64) {
            answer.tokens = tokens as usize;
        }
        if let Some(choice) = event.pointer("/choices/0") {
            answer.first.get_or_insert_with(|| start.elapsed().as_secs_f64());
            answer.events += 1;
            answer.text += choice["text"].as_str().unwrap_or_default();
        }
        if leave.is_some_and(|leave| answer.events >= leave) {
            return Ok(answer);
        }
    }
    ensure!(answer.whole || answer.status != 200, "the stream has no end: {}", answer.text);
    if answer.status != 200 {
        answer.text = rest;
    }
    answer.total = start.elapsed().as_secs_f64();
    Ok(answer)
}
