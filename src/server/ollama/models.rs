//! What Ollama's API tells of the model, and what it does with models, which is refused: there is the one that the server was
//! started with.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::super::app::App;
use super::super::failure::{Failure, json_body};
use super::super::request::{Reply, fields};
use super::asked;
use crate::backend::LlmBackendKind;
use crate::text::strftime;

/// The version of Ollama whose API this is: clients refuse those that are too old for them.
const VERSION: &str = "0.12.6";
/// How long a model stays that is told to stay forever, in seconds: the longest of Go's durations.
const FOREVER: u64 = i64::MAX as u64 / 1_000_000_000;

/// `GET /api/version`
pub(crate) async fn version() -> Response {
    json_body(&json!({ "version": VERSION, "backstop": env!("CARGO_PKG_VERSION") }))
}

/// `GET /api/tags`: the model by each of its names.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let names = std::iter::once(&app.name).chain(app.options.aliases.iter().filter(|name| *name != "*"));
    let models: Vec<Value> = names.map(|name| entry(&app, name).into()).collect();
    json_body(&json!({ "models": models }))
}

/// `GET /api/ps`: the model, which stays loaded.
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Response {
    let mut model = entry(&app, &app.name);
    let size = app.model.info().weight_bytes + app.model.engine().load().kv.used;
    let on_gpu = app.model.info().selection.kind != LlmBackendKind::Cpu;
    model.shift_remove("modified_at");
    model.insert("size".into(), size.into());
    model.insert("size_vram".into(), if on_gpu { size } else { 0 }.into());
    model.insert("expires_at".into(), time_text(app.started + FOREVER, 0).into());
    model.insert("context_length".into(), app.model.info().context.into());
    json_body(&json!({ "models": [model] }))
}

/// `POST /api/show`
pub(crate) async fn show(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    asked::model(&app, &mut fields, &["model", "name"])?;
    // Lists of tokens and of tensors, which are not told.
    fields.hints(&["verbose"]);
    fields.only("system", &["".into()])?;
    fields.only("template", &["".into()])?;
    fields.ignore(&["options"]);
    fields.finish()?;
    let template = app.model.template().ok();
    Ok(json_body(&json!({
        "modelfile": "",
        "parameters": parameters(&app),
        "template": template.map_or("", |template| template.source_for(false)),
        "details": details(&app),
        "model_info": facts(&app),
        "capabilities": capabilities(&app),
        "modified_at": time_text(app.started, 0),
    })))
}

/// What is done with models: pulled, pushed, created, copied, deleted.
pub(crate) async fn refuse(request: Request) -> Failure {
    let path = request.uri().path();
    let what = path.split('/').nth(2).unwrap_or_default();
    let what = format!(
        "{what} is not supported: this server has the model that it was started with (backstop serve MODEL)"
    );
    Failure::new(StatusCode::BAD_REQUEST, what)
}

/// The model by one of its names, which has a tag in this API.
fn entry(app: &App, name: &str) -> Map<String, Value> {
    let name = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
    let mut entry = Map::new();
    entry.insert("name".into(), name.as_str().into());
    entry.insert("model".into(), name.into());
    entry.insert("modified_at".into(), time_text(app.started, 0).into());
    entry.insert("size".into(), app.model.info().weight_bytes.into());
    entry.insert("digest".into(), digest(app).into());
    entry.insert("details".into(), details(app));
    entry
}

/// Tells one model from another, in the form of the SHA-256 that Ollama has here: files are not read for it.
fn digest(app: &App) -> String {
    let info = app.model.info();
    let part = |part: usize| {
        let mut hasher = DefaultHasher::new();
        let config = &info.config;
        let sizes = (config.model_type, config.vocab_size, config.hidden_size, config.num_hidden_layers);
        (part, &info.name, info.weight_bytes, info.parameters, &info.weight_type, sizes).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    (0..4).map(part).collect()
}

fn details(app: &App) -> Value {
    let info = app.model.info();
    let family = info.config.model_type;
    json!({
        "parent_model": "",
        "format": if info.gguf { "gguf" } else { "safetensors" },
        "family": family,
        "families": [family],
        "parameter_size": size(info.parameters),
        "quantization_level": info.weight_type,
    })
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
fn parameters(app: &App) -> String {
    let of = app.model.default_sampling();
    let lines = [
        format!("num_ctx                        {}", app.model.info().context),
        format!("temperature                    {}", of.temperature),
        format!("top_k                          {}", of.top_k),
        format!("top_p                          {}", of.top_p),
        format!("min_p                          {}", of.min_p),
        format!("repeat_penalty                 {}", of.repeat_penalty),
    ];
    lines.join("\n")
}

/// The configuration by GGUF's names.
fn facts(app: &App) -> Value {
    let (info, config) = (app.model.info(), &app.model.info().config);
    let family = config.model_type;
    let mut facts = Map::new();
    facts.insert("general.architecture".into(), family.into());
    facts.insert("general.basename".into(), app.name.as_str().into());
    facts.insert("general.parameter_count".into(), info.parameters.into());
    for (name, value) in [
        // As much as is served: clients fill it.
        ("context_length", info.context),
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

/// What the model can do, by Ollama's names.
fn capabilities(app: &App) -> Vec<&'static str> {
    let mut out = Vec::new();
    if app.model.check_generates().is_ok() {
        out.push("completion");
    }
    if let Ok(template) = app.model.template() {
        let format = template.reply_format(true);
        if format.tools.is_some() {
            out.push("tools");
        }
        if format.reasoning.is_some() {
            out.push("thinking");
        }
    }
    if app.model.pooling().is_ok_and(|pooling| pooling.is_trained()) {
        out.push("embedding");
    }
    out
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
