//! `/tokenize`, `/detokenize` and `/apply-template`: the tokenizer and the chat template as they are.

use std::sync::Arc;

use axum::extract::{Request, State};
use serde::Serialize;
use serde_json::{Value, json};

use super::app::App;
use super::failure::{Failure, json_body, json_text};
use super::json::shown;
use super::request::{Reply, fields};
use crate::chat::Shown;
use crate::text::Specials;
use crate::{Error, Result};

/// Tokens whose texts are told: each takes some hundred bytes.
const MAX_PIECES: usize = 1 << 18;

// Written at once: a million values of JSON take far more memory than their text.
#[derive(Serialize)]
struct Tokens<T> {
    tokens: Vec<T>,
    count: usize,
}

#[derive(Serialize)]
struct Piece {
    id: u32,
    piece: Option<String>,
}

#[derive(Serialize)]
struct Prompt {
    prompt: String,
    tokens: Vec<u32>,
}

fn written(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Tokenizer(e.to_string()))
}

/// `{"content": TEXT, "add_special": false, "parse_special": true, "with_pieces": false}` → `{"tokens": […], "count": N}`
pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    app.check_model(fields.string("model")?.as_deref())?;
    let content = fields.string("content")?;
    let content = fields.required("content", content)?;
    let add = fields.flag("add_special")?.unwrap_or(false);
    let parse = fields.flag("parse_special")?.unwrap_or(true);
    let pieces = fields.flag("with_pieces")?.unwrap_or(false);
    fields.finish()?;
    let body = app
        .apart(move |model| {
            let tokenizer = model.tokenizer()?;
            let ids = tokenizer.encode_with(&content, Specials { add, parse })?;
            let count = ids.len();
            if !pieces {
                return Ok(Ok(written(&Tokens { tokens: ids, count })?));
            }
            if count > MAX_PIECES {
                return Ok(Err(count));
            }
            let piece = |&id: &u32| Piece { id, piece: tokenizer.token_text(id) };
            let tokens = ids.iter().map(piece).collect();
            Ok(Ok(written(&Tokens { tokens, count })?))
        })
        .await?;
    let body = body.map_err(|count| {
        let what = format!("true takes at most {MAX_PIECES} tokens, and the text has {count}");
        Failure::field("with_pieces", what)
    })?;
    Ok(json_text(body))
}

/// A conversation as the model is given it, in llama.cpp's form: `{"messages": […]}`, with `tools` and what else a chat takes, →
/// `{"prompt": TEXT, "tokens": […]}`
pub(crate) async fn apply_template(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    app.check_model(fields.string("model")?.as_deref())?;
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
pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    app.check_model(fields.string("model")?.as_deref())?;
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
    let content = app.apart(move |model| model.tokenizer()?.decode(&ids)).await?;
    Ok(json_body(&json!({ "content": content })))
}
