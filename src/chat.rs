//! The assistant's turn of a conversation: prompt, constraint and parser, made together.

use crate::error::Result;
use crate::generate::Options;
use crate::model::Model;
use crate::sample::reply::ReplyGrammar;
use crate::sample::{Constraint, Grammar};
use crate::text::{Chat, PromptEnd, ReplyFormat, ReplyParser, Tool, ToolChoice};

/// A turn that is ready to be generated.
///
/// ```
/// use backstop::text::{Chat, Message, Reply};
///
/// let model = backstop::Model::builtin()?;
/// let turn = model.prepare(&Chat::new(vec![Message::new("user", "Once upon a time")]), None)?;
/// let options = turn.options(backstop::Options { max_tokens: Some(8), ..Default::default() });
/// let (mut parser, mut reply) = (turn.parser(), Reply::default());
/// for piece in model.generate_tokens(turn.tokens.clone(), &options)? {
///     parser.push(&piece?.text).into_iter().for_each(|event| reply.take(event));
/// }
/// parser.finish().into_iter().for_each(|event| reply.take(event));
/// assert!(!reply.content.is_empty());
/// # Ok::<(), backstop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Turn {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// How the model marks the parts of its answer.
    pub format: ReplyFormat,
    /// Whether the prompt ends where the model is to think.
    pub thinking: bool,
    /// Special tokens whose texts the parser has to see.
    pub visible: Vec<u32>,
    /// What the answer is held to.
    pub constraint: Option<Constraint>,
    /// Tools that may be called.
    pub tools: Vec<Tool>,
    /// Whether the answer ends with its first call.
    pub single_call: bool,
}

impl Turn {
    /// A parser of its answer; one for each of several. Where one call is asked for at most, whoever generates may stop once
    /// it is done ([`ReplyParser::is_done`]).
    pub fn parser(&self) -> ReplyParser {
        match self.single_call {
            true => ReplyParser::single_call(&self.format, self.thinking, &self.tools),
            false => ReplyParser::new(&self.format, self.thinking, &self.tools),
        }
    }

    /// `options` with what this turn needs: its constraint and its visible tokens.
    pub fn options(&self, options: Options) -> Options {
        let constraint = self.constraint.clone().or(options.constraint);
        Options { constraint, visible: self.visible.clone(), ..options }
    }
}

impl Model {
    /// Makes ready the assistant's turn of `chat`, or the rest of its last one ([`PromptEnd::Within`]). Its answer, after what
    /// the model thinks, will be what `text` says, or a tool call; where a call is required, a call.
    ///
    /// # Errors
    /// A model without a template, a template that fails or is stopped at a limit, tools that are none
    /// ([`Chat::callable`]), a last message that cannot be continued, a required call of a model whose format of calls is not
    /// known, and what cannot be enforced.
    pub fn prepare(&self, chat: &Chat, text: Option<&Grammar>) -> Result<Turn> {
        let tools = chat.callable()?;
        let required = matches!(chat.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        // Where a call has to be made, there is no text for a format to hold.
        let text = text.filter(|_| !required);
        let format = self.template()?.reply_format(chat.shows_tools());
        let rendered = chat.render(self.template()?)?;
        let tokenizer = self.tokenizer()?;
        let tokens = tokenizer.encode_rendered(&rendered)?;
        let thinking =
            format.reasoning.as_ref().is_some_and(|format| match (chat.prompt_end, chat.messages.last()) {
                (PromptEnd::Within, Some(last)) => {
                    let last = last.clone().with_joined_text();
                    format.is_open_in(last.content.as_str().unwrap_or_default())
                }
                _ => format.is_open(rendered.text()),
            });
        let visible = format.visible(tokenizer);
        let grammar = ReplyGrammar {
            format: format.clone(),
            thinking,
            tools: if required || (text.is_some() && format.tools.is_some()) { &tools } else { &[] },
            parallel: !chat.single_call,
            text,
        };
        let constraint = match (required, text) {
            (false, None) => None,
            _ => Some(self.grammars()?.compile_checked(&grammar.grammar(tokenizer)?)?),
        };
        let single_call = chat.single_call;
        Ok(Turn { tokens, format, thinking, visible, constraint, tools, single_call })
    }

    /// The prompt that `chat` becomes, as text and tokens.
    ///
    /// # Errors
    /// Those of [`Self::prepare`] that the prompt alone can have.
    pub fn show(&self, chat: &Chat) -> Result<Shown> {
        chat.callable()?;
        let rendered = chat.render(self.template()?)?;
        let tokens = self.tokenizer()?.encode_rendered(&rendered)?;
        Ok(Shown { text: rendered.text().to_owned(), tokens })
    }
}

/// A prompt as it is given to the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Its text.
    pub text: String,
    /// Its tokens, with those texts as text that a message holds.
    pub tokens: Vec<u32>,
}
