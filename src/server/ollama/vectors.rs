//! `POST /api/embed`, and `/api/embeddings`, its older form.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::completions::{Prompt, prompts};
use super::super::embeddings::{MAX_INPUTS, Vectors, vectors};
use super::super::failure::{Failure, json_body};
use super::super::json::Fields;
use super::super::request::Reply;
use super::super::served::Served;
use super::asked;
use super::told::nanoseconds;

/// Vectors of length 1, as Ollama scales them. A text that is too long is cut unless `truncate` is false.
pub(crate) async fn embed(app: Arc<Served>, mut fields: Fields) -> Reply {
    let none = fields.peek("input").is_none_or(|input| *input == json!([]) || *input == json!(""));
    let prompts = match none {
        // Who sends nothing wants the model to be loaded.
        true => fields.take("input").map_or_else(Vec::new, |_| Vec::new()),
        false => prompts(&mut fields, "input", MAX_INPUTS)?,
    };
    let cut = fields.flag("truncate")?.unwrap_or(true);
    // In this API 0 is all of them.
    let dimensions = fields.whole("dimensions", 0, 1 << 20)?.filter(|&dimensions| dimensions > 0);
    let dimensions = dimensions.map(|dimensions| dimensions as usize);
    if let Some(dimensions) = dimensions {
        app.model.check_dimensions(dimensions)?;
    }
    let most = most(&app, &mut fields, cut)?;
    fields.finish()?;
    let made = match prompts.is_empty() {
        true => Vectors { vectors: Vec::new(), tokens: 0 },
        false => {
            vectors(&app, prompts, dimensions, move |model, prompt| prompt.encode_cut(model, true, most))
                .await?
        }
    };
    let vectors: Vec<Value> = made.vectors.into_iter().map(|vector| unit(vector).into()).collect();
    Ok(json_body(&json!({
        "model": app.called,
        "embeddings": vectors,
        "total_duration": nanoseconds(app.asked.elapsed()),
        "load_duration": nanoseconds(app.load),
        "prompt_eval_count": made.tokens,
    })))
}

/// One vector, as the model gives it.
pub(crate) async fn embed_one(app: Arc<Served>, mut fields: Fields) -> Reply {
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let most = most(&app, &mut fields, true)?;
    fields.finish()?;
    if prompt.is_empty() {
        return Ok(json_body(&json!({ "embedding": [] })));
    }
    let text = vec![Prompt::Text(prompt)];
    let made = vectors(&app, text, None, move |model, prompt| prompt.encode_cut(model, true, most)).await?;
    Ok(json_body(&json!({ "embedding": made.vectors.concat() })))
}

/// The tokens that a text is cut to, where `cut` says so: as many as the model takes, or as `num_ctx` says. The options of a sampler
/// are none of a vector's.
fn most(app: &Served, fields: &mut Fields, cut: bool) -> Result<Option<usize>, Failure> {
    let mut options = asked::given_options(fields)?;
    let context = options.whole("num_ctx", 0, 1 << 30)?.filter(|&tokens| tokens > 0).unwrap_or(u64::MAX);
    let most = app.model.cut_length().min(usize::try_from(context).unwrap_or(usize::MAX));
    Ok(cut.then_some(most))
}

/// A vector scaled to length 1; none has no direction.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 && (length - 1.0).abs() > 1e-6 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}
