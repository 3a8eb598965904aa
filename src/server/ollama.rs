//! Ollama's API under `/api`, of the models that are served: what is asked is read in `asked`, what is answered is written in
//! `told`, and `models` tells what there is.

mod asked;
mod models;
mod pull;
mod told;
mod vectors;

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use serde_json::json;

use super::answers::{Answers, Job};
use super::app::App;
use super::chosen::Wanted;
use super::completions::Prompt;
use super::failure::{Dialect, Failure, json_body};
use super::json::Fields;
use super::request::Reply;
use super::served::Served;
use super::sse;
use crate::model::Model;
use crate::models::Keep;
use crate::text::{Chat, Message, PromptEnd};
use asked::Asked;
pub(crate) use models::{ps, show, tags, version};
pub(crate) use pull::{pull, refuse};
use told::{Lines, Shape, Told};
pub(crate) use vectors::{embed, embed_one};

/// What is said to who asks for nothing but that a model be unloaded which is not loaded.
pub(crate) fn unload(app: &App, wanted: &Wanted, fields: &Fields) -> Option<Response> {
    let told = if wanted.path == "/api/chat" { Told::Chat } else { Told::Generate };
    let empty =
        |field: &str| fields.peek(field).is_none_or(|value| *value == json!("") || *value == json!([]));
    if wanted.keep != Keep::For(Duration::ZERO) || !empty("prompt") || !empty("messages") {
        return None;
    }
    // One that is on its way goes when those who wait for it have used it.
    if let Ok(name) = app.find(wanted.called.as_deref(), Dialect::Ollama) {
        let _ = app.models.unload(&name);
    }
    Some(json_body(&told::idle(wanted.called.as_deref().unwrap_or_default(), told, "unload")))
}

/// What a text is generated from.
enum Source {
    Chat(Box<Chat>),
    /// A text that goes on, or is filled in before another.
    Text {
        prompt: String,
        suffix: Option<String>,
    },
    /// Nothing: the client only wants the model to be loaded.
    Nothing,
}

/// `POST /api/chat`
pub(crate) async fn chat(app: Arc<Served>, mut fields: Fields) -> Reply {
    let mut asked = Asked::take(&app, &mut fields)?;
    let messages = asked::messages(&mut fields)?;
    let from = if messages.is_empty() {
        fields.ignore(&["tools", "tool_choice"]);
        Source::Nothing
    } else {
        let goes_on = messages.last().is_some_and(|last| {
            last.role == "assistant"
                && last.content.as_str().is_some_and(|text| !text.is_empty())
                && !last.extra.contains_key("tool_calls")
        });
        let mut chat = Chat::new(messages);
        if goes_on {
            // In this API, too, a last message of the assistant's is the beginning of the answer.
            chat.prompt_end = PromptEnd::Within;
        }
        asked::tools(&mut fields, &mut chat)?;
        chat.variables = std::mem::take(&mut asked.variables);
        Source::Chat(Box::new(chat))
    };
    fields.finish()?;
    answer(app, asked, from, Told::Chat).await
}

/// `POST /api/generate`
pub(crate) async fn generate(app: Arc<Served>, mut fields: Fields) -> Reply {
    let mut asked = Asked::take(&app, &mut fields)?;
    let from = prompt(&app, &mut asked, &mut fields)?;
    fields.finish()?;
    answer(app, asked, from, Told::Generate).await
}

/// What `/api/generate` goes on from: a conversation of one question, or the text itself where that is asked for or the model
/// has no template.
fn prompt(app: &Served, asked: &mut Asked, fields: &mut Fields) -> Result<Source, Failure> {
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let system = fields.string("system")?.filter(|system| !system.is_empty());
    let raw = fields.flag("raw")?.unwrap_or(false);
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    fields.only("template", &["".into()])?;
    fields.only("images", &[Vec::<String>::new().into()])?;
    fields.only("context", &[Vec::<u32>::new().into()])?;
    if raw && system.is_some() {
        return Err(fields.wrong("system", "raw mode does not support it: write it into the prompt"));
    }
    if suffix.is_some() {
        if system.is_some() {
            // Ollama's templates of models that fill in have no place for it.
            fields.note("system");
        }
        return Ok(Source::Text { prompt, suffix });
    }
    if prompt.is_empty() {
        return Ok(Source::Nothing);
    }
    if raw || system.is_none() && !app.model.has_template() {
        return Ok(Source::Text { prompt, suffix });
    }
    let system = system.map(|system| Message::new("system", system));
    let mut chat = Chat::new(system.into_iter().chain([Message::new("user", prompt)]).collect());
    chat.variables = std::mem::take(&mut asked.variables);
    Ok(Source::Chat(Box::new(chat)))
}

async fn answer(app: Arc<Served>, asked: Asked, from: Source, told: Told) -> Reply {
    let Asked { mut options, format, stream, logprobs, .. } = asked;
    let shape = Shape { app: Arc::clone(&app), told, logprobs };
    let places;
    let job = match from {
        Source::Nothing => {
            app.model.check_generates()?;
            let reason = if app.keep == Keep::For(Duration::ZERO) { "unload" } else { "load" };
            return Ok(json_body(&told::idle(&app.called, told, reason)));
        }
        Source::Chat(chat) => {
            places = app.places(1)?;
            let turn = app.apart(move |model| model.prepare(&chat, format.as_ref())).await?;
            Job::of_turn(&turn, 1, options)
        }
        Source::Text { prompt, suffix } => {
            places = app.places(1)?;
            let made = move |model: &Model| {
                let constraint = format.map(|format| model.constraint(&format)).transpose()?;
                let prompt = Prompt::Text(prompt).encode_before(model, true, suffix.as_deref())?;
                Ok((prompt, constraint))
            };
            let (prompt, ends);
            ((prompt, ends), options.constraint) = app.apart(made).await?;
            options.stop_tokens.extend(ends);
            Job::plain(vec![prompt], 1, options)
        }
    };
    let answers = Answers::start(&app, &job, places)?;
    if stream {
        return Ok(sse::stream(answers, Lines::new(shape)));
    }
    let (texts, usage) = answers.collect().await?;
    Ok(json_body(&shape.whole(texts, usage)))
}
