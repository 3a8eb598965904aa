//! Multiple choice: which of several endings a model finds the likeliest, by the sums of their tokens' log-probabilities.
//!
//! Questions are lines of JSON, in one of two forms. HellaSwag's has `ctx` (or `ctx_a`, `ctx_b` and `activity_label`), `endings` and
//! `label`; MMLU's `question`, `choices`, `answer` and perhaps `subject`. Prompts, the tokens that belong to a choice, `acc` and
//! `acc_norm` are those of lm-evaluation-harness.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json;
use crate::model::Model;
use crate::sample::Distribution;
use crate::text::Specials;

/// Choices of a question, at most: as many letters as there are.
const MOST: usize = 26;

/// A question in the words that a model is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What all choices follow.
    pub context: String,
    /// What may follow, each with the space before it.
    pub continuations: Vec<String>,
    /// Characters of each choice itself, by which `acc_norm` divides.
    pub lengths: Vec<usize>,
    /// The one that is right.
    pub answer: usize,
    /// What it is about, where that is said.
    pub subject: Option<String>,
}

/// What a model says of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// `ln p` of each continuation behind the context.
    pub sums: Vec<f64>,
    /// Whether each is what the model would say by itself, token by token.
    pub greedy: Vec<bool>,
    /// Whether the beginning of the context was left out, since not all of it has room.
    pub cut: bool,
}

impl Answered {
    /// The likeliest choice, the first of several.
    pub fn likeliest(&self) -> usize {
        first_of_most(&self.sums)
    }

    /// The choice that is likeliest by character.
    pub fn likeliest_by_length(&self, question: &Question) -> usize {
        let by_length = self.sums.iter().zip(&question.lengths).map(|(sum, &len)| sum / len.max(1) as f64);
        first_of_most(&by_length.collect::<Vec<_>>())
    }
}

fn first_of_most(values: &[f64]) -> usize {
    let mut best = 0;
    for (at, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = at;
        }
    }
    best
}

impl Question {
    /// Reads a line of either form.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(line: &str) -> Result<Self, String> {
        let members: Map<String, Value> = match json::strict(line, json::ASKED) {
            Ok(Value::Object(members)) => members,
            Ok(_) => return Err("it is no JSON object".to_owned()),
            Err(error) => return Err(format!("it is no JSON: {error}")),
        };
        let text = |key: &str| match members.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(format!("{key} is {other}, expected a text")),
        };
        let texts = |key: &str| -> Result<Vec<&str>, String> {
            let Some(Value::Array(all)) = members.get(key) else {
                return Err(format!("{key} is missing or no list, expected the texts to choose from"));
            };
            let all: Option<Vec<&str>> = all.iter().map(Value::as_str).collect();
            let all = all.ok_or_else(|| format!("{key} holds what is no text"))?;
            match all.len() {
                2..=MOST => Ok(all),
                n => Err(format!("{key} has {n} texts, expected 2 to {MOST}")),
            }
        };
        if members.contains_key("endings") {
            let endings = texts("endings")?;
            let context = match (text("ctx_a")?, text("ctx_b")?, text("activity_label")?) {
                (Some(a), Some(b), Some(label)) => format!("{label}: {a} {}", capitalized(b)),
                _ => text("ctx")?.ok_or("ctx is missing, expected the text that endings follow")?.to_owned(),
            };
            let endings: Vec<String> = endings.into_iter().map(without_marks).collect();
            let answer = place(members.get("label"), "label", endings.len())?;
            return Ok(Self {
                context: without_marks(&context),
                lengths: endings.iter().map(|ending| ending.chars().count()).collect(),
                continuations: endings.iter().map(|ending| format!(" {ending}")).collect(),
                answer,
                subject: None,
            });
        }
        let question =
            text("question")?.ok_or("it has neither endings (HellaSwag's form) nor a question (MMLU's)")?;
        let choices = texts("choices")?;
        let answer = place(members.get("answer"), "answer", choices.len())?;
        let subject = text("subject")?.filter(|subject| !subject.is_empty());
        let mut context = match subject {
            Some(subject) => format!(
                "The following are multiple choice questions (with answers) about {}.\n\n",
                subject.replace('_', " ")
            ),
            None => String::new(),
        };
        context += question.trim();
        for (letter, choice) in ('A'..).zip(&choices) {
            context += &format!("\n{letter}. {choice}");
        }
        context += "\nAnswer:";
        Ok(Self {
            context,
            lengths: vec![1; choices.len()],
            continuations: ('A'..).take(choices.len()).map(|letter| format!(" {letter}")).collect(),
            answer,
            subject: subject.map(str::to_owned),
        })
    }
}

/// The place that a number, its digits or a letter say.
fn place(value: Option<&Value>, key: &str, count: usize) -> Result<usize, String> {
    let at = match value {
        Some(Value::Number(number)) => number.as_u64().and_then(|at| usize::try_from(at).ok()),
        Some(Value::String(text)) => match text.trim().as_bytes() {
            [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
            _ => text.trim().parse().ok(),
        },
        _ => None,
    };
    at.filter(|&at| at < count).ok_or_else(|| {
        let got = value.map_or("missing".to_owned(), Value::to_string);
        format!("{key} is {got}, expected the place of one of {count} choices, from 0, or its letter")
    })
}

/// The first letter large, all others small, as in Python.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.flat_map(char::to_lowercase)).collect()
}

/// A text of WikiHow without the marks that were left in it.
fn without_marks(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        // Python's dot meets no line end.
        let inner = &rest[open + 1..];
        let close = inner.find(']').filter(|&close| !inner[..close].contains('\n'));
        let end = close.map_or(open + 1, |close| open + 1 + close + 1);
        out += &rest[..if close.is_some() { open } else { end }];
        rest = &rest[end..];
    }
    out += rest;
    out.replace("  ", " ")
}

/// The tokens of the context with those of a continuation, and where these begin.
///
/// The two are encoded as one text, and what is behind as many tokens as the context has alone is the continuation; spaces at the end
/// of the context go to it.
fn tokens_of(model: &Model, context: &str, continuation: &str) -> Result<(Vec<u32>, usize)> {
    let tokenizer = model.tokenizer()?;
    let known = context.trim_end();
    let whole = tokenizer.encode(&format!("{context}{continuation}"))?;
    let known = tokenizer.encode_with(known, Specials { add: true, parse: true })?.len();
    // A token of its own at least, with one before it.
    let begin = known.min(whole.len().saturating_sub(1));
    match begin {
        0 => Err(Error::Prompt("a question has no context, and this model's tokenizer adds no BOS".into())),
        begin => Ok((whole, begin)),
    }
}

/// Asks a model one question. Choices follow what is kept of the context, which is computed once.
///
/// # Errors
/// A choice longer than the context, a tokenizer that is missing, and what the model reports.
pub fn answer(model: &Model, question: &Question) -> Result<Answered> {
    let mut answered = Answered { sums: Vec::new(), greedy: Vec::new(), cut: false };
    let mut asked = Vec::new();
    for continuation in &question.continuations {
        let (mut tokens, mut begin) = tokens_of(model, &question.context, continuation)?;
        // The last token is told, and not read.
        let over = (tokens.len() - 1).saturating_sub(model.info().context);
        if over > 0 {
            if over >= begin {
                let (count, context) = (tokens.len() - begin, model.info().context);
                let what = format!("a choice of {count} tokens has no room in a context of {context}");
                return Err(Error::Prompt(what));
            }
            tokens.drain(..over);
            begin -= over;
            answered.cut = true;
        }
        asked.push((tokens, begin));
    }
    // Of choices of one token each, one row says it all.
    let last = |tokens: &[u32]| tokens.len() - 1;
    let (first, _) = &asked[0];
    let alike = asked.iter().all(|(tokens, begin)| {
        *begin == last(tokens)
            && tokens.len() == first.len()
            && tokens[..last(tokens)] == first[..last(first)]
    });
    if alike {
        let rows = scored(model, first[..last(first)].to_vec(), last(first), {
            let choices: Vec<u32> = asked.iter().map(|(tokens, begin)| tokens[*begin]).collect();
            move |_| choices.clone()
        })?;
        for (log_p, greedy) in rows.into_iter().flatten() {
            answered.sums.push(log_p);
            answered.greedy.push(greedy);
        }
        return Ok(answered);
    }
    for (tokens, begin) in asked {
        let read = tokens[..last(&tokens)].to_vec();
        let rows = scored(model, read, begin, move |at| vec![tokens[begin + at]])?;
        let of_choice = || rows.iter().flatten();
        answered.sums.push(of_choice().map(|(log_p, _)| log_p).sum());
        answered.greedy.push(of_choice().all(|(_, greedy)| *greedy));
    }
    Ok(answered)
}

/// Reads `tokens`, and tells from token `begin` on, which is the first that is told, what `ln p` of the tokens that `of` names for each
/// row is, and whether it is the likeliest.
fn scored(
    model: &Model,
    tokens: Vec<u32>,
    begin: usize,
    of: impl Fn(usize) -> Vec<u32> + Send + 'static,
) -> Result<Vec<Vec<(f64, bool)>>> {
    let rows = begin - 1..tokens.len();
    let (count, mut at) = (rows.len(), 0);
    let (sender, answers) = channel();
    let _asked = model.each_row(tokens, rows, move |row| {
        let told = row.map(|row| {
            let distribution = Distribution::of(row);
            let one = |token: u32| (distribution.log_p(token), distribution.likeliest() == token);
            of(at).into_iter().map(one).collect::<Vec<_>>()
        });
        at += 1;
        let good = told.is_ok();
        sender.send(told).is_ok() && good
    })?;
    (0..count).map(|_| crate::engine::receive(&answers)?).collect()
}

/// Asks a model all questions, `at_once` of them at a time, whose steps it shares. What it says is handed to `take` with the place of
/// the question, in the order in which it comes; where `take` says `false`, no further one is asked.
///
/// # Errors
/// The first of [`answer`].
pub fn answer_all(
    model: &Model,
    questions: &[Question],
    at_once: usize,
    mut take: impl FnMut(usize, Answered) -> bool,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let (sender, answers) = channel();
    std::thread::scope(|scope| {
        for _ in 0..at_once.clamp(1, questions.len().max(1)) {
            let (sender, next) = (sender.clone(), &next);
            let ask = move || {
                while let Some((at, question)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, questions.get(at)?)))
                {
                    let said = answer(model, question);
                    let good = said.is_ok();
                    if sender.send((at, said)).is_err() || !good {
                        return;
                    }
                }
            };
            let named = std::thread::Builder::new().name("question".to_owned());
            named.spawn_scoped(scope, ask).map_err(|source| Error::Thread { what: "questions", source })?;
        }
        drop(sender);
        let mut result = Ok(());
        for (at, said) in answers {
            let go_on = match said {
                Ok(said) => take(at, said),
                Err(error) => {
                    result = Err(error);
                    false
                }
            };
            if !go_on {
                break;
            }
        }
        next.store(questions.len(), Ordering::Relaxed);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_become_the_harness_s_prompts() {
        let line = r#"{"activity_label": "Baking", "ctx_a": "A man [step] bakes.", "ctx_b": "then HE", "ctx": "no",
            "endings": ["eats [title] it  all.", "sleeps."], "label": "1"}"#;
        let question = Question::parse(line).unwrap();
        assert_eq!(question.context, "Baking: A man bakes. Then he");
        assert_eq!(question.continuations, [" eats. it all.", " sleeps."]);
        assert_eq!((question.lengths, question.answer), (vec![13, 7], 1));
        let plain = Question::parse(r#"{"ctx": " A [b ] c [d", "endings": ["x", "é"], "label": 0}"#).unwrap();
        assert_eq!((plain.context.as_str(), plain.lengths), ("A c [d", vec![1, 1]));

        let line = r#"{"question": " 2 + 2? ", "subject": "abstract_algebra", "choices": ["3", "4"], "answer": "B"}"#;
        let question = Question::parse(line).unwrap();
        let about = "The following are multiple choice questions (with answers) about abstract algebra.\n\n";
        assert_eq!(question.context, format!("{about}2 + 2?\nA. 3\nB. 4\nAnswer:"));
        assert_eq!(
            (&question.continuations[..], question.answer),
            (&[" A".to_owned(), " B".to_owned()][..], 1)
        );
    }

    #[test]
    fn what_is_no_question_is_told() {
        for (line, expected) in [
            ("", "no JSON"),
            ("[]", "no JSON object"),
            ("{}", "neither"),
            (r#"{"question": "q", "answer": 0}"#, "choices is missing"),
            (r#"{"question": "q", "choices": ["a"], "answer": 0}"#, "has 1 texts"),
            (r#"{"question": "q", "choices": ["a", 2], "answer": 0}"#, "no text"),
            (r#"{"question": "q", "choices": ["a", "b"], "answer": 2}"#, "answer is 2"),
            (r#"{"question": "q", "choices": ["a", "b"], "answer": -1}"#, "answer is -1"),
            (r#"{"question": "q", "choices": ["a", "b"], "answer": "c"}"#, "answer is \"c\""),
            (r#"{"question": "q", "choices": ["a", "b"]}"#, "answer is missing"),
            (r#"{"endings": ["a", "b"], "label": 0}"#, "ctx is missing"),
            (r#"{"ctx": 3, "endings": ["a", "b"], "label": 0}"#, "ctx is 3"),
        ] {
            let error = Question::parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn the_likeliest_is_the_first_of_the_best() {
        let question =
            Question::parse(r#"{"ctx": "c", "endings": ["long enough", "no", "no"], "label": 0}"#).unwrap();
        let answered = Answered { sums: vec![-4.0, -3.0, -3.0], greedy: vec![false; 3], cut: false };
        assert_eq!((answered.likeliest(), answered.likeliest_by_length(&question)), (1, 0));
    }
}
