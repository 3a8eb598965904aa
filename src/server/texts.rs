//! `/tokenize`, `/detokenize` and `/apply-template`: the tokenizer and the chat template as they are.

use std::sync::Arc;

use axum::extract::{Request, State};
use serde_json::{Value, json};

use super::app::App;
use super::failure::json_body;
use super::json::shown;
use super::request::{Reply, fields};
use crate::text::Specials;

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
    let tokens = app
        .apart(move |model| {
            let tokenizer = model.tokenizer()?;
            let ids = tokenizer.encode_with(&content, Specials { add, parse })?;
            let shown = |id: &u32| json!({ "id": id, "piece": tokenizer.token_text(*id) });
            Ok(if pieces { ids.iter().map(shown).collect() } else { json!(ids) })
        })
        .await?;
    let count = tokens.as_array().map_or(0, Vec::len);
    Ok(json_body(&json!({ "tokens": tokens, "count": count })))
}

/// A conversation as the model is given it, in llama.cpp's form: `{"messages": […]}`, with `tools` and what else a chat takes, →
/// `{"prompt": TEXT, "tokens": […]}`
pub(crate) async fn apply_template(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    app.check_model(fields.string("model")?.as_deref())?;
    let chat = super::chat::conversation(&mut fields)?;
    fields.finish()?;
    let prompt = app.apart(move |model| model.show(&chat)).await?;
    Ok(json_body(&json!({ "prompt": prompt.text, "tokens": prompt.tokens })))
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
