//! Answers as streams, of server-sent events or of lines of JSON: a body that takes what the engine has made whenever the connection has room for it.
//!
//! Nothing runs for an answer but this body, on a thread that answers requests (see `handlers`). A client that goes away drops it,
//! which ends the sequences; of one that does not read, the connection is ended (see `connection`), which drops it too.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::answers::{Answers, Update, Usage};
use super::failure::{Dialect, Failure};
use super::request::Reply;

/// How often a stream that has nothing to say shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Bytes of events that are made before the connection is asked to write them.
const CHUNK: usize = 16 << 10;

/// Events on their way out.
#[derive(Debug, Default)]
pub(crate) struct Events(Vec<u8>);

impl Events {
    /// `data: …`
    pub fn data(&mut self, value: &Value) {
        self.text(&value.to_string());
    }

    /// `data: …`, of what is no JSON.
    pub fn text(&mut self, text: &str) {
        for part in [b"data: ", text.as_bytes(), b"\n\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// `event: NAME` and `data: …`
    pub fn named(&mut self, name: &str, value: &Value) {
        for part in [b"event: ", name.as_bytes(), b"\n"] {
            self.0.extend_from_slice(part);
        }
        self.data(value);
    }

    /// A line of JSON. What other languages take for the end of a line stands in texts alone, and is escaped there.
    pub fn line(&mut self, value: &Value) {
        let mut text = value.to_string();
        if text.contains(['\u{85}', '\u{2028}', '\u{2029}']) {
            for (end, escaped) in [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")] {
                text = text.replace(end, escaped);
            }
        }
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'\n');
    }

    /// What is no part of the line of JSON that follows, and shows that there is somebody.
    pub fn space(&mut self) {
        self.0.push(b' ');
    }

    /// The event by which Anthropic's API shows the same.
    pub fn ping(&mut self) {
        self.named("ping", &json!({ "type": "ping" }));
    }

    /// A line that clients skip.
    pub fn comment(&mut self) {
        self.0.extend_from_slice(b": waiting\n\n");
    }
}

/// The type of a stream of events.
const EVENTS: &str = "text/event-stream";
/// The type of a stream of lines of JSON.
pub(crate) const LINES: &str = "application/x-ndjson";

/// Writes one API's events.
pub(crate) trait Encoder: Send + Unpin + 'static {
    /// The type of the stream.
    const KIND: &str = EVENTS;
    /// Before the first token.
    fn begin(&mut self, out: &mut Events);
    /// Each update in the order in which they come.
    fn update(&mut self, update: Update, out: &mut Events);
    /// After the last.
    fn end(&mut self, usage: Usage, out: &mut Events);
    /// In place of what would have followed.
    fn fail(&mut self, failure: &Failure, out: &mut Events);
    /// While there is nothing else.
    fn heartbeat(&mut self, out: &mut Events) {
        out.comment();
    }
}

/// The answer that streams `answers` by `encoder`.
pub(crate) fn stream<E: Encoder>(answers: Answers, encoder: E) -> Response {
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.reset();
    let body = Stream { answers: Some(answers), encoder, heartbeat, begun: false };
    (stream_headers(E::KIND), Body::new(body)).into_response()
}

/// An answer that is yet to come: until it does, what clients of the API of `path` skip shows that somebody is at work. What it
/// fails with is told in the words of that API.
pub(crate) fn later(answer: impl Future<Output = Reply> + Send + 'static, path: &str) -> Response {
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (dialect, responses) = (Dialect::of(path), path == "/v1/responses");
    let kind = if matches!(dialect, Dialect::Ollama) { LINES } else { EVENTS };
    let body = Later { at: At::Waits(Box::pin(answer)), heartbeat, dialect, responses };
    (stream_headers(kind), Body::new(body)).into_response()
}

/// Where an answer is that is yet to come.
enum At {
    Waits(Pin<Box<dyn Future<Output = Reply> + Send>>),
    Goes(Body),
    Ended,
}

struct Later {
    at: At,
    heartbeat: Interval,
    dialect: Dialect,
    /// Whether failures are told as `/v1/responses` tells them.
    responses: bool,
}

impl Later {
    fn failed(&self, failure: &Failure) -> Events {
        tracing::warn!(error = failure.message, "a stream ends with an error before it begins");
        let mut out = Events::default();
        match self.dialect {
            Dialect::OpenAi if self.responses => {
                let code = if failure.status.is_server_error() { "server_error" } else { "invalid_prompt" };
                let error = json!({ "type": "error", "sequence_number": 0, "code": code,
                    "message": failure.message, "param": failure.param });
                out.named("error", &error);
            }
            Dialect::OpenAi => out.data(&failure.json(self.dialect)),
            Dialect::Anthropic => out.named("error", &failure.json(self.dialect)),
            Dialect::Ollama => out.line(&failure.json(self.dialect)),
        }
        out
    }
}

impl HttpBody for Later {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            let this = &mut *self;
            let mut out = Events::default();
            match &mut this.at {
                At::Ended => return Poll::Ready(None),
                At::Goes(body) => return Pin::new(body).poll_frame(cx),
                At::Waits(answer) => match answer.as_mut().poll(cx) {
                    Poll::Ready(Ok(response)) => {
                        this.at = At::Goes(response.into_body());
                        continue;
                    }
                    Poll::Ready(Err(failure)) => {
                        out = this.failed(&failure);
                        this.at = At::Ended;
                    }
                    Poll::Pending if this.heartbeat.poll_tick(cx).is_pending() => return Poll::Pending,
                    Poll::Pending => {
                        // The timer is to wake this task for its next tick.
                        let _ = this.heartbeat.poll_tick(cx);
                        match this.dialect {
                            Dialect::OpenAi => out.comment(),
                            Dialect::Anthropic => out.ping(),
                            Dialect::Ollama => out.space(),
                        }
                    }
                },
            }
            return Poll::Ready(Some(Ok(Frame::data(out.0.into()))));
        }
    }
}

/// What tells a client, and whoever stands between, that parts of the answer come one by one.
fn stream_headers(kind: &'static str) -> [(HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Proxies that buffer would turn a stream into a wait.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]
}

struct Stream<E> {
    /// None once all has been said.
    answers: Option<Answers>,
    encoder: E,
    heartbeat: Interval,
    begun: bool,
}

impl<E: Encoder> HttpBody for Stream<E> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(answers) = &mut this.answers else { return Poll::Ready(None) };
        let mut out = Events::default();
        if !std::mem::replace(&mut this.begun, true) {
            this.encoder.begin(&mut out);
        }
        while out.0.len() < CHUNK {
            match answers.poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(update))) => this.encoder.update(update, &mut out),
                Poll::Ready(Some(Err(failure))) => {
                    tracing::warn!(error = failure.message, "a stream ends with an error");
                    this.encoder.fail(&failure, &mut out);
                    this.answers = None;
                    break;
                }
                Poll::Ready(None) => {
                    this.encoder.end(answers.usage(), &mut out);
                    this.answers = None;
                    break;
                }
            }
        }
        if out.0.is_empty() {
            if this.heartbeat.poll_tick(cx).is_pending() {
                return Poll::Pending;
            }
            // The timer is to wake this task for its next tick.
            let _ = this.heartbeat.poll_tick(cx);
            this.encoder.heartbeat(&mut out);
        } else {
            this.heartbeat.reset();
        }
        Poll::Ready(Some(Ok(Frame::data(out.0.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.answers.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_framed() {
        let mut events = Events::default();
        events.data(&json!({ "a": "x\ny" }));
        events.named("ping", &json!({}));
        events.text("[DONE]");
        events.space();
        events.line(&json!({ "a": "x\ny" }));
        events.line(&json!({ "a": "\u{85}\u{2028}\u{2029}" }));
        let wanted = concat!(
            "data: {\"a\":\"x\\ny\"}\n\nevent: ping\ndata: {}\n\ndata: [DONE]\n\n {\"a\":\"x\\ny\"}\n",
            "{\"a\":\"\\u0085\\u2028\\u2029\"}\n"
        );
        assert_eq!(String::from_utf8(events.0).unwrap(), wanted);
    }
}
