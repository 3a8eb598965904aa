//! What requests of several APIs have in common: sampling, stops, limits, messages.

use serde_json::{Map, Value, json};

use super::answers::any_seed;
use super::failure::Failure;
use super::json::{Fields, shown};
use super::served::Served;
use crate::generate::Options;
use crate::sample::SamplingOptions;
use crate::text::{Message, PromptEnd};

/// Most tokens that a request may ask for, far above any context: the largest whole number that every client writes.
pub(crate) const MAX_TOKENS: u64 = 1 << 53;
/// Most texts for one prompt.
const MAX_N: u64 = 128;

/// Variables of the template that are the server's to set.
const RESERVED: [&str; 5] =
    ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];

/// Fields of OpenAI's APIs that change nothing about the answer of a server for oneself.
pub(crate) const IGNORED: [&str; 9] = [
    "user",
    "metadata",
    "client_metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
];

/// Wishes that nothing here follows; what they ask for changes how an answer is made, or its manner, and not what is asked.
const HINTS: [&str; 4] = ["prediction", "verbosity", "web_search_options", "moderation"];

/// What OpenAI's two APIs of completions take alike.
pub(crate) struct Common {
    pub n: usize,
    pub options: Options,
    pub stream: bool,
    /// Whether a stream ends with its usage.
    pub usage: bool,
}

impl Common {
    /// Takes the fields; what they leave open is as the model's `generation_config.json` has it.
    pub fn take(app: &Served, fields: &mut Fields) -> Result<Self, Failure> {
        fields.ignore(&IGNORED);
        fields.hints(&HINTS);
        let sampling = sampling(app, fields)?;
        let n = fields.whole("n", 1, MAX_N)?.unwrap_or(1) as usize;
        let best_of = fields.whole("best_of", 1, MAX_N)?.unwrap_or(n as u64);
        if best_of != n as u64 {
            return Err(fields.wrong("best_of", format_args!("{best_of} is not supported beside n of {n}")));
        }
        let max_tokens = max_tokens(fields, &["max_tokens", "max_completion_tokens"])?;
        let stop = stops(fields, "stop")?;
        let stop_tokens = stop_tokens(fields)?;
        let ignore_eos = fields.flag("ignore_eos")?.unwrap_or(false);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let mut usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                return Err(fields.wrong("stream_options", "it needs stream"));
            }
            usage = options.flag("include_usage")?.unwrap_or(false);
            options.ignore(&["include_obfuscation"]);
            options.finish()?;
        }
        let min_tokens = fields.whole("min_tokens", 0, MAX_TOKENS)?.unwrap_or(0) as usize;
        let cache_salt = fields.space()?;
        let options = Options {
            max_tokens,
            min_tokens,
            sampling,
            stop,
            stop_tokens,
            ignore_eos,
            cache_salt,
            ..Options::default()
        };
        Ok(Self { n, options, stream, usage })
    }
}

/// The samplers of `run`, and OpenAI's penalties and biases.
pub(crate) fn sampling(app: &Served, fields: &mut Fields) -> Result<SamplingOptions, Failure> {
    let base = app.model.default_sampling();
    let count = |fields: &mut Fields, name: &str| {
        fields.none_below(name);
        fields.whole(name, 0, 1 << 20).map(|count| count.map(|count| count as usize))
    };
    // vLLM's and transformers' name of it.
    let repetition = fields.number("repetition_penalty")?;
    let sampling = SamplingOptions {
        temperature: fields.number("temperature")?.unwrap_or(base.temperature),
        top_k: count(fields, "top_k")?.unwrap_or(base.top_k),
        top_p: fields.number("top_p")?.unwrap_or(base.top_p),
        min_p: fields.number("min_p")?.unwrap_or(base.min_p),
        repeat_penalty: fields.number("repeat_penalty")?.or(repetition).unwrap_or(base.repeat_penalty),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(base.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(base.frequency_penalty),
        penalty_window: count(fields, "penalty_window")?.unwrap_or(base.penalty_window),
        logit_bias: logit_bias(fields)?,
        // Two requests without a seed are to differ; -1 is llama.cpp's and vLLM's word for none.
        seed: fields.seed("seed")?.unwrap_or_else(any_seed),
        ..base
    };
    sampling.validate(app.model.info().config.vocab_size)?;
    Ok(sampling)
}

/// llama.cpp's window of the penalties, `repeat_last_n`: none of the last tokens where it is 0, all where it is -1.
pub(crate) fn last_n(fields: &mut Fields, sampling: &mut SamplingOptions) -> Result<(), Failure> {
    const MOST: i64 = 1 << 20;
    match signed(fields, "repeat_last_n")? {
        None => {}
        Some(0) => {
            sampling.repeat_penalty = 1.0;
            sampling.presence_penalty = 0.0;
            sampling.frequency_penalty = 0.0;
        }
        Some(-1) => sampling.penalty_window = 0,
        Some(window) => {
            let within = usize::try_from(window).ok().filter(|_| window <= MOST);
            sampling.penalty_window = within.ok_or_else(|| {
                let what = format!("expected a whole number from -1 to {MOST}, got {window}");
                fields.wrong("repeat_last_n", what)
            })?;
        }
    }
    Ok(())
}

/// A whole number that may be below 0.
pub(crate) fn signed(fields: &mut Fields, name: &str) -> Result<Option<i64>, Failure> {
    let Some(value) = fields.take(name) else { return Ok(None) };
    let whole = value.as_i64();
    whole
        .map(Some)
        .ok_or_else(|| fields.wrong(name, format_args!("expected a whole number, got {}", shown(&value))))
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Failure> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for (token, bias) in biases.rest() {
        let name = crate::json::quote(&token);
        let id = token.parse::<u32>();
        let id = id.map_err(|_| fields.wrong("logit_bias", format_args!("{name} is no token id")))?;
        let bias = bias.as_f64().ok_or_else(|| {
            fields.wrong("logit_bias", format_args!("of {name}: expected a number, got {}", shown(&bias)))
        })?;
        out.push((id, bias as f32));
    }
    Ok(out)
}

/// One of several names of the same limit.
pub(crate) fn max_tokens(fields: &mut Fields, names: &[&str]) -> Result<Option<usize>, Failure> {
    let mut limit = None;
    for name in names {
        fields.none_below(name);
        if let Some(tokens) = fields.whole(name, 1, MAX_TOKENS)? {
            let tokens = tokens as usize;
            if limit.is_some_and(|other| other != tokens) {
                return Err(fields.wrong(name, format_args!("it contradicts {}", names[0])));
            }
            limit = Some(tokens);
        }
    }
    Ok(limit)
}

/// A string, or a list of strings.
pub(crate) fn stops(fields: &mut Fields, name: &str) -> Result<Vec<String>, Failure> {
    let texts = match fields.take(name) {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => {
            let text = |item: Value| match item {
                Value::String(text) => Ok(text),
                other => Err(fields.wrong(name, format_args!("expected strings, got {}", shown(&other)))),
            };
            items.into_iter().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => {
            let what = format!("expected a string or a list of strings, got {}", shown(&other));
            return Err(fields.wrong(name, what));
        }
    };
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).collect();
    // Refused here, by the name that the API has for them.
    crate::sample::StopMatcher::new(&texts).map_err(|error| match error {
        crate::error::Error::Option { got, expected, .. } => {
            fields.wrong(name, format_args!("{got}, expected {expected}"))
        }
        other => other.into(),
    })?;
    Ok(texts)
}

fn stop_tokens(fields: &mut Fields) -> Result<Vec<u32>, Failure> {
    /// As many as there may be stop strings.
    const MOST: usize = crate::sample::MAX_STOPS;
    let Some(items) = fields.list("stop_token_ids")? else { return Ok(Vec::new()) };
    if items.len() > MOST {
        return Err(
            fields.wrong("stop_token_ids", format_args!("{} ids, expected at most {MOST}", items.len()))
        );
    }
    let id = |item: &Value| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| {
            fields.wrong("stop_token_ids", format_args!("expected token ids, got {}", shown(item)))
        })
    };
    items.iter().map(id).collect()
}

/// Variables for the chat template.
pub(crate) fn template_variables(fields: &mut Fields) -> Result<Map<String, Value>, Failure> {
    let name = "chat_template_kwargs";
    let Some(variables) = fields.object(name)? else { return Ok(Map::new()) };
    let variables = variables.rest();
    let taken = |key: &&String| {
        RESERVED.contains(&key.as_str()) || key.ends_with("_token") || key.contains(char::is_control)
    };
    match variables.keys().find(taken) {
        Some(key) => {
            Err(fields.wrong(name, format_args!("{} is the server's to set", crate::json::quote(key))))
        }
        None => Ok(variables),
    }
}

/// OpenAI's messages, as chat templates take them: content is a string, arguments of calls are objects.
pub(crate) fn messages(fields: &mut Fields) -> Result<Vec<Message>, Failure> {
    let list = fields.list("messages")?;
    let list = fields.required("messages", list)?;
    if list.is_empty() {
        return Err(fields.wrong("messages", "expected at least one"));
    }
    let mut out: Vec<Message> = Vec::with_capacity(list.len());
    for (i, value) in list.into_iter().enumerate() {
        out.push(message(fields.item("messages", i, value)?)?);
    }
    Ok(out)
}

/// Where the prompt of `messages` ends, by the names that vLLM and transformers have for it.
pub(crate) fn prompt_end(fields: &mut Fields) -> Result<PromptEnd, Failure> {
    let begin = fields.flag("add_generation_prompt")?;
    let within = fields.flag("continue_final_message")?.unwrap_or(false);
    match (begin, within) {
        (Some(true), true) => {
            Err(fields.wrong("continue_final_message", "it contradicts add_generation_prompt"))
        }
        (_, true) => Ok(PromptEnd::Within),
        (Some(false), false) => Ok(PromptEnd::Message),
        // After an answer of the assistant's, too, another one begins, as in OpenAI's own service.
        _ => Ok(PromptEnd::Turn),
    }
}

/// One of them.
pub(crate) fn message(mut fields: Fields) -> Result<Message, Failure> {
    let role = fields.string("role")?;
    let role = match fields.required("role", role)?.as_str() {
        // The newer name of the same.
        "developer" => "system".to_owned(),
        role @ ("system" | "user" | "assistant" | "tool") => role.to_owned(),
        other => {
            let what = format!(
                "expected system, developer, user, assistant or tool, got {}",
                crate::json::quote(other)
            );
            return Err(fields.wrong("role", what));
        }
    };
    let content = fields.take("content").map(|content| text_of(&fields, "content", content)).transpose()?;
    let mut extra = Map::new();
    if let Some(calls) = fields.list("tool_calls")? {
        if role != "assistant" {
            return Err(fields.wrong("tool_calls", "only the assistant makes them"));
        }
        let of = |(i, call)| tool_call(fields.item("tool_calls", i, call)?);
        let calls: Vec<Value> = calls.into_iter().enumerate().map(of).collect::<Result<_, _>>()?;
        if !calls.is_empty() {
            extra.insert("tool_calls".into(), calls.into());
        }
    }
    for name in ["name", "tool_call_id", "reasoning_content", "reasoning", "thinking"] {
        // Some clients keep what was thought in a form of their own beside its text.
        if let Some(Value::String(text)) = fields.take(name) {
            extra.insert(name.into(), text.into());
        }
    }
    // The old form of a call; what else a client keeps with a message is its own.
    if let Some(function) = fields.object("function_call")? {
        let call = named_call(None, function)?;
        extra.entry("tool_calls").or_insert_with(|| json!([call]));
    }
    if content.is_none() && !extra.contains_key("tool_calls") {
        let refusal = fields.string("refusal")?;
        if role != "assistant" {
            return Err(fields.wrong("content", "missing"));
        }
        // An answer that was empty, or refused.
        return Ok(Message { role, content: refusal.unwrap_or_default().into(), extra });
    }
    Ok(Message { role, content: content.map_or(Value::Null, Value::String), extra })
}

/// The text of a content: a string, or parts that are all text, in lines.
pub(crate) fn text_of(fields: &Fields, name: &str, content: Value) -> Result<String, Failure> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => {
            let what = format!("expected a string or a list of parts, got {}", shown(&other));
            return Err(fields.wrong(name, what));
        }
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = fields.item(name, i, part)?;
        let kind = part.string("type")?;
        match part.required("type", kind)?.as_str() {
            "text" | "input_text" | "output_text" | "summary_text" => {
                let text = part.string("text")?;
                texts.push(part.required("text", text)?);
            }
            "refusal" => {
                let text = part.string("refusal")?;
                texts.push(part.required("refusal", text)?);
            }
            "document" => texts.push(document(part)?),
            other => {
                let what =
                    format!("parts of type {} are not supported, only text", crate::json::quote(other));
                return Err(part.wrong("type", what));
            }
        }
    }
    Ok(texts.join("\n"))
}

/// A call that the assistant made before.
fn tool_call(mut call: Fields) -> Result<Value, Failure> {
    let id = call.string("id")?;
    // A call of a tool that takes text is, to a model, one of a function that takes it.
    if let Some(mut custom) = call.object("custom")? {
        let name = custom.string("name")?;
        let (name, input) = (custom.required("name", name)?, custom.string("input")?.unwrap_or_default());
        return Ok(self::call(id, name, json!({ "input": input })));
    }
    let function = call.object("function")?;
    named_call(id, call.required("function", function)?)
}

/// A call by its function's `name` and `arguments`: the text of an object, or one.
fn named_call(id: Option<String>, mut function: Fields) -> Result<Value, Failure> {
    let name = function.string("name")?;
    let name = function.required("name", name)?;
    let arguments = match function.take("arguments") {
        Some(given @ (Value::String(_) | Value::Object(_))) => given,
        None => json!({}),
        Some(other) => {
            let what = format!("expected the text of an object, got {}", shown(&other));
            return Err(function.wrong("arguments", what));
        }
    };
    Ok(self::call(id, name, arguments))
}

/// A call as chat templates take it; its arguments may be an object or the text of one.
pub(crate) fn call(id: Option<String>, name: String, arguments: impl Into<Value>) -> Value {
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments.into() } })
}

/// Anthropic's documents: those that are plain text, with their title and what is said of them.
pub(crate) fn document(mut block: Fields) -> Result<String, Failure> {
    let source = block.object("source")?;
    let mut source = block.required("source", source)?;
    let kind = source.string("type")?;
    let text = match source.required("type", kind)?.as_str() {
        "text" => {
            let data = source.string("data")?;
            source.required("data", data)?
        }
        "content" => {
            let content = source.take("content");
            text_of(&source, "content", source.required("content", content)?)?
        }
        other => {
            let what =
                format!("documents of type {} are not supported, only text", crate::json::quote(other));
            return Err(source.wrong("type", what));
        }
    };
    let head = [block.string("title")?, block.string("context")?];
    Ok(head.into_iter().flatten().chain([text]).collect::<Vec<_>>().join("\n"))
}
