//! `/set`: what can be changed while a conversation goes on.

use std::fmt::Display;

use anyhow::anyhow;
use backstop::{Model, Options, SamplingOptions};
use serde_json::{Map, Value};

use super::super::args::{SamplingArgs, at_least_one, seed};
use super::super::stream::Thoughts;
use super::super::summary::aligned;
use super::super::{Usage, resolve_sampling, think};

/// The value that takes a setting back.
pub const DEFAULT: &str = "default";

/// The settings, and the values that can be completed.
pub const NAMES: [(&str, &[&str]); 11] = [
    ("temperature", &[DEFAULT]),
    ("top-k", &[DEFAULT]),
    ("top-p", &[DEFAULT]),
    ("min-p", &[DEFAULT]),
    ("repeat-penalty", &[DEFAULT]),
    ("presence-penalty", &[DEFAULT]),
    ("frequency-penalty", &[DEFAULT]),
    ("seed", &[DEFAULT, "random"]),
    ("max-tokens", &[DEFAULT]),
    ("think", &[DEFAULT, "on", "off", "low", "medium", "high"]),
    ("thoughts", &["show", "fold", "hide"]),
];

/// What was typed, on the command line or after `/set`; the rest is the model's.
#[derive(Debug, Clone)]
pub struct Settings {
    sampling: SamplingArgs,
    /// How much the model is to think, as servers are told it.
    think: Option<String>,
    pub thoughts: Thoughts,
}

impl Settings {
    pub fn new(sampling: &SamplingArgs, think: Option<&str>) -> Self {
        Self { sampling: sampling.clone(), think: think.map(str::to_owned), thoughts: Thoughts::Show }
    }

    /// What a model is asked with.
    ///
    /// # Errors
    /// A value out of range.
    pub fn options(&self, model: &Model) -> anyhow::Result<Options> {
        let sampling = resolve_sampling(&self.sampling, model)?;
        Ok(Options { max_tokens: self.sampling.max_tokens, sampling, ..Options::default() })
    }

    /// What the chat template is told beside the messages.
    pub fn variables(&self) -> Map<String, Value> {
        think::variables(self.think.as_deref())
    }

    /// The settings with another value of one.
    ///
    /// # Errors
    /// A setting that there is none of, and a value that it cannot have.
    pub fn with(&self, name: &str, value: &str, model: &Model) -> anyhow::Result<Self> {
        let name = name.replace('_', "-").to_lowercase();
        let mut new = self.clone();
        let s = &mut new.sampling;
        let set = match &*name {
            "temperature" | "temp" => number(value).map(|value| s.temperature = value),
            "top-k" => number(value).map(|value| s.top_k = value),
            "top-p" => number(value).map(|value| s.top_p = value),
            "min-p" => number(value).map(|value| s.min_p = value),
            "repeat-penalty" => number(value).map(|value| s.repeat_penalty = value),
            "presence-penalty" => number(value).map(|value| s.presence_penalty = value),
            "frequency-penalty" => number(value).map(|value| s.frequency_penalty = value),
            "seed" => given(value, |text| seed(if text == "random" { "-1" } else { text }))
                .map(|value| s.seed = value),
            "max-tokens" | "num-predict" => given(value, at_least_one).map(|value| s.max_tokens = value),
            "think" => given(value, think::think).map(|value| new.think = value),
            "thoughts" => thoughts(value).map(|value| new.thoughts = value),
            _ => {
                let near = NAMES.iter().map(|(known, _)| (strsim::osa_distance(&name, known), *known)).min();
                let near = near.filter(|(apart, _)| *apart <= 3);
                let near =
                    near.map_or_else(|| ":".to_owned(), |(_, known)| format!("; did you mean {known}?"));
                return Err(Usage(format!("there is no setting {name}{near} /set alone shows all")).into());
            }
        };
        set.map_err(|expected| Usage(format!("{name} is {value}: {expected}, or {DEFAULT}")))?;
        // By the name that it has here.
        new.options(model).map_err(|error| match error.downcast_ref::<Usage>() {
            Some(Usage(what)) => Usage(what.trim_start_matches("--").to_owned()).into(),
            None => anyhow!(error),
        })?;
        Ok(new)
    }

    /// All of them: those that are the model's are marked, of the others it is said what the model's is.
    ///
    /// # Errors
    /// As [`Self::options`].
    pub fn table(&self, model: &Model) -> anyhow::Result<String> {
        let SamplingOptions {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            seed,
            ..
        } = model.default_sampling();
        let s = &self.sampling;
        let tokens = match model.default_max_tokens(0) {
            Some(most) => most.to_string(),
            None => "what the context leaves".to_owned(),
        };
        let rows = [
            row("temperature", s.temperature, temperature),
            row("top-k", s.top_k, top_k),
            row("top-p", s.top_p, top_p),
            row("min-p", s.min_p, min_p),
            row("repeat-penalty", s.repeat_penalty, repeat_penalty),
            row("presence-penalty", s.presence_penalty, presence_penalty),
            row("frequency-penalty", s.frequency_penalty, frequency_penalty),
            row("seed", s.seed, seed),
            row("max-tokens", s.max_tokens.map(|most| most.to_string()), tokens),
            row("think", self.think.clone(), "as the chat template has it".to_owned()),
            row(
                "thoughts",
                (self.thoughts != Thoughts::Show).then(|| self.thoughts.name()),
                Thoughts::Show.name(),
            ),
        ];
        Ok(aligned(&rows, 3))
    }
}

fn row<T: Display>(name: &str, set: Option<T>, default: T) -> [String; 3] {
    match set {
        Some(value) => [name.to_owned(), value.to_string(), format!("(default: {default})")],
        None => [name.to_owned(), default.to_string(), "(default)".to_owned()],
    }
}

fn given<T>(value: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if value == DEFAULT { Ok(None) } else { parse(value).map(Some) }
}

fn number<T: std::str::FromStr>(value: &str) -> Result<Option<T>, String> {
    given(value, |text| text.parse().map_err(|_| "expected a number".to_owned()))
}

fn thoughts(value: &str) -> Result<Thoughts, String> {
    let all = [Thoughts::Show, Thoughts::Fold, Thoughts::Hide];
    let named = all.into_iter().find(|thoughts| thoughts.name() == value);
    let named = named.or((value == DEFAULT).then_some(Thoughts::Show));
    named.ok_or_else(|| "expected show, fold or hide".to_owned())
}
