//! The assistant's turn of a conversation: prompt, constraint and parser, made together. Whoever answers a [`Chat`], library,
//! command or server, does so by [`Model::prepare`].

use crate::error::Result;
use crate::generate::{Generation, Options};
use crate::model::Model;
use crate::sample::reply::ReplyGrammar;
use crate::sample::{Constraint, Grammar};
use crate::text::{Chat, PromptEnd, ReplyFormat, ReplyParser, Tool, ToolChoice};

/// A turn that is ready to be generated, as often as is wanted.
///
/// ```
/// use backstop::{Chat, Grammar, Message, Model, Options};
///
/// let model = Model::builtin()?;
/// let chat = Chat::new(vec![Message::new("user", "How many?")]);
/// let turn = model.prepare(&chat, Some(&Grammar::Regex("[0-9]{2}".into())))?;
/// let answer = model.generate_turn(&turn, &Options::default())?.text()?;
/// assert!(answer.len() == 2 && answer.bytes().all(|b| b.is_ascii_digit()));
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
    /// Generates the assistant's turn of `chat`, by the model's chat template. [`Generation::reply`] is what came of it, and
    /// its message ([`crate::Reply::to_message`]) what the conversation goes on with.
    ///
    /// ```
    /// use backstop::{Chat, Message, Model, Options};
    ///
    /// let model = Model::builtin()?;
    /// let options = Options { max_tokens: Some(8), ..Options::default() };
    /// let mut chat = Chat::new(vec![Message::new("user", "Once upon a time")]);
    /// let mut answer = model.chat(&chat, &options)?;
    /// for piece in &mut answer {
    ///     print!("{}", piece?.text);
    /// }
    /// chat.messages.push(answer.reply().to_message());
    /// chat.messages.push(Message::new("user", "And then?"));
    /// assert!(!model.chat(&chat, &options)?.text()?.is_empty());
    /// # Ok::<(), backstop::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Self::prepare`] and [`Self::generate_turn`].
    pub fn chat(&self, chat: &Chat, options: &Options) -> Result<Generation> {
        self.generate_turn(&self.prepare(chat, None)?, options)
    }

    /// Generates a turn, with its own constraint, where it has one, and its own visible tokens in place of those of `options`.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_turn(&self, turn: &Turn, options: &Options) -> Result<Generation> {
        self.generate_parsed(turn.tokens.clone(), Some(turn.parser()), &turn.options(options.clone()))
    }

    /// Makes ready the assistant's turn of `chat`, or the rest of its last one ([`PromptEnd::Within`]). Its answer, after what
    /// the model thinks, will be what `text` says, or a tool call; where a call is required, a call.
    ///
    /// # Errors
    /// A model without a template, a template that fails or is stopped at a limit, a prompt that has more tokens than the context
    /// holds, whichever they are, tools that are none ([`Chat::callable`]), a last message that cannot be continued, a required
    /// call of a model whose format of calls is not known, and what cannot be enforced.
    pub fn prepare(&self, chat: &Chat, text: Option<&Grammar>) -> Result<Turn> {
        self.turn(chat, text, true)
    }

    /// Makes ready a turn whose tokens are to be counted, however many they are.
    ///
    /// # Errors
    /// As [`Self::prepare`], but for the context.
    #[cfg(feature = "server")]
    pub(crate) fn prepare_to_count(&self, chat: &Chat, text: Option<&Grammar>) -> Result<Turn> {
        self.turn(chat, text, false)
    }

    fn turn(&self, chat: &Chat, text: Option<&Grammar>, to_fit: bool) -> Result<Turn> {
        let tools = chat.callable()?;
        let required = matches!(chat.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        // Where a call has to be made, there is no text for a format to hold.
        let text = text.filter(|_| !required);
        let format = self.template()?.reply_format(chat.shows_tools());
        let rendered = chat.render(self.template()?)?;
        let tokenizer = self.tokenizer()?;
        if to_fit {
            self.check_length(rendered.text())?;
        }
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
        // Within a message with a header, that does not come once more, and no call.
        let within = format.channels.is_some() && chat.prompt_end == PromptEnd::Within && !thinking;
        let held_to = if within { ReplyFormat::default() } else { format.clone() };
        let grammar = ReplyGrammar {
            thinking,
            tools: if required || (text.is_some() && held_to.tools.is_some()) { &tools } else { &[] },
            format: held_to,
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
