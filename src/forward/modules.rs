//! What sentence-transformers writes beside a model: `modules.json`, the parts that make a vector of a text or a score of a pair, and
//! the settings that they come with.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::pooling::{Pooling, Squash, score_squash};
use crate::error::{Error, Result};
use crate::files;
use crate::json::{self, Fields, Value, quote};

/// What a list of modules makes of a model.
#[derive(Debug, Clone)]
pub(crate) enum Made {
    /// Vectors of texts.
    Vectors(Pooling),
    /// Scores of pairs, of logits.
    Scores(LogitScore),
}

/// The score of a pair, by the token that a model would go on with: `logit[yes] − logit[no]`, or `logit[yes]` alone, and a function of
/// it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LogitScore {
    yes: u32,
    no: Option<u32>,
    squash: Squash,
}

impl LogitScore {
    /// The score that the logits behind a pair give.
    ///
    /// # Errors
    /// [`Error::Engine`] where it is no finite number.
    pub fn of(&self, logits: &[f32]) -> Result<f32> {
        let logit = |id: u32| logits.get(id as usize).map_or(f64::NAN, |&x| f64::from(x));
        let score = self.squash.of(logit(self.yes) - self.no.map_or(0.0, logit)) as f32;
        match score.is_finite() {
            true => Ok(score),
            false => Err(Error::Engine(format!("the score of a pair is {score}"))),
        }
    }

    /// The module `LogitScore` in `dir`, of the model in `model`, which has `vocab` tokens.
    fn read(dir: &Path, model: &Path, vocab: usize) -> Result<Self> {
        let path = dir.join("config.json");
        let object = json::parse_object(&path, &files::read_json(&path)?)?;
        let fields = Fields::new(&path, &object);
        const READS: &str = "causal_logits";
        if let Some(other) = fields.string("module_input_name")?.filter(|name| *name != READS) {
            return Err(fields.error("module_input_name", quote(other), READS));
        }
        let token =
            |name: &str| fields.size(name, 0, vocab.saturating_sub(1)).map(|id| id.map(|id| id as u32));
        let what =
            || fields.missing("true_token_id", "the token that says that a document answers its query");
        let (yes, no) = (token("true_token_id")?.ok_or_else(what)?, token("false_token_id")?);
        Ok(Self { yes, no, squash: score_squash(model, 1)? })
    }
}

/// What `modules.json` in `dir` makes of a model whose hidden states have `width` elements, and logits `vocab`; none where there is no
/// such file, or it says nothing of it.
///
/// # Errors
/// A file that is missing or malformed, and a module that is not known.
pub(crate) fn load(dir: &Path, width: usize, vocab: usize) -> Result<Option<Made>> {
    let path = dir.join("modules.json");
    let Some(modules) = modules(&path)? else { return Ok(None) };
    let mut made: Option<Made> = None;
    for (i, module) in modules.iter().enumerate() {
        let Value::Object(members) = module else {
            return Err(Error::config(&path, format!("[{i}]"), module, "an object"));
        };
        let fields = Fields::new(&path, members);
        let kind = fields.string("type")?.unwrap_or_default();
        let name = fields.string("path")?.unwrap_or_default();
        let wrong = |expected: &str| Error::config(&path, format!("[{i}].type"), quote(kind), expected);
        let of = || folder(dir, &path, name);
        match (kind.rsplit('.').next().unwrap_or_default(), &mut made) {
            ("Transformer", None) => {}
            ("Pooling", None) => made = Some(Made::Vectors(Pooling::read(&of()?, width)?)),
            ("LogitScore", None) => made = Some(Made::Scores(LogitScore::read(&of()?, dir, vocab)?)),
            ("Dense", Some(Made::Vectors(pooling))) => pooling.add_dense(&of()?)?,
            ("Normalize", Some(Made::Vectors(pooling))) => pooling.add_normalize(&of()?)?,
            ("Dense" | "Normalize", None) => return Err(wrong("a Pooling before it")),
            _ => {
                return Err(wrong(
                    "Transformer, then LogitScore, or Pooling, Dense and Normalize, in this order",
                ));
            }
        }
    }
    Ok(made)
}

/// The folders of the modules in `dir`, where there is a list of them; a name that is no folder of `dir` is passed over.
///
/// # Errors
/// A list that is malformed.
pub(crate) fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let path = dir.join("modules.json");
    let Some(modules) = modules(&path)? else { return Ok(Vec::new()) };
    let name = |module: &Value| match module {
        Value::Object(members) => match members.get("path") {
            Some(Value::String(name)) => folder(dir, &path, name).ok(),
            _ => None,
        },
        _ => None,
    };
    Ok(modules.iter().filter_map(name).collect())
}

/// The modules of a list; none where it is not there.
fn modules(path: &Path) -> Result<Option<Vec<Value>>> {
    if !crate::files::exists(path) {
        return Ok(None);
    }
    let bytes = files::read_json(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| Error::format(path, format!("not UTF-8: {e}")))?;
    let modules = json::strict::<Value>(text, json::ASKED)
        .map_err(|e| Error::format(path, format!("not valid JSON: {e}")))?;
    match modules {
        Value::Array(modules) => Ok(Some(modules)),
        other => Err(Error::format(path, format!("outermost value is {other}, expected a list"))),
    }
}

/// The folder `name` of a module.
fn folder(dir: &Path, path: &Path, name: &str) -> Result<PathBuf> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0']);
    let folder = dir.join(name);
    if !plain || folder.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
        return Err(Error::config(path, "path", quote(name), "a folder of the model's directory"));
    }
    Ok(folder)
}

/// How a pair of texts becomes the prompt that a model scores it by.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PairForm {
    /// Whether the chat template writes it, where there is one; else it is as the tokenizer joins two texts.
    pub by_template: bool,
    /// Whether contents of messages are lists of parts; none where the template has to tell.
    pub in_parts: Option<bool>,
    /// What comes before it: a message of the system, or the beginning of the first text.
    pub prompt: Option<String>,
    /// Whether the text ends where the assistant begins.
    pub generation_prompt: bool,
    /// Further variables of the template.
    pub variables: Map<String, Json>,
}

/// The settings of sentence-transformers' first module and of all of them, in `dir`.
///
/// # Errors
/// A file that is malformed.
pub(crate) fn pair_form(dir: &Path) -> Result<PairForm> {
    let transformer = members(dir, "sentence_bert_config.json")?;
    let mut form = PairForm { by_template: true, ..PairForm::default() };
    if let Some(Json::Object(modalities)) = transformer.get("modality_config") {
        let message = modalities.get("message");
        form.by_template = message.is_some();
        form.in_parts = match message.and_then(|message| message["format"].as_str()) {
            Some("structured") => Some(true),
            Some("flat") => Some(false),
            _ => None,
        };
    }
    let given = transformer.get("processing_kwargs").map(|kwargs| &kwargs["chat_template"]);
    for (name, value) in given.and_then(Json::as_object).into_iter().flatten() {
        match &**name {
            "add_generation_prompt" => form.generation_prompt = value.as_bool().unwrap_or(false),
            // What says how tokens are made, or lists are filled up.
            "restore_suffix" | "truncation" | "max_length" | "padding" | "return_tensors" | "tokenize" => {}
            _ => drop(form.variables.insert(name.clone(), value.clone())),
        }
    }
    form.prompt = default_prompt(dir)?.map(|(_, prompt)| prompt);
    Ok(form)
}

/// The prompt that sentence-transformers writes before every text where nobody names another, and its name.
///
/// # Errors
/// A file that is malformed.
pub(crate) fn default_prompt(dir: &Path) -> Result<Option<(String, String)>> {
    let all = members(dir, "config_sentence_transformers.json")?;
    let Some(name) = all.get("default_prompt_name").and_then(Json::as_str) else { return Ok(None) };
    let prompt = all.get("prompts").and_then(|prompts| prompts[name].as_str());
    let prompt = prompt.filter(|prompt| !prompt.is_empty());
    Ok(prompt.map(|prompt| (name.to_owned(), prompt.to_owned())))
}

/// The members of a file in `dir`; none where it is not there.
pub(crate) fn members(dir: &Path, name: &str) -> Result<Map<String, Json>> {
    let path = dir.join(name);
    match files::exists(&path) {
        true => json::parse_members(&path, &json::of_python(&files::read_json(&path)?)),
        false => Ok(Map::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::Pool;

    /// A directory with `modules.json` of these types, each in a folder of its own, whose `config.json` is beside it.
    fn model(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut listed = Vec::new();
        for (i, (kind, config)) in modules.iter().enumerate() {
            let name = format!("{i}_{kind}");
            std::fs::create_dir(dir.path().join(&name)).unwrap();
            std::fs::write(dir.path().join(&name).join("config.json"), config).unwrap();
            listed.push(format!(
                r#"{{"idx": {i}, "path": "{name}", "type": "sentence_transformers.models.{kind}"}}"#
            ));
        }
        std::fs::write(dir.path().join("modules.json"), format!("[{}]", listed.join(", "))).unwrap();
        dir
    }

    fn pooling(modules: &[(&str, &str)]) -> Pooling {
        match load(model(modules).path(), 2, 9).unwrap() {
            Some(Made::Vectors(pooling)) => pooling,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn poolings_take_what_their_files_say() {
        let sum = [3.0, 4.0];
        for (config, pool, taken) in [
            ("{}", Pool::Mean, [true, true, true]),
            (
                r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#,
                Pool::First,
                [true, false, false],
            ),
            (r#"{"embedding_dimension": 2, "pooling_mode": "lasttoken"}"#, Pool::Last, [false, false, true]),
        ] {
            let plain = pooling(&[("Pooling", config)]);
            assert_eq!((plain.pool(), plain.normalizes(), plain.is_trained()), (pool, false, true));
            assert_eq!([0, 1, 2].map(|position| plain.takes(position, 3)), taken);
            let by = if pool == Pool::Mean { 2.0 } else { 1.0 };
            assert_eq!(plain.vector(&sum, 2).unwrap(), [3.0 / by, 4.0 / by]);
            let one = pooling(&[("Pooling", config), ("Normalize", "{}")]);
            assert!(one.normalizes());
            assert_eq!(one.vector(&sum, 2).unwrap(), [0.6, 0.8]);
            assert_eq!(one.shortened(vec![0.6, 0.8], 1), [1.0]);
            assert_eq!(plain.shortened(vec![3.0, 4.0], 1), [3.0]);
        }
        assert_eq!(Pooling::mean(2).vector(&[0.0, 0.0], 1).unwrap(), [0.0, 0.0]);
        assert!(load(model(&[("Transformer", "{}")]).path(), 2, 9).unwrap().is_none());
        assert!(load(tempfile::tempdir().unwrap().path(), 2, 9).unwrap().is_none());
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let dense = r#"{"in_features": 3, "out_features": 2, "activation_function": "torch.nn.modules.linear.Identity"}"#;
        let other =
            r#"{"in_features": 2, "out_features": 2, "activation_function": "torch.nn.functional.selu"}"#;
        let elsewhere = r#"{"in_features": 2, "out_features": 1, "module_output_name": "scores"}"#;
        let cases: [(&[(&str, &str)], &str); 13] = [
            (
                &[("Pooling", r#"{"pooling_mode": "max"}"#)],
                "pooling_mode is \"max\", expected one of mean, cls and lasttoken",
            ),
            (&[("Pooling", r#"{"pooling_mode": ["cls", "mean"]}"#)], "pooling_mode is a list of 2, expected"),
            (
                &[("Pooling", r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#)],
                "pooling_mode_mean_tokens is true beside another",
            ),
            (
                &[("Pooling", r#"{"word_embedding_dimension": 3}"#)],
                "word_embedding_dimension is 3, expected 2",
            ),
            (&[("Pooling", "{}"), ("Dense", dense)], "in_features is 3, expected 2, what comes before it"),
            (&[("Pooling", "{}"), ("Dense", other)], "activation_function is \"torch.nn.functional.selu\""),
            (
                &[("Pooling", "{}"), ("Dense", elsewhere)],
                "module_output_name is \"scores\", expected sentence_embedding",
            ),
            (&[("Normalize", "{}")], "expected a Pooling before it"),
            (
                &[("CNN", "{}")],
                "[0].type is \"sentence_transformers.models.CNN\", expected Transformer, then LogitScore",
            ),
            (&[("LogitScore", "{}")], "true_token_id is missing, expected the token that says"),
            (
                &[("LogitScore", r#"{"true_token_id": 9}"#)],
                "true_token_id is 9, expected an integer from 0 to 8",
            ),
            (
                &[("LogitScore", r#"{"true_token_id": 1, "module_input_name": "scores"}"#)],
                "module_input_name is \"scores\", expected causal_logits",
            ),
            (
                &[("LogitScore", r#"{"true_token_id": 1}"#), ("Normalize", "{}")],
                "[1].type is \"sentence_transformers.models.Normalize\", expected Transformer",
            ),
        ];
        for (modules, expected) in cases {
            let error = load(model(modules).path(), 2, 9).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for name in ["..", "/tmp", "a/b", ""] {
            let dir = tempfile::tempdir().unwrap();
            let listed = format!(r#"[{{"path": "{name}", "type": "x.Pooling"}}]"#);
            std::fs::write(dir.path().join("modules.json"), listed).unwrap();
            let error = load(dir.path(), 2, 9).unwrap_err().to_string();
            assert!(error.contains("a folder of the model's directory"), "{error}");
            // What copies a model needs none of it.
            assert_eq!(folders(dir.path()).unwrap(), Vec::<PathBuf>::new());
        }
    }

    #[test]
    fn scores_are_differences_of_logits() {
        let score = |config: &str, more: Option<&str>| {
            let dir = model(&[("Transformer", "{}"), ("LogitScore", config)]);
            let more = more.into_iter();
            more.for_each(|text| {
                std::fs::write(dir.path().join("config_sentence_transformers.json"), text).unwrap();
            });
            match load(dir.path(), 2, 3).unwrap() {
                Some(Made::Scores(score)) => score,
                other => panic!("{other:?}"),
            }
        };
        let plain = Some(r#"{"activation_fn": "torch.nn.modules.linear.Identity"}"#);
        let both = r#"{"true_token_id": 2, "false_token_id": 0, "module_input_name": "causal_logits"}"#;
        let logits = [1.0, 9.0, 3.0];
        assert_eq!(score(both, plain).of(&logits).unwrap(), 2.0);
        assert_eq!(score(r#"{"true_token_id": 2, "false_token_id": null}"#, plain).of(&logits).unwrap(), 3.0);
        let sigmoid = 1.0 / (1.0 + (-2.0_f64).exp());
        assert_eq!(score(both, None).of(&logits).unwrap(), sigmoid as f32);
        for wrong in [&[f32::NAN, 0.0, 1.0][..], &[1.0]] {
            let error = score(both, plain).of(wrong).unwrap_err().to_string();
            assert_eq!(error, "engine: the score of a pair is NaN");
        }
    }

    #[test]
    fn pairs_are_written_as_the_settings_say() {
        let dir = tempfile::tempdir().unwrap();
        let usual = PairForm { by_template: true, ..PairForm::default() };
        assert_eq!(pair_form(dir.path()).unwrap(), usual);
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "config_sentence_transformers.json",
            r#"{"prompts": {"query": "Judge.", "document": ""}, "default_prompt_name": "query"}"#,
        );
        write(
            "sentence_bert_config.json",
            r#"{"modality_config": {"text": {}, "message": {"format": "structured"}},
                "processing_kwargs": {"chat_template": {"add_generation_prompt": true, "restore_suffix": false, "deep": 1}}}"#,
        );
        let variables = Map::from_iter([("deep".to_owned(), Json::from(1))]);
        let prompt = Some("Judge.".to_owned());
        let expected =
            PairForm { in_parts: Some(true), generation_prompt: true, variables, prompt, ..usual.clone() };
        assert_eq!(pair_form(dir.path()).unwrap(), expected);
        write("sentence_bert_config.json", r#"{"modality_config": {"text": {}}}"#);
        write(
            "config_sentence_transformers.json",
            r#"{"prompts": {"query": ""}, "default_prompt_name": "query"}"#,
        );
        assert_eq!(pair_form(dir.path()).unwrap(), PairForm::default());
    }
}
