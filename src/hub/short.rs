//! Short names: a table of models that people run, each with the repositories and variants that there are of it.
//!
//! The table is `short.json`. Its repositories are as public sources name them; they could not be asked from where it was
//! written. Sizes help to choose and are not relied on: what is downloaded has the size that the hub says.

use std::sync::LazyLock;

use serde::Deserialize;

use super::choose::TooLarge;
use super::fit::{self, Fit};
use super::name::RepositoryId;
use crate::error::{Error, HubFault, Result, Size};
use crate::json::{self, quote};

/// A model of the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShortName {
    /// `qwen3:8b`.
    pub name: String,
    /// What else it goes by: `qwen3`.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// In the order in which they are preferred, of each form.
    pub variants: Vec<ShortVariant>,
}

/// What there is of a model of the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShortVariant {
    /// What it is asked for by, after the name: `Q4_K_M`.
    pub variant: String,
    /// What its files are.
    pub form: ShortForm,
    /// Where it lies on the hub.
    pub repository: String,
    /// About how many bytes.
    pub bytes: u64,
}

/// What the files of a variant are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShortForm {
    /// One GGUF model of a repository, which the CPU's kernels read as it is.
    Gguf,
    /// A directory of MLX's.
    Mlx,
    /// A directory as its authors made it, which either backend reads: what embeds, and what ranks, of which GGUF files have no heads.
    Safetensors,
}

impl ShortVariant {
    /// Whether it is asked for so.
    pub fn is(&self, asked: &str) -> bool {
        let plain = |text: &str| text.to_ascii_uppercase().replace("FP16", "F16");
        plain(&self.variant) == plain(asked)
    }

    /// The repository.
    ///
    /// # Errors
    /// [`Error::Hub`] for a name that is none: a test of the table finds it.
    pub fn id(&self) -> Result<RepositoryId> {
        RepositoryId::new(&self.repository)
    }

    /// The variant within the repository, where it has several.
    pub fn within(&self) -> Option<&str> {
        (self.form == ShortForm::Gguf).then_some(&*self.variant)
    }

    /// Whether it runs in this memory.
    pub fn fits(&self, fit: Fit) -> bool {
        fit.holds(self.bytes, self.within())
    }

    /// Whether it runs in the memory of this machine, on what runs models there or else on the CPU.
    pub fn runs(&self, fit: Fit) -> bool {
        self.fits(fit) || fit.on_cpu().is_some_and(|cpu| self.fits(cpu))
    }

    fn needs(&self, fit: Fit) -> u64 {
        fit.needs(self.bytes, self.within())
    }
}

/// Of the table.
const LIMITS: json::Limits = json::Limits { depth: 8, values: 1 << 13 };

/// The table.
pub fn short_names() -> &'static [ShortName] {
    static TABLE: LazyLock<Vec<ShortName>> = LazyLock::new(|| {
        // A test reads it.
        json::typed(include_str!("short.json"), LIMITS).unwrap_or_default()
    });
    &TABLE
}

/// The model of the table that is meant by a short name, and the variant.
///
/// What Ollama and LM Studio have their users write is meant, too: `llama3.2:1b-instruct-q4_K_M` is the variant `Q4_K_M` of
/// `llama3.2:1b`, and `qwen3-0.6b` is `qwen3:0.6b`.
///
/// # Errors
/// [`Error::Hub`] where no model is called so, with those that are called nearly so.
pub fn meant(name: &str, variant: Option<&str>) -> Result<(&'static ShortName, Option<String>)> {
    // Ollama's way to say that it says no more.
    let name = name.strip_suffix(":latest").unwrap_or(name);
    let own = variant.map(str::to_owned);
    // The colon may be any of the dashes: `qwen2.5-coder-7b` is of the longest family.
    let dashes = name.match_indices('-').rev().map(|(at, _)| format!("{}:{}", &name[..at], &name[at + 1..]));
    let colons: Vec<String> = if name.contains(':') { Vec::new() } else { dashes.collect() };
    for written in [name].into_iter().chain(colons.iter().map(String::as_str)) {
        if let Some(short) = called(written) {
            return Ok((short, own));
        }
        let tag = written.find(':').unwrap_or(written.len());
        for (at, _) in written.match_indices('-').rev().filter(|(at, _)| *at > tag) {
            let of = called(&written[..at]).and_then(|short| Some((short, short.typed(&written[at + 1..])?)));
            match of {
                Some((short, of)) if of.is_none() || own.is_none() => return Ok((short, of.or(own))),
                _ => {}
            }
        }
    }
    Err(Error::hub(HubFault::NotFound, unknown(name)))
}

fn called(name: &str) -> Option<&'static ShortName> {
    short_names().iter().find(|short| short.name == name || short.aliases.iter().any(|of| of == name))
}

impl ShortName {
    /// The variant of a tag's end: `instruct-q4_K_M`, of which the first says what the model is.
    fn typed(&self, end: &str) -> Option<Option<String>> {
        let kinds = ["instruct", "it", "chat"];
        let is_called = |of: &ShortVariant| {
            of.repository.to_ascii_lowercase().split(['-', '_']).any(|part| kinds.contains(&part))
        };
        let (kind, rest) = end.split_once('-').unwrap_or((end, ""));
        let variant = if kinds.contains(&kind) { rest } else { end }.to_ascii_uppercase();
        // Of a model that goes on from texts, the one that talks is another.
        if kinds.contains(&kind) && !self.variants.iter().all(is_called) {
            return None;
        }
        if variant.is_empty() {
            return Some(None);
        }
        fit::is_type(&variant).then_some(Some(variant))
    }
}

/// That no model is called so, and what is.
fn unknown(name: &str) -> String {
    let near = near(name);
    let near = match &near[..] {
        [] => String::new(),
        [one] => format!("; {one} is called nearly so"),
        [most @ .., last] => format!("; {} and {last} are called nearly so", most.join(", ")),
    };
    let sees = ["vl", "vision", "llava", "moondream", "pixtral", "minicpm-v"];
    let sees = sees.iter().any(|of| name.split(|c: char| !c.is_ascii_alphabetic()).any(|part| part == *of))
        || name.contains("minicpm-v");
    let sees = if sees {
        "; models that see pictures are not in the table, since pictures are not read"
    } else {
        ""
    };
    format!(
        "{} is no short name, and no file is called so{near}{sees}; `backstop list --names` has all {}, and org/name is any repository of the hub",
        quote(name),
        short_names().len()
    )
}

/// What is called nearly as this: the models of its family, else the few whose names are the most alike.
fn near(name: &str) -> Vec<&'static str> {
    const MOST: usize = 4;
    let family = |name: &'static str| name.split(':').next().unwrap_or(name);
    let asked = name.split(':').next().unwrap_or(name);
    let all = || short_names().iter().map(|short| &*short.name);
    let same: Vec<&str> = all().filter(|name| family(name) == asked).collect();
    if !same.is_empty() {
        return same;
    }
    // Of a family one model will do where nobody said how large.
    let sized = name.contains([':', '-']);
    let words: Vec<&str> = if sized {
        all().collect()
    } else {
        let mut families: Vec<&str> = all().map(family).collect();
        families.dedup();
        families
    };
    let mut near: Vec<(f64, &str)> =
        words.into_iter().map(|word| (strsim::jaro_winkler(word, name), word)).collect();
    near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    near.retain(|(alike, _)| *alike > 0.8);
    near.into_iter().take(MOST).map(|(_, word)| word).collect()
}

/// The variants of a model that may be taken: the one that was asked for, else all, of the form that runs best here first.
///
/// # Errors
/// [`Error::Hub`] where there is no such variant.
fn preferred<'a>(short: &'a ShortName, asked: Option<&str>, fit: Fit) -> Result<Vec<&'a ShortVariant>> {
    if let Some(asked) = asked {
        let found = short.variants.iter().find(|of| of.is(asked));
        return found.map(|found| vec![found]).ok_or_else(|| {
            let what = format!("{} has no variant {}: there are {}", short.name, quote(asked), told(short));
            Error::hub(HubFault::NotFound, what)
        });
    }
    let mut all: Vec<&ShortVariant> = short.variants.iter().collect();
    // MLX's own first where it runs, and last where it does not; of the others none is before another.
    all.sort_by_key(|of| (of.form == ShortForm::Mlx) != fit.mlx);
    Ok(all)
}

/// The variants of a model in the order in which one that is here would be taken: those that fit as they are preferred, then the
/// others, the smallest first.
///
/// # Errors
/// As [`best`], a memory that holds none apart.
pub(crate) fn in_order<'a>(
    short: &'a ShortName,
    asked: Option<&str>,
    fit: Fit,
) -> Result<Vec<&'a ShortVariant>> {
    let mut all = preferred(short, asked, fit)?;
    all.sort_by_key(|of| match (of.fits(fit), of.runs(fit)) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => of.needs(fit),
    });
    Ok(all)
}

/// The variant of a model that is taken: what was asked for, else the first that fits of the form that runs best here; and the one that
/// would be, were there more memory.
///
/// # Errors
/// [`Error::Hub`] where there is no such variant, or none that fits.
pub(crate) fn best<'a>(
    short: &'a ShortName,
    asked: Option<&str>,
    fit: Fit,
) -> Result<(&'a ShortVariant, Option<TooLarge>)> {
    let all = preferred(short, asked, fit)?;
    let first = *all
        .first()
        .ok_or_else(|| Error::hub(HubFault::NotFound, format!("{} has no variants", short.name)))?;
    let found = all.iter().find(|of| asked.is_some() || of.fits(fit)).copied();
    let passed = |found: &ShortVariant| {
        let passed = TooLarge { variant: first.variant.clone(), bytes: first.bytes };
        Some(passed).filter(|_| !std::ptr::eq(found, first))
    };
    match (found, fit.on_cpu()) {
        (Some(found), _) => Ok((found, passed(found))),
        (None, Some(cpu)) => best(short, None, cpu).map(|(found, _)| (found, passed(found))),
        (None, None) => Err(none_fits(short, fit)),
    }
}

/// That no variant fits; what the smallest needs, and the largest model of the same family of which one does.
fn none_fits(short: &ShortName, fit: Fit) -> Error {
    let mut what = format!(
        "no variant of {} fits the {} of memory that there are here: there are {}",
        short.name,
        Size(fit.memory.unwrap_or(0)),
        told(short)
    );
    if let Some(least) = short.variants.iter().min_by_key(|of| of.needs(fit)) {
        what += &format!("; the smallest, {}, needs about {}", least.variant, Size(least.needs(fit)));
    }
    let family = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    let others = short_names().iter().filter(|of| family(&of.name) == family(&short.name));
    let fitting = others.filter(|of| of.variants.iter().any(|of| of.runs(fit)));
    // Models, and not their variants: of more parameters is the one whose smallest is larger.
    if let Some(other) = fitting.max_by_key(|of| of.variants.iter().map(|of| of.bytes).min()) {
        what += &format!("; {} fits", other.name);
    }
    what += &format!("; {}:VARIANT takes one all the same", short.name);
    Error::hub(HubFault::Space, what)
}

/// The variants, with their sizes.
fn told(short: &ShortName) -> String {
    let told = short.variants.iter().map(|of| format!("{} ({})", of.variant, Size(of.bytes)));
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::choose;
    use super::super::name::Name;
    use super::*;

    /// Types of the table by their bits of a weight.
    const BITS: [&str; 8] = ["Q2_K", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"];

    #[test]
    fn the_table_has_its_form() {
        let table: Vec<ShortName> = json::typed(include_str!("short.json"), LIMITS).unwrap();
        let mut names = HashSet::new();
        for short in &table {
            for name in [&short.name].into_iter().chain(&short.aliases) {
                assert!(names.insert(name.clone()), "{name} is there twice");
                assert_eq!(Name::parse(name).unwrap(), Name::Short { name: name.clone(), variant: None });
            }
            let forms = |form| short.variants.iter().filter(move |of| of.form == form);
            let of_cpu = short.variants.iter().any(|of| of.form != ShortForm::Mlx);
            assert!(of_cpu, "{}: nothing for the CPU", short.name);
            let mut variants = HashSet::new();
            for of in &short.variants {
                assert!(variants.insert(of.variant.to_lowercase()), "{}: {} twice", short.name, of.variant);
                let typed = format!("{}:{}", short.name, of.variant);
                let name = Name::Short { name: short.name.clone(), variant: Some(of.variant.clone()) };
                assert_eq!(Name::parse(&typed).unwrap(), name);
                of.id().unwrap();
                let is_mlx = of.repository.starts_with("mlx-community/") || of.repository.contains("-MLX-");
                assert_eq!(is_mlx, of.form == ShortForm::Mlx, "{typed}");
                assert!(!is_mlx || of.repository.contains(&of.variant), "{typed}: {}", of.repository);
                let is_float = ["F32", "F16", "BF16"].contains(&&*of.variant);
                assert!(of.form != ShortForm::Safetensors || is_float, "{typed}");
                assert!((50_000_000..100_000_000_000).contains(&of.bytes), "{typed}");
            }
            // The one that is preferred, then the others as they are where nothing has a table.
            let gguf: Vec<&ShortVariant> = forms(ShortForm::Gguf).collect();
            let places = gguf.iter().map(|of| choose::place(&of.variant).unwrap_or_else(|| panic!("{of:?}")));
            let places: Vec<usize> = places.collect();
            assert!(places.iter().skip(1).is_sorted(), "{}", short.name);
            assert!(gguf.iter().all(|of| fit::is_type(&of.variant)), "{}", short.name);
            let is_quantized = !gguf.is_empty() && !short.name.starts_with("gpt-oss:");
            // More bits are more bytes.
            let by_bits = |of: &&ShortVariant| BITS.iter().position(|bits| *bits == of.variant);
            let mut sized: Vec<&ShortVariant> = gguf.into_iter().filter(|of| by_bits(of).is_some()).collect();
            sized.sort_by_key(by_bits);
            assert!(sized.is_sorted_by(|a, b| a.bytes < b.bytes), "{}: {sized:?}", short.name);
            assert!(!sized.is_empty() || !is_quantized, "{}", short.name);
            let mut mlx: Vec<&ShortVariant> = forms(ShortForm::Mlx).collect();
            mlx.sort_by_key(|of| of.variant.clone());
            assert!(mlx.is_sorted_by(|a, b| a.bytes < b.bytes), "{}: {mlx:?}", short.name);
        }
        // Each family by itself is one of its models.
        for short in &table {
            let (family, size) = short.name.split_once(':').unwrap();
            assert!(!size.is_empty());
            let of = called(family).unwrap();
            assert_eq!(of.name.split(':').next(), Some(family));
        }
        let families = "qwen3 qwen3.5 qwen3-coder qwen2.5 deepseek-r1 llama3.1 gemma4 gemma3 gemma2 gpt-oss lfm2 lfm2.5 \
             glm-4 phi4 mistral-small devstral smollm2 granite4 nomic-embed-text bge-m3 embeddinggemma \
             qwen3-embedding bge-reranker-v2-m3";
        for family in families.split_whitespace() {
            assert!(names.contains(family), "{family}");
        }
    }

    #[test]
    fn what_fits_is_taken_in_the_form_that_runs_best() {
        let short = called("qwen3").unwrap();
        assert_eq!(short.name, "qwen3:8b");
        let fit = |bytes, mlx| Fit { memory: Some(bytes), mlx, ..Fit::default() };
        let taken = |asked: Option<&str>, fit| {
            best(short, asked, fit).map(|(of, passed)| (&*of.variant, passed.map(|passed| passed.variant)))
        };
        let passed = |variant: &str| Some(variant.to_owned());
        assert_eq!(taken(None, Fit::default()).unwrap(), ("Q4_K_M", None));
        assert_eq!(taken(None, fit(64_000_000_000, false)).unwrap(), ("Q4_K_M", None));
        assert_eq!(taken(None, fit(5_500_000_000, false)).unwrap(), ("Q3_K_M", passed("Q4_K_M")));
        assert_eq!(taken(None, fit(64_000_000_000, true)).unwrap(), ("4bit", None));
        assert_eq!(taken(None, fit(5_500_000_000, true)).unwrap(), ("4bit", None));
        assert_eq!(taken(Some("q8_0"), fit(5_500_000_000, true)).unwrap(), ("Q8_0", None));
        // What MLX has no room for runs on the CPU, where that may have more.
        let beside = |gpu, cpu| Fit { cpu: Some(cpu), ..fit(gpu, true) };
        assert_eq!(taken(None, beside(5_500_000_000, 64_000_000_000)).unwrap(), ("4bit", None));
        assert_eq!(taken(None, beside(4_000_000_000, 64_000_000_000)).unwrap(), ("Q4_K_M", passed("4bit")));
        assert_eq!(taken(None, beside(4_000_000_000, 5_500_000_000)).unwrap(), ("Q3_K_M", passed("4bit")));
        let error = taken(None, beside(4_000_000_000, 4_500_000_000)).unwrap_err().to_string();
        assert!(error.starts_with("no variant of qwen3:8b fits the 4.50 GB of memory"), "{error}");
        let error = taken(None, fit(4_000_000_000, false)).unwrap_err().to_string();
        assert!(error.starts_with("no variant of qwen3:8b fits the 4.00 GB of memory that there are here: there are Q4_K_M (5.03 GB), "));
        let end = "; the smallest, Q3_K_M, needs about 4.91 GB; qwen3:4b fits; qwen3:8b:VARIANT takes one all the same";
        assert!(error.ends_with(end), "{error}");
        // The larger model, though more bits of the smaller one are larger.
        let error =
            best(called("qwen3:14b").unwrap(), None, Fit { memory: Some(5_200_000_000), ..Fit::default() });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("; qwen3:8b fits; "), "{error}");
        // There is no smaller one.
        let error = taken(None, fit(300_000_000, false)).unwrap_err().to_string();
        assert!(error.ends_with("needs about 4.91 GB; qwen3:8b:VARIANT takes one all the same"), "{error}");
        let error = taken(Some("Q2_K"), Fit::default()).unwrap_err().to_string();
        assert!(error.starts_with("qwen3:8b has no variant \"Q2_K\": there are Q4_K_M (5.03 GB)"), "{error}");
    }

    #[test]
    fn what_others_write_is_meant_too() {
        for (written, name, variant) in [
            ("qwen3:latest", "qwen3:8b", None),
            ("qwen3:0.6b-q8_0", "qwen3:0.6b", Some("Q8_0")),
            ("llama3.2:1b-instruct-q4_k_m", "llama3.2:1b", Some("Q4_K_M")),
            ("llama3.1:8b-instruct-fp16", "llama3.1:8b", Some("FP16")),
            ("codellama:7b-instruct", "codellama:7b", None),
            ("qwen3:4b-instruct", "qwen3:4b-instruct", None),
            ("qwen3:4b-instruct-q8_0", "qwen3:4b-instruct", Some("Q8_0")),
            ("deepseek-r1:1.5b-qwen-distill-q4_k_m", "deepseek-r1:1.5b", Some("Q4_K_M")),
            ("qwen3-8b", "qwen3:8b", None),
            ("llama3.2-1b-instruct", "llama3.2:1b", None),
            ("gpt-oss-20b", "gpt-oss:20b", None),
            ("qwen2.5-coder-7b-instruct", "qwen2.5-coder:7b", None),
            ("olmo-3-7b-think-q8_0", "olmo-3:7b-think", Some("Q8_0")),
            ("gemma2:2b-instruct-q4_k_m", "gemma2:2b", Some("Q4_K_M")),
            ("starcoder2:15b-instruct-q4_k_m", "starcoder2:15b-instruct", Some("Q4_K_M")),
            ("qwen3:30b-q4_k_m", "qwen3:30b-a3b", Some("Q4_K_M")),
        ] {
            let (short, of) = meant(written, None).unwrap();
            assert_eq!((&*short.name, of.as_deref()), (name, variant), "{written}");
        }
        let (short, of) = meant("qwen3-8b", Some("Q8_0")).unwrap();
        assert_eq!((&*short.name, of.as_deref()), ("qwen3:8b", Some("Q8_0")));
        let (short, of) = meant("llama3.2:1b-instruct", Some("Q8_0")).unwrap();
        assert_eq!((&*short.name, of.as_deref()), ("llama3.2:1b", Some("Q8_0")));
        assert!(meant("llama3.2:1b-instruct-q4_k_m", Some("Q8_0")).is_err());
        // Other weights, and no other form of these.
        for other in [
            "starcoder2:7b-instruct",
            "gemma3:27b-it-qat",
            "llama3.1:8b-text-q4_0",
            "llama3.1:8b-base",
            "qwen3:8b-q4_0-x",
        ] {
            assert!(meant(other, None).is_err(), "{other}");
        }
        let error = |name: &str| meant(name, None).unwrap_err().to_string();
        let of_family = error("qwen3:9b");
        assert!(of_family.contains("; qwen3:0.6b, qwen3:1.7b, qwen3:4b, qwen3:8b,"), "{of_family}");
        assert!(!of_family.contains("qwen2"), "{of_family}");
        for (typed, near) in [
            ("qwen", "qwen3"),
            ("lama3.2:1b", "llama3.2:1b"),
            ("mistal", "mistral"),
            ("smolm2:135m", "smollm2:135m"),
        ] {
            let error = error(typed);
            assert!(error.contains(near) && error.contains(" called nearly so; "), "{error}");
            assert!(error.len() < 300, "{error}");
        }
        assert!(!error("zzz").contains("nearly"));
        assert!(error("zzz").ends_with(&format!(
            "has all {}, and org/name is any repository of the hub",
            short_names().len()
        )));
        for sees in ["llava", "llama3.2-vision", "qwen3-vl:8b", "minicpm-v"] {
            assert!(error(sees).contains("pictures are not read"), "{sees}");
        }
    }

    #[test]
    fn what_embeds_and_ranks_is_taken_in_the_form_that_there_is() {
        let taken = |name: &str, memory, mlx| {
            best(called(name).unwrap(), None, Fit { memory: Some(memory), mlx, ..Fit::default() })
                .map(|(of, _)| (&*of.variant, of.within()))
        };
        for mlx in [false, true] {
            assert_eq!(taken("bge-reranker-v2-m3", 64_000_000_000, mlx).unwrap(), ("F32", None));
            assert_eq!(taken("nomic-embed-text", 64_000_000_000, mlx).unwrap(), ("F16", Some("F16")));
        }
        // The next of them where the first does not fit, whatever its form.
        assert_eq!(taken("nomic-embed-text", 500_000_000, false).unwrap(), ("Q8_0", Some("Q8_0")));
        let error = taken("bge-reranker-v2-m3", 1_000_000_000, false).unwrap_err().to_string();
        assert!(
            error.contains("there are F32 (2.27 GB); the smallest, F32, needs about 2.82 GB; "),
            "{error}"
        );
    }

    #[test]
    fn of_what_is_here_what_fits_comes_first() {
        let order = |fit| {
            let all = in_order(called("qwen3:8b").unwrap(), None, fit).unwrap();
            all.iter().map(|of| &*of.variant).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(Fit::default()), "Q4_K_M Q5_K_M Q6_K Q8_0 Q3_K_M 4bit 8bit");
        // By what they need, which MLX has more of for GGUF files.
        assert_eq!(
            order(Fit { memory: Some(7_000_000_000), ..Fit::default() }),
            "Q4_K_M Q5_K_M Q3_K_M 4bit Q6_K Q8_0 8bit"
        );
        assert_eq!(
            order(Fit { memory: Some(7_000_000_000), mlx: true, ..Fit::default() }),
            "4bit Q4_K_M Q5_K_M 8bit Q3_K_M Q8_0 Q6_K"
        );
    }
}
