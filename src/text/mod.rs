//! Text and tokens: the tokenizer, the chat template, the streaming detokenizer, and what a generated answer is made of.

mod bounded;
mod budget;
pub(crate) mod channels;
mod chat;
mod convert;
mod growth;
mod json;
mod longest;
mod matcher;
mod message;
pub(crate) mod patterns;
mod probe;
mod python;
mod raw;
mod reasoning;
mod rebuilt;
mod reply;
mod scan;
mod screen;
mod sentinel;
mod special;
mod steps;
mod stream;
mod template;
mod tokenizer;
mod tool;
mod tools;

pub use channels::Channels;
pub use chat::{Chat, PromptEnd, ToolChoice, effort, thinking};
#[cfg(feature = "server")]
pub(crate) use json::strftime;
pub use message::{Message, RenderOptions, Rendered};
pub use reasoning::ReasoningFormat;
pub use reply::{Reply, ReplyFormat, ReplyParser, ToolCall};
pub(crate) use special::SpecialTokens;
pub use stream::Detokenizer;
pub use template::ChatTemplate;
pub(crate) use tokenizer::around;
pub use tokenizer::{Cut, Infill, InfillMarks, Specials, Tokenizer};
pub use tool::Tool;
pub(crate) use tools::tagged::is_string;
pub use tools::{ArgumentTags, CallFormat, CallObject, ReplyEvent, ToolFormat};
pub(crate) use tools::{ID, INDEX, takes_in_python};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use probe::samples;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use sentinel::Guarded;
#[cfg(test)]
mod tests;
