//! What files beside a `tokenizer.json` say of its steps. transformers builds the tokenizers of some classes anew, and takes of the file
//! their vocabulary alone: BERT's lower case, accents and ideographs are then as `tokenizer_config.json` says, whatever the file has.
//! sentence-transformers may put lower case before all of it.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};
use crate::{files, json};

/// Classes whose steps are BERT's, as transformers 5 builds them.
const BERT: [&str; 4] = ["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"];
/// A family whose files name classes that it has not: the file is then as it is.
const MISNAMED: &str = "modernbert";
/// The families whose tokenizer is of such a class where no file says which.
const FAMILIES: [&str; 4] = ["bert", "distilbert", "mpnet", "nomic_bert"];

/// The steps that are not the file's own.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rebuilt {
    /// BERT's normalizer, in place of the file's.
    bert: Option<Json>,
    /// Whether lower case comes before all.
    lowercase: bool,
}

impl Rebuilt {
    /// Reads the files of a directory; any may be absent.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for what is no strict JSON, and for flags that are none.
    pub fn load(dir: &Path) -> Result<Self> {
        let members = |name: &str| -> Result<Map<String, Json>> {
            let path = dir.join(name);
            match files::exists(&path) {
                true => json::parse_members(&path, &json::of_python(&files::read_json(&path)?)),
                false => Ok(Map::new()),
            }
        };
        let (tokenizer, model) = (members("tokenizer_config.json")?, members("config.json")?);
        let flag = |file: &str, members: &Map<String, Json>, name: &str| match members.get(name) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(*value)),
            Some(other) => {
                Err(Error::format(&dir.join(file), format!("{name} is {other}, expected true or false")))
            }
        };
        let of_text = |members: &Map<String, Json>, name: &str| {
            members
                .get(name)
                .and_then(Json::as_str)
                .map(|text| text.strip_suffix("Fast").unwrap_or(text).to_owned())
        };
        let class = of_text(&tokenizer, "tokenizer_class").or_else(|| of_text(&model, "tokenizer_class"));
        let family = of_text(&model, "model_type");
        let is_bert = match class {
            _ if family.as_deref() == Some(MISNAMED) => false,
            Some(class) => BERT.contains(&&*class),
            None => family.is_some_and(|family| FAMILIES.contains(&&*family)),
        };
        let mut this = Self::default();
        if is_bert {
            let flag = |name| flag("tokenizer_config.json", &tokenizer, name);
            this.bert = Some(json!({
                "type": "BertNormalizer",
                "clean_text": true,
                "handle_chinese_chars": flag("tokenize_chinese_chars")?.unwrap_or(true),
                "strip_accents": flag("strip_accents")?,
                "lowercase": flag("do_lower_case")?.unwrap_or(true),
            }));
        }
        const OURS: &str = "sentence_bert_config.json";
        this.lowercase = flag(OURS, &members(OURS)?, "do_lower_case")?.unwrap_or(false);
        Ok(this)
    }

    /// Changes the steps of a file; `word_pieces`: whether its model is of BERT's kind.
    pub(super) fn apply(&self, word_pieces: bool, normalizer: &mut Json, pre_tokenizer: &mut Json) {
        if let Some(bert) = self.bert.as_ref().filter(|_| word_pieces) {
            *normalizer = bert.clone();
            *pre_tokenizer = json!({ "type": "BertPreTokenizer" });
        }
        if self.lowercase && !has_lowercase(normalizer) {
            let steps: Vec<Json> = [json!({ "type": "Lowercase" }), normalizer.take()]
                .into_iter()
                .filter(|step| !step.is_null())
                .collect();
            *normalizer = json!({ "type": "Sequence", "normalizers": steps });
        }
    }
}

/// Whether one of the steps, which may be in a sequence, is lower case and nothing else.
fn has_lowercase(normalizer: &Json) -> bool {
    let is = |step: &Json| step["type"] == "Lowercase";
    is(normalizer) || normalizer["normalizers"].as_array().is_some_and(|steps| steps.iter().any(is))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, Json)]) -> Result<Rebuilt> {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in files {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        Rebuilt::load(dir.path())
    }

    #[test]
    fn classes_that_are_built_anew_have_their_flags() {
        let bert = |chinese: bool, accents: Json, lower: bool| {
            json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": chinese,
                "strip_accents": accents, "lowercase": lower })
        };
        let usual = bert(true, Json::Null, true);
        let config = |value: Json| ("tokenizer_config.json", value);
        let model = |family: &str| ("config.json", json!({ "model_type": family }));
        for (files, expected) in [
            (vec![config(json!({ "tokenizer_class": "BertTokenizer" }))], Some(&usual)),
            (
                vec![config(json!({ "tokenizer_class": "MPNetTokenizerFast" })), model("roberta")],
                Some(&usual),
            ),
            (vec![model("nomic_bert")], Some(&usual)),
            (
                vec![model("distilbert"), config(json!({ "tokenizer_class": "PreTrainedTokenizerFast" }))],
                None,
            ),
            (vec![config(json!({ "tokenizer_class": "ElectraTokenizer" })), model("bert")], Some(&usual)),
            (vec![config(json!({ "tokenizer_class": "BertTokenizer" })), model("modernbert")], None),
            (vec![], None),
        ] {
            assert_eq!(of(&files).unwrap().bert.as_ref(), expected, "{files:?}");
        }
        let flags = json!({ "tokenizer_class": "DistilBertTokenizer", "do_lower_case": false,
            "strip_accents": true, "tokenize_chinese_chars": false });
        let rebuilt = of(&[config(flags)]).unwrap();
        assert_eq!(rebuilt.bert, Some(bert(false, json!(true), false)));
        let (mut normalizer, mut pre_tokenizer) = (json!({ "type": "NFC" }), Json::Null);
        rebuilt.apply(true, &mut normalizer, &mut pre_tokenizer);
        assert_eq!(normalizer, bert(false, json!(true), false));
        assert_eq!(pre_tokenizer, json!({ "type": "BertPreTokenizer" }));
        let mut other = json!({ "type": "NFC" });
        rebuilt.apply(false, &mut other, &mut Json::Null);
        assert_eq!(other, json!({ "type": "NFC" }));
        let error =
            of(&[config(json!({ "tokenizer_class": "BertTokenizer", "do_lower_case": 1 }))]).unwrap_err();
        assert!(
            error.to_string().ends_with("tokenizer_config.json: do_lower_case is 1, expected true or false"),
            "{error}"
        );
    }

    #[test]
    fn lower_case_comes_before_what_has_none() {
        let rebuilt = of(&[("sentence_bert_config.json", json!({ "do_lower_case": true }))]).unwrap();
        assert_eq!(rebuilt, Rebuilt { bert: None, lowercase: true });
        let lower = json!({ "type": "Lowercase" });
        let applied = |normalizer: Json| {
            let mut normalizer = normalizer;
            rebuilt.apply(false, &mut normalizer, &mut Json::Null);
            normalizer
        };
        let sequence = |steps: &[&Json]| json!({ "type": "Sequence", "normalizers": steps });
        let nfc = json!({ "type": "NFC" });
        assert_eq!(applied(Json::Null), sequence(&[&lower]));
        assert_eq!(applied(nfc.clone()), sequence(&[&lower, &nfc]));
        assert_eq!(applied(lower.clone()), lower);
        assert_eq!(applied(sequence(&[&nfc, &lower])), sequence(&[&nfc, &lower]));
    }
}
