//! `POST /v1/completions`: text without a chat template.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::answers::{AnswerPart, Answers, Collected, Job, Scored, Update, Usage};
use super::failure::{Dialect, Failure, json_body};
use super::forms;
use super::json::{Fields, shown};
use super::openai::{ChunkShape, finish_reason, logprob_json};
use super::params::Common;
use super::request::Reply;
use super::served::Served;
use super::sse::{self, Encoder, Events};
use crate::generate::Options;
use crate::model::Model;
use crate::text::Infill;

/// The text of a part: here, where nothing is parsed, all of them are.
pub(crate) fn text_part(part: AnswerPart) -> Option<String> {
    match part {
        AnswerPart::Text(text) | AnswerPart::Broken(text) => Some(text),
        AnswerPart::Reasoning(_) | AnswerPart::Call { .. } | AnswerPart::Arguments { .. } => None,
    }
}

/// Most prompts of one request.
const MAX_PROMPTS: usize = 128;

/// A prompt as it came.
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Its tokens. Special tokens that are written in a text are read as such where `parse` says so.
    pub fn encode(self, model: &Model, parse: bool) -> crate::error::Result<Vec<u32>> {
        match self {
            Self::Text(text) => model.encode_prompt(&text, parse),
            Self::Tokens(ids) => Ok(ids),
        }
    }

    /// The same, of which those behind the first `most` are left out, where there is such a number; of a text they are counted with those
    /// that are put around it.
    pub fn encode_cut(
        self,
        model: &Model,
        parse: bool,
        most: Option<usize>,
    ) -> crate::error::Result<Vec<u32>> {
        match (self, most) {
            (Self::Text(text), Some(most)) => model.tokenizer()?.encode_cut(&text, parse, most),
            (Self::Tokens(mut ids), Some(most)) => {
                ids.truncate(most);
                Ok(ids)
            }
            (this, None) => this.encode(model, parse),
        }
    }

    /// The tokens behind which a text goes on, or is filled in before the `suffix`, and those that end it then.
    pub fn encode_before(
        self,
        model: &Model,
        parse: bool,
        suffix: Option<&str>,
    ) -> crate::error::Result<(Vec<u32>, Vec<u32>)> {
        match (self, suffix) {
            (Self::Text(prefix), Some(suffix)) => {
                let infill = Infill { prefix, suffix: suffix.to_owned(), ..Infill::default() };
                model.infill_prompt(&infill, None)
            }
            (this, _) => Ok((this.encode(model, parse)?, Vec::new())),
        }
    }
}

/// A string, token ids, or a list of at most `most` of either.
pub(crate) fn prompts(fields: &mut Fields, name: &str, most: usize) -> Result<Vec<Prompt>, Failure> {
    let given = fields.take(name);
    let given = fields.required(name, given)?;
    let wrong = |value: &Value| {
        let what = format!("expected text, token ids, or a list of either, got {}", shown(value));
        fields.wrong(name, what)
    };
    let tokens = |items: &[Value]| {
        let id = |item: &Value| {
            let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| fields.wrong(name, format_args!("expected token ids, got {}", shown(item))))
        };
        items.iter().map(id).collect::<Result<Vec<u32>, _>>().map(Prompt::Tokens)
    };
    let prompts = match given {
        Value::String(text) => vec![Prompt::Text(text)],
        Value::Array(items) => match items.first() {
            None => return Err(fields.wrong(name, "expected at least one")),
            Some(Value::Number(_)) => vec![tokens(&items)?],
            Some(_) => {
                let one = |item: Value| match item {
                    Value::String(text) => Ok(Prompt::Text(text)),
                    Value::Array(ids) => tokens(&ids),
                    other => Err(wrong(&other)),
                };
                items.into_iter().map(one).collect::<Result<_, _>>()?
            }
        },
        other => return Err(wrong(&other)),
    };
    if prompts.len() > most {
        return Err(fields.wrong(name, format_args!("{} texts, at most {most}", prompts.len())));
    }
    Ok(prompts)
}

pub(crate) async fn create(app: Arc<Served>, mut fields: Fields) -> Reply {
    let mut common = Common::take(&app, &mut fields)?;
    let prompts = prompts(&mut fields, "prompt", MAX_PROMPTS)?;
    let parse = fields.flag("parse_special")?.unwrap_or(true);
    let top = fields.whole("logprobs", 0, 20)?;
    common.options.sampling.logprobs = top.map(|top| top as usize);
    let format = forms::response_format(&mut fields)?;
    fields.only("echo", &[false.into()])?;
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    if suffix.is_some() && prompts.iter().any(|prompt| matches!(prompt, Prompt::Tokens(_))) {
        return Err(fields.wrong("suffix", "it needs a prompt of text"));
    }
    fields.finish()?;
    let places = app.places(prompts.len() * common.n)?;
    // It is made into tokens for each of them.
    let again = suffix.as_ref().map_or(0, |suffix| suffix.len().saturating_mul(prompts.len()));
    let (prompts, ends, constraint) = app
        .apart_with(again, move |model| {
            let constraint = format.map(|format| model.constraint(&format)).transpose()?;
            let mut ends = Vec::new();
            let prompts = prompts.into_iter().map(|prompt| {
                let tokens;
                (tokens, ends) = prompt.encode_before(model, parse, suffix.as_deref())?;
                Ok(tokens)
            });
            Ok((prompts.collect::<crate::error::Result<Vec<_>>>()?, ends, constraint))
        })
        .await?;
    let mut options = Options { constraint, ..common.options };
    options.stop_tokens.extend(ends);
    let job = Job::plain(prompts, common.n, options);
    let answers = Answers::start(&app, &job, places)?;
    let shape = ChunkShape::new(&app, "cmpl-", top.is_some());
    if common.stream {
        let offsets = vec![0; answers.len()];
        return Ok(sse::stream(answers, Chunks { shape, usage: common.usage, offsets }));
    }
    let (texts, usage) = answers.collect().await?;
    Ok(json_body(&whole(&shape, texts, usage)))
}

const KIND: &str = "text_completion";

fn whole(shape: &ChunkShape, texts: Vec<Collected>, usage: Usage) -> Value {
    let choice = |(index, text): (usize, Collected)| {
        json!({
            "index": index,
            "text": text.text,
            "logprobs": logprobs(shape, &text.tokens, &mut 0),
            "finish_reason": finish_reason(&text.finish),
        })
    };
    let choices = texts.into_iter().enumerate().map(choice).collect::<Vec<_>>();
    shape.whole(KIND, choices.into(), usage)
}

/// The log-probabilities in this API's four lists; `offset` is where in the text, in characters, the next token begins.
fn logprobs(shape: &ChunkShape, scored: &[Scored], offset: &mut usize) -> Value {
    if !shape.logprobs {
        return Value::Null;
    }
    let text = |token| String::from_utf8_lossy(&shape.app.token_bytes(token)).into_owned();
    let (mut tokens, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for one in scored {
        let token = text(one.token);
        let top = one.top.iter().map(|&(token, logprob)| (text(token), logprob_json(logprob)));
        tops.push(Value::Object(top.collect::<Map<_, _>>()));
        offsets.push(*offset);
        *offset += token.chars().count();
        tokens.push(token);
        logprobs.push(logprob_json(one.logprob));
    }
    json!({ "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets })
}

struct Chunks {
    shape: ChunkShape,
    usage: bool,
    /// Where the next token of each text begins.
    offsets: Vec<usize>,
}

impl Encoder for Chunks {
    fn begin(&mut self, _: &mut Events) {}

    fn update(&mut self, update: Update, out: &mut Events) {
        let tokens = update.token.as_slice();
        let text: String = update.parts.into_iter().filter_map(text_part).collect();
        if text.is_empty() && update.finish.is_none() && (!self.shape.logprobs || tokens.is_empty()) {
            return;
        }
        let logprobs = match tokens {
            [] => Value::Null,
            tokens => logprobs(&self.shape, tokens, &mut self.offsets[update.choice]),
        };
        let choices = json!([{
            "index": update.choice,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": update.finish.as_ref().map(finish_reason),
        }]);
        let usage = self.usage.then_some(Value::Null);
        out.data(&self.shape.last(KIND, choices, usage, update.timings));
    }

    fn end(&mut self, usage: Usage, out: &mut Events) {
        if self.usage {
            out.data(&self.shape.whole(KIND, json!([]), usage));
        }
        out.text("[DONE]");
    }

    fn fail(&mut self, failure: &Failure, out: &mut Events) {
        out.data(&failure.json(Dialect::OpenAi));
    }
}
