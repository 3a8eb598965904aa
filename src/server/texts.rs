//! `/tokenize`, `/detokenize` and `/apply-template`: the tokenizer and the chat template as they are.

use std::convert::Infallible;
use std::iter::{from_fn, once};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use serde::Serialize;
use serde_json::{Value, json};

use super::budget::Charge;
use super::failure::{Failure, json_text};
use super::json::{Fields, shown};
use super::request::Reply;
use super::served::Served;
use crate::chat::Shown;
use crate::error::{Error, Result};
use crate::text::{Specials, Tokenizer};

/// Tokens whose texts are told: each takes some hundred bytes.
const MAX_PIECES: usize = 1 << 18;
/// Bytes of a JSON text that are made before the connection is asked to write them.
const CHUNK: usize = 64 << 10;
/// Tokens, and bytes of a text, that are written at once.
const BLOCK: usize = 1 << 10;

#[derive(Serialize)]
struct Prompt {
    prompt: String,
    tokens: Vec<u32>,
}

fn written(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Tokenizer(e.to_string()))
}

/// The parts of a JSON text that are not made yet.
trait Parts: Iterator<Item = String> + Send + Unpin + 'static {}
impl<T: Iterator<Item = String> + Send + Unpin + 'static> Parts for T {}

/// A JSON text, a chunk at a time: the next is made when its client has read the ones before.
struct Chunks<P> {
    parts: P,
    /// The first, while nothing has been read.
    first: Option<String>,
}

/// The next chunk; it is shorter than one where nothing follows.
fn chunk(parts: &mut impl Parts) -> String {
    let mut chunk = String::new();
    while chunk.len() < CHUNK
        && let Some(part) = parts.next()
    {
        chunk += &part;
    }
    chunk
}

impl<P: Parts> HttpBody for Chunks<P> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.first.take().unwrap_or_else(|| chunk(&mut self.parts));
        Poll::Ready((!chunk.is_empty()).then(|| Ok(Frame::data(chunk.into()))))
    }
}

/// The answer that `parts` make up: whole where they are few, else as it is read.
fn streamed(mut parts: impl Parts) -> Response {
    let first = chunk(&mut parts);
    if first.len() < CHUNK {
        return json_text(first);
    }
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([kind], Body::new(Chunks { parts, first: Some(first) })).into_response()
}

/// `{"tokens": […], "count": N}`, the tokens with their texts where there is a tokenizer to tell them.
fn tokens(ids: Vec<u32>, told: Option<Tokenizer>, charge: Charge) -> impl Parts {
    let count = ids.len();
    let each = (0..count).step_by(BLOCK).map(move |from| {
        let _held = &charge;
        let mut part = String::new();
        for (i, &id) in ids.iter().enumerate().skip(from).take(BLOCK) {
            part += if i == 0 { "" } else { "," };
            match &told {
                None => part += &id.to_string(),
                Some(tokenizer) => {
                    part += &json!({ "id": id, "piece": tokenizer.token_text(id) }).to_string();
                }
            }
        }
        part
    });
    once("{\"tokens\":[".to_owned()).chain(each).chain(once(format!("],\"count\":{count}}}")))
}

/// `{"content": TEXT}`
fn content(text: String, charge: Charge) -> impl Parts {
    let mut at = 0;
    let each = from_fn(move || {
        let _held = &charge;
        let least = (at + BLOCK).min(text.len());
        let end = (least..text.len()).find(|&end| text.is_char_boundary(end)).unwrap_or(text.len());
        let quoted = Value::from(&text[at..end]).to_string();
        let more = at < end;
        at = end;
        more.then(|| quoted[1..quoted.len() - 1].to_owned())
    });
    once("{\"content\":\"".to_owned()).chain(each).chain(once("\"}".to_owned()))
}

/// `{"content": TEXT, "add_special": false, "parse_special": true, "with_pieces": false}` → `{"tokens": […], "count": N}`
pub(crate) async fn tokenize(app: Arc<Served>, mut fields: Fields) -> Reply {
    let content = fields.string("content")?;
    let content = fields.required("content", content)?;
    let add = fields.flag("add_special")?.unwrap_or(false);
    let parse = fields.flag("parse_special")?.unwrap_or(true);
    let pieces = fields.flag("with_pieces")?.unwrap_or(false);
    fields.finish()?;
    let ids =
        app.apart(move |model| model.tokenizer()?.encode_with(&content, Specials { add, parse })).await?;
    let count = ids.len();
    if pieces && count > MAX_PIECES {
        let what = format!("true takes at most {MAX_PIECES} tokens, and the text has {count}");
        return Err(Failure::field("with_pieces", what));
    }
    let told = if pieces { Some(app.model.tokenizer()?.clone()) } else { None };
    let charge = app.budget.charge(size_of_val(&ids[..]));
    Ok(streamed(tokens(ids, told, charge)))
}

/// A conversation as the model is given it, in llama.cpp's form: `{"messages": […]}`, with `tools` and what else a chat takes, →
/// `{"prompt": TEXT, "tokens": […]}`
pub(crate) async fn apply_template(app: Arc<Served>, mut fields: Fields) -> Reply {
    let chat = super::chat::conversation(&mut fields)?;
    fields.finish()?;
    let body = app
        .apart(move |model| {
            let Shown { text: prompt, tokens } = model.show(&chat)?;
            written(&Prompt { prompt, tokens })
        })
        .await?;
    Ok(json_text(body))
}

/// `{"tokens": […]}` → `{"content": TEXT}`
pub(crate) async fn detokenize(app: Arc<Served>, mut fields: Fields) -> Reply {
    let tokens = fields.list("tokens")?;
    let tokens = fields.required("tokens", tokens)?;
    let vocab = app.model.info().config.vocab_size;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < vocab);
        id.ok_or_else(|| {
            fields.wrong("tokens", format_args!("expected token ids below {vocab}, got {}", shown(value)))
        })
    };
    let ids: Vec<u32> = tokens.iter().map(id).collect::<Result<_, _>>()?;
    fields.finish()?;
    let text = app.apart(move |model| model.tokenizer()?.decode(&ids)).await?;
    let charge = app.budget.charge(text.len());
    Ok(streamed(content(text, charge)))
}
