//! The grammar of answers in OpenAI's harmony: thoughts, then the answer, or a call in one of the two orders that gpt-oss writes.

use super::super::grammar::Grammar;
use super::{Literals, ReplyGrammar, arguments_schema, nested, unknown_calls};
use crate::Result;
use crate::text::harmony::{NEXT, SAID, THOUGHT, THOUGHT_END};

impl ReplyGrammar<'_> {
    /// The grammar behind a prompt that has begun a message, or, with `thinking`, a thought.
    ///
    /// # Errors
    /// As [`Self::grammar`].
    pub(super) fn harmony(&self, literals: &Literals<'_>) -> Result<Grammar> {
        let mut lines = vec![literals.until("thoughts", THOUGHT_END)];
        lines.push(format!("thought: {} thoughts {}", literals.sequence(THOUGHT), literals.sequence(NEXT)));
        let mut bodies = Vec::new();
        if let Some(text) = self.text {
            lines.push(format!("text: {}", nested(text)?));
            bodies.push(format!("{} text", literals.sequence(SAID)));
        }
        if !self.tools.is_empty() {
            self.harmony_calls(literals, &mut lines)?;
            bodies.push("call".to_owned());
        }
        lines.push(format!("answer: {}", bodies.join(" | ")));
        let start = match self.thinking {
            true => format!("start: thoughts {} thought* answer", literals.sequence(NEXT)),
            false => "start: thought* answer".to_owned(),
        };
        lines.insert(0, start);
        Ok(Grammar::Lark(lines.join("\n")))
    }

    /// The rule of a call, behind which the text ends with a token of its own.
    fn harmony_calls(&self, literals: &Literals<'_>, lines: &mut Vec<String>) -> Result<()> {
        if self.format.tools.is_none() {
            return Err(unknown_calls());
        }
        lines.push(format!(
            "kind: ({} | {})? {}",
            literals.sequence(" json"),
            literals.sequence(" <|constrain|>json"),
            literals.sequence("<|message|>")
        ));
        let mut calls = Vec::new();
        for (i, tool) in self.tools.iter().enumerate() {
            let to = format!(" to=functions.{}", tool.name);
            lines.push(format!("arguments_{i}: %json {}", arguments_schema(tool)?));
            calls.push(format!(
                "({} | {}) kind arguments_{i}",
                literals.sequence(&format!("<|channel|>commentary{to}")),
                literals.sequence(&format!("{to}<|channel|>commentary")),
            ));
        }
        lines.push(format!("call: {}", calls.join(" | ")));
        Ok(())
    }
}
