//! PEFT's directories: `adapter_config.json` and `adapter_model.safetensors`, of LoRA, rsLoRA and DoRA.

use std::path::Path;

use fancy_regex::{Regex, RegexBuilder};

use super::{Leaf, Target, matrix, modules, open_in, vector};
use crate::error::{Error, Result};
use crate::files;
use crate::forward::Adapter;
use crate::json::{self, Fields, Object, Value, quote};

pub(super) const TENSORS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
/// What names of modules begin with.
const PREFIX: &str = "base_model.model.";
/// Most patterns of ranks or of alphas: seven modules of 585 layers by name.
const MOST_PATTERNS: usize = 4096;
/// Of these, such that are no plain names, and the bytes of one: each is compiled, and is tried on every module.
const MOST_REGEXES: usize = 64;
const MOST_LENGTH: usize = 256;
/// Steps that one may take back on a name, and bytes that it may be compiled to.
const MOST_STEPS: usize = 10_000;
const MOST_BYTES: usize = 1 << 20;

/// Settings that make another sum than LoRA's, each of which is refused where it is neither absent nor empty.
const REFUSED: [&str; 11] = [
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
];

/// Ways to begin that leave the model's own weights as they are; others change them, and what was trained fits the changed ones.
const INITS: [&str; 4] = ["gaussian", "eva", "orthogonal", "true"];

pub(super) fn read(target: &Target<'_>) -> Result<Adapter> {
    let path = target.path.join(CONFIG);
    let object = json::parse_object(&path, &files::read_json(&path)?)?;
    let settings = Settings::read(&path, &object)?;
    let checkpoint = open_in(target.path, TENSORS)?;
    let modules = modules(&checkpoint, leaf)?;
    let mut updates = Vec::new();
    for (name, found) in &modules {
        let [low, high] = found.pair()?;
        let module = target.module(name, low)?;
        let (rank, alpha) = (settings.rank(name)?, settings.alpha(name)?);
        if low.shape().first() != Some(&rank) {
            return Err(low.fail(format!("shape is {:?}, expected {rank} rows: r of {CONFIG}", low.shape())));
        }
        let scale = if settings.root { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 };
        let magnitude = match (found.magnitude, settings.magnitudes) {
            (Some(info), true) if info.shape().iter().product::<usize>() == module.rows.size => {
                Some(vector(&checkpoint, info, module.form)?)
            }
            (Some(info), true) => {
                let expected = module.rows.size;
                return Err(info.fail(format!("shape is {:?}, expected [{expected}]", info.shape())));
            }
            (Some(info), false) => return Err(info.fail("use_dora is false".to_owned())),
            (None, true) => return Err(low.fail("its module has no lora_magnitude_vector".to_owned())),
            (None, false) => None,
        };
        let low = (low, matrix(&checkpoint, low, crate::weights::Form::Plain, false)?);
        let high = (high, matrix(&checkpoint, high, module.form, false)?);
        updates.push(target.update(module, 0, [low, high], scale, magnitude)?);
        if let Some(update) = updates.last()
            && update.high.shape()[0] != module.rows.size
        {
            let what = format!("B has {} rows, expected {}", update.high.shape()[0], module.rows.size);
            return Err(Error::Weight { path: target.path.to_owned(), name: (*name).to_owned(), what });
        }
    }
    let method = match (settings.magnitudes, settings.root) {
        (true, _) => "DoRA",
        (false, true) => "rsLoRA",
        (false, false) => "LoRA",
    };
    Ok(target.adapter(method, updates))
}

/// The module that a tensor is of, and what of it.
fn leaf(name: &str) -> Option<(&str, Leaf)> {
    let name = name.strip_prefix(PREFIX)?;
    let ends = [
        (".lora_A.weight", Leaf::Low),
        (".lora_B.weight", Leaf::High),
        (".lora_magnitude_vector", Leaf::Magnitude),
        (".lora_magnitude_vector.weight", Leaf::Magnitude),
    ];
    ends.into_iter().find_map(|(end, leaf)| Some((name.strip_suffix(end)?, leaf)))
}

/// What `adapter_config.json` says.
struct Settings<'a> {
    path: &'a Path,
    rank: usize,
    alpha: f64,
    /// Whether sums are divided by the root of the rank.
    root: bool,
    magnitudes: bool,
    ranks: Vec<Pattern<'a>>,
    alphas: Vec<Pattern<'a>>,
}

/// A number of the modules whose paths match.
struct Pattern<'a> {
    key: &'a str,
    /// None where it is the end of a path as it stands.
    regex: Option<Regex>,
    value: f64,
}

impl<'a> Settings<'a> {
    fn read(path: &'a Path, object: &'a Object) -> Result<Self> {
        let fields = Fields::new(path, object);
        match fields.string("peft_type")? {
            Some("LORA") => {}
            Some(other) => {
                return Err(fields.error("peft_type", quote(other), "LORA: no other method is built"));
            }
            None => return Err(fields.missing("peft_type", "LORA")),
        }
        for name in REFUSED {
            let is_set = match fields.get(name) {
                None | Some(Value::Bool(false)) => false,
                Some(Value::Array(items)) => !items.is_empty(),
                Some(Value::Object(members)) => !members.is_empty(),
                Some(_) => true,
            };
            if let Some(value) = fields.get(name).filter(|_| is_set) {
                return Err(fields.error(name, value, "none: adapters with it are not built"));
            }
        }
        if let Some(bias) = fields.string("bias")?.filter(|bias| *bias != "none") {
            return Err(fields.error("bias", quote(bias), "none: trained biases are not built"));
        }
        match fields.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(how)) if INITS.contains(&how.as_str()) => {}
            Some(other) => {
                let expected = "one that leaves the model's weights as they are (true, false, gaussian, eva, orthogonal): \
                                convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)";
                return Err(fields.error("init_lora_weights", other, expected));
            }
        }
        const MOST: f64 = 1e6;
        Ok(Self {
            path,
            rank: fields.required("r", 1, super::MOST_RANK)?,
            alpha: fields
                .number("lora_alpha", -MOST, MOST)?
                .ok_or_else(|| fields.missing("lora_alpha", "a number"))?,
            root: fields.flag("use_rslora")?.unwrap_or(false),
            magnitudes: fields.flag("use_dora")?.unwrap_or(false),
            ranks: patterns(&fields, "rank_pattern", |members, key| {
                Ok(members.size(key, 1, super::MOST_RANK)?.map(|rank| rank as f64))
            })?,
            alphas: patterns(&fields, "alpha_pattern", |members, key| members.number(key, -MOST, MOST))?,
        })
    }

    fn rank(&self, module: &str) -> Result<usize> {
        Ok(self.matching("rank_pattern", &self.ranks, module)?.map_or(self.rank, |rank| rank as usize))
    }

    fn alpha(&self, module: &str) -> Result<f64> {
        Ok(self.matching("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha))
    }

    /// The number of the patterns that match a module; where several do, PEFT takes the first, and they have to agree here.
    fn matching(&self, name: &str, patterns: &[Pattern<'_>], module: &str) -> Result<Option<f64>> {
        let mut found: Option<&Pattern<'_>> = None;
        for pattern in patterns {
            let is_end = || {
                module.strip_suffix(pattern.key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            let matches = match &pattern.regex {
                Some(regex) => regex.is_match(module).map_err(|error| {
                    Error::config(
                        self.path,
                        format!("{name}.{}", pattern.key),
                        "a pattern",
                        error.to_string(),
                    )
                })?,
                None => is_end(),
            };
            if let Some(other) = found.filter(|other| matches && other.value != pattern.value) {
                let expected = format!("one number for {module}, which {} matches, too", quote(other.key));
                return Err(Error::config(self.path, name, quote(pattern.key), expected));
            }
            if matches {
                found = Some(pattern);
            }
        }
        Ok(found.map(|pattern| pattern.value))
    }
}

fn patterns<'a>(
    fields: &Fields<'a>,
    name: &'a str,
    number: impl Fn(&Fields<'a>, &str) -> Result<Option<f64>>,
) -> Result<Vec<Pattern<'a>>> {
    let Some(members) = fields.object(name)? else { return Ok(Vec::new()) };
    if members.members().len() > MOST_PATTERNS {
        let expected = format!("at most {MOST_PATTERNS}");
        return Err(fields.error(name, format!("{} patterns", members.members().len()), expected));
    }
    let is_plain =
        |key: &str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'));
    let (all, longest) = (members.members().keys().filter(|key| !is_plain(key)), MOST_LENGTH);
    if all.clone().count() > MOST_REGEXES || all.clone().any(|key| key.len() > longest) {
        let expected = format!("at most {MOST_REGEXES} that are no plain names, of {longest} bytes each");
        return Err(fields.error(name, format!("{} such patterns", all.count()), expected));
    }
    let mut patterns = Vec::new();
    for key in members.members().keys() {
        let value = number(&members, key)?.ok_or_else(|| members.missing(key, "a number"))?;
        let regex = match is_plain(key) {
            true => None,
            false => Some(
                RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
                    .backtrack_limit(MOST_STEPS)
                    .delegate_size_limit(MOST_BYTES)
                    .delegate_dfa_size_limit(MOST_BYTES)
                    .build()
                    .map_err(|error| members.error(key, "no pattern", error.to_string()))?,
            ),
        };
        patterns.push(Pattern { key, regex, value });
    }
    Ok(patterns)
}
