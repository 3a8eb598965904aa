//! Text and tokens: the tokenizer, the chat template, the streaming detokenizer, and what a generated answer is made of.

pub(crate) mod apart;
mod bounded;
mod chat;
mod convert;
mod json;
pub(crate) mod patterns;
mod python;
mod raw;
mod reasoning;
mod reply;
mod scan;
mod screen;
mod sentinel;
mod special;
mod stream;
mod template;
mod tokenizer;
mod tools;

pub use chat::{Chat, PromptEnd, Tool, ToolChoice};
pub use reasoning::ReasoningFormat;
pub use reply::{Reply, ReplyFormat, ReplyParser, ToolCall};
pub use stream::Detokenizer;
pub use template::{ChatTemplate, Message, RenderOptions, Rendered};
pub use tokenizer::{Specials, Tokenizer};
pub(crate) use tools::xml::is_string;
pub use tools::{ReplyEvent, ToolFormat};

#[cfg(test)]
mod tests;
