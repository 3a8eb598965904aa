//! What requests of Ollama's API ask for.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::super::failure::Failure;
use super::super::forms;
use super::super::json::{Fields, shown};
use super::super::params::{self, MAX_TOKENS};
use super::super::served::Served;
use crate::generate::Options;
use crate::sample::Grammar;
use crate::text::{self, Chat, Message};

/// How a model is loaded, or its work is cut up: no answer depends on it here.
const OF_LOADING: [&str; 12] = [
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "numa",
    "low_vram",
    "f16_kv",
    "logits_all",
    "use_mmap",
    "use_mlock",
    "draft_num_predict",
];

/// What `/api/chat` and `/api/generate` take alike.
pub(super) struct Asked {
    pub options: Options,
    /// What the text is to be.
    pub format: Option<Grammar>,
    pub stream: bool,
    pub logprobs: bool,
    /// What the template is told of thoughts.
    pub variables: Map<String, Value>,
}

impl Asked {
    pub fn take(app: &Served, fields: &mut Fields) -> Result<Self, Failure> {
        // A prompt that is too long is refused, and a text ends where the context does.
        fields.hints(&["shift"]);
        if fields.flag("truncate")? == Some(true) {
            fields.note("truncate");
        }
        let stream = fields.flag("stream")?.unwrap_or(true);
        let format = format(fields)?;
        let mut variables = Map::new();
        think(fields, &mut variables)?;
        let logprobs = fields.flag("logprobs")?.unwrap_or(false);
        let top = fields.whole("top_logprobs", 0, 20)?.unwrap_or(0) as usize;
        if top > 0 && !logprobs {
            // Without these it says nothing in this API.
            fields.note("top_logprobs");
        }
        fields.only("_debug_render_only", &[false.into()])?;
        let cache_salt = fields.space()?;
        let mut options = options(app, given_options(fields)?)?;
        options.sampling.logprobs = logprobs.then_some(top);
        let options = Options { cache_salt, ..options };
        Ok(Self { options, format, stream, logprobs, variables })
    }
}

/// The options of a request. Clients whose numbers are all floats mean whole ones by those without a fraction.
pub(super) fn given_options(fields: &mut Fields) -> Result<Fields, Failure> {
    let mut given = fields.take("options").unwrap_or_else(|| json!({}));
    for value in given.as_object_mut().into_iter().flat_map(Map::values_mut) {
        let whole = value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < (1_u64 << 53) as f64);
        if let Some(whole) = whole.filter(|_| value.is_f64()) {
            *value = (whole as i64).into();
        }
    }
    fields.at("options", given)
}

/// The sampler, the limit and the stops.
fn options(app: &Served, mut fields: Fields) -> Result<Options, Failure> {
    fields.ignore(&OF_LOADING);
    for (name, off) in [("mirostat", 0), ("tfs_z", 1), ("typical_p", 1)] {
        fields.only(name, &[off.into(), f64::from(off).into()])?;
    }
    // What these say counts with mirostat alone.
    fields.ignore(&["mirostat_tau", "mirostat_eta"]);
    fields.only("penalize_newline", &[true.into()])?;
    fields.only("vocab_only", &[false.into()])?;
    fields.only("embedding_only", &[false.into()])?;
    // The context is the server's. A prompt that does not fit is refused, and all of one that does is read.
    if fields.whole("num_ctx", 0, MAX_TOKENS)?.is_some_and(|wanted| wanted > app.model.info().context as u64)
    {
        fields.note("num_ctx");
    }
    let mut sampling = params::sampling(app, &mut fields)?;
    params::last_n(&mut fields, &mut sampling)?;
    // -1 is no limit and -2 all of the context, which is the same where a text ends with it.
    let max_tokens = match params::signed(&mut fields, "num_predict")? {
        Some(most) if most > 0 => Some(most.min(MAX_TOKENS as i64) as usize),
        _ => None,
    };
    let stop = params::stops(&mut fields, "stop")?;
    fields.finish()?;
    Ok(Options { max_tokens, sampling, stop, ..Options::default() })
}

/// `"json"`, or a schema.
fn format(fields: &mut Fields) -> Result<Option<Grammar>, Failure> {
    match fields.take("format") {
        None => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) if name == "json" => Ok(Some(Grammar::JsonObject)),
        Some(schema @ Value::Object(_)) => Ok(Some(Grammar::JsonSchema(schema))),
        Some(other) => {
            let what = format!("expected \"json\" or a JSON schema, got {}", shown(&other));
            Err(fields.wrong("format", what))
        }
    }
}

/// Whether the model is to think, or how much.
fn think(fields: &mut Fields, variables: &mut Map<String, Value>) -> Result<(), Failure> {
    match fields.take("think") {
        None => {}
        Some(Value::Bool(on)) => text::thinking(on, variables),
        Some(Value::String(level)) if ["low", "medium", "high", "max"].contains(&level.as_str()) => {
            text::effort(&level, variables);
        }
        Some(other) => {
            let what = format!("expected true, false, low, medium, high or max, got {}", shown(&other));
            return Err(fields.wrong("think", what));
        }
    }
    Ok(())
}

/// The tools of a chat. What its caller left out Go's client writes as an empty text, or null.
pub(super) fn tools(fields: &mut Fields, chat: &mut Chat) -> Result<(), Failure> {
    fields.change("tools", |tools| tools.as_array_mut().into_iter().flatten().for_each(completed));
    forms::chat_tools(fields, chat)
}

fn completed(tool: &mut Value) {
    if tool["type"] == "" {
        tool["type"] = "function".into();
    }
    let Some(parameters) = tool.pointer_mut("/function/parameters").and_then(Value::as_object_mut) else {
        return;
    };
    if parameters.get("type").is_some_and(|kind| *kind == "") {
        parameters.insert("type".into(), "object".into());
    }
    if parameters.get("properties").is_some_and(Value::is_null) {
        parameters.insert("properties".into(), json!({}));
    }
}

/// The messages; none where there are none. Calls and results that are without ids, as in older versions of the API, belong
/// together by the names of their tools or their order, and get ids.
pub(super) fn messages(fields: &mut Fields) -> Result<Vec<Message>, Failure> {
    let list = fields.list("messages")?.unwrap_or_default();
    let mut out = Vec::with_capacity(list.len());
    let mut unanswered = Unanswered::default();
    for (i, mut value) in list.into_iter().enumerate() {
        if let Some(members) = value.as_object_mut() {
            if let Some(Value::String(role)) = members.get_mut("role") {
                role.make_ascii_lowercase();
            }
            unanswered.named(members);
            let empty = members.get("content").is_none_or(|content| content.is_null() || content == "");
            let calls =
                members.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
            // Beside calls, an empty content is none, which some templates ask for.
            if empty {
                members.insert("content".into(), if calls { Value::Null } else { "".into() });
            }
        }
        let mut message = fields.item("messages", i, value)?;
        message.only("images", &[Vec::<String>::new().into()])?;
        out.push(params::message(message)?);
    }
    Ok(out)
}

/// Calls whose results are still to come.
#[derive(Default)]
struct Unanswered {
    /// Their ids and the names of their tools.
    calls: VecDeque<(String, String)>,
    count: usize,
}

impl Unanswered {
    /// Gives ids to the calls of a message, or to the result that it is. What is malformed is refused later.
    fn named(&mut self, message: &mut Map<String, Value>) {
        // What was not answered by now never is.
        let has_calls =
            message.get("tool_calls").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
        if has_calls || message.get("role").is_some_and(|role| role == "user") {
            self.calls.clear();
        }
        for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            let name = call["function"]["name"].as_str().unwrap_or_default().to_owned();
            let Some(call) = call.as_object_mut() else { continue };
            let id = call.entry("id").or_insert(Value::Null);
            if id.as_str().is_none_or(str::is_empty) {
                *id = format!("call_{}", self.count).into();
                self.count += 1;
            }
            self.calls.push_back((id.as_str().unwrap_or_default().to_owned(), name));
        }
        if message.get("role").is_none_or(|role| role != "tool") {
            return;
        }
        let tool = message.shift_remove("tool_name");
        let id = message.get("tool_call_id").and_then(Value::as_str).unwrap_or_default();
        let by_id = self.calls.iter().position(|call| !id.is_empty() && call.0 == id);
        let by_name =
            || self.calls.iter().position(|call| tool.as_ref().is_some_and(|tool| *tool == *call.1));
        let at = by_id.or_else(by_name).or((!self.calls.is_empty()).then_some(0));
        let answered = match id.is_empty() || by_id.is_some() {
            true => at.and_then(|at| self.calls.remove(at)),
            false => None,
        };
        if let Some((id, _)) = answered {
            message.insert("tool_call_id".into(), id.into());
        }
        if let Some(tool) = tool {
            message.entry("name").or_insert(tool);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_in_a_tool_is_left_out() {
        let mut tool = json!({ "type": "", "function": { "name": "clock",
            "parameters": { "type": "", "properties": null } } });
        completed(&mut tool);
        let wanted = json!({ "type": "function", "function": { "name": "clock",
            "parameters": { "type": "object", "properties": {} } } });
        assert_eq!(tool, wanted);
        for same in [wanted, json!({ "function": { "name": "x" } }), json!(1), json!({ "function": 1 })] {
            let mut tool = same.clone();
            completed(&mut tool);
            assert_eq!(tool, same);
        }
    }

    #[test]
    fn calls_and_results_belong_together() {
        let call = |name: &str| json!({ "function": { "name": name, "arguments": {} } });
        let own = json!({ "id": "x", "function": { "name": "c", "arguments": {} } });
        let mut messages = [
            json!({ "role": "assistant", "tool_calls": [call("a"), call("b"), own, call("d")] }),
            json!({ "role": "tool", "content": "", "tool_name": "b" }),
            json!({ "role": "tool", "content": "", "tool_call_id": "x" }),
            json!({ "role": "tool", "content": "" }),
            json!({ "role": "tool", "content": "", "tool_call_id": "y" }),
            json!({ "role": "tool", "content": "", "tool_name": "unknown" }),
            json!({ "role": "tool", "content": "", "tool_name": "late" }),
            json!({ "role": "user", "tool_calls": "none", "tool_name": 1 }),
            json!({ "role": "assistant", "tool_calls": [call("e")] }),
            json!({ "role": "user", "content": "never mind" }),
            json!({ "role": "assistant", "tool_calls": [call("f")] }),
            json!({ "role": "tool", "content": "42" }),
        ];
        let mut unanswered = Unanswered::default();
        for message in &mut messages {
            unanswered.named(message.as_object_mut().unwrap());
        }
        let calls = messages[0]["tool_calls"].as_array().unwrap();
        let ids: Vec<&Value> = calls.iter().map(|call| &call["id"]).collect();
        assert_eq!(ids, ["call_0", "call_1", "x", "call_2"]);
        assert_eq!(messages[11]["tool_call_id"], "call_4");
        let of = |name: &str| messages[1..8].iter().map(|message| message[name].clone()).collect::<Vec<_>>();
        let none = Value::Null;
        let wanted =
            ["call_1".into(), "x".into(), "call_0".into(), "y".into(), "call_2".into(), none.clone(), none];
        assert_eq!(of("tool_call_id"), wanted);
        assert_eq!((&messages[1]["name"], &messages[5]["name"]), (&json!("b"), &json!("unknown")));
    }
}
