//! The grammar of answers that are messages: thoughts, then the answer or calls. Of OpenAI's harmony, one in either of the two orders
//! that gpt-oss writes; of Meta's ATEM, each in a message to its tool.

use super::super::grammar::Grammar;
use super::{Literals, ReplyGrammar, arguments, arguments_schema, nested, unknown_calls};
use crate::error::Result;
use crate::text::channels::{Channels, NEXT};
use crate::text::{CallFormat, ToolFormat};

impl ReplyGrammar<'_> {
    /// The grammar behind a prompt that has begun a message, or, with `thinking`, a thought.
    ///
    /// # Errors
    /// As [`Self::grammar`].
    pub(super) fn messages(&self, of: Channels, literals: &Literals<'_>) -> Result<Grammar> {
        let mut lines = vec![literals.until("thoughts", of.end())];
        let [thought, said, next] = [of.thought(), of.said(), NEXT].map(|text| literals.sequence(text));
        lines.push(format!("thought: {thought} thoughts {next}"));
        let mut bodies = Vec::new();
        if let Some(text) = self.text {
            lines.push(format!("text: {}", nested(text)?));
            bodies.push(format!("{said} text"));
        }
        if !self.tools.is_empty() {
            match of {
                Channels::Harmony => self.harmony_call(literals, &mut lines)?,
                Channels::Atem => self.atem_calls(literals, &mut lines)?,
            }
            bodies.push("calls".to_owned());
        }
        lines.push(format!("answer: {}", bodies.join(" | ")));
        let start = match self.thinking {
            true => format!("start: thoughts {next} thought* answer"),
            false => "start: thought* answer".to_owned(),
        };
        lines.insert(0, start);
        Ok(Grammar::Lark(lines.join("\n")))
    }

    /// The rule of a call of harmony's, behind which the text ends with a token of its own.
    fn harmony_call(&self, literals: &Literals<'_>, lines: &mut Vec<String>) -> Result<()> {
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
        lines.push(format!("calls: {}", calls.join(" | ")));
        Ok(())
    }

    /// The rule of calls of ATEM's.
    fn atem_calls(&self, literals: &Literals<'_>, lines: &mut Vec<String>) -> Result<()> {
        let Some(ToolFormat { open, begin, call: CallFormat::Tagged(tags), end, close, .. }) =
            self.format.tools.as_deref()
        else {
            return Err(unknown_calls());
        };
        let mut calls = Vec::new();
        for (i, tool) in self.tools.iter().enumerate() {
            // What is to oneself is a thought: a tool of that name is called by a message to nobody.
            let to = if tool.name == Channels::ONESELF { "" } else { &format!(" to={}", tool.name) };
            let head = format!("{to}<|message|>{open}{begin}{}{}", tool.name, tags.open);
            calls.push(format!(
                "{} {} {}",
                literals.sequence(&head),
                arguments::tagged(literals, tags, i, tool, lines)?,
                literals.sequence(&format!("{}{end}{close}", tags.close)),
            ));
        }
        lines.push(format!("call: {}", calls.join(" | ")));
        let again = literals.sequence(&format!("{}{NEXT}", Channels::Atem.end()));
        let more = if self.parallel { format!("({again} call)*") } else { String::new() };
        lines.push(format!("calls: call {more}"));
        Ok(())
    }
}
