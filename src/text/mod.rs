//! Text and tokens: the tokenizer, the chat template, the streaming detokenizer.

mod apart;
mod bounded;
mod json;
mod raw;
mod screen;
mod sentinel;
mod stream;
mod template;
mod tokenizer;

pub use stream::Detokenizer;
pub use template::{ChatTemplate, Message, RenderOptions, Rendered};
pub use tokenizer::Tokenizer;

#[cfg(test)]
mod tests;
