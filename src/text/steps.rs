//! The normalizers and pre-tokenizers of a `tokenizer.json`: the library's, but for those with a pattern, which would be
//! Oniguruma's.

use serde::Deserialize as _;
use serde_json::{Value, json};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pattern::Invert;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{NormalizedString, Normalizer, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

use super::matcher::Matcher;
use super::patterns;

/// How many steps a list may have; published ones have up to six.
const MAX_STEPS: usize = 64;

/// What is done to a text before it is cut.
#[derive(Clone)]
pub(super) struct Normalizers(Vec<NormalizerStep>);

#[derive(Clone)]
enum NormalizerStep {
    Library(NormalizerWrapper),
    Replace { pattern: Matcher, content: String },
}

/// How a text is cut before tokens are found in it.
#[derive(Clone)]
pub(super) struct PreTokenizers(Vec<PreTokenizerStep>);

#[derive(Clone)]
enum PreTokenizerStep {
    Library(PreTokenizerWrapper),
    Split {
        pattern: Matcher,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// A space before whatever has none, which the library's byte-level step adds before it splits.
    PrefixSpace,
}

/// What a step's `type` says.
pub(super) fn kind(step: &Value) -> Result<&str, String> {
    step["type"].as_str().ok_or_else(|| "a step without a type".to_owned())
}

/// The steps of one, or of a sequence of them, whose list is called `list`; those within each other as if they were not.
pub(super) fn flat<'a>(json: &'a Value, list: &str) -> Result<Vec<&'a Value>, String> {
    let mut steps = Vec::new();
    let mut open = vec![json];
    while let Some(step) = open.pop() {
        if step.is_null() {
            continue;
        }
        if kind(step)? == "Sequence" {
            let inner = step[list].as_array().ok_or_else(|| format!("a sequence without {list}"))?;
            open.extend(inner.iter().rev());
        } else {
            steps.push(step);
        }
        if open.len() + steps.len() > MAX_STEPS {
            return Err(format!("over {MAX_STEPS} steps"));
        }
    }
    Ok(steps)
}

impl Normalizers {
    /// # Errors
    /// A step that the library or a pattern refuses.
    pub(super) fn from_json(json: &Value) -> Result<Option<Self>, String> {
        let step = |step: &Value| {
            if kind(step)? == "Replace" {
                let content = step["content"].as_str().ok_or("Replace: expected content")?.to_owned();
                return Ok(NormalizerStep::Replace {
                    pattern: Matcher::from_json(&step["pattern"])?,
                    content,
                });
            }
            NormalizerWrapper::deserialize(step).map(NormalizerStep::Library).map_err(|e| e.to_string())
        };
        let steps = flat(json, "normalizers")?.into_iter().map(step).collect::<Result<Vec<_>, String>>()?;
        Ok((!steps.is_empty()).then_some(Self(steps)))
    }
}

impl Normalizer for Normalizers {
    fn normalize(&self, normalized: &mut NormalizedString) -> tokenizers::Result<()> {
        self.0.iter().try_for_each(|step| match step {
            NormalizerStep::Library(step) => step.normalize(normalized),
            NormalizerStep::Replace { pattern, content } => normalized.replace(pattern, content),
        })
    }
}

impl PreTokenizers {
    /// # Errors
    /// A step that the library or a pattern refuses.
    pub(super) fn from_json(json: &Value) -> Result<Option<Self>, String> {
        let library = |step: &Value| {
            PreTokenizerWrapper::deserialize(step).map(PreTokenizerStep::Library).map_err(|e| e.to_string())
        };
        let mut steps = Vec::new();
        for step in flat(json, "pretokenizers")? {
            match kind(step)? {
                "Split" => {
                    let behavior = SplitDelimiterBehavior::deserialize(&step["behavior"])
                        .map_err(|e| format!("Split: behavior: {e}"))?;
                    let invert = step["invert"].as_bool().ok_or("Split: expected invert")?;
                    let pattern = Matcher::from_json(&step["pattern"])?;
                    steps.push(PreTokenizerStep::Split { pattern, behavior, invert });
                }
                "ByteLevel" if step["use_regex"] != json!(false) => {
                    if step["add_prefix_space"] == json!(true) {
                        steps.push(PreTokenizerStep::PrefixSpace);
                    }
                    let behavior = SplitDelimiterBehavior::Isolated;
                    let pattern = Matcher::regex(patterns::GPT2)?;
                    steps.push(PreTokenizerStep::Split { pattern, behavior, invert: false });
                    let mut bytes = step.clone();
                    bytes["use_regex"] = false.into();
                    // What it would add now would go before every piece.
                    let prefixed = std::mem::replace(&mut bytes["add_prefix_space"], false.into());
                    if !prefixed.is_boolean() {
                        return Err("ByteLevel: expected add_prefix_space".into());
                    }
                    steps.push(library(&bytes)?);
                }
                _ => steps.push(library(step)?),
            }
        }
        Ok((!steps.is_empty()).then_some(Self(steps)))
    }
}

impl PreTokenizer for PreTokenizers {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        self.0.iter().try_for_each(|step| match step {
            PreTokenizerStep::Library(step) => step.pre_tokenize(text),
            PreTokenizerStep::PrefixSpace => text.split(|_, mut piece| {
                if !piece.get().starts_with(' ') {
                    piece.prepend(" ");
                }
                Ok(vec![piece])
            }),
            PreTokenizerStep::Split { pattern, behavior, invert: false } => {
                text.split(|_, piece| piece.split(pattern, *behavior))
            }
            PreTokenizerStep::Split { pattern, behavior, invert: true } => {
                text.split(|_, piece| piece.split(Invert(pattern), *behavior))
            }
        })
    }
}
