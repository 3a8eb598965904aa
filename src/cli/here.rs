//! The models on this machine, and their names as words for shells.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use backstop::hub::{self, Cache, Form, Origin, Settings, ShortVariant, short_names};
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};

/// Whether the shell that asks for words quotes them.
pub static QUOTED: AtomicBool = AtomicBool::new(false);

/// A model on this machine.
pub struct Row {
    pub name: String,
    pub form: &'static str,
    pub bytes: u64,
    /// Whether all of its files are here.
    pub whole: bool,
    pub origin: Origin,
    pub path: PathBuf,
}

impl Row {
    /// The short name that stands for it, where there is one.
    pub fn short_name(&self) -> Option<&'static str> {
        let (id, variant) = self.name.split_once(':').unwrap_or((&self.name, ""));
        let is_it = |of: &ShortVariant| {
            of.repository.eq_ignore_ascii_case(id)
                && of.within().is_none_or(|own| own.eq_ignore_ascii_case(variant))
        };
        let of = short_names().iter().find(|short| short.variants.iter().any(is_it))?;
        Some(&of.name)
    }

    /// When it came: when the file was written, or of several the directory.
    pub fn modified(&self) -> Option<SystemTime> {
        self.path.metadata().ok()?.modified().ok()
    }
}

/// The names of all models that can be run; none where they cannot be listed.
pub fn names() -> Vec<String> {
    let rows = Settings::from_env().map_err(Into::into).and_then(|settings| rows(&settings));
    rows.unwrap_or_default().into_iter().filter(|row| row.whole).map(|row| row.name).collect()
}

/// All models, those of the cache first.
pub fn rows(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let form = |form: &Form| match form {
        Form::Safetensors => "safetensors",
        Form::Gguf { .. } => "GGUF",
    };
    let mut rows = Vec::new();
    for cached in Cache::new(&settings.cache).list()? {
        let revision = cached.revision.as_ref().map(|revision| format!("@{revision}")).unwrap_or_default();
        let variant = variant(&cached.form);
        let name = format!("{}{revision}{variant}", cached.id);
        rows.push(Row {
            name,
            form: form(&cached.form),
            bytes: cached.bytes,
            whole: cached.whole,
            origin: Origin::Hub,
            path: cached.path,
        });
    }
    for other in hub::foreign(settings) {
        let variant = if other.origin == Origin::Ollama { String::new() } else { variant(&other.form) };
        let name = format!("{}{variant}", other.name);
        rows.push(Row {
            name,
            form: form(&other.form),
            bytes: other.bytes,
            whole: true,
            origin: other.origin,
            path: other.path,
        });
    }
    Ok(rows)
}

/// `:Q4_K_M`.
fn variant(form: &Form) -> String {
    match form {
        Form::Gguf { variant, .. } => format!(":{variant}"),
        Form::Safetensors => String::new(),
    }
}

/// The names of models that are on this machine, the short names, and files.
pub fn models(typed: &OsStr) -> Vec<CompletionCandidate> {
    let begun = typed.to_string_lossy();
    let here = names();
    let mut words: Vec<CompletionCandidate> = here
        .iter()
        .filter(|name| name.starts_with(&*begun))
        .map(|name| CompletionCandidate::new(name).help(Some("on this machine".into())))
        .collect();
    let short = short_names().iter().filter(|short| short.name.starts_with(&*begun));
    words.extend(short.map(|short| CompletionCandidate::new(&short.name).help(Some("a short name".into()))));
    words.extend(PathCompleter::any().complete(typed));
    // What a shell that puts words in as they are would take for more than a word stays to be typed.
    let quoted = QUOTED.load(Ordering::Relaxed);
    let may = |word: &str| if quoted { !word.contains(char::is_control) } else { is_plain(word) };
    words.retain(|word| word.get_value().to_str().is_some_and(may));
    words
}

/// Whether a shell takes a word for itself.
fn is_plain(word: &str) -> bool {
    word.chars().all(|c| c.is_alphanumeric() || "._/:@=+,~-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_complete() {
        let words = models(OsStr::new("qwen3:0"));
        assert!(words.iter().any(|word| word.get_value() == "qwen3:0.6b"), "{words:?}");
        assert!(!words.iter().any(|word| word.get_value() == "qwen3:8b"), "{words:?}");
        for word in ["a b", "$(touch x)", "`x`", "a;b", "a'b", "a\nb"] {
            assert!(!is_plain(word), "{word}");
        }
    }
}
