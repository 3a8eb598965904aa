//! What the files beside a vocabulary say of its tokens: `tokenizer_config.json`, and where that has no
//! `added_tokens_decoder`, the older `special_tokens_map.json` and `added_tokens.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::MAX_TOKENS;
use crate::error::{Error, Result};
use crate::files;
use crate::json::{self, Fields, Object, Value};

/// A token that is found in texts before anything else.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub id: u32,
    pub content: String,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub normalized: bool,
    pub special: bool,
}

impl Token {
    /// A special token without further properties.
    pub fn special(id: u32, content: &str) -> Self {
        Self {
            id,
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }

    pub fn json(&self) -> serde_json::Value {
        json!({
            "id": self.id,
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": self.normalized,
            "special": self.special,
        })
    }
}

/// Tokens with ids or roles of their own, and the settings of the tokenizer.
#[derive(Debug, Clone)]
pub(super) struct Named {
    path: PathBuf,
    settings: Object,
    class: String,
    /// `model_type` of `config.json`.
    pub family: String,
    /// The tokens whose ids are given.
    pub added: BTreeMap<u32, Token>,
    /// `bos_token`, …: their texts.
    roles: BTreeMap<String, String>,
    /// The texts that are special, with how they are found where that is said.
    special: BTreeMap<String, Option<Token>>,
}

impl Named {
    /// Reads the files of a directory, none of which has to be there.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let settings = optional(&path)?;
        let model_path = dir.join("config.json");
        let model = optional(&model_path)?;
        let of_model = Fields::new(&model_path, &model);
        let class = match Fields::new(&path, &settings).string("tokenizer_class")? {
            None | Some("") => of_model.string("tokenizer_class")?.unwrap_or_default(),
            Some(class) => class,
        };
        let mut this = Self {
            class: class.strip_suffix("Fast").unwrap_or(class).to_owned(),
            family: of_model.string("model_type")?.unwrap_or_default().to_owned(),
            path,
            settings: Object::new(),
            added: BTreeMap::new(),
            roles: BTreeMap::new(),
            special: BTreeMap::new(),
        };
        this.take(&this.path.clone(), &settings)?;
        match settings.get("added_tokens_decoder") {
            Some(Value::Object(tokens)) => this.decoder(tokens)?,
            Some(Value::Null) | None => {
                let path = dir.join("special_tokens_map.json");
                this.take(&path, &optional(&path)?)?;
                this.encoder(&dir.join("added_tokens.json"))?;
            }
            Some(other) => {
                return Err(Error::config(&this.path, "added_tokens_decoder", other, "an object of tokens"));
            }
        }
        for token in this.added.values_mut() {
            token.special |= this.special.contains_key(&token.content);
        }
        this.settings = settings;
        Ok(this)
    }

    /// The class that reads the vocabulary in transformers, without `Fast`; empty where none is named.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// The class is not one whose reading is known.
    pub fn refuse_class(&self, path: &Path, known: &[&str]) -> Error {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let class = json::quote(&self.class);
        let known: Vec<&str> = known.iter().copied().filter(|known| !known.is_empty()).collect();
        let expected = format!("one whose {file} can be read: {}", known.join(", "));
        Error::config(&self.path, "tokenizer_class", class, expected)
    }

    /// `true` or `false` under `key`, or `absent`.
    pub fn flag(&self, key: &str, absent: bool) -> Result<bool> {
        Ok(self.fields().flag(key)?.unwrap_or(absent))
    }

    /// A number up to `most` under `key`, or `absent`.
    pub fn count(&self, key: &str, absent: usize, most: usize) -> Result<usize> {
        Ok(self.fields().size(key, 0, most)?.unwrap_or(absent))
    }

    fn fields(&self) -> Fields<'_> {
        Fields::new(&self.path, &self.settings)
    }

    /// The text of `bos_token` or another role.
    pub fn role(&self, key: &str) -> Option<&str> {
        self.roles.get(key).map(String::as_str)
    }

    /// The texts that are special.
    pub fn special(&self) -> impl Iterator<Item = &str> {
        self.special.keys().map(String::as_str)
    }

    /// A text of the vocabulary as a special token, where it is one.
    pub fn special_token(&self, id: u32, content: &str) -> Option<Token> {
        let shape = self.special.get(content)?;
        Some(match shape {
            Some(shape) => Token { id, normalized: false, special: true, ..shape.clone() },
            None => Token::special(id, content),
        })
    }

    /// Makes a text special that no file names: the class does.
    pub fn add_role(&mut self, key: &str, content: &str) {
        if !self.roles.contains_key(key) && !self.settings.contains_key(key) {
            self.roles.insert(key.to_owned(), content.to_owned());
            self.special.entry(content.to_owned()).or_insert(None);
            for token in self.added.values_mut().filter(|token| token.content == content) {
                token.special = true;
            }
        }
    }

    /// BOS and EOS with their ids, where they are added to a text; `id` finds a token's.
    pub fn ends(
        &self,
        [bos, eos]: [bool; 2],
        id: impl Fn(&str) -> Option<u32>,
    ) -> Result<[Option<(&str, u32)>; 2]> {
        let end = |key: &str, flag: &str, absent: bool| {
            if !self.flag(flag, absent)? {
                return Ok(None);
            }
            let token = self.role(key).and_then(|text| Some((text, id(text)?)));
            match token {
                None if self.settings.contains_key(flag) => {
                    Err(Error::config(&self.path, flag, "true", format!("false: no token is its {key}")))
                }
                token => Ok(token),
            }
        };
        Ok([end("bos_token", "add_bos_token", bos)?, end("eos_token", "add_eos_token", eos)?])
    }

    /// Takes the roles and special tokens of a file.
    fn take(&mut self, path: &Path, object: &Object) -> Result<()> {
        for (key, value) in object {
            match value {
                // `add_bos_token` and its like say whether, not which.
                Value::String(_) | Value::Object(_)
                    if key.ends_with("_token") && !key.starts_with("add_") =>
                {
                    if let Some(content) = self.take_special(path, key, value)? {
                        self.roles.insert(key.clone(), content);
                    }
                }
                Value::Array(tokens) if is_list(key) => {
                    for token in tokens {
                        self.take_special(path, key, token)?;
                    }
                }
                Value::Object(tokens) if is_list(key) => {
                    for (key, token) in tokens {
                        self.take_special(path, key, token)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A special token's text; none for an empty one, which old files have for none.
    fn take_special(&mut self, path: &Path, key: &str, value: &Value) -> Result<Option<String>> {
        let (content, shape) = match value {
            Value::String(content) => (content.clone(), None),
            Value::Object(_) => {
                let token = token(path, key, 0, value)?;
                (token.content.clone(), Some(token))
            }
            other => return Err(Error::config(path, key, other, "a token")),
        };
        if content.is_empty() {
            return Ok(None);
        }
        let entry = self.special.entry(content.clone()).or_insert(None);
        *entry = entry.take().or(shape);
        Ok(Some(content))
    }

    /// Takes `added_tokens_decoder`: ids with tokens.
    fn decoder(&mut self, tokens: &Object) -> Result<()> {
        for (key, value) in tokens {
            let field = format!("added_tokens_decoder.{key}");
            let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < 2 * MAX_TOKENS);
            let id = id.ok_or_else(|| {
                Error::config(&self.path, &field, json::quote(key), format!("an id below {}", 2 * MAX_TOKENS))
            })?;
            let token = token(&self.path, &field, id, value)?;
            self.added.insert(id, token);
        }
        self.check_unique(&self.path)
    }

    /// Takes `added_tokens.json`: texts with ids.
    fn encoder(&mut self, path: &Path) -> Result<()> {
        for (content, value) in optional(path)? {
            let id = match value {
                Value::UInt(id) if id < 2 * MAX_TOKENS as u64 => id as u32,
                other => {
                    let expected = format!("an id below {}", 2 * MAX_TOKENS);
                    return Err(Error::config(path, json::quote(&content), other, expected));
                }
            };
            let special = self.special.contains_key(&content);
            let token = Token { normalized: !special, special, ..Token::special(id, &content) };
            if let Some(other) = self.added.insert(id, token) {
                let other = json::quote(&other.content);
                let expected = format!("another id than {other}");
                return Err(Error::config(path, json::quote(&content), id, expected));
            }
        }
        Ok(())
    }

    fn check_unique(&self, path: &Path) -> Result<()> {
        let mut seen = BTreeSet::new();
        for (id, token) in &self.added {
            if !seen.insert(token.content.as_str()) {
                let (field, got) = (format!("added_tokens_decoder.{id}"), json::quote(&token.content));
                return Err(Error::config(path, field, got, "another text than the tokens before it"));
            }
        }
        Ok(())
    }
}

fn is_list(key: &str) -> bool {
    matches!(key, "additional_special_tokens" | "extra_special_tokens")
}

/// The members of a JSON file; none where it is not there.
fn optional(path: &Path) -> Result<Object> {
    if files::is_absent(path) {
        return Ok(Object::new());
    }
    json::parse_object(path, &files::read_json(path)?)
}

/// A token written as an object.
fn token(path: &Path, field: &str, id: u32, value: &Value) -> Result<Token> {
    let Value::Object(members) = value else {
        return Err(Error::config(path, field, value, "an object with content"));
    };
    let fields = Fields::at(path, field, members);
    let flag = |key: &str, absent: bool| Ok::<_, Error>(fields.flag(key)?.unwrap_or(absent));
    let special = flag("special", false)?;
    Ok(Token {
        id,
        content: fields.string("content")?.unwrap_or_default().to_owned(),
        single_word: flag("single_word", false)?,
        lstrip: flag("lstrip", false)?,
        rstrip: flag("rstrip", false)?,
        normalized: flag("normalized", !special)?,
        special,
    })
}
