//! `POST /v1/rerank`: documents in the order in which a cross-encoder finds that they answer a query, in the shape that Cohere, Jina
//! and vLLM share.

use std::sync::Arc;

use serde_json::{Value, json};

use super::beside::Beside;
use super::cut;
use super::embeddings::MAX_INPUTS;
use super::failure::{Failure, json_body};
use super::json::{Fields, shown};
use super::params::IGNORED;
use super::request::Reply;
use super::served::Served;
use crate::alloc;
use crate::text::Cut;

pub(crate) async fn create(app: Arc<Served>, mut fields: Fields) -> Reply {
    app.model.check_ranks()?;
    let query = fields.string("query")?;
    let query: Arc<str> = fields.required("query", query)?.into();
    let documents = documents(&mut fields)?;
    let top = fields
        .whole("top_n", 1, u64::MAX)?
        .map_or(usize::MAX, |top| usize::try_from(top).unwrap_or(usize::MAX));
    let with_documents = fields.flag("return_documents")?.unwrap_or(false);
    let parse = fields.flag("parse_special")?;
    let second = fields.whole("max_tokens_per_doc", 1, 1 << 30)?.map(|most| most as usize);
    let cut = Cut { most: cut::most_tokens(&mut fields, &app.model)?, second };
    fields.ignore(&IGNORED);
    fields.finish()?;
    let mut beside: Beside<f32> = Beside::new(&app)?;
    let (mut scores, mut tokens) = (Vec::new(), 0);
    for (index, document) in documents.iter().enumerate() {
        scores.extend(beside.room().await?);
        let (query, document) = (Arc::clone(&query), alloc::text_of(document, "a document")?);
        let pair = app.apart(move |model| model.encode_pair_cut(&query, &document, parse, cut)).await;
        let checked = pair.and_then(|pair| Ok(app.model.check_tokens(&pair.0).map(|()| pair)?));
        let pair = checked.map_err(|failure| failure.of_item("documents", index))?;
        tokens += pair.0.len();
        beside.start(|take| app.model.start_rank(pair, take))?;
    }
    while let Some(score) = beside.next().await? {
        scores.push(score);
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Of equal ones the first.
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(top);
    let result = |&index: &usize| {
        let mut result = json!({ "index": index, "relevance_score": scores[index] });
        if with_documents {
            result["document"] = json!({ "text": documents[index] });
        }
        result
    };
    Ok(json_body(&json!({
        "id": app.id("rerank-"),
        "model": app.name,
        "results": order.iter().map(result).collect::<Vec<_>>(),
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })))
}

/// The documents: texts, or objects that have one.
fn documents(fields: &mut Fields) -> Result<Vec<String>, Failure> {
    let given = fields.list("documents")?;
    let given = fields.required("documents", given)?;
    if given.is_empty() || given.len() > MAX_INPUTS {
        return Err(
            fields.wrong("documents", format_args!("{} texts, expected 1 to {MAX_INPUTS}", given.len()))
        );
    }
    let text = |item: Value| match item {
        Value::String(text) => Ok(text),
        Value::Object(mut members) => match members.shift_remove("text") {
            Some(Value::String(text)) => Ok(text),
            _ => Err(fields.wrong("documents", "expected a text in each object")),
        },
        other => {
            let what = format!("expected texts, or objects with one, got {}", shown(&other));
            Err(fields.wrong("documents", what))
        }
    };
    given.into_iter().map(text).collect()
}
