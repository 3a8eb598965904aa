//! The special tokens that a model's directory names beside `tokenizer.json`, with the precedence that transformers 5 gives
//! `tokenizer_config.json` and `special_tokens_map.json`. `add_bos_token` and `add_eos_token` say nothing beside a `tokenizer.json`, whose
//! post-processor does.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value as Json};
use tokenizers::AddedToken;

use crate::error::{Error, Result};
use crate::{files, json};

/// Tokens beside those with a name; its older name was `additional_special_tokens`.
const EXTRA: &str = "extra_special_tokens";

/// What the files say of special tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpecialTokens {
    /// Texts by name, for chat templates: `bos_token`, `eos_token`, … and the model's own `…_token`.
    pub named: BTreeMap<String, String>,
    /// The tokens of `added_tokens_decoder`, in the order of their ids: they replace those of `tokenizer.json`.
    pub listed: Vec<AddedToken>,
    /// Tokens with a role: special where `tokenizer.json` and the list have none of their text.
    pub added: Vec<AddedToken>,
    /// The texts of both.
    known: HashSet<String>,
}

impl SpecialTokens {
    /// Reads the two files of a directory; either may be absent.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for what is no strict JSON, and for a token that is none.
    pub fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<Map<String, Json>> {
            let path = dir.join(name);
            match files::exists(&path) {
                true => json::parse_members(&path, &files::read_json(&path)?),
                false => Ok(Map::new()),
            }
        };
        let config = read("tokenizer_config.json")?;
        // transformers reads the older file only where the newer one does not list its tokens.
        let map = match config.contains_key("added_tokens_decoder") {
            true => Map::new(),
            false => read("special_tokens_map.json")?,
        };
        // Mistral's own file gives them no names: these are those that transformers has for it.
        let there = |name: &str| files::exists(&dir.join(name));
        let mut unnamed = Vec::new();
        if there("tekken.json") && !there("tokenizer.json") {
            for (name, text) in [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")] {
                if !config.contains_key(name) && !map.contains_key(name) {
                    unnamed.push((name.to_owned(), text.to_owned()));
                }
            }
        }
        let mut this = Self::of(&dir.join("tokenizer_config.json"), config, map)?;
        this.named.extend(unnamed);
        Ok(this)
    }

    /// What `tokenizer_config.json` (`config`, named `path` in errors) and `special_tokens_map.json` (`map`) say.
    pub fn of(path: &Path, mut config: Map<String, Json>, map: Map<String, Json>) -> Result<Self> {
        let extra = config.remove("additional_special_tokens").filter(|_| !is_set(config.get(EXTRA)));
        config.extend(extra.map(|list| (EXTRA.to_owned(), list)));
        for (name, value) in map {
            let name = if name == "additional_special_tokens" { EXTRA.to_owned() } else { name };
            match (config.get_mut(&name), value) {
                // One that is there twice counts once, below.
                (Some(Json::Array(known)), Json::Array(more)) => known.extend(more),
                (_, value) => drop(config.insert(name, value)),
            }
        }
        let mut this = Self::default();
        this.list(path, &config)?;
        let mut named: Vec<(&String, &Json)> =
            config.iter().filter(|(name, value)| name.ends_with("_token") && is_set(Some(value))).collect();
        if let Some(Json::Object(more)) = config.get(EXTRA) {
            named.extend(more);
        }
        for (name, value) in named {
            // `add_bos_token` and its like are no tokens.
            let Some(token) = token(value) else { continue };
            this.named.insert(name.clone(), token.content.clone());
            this.add(token);
        }
        let extra = config.get(EXTRA).and_then(Json::as_array);
        for (i, value) in extra.into_iter().flatten().enumerate() {
            let what =
                || Error::format(path, format!("{EXTRA}[{i}]: expected a token, a string or an object"));
            this.add(token(value).ok_or_else(what)?);
        }
        Ok(this)
    }

    /// The tokens of `added_tokens_decoder`, in the order of their ids.
    fn list(&mut self, path: &Path, config: &Map<String, Json>) -> Result<()> {
        const KEY: &str = "added_tokens_decoder";
        let mut listed = BTreeMap::new();
        for (id, value) in config.get(KEY).and_then(Json::as_object).into_iter().flatten() {
            let bad = |what: &str| Error::format(path, format!("{KEY}: {}: {what}", json::quote(id)));
            let number: u32 = id.parse().map_err(|_| bad("expected a token id"))?;
            let special = value["special"].as_bool().unwrap_or(false);
            let token = token(value).ok_or_else(|| bad("expected an object with content"))?;
            listed.insert(number, AddedToken { special, ..token });
        }
        self.listed.extend(listed.into_values());
        Ok(())
    }

    /// Adds a token with a role, unless its text is known.
    fn add(&mut self, token: AddedToken) {
        if self.known.is_empty() {
            self.known.extend(self.listed.iter().map(|token| token.content.clone()));
        }
        if self.known.insert(token.content.clone()) {
            self.added.push(token);
        }
    }

    /// The text of the token that ends a text.
    pub fn eos(&self) -> Option<&str> {
        self.named.get("eos_token").map(String::as_str)
    }
}

/// Whether a value is there and not one that Python takes for none.
fn is_set(value: Option<&Json>) -> bool {
    match value {
        None | Some(Json::Null) => false,
        Some(Json::String(text)) => !text.is_empty(),
        Some(Json::Array(items)) => !items.is_empty(),
        Some(Json::Object(members)) => !members.is_empty(),
        Some(_) => true,
    }
}

/// A special token: its text, or an object with one.
fn token(value: &Json) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return (!text.is_empty()).then(|| AddedToken::from(text, true));
    }
    let text = value["content"].as_str().filter(|text| !text.is_empty())?;
    let flag = |name: &str, absent: bool| value[name].as_bool().unwrap_or(absent);
    let token = AddedToken::from(text, true)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false));
    Some(token.normalized(flag("normalized", false)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: Json, map: Json) -> SpecialTokens {
        let members = |value: Json| value.as_object().cloned().unwrap();
        SpecialTokens::of(Path::new("tokenizer_config.json"), members(config), members(map)).unwrap()
    }

    #[test]
    fn the_older_file_wins_where_it_is_read() {
        let tokens = of(
            json!({ "eos_token": "<a>", "pad_token": null, "add_bos_token": true, "bos_token": { "content": "<b>", "lstrip": true } }),
            json!({ "eos_token": { "content": "<c>" }, "extra_special_tokens": ["<x>", "<c>"] }),
        );
        let named: Vec<_> = tokens.named.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(named, [("bos_token", "<b>"), ("eos_token", "<c>")]);
        let added: Vec<_> = tokens.added.iter().map(|token| (token.content.as_str(), token.lstrip)).collect();
        assert_eq!(added, [("<c>", false), ("<b>", true), ("<x>", false)]);
        assert_eq!(tokens.eos(), Some("<c>"));
    }

    #[test]
    fn older_names_lists_and_names_of_their_own() {
        let tokens = of(
            json!({ "additional_special_tokens": ["<x>"], "image_token": "<img>", "model_max_length": 8,
                "added_tokens_decoder": {
                    "7": { "content": "<call>", "special": false }, "3": { "content": "<x>", "special": false } } }),
            json!({}),
        );
        assert_eq!(tokens.named.get("image_token").map(String::as_str), Some("<img>"));
        let added: Vec<_> =
            tokens.added.iter().map(|token| (token.content.as_str(), token.special)).collect();
        assert_eq!(added, [("<img>", true)]);
        let listed: Vec<_> =
            tokens.listed.iter().map(|token| (token.content.as_str(), token.special)).collect();
        assert_eq!(listed, [("<x>", false), ("<call>", false)]);
        let named = of(json!({ "extra_special_tokens": { "eot_token": "<eot>" } }), json!({}));
        assert_eq!(named.named.get("eot_token").map(String::as_str), Some("<eot>"));
        let path = Path::new("tokenizer_config.json");
        let bad = json!({ "extra_special_tokens": [3] }).as_object().cloned().unwrap();
        let error = SpecialTokens::of(path, bad, Map::new()).unwrap_err().to_string();
        assert_eq!(
            error,
            "tokenizer_config.json: extra_special_tokens[0]: expected a token, a string or an object"
        );
    }
}
