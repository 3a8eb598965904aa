//! A `tokenizer.json` as the metadata of a GGUF file. What llama.cpp would read in another way is refused.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::json;
use crate::text::patterns::GPT2;
use crate::weights::gguf::write::Entries;
use crate::weights::gguf::{DIGIT, DIGITS, pre_name};

// Kinds of tokens, numbered as llama.cpp numbers them.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Adds the tokenizer and the chat template of the model in `dir`; `none` where it has no tokenizer.
pub(super) fn put(dir: &Path, config: &Config, entries: &mut Entries) -> Result<()> {
    let path = dir.join("tokenizer.json");
    if !files::exists(&path) {
        entries.string("tokenizer.ggml.model", "none");
        return Ok(());
    }
    let file: Value = parse(&path)?;
    let settings_path = dir.join("tokenizer_config.json");
    let settings = if files::is_there(&settings_path) { parse(&settings_path)? } else { Value::Null };
    let refuse = |what: &str| Error::format(&path, format!("{what} has no form in GGUF"));
    let model = &file["model"];
    if model["type"] != "BPE" {
        return Err(refuse(&format!("a tokenizer of type {}", model["type"])));
    }
    let added: BTreeMap<u64, (&str, bool)> = (file["added_tokens"].as_array().into_iter().flatten())
        .filter_map(|token| {
            Some((token["id"].as_u64()?, (token["content"].as_str()?, token["special"] == true)))
        })
        .collect();
    let mut tokens = vec![None; config.vocab_size];
    let vocab = model["vocab"].as_object().ok_or_else(|| refuse("a model without a vocab"))?;
    let all = vocab.iter().filter_map(|(text, id)| Some((text.as_str(), id.as_u64()?)));
    for (text, id) in all.chain(added.iter().map(|(&id, &(text, _))| (text, id))) {
        let place = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id));
        let place = place
            .ok_or_else(|| refuse(&format!("id {id}, outside the vocabulary of {},", config.vocab_size)))?;
        *place = Some(text.to_owned());
    }
    let sentences = model["byte_fallback"] == true;
    let unknown = model["unk_token"].as_str();
    let kinds: Vec<i32> = (tokens.iter().zip(0_u64..))
        .map(|(text, id)| match (text, added.get(&id)) {
            (None, _) => UNUSED,
            (Some(text), _) if unknown == Some(text.as_str()) => UNKNOWN,
            (_, Some((_, special))) => {
                if *special {
                    CONTROL
                } else {
                    USER_DEFINED
                }
            }
            (Some(text), None) if sentences && is_byte(text) => BYTE,
            _ => NORMAL,
        })
        .collect();
    let texts: Vec<String> = (tokens.into_iter().enumerate())
        .map(|(id, text)| text.unwrap_or_else(|| format!("[PAD{id}]")))
        .collect();
    let merges: Vec<(&str, &str)> =
        model["merges"].as_array().into_iter().flatten().filter_map(pair).collect();

    if sentences {
        let prefix = space_prefix(&file).ok_or_else(|| refuse("this normalizer or pre_tokenizer"))?;
        entries.string("tokenizer.ggml.model", "llama");
        entries.string("tokenizer.ggml.pre", "default");
        entries.flag("tokenizer.ggml.add_space_prefix", prefix);
        entries.floats("tokenizer.ggml.scores", &scores(&texts, &kinds, &merges));
    } else {
        let ignore_merges = model["ignore_merges"] == true;
        let pre =
            byte_level(&file, ignore_merges).ok_or_else(|| refuse("this normalizer or pre_tokenizer"))?;
        entries.string("tokenizer.ggml.model", "gpt2");
        entries.string("tokenizer.ggml.pre", pre);
        let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        entries.strings("tokenizer.ggml.merges", &merges);
    }
    let ids: HashMap<&str, u32> = texts.iter().map(String::as_str).zip(0..).collect();
    let named = |name: &str| {
        let text = settings[name].as_str().or_else(|| settings[name]["content"].as_str())?;
        ids.get(text).copied()
    };
    let roles = [
        ("bos", named("bos_token").or(config.bos_token_id)),
        ("eos", named("eos_token").or(config.eos_token_ids.first().copied())),
        ("unknown", unknown.and_then(|text| ids.get(text).copied())),
        ("padding", named("pad_token")),
    ];
    for (role, id) in roles {
        if let Some(id) = id {
            entries.uint(&format!("tokenizer.ggml.{role}_token_id"), id);
        }
    }
    let (bos, eos) = ends(&file["post_processor"]);
    entries.flag("tokenizer.ggml.add_bos_token", bos);
    entries.flag("tokenizer.ggml.add_eos_token", eos);
    put_templates(dir, &settings["chat_template"], entries)?;
    entries.strings("tokenizer.ggml.tokens", &texts);
    entries.ints("tokenizer.ggml.token_type", &kinds);
    Ok(())
}

/// The chat template of a file of its own, or those of `tokenizer_config.json`: one, or several by name.
fn put_templates(dir: &Path, settings: &Value, entries: &mut Entries) -> Result<()> {
    const KEY: &str = "tokenizer.chat_template";
    let path = dir.join("chat_template.jinja");
    if files::is_there(&path) {
        let text = String::from_utf8(files::read_json(&path)?);
        let text = text.map_err(|e| Error::format(&path, format!("not UTF-8: {e}")))?;
        entries.string(KEY, &text);
        return Ok(());
    }
    let mut names = Vec::new();
    for named in settings.as_array().into_iter().flatten() {
        match (named["name"].as_str(), named["template"].as_str()) {
            (Some("default"), Some(text)) => entries.string(KEY, text),
            (Some(name), Some(text)) => {
                entries.string(&format!("{KEY}.{name}"), text);
                names.push(name.to_owned());
            }
            _ => {}
        }
    }
    if !names.is_empty() {
        entries.strings("tokenizer.chat_templates", &names);
    }
    if let Some(text) = settings.as_str() {
        entries.string(KEY, text);
    }
    Ok(())
}

fn parse(path: &Path) -> Result<Value> {
    json::parse_typed(path, &files::read_json(path)?, json::LONG)
}

fn is_byte(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// A merge, which older files write as one text.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        other => other.as_str()?.split_once(' '),
    }
}

/// Scores that order tokens as their first merges are ordered; those that no merge makes are last.
fn scores(texts: &[String], kinds: &[i32], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |(text, kind): (&String, &i32)| match *kind {
        NORMAL | USER_DEFINED => -(*ranks.get(text).unwrap_or(&merges.len()) as f32),
        _ => 0.0,
    };
    texts.iter().zip(kinds).map(score).collect()
}

/// Whether a SentencePiece tokenizer puts a space before a text; nothing where it does something else.
fn space_prefix(file: &Value) -> Option<bool> {
    let (normalizer, pre) = (&file["normalizer"], &file["pre_tokenizer"]);
    let is_replace = |step: &Value| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁"
    };
    let is_prepend = |step: &Value| step["type"] == "Prepend" && step["prepend"] == "▁";
    if pre.is_null() {
        return match normalizer["normalizers"].as_array().map(Vec::as_slice) {
            Some([first, second]) if is_prepend(first) && is_replace(second) => Some(true),
            None if is_replace(normalizer) => Some(false),
            _ => None,
        };
    }
    let metaspace = pre["type"] == "Metaspace" && pre["replacement"] == "▁" && pre["split"] == false;
    match pre["prepend_scheme"].as_str() {
        Some("first" | "always") if metaspace && normalizer.is_null() => Some(true),
        Some("never") if metaspace && normalizer.is_null() => Some(false),
        _ => None,
    }
}

/// The name of what a byte-level tokenizer does before its merges.
fn byte_level(file: &Value, ignore_merges: bool) -> Option<&'static str> {
    let pre = &file["pre_tokenizer"];
    let one = std::slice::from_ref(pre);
    let steps = pre["pretokenizers"].as_array().map_or(one, Vec::as_slice);
    let (last, splits) = steps.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    let mut patterns = Vec::new();
    for step in splits {
        match step["type"].as_str()? {
            "Digits" => patterns.push(if step["individual_digits"] == true { DIGIT } else { DIGITS }),
            "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                patterns.push(step["pattern"]["Regex"].as_str()?);
            }
            _ => return None,
        }
    }
    if last["use_regex"] != false {
        patterns.push(GPT2);
    }
    let normalizer = &file["normalizer"];
    let nfc = normalizer["type"] == "NFC";
    let plain = normalizer.is_null() || normalizer["normalizers"].as_array().is_some_and(Vec::is_empty);
    // llama.cpp does not normalize; composed text, which nearly all is, has the same tokens.
    if nfc || plain { pre_name(&patterns, nfc, ignore_merges) } else { None }
}

/// Whether BOS is put before and EOS after a text.
fn ends(processor: &Value) -> (bool, bool) {
    let all = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
    let template = all.iter().find_map(|step| step["single"].as_array());
    let special = |part: Option<&Value>| part.is_some_and(|part| part["SpecialToken"].is_object());
    template
        .map_or((false, false), |parts| (special(parts.first()), parts.len() > 1 && special(parts.last())))
}
