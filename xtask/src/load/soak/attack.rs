//! What a hostile client does, each thing for itself.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::plan;
use super::question::{Api, story};
use super::raw;
use crate::load::client::{self, PATIENCE, Reading};

/// A way to be hostile.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Attack {
    /// A schema of multiples of a large number
    Multiples,
    /// A schema of many patterns at once
    Patterns,
    /// A schema of multiples of several large numbers at once
    Products,
    /// A grammar that reads a text in very many ways
    Ambiguity,
    /// Prompts full of special tokens
    Specials,
    /// Prompts longer than the context
    Long,
    /// 8 MB for /tokenize
    Tokenize,
    /// As many pieces of /tokenize as it tells
    Pieces,
    /// Guesses at how the prompts of others begin
    Probes,
    /// What a browser sends for a page of another site
    Browsers,
    /// Requests that are framed in two ways, or in unknown ones
    Framing,
    /// Hundreds of heads that never end
    HalfHeads,
    /// Bodies that come byte by byte
    SlowSenders,
    /// Streams that are hardly read
    SlowReaders,
    /// Bodies over the limit
    Oversize,
    /// Requests that are left at once
    Cancels,
}

/// Connections that an attack with many of them keeps.
const MANY: usize = 400;
const SENDERS: usize = 64;
const READERS: usize = 6;
/// How often each of them sends a byte.
const PAUSE: Duration = Duration::from_millis(500);
/// What tells somebody to stop here, on any kind of work.
const REFUSALS: [u16; 5] = [400, 413, 422, 429, 503];

/// What an attack came to: how often each status was its answer, 0 where none was waited for or none came.
#[derive(Debug, Default)]
pub struct Made(Mutex<BTreeMap<u16, usize>>);

impl Made {
    fn add(&self, status: u16) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
    }

    pub fn shown(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |(status, count): (&u16, &usize)| match status {
            0 => format!("{count} without an answer"),
            status => format!("{count} × {status}"),
        };
        all.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// A hostile client.
pub struct Hostile<'a> {
    pub address: SocketAddr,
    pub key: &'a str,
    /// Prompts of the client beside it.
    pub secrets: &'a [String],
    pub done: &'a AtomicBool,
    pub made: &'a Made,
}

impl Attack {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Attacks until it is told to be done.
    ///
    /// # Errors
    /// An answer that no client may get.
    pub fn run(self, hostile: &Hostile<'_>) -> Result<()> {
        let schema = |schema: Value| {
            let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
            json!({ "prompt": "x", "max_tokens": 16, "response_format": format })
        };
        let completions = Api::Completions.path();
        match self {
            Self::Multiples => {
                let big = [99_999_989, 99_999_971, 99_999_959, 99_999_941];
                let bodies = big.map(|number| schema(json!({ "type": "integer", "multipleOf": number })));
                hostile.repeat(completions, &bodies)
            }
            Self::Patterns => {
                let pattern =
                    |i: usize| json!({ "type": "string", "pattern": format!("^(.*a.{{{i}}}b.*)$") });
                let all: Vec<Value> = (20..32).map(pattern).collect();
                hostile.repeat(completions, &[schema(json!({ "allOf": all }))])
            }
            Self::Products => {
                let all = [99_991, 99_989, 99_971, 99_961, 99_929].map(|n| json!({ "multipleOf": n }));
                hostile.repeat(completions, &[schema(json!({ "type": "integer", "allOf": all }))])
            }
            Self::Ambiguity => {
                let grammars = ["start: a\na: a a | /x/", "start: a\na: a a a | a a | /x/ | \"\""];
                let bodies = grammars.map(|grammar| {
                    let format = json!({ "type": "lark", "grammar": grammar });
                    // Without what ends the built-in model's texts it goes on to its last token.
                    json!({ "prompt": "x", "max_tokens": 400, "temperature": 0, "logit_bias": { "1": -100 },
                        "response_format": format })
                });
                hostile.repeat(completions, &bodies)
            }
            Self::Specials => {
                // The built-in model's own, as many as its context takes; those of many models, as many as a body takes.
                let (own, all) = ("<s></s>", "<s></s><unk><|im_start|><|im_end|><|endoftext|>");
                let bodies = [own.repeat(200), own.repeat(1_000_000), all.repeat(170_000)]
                    .map(|prompt| json!({ "prompt": prompt, "max_tokens": 4 }));
                hostile.repeat(completions, &bodies)
            }
            Self::Long => {
                let bodies = ["cat ", "a", "é", "\n "]
                    .map(|text| json!({ "prompt": text.repeat(7_000_000 / text.len()), "max_tokens": 4 }));
                hostile.repeat(completions, &bodies)
            }
            Self::Tokenize => {
                let bodies = ["Once upon a time ", "a", "\u{1f980}"]
                    .map(|text| json!({ "content": text.repeat(8_000_000 / text.len()) }));
                hostile.repeat("/tokenize", &bodies)
            }
            Self::Pieces => {
                let body = |bytes: usize| json!({ "content": "xq".repeat(bytes / 2), "with_pieces": true });
                hostile.repeat("/tokenize", &[body(250_000), body(8_000_000)])
            }
            Self::Probes => hostile.probe(),
            Self::Browsers => hostile.browse(),
            Self::Framing => hostile.frame(),
            Self::HalfHeads => {
                let head = format!("POST {completions} HTTP/1.1\r\nhost: {}\r\nx-slow: ", hostile.address);
                hostile.drip(MANY, head.as_bytes())
            }
            Self::SlowSenders => {
                let head =
                    client::head(hostile.address, completions, Some(hostile.key), "content-length: 4000\r\n");
                hostile.drip(SENDERS, head.as_bytes())
            }
            Self::SlowReaders => hostile.read_slowly(),
            Self::Oversize => hostile.until_done(|number| {
                raw::oversize(hostile.address, Some(hostile.key), super::scatter(number as u64)).map(|_| 413)
            }),
            Self::Cancels => hostile.until_done(|number| {
                let body = json!({ "prompt": story(number as u64, 60), "max_tokens": 300, "stream": true });
                let reading = Reading { leave: Some(number % 4), ..Reading::default() };
                client::ask(hostile.address, completions, Some(hostile.key), &body, reading)
                    .map(|answer| answer.status)
            }),
        }
    }
}

impl Hostile<'_> {
    /// Acts until it is told to be done, and counts the statuses.
    fn until_done(&self, mut act: impl FnMut(usize) -> Result<u16>) -> Result<()> {
        for number in 0.. {
            if self.done.load(Ordering::Relaxed) {
                break;
            }
            self.made.add(act(number)?);
        }
        Ok(())
    }

    /// Sends the same bodies again and again, which may be answered or refused, and does not wait for ever.
    fn repeat(&self, path: &str, bodies: &[Value]) -> Result<()> {
        let requests: Vec<Vec<u8>> = bodies
            .iter()
            .map(|body| client::post(self.address, path, Some(self.key), body.to_string().as_bytes()))
            .collect();
        self.until_done(|number| {
            let answer = self.send(&requests[number % requests.len()], false)?;
            let status = client::status(&answer)?;
            let text = || String::from_utf8_lossy(&answer[..answer.len().min(600)]).into_owned();
            ensure!(status.is_none_or(|s| s == 200 || REFUSALS.contains(&s)), "{}", text());
            Ok(status.unwrap_or_default())
        })
    }

    /// Sends a request and reads its answer to the end of the connection, or what there is of it when all is done; on a
    /// connection that may stay open, until nothing more comes.
    fn send(&self, request: &[u8], stays: bool) -> Result<Vec<u8>> {
        let mut connection = client::connect(self.address)?;
        connection.set_read_timeout(Some(Duration::from_millis(200)))?;
        let _ = connection.write_all(request);
        let (mut answer, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        let start = std::time::Instant::now();
        loop {
            match connection.read(&mut buffer) {
                Ok(0) => return Ok(answer),
                // What follows is of no interest.
                Ok(count) if answer.len() < 4096 => answer.extend_from_slice(&buffer[..count]),
                Ok(_) => {}
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Ok(answer),
                Err(_) if self.done.load(Ordering::Relaxed) || (stays && !answer.is_empty()) => {
                    return Ok(answer);
                }
                Err(_) => ensure!(start.elapsed() < PATIENCE, "no answer in {} s", PATIENCE.as_secs()),
            }
        }
    }

    /// Asks with the beginnings of another's prompts: nothing of them may be told to be cached.
    fn probe(&self) -> Result<()> {
        self.until_done(|number| {
            let secret = &self.secrets[number % self.secrets.len()];
            let mut body = json!({ "prompt": secret, "max_tokens": 1, "temperature": 0 });
            // The first guess of each is as the other asks; what it leaves is the guesser's own.
            if number >= self.secrets.len() {
                body["cache_salt"] = json!(format!("guess {number}"));
            }
            let request = client::post(
                self.address,
                Api::Completions.path(),
                Some(self.key),
                body.to_string().as_bytes(),
            );
            let answer = self.send(&request, false)?;
            let status = client::status(&answer)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&answer);
            let body =
                text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str::<Value>(body).ok());
            // One that was broken off tells nothing.
            let Some(body) = body.filter(|_| status == 200) else { return Ok(status) };
            let cached = body.pointer("/usage/prompt_tokens_details/cached_tokens");
            let cached = cached.and_then(Value::as_u64).context("no cached_tokens")?;
            ensure!(cached == 0, "{cached} tokens of another's prompt are told to be cached");
            Ok(status)
        })
    }

    /// Heads as a browser sends them for other sites' pages: all are refused.
    fn browse(&self) -> Result<()> {
        let body = json!({ "prompt": "x", "max_tokens": 1 }).to_string();
        let heads = [
            "sec-fetch-site: cross-site\r\n",
            "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\n",
            "origin: http://evil.test\r\n",
            "origin: null\r\n",
            "origin: http://evil.test\r\norigin: http://localhost\r\n",
            "origin: http://localhost:1\r\nsec-fetch-site: same-site\r\n",
            "host: evil.test\r\n",
        ];
        let requests = heads.map(|more| {
            let more = format!("{more}content-length: {}\r\n", body.len());
            client::head(self.address, Api::Completions.path(), Some(self.key), &more) + &body
        });
        self.until_done(|number| {
            let answer = self.send(requests[number % requests.len()].as_bytes(), false)?;
            plan::refused(&answer, &[400, 403])?;
            Ok(client::status(&answer)?.unwrap_or_default())
        })
    }

    /// Requests whose end is told in two ways, or in an unknown one: none is read as two.
    fn frame(&self) -> Result<()> {
        let (second, chunk) = ("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", "0\r\n\r\n");
        let cases = [
            ("content-length: 5\r\ntransfer-encoding: chunked\r\n", format!("{chunk}{second}")),
            ("transfer-encoding: chunked\r\ncontent-length: 5\r\n", format!("{chunk}{second}")),
            ("content-length: 2\r\ncontent-length: 3\r\n", format!("{{}}{second}")),
            ("transfer-encoding: gzip, chunked\r\n", format!("{chunk}{second}")),
            ("transfer-encoding: identity\r\ncontent-length: 2\r\n", format!("{{}}{second}")),
            ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", format!("{chunk}{second}")),
            ("expect: a-reply\r\ncontent-length: 2\r\n", "{}".to_owned()),
            ("transfer-encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n".to_owned()),
            ("content-length: +2\r\n", "{}".to_owned()),
        ];
        let requests = cases.map(|(head, rest)| {
            // Without `connection: close`, so that what follows could be read as another request.
            let head = client::head(self.address, "/tokenize", Some(self.key), head);
            head.replace("connection: close\r\n", "") + &rest
        });
        self.until_done(|number| {
            let answer = self.send(requests[number % requests.len()].as_bytes(), true)?;
            ensure!(
                !answer.windows(12).any(|some| some == b"HTTP/1.1 200"),
                "a request was read as two, or at all"
            );
            plan::refused(&answer, &[400, 408, 417, 501])?;
            Ok(client::status(&answer)?.unwrap_or_default())
        })
    }

    /// Keeps connections open, each of which begins with `head` and goes on by a byte now and then; those that end are
    /// opened anew.
    fn drip(&self, connections: usize, head: &[u8]) -> Result<()> {
        let open = || -> Option<TcpStream> {
            self.made.add(0);
            let mut connection = TcpStream::connect(self.address).ok()?;
            connection.write_all(head).ok()?;
            Some(connection)
        };
        let mut slow: Vec<Option<TcpStream>> = Vec::new();
        slow.resize_with(connections, || None);
        while !self.done.load(Ordering::Relaxed) {
            for connection in &mut slow {
                if self.done.load(Ordering::Relaxed) {
                    break;
                }
                let sent = connection.as_mut().map(|connection| connection.write_all(b" "));
                if !matches!(sent, Some(Ok(()))) {
                    *connection = open();
                }
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Some streams at a time, read by a few bytes.
    fn read_slowly(&self) -> Result<()> {
        let body = json!({ "prompt": "Once upon a time", "max_tokens": 440, "ignore_eos": true, "stream": true, "n": 2 });
        let request =
            client::post(self.address, Api::Completions.path(), Some(self.key), body.to_string().as_bytes());
        let one = || -> Result<()> {
            self.until_done(|_| {
                let mut connection = client::connect(self.address)?;
                connection.write_all(&request)?;
                let mut few = [0; 64];
                for _ in 0..200 {
                    if self.done.load(Ordering::Relaxed) || !matches!(connection.read(&mut few), Ok(1..)) {
                        break;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                Ok(0)
            })
        };
        thread::scope(|scope| {
            let running: Vec<_> = (0..READERS).map(|_| scope.spawn(one)).collect();
            running.into_iter().try_for_each(|reader| match reader.join() {
                Ok(result) => result,
                Err(_) => bail!("a reader panicked"),
            })
        })
    }
}
