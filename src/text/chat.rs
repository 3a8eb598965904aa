//! A conversation in the shape of OpenAI's API, and what its next turn may be.

use serde_json::{Map, Value as Json};

use super::message::{self, Message, RenderOptions, Rendered};
use super::template::ChatTemplate;
use super::tool::Tool;
use crate::error::{Error, Result};

/// How many tools a conversation may have.
const MAX_TOOLS: usize = 128;
/// How many more it is not told of at the beginning.
const MAX_DEFERRED: usize = 1024;

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

/// Whether a model is to think, as the variables that templates know. What is set already stays.
pub fn thinking(on: bool, variables: &mut Map<String, Json>) {
    for name in ["enable_thinking", "thinking"] {
        variables.entry(name).or_insert(on.into());
    }
}

/// How much a model is to think, as the variables that templates know: `none` is not to think at all, and more than `minimal` is
/// to think where that has to be said. What is set already stays.
pub fn effort(effort: &str, variables: &mut Map<String, Json>) {
    match effort {
        "none" => return thinking(false, variables),
        "minimal" => {}
        _ => thinking(true, variables),
    }
    for name in ["reasoning_effort", "reasoning_strength"] {
        variables.entry(name).or_insert(effort.into());
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

    /// Renders a conversation, with ids of calls in Kimi's form where its template writes it. What the template refuses is tried
    /// with ids of calls as Mistral's want them, then with what was said beside calls as a thought, as gpt-oss's wants it, then
    /// with the system's later messages as the user's, then with all of them: agents send them wherever they like, and many
    /// templates take one at the beginning, or none. Each of these is tried without a `reasoning_effort`, too, of which templates
    /// know other words, before the next one is.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`], and a last message that cannot be continued.
    pub fn render(&self, template: &ChatTemplate) -> Result<Rendered> {
        const EFFORT: &str = "reasoning_effort";
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
        let mut messages: Vec<Message> =
            self.messages.iter().cloned().map(Message::with_joined_text).collect();
        let called = messages.iter().any(|message| message.extra.contains_key("tool_calls"));
        if called && template.reply_format(true).tools.is_some_and(|tools| tools.names_by_id()) {
            let ids = message::with_ids(&messages, |at, name| format!("functions.{name}:{at}"));
            messages = ids.unwrap_or(messages);
        }
        let mut bare = options.clone();
        let has_effort = bare.extra.shift_remove(EFFORT).is_some();
        let render = |messages: &[Message]| match template.render(messages, &options) {
            Err(refused @ Error::Template(_)) if has_effort => {
                let rendered = template.render(messages, &bare).map_err(|_| refused)?;
                tracing::info!("the chat template does not take this {EFFORT}: it is left out");
                Ok(rendered)
            }
            other => other,
        };
        let refused = match render(&messages) {
            Err(error @ Error::Template(_)) => error,
            other => return other,
        };
        let messages = match message::with_ids(&messages, |at, _| format!("call{at:05}")) {
            Some(told) => match render(&told) {
                Ok(rendered) => return Ok(rendered),
                Err(_) => told,
            },
            None => messages,
        };
        if let Some(told) = message::said_as_thought(&messages)
            && let Ok(rendered) = render(&told)
        {
            tracing::info!(
                "the chat template takes no text beside thoughts and calls: it is told as a thought"
            );
            return Ok(rendered);
        }
        for leading in [true, false] {
            let Some(told) = told_by_the_user(&messages, leading) else { continue };
            if let Ok(rendered) = render(&told) {
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
        let count = self.tools.len();
        if count > MAX_TOOLS || self.deferred.len() > MAX_DEFERRED {
            let got = format!("{count}, and {} that are deferred", self.deferred.len());
            return Err(Error::Option {
                option: "tools",
                got,
                expected: "at most 128, and 1,024 that are deferred",
            });
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
            expected: "the name of a tool that is there; a required call needs a tool (those that only a service can run are none)",
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
