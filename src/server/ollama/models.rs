//! What Ollama's API tells of models. What it does with them is in `pull`.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::super::app::{App, now};
use super::super::described::Described;
use super::super::failure::{Dialect, Failure, json_body};
use super::super::request::{Reply, fields};
use crate::backend::LlmBackendKind;
use crate::models::ModelStatus;
use crate::text::strftime;

/// The version of Ollama whose API this is: clients refuse those that are too old for them.
const VERSION: &str = "0.12.6";
/// How long a model stays that is told to stay forever, in seconds: the longest of Go's durations.
const FOREVER: u64 = i64::MAX as u64 / 1_000_000_000;

/// `GET /api/version`
pub(crate) async fn version() -> Response {
    json_body(&json!({ "version": VERSION, "backstop": env!("CARGO_PKG_VERSION") }))
}

/// `GET /api/tags`: the models by each of their names.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let mut models = Vec::new();
    for status in app.listed().await {
        let described = app.described(&status);
        let aliases = status.aliases.iter().filter(|name| *name != "*");
        let names = std::iter::once(&status.name).chain(aliases);
        models.extend(names.map(|name| {
            let mut entry = entry(&app, &status, described.as_deref(), name);
            if let Some(described) = &described {
                entry.insert("capabilities".into(), described.capabilities.clone().into());
            }
            Value::from(entry)
        }));
    }
    json_body(&json!({ "models": models }))
}

/// `GET /api/ps`: the models that are loaded, and until when; those that stay longest come first.
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Response {
    let mut models = Vec::new();
    for status in app.models.list() {
        let (Some(model), described) = (&status.model, app.described(&status)) else { continue };
        let mut entry = entry(&app, &status, described.as_deref(), &status.name);
        let size = model.info().weight_bytes + model.engine().load().kv.used;
        let on_gpu = model.info().selection.kind != LlmBackendKind::Cpu;
        let expires = match status.expires_in {
            Some(time) => now().saturating_add(time.as_secs()).min(FOREVER),
            None => app.started + FOREVER,
        };
        entry.shift_remove("modified_at");
        entry.insert("size".into(), size.into());
        entry.insert("size_vram".into(), if on_gpu { size } else { 0 }.into());
        entry.insert("expires_at".into(), time_text(expires, 0).into());
        entry.insert("context_length".into(), model.info().context.into());
        models.push((Reverse(expires), Value::from(entry)));
    }
    models.sort_by_key(|(expires, _)| *expires);
    let models: Vec<Value> = models.into_iter().map(|(_, entry)| entry).collect();
    json_body(&json!({ "models": models }))
}

/// `POST /api/show`
pub(crate) async fn show(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    let (model, name) = (fields.string("model")?, fields.string("name")?);
    let called = [model, name].into_iter().flatten().find(|called| !called.is_empty());
    // Lists of tokens and of tensors, which are not told.
    fields.hints(&["verbose"]);
    fields.only("system", &["".into()])?;
    fields.only("template", &["".into()])?;
    fields.ignore(&["options"]);
    fields.finish()?;
    app.look_for(called.as_deref(), Dialect::Ollama).await;
    let name = app.find(called.as_deref(), Dialect::Ollama)?;
    let status = app.models.list().into_iter().find(|status| status.name == name);
    let status = status.ok_or_else(|| Failure::bad("the model is gone"))?;
    let described = app.describe(&status).await?;
    Ok(json_body(&json!({
        "modelfile": "",
        "parameters": parameters(&described),
        "template": described.template,
        "details": details(Some(&described)),
        "model_info": facts(&described, &name),
        "capabilities": described.capabilities,
        "modified_at": time_text(app.started, 0),
    })))
}

/// The model by one of its names, which has a tag in this API.
fn entry(app: &App, status: &ModelStatus, described: Option<&Described>, name: &str) -> Map<String, Value> {
    let name = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
    let mut entry = Map::new();
    entry.insert("name".into(), name.as_str().into());
    entry.insert("model".into(), name.into());
    entry.insert("modified_at".into(), time_text(app.started, 0).into());
    entry.insert("size".into(), status.size.unwrap_or_default().into());
    entry.insert("digest".into(), digest(status).into());
    entry.insert("details".into(), details(described));
    entry
}

/// Tells one model from another, in the form of the SHA-256 that Ollama has here: files are not read for it.
fn digest(status: &ModelStatus) -> String {
    let part = |part: usize| {
        let mut hasher = DefaultHasher::new();
        (part, &status.name).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    (0..4).map(part).collect()
}

/// What kind of model it is; of one whose files cannot be read, nothing.
fn details(described: Option<&Described>) -> Value {
    let format = described.map_or("", |of| if of.gguf { "gguf" } else { "safetensors" });
    let family = described.map_or("", |of| of.config.model_type);
    let mut details = json!({
        "parent_model": "",
        "format": format,
        "family": family,
        "families": described.map(|of| [of.config.model_type]),
        "parameter_size": described.map_or_else(String::new, |of| size(of.parameters)),
        "quantization_level": described.map_or("", |of| &of.weight_type),
    });
    if let Some(of) = described {
        // As much as is served.
        details["context_length"] = of.context.into();
        details["embedding_length"] = of.config.hidden_size.into();
    }
    details
}

/// `8.0B`, `260.03K`: as Ollama writes a number of parameters.
fn size(parameters: u64) -> String {
    let (thousand, million, billion) = (1_000, 1_000_000, 1_000_000_000);
    let of = |unit: u64| parameters as f64 / unit as f64;
    match parameters {
        n if n >= billion => format!("{:.1}B", of(billion)),
        n if n >= million => format!("{:.2}M", of(million)),
        n if n >= thousand => format!("{:.2}K", of(thousand)),
        n => n.to_string(),
    }
}

/// What a request leaves open, a line each, as a Modelfile has it.
fn parameters(described: &Described) -> String {
    let of = &described.sampling;
    let lines = [
        format!("num_ctx                        {}", described.context),
        format!("temperature                    {}", of.temperature),
        format!("top_k                          {}", of.top_k),
        format!("top_p                          {}", of.top_p),
        format!("min_p                          {}", of.min_p),
        format!("repeat_penalty                 {}", of.repeat_penalty),
    ];
    lines.join("\n")
}

/// The configuration by GGUF's names.
fn facts(described: &Described, name: &str) -> Value {
    let config = &described.config;
    let family = config.model_type;
    let mut facts = Map::new();
    facts.insert("general.architecture".into(), family.into());
    facts.insert("general.basename".into(), name.into());
    facts.insert("general.parameter_count".into(), described.parameters.into());
    for (name, value) in [
        // As much as is served: clients fill it.
        ("context_length", described.context),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("vocab_size", config.vocab_size),
    ] {
        facts.insert(format!("{family}.{name}"), value.into());
    }
    facts.into()
}

/// The present, as RFC 3339 has it.
pub(super) fn now_text() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    time_text(now.as_secs(), now.subsec_nanos())
}

fn time_text(seconds: u64, nanoseconds: u32) -> String {
    // This format has no code that there is not.
    let text = strftime("%FT%T", seconds).unwrap_or_default();
    match nanoseconds {
        0 => format!("{text}Z"),
        _ => format!("{text}.{nanoseconds:09}Z"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_rfc_3339() {
        assert_eq!(time_text(1_700_000_000, 0), "2023-11-14T22:13:20Z");
        assert_eq!(time_text(1_700_000_000, 5), "2023-11-14T22:13:20.000000005Z");
        assert_eq!(time_text(FOREVER, 0), "2262-04-11T23:47:16Z");
    }

    #[test]
    fn parameters_are_told_as_ollama_tells_them() {
        let told = [999, 260_032, 134_515_008, 8_030_261_248].map(size);
        assert_eq!(told, ["999", "260.03K", "134.52M", "8.0B"]);
    }
}
