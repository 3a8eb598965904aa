//! Short names: a table of models that people run, each with the repositories and variants that there are of it.
//!
//! The table is `short.json`. Its repositories are as public sources name them; they could not be asked from where it was
//! written. Sizes help to choose and are not relied on: what is downloaded has the size that the hub says.

use std::sync::LazyLock;

use serde::Deserialize;

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
}

impl ShortVariant {
    /// The repository.
    pub(crate) fn id(&self) -> Result<RepositoryId> {
        RepositoryId::new(&self.repository)
    }

    /// The variant within the repository, where it has several.
    pub(crate) fn within(&self) -> Option<&str> {
        (self.form == ShortForm::Gguf).then_some(&*self.variant)
    }
}

/// What a model has to fit, and what would run it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fit {
    /// Bytes that a model may take, where that is known.
    pub memory: Option<u64>,
    /// Whether MLX would run it.
    pub mlx: bool,
}

impl Fit {
    /// Whether a model of so many bytes runs in this memory, with room for a few thousand tokens.
    pub fn holds(&self, bytes: u64) -> bool {
        self.memory.is_none_or(|memory| needs(bytes) <= memory)
    }

    /// Bytes that such a model takes at least when it runs.
    pub fn needs(&self, bytes: u64) -> u64 {
        needs(bytes)
    }

    /// Bytes of about the largest model that [`Self::holds`], where the memory is known.
    pub fn most(&self) -> Option<u64> {
        self.memory.map(|memory| memory.saturating_sub(CONTEXT) / 9 * 8)
    }
}

/// Keys, values and activations of a short context.
const CONTEXT: u64 = 256 << 20;

/// What a model of so many bytes takes at least when it runs: keys, values and activations of a short context beside the weights.
pub(crate) fn needs(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8).saturating_add(CONTEXT)
}

/// The table.
pub fn short_names() -> &'static [ShortName] {
    static TABLE: LazyLock<Vec<ShortName>> = LazyLock::new(|| {
        let limits = json::Limits { depth: 8, values: 1 << 12 };
        // A test reads it.
        json::typed(include_str!("short.json"), limits).unwrap_or_default()
    });
    &TABLE
}

/// The model of the table that is called so.
///
/// # Errors
/// [`Error::Hub`] where none is, with those that begin alike.
pub(crate) fn find(name: &str) -> Result<&'static ShortName> {
    let found =
        short_names().iter().find(|short| short.name == name || short.aliases.iter().any(|of| of == name));
    found.ok_or_else(|| {
        let model = name.split(':').next().unwrap_or(name);
        let of = |short: &&ShortName| short.name.split(':').next() == Some(model);
        let mut near: Vec<&str> = short_names().iter().filter(of).map(|short| &*short.name).collect();
        if near.is_empty() {
            near = short_names().iter().map(|short| &*short.name).collect();
        }
        let what = format!(
            "{} is no short name, and no file is called so: there are {}; org/name is any repository of the hub",
            quote(name),
            near.join(", ")
        );
        Error::hub(HubFault::NotFound, what)
    })
}

/// The variants of a model in the order in which they would be taken: what was asked for, else what fits, of the form that runs
/// best here first.
///
/// # Errors
/// [`Error::Hub`] where there is no such variant, or none that fits.
pub(crate) fn candidates<'a>(
    short: &'a ShortName,
    asked: Option<&str>,
    fit: Fit,
) -> Result<Vec<&'a ShortVariant>> {
    let all = || {
        let told = short.variants.iter().map(|of| format!("{} ({})", of.variant, Size(of.bytes)));
        told.collect::<Vec<_>>().join(", ")
    };
    if let Some(asked) = asked {
        let found = short.variants.iter().find(|of| of.variant.eq_ignore_ascii_case(asked));
        return found.map(|found| vec![found]).ok_or_else(|| {
            let what = format!("{} has no variant {}: there are {}", short.name, quote(asked), all());
            Error::hub(HubFault::NotFound, what)
        });
    }
    let mut fitting: Vec<&ShortVariant> = short.variants.iter().filter(|of| fit.holds(of.bytes)).collect();
    if fitting.is_empty() {
        let what = format!(
            "no variant of {} fits the {} of memory that there are here: {}; {}:VARIANT takes one all the same",
            short.name,
            Size(fit.memory.unwrap_or(0)),
            all(),
            short.name
        );
        return Err(Error::hub(HubFault::Space, what));
    }
    let best = if fit.mlx { ShortForm::Mlx } else { ShortForm::Gguf };
    fitting.sort_by_key(|of| of.form != best);
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::name::Name;
    use super::*;

    #[test]
    fn the_largest_model_fits_and_a_larger_one_does_not() {
        for memory in [1_u64 << 30, 8_000_000_001, u64::MAX] {
            let fit = Fit { memory: Some(memory), mlx: false };
            let most = fit.most().unwrap();
            assert!(fit.holds(most) && (memory == u64::MAX || !fit.holds(most + 18)), "{memory}: {most}");
        }
        assert_eq!(Fit { memory: Some(1 << 20), mlx: false }.most(), Some(0));
        assert_eq!(Fit::default().most(), None);
    }

    #[test]
    fn the_table_has_its_form() {
        let limits = json::Limits { depth: 8, values: 1 << 12 };
        let table: Vec<ShortName> = json::typed(include_str!("short.json"), limits).unwrap();
        assert_eq!(table.len(), 20);
        let mut names = HashSet::new();
        for short in &table {
            assert!(short.name.contains(':'), "{}", short.name);
            for name in [&short.name].into_iter().chain(&short.aliases) {
                assert!(names.insert(name.clone()), "{name} is there twice");
                assert_eq!(Name::parse(name).unwrap(), Name::Short { name: name.clone(), variant: None });
            }
            let forms = |form| short.variants.iter().filter(|of| of.form == form).count();
            assert!(forms(ShortForm::Gguf) >= 1, "{}: nothing for the CPU", short.name);
            let mut variants = HashSet::new();
            for of in &short.variants {
                assert!(variants.insert(of.variant.to_lowercase()), "{}: {} twice", short.name, of.variant);
                let typed = format!("{}:{}", short.name, of.variant);
                let name = Name::Short { name: short.name.clone(), variant: Some(of.variant.clone()) };
                assert_eq!(Name::parse(&typed).unwrap(), name);
                of.id().unwrap();
                assert_eq!(of.repository.starts_with("mlx-community/"), of.form == ShortForm::Mlx);
                assert!((100_000_000..100_000_000_000).contains(&of.bytes), "{typed}");
            }
        }
    }

    #[test]
    fn what_fits_is_taken_in_the_form_that_runs_best() {
        let short = find("qwen3").unwrap();
        assert_eq!(short.name, "qwen3:8b");
        let taken = |asked: Option<&str>, memory: Option<u64>, mlx: bool| {
            let found = candidates(short, asked, Fit { memory, mlx });
            found.map(|found| found.iter().map(|of| &*of.variant).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(taken(None, None, false).unwrap(), "Q4_K_M Q8_0 4bit");
        assert_eq!(taken(None, Some(8_000_000_000), false).unwrap(), "Q4_K_M 4bit");
        assert_eq!(taken(None, Some(8_000_000_000), true).unwrap(), "4bit Q4_K_M");
        assert_eq!(taken(Some("q8_0"), Some(8_000_000_000), true).unwrap(), "Q8_0");
        let error = taken(None, Some(4_000_000_000), false).unwrap_err().to_string();
        let expected = "no variant of qwen3:8b fits the 4.00 GB of memory that there are here: Q4_K_M (5.03 GB), Q8_0 (8.71 GB), \
             4bit (4.62 GB); qwen3:8b:VARIANT takes one all the same";
        assert!(error.starts_with(&expected[..60]) && error.ends_with("takes one all the same"), "{error}");
        let error = taken(Some("Q2_K"), None, false).unwrap_err().to_string();
        assert!(error.starts_with("qwen3:8b has no variant \"Q2_K\": there are Q4_K_M (5.03 GB)"), "{error}");
        let error = find("qwen3:9b").unwrap_err().to_string();
        assert!(error.contains("there are qwen3:0.6b, qwen3:1.7b, qwen3:4b, qwen3:8b,"), "{error}");
        assert!(find("nothing").unwrap_err().to_string().contains("smollm3:3b"));
    }
}
