//! `POST /v1/embeddings`: vectors of texts as the model's files say; of a model that is no embedder the mean of the last hidden
//! states, which is what it has to offer.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::beside::Beside;
use super::completions::{Prompt, prompts};
use super::cut;
use super::failure::{Failure, json_body};
use super::json::Fields;
use super::params::IGNORED;
use super::request::Reply;
use super::served::Served;
use crate::forward::Pooling;
use crate::model::Model;

/// Texts of one request, as many as OpenAI's service takes.
pub(crate) const MAX_INPUTS: usize = 2048;

pub(crate) async fn create(app: Arc<Served>, mut fields: Fields) -> Reply {
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
    let dimensions = fields.whole("dimensions", 1, 1 << 20)?.map(|dimensions| dimensions as usize);
    if let Some(dimensions) = dimensions {
        app.model.check_dimensions(dimensions)?;
    }
    let most = cut::most_tokens(&mut fields, &app.model)?;
    fields.ignore(&IGNORED);
    fields.finish()?;
    let Vectors { vectors, tokens } =
        vectors(&app, prompts, dimensions, move |model, prompt| prompt.encode_cut(model, parse, most))
            .await?;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| item(index, vector, base64));
    let data: Vec<Value> = data.collect();
    Ok(json_body(&json!({
        "object": "list",
        "data": data,
        "model": app.name,
        "pooling": said(app.model.pooling()?),
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })))
}

/// Vectors in the order of their texts, and how many tokens these have.
pub(crate) struct Vectors {
    pub vectors: Vec<Vec<f32>>,
    pub tokens: usize,
}

/// The vectors of the texts of `input`, shortened to `dimensions`, whose tokens `encode` makes.
pub(crate) async fn vectors(
    app: &Arc<Served>,
    prompts: Vec<Prompt>,
    dimensions: Option<usize>,
    encode: impl Fn(&Model, Prompt) -> crate::error::Result<Vec<u32>> + Copy + Send + 'static,
) -> Result<Vectors, Failure> {
    let mut beside: Beside<Vec<f32>> = Beside::new(app)?;
    let (mut vectors, mut tokens) = (Vec::new(), 0);
    // All of them before any is computed: one that cannot be is refused at once.
    let (mut encoded, several) = (Vec::new(), prompts.len() > 1);
    for (index, prompt) in prompts.into_iter().enumerate() {
        // Each by itself, so that a client that goes away is noticed in between.
        let ids = app.apart(move |model| encode(model, prompt)).await;
        let checked = ids.and_then(|ids| Ok(app.model.check_tokens(&ids).map(|()| ids)?));
        let named = |failure: Failure| if several { failure.of_item("input", index) } else { failure };
        encoded.push(checked.map_err(named)?);
    }
    for ids in encoded {
        vectors.extend(beside.room().await?);
        tokens += ids.len();
        beside.start(|take| app.model.start_embed(ids, take))?;
    }
    while let Some(vector) = beside.next().await? {
        vectors.push(vector);
    }
    if let Some(dimensions) = dimensions {
        let shortened = vectors.into_iter().map(|vector| app.model.shortened(vector, dimensions));
        vectors = shortened.collect::<crate::error::Result<_>>()?;
    }
    Ok(Vectors { vectors, tokens })
}

/// What the answer says of its vectors.
fn said(pooling: &Pooling) -> String {
    if !pooling.is_trained() {
        return "mean of the last layer's normed hidden states over all tokens, scaled to length 1; \
            no file of this model says how it embeds"
            .to_owned();
    }
    let dense = match pooling.dense_layers() {
        0 => String::new(),
        1 => ", through a dense layer".to_owned(),
        count => format!(", through {count} dense layers"),
    };
    let scaled = if pooling.normalizes() { ", scaled to length 1" } else { "" };
    format!("{}{dense}{scaled}", pooling.pool().name())
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
