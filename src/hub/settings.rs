//! What the environment says of the hub, by the names that Python's `huggingface_hub` has for it.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::address::without_credentials;
use crate::error::{Error, HubFault, Result};
use crate::files;

/// Where models are kept, and how the hub is asked.
#[derive(Clone)]
pub struct Settings {
    /// The folder of repositories: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `huggingface` in `XDG_CACHE_HOME`, else in
    /// `~/.cache/huggingface`.
    pub cache: PathBuf,
    /// The hub's address without a slash at its end: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: String,
    /// What says who asks: `HF_TOKEN`, else the file that `HF_TOKEN_PATH` names, else `token` in `HF_HOME`.
    pub token: Option<String>,
    /// Whether nothing is to be asked for: `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    pub offline: bool,
    /// Folders of LM Studio's models, as far as they are there.
    pub lm_studio: Vec<PathBuf>,
    /// Folders of Ollama's models, as far as they are there.
    pub ollama: Vec<PathBuf>,
}

/// The hub's own address.
const ENDPOINT: &str = "https://huggingface.co";

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("cache", &self.cache)
            .field("endpoint", &without_credentials(&self.endpoint))
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("lm_studio", &self.lm_studio)
            .field("ollama", &self.ollama)
            .finish()
    }
}

impl Settings {
    /// What this process's environment says.
    ///
    /// # Errors
    /// [`Error::Hub`] where there is no home, and for a token that is none.
    pub fn from_env() -> Result<Self> {
        Self::from(&|name| std::env::var_os(name))
    }

    /// What `variable` says; empty is absent.
    fn from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let home = set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from);
        let path = |name: &str| set(name).map(|value| expanded(&PathBuf::from(value), home.as_deref()));
        let in_home = |folder: &str| home.as_ref().map(|home| home.join(folder));
        let base = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| in_home(".cache"));
            caches.map(|caches| caches.join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| base.as_ref().map(|base| base.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::hub(
                HubFault::Absent,
                "there is no home directory to keep models in: set HF_HOME to a folder",
            )
        })?;
        let is_true = |name: &str| {
            text(name).is_some_and(|value| matches!(&*value.to_uppercase(), "1" | "ON" | "YES" | "TRUE"))
        };
        let implicit = !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let file = path("HF_TOKEN_PATH").or_else(|| base.map(|base| base.join("token")));
        let given = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let token = given.or_else(|| file.as_deref().and_then(token_in)).filter(|_| implicit);
        let token = token.as_deref().map(checked_token).transpose()?;
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let there =
            |folders: Vec<Option<PathBuf>>| folders.into_iter().flatten().filter(|path| path.is_dir());
        let studio = in_home(".lmstudio-home-pointer").and_then(|pointer| {
            let text = files::read(&pointer, 4096).ok()?;
            Some(PathBuf::from(std::str::from_utf8(&text).ok()?.trim()).join("models"))
        });
        let lm_studio = vec![studio, in_home(".lmstudio/models"), in_home(".cache/lm-studio/models")];
        let mut lm_studio: Vec<PathBuf> = there(lm_studio).collect();
        lm_studio.dedup();
        let ollama = match path("OLLAMA_MODELS") {
            Some(path) => vec![Some(path)],
            None => vec![in_home(".ollama/models"), Some("/usr/share/ollama/.ollama/models".into())],
        };
        Ok(Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            lm_studio,
            ollama: there(ollama).collect(),
        })
    }
}

/// A path whose `~` is the home.
fn expanded(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// The token of a file.
fn token_in(path: &Path) -> Option<String> {
    const MOST: u64 = 4096;
    let bytes = files::read(path, MOST).ok()?;
    let text = String::from_utf8(bytes).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// What may stand in a header.
///
/// # Errors
/// [`Error::Hub`] where it may not; it is not repeated.
pub(crate) fn checked_token(token: &str) -> Result<String> {
    let token = token.trim();
    if token.is_empty() || token.len() > 4096 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let what = "the token holds what no token has: expected visible ASCII characters, as on \
                    https://huggingface.co/settings/tokens";
        return Err(Error::hub(HubFault::Name, what));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Settings {
        let value = |name: &str| set.iter().find(|(of, _)| *of == name).map(|(_, value)| value.into());
        Settings::from(&value).unwrap()
    }

    /// As `huggingface_hub.constants` has it.
    #[test]
    fn the_cache_lies_where_python_has_it() {
        for (set, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/f")], "/h/f/hub"),
            (&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/o")], "/o"),
            (&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HOME", "/h"), ("HF_HUB_CACHE", "")], "/h/.cache/huggingface/hub"),
        ] {
            assert_eq!(of(set).cache, Path::new(cache), "{set:?}");
        }
        assert!(Settings::from(&|_| None).is_err());
    }

    #[test]
    fn the_token_comes_from_the_environment_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).token, None);
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
        assert_eq!(of(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        assert_eq!(of(&[("HF_HOME", home), ("HF_TOKEN", "hf_env")]).token.as_deref(), Some("hf_env"));
        let elsewhere = dir.path().join("other");
        std::fs::write(&elsewhere, "hf_other").unwrap();
        let set = [("HF_HOME", home), ("HF_TOKEN_PATH", elsewhere.to_str().unwrap())];
        assert_eq!(of(&set).token.as_deref(), Some("hf_other"));
        assert!(!format!("{:?}", of(&set)).contains("hf_other"));
        let hostile = |name: &str| match name {
            "HF_HOME" => Some(home.into()),
            "HF_TOKEN" => Some("a\r\nHost: b".into()),
            _ => None,
        };
        assert!(Settings::from(&hostile).unwrap_err().to_string().starts_with("the token holds"));
    }

    #[test]
    fn the_endpoint_and_what_is_offline() {
        let settings =
            of(&[("HOME", "/h"), ("HF_ENDPOINT", "http://127.0.0.1:1/"), ("HF_HUB_OFFLINE", "yes")]);
        assert_eq!((&*settings.endpoint, settings.offline), ("http://127.0.0.1:1", true));
        let settings = of(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "0")]);
        assert_eq!((&*settings.endpoint, settings.offline), (ENDPOINT, false));
        assert!(of(&[("HOME", "/h"), ("TRANSFORMERS_OFFLINE", "ON")]).offline);
    }
}
