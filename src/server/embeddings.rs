//! `POST /v1/embeddings`: the mean of the last hidden states, which is what a model that is no embedder has to offer.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::app::App;
use super::completions::prompts;
use super::failure::{Failure, json_body};
use super::params::IGNORED;
use super::request::{Reply, fields};
use crate::engine::CancelOnDrop;
use crate::error::{Error, Result};

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
    let place = Arc::new(app.places(1)?);
    // They run beside each other, and leave half of the engine's slots to others.
    let most = (app.model.engine().max_sequences() / 2).max(1);
    let (mut data, mut tokens) = (Vec::new(), 0);
    let mut running: VecDeque<Running> = VecDeque::new();
    for prompt in prompts {
        if running.len() == most
            && let Some(oldest) = running.pop_front()
        {
            data.push(item(data.len(), oldest.vector().await?, base64));
        }
        // Each by itself, so that a client that goes away is noticed in between.
        let ids = app.apart(move |model| prompt.encode(model, parse)).await?;
        tokens += ids.len();
        let place = Arc::clone(&place);
        let (sender, vector) = oneshot::channel();
        let take = move |answer| {
            // The place is free once the engine has let go of all of them.
            drop(place);
            // Whoever asked may have gone.
            let _ = sender.send(answer);
        };
        running.push_back(Running { _asked: app.model.start_embed(ids, take)?, vector });
    }
    for each in running {
        data.push(item(data.len(), each.vector().await?, base64));
    }
    Ok(json_body(&json!({
        "object": "list",
        "data": data,
        "model": app.name,
        "pooling": POOLING,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })))
}

/// A text that the engine embeds; dropping it cancels that.
struct Running {
    _asked: CancelOnDrop,
    vector: oneshot::Receiver<Result<Vec<f32>>>,
}

impl Running {
    async fn vector(self) -> Result<Vec<f32>, Failure> {
        let answer = self.vector.await;
        Ok(answer.map_err(|_| Error::Engine("it ended without an answer".into()))??)
    }
}

fn item(index: usize, vector: Vec<f32>, base64: bool) -> Value {
    let vector: Value = if base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        STANDARD.encode(bytes).into()
    } else {
        vector.into()
    };
    json!({ "object": "embedding", "index": index, "embedding": vector })
}
