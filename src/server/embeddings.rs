//! `POST /v1/embeddings`: the mean of the last hidden states, which is what a model that is no embedder has to offer.

use std::sync::Arc;

use axum::extract::{Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::app::App;
use super::completions::prompts;
use super::failure::json_body;
use super::params::IGNORED;
use super::request::{Reply, fields};

/// Texts of one request, as many as OpenAI's service takes.
const MAX_INPUTS: usize = 2048;
/// What the answer says of its vectors.
const POOLING: &str = "mean of the last layer's normed hidden states over all tokens, scaled to length 1; \
    this model was not trained to embed";

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    app.check_model(fields.string("model")?.as_deref())?;
    let prompts = prompts(&mut fields, "input", MAX_INPUTS)?;
    let parse = fields.flag("parse_special")?.unwrap_or(true);
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let what = format!("expected float or base64, got {}", crate::json::quote(other));
            return Err(fields.wrong("encoding_format", what));
        }
    };
    let size = app.model.info().config.hidden_size;
    fields.only("dimensions", &[size.into()])?;
    fields.ignore(&IGNORED);
    fields.finish()?;
    // Vectors take the engine's time, too, one after the other.
    let _place = app.places(1)?;
    let (mut data, mut tokens) = (Vec::new(), 0);
    for (index, prompt) in prompts.into_iter().enumerate() {
        // Each by itself, so that a client that goes away is noticed in between.
        let ids = app.apart(move |model| prompt.encode(model, parse)).await?;
        tokens += ids.len();
        let vector = app.beside(move |model| model.embed(&ids)).await?;
        let vector: Value = if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            STANDARD.encode(bytes).into()
        } else {
            vector.into()
        };
        data.push(json!({ "object": "embedding", "index": index, "embedding": vector }));
    }
    Ok(json_body(&json!({
        "object": "list",
        "data": data,
        "model": app.name,
        "pooling": POOLING,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })))
}
