//! What clients ask: bodies of every API, and what their answers are held against.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::check::{self, Check};
use crate::load::client::{self, Reading};
use crate::load::process::Server;

/// The routes that complete.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Api {
    Completions,
    Chat,
    Responses,
    Messages,
}

impl Api {
    pub const ALL: [Self; 4] = [Self::Completions, Self::Chat, Self::Responses, Self::Messages];

    pub fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }
}

/// A request whose answer is known beforehand.
#[derive(Debug, Clone)]
pub struct Question {
    pub api: Api,
    pub body: Value,
    /// What its answer must be, whatever a single user is told.
    pub check: Option<Check>,
}

impl Question {
    pub fn new(api: Api, prompt: &str, tokens: u64, stream: bool) -> Self {
        let turn = || json!([{ "role": "user", "content": prompt }]);
        let mut body = match api {
            Api::Completions => json!({ "prompt": prompt, "max_tokens": tokens, "ignore_eos": true }),
            Api::Chat | Api::Messages => json!({ "messages": turn(), "max_tokens": tokens }),
            Api::Responses => json!({ "input": prompt, "max_output_tokens": tokens, "store": false }),
        };
        body["temperature"] = json!(0);
        body["stream"] = json!(stream);
        Self { api, body, check: None }
    }

    /// Its answer follows a grammar, and is held against it.
    pub fn constrained(mut self, check: &Check) -> Self {
        let format = format_of(check, self.api);
        let body = &mut self.body;
        match self.api {
            Api::Completions | Api::Chat => body["response_format"] = format,
            Api::Responses => body["text"] = json!({ "format": format }),
            Api::Messages => body["output_config"] = json!({ "format": format }),
        }
        if let Some(members) = body.as_object_mut() {
            members.remove("ignore_eos");
        }
        self.check = Some(check.clone());
        self
    }

    pub fn streamed(&self) -> bool {
        self.body["stream"] == true
    }
}

/// A format as `api` takes it.
fn format_of(check: &Check, api: Api) -> Value {
    match (check, api) {
        (Check::Schema(schema), Api::Completions | Api::Chat) => {
            json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema } })
        }
        (Check::Schema(schema), Api::Responses) => {
            json!({ "type": "json_schema", "name": "answer", "schema": schema })
        }
        (Check::Schema(schema), Api::Messages) => json!({ "type": "json_schema", "schema": schema }),
        (Check::Regex(regex, _), _) => json!({ "type": "regex", "regex": regex }),
        (Check::Lark(grammar, _), _) => json!({ "type": "lark", "grammar": grammar }),
    }
}

/// Questions of each format, on each API that takes it.
pub fn constrained() -> Vec<Question> {
    let mut all = Vec::new();
    let mut add = |api: Api, check: &Check| {
        let number = all.len() as u64;
        let beginnings = ["Tell me about Lily.", "Who is Tom?", "Once upon a time"];
        let prompt = beginnings[(number % 3) as usize];
        all.push(Question::new(api, prompt, 440, !number.is_multiple_of(3)).constrained(check));
    };
    for check in check::everywhere() {
        Api::ALL.iter().for_each(|&api| add(api, &check));
    }
    for api in [Api::Completions, Api::Chat] {
        check::of_completions().iter().for_each(|check| add(api, check));
    }
    all
}

/// Sentences that no other number has, of about as many tokens as `words`.
pub fn story(number: u64, words: usize) -> String {
    const WORDS: [&str; 24] = [
        "the", "cat", "saw", "a", "big", "red", "ball", "and", "Tom", "ran", "to", "his", "mom", "who",
        "was", "in", "park", "with", "dog", "happy", "then", "they", "went", "home",
    ];
    let mut state = super::scatter(number) | 1;
    let word = |i: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let space = if i == 0 { "" } else { " " };
        format!("{space}{}", WORDS[(state % WORDS.len() as u64) as usize])
    };
    (0..words).map(word).collect()
}

/// The texts that a single user is told, asked one after another of a server that does one at a time. No question finds what
/// another has left.
pub fn single_user(program: &Path, model: Option<&str>, questions: &[Question]) -> Result<Vec<Vec<String>>> {
    let args = [model.unwrap_or("stories"), "--parallel", "1"];
    let server = Server::backstop(program, &args)?;
    let one = |(number, question): (usize, &Question)| -> Result<Vec<String>> {
        let mut body = question.body.clone();
        body["cache_salt"] = json!(format!("question {number}"));
        let answer = client::ask(server.address, question.api.path(), None, &body, Reading::default())
            .with_context(|| format!("a single user's question {number}"))?;
        ensure!(answer.status == 200, "{body}: {}: {}", answer.status, answer.text());
        if let Some(check) = &question.check {
            check.holds(answer.text()).with_context(|| format!("a single user's answer to {body}"))?;
        }
        Ok(answer.texts)
    };
    questions.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stories_differ_and_repeat() {
        assert_eq!(story(1, 30), story(1, 30));
        assert_ne!(story(1, 30), story(2, 30));
        assert!(story(1, 40).starts_with(&story(1, 30)));
        assert_eq!(story(3, 12).split(' ').count(), 12);
    }

    #[test]
    fn every_api_names_its_prompt_and_its_length() {
        for api in Api::ALL {
            let question = Question::new(api, "Once", 7, true);
            let text = question.body.to_string();
            assert!(text.contains("Once") && text.contains(":7") && question.streamed(), "{text}");
        }
    }
}
