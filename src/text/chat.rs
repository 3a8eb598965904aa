//! A conversation in the shape of OpenAI's API, and what its next turn may be.

use serde_json::{Map, Value as Json};

use super::json as python;
use super::template::{ChatTemplate, Message, RenderOptions, Rendered};
use crate::{Error, Result};

/// How many tools a conversation may have.
const MAX_TOOLS: usize = 128;

/// A conversation whose next turn, or the rest of its last one, is the assistant's.
#[derive(Debug, Clone, Default)]
pub struct Chat {
    /// What was said.
    pub messages: Vec<Message>,
    /// The tools that the model may call: `{"type": "function", "function": {"name", "description", "parameters"}}` each.
    pub tools: Vec<Json>,
    /// Tools that the model may call and is not told of at the beginning: results of other tools tell of them.
    pub deferred: Vec<Json>,
    /// Whether it may, must, or must not call one.
    pub tool_choice: ToolChoice,
    /// One call at most: an answer ends with it.
    pub single_call: bool,
    /// Where the prompt ends, and the answer begins.
    pub prompt_end: PromptEnd,
    /// Documents for templates that take them.
    pub documents: Vec<Json>,
    /// Further variables of the template (`enable_thinking`, …).
    pub variables: Map<String, Json>,
}

/// Whether a tool is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// None: the template is not told of the tools.
    None,
    /// At least one. The format and the arguments' schema are enforced.
    Required,
    /// The one of this name. The format and the arguments' schema are enforced.
    Named(String),
}

/// Where the prompt of a conversation ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// After the mark that begins the assistant's turn.
    #[default]
    Turn,
    /// After the last message.
    Message,
    /// Within the last message, which is the assistant's and goes on.
    Within,
}

/// A tool as the grammar of its calls needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments; none where any object will do.
    pub parameters: Option<Json>,
}

impl Tool {
    /// Reads a tool.
    ///
    /// # Errors
    /// [`Error::Option`] for what is no function with a name of 1 to 64 letters, digits, `_`, `-` and `.`.
    pub fn read(tool: &Json) -> Result<Self> {
        let function = &tool["function"];
        let bad = |got: &Json| Error::Option {
            option: "tools",
            got: got.to_string().chars().take(100).collect(),
            expected: "{\"type\": \"function\", \"function\": {\"name\": of 1 to 64 letters, digits, _, - and ., \"parameters\": a JSON schema}}",
        };
        if !function.is_object() || tool.get("type").is_some_and(|kind| kind != "function") {
            return Err(bad(tool));
        }
        let good = |name: &&str| {
            (1..=64).contains(&name.len())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        };
        let Some(name) = function["name"].as_str().filter(good) else { return Err(bad(&function["name"])) };
        let parameters = function.get("parameters").filter(|value| !value.is_null());
        if parameters.is_some_and(|value| !value.is_object()) {
            return Err(bad(&function["parameters"]));
        }
        Ok(Self { name: name.to_owned(), parameters: parameters.cloned() })
    }
}

impl Chat {
    /// A conversation of messages alone.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// Whether the template is told of the tools.
    pub(crate) fn shows_tools(&self) -> bool {
        self.tool_choice != ToolChoice::None && !self.tools.is_empty()
    }

    /// Renders a conversation. What the template refuses is tried once more with the system's later messages, then with all of
    /// them, as the user's: agents send them wherever they like, and many templates take one at the beginning, or none.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`], and a last message that cannot be continued.
    pub fn render(&self, template: &ChatTemplate) -> Result<Rendered> {
        let options = RenderOptions {
            add_generation_prompt: self.prompt_end == PromptEnd::Turn,
            continue_final_message: self.prompt_end == PromptEnd::Within,
            documents: (!self.documents.is_empty()).then(|| self.documents.clone()),
            extra: self.variables.clone(),
            tools: self.shows_tools().then(|| self.tools.clone()),
            now: None,
        };
        if self.prompt_end == PromptEnd::Within {
            continued(self)?;
        }
        let messages: Vec<Message> = self.messages.iter().cloned().map(Message::with_joined_text).collect();
        let refused = match template.render(&messages, &options) {
            Err(error @ Error::Template(_)) => error,
            other => return other,
        };
        for leading in [true, false] {
            let Some(told) = told_by_the_user(&messages, leading) else { continue };
            if let Ok(rendered) = template.render(&told, &options) {
                let what = if leading { "a later message of the system" } else { "a message of the system" };
                tracing::info!("the chat template takes no {what}: it is told by the user");
                return Ok(rendered);
            }
        }
        Err(refused)
    }

    /// The tools that may be called, in order: none where [`ToolChoice::None`] says so, one where it names one.
    ///
    /// # Errors
    /// [`Error::Option`] for over 128 tools, those that [`Tool::read`] refuses, two of one name, and a choice without the
    /// tools for it.
    pub fn callable(&self) -> Result<Vec<Tool>> {
        let count = self.tools.len() + self.deferred.len();
        if count > MAX_TOOLS {
            let got = count.to_string();
            return Err(Error::Option { option: "tools", got, expected: "at most 128" });
        }
        let tools: Vec<Tool> =
            self.tools.iter().chain(&self.deferred).map(Tool::read).collect::<Result<_>>()?;
        let mut names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let got = format!("{:?} twice", pair[0]);
            return Err(Error::Option { option: "tools", got, expected: "each name once" });
        }
        let missing = |got: &str| Error::Option {
            option: "tool_choice",
            got: got.to_owned(),
            expected: "the name of one of the tools, and at least one tool where a call is required",
        };
        match &self.tool_choice {
            ToolChoice::Auto => Ok(tools),
            ToolChoice::None => Ok(Vec::new()),
            ToolChoice::Required if tools.is_empty() => Err(missing("required")),
            ToolChoice::Required => Ok(tools),
            ToolChoice::Named(name) => match tools.into_iter().find(|tool| tool.name == *name) {
                Some(tool) => Ok(vec![tool]),
                None => Err(missing(name)),
            },
        }
    }
}

/// The conversation with the system's messages as the user's; `leading`: those at the beginning become one and stay. None
/// where that changes nothing.
fn told_by_the_user(messages: &[Message], leading: bool) -> Option<Vec<Message>> {
    let mut told: Vec<Message> = Vec::with_capacity(messages.len());
    let mut beginning = leading;
    for message in messages {
        let mut message = message.clone();
        beginning &= message.role == "system";
        if message.role == "system" && !beginning {
            message.role = "user".into();
        }
        match told.last_mut() {
            Some(last)
                if last.role == message.role
                    && message.role != "assistant"
                    && last.extra.is_empty()
                    && message.extra.is_empty()
                    && last.content.is_string()
                    && message.content.is_string() =>
            {
                let texts = [&last.content, &message.content].map(|text| text.as_str().unwrap_or_default());
                last.content = texts.join("\n\n").into();
            }
            _ => told.push(message),
        }
    }
    (told != messages).then_some(told)
}

/// Refuses to go on with what is no text of the assistant's.
fn continued(chat: &Chat) -> Result<()> {
    let got = match chat.messages.last() {
        Some(last) if last.role != "assistant" => format!("a last message of the {}", last.role),
        Some(last) if last.extra.contains_key("tool_calls") => "a last message that calls tools".to_owned(),
        Some(_) => return Ok(()),
        None => "no message".to_owned(),
    };
    Err(Error::Option {
        option: "continue_final_message",
        got,
        expected: "a text of the assistant to go on with",
    })
}

/// The names under which templates read what a message thought; the first is the usual one.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What a message without a content has in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoContent {
    /// Nothing: what transformers does.
    Absent,
    Null,
    Empty,
}

/// The forms of a conversation that templates expect, the usual one first: each is to be tried where those before it fail.
/// Arguments of calls are objects, or the text of one; a content that is none is absent, null, or empty. Empty is last: a
/// template may write calls only where there is no content.
pub(super) fn forms(messages: &[Message]) -> Vec<Vec<Map<String, Json>>> {
    let bare = messages.iter().any(|message| message.content.is_null());
    let contents: &[NoContent] =
        if bare { &[NoContent::Absent, NoContent::Null, NoContent::Empty] } else { &[NoContent::Absent] };
    let calls = messages.iter().flat_map(|message| message.extra.get("tool_calls")?.as_array()).flatten();
    let written = calls.filter_map(|call| holder(call).get("arguments")).any(|given| object(given).is_some());
    let objects: &[bool] = if written { &[true, false] } else { &[true] };
    let form = |content, objects| messages.iter().map(|message| members(message, content, objects)).collect();
    contents.iter().flat_map(|&content| objects.iter().map(move |&objects| form(content, objects))).collect()
}

/// The members of a message: those that are null are absent, and what it thought has each of its names.
fn members(message: &Message, content: NoContent, objects: bool) -> Map<String, Json> {
    let mut members = Map::new();
    members.insert("role".into(), message.role.as_str().into());
    match (&message.content, content) {
        (Json::Null, NoContent::Absent) => {}
        (Json::Null, NoContent::Null) => drop(members.insert("content".into(), Json::Null)),
        (Json::Null, NoContent::Empty) => drop(members.insert("content".into(), "".into())),
        (given, _) => drop(members.insert("content".into(), given.clone())),
    }
    for (name, value) in message.extra.iter().filter(|(_, value)| !value.is_null()) {
        members.insert(name.clone(), value.clone());
    }
    if let Some(thoughts) = REASONING.iter().find_map(|name| members.get(*name)).cloned() {
        members.entry("thinking").or_insert_with(|| thoughts.clone());
        members.insert(REASONING[0].into(), thoughts);
    }
    for call in members.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
        let holder = if call.get("function").is_some() { &mut call["function"] } else { call };
        let Some(arguments) = holder.get_mut("arguments") else { continue };
        match (objects, &*arguments) {
            (true, given) => {
                if let Some(object) = object(given) {
                    *arguments = object;
                }
            }
            (false, Json::Object(_)) => *arguments = python::dumps(arguments).into(),
            (false, _) => {}
        }
    }
    members
}

/// Where the arguments of a call are.
fn holder(call: &Json) -> &Json {
    call.get("function").unwrap_or(call)
}

/// Arguments as an object: one, or the text of one.
fn object(arguments: &Json) -> Option<Json> {
    match arguments {
        Json::Object(_) => Some(arguments.clone()),
        Json::String(text) if text.trim().is_empty() => Some(Json::Object(Map::new())),
        Json::String(text) => serde_json::from_str(text).ok().filter(Json::is_object),
        _ => None,
    }
}

impl Message {
    /// The message with content in parts that are all text joined to one text, as most templates expect it.
    pub fn with_joined_text(mut self) -> Self {
        let texts = self.content.as_array().map(|parts| {
            let text = |part: &Json| match part["type"].as_str() {
                Some("text" | "input_text" | "output_text") => part["text"].as_str().map(str::to_owned),
                _ => None,
            };
            parts.iter().map(text).collect::<Option<Vec<String>>>()
        });
        if let Some(Some(texts)) = texts {
            self.content = Json::String(texts.concat());
        }
        self
    }
}
