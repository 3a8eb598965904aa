//! Which of a repository's files a model needs: never code, never pickles.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::fit::{self, Fit};
use crate::error::{Error, HubFault, Result, Size};
use crate::json::quote;
use crate::weights::gguf;

/// A file that is there, by its path and size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub path: &'a str,
    pub bytes: u64,
}

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Their places in what was given.
    pub files: Vec<usize>,
    pub form: Form,
    /// The variant that is preferred to this one, and does not fit.
    pub passed: Option<TooLarge>,
}

/// A variant that would have been taken, were there more memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// What it is called.
    pub variant: String,
    /// Bytes of its files.
    pub bytes: u64,
}

/// What the files of a model are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A directory with `config.json` and safetensors.
    Safetensors,
    /// A GGUF model, in one file or in parts.
    Gguf {
        /// What its type is called: `Q4_K_M`, or the file's name where that says none.
        variant: String,
        /// The path of its first part.
        first: String,
    },
}

impl Form {
    /// The variant, where it is a GGUF model.
    pub fn gguf(&self) -> Option<&str> {
        match self {
            Self::Safetensors => None,
            Self::Gguf { variant, .. } => Some(variant),
        }
    }
}

/// Small files beside the weights: configuration, tokenizers of all kinds, chat templates, what sentence-transformers adds.
const SMALL: [&str; 24] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "hf_quant_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "modules.json",
    "quant_config.json",
    "quantize_config.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.bpe",
    "vocab.json",
    "vocab.txt",
];

/// The types of GGUF files in the order in which one is taken where nobody says: small and good first, then what is larger, what
/// loses more, and what is not quantized.
const PREFERRED: [&str; 24] = [
    "Q4_K_M", "Q4_K_S", "MXFP4", "Q4_0", "Q5_K_M", "Q4_1", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0",
    "Q4_K_L", "Q5_K_L", "Q4_K_XL", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "BF16", "F16",
    "FP16", "F32",
];
/// Of these, the first that is not quantized.
const DENSE: usize = 20;
/// What else a GGUF file's name may end in.
const OTHERS: [&str; 24] = [
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "Q2_K_L",
    "Q2_K_S", "Q2_K_XL", "Q3_K_XL", "Q5_K_XL", "Q6_K_L", "Q6_K_XL", "Q8_K_XL", "Q4_K", "Q5_K", "Q3_K",
    "TQ1_0", "TQ2_0", "NVFP4",
];

/// Where a type stands in the order in which one is taken.
pub(super) fn place(variant: &str) -> Option<usize> {
    PREFERRED.iter().position(|of| *of == variant)
}

/// A GGUF model among files.
struct Group<'a> {
    /// Its path without the part's number and `.gguf`.
    stem: String,
    variant: String,
    /// Of all parts that it says to have, in order; none is missing.
    parts: Vec<(usize, Entry<'a>)>,
    bytes: u64,
}

impl Group<'_> {
    fn choice(&self) -> Choice {
        let form = Form::Gguf { variant: self.variant.clone(), first: self.parts[0].1.path.to_owned() };
        Choice { files: self.parts.iter().map(|(at, _)| *at).collect(), form, passed: None }
    }

    /// Whether it may be of a type that is read here: a name that says none may be anything.
    fn runs(&self) -> bool {
        !OTHERS.contains(&&*self.variant) || fit::is_type(&self.variant)
    }

    fn needs(&self, fit: Fit) -> u64 {
        fit.needs(self.bytes, Some(&self.variant))
    }

    /// The lower, the sooner it is taken. MLX takes codes of more bits than the file has for some, which are slower by that.
    fn rank(&self, fit: Fit) -> (bool, bool, usize, u64) {
        let place = place(&self.variant).unwrap_or(PREFERRED.len());
        (place >= DENSE, fit.mlx && fit::is_widened(&self.variant), place, self.bytes)
    }
}

/// The files of the model `whose` among `files`: of the GGUF variant that is asked for, else what fits.
///
/// # Errors
/// [`Error::Hub`] where there is none that can be run, no such variant, or none that fits.
pub(crate) fn choose(whose: &str, files: &[Entry<'_>], variant: Option<&str>, fit: Fit) -> Result<Choice> {
    if let Some(choice) = safetensors(files).filter(|_| variant.is_none()) {
        return Ok(choice);
    }
    let groups = groups(files);
    if groups.is_empty() {
        return Err(Error::hub(HubFault::NotFound, format!("{whose} {}", nothing(files, variant))));
    }
    let (group, passed) = match variant {
        Some(variant) => (named(whose, &groups, variant)?, None),
        None => preferred(whose, &groups, fit)?,
    };
    Ok(Choice { passed, ..group.choice() })
}

/// As [`choose`], among files that are here: where no variant fits, the one that needs the least.
pub(crate) fn choose_here(
    whose: &str,
    files: &[Entry<'_>],
    variant: Option<&str>,
    fit: Fit,
) -> Option<Choice> {
    choose(whose, files, variant, fit).ok().or_else(|| {
        let groups = groups(files);
        let least = groups.iter().filter(|group| group.runs()).min_by_key(|group| group.needs(fit));
        least.filter(|_| variant.is_none()).map(Group::choice)
    })
}

/// All models that lie among `files`: the directory's own, and each GGUF model.
pub(crate) fn all(files: &[Entry<'_>]) -> Vec<Choice> {
    safetensors(files).into_iter().chain(groups(files).iter().map(Group::choice)).collect()
}

/// Why there is nothing that can be run.
fn nothing(files: &[Entry<'_>], variant: Option<&str>) -> String {
    let ends = |ends: &[&str]| files.iter().any(|file| ends.iter().any(|end| file.path.ends_with(end)));
    if let Some(variant) = variant {
        return format!("holds no GGUF file, and so no variant {}: leave the variant out", quote(variant));
    }
    let what = if ends(&[".gguf"]) {
        "holds GGUF files of which parts are missing"
    } else if ends(&[".bin", ".pt", ".pth", ".ckpt", ".pickle"]) {
        "has its weights as pickles alone, which are programs: take a repository with safetensors or GGUF files"
    } else if ends(&[".safetensors"]) {
        "holds safetensors without a config.json: it is an adapter, or no language model"
    } else {
        "holds no model: neither safetensors nor GGUF files"
    };
    what.to_owned()
}

/// The files of a directory with `config.json`; none where it has no weights of its own.
fn safetensors(files: &[Entry<'_>]) -> Option<Choice> {
    let at_root = |path: &str| !path.contains('/');
    let has = |name: &str| files.iter().any(|file| file.path == name);
    if !has("config.json") {
        return None;
    }
    let (indexed, single, modules) =
        (has("model.safetensors.index.json"), has("model.safetensors"), has("modules.json"));
    let shard = |path: &str| {
        let stem = path.strip_suffix(".safetensors").filter(|_| at_root(path))?;
        let (_, count) = stem.strip_prefix("model-")?.split_once("-of-")?;
        count.bytes().all(|digit| digit.is_ascii_digit()).then_some(())
    };
    let shards = files.iter().any(|file| shard(file.path).is_some());
    let others = ["consolidated", "adapter_model", "training_args", "optimizer"];
    let is_weights = |path: &str| {
        if !path.ends_with(".safetensors") || !at_root(path) {
            return false;
        }
        if indexed && shards {
            return shard(path).is_some();
        }
        if single {
            return path == "model.safetensors";
        }
        !others.iter().any(|other| path.starts_with(other))
    };
    if !files.iter().any(|file| is_weights(file.path)) {
        return None;
    }
    let wanted = |path: &str| {
        SMALL.contains(&path)
            || is_weights(path)
            || (at_root(path) && path.ends_with(".tiktoken"))
            || is_template(path)
            || (modules && is_module(path))
    };
    let files = files.iter().enumerate().filter(|(_, file)| wanted(file.path)).map(|(at, _)| at).collect();
    Some(Choice { files, form: Form::Safetensors, passed: None })
}

/// A GGUF file that is no projector and no importance matrix, by its name without folders.
fn is_gguf_model(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let other = ["mmproj", "imatrix", "mtp-"].iter().any(|start| lower.starts_with(start));
    lower.ends_with(".gguf") && !other && !lower.contains("-mmproj")
}

/// `additional_chat_templates/tool_use.jinja`.
fn is_template(path: &str) -> bool {
    path.strip_prefix("additional_chat_templates/")
        .is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'))
}

/// A file of a module of sentence-transformers: `1_Pooling/config.json`, `2_Dense/model.safetensors`.
fn is_module(path: &str) -> bool {
    let Some((folder, file)) = path.split_once('/') else { return false };
    let numbered = folder.split_once('_').is_some_and(|(number, _)| {
        !number.is_empty() && number.len() <= 2 && number.bytes().all(|digit| digit.is_ascii_digit())
    });
    numbered && matches!(file, "config.json" | "model.safetensors")
}

/// The GGUF models that are there as a whole; projectors and importance matrices are none.
fn groups<'a>(files: &[Entry<'a>]) -> Vec<Group<'a>> {
    /// The numbers of parts, and the files that are these.
    type Parts<'a> = Vec<(u64, usize, Entry<'a>)>;
    let mut groups: Vec<(String, u64, Parts<'a>)> = Vec::new();
    let mut places: HashMap<(String, u64), usize> = HashMap::new();
    for (at, &file) in files.iter().enumerate() {
        let name = file.path.rsplit('/').next().unwrap_or(file.path);
        if !is_gguf_model(name) {
            continue;
        }
        let folder = &file.path[..file.path.len() - name.len()];
        let (stem, part, count) = gguf::part_of(name).unwrap_or((&name[..name.len() - ".gguf".len()], 1, 1));
        let stem = format!("{folder}{stem}");
        match places.entry((stem, count)) {
            Slot::Occupied(place) => groups[*place.get()].2.push((part, at, file)),
            Slot::Vacant(place) => {
                groups.push((place.key().0.clone(), count, vec![(part, at, file)]));
                place.insert(groups.len() - 1);
            }
        }
    }
    let whole = |(stem, count, mut parts): (String, u64, Parts<'a>)| {
        parts.sort_by_key(|(part, ..)| *part);
        if !parts.iter().map(|(part, ..)| *part).eq(1..=count) {
            return None;
        }
        let bytes = parts.iter().map(|(.., file)| file.bytes).fold(0, u64::saturating_add);
        let variant = variant_of(&stem);
        Some(Group {
            stem,
            variant,
            parts: parts.into_iter().map(|(_, at, file)| (at, file)).collect(),
            bytes,
        })
    };
    groups.into_iter().filter_map(whole).collect()
}

/// What a file's name, without `.gguf`, says of its type: the last of its parts that is one, else all of the name.
fn variant_of(stem: &str) -> String {
    let name = stem.rsplit('/').next().unwrap_or(stem);
    let upper = name.to_ascii_uppercase();
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let (mut last, mut in_word) = (None, false);
    for (at, c) in upper.char_indices() {
        if !in_word && c.is_ascii_alphanumeric() {
            let here = PREFERRED.iter().chain(&OTHERS);
            let here = here.filter(|of| upper[at..].strip_prefix(**of).is_some_and(ends));
            last = last.max(here.map(|of| (at + of.len(), of.len(), *of)).max());
        }
        in_word = c.is_ascii_alphanumeric();
    }
    last.map_or_else(|| name.to_owned(), |(.., of)| of.to_owned())
}

/// The one that is called so, by its type or its file's name.
fn named<'g, 'a>(whose: &str, groups: &'g [Group<'a>], asked: &str) -> Result<&'g Group<'a>> {
    let asked = match asked.len().checked_sub(5).and_then(|at| asked.split_at_checked(at)) {
        Some((stem, end)) if end.eq_ignore_ascii_case(".gguf") => stem,
        _ => asked,
    };
    let name =
        |group: &Group<'_>| group.stem.rsplit('/').next().unwrap_or_default().eq_ignore_ascii_case(asked);
    if let Some(group) = groups.iter().find(|group| name(group)) {
        return Ok(group);
    }
    let mut of: Vec<&Group<'_>> =
        groups.iter().filter(|group| group.variant.eq_ignore_ascii_case(asked)).collect();
    // Some repositories have a model whole and in parts beside that.
    if let Some(whole) = of.iter().copied().min_by_key(|group| group.parts.len())
        && of.iter().all(|group| group.stem.eq_ignore_ascii_case(&whole.stem))
    {
        of = vec![whole];
    }
    let what = match of[..] {
        [one] => return Ok(one),
        [] => format!("{whose} has no variant {}: there are {}", quote(asked), told(groups)),
        _ => {
            let stems = some(of.iter().map(|group| group.stem.clone()));
            format!("{whose} has several of {}: name one of {stems}", quote(asked))
        }
    };
    Err(Error::hub(HubFault::NotFound, what))
}

/// What is taken where nobody says, and what would be, were there more memory.
fn preferred<'g, 'a>(
    whose: &str,
    groups: &'g [Group<'a>],
    fit: Fit,
) -> Result<(&'g Group<'a>, Option<TooLarge>)> {
    if let [one] = groups {
        return Ok((one, None));
    }
    let all = || groups.iter().filter(|group| group.runs());
    let rank = |group: &&Group<'_>| group.rank(fit);
    let (Some(first), Some(least)) = (all().min_by_key(rank), all().min_by_key(|group| group.needs(fit)))
    else {
        let what = format!("{whose} has no variant of a type that is read here: there are {}", told(groups));
        return Err(Error::hub(HubFault::NotFound, what));
    };
    let Some(found) = all().filter(|group| fit.holds(group.bytes, Some(&group.variant))).min_by_key(rank)
    else {
        if let Some((found, _)) = fit.on_cpu().and_then(|cpu| preferred(whose, groups, cpu).ok()) {
            let passed = TooLarge { variant: first.variant.clone(), bytes: first.bytes };
            return Ok((found, Some(passed).filter(|_| !std::ptr::eq(first, found))));
        }
        let what = format!(
            "no variant of {whose} fits the {} of memory that there are here: there are {}; the smallest, {}, needs about {}; \
             NAME:VARIANT takes one all the same",
            Size(fit.memory.unwrap_or(0)),
            told(groups),
            least.variant,
            Size(least.needs(fit))
        );
        return Err(Error::hub(HubFault::Space, what));
    };
    let passed = !std::ptr::eq(first, found);
    Ok((found, passed.then(|| TooLarge { variant: first.variant.clone(), bytes: first.bytes })))
}

/// The variants, with their sizes.
fn told(groups: &[Group<'_>]) -> String {
    some(groups.iter().map(|group| format!("{} ({})", group.variant, Size(group.bytes))))
}

/// What an error names of many: ten, then how many more there are.
fn some(mut all: impl ExactSizeIterator<Item = String>) -> String {
    const MOST: usize = 10;
    let mut names = all.by_ref().take(MOST).collect::<Vec<_>>().join(", ");
    if all.len() > 0 {
        names += &format!(", and {} more", all.len());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[(&str, u64)], variant: Option<&str>, memory: Option<u64>) -> Result<Vec<String>> {
        let entries: Vec<Entry<'_>> = files.iter().map(|&(path, bytes)| Entry { path, bytes }).collect();
        let choice = choose("a/b", &entries, variant, Fit { memory, ..Fit::default() })?;
        Ok(choice.files.iter().map(|&at| files[at].0.to_owned()).collect())
    }

    fn of(paths: &[&'static str]) -> Vec<(&'static str, u64)> {
        paths.iter().map(|&path| (path, 1)).collect()
    }

    #[test]
    fn a_directory_is_its_small_files_and_its_weights() {
        let files = of(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "configuration_x.py",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.safetensors",
            "original/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "training_args.bin",
            "additional_chat_templates/tool_use.jinja",
            "1_Pooling/config.json",
        ]);
        let expected = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "additional_chat_templates/tool_use.jinja",
        ];
        assert_eq!(chosen(&files, None, None).unwrap(), expected);
        let files = of(&[
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "config.json",
            "model.safetensors",
            "modules.json",
            "openvino/x.json",
            "other.safetensors",
        ]);
        let expected = [
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "config.json",
            "model.safetensors",
            "modules.json",
        ];
        assert_eq!(chosen(&files, None, None).unwrap(), expected);
    }

    #[test]
    fn a_variant_is_all_its_parts() {
        let files = [
            ("M-Q4_K_M.gguf", 5_000_000_000),
            ("M-Q8_0/M-Q8_0-00002-of-00002.gguf", 4_000_000_000),
            ("M-Q8_0/M-Q8_0-00001-of-00002.gguf", 5_000_000_000),
            ("m-q2_k.gguf", 2_000_000_000),
            ("m-iq2_xxs.gguf", 1),
            ("M-F16-00001-of-00003.gguf", 1),
            ("mmproj-M-f16.gguf", 1),
            ("imatrix.gguf", 1),
        ];
        let taken = |variant: Option<&str>, memory: Option<u64>| chosen(&files, variant, memory);
        assert_eq!(taken(None, None).unwrap(), ["M-Q4_K_M.gguf"]);
        let parts = ["M-Q8_0/M-Q8_0-00001-of-00002.gguf", "M-Q8_0/M-Q8_0-00002-of-00002.gguf"];
        assert_eq!(taken(Some("q8_0"), None).unwrap(), parts);
        assert_eq!(taken(Some("M-Q4_K_M"), None).unwrap(), ["M-Q4_K_M.gguf"]);
        assert_eq!(taken(Some("m-q4_k_m.gguf"), None).unwrap(), ["M-Q4_K_M.gguf"]);
        assert_eq!(taken(None, Some(3_000_000_000)).unwrap(), ["m-q2_k.gguf"]);
        // Its type is not read: who names it is told so when it is loaded.
        assert_eq!(taken(Some("IQ2_XXS"), None).unwrap(), ["m-iq2_xxs.gguf"]);
        let variants = "Q4_K_M (5.00 GB), Q8_0 (9.00 GB), Q2_K (2.00 GB), IQ2_XXS (1 byte)";
        let split =
            [("m-q4_0-00001-of-00002.gguf", 1), ("m-q4_0-00002-of-00002.gguf", 1), ("m-q4_0.gguf", 2)];
        assert_eq!(chosen(&split, Some("Q4_0"), None).unwrap(), ["m-q4_0.gguf"]);
        // A variant of which a part is missing is none.
        let error = taken(Some("F16"), None).unwrap_err().to_string();
        assert_eq!(error, format!("a/b has no variant \"F16\": there are {variants}"));
        let error = taken(None, Some(1_000_000_000)).unwrap_err().to_string();
        let expected = format!(
            "no variant of a/b fits the 1.00 GB of memory that there are here: there are {variants}; the smallest, Q2_K, needs about \
             2.52 GB; NAME:VARIANT takes one all the same"
        );
        assert_eq!(error, expected);
    }

    #[test]
    fn what_is_passed_over_is_told_and_what_is_here_is_taken() {
        let file = |path, bytes| Entry { path, bytes };
        let files = [file("m-Q8_0.gguf", 9_000), file("m-Q4_K_M.gguf", 5_000), file("m-Q3_K_M.gguf", 4_000)];
        let fit = |bytes| Fit { memory: Some(Fit::default().needs(bytes, None)), ..Fit::default() };
        let of = |choice: Choice| (choice.form.gguf().unwrap().to_owned(), choice.passed);
        assert_eq!(of(choose("a/b", &files, None, fit(5_000)).unwrap()), ("Q4_K_M".to_owned(), None));
        let passed = TooLarge { variant: "Q4_K_M".to_owned(), bytes: 5_000 };
        assert_eq!(of(choose("a/b", &files, None, fit(4_999)).unwrap()), ("Q3_K_M".to_owned(), Some(passed)));
        assert_eq!(of(choose("a/b", &files, Some("Q8_0"), fit(1)).unwrap()), ("Q8_0".to_owned(), None));
        // What MLX has no room for runs on the CPU, where that may have more.
        let gpu = Fit { mlx: true, cpu: fit(5_000).memory, ..fit(1) };
        let passed = TooLarge { variant: "Q4_K_M".to_owned(), bytes: 5_000 };
        assert_eq!(of(choose("a/b", &files, None, gpu).unwrap()), ("Q4_K_M".to_owned(), None));
        let gpu = Fit { cpu: fit(4_999).memory, ..gpu };
        assert_eq!(of(choose("a/b", &files, None, gpu).unwrap()), ("Q3_K_M".to_owned(), Some(passed)));
        // What is here is run, whatever it needs; nothing stands for what was named and is not here.
        assert!(choose("a/b", &files, None, fit(3_999)).is_err());
        assert_eq!(of(choose_here("a/b", &files, None, fit(3_999)).unwrap()), ("Q3_K_M".to_owned(), None));
        assert_eq!(choose_here("a/b", &files, Some("Q2_K"), fit(3_999)), None);
        let unknown = [file("m-IQ1_S.gguf", 1), file("m-TQ2_0.gguf", 2)];
        let error = choose("a/b", &unknown, None, Fit::default()).unwrap_err().to_string();
        assert_eq!(
            error,
            "a/b has no variant of a type that is read here: there are IQ1_S (1 byte), TQ2_0 (2 bytes)"
        );
    }

    #[test]
    fn mlx_takes_what_it_holds_packed() {
        let taken = |variants: &[&str], memory: Option<u64>| {
            let paths: Vec<String> = variants.iter().map(|variant| format!("m-{variant}.gguf")).collect();
            let entries: Vec<Entry<'_>> =
                paths.iter().map(|path| Entry { path, bytes: 5_000_000_000 }).collect();
            [false, true].map(|mlx| {
                let choice = choose("a/b", &entries, None, Fit { memory, mlx, ..Fit::default() }).unwrap();
                choice.form.gguf().unwrap().to_owned()
            })
        };
        assert_eq!(taken(&["Q6_K", "Q8_0"], None), ["Q6_K", "Q8_0"]);
        assert_eq!(taken(&["IQ4_XS", "Q3_K_M", "Q4_K_XL"], None), ["Q4_K_XL", "Q4_K_XL"]);
        assert_eq!(taken(&["IQ4_XS", "Q5_K_L"], None), ["Q5_K_L", "Q5_K_L"]);
        assert_eq!(taken(&["Q3_K_M", "F16", "Q2_K"], None), ["Q3_K_M", "Q3_K_M"]);
        assert_eq!(taken(&["Q4_K_M", "Q4_0"], None), ["Q4_K_M", "Q4_K_M"]);
        // Of as many bytes in the file, that of MLX's scales fits and the other does not.
        assert_eq!(taken(&["Q4_K_M", "Q4_0"], Some(7_000_000_000)), ["Q4_K_M", "Q4_0"]);
    }

    #[test]
    fn a_hundred_thousand_names_take_no_time() {
        let started = std::time::Instant::now();
        let paths: Vec<String> = (0..50_000).map(|i| format!("m-{i}-Q4_0.gguf")).collect();
        let weights: Vec<String> = (0..50_000).map(|i| format!("w{i}.safetensors")).collect();
        let entry = |path: &'static str| Entry { path, bytes: 1 };
        let mut entries: Vec<Entry<'_>> =
            paths.iter().chain(&weights).map(|path| Entry { path, bytes: 1 }).collect();
        let chosen = |entries: &[Entry<'_>], variant| choose("a/b", entries, variant, Fit::default());
        let error = chosen(&entries, Some("Q4_0")).unwrap_err().to_string();
        let ten: Vec<String> = (0..10).map(|i| format!("m-{i}-Q4_0")).collect();
        let expected = format!("a/b has several of \"Q4_0\": name one of {}, and 49990 more", ten.join(", "));
        assert_eq!(error, expected);
        let error = chosen(&entries, Some("Q8_0")).unwrap_err().to_string();
        let ten = ["Q4_0 (1 byte)"; 10].join(", ");
        assert_eq!(error, format!("a/b has no variant \"Q8_0\": there are {ten}, and 49990 more"));
        assert_eq!(chosen(&entries, Some("m-49999-Q4_0")).unwrap().files, [49_999]);
        entries.push(entry("config.json"));
        let mut all: Vec<usize> = (50_000..=100_000).collect();
        assert_eq!(chosen(&entries, None).unwrap().files, all);
        entries.extend(["modules.json", "model.safetensors.index.json"].map(entry));
        all.extend([100_001, 100_002]);
        assert_eq!(chosen(&entries, None).unwrap().files, all);
        // Where each name looks at all others it is minutes.
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }

    #[test]
    fn names_say_their_types() {
        for (name, variant) in [
            ("gemma-3-4b-it-Q4_K_M", "Q4_K_M"),
            ("qwen2.5-coder-7b-instruct-q4_k_m", "Q4_K_M"),
            ("x/gpt-oss-20b-mxfp4", "MXFP4"),
            ("Qwen3-8B-UD-Q4_K_XL", "Q4_K_XL"),
            ("m.Q6_K", "Q6_K"),
            ("m-Q6_K_L", "Q6_K_L"),
            ("m-f16", "F16"),
            ("m-bf16", "BF16"),
            ("m-IQ4_NL", "IQ4_NL"),
            ("Q8_0", "Q8_0"),
            ("f16-lora", "F16"),
            ("m-q4_0-x-Q4_0y", "Q4_0"),
            ("\u{e9}Q4_0", "Q4_0"),
            ("mQ4_0", "mQ4_0"),
            ("stories", "stories"),
        ] {
            assert_eq!(variant_of(name), variant, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        for (files, variant, what) in [
            (of(&["config.json", "pytorch_model.bin"]), None, "has its weights as pickles alone"),
            (of(&["adapter_model.safetensors"]), None, "without a config.json"),
            (of(&["README.md"]), None, "holds no model"),
            (of(&["m-00001-of-00002.gguf"]), None, "parts are missing"),
            (of(&["config.json", "model.safetensors"]), Some("Q4_0"), "leave the variant out"),
            (of(&["a/m-Q4_0.gguf", "b/n-Q4_0.gguf"]), Some("Q4_0"), "name one of a/m-Q4_0, b/n-Q4_0"),
        ] {
            let error = chosen(&files, variant, None).unwrap_err();
            assert!(matches!(error, Error::Hub { fault: HubFault::NotFound, .. }), "{error}");
            let error = error.to_string();
            assert!(error.starts_with("a/b ") && error.contains(what), "{error}");
        }
    }
}
