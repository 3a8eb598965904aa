//! How a model answers, told from its chat template: it is given a conversation with thoughts and calls that cannot occur by
//! chance, and what it makes of them is read.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::channels::{self, Channels};
use super::message::{Message, RenderOptions};
use super::reasoning::ReasoningFormat;
use super::reply::{Reply, ReplyFormat, ReplyParser};
use super::template::ChatTemplate;
use super::tool::Tool;
use super::tools::derive::{ProbeCall, Shown, derive};
use super::tools::mark::marks;
use super::tools::{CallFormat, ToolFormat, named};

const USER: &str = "Zqx asks.";
const TEXT: &str = "Zqx answers.";
const THOUGHT: &str = "Zqx thinks.";
const RESULT: &str = "Zqx result.";
const FURTHER: &str = "Zqx goes on.";

/// The longest answer that is read, in bytes: what is made here takes some hundreds.
const MAX_ANSWER: usize = 4096;
/// When no further rendering is begun: one takes about a millisecond, and is bounded by itself. This is for a template that
/// makes each as slow as it may be.
const TIME: Duration = Duration::from_secs(10);

/// Ids of the calls, in Mistral's form, and in that of Kimi, whose template writes them in place of the names.
const IDS: [[&str; 2]; 2] = [["zqx000001", "zqx000002"], ["functions.zqx_first:0", "functions.zqx_second:1"]];

impl ChatTemplate {
    /// Whether the template knows tools, and not in a form in which calls are read.
    pub(crate) fn calls_are_unknown(&self) -> bool {
        self.source_for(true).contains("tool_calls") && self.reply_format(true).tools.is_none()
    }

    /// How its model answers: the marks of thoughts, and the form of calls where there are `tools`. The template is given a
    /// conversation that has them, and what it makes of it is read; that is done once, and takes some milliseconds. Where there
    /// are tools, a list's `tool_use` is looked at unless another was selected.
    pub fn reply_format(&self, tools: bool) -> ReplyFormat {
        let asked = || reply_format(self, self.source_for(tools), tools);
        self.reply_formats[usize::from(tools)].get_or_init(asked).clone()
    }
}

/// A template, and how long it may have worked.
struct Probe<'a> {
    template: &'a ChatTemplate,
    until: Duration,
    tools: Option<Vec<Json>>,
}

/// What a template of this source shows; of calls, where there are `tools`.
fn reply_format(template: &ChatTemplate, source: &str, tools: bool) -> ReplyFormat {
    let specs = || -> Vec<Json> { calls(IDS[0].map(str::to_owned)).iter().map(spec).collect() };
    let probe = Probe { template, until: template.worked() + TIME, tools: tools.then(specs) };
    let thoughts = || ReasoningFormat::of_source(source);
    let known = || named::of(|mark| source.contains(mark) || template.has_token(mark));
    // What the vocabulary has is nothing to a template that knows no tools.
    let known = || if tools && source.contains("tool") { known().map(Arc::new) } else { None };
    let Some(plain) = probe.render(&turn()) else {
        return ReplyFormat { reasoning: thoughts(), tools: known(), channels: None };
    };
    if let Some(of) = between(&plain, USER, Some(TEXT)).and_then(Channels::shown) {
        let written = match of {
            _ if !tools => None,
            Channels::Harmony => probe.message(),
            Channels::Atem => probe.messages(),
        };
        return ReplyFormat {
            reasoning: Some(of.reasoning()),
            tools: written.map(Arc::new),
            channels: Some(of),
        };
    }
    let reasoning = probe.reasoning(&plain).or_else(thoughts);
    let shown = if tools { probe.calls(&plain, reasoning.as_ref()) } else { None };
    ReplyFormat { reasoning, tools: shown.map(Arc::new).or_else(known), channels: None }
}

/// A plain question and its answer.
fn turn() -> [Message; 2] {
    [Message::new("user", USER), Message::new("assistant", TEXT)]
}

/// The calls that a template is given, with these ids: quotes, a comma, a number and an object among the arguments.
fn calls(ids: [String; 2]) -> [ProbeCall; 2] {
    let [first, second] = ids;
    let arguments = json!({ "zqx_text": "Qz, \"x\" y", "zqx_number": 4177, "zqx_deep": { "zqx_in": [1, true] }, "zqx_last": "Qz z" });
    [
        ProbeCall { name: "zqx_first".into(), arguments, id: first },
        ProbeCall { name: "zqx_second".into(), arguments: json!({ "zqx_only": "Qz only" }), id: second },
    ]
}

/// The tool that a call is of.
fn spec(call: &ProbeCall) -> Json {
    let schema = |value: &Json| match value {
        Json::Number(_) => json!({ "type": "integer", "description": "Zqx." }),
        Json::Object(_) => json!({ "type": "object", "description": "Zqx.", "properties": {},
            "additionalProperties": { "type": "string" } }),
        _ => json!({ "type": "string", "description": "Zqx." }),
    };
    let arguments: Vec<(&String, &Json)> = call.arguments.as_object().into_iter().flatten().collect();
    let properties: Map<String, Json> =
        arguments.iter().map(|(key, value)| ((*key).clone(), schema(value))).collect();
    let required: Vec<&String> = arguments.iter().map(|(key, _)| *key).collect();
    json!({ "type": "function", "function": { "name": call.name, "description": "Zqx.",
        "parameters": { "type": "object", "properties": properties, "required": required } } })
}

/// The conversation of calls, and their results.
fn conversation(calls: &[ProbeCall], content: &Json) -> Vec<Message> {
    let written = |call: &ProbeCall| {
        let function = json!({ "name": call.name, "arguments": call.arguments });
        json!({ "id": call.id, "type": "function", "function": function })
    };
    let called: Json = calls.iter().map(written).collect();
    let mut messages =
        vec![Message::new("user", USER), message("assistant", content.clone(), &[("tool_calls", called)])];
    messages.extend(calls.iter().map(|call| {
        let extra =
            [("tool_call_id", Json::from(call.id.as_str())), ("name", Json::from(call.name.as_str()))];
        message("tool", RESULT.into(), &extra)
    }));
    messages
}

fn message(role: &str, content: Json, extra: &[(&str, Json)]) -> Message {
    let extra = extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Message { role: role.to_owned(), content, extra }
}

/// What stands behind the last `from`, up to `to` where there is one.
fn between<'a>(text: &'a str, from: &str, to: Option<&str>) -> Option<&'a str> {
    let text = &text[text.rfind(from)? + from.len()..];
    match to {
        Some(to) => Some(&text[..text.find(to)?]),
        None => Some(text),
    }
}

impl Probe<'_> {
    fn render(&self, messages: &[Message]) -> Option<String> {
        if self.template.worked() > self.until {
            tracing::warn!("the chat template is too slow to be asked how its model writes tool calls");
            return None;
        }
        let mut options = RenderOptions { tools: self.tools.clone(), ..RenderOptions::default() };
        // Templates end turns with these, where the model has them.
        for token in ["bos_token", "eos_token"] {
            if !self.template.has_special(token) {
                options.extra.insert(token.to_owned(), format!("<{token}>").into());
            }
        }
        let rendered = self.template.render(messages, &options).ok()?;
        Some(rendered.text().to_owned())
    }

    /// The marks of thoughts, where the template writes any that it is given.
    fn reasoning(&self, plain: &str) -> Option<ReasoningFormat> {
        let keys = ["reasoning_content", "reasoning", "thinking"].map(|key| (key, Json::from(THOUGHT)));
        let parts = json!([{ "type": "thinking", "thinking": THOUGHT }, { "type": "text", "text": TEXT }]);
        let header = between(plain, USER, Some(TEXT)).unwrap_or_default();
        [message("assistant", TEXT.into(), &keys), message("assistant", parts, &[])].into_iter().find_map(
            |answer| {
                let text = self.render(&[Message::new("user", USER), answer])?;
                let before = between(&text, USER, Some(THOUGHT))?;
                let behind = between(&text, THOUGHT, Some(TEXT))?;
                if before.len().max(behind.len()) > MAX_ANSWER {
                    return None;
                }
                ReasoningFormat::between(before, behind, header)
            },
        )
    }

    /// The format of calls.
    fn calls(&self, plain: &str, reasoning: Option<&ReasoningFormat>) -> Option<ToolFormat> {
        let header = between(plain, USER, Some(TEXT))?;
        let mut ending = between(plain, TEXT, None)?.to_owned();
        if ending.trim().is_empty() {
            // Some templates end a turn where the next one begins.
            let [user, assistant] = turn();
            let text = self.render(&[user, assistant, Message::new("user", FURTHER)])?;
            let behind = between(&text, TEXT, Some(FURTHER))?;
            ending = marks(behind).first().map_or_else(String::new, |mark| (*mark).to_owned());
        }
        let thoughts_end = reasoning.map(|format| format.close.as_str());
        for ids in IDS {
            let calls = calls(ids.map(str::to_owned));
            for calls in [&calls[..], &calls[..1]] {
                let written = [Json::from(""), Json::Null].into_iter().find_map(|content| {
                    let text = self.render(&conversation(calls, &content))?;
                    let answer = between(&text, USER, Some(RESULT))?.to_owned();
                    calls.iter().all(|call| answer.contains(&call.name)).then_some(answer)
                });
                let Some(answer) = written else { continue };
                if answer.len().max(ending.len()).max(header.len()) > MAX_ANSWER {
                    return None;
                }
                let shown = Shown { header, ending: &ending, thoughts_end, answer: &answer, calls };
                let format = read_back(&shown);
                // Two calls that are written in an unknown form are not asked for in another one.
                if format.is_some() || calls.len() == 2 {
                    return format;
                }
            }
        }
        None
    }

    /// The form of a call that is a message of harmony's, of which an answer has one.
    fn message(&self) -> Option<ToolFormat> {
        let calls = &calls(IDS[0].map(str::to_owned))[..1];
        let text = self.render(&conversation(calls, &Json::Null))?;
        let (_, answer) = between(&text, USER, Some(RESULT))?.split_once(channels::NEXT)?;
        let (begin, behind) = answer.split_once(calls[0].name.as_str())?;
        let arguments = behind.find('{')?;
        let (_, len) = crate::json::generated_prefix(&behind[arguments..])?;
        let end = *marks(&behind[arguments + len..]).first()?;
        let tools = ToolFormat {
            open: String::new(),
            begin: begin.to_owned(),
            call: CallFormat::Named(behind[..arguments].to_owned()),
            end: end.to_owned(),
            separator: None,
            close: String::new(),
        };
        let channels = Some(Channels::Harmony);
        let format = ReplyFormat { tools: Some(Arc::new(tools.clone())), channels, ..ReplyFormat::default() };
        let call = &answer[..begin.len() + calls[0].name.len() + arguments + len];
        reads(&format, &format!("{call}{end}"), calls).then_some(tools)
    }

    /// The form of the calls that ATEM's messages hold, each to its tool.
    fn messages(&self) -> Option<ToolFormat> {
        let calls = &calls(IDS[0].map(str::to_owned));
        let mut forms = [Json::from(""), Json::Null].into_iter();
        let text = forms.find_map(|content| self.render(&conversation(calls, &content)))?;
        let answer = between(&text, USER, Some(RESULT))?;
        let held = |call: &ProbeCall| {
            let (_, behind) =
                answer.split_once(&format!("{} to={}<|message|>", channels::NEXT, call.name))?;
            Some(&behind[..Channels::Atem.ends().iter().filter_map(|end| behind.find(*end)).min()?])
        };
        let [first, second] = [held(&calls[0])?, held(&calls[1])?];
        let ending = Channels::Atem.end();
        let answer = format!("{first}{second}{ending}");
        if answer.len() > MAX_ANSWER {
            return None;
        }
        read_back(&Shown { header: "", ending, thoughts_end: None, answer: &answer, calls })
    }
}

/// The format of the calls shown, where its parser reads just these.
fn read_back(shown: &Shown<'_>) -> Option<ToolFormat> {
    let (tools, text) = derive(shown)?;
    let format = ReplyFormat { tools: Some(Arc::new(tools.clone())), ..ReplyFormat::default() };
    reads(&format, &text, shown.calls).then_some(tools)
}

/// Whether an answer in this format is these calls, and nothing beside them.
fn reads(format: &ReplyFormat, text: &str, calls: &[ProbeCall]) -> bool {
    let tools: Vec<Tool> = calls.iter().filter_map(|call| Tool::read(&spec(call)).ok()).collect();
    let (mut parser, mut reply) = (ReplyParser::new(format, false, &tools), Reply::default());
    parser.push(text).into_iter().for_each(|event| reply.take(event));
    parser.finish().into_iter().for_each(|event| reply.take(event));
    let same = |(call, probe): (&super::ToolCall, &ProbeCall)| {
        let arguments = crate::json::generated::<Json>(&call.arguments).ok();
        call.name == probe.name && arguments.as_ref() == Some(&probe.arguments)
    };
    let all = reply.calls.len() == calls.len() && reply.calls.iter().zip(calls).all(same);
    all && reply.content.trim().is_empty() && reply.reasoning.is_empty()
}

#[cfg(any(test, feature = "fuzzing"))]
#[path = "probe/samples.rs"]
pub(crate) mod samples;

#[cfg(test)]
#[path = "probe/tests.rs"]
mod tests;
