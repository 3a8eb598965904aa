//! What a person types for a model: a path, a repository of the hub, or a short name.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, HubFault, Result};
use crate::files;
use crate::json::quote;

/// What a model is asked for by.
///
/// - What exists as a file or directory, or looks like a path, is one.
/// - `org/name[@revision][:VARIANT]` is a repository of the hub. A revision is a branch, a tag or a commit; a
///   variant is what a GGUF file's name ends in, such as `Q4_K_M`, or the whole of that name.
/// - `model[:size][:VARIANT]` is a [short name](super::short_names).
/// - `host/namespace/model:tag` is a model that Ollama has of another registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A file or directory.
    Path(PathBuf),
    /// A repository of the hub.
    Repository {
        /// Which.
        id: RepositoryId,
        /// The revision, where it is not the hub's `main`.
        revision: Option<String>,
        /// The variant.
        variant: Option<String>,
    },
    /// A name of the table.
    Short {
        /// `qwen3` or `qwen3:8b`.
        name: String,
        /// The variant.
        variant: Option<String>,
    },
    /// A model of Ollama's, of another registry than its own.
    Ollama {
        /// `host/namespace/model`.
        name: String,
        /// What follows the colon.
        tag: String,
    },
}

/// `org/name`, checked: it is safe as a part of a path and of an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// Checks a repository's name.
    ///
    /// # Errors
    /// [`Error::Hub`] where it is none.
    pub fn new(text: &str) -> Result<Self> {
        match text.split_once('/') {
            Some((org, name)) if is_part(org) && is_part(name) => Ok(Self(text.to_owned())),
            _ => {
                let what = format!(
                    "{} is no repository: expected org/name, of letters, digits, '-', '_' and '.'",
                    quote(text)
                );
                Err(Error::hub(HubFault::Name, what))
            }
        }
    }

    /// The name of its folder in the cache, `models--org--name`.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }

    /// What a folder of the cache is called by.
    pub(crate) fn of_folder(folder: &str) -> Option<Self> {
        let (org, name) = folder.strip_prefix("models--")?.split_once("--")?;
        Self::new(&format!("{org}/{name}")).ok()
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One side of `org/name`, by the hub's own rules: no `--` and no `..`, no `-` and no `.` at an end.
fn is_part(text: &str) -> bool {
    const MOST: usize = 96;
    let edges = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    (1..=MOST).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && edges(text.chars().next())
        && edges(text.chars().last())
        && !text.contains("--")
        && !text.contains("..")
}

/// A branch, a tag or a commit: `main`, `v1.0`, `refs/pr/3`.
pub(crate) fn is_revision(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && !part.contains("..") && !part.starts_with('-');
    text.len() <= 255
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && text.split('/').all(part)
}

/// A commit's hash.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Whether these are hexadecimal digits as hashes have them.
pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A variant: `Q4_K_M`, or the name of a file without `.gguf`.
fn is_variant(text: &str) -> bool {
    (1..=200).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !text.contains("..")
}

impl Name {
    /// Reads what was typed.
    ///
    /// # Errors
    /// [`Error::Hub`] where it is neither a path nor a name.
    pub fn parse(text: &str) -> Result<Self> {
        // Within a bundle, too.
        if files::is_there(Path::new(text)) {
            return Ok(Self::Path(text.into()));
        }
        let text = without_host(text).unwrap_or(text);
        let wrong = |what: &str| {
            let what = format!(
                "{} names no model: {what}; expected a directory or GGUF file that exists, org/name[@revision][:VARIANT], \
                 or a short name such as qwen3:8b",
                quote(text)
            );
            Error::hub(HubFault::Name, what)
        };
        if without_host(text).is_some() {
            return Err(wrong("an address stands before another one"));
        }
        if looks_like_a_path(text) {
            return Ok(Self::Path(text.into()));
        }
        if let Some(name) = Self::ollama(text) {
            return Ok(name);
        }
        let (id, rest) = text.split_at(text.find(['@', ':']).unwrap_or(text.len()));
        if !id.contains('/') {
            return Self::short(text).ok_or_else(|| wrong("no file has this name"));
        }
        let id = RepositoryId::new(id).map_err(|_| wrong("it is no repository"))?;
        let (revision, variant) = match rest.split_once(':') {
            Some((revision, variant)) => (revision, Some(variant)),
            None => (rest, None),
        };
        let revision = match revision.strip_prefix('@') {
            Some(revision) if is_revision(revision) => Some(revision.to_owned()),
            Some(_) => return Err(wrong("after '@' comes a branch, a tag or a commit")),
            None => None,
        };
        if variant.is_some_and(|variant| !is_variant(variant)) {
            return Err(wrong("after ':' comes a variant, such as Q4_K_M"));
        }
        Ok(Self::Repository { id, revision, variant: variant.map(str::to_owned) })
    }

    /// `host/namespace/model:tag`; the host may have a port.
    fn ollama(text: &str) -> Option<Self> {
        let (name, tag) = text.rsplit_once(':')?;
        let mut parts = name.split('/');
        let (host, namespace, model) = (parts.next()?, parts.next()?, parts.next()?);
        let (host, port) = host.split_once(':').unwrap_or((host, "0"));
        let is_port = (1..=5).contains(&port.len()) && port.bytes().all(|digit| digit.is_ascii_digit());
        let valid = parts.next().is_none() && is_port && is_variant(tag);
        let valid = valid && [host, namespace, model].into_iter().all(is_part);
        valid.then(|| Self::Ollama { name: name.to_owned(), tag: tag.to_owned() })
    }

    /// `model[:size][:VARIANT]`.
    fn short(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let part = |text: &&str| is_part(text);
        let (name, variant) = match parts[..] {
            [model] => (model.to_owned(), None),
            [model, size] => (format!("{model}:{size}"), None),
            [model, size, variant] => (format!("{model}:{size}"), Some(variant.to_owned())),
            _ => return None,
        };
        let valid = parts.iter().take(2).all(part) && variant.as_deref().is_none_or(is_variant);
        valid.then_some(Self::Short { name: name.to_ascii_lowercase(), variant })
    }
}

/// What follows the address of the hub; none where it is not there.
fn without_host(text: &str) -> Option<&str> {
    let hosts = ["https://huggingface.co/", "huggingface.co/", "https://hf.co/", "hf.co/", "hf://"];
    hosts.iter().find_map(|host| text.strip_prefix(host))
}

/// What no name of a repository looks like.
fn looks_like_a_path(text: &str) -> bool {
    let starts = ["/", "./", "../", "~/", "\\"].iter().any(|start| text.starts_with(start));
    let deep = !text.contains(['@', ':']) && text.matches('/').count() > 1;
    starts
        || text.is_empty()
        || text == "."
        || text == ".."
        || deep
        || text.ends_with('/')
        || text.ends_with(".gguf")
        // Of a repository it is a part of the name; in small letters, as short names are kept, it would be another file's.
        || !text.contains('/') && text.to_ascii_lowercase().ends_with(".gguf")
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Repository { id, revision, variant } => {
                write!(f, "{id}")?;
                revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
                variant.iter().try_for_each(|variant| write!(f, ":{variant}"))
            }
            Self::Short { name, variant } => {
                f.write_str(name)?;
                variant.iter().try_for_each(|variant| write!(f, ":{variant}"))
            }
            Self::Ollama { name, tag } => write!(f, "{name}:{tag}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(id: &str, revision: Option<&str>, variant: Option<&str>) -> Name {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Name::Repository { id: RepositoryId(id.to_owned()), revision: own(revision), variant: own(variant) }
    }

    #[test]
    fn names_are_told_apart() {
        let short = |name: &str, variant: Option<&str>| Name::Short {
            name: name.to_owned(),
            variant: variant.map(str::to_owned),
        };
        let ollama = |name: &str, tag: &str| Name::Ollama { name: name.to_owned(), tag: tag.to_owned() };
        for (text, expected) in [
            ("Qwen/Qwen3-0.6B", repository("Qwen/Qwen3-0.6B", None, None)),
            ("hf.co/Qwen/Qwen3-0.6B", repository("Qwen/Qwen3-0.6B", None, None)),
            ("https://huggingface.co/Qwen/Qwen3-0.6B", repository("Qwen/Qwen3-0.6B", None, None)),
            ("a/b:Q4_K_M", repository("a/b", None, Some("Q4_K_M"))),
            ("a/b@v1.0", repository("a/b", Some("v1.0"), None)),
            ("a/b@refs/pr/3:Q8_0", repository("a/b", Some("refs/pr/3"), Some("Q8_0"))),
            ("qwen3", short("qwen3", None)),
            ("Qwen3:8B", short("qwen3:8b", None)),
            ("qwen3:8b:Q8_0", short("qwen3:8b", Some("Q8_0"))),
            ("registry.example.com/me/mine:v1", ollama("registry.example.com/me/mine", "v1")),
            ("localhost:5000/me/mine:latest", ollama("localhost:5000/me/mine", "latest")),
            ("src", Name::Path("src".into())),
            ("src/hub", Name::Path("src/hub".into())),
            ("./a/b", Name::Path("./a/b".into())),
            ("/nowhere/b", Name::Path("/nowhere/b".into())),
            ("a/b/c", Name::Path("a/b/c".into())),
            ("a/b.gguf", Name::Path("a/b.gguf".into())),
            ("a/b.GGUF", repository("a/b.GGUF", None, None)),
            ("https://huggingface.co/a/b-iMat.GGUF", repository("a/b-iMat.GGUF", None, None)),
            ("A.GGUF", Name::Path("A.GGUF".into())),
            ("", Name::Path("".into())),
        ] {
            assert_eq!(Name::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["a/b:Q4_K_M", "a/b@main", "a/b@x/y:Q8_0", "qwen3:8b", "qwen3:8b:Q8_0", "h:1/a/b:c"] {
            assert_eq!(Name::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (text, what) in [
            ("a b/c", "it is no repository"),
            ("a--b/c", "it is no repository"),
            ("a/..b", "it is no repository"),
            ("a/b.", "it is no repository"),
            ("a/é", "it is no repository"),
            ("a/b@", "after '@' comes"),
            ("a/b@../x", "after '@' comes"),
            ("a/b@x//y", "after '@' comes"),
            ("a/b:", "after ':' comes"),
            ("a/b:x/y", "after ':' comes"),
            ("host:port/a/b:x", "no file has this name"),
            ("host/a/b/c:x", "it is no repository"),
            ("host/../b:x", "it is no repository"),
            ("a/b:..", "after ':' comes"),
            ("no name", "no file has this name"),
            ("a:b:c:d", "no file has this name"),
            ("a:", "no file has this name"),
            ("hf.co/hf.co/org/name", "an address stands before another one"),
            ("hf.co/hf.co/a", "an address stands before another one"),
            ("https://hf.co/huggingface.co/a:Q8_0", "an address stands before another one"),
            ("hf://hf.co/a/b:tag", "an address stands before another one"),
        ] {
            let error = Name::parse(text).unwrap_err();
            assert!(matches!(error, Error::Hub { fault: HubFault::Name, .. }), "{text}: {error:?}");
            let error = error.to_string();
            assert!(error.contains(what) && error.contains("expected a directory"), "{text}: {error}");
        }
    }

    #[test]
    fn folders_of_the_cache_are_names_and_back() {
        for text in ["Qwen/Qwen3-0.6B", "a_/_b", "a/b"] {
            let id = RepositoryId::new(text).unwrap();
            assert_eq!(RepositoryId::of_folder(&id.folder()), Some(id));
        }
        for folder in ["models--gpt2", "datasets--a--b", "models--a--b--c", "models--..--b", "models--a--"] {
            assert_eq!(RepositoryId::of_folder(folder), None, "{folder}");
        }
    }
}
