//! Models that other programs have downloaded: LM Studio's and Ollama's. They are read and nothing else.

use std::path::{Path, PathBuf};

use super::cache::{names, walk};
use super::choose::{self, Entry, Form};
use super::name::{RepositoryId, is_hex};
use super::settings::Settings;
use crate::json::{self, Value};
use crate::weights::gguf;

/// A model of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Whose it is.
    pub origin: Origin,
    /// What it is called by there: `org/name`, `qwen3:8b`.
    pub name: String,
    /// What its files are.
    pub form: Form,
    /// The directory, or the first GGUF file.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Where a model was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The Hugging Face cache.
    Hub,
    /// LM Studio's folder.
    LmStudio,
    /// Ollama's folder.
    Ollama,
}

impl Origin {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::LmStudio => "LM Studio",
            Self::Ollama => "Ollama",
        }
    }
}

/// All that there are.
pub fn foreign(settings: &Settings) -> Vec<Foreign> {
    let mut all: Vec<Foreign> = settings.lm_studio.iter().flat_map(|root| lm_studio(root)).collect();
    all.extend(settings.ollama.iter().flat_map(|root| ollama(root)));
    all
}

/// `publisher/repository/` with GGUF files or a model directory in it.
fn lm_studio(root: &Path) -> Vec<Foreign> {
    let mut all = Vec::new();
    for publisher in names(root).unwrap_or_default() {
        for repository in names(&root.join(&publisher)).unwrap_or_default() {
            let name = format!("{publisher}/{repository}");
            if RepositoryId::new(&name).is_err() {
                continue;
            }
            let folder = root.join(&publisher).join(&repository);
            let mut files = Vec::new();
            walk(&folder, "", 2, &mut |path, bytes| files.push((path.to_owned(), bytes)));
            files.sort();
            let entries: Vec<Entry<'_>> =
                files.iter().map(|(path, bytes)| Entry { path, bytes: *bytes }).collect();
            for choice in choose::all(&entries) {
                let bytes = choice.files.iter().map(|&at| files[at].1).fold(0, u64::saturating_add);
                let path = super::cache::place(&folder, &choice.form);
                all.push(Foreign {
                    origin: Origin::LmStudio,
                    name: name.clone(),
                    form: choice.form,
                    path,
                    bytes,
                });
            }
        }
    }
    all
}

/// `manifests/HOST/NAMESPACE/MODEL/TAG` names a blob that is a GGUF file.
fn ollama(root: &Path) -> Vec<Foreign> {
    let manifests = root.join("manifests");
    let mut paths = Vec::new();
    walk(&manifests, "", 4, &mut |path, _| paths.push(path.to_owned()));
    paths.sort();
    let read = |path: &String| {
        let parts: Vec<&str> = path.split('/').collect();
        let [host, namespace, model, tag] = parts[..] else { return None };
        let name = match (host, namespace) {
            ("registry.ollama.ai", "library") => format!("{model}:{tag}"),
            ("registry.ollama.ai", _) => format!("{namespace}/{model}:{tag}"),
            _ => format!("{host}/{namespace}/{model}:{tag}"),
        };
        let (blob, bytes) = model_layer(root, &manifests.join(path))?;
        // What is no GGUF file, or one that is not here, cannot be run.
        gguf::is_gguf(&blob).ok().filter(|is| *is)?;
        let first = blob.file_name()?.to_str()?.to_owned();
        let form = Form::Gguf { variant: tag.to_owned(), first };
        Some(Foreign { origin: Origin::Ollama, name, form, path: blob, bytes })
    };
    paths.iter().filter_map(read).collect()
}

/// The blob of the layer that is the model, and its size.
fn model_layer(root: &Path, manifest: &Path) -> Option<(PathBuf, u64)> {
    const MODEL: &str = "application/vnd.ollama.image.model";
    let bytes = crate::files::read(manifest, 1 << 20).ok()?;
    let mut manifest = json::parse_object(manifest, &bytes).ok()?;
    let Some(Value::Array(layers)) = manifest.remove("layers") else { return None };
    let mut models = layers.into_iter().filter_map(|layer| {
        let Value::Object(layer) = layer else { return None };
        match (layer.get("mediaType")?, layer.get("digest")?) {
            (Value::String(kind), Value::String(digest)) if kind == MODEL => Some(digest.clone()),
            _ => None,
        }
    });
    let digest = models.next()?;
    // Several are parts whose names are gone.
    if models.next().is_some() {
        return None;
    }
    let hash = digest.strip_prefix("sha256:").filter(|hash| hash.len() == 64 && is_hex(hash))?;
    let blob = root.join("blobs").join(format!("sha256-{hash}"));
    let bytes = std::fs::metadata(&blob).ok().filter(|meta| meta.is_file())?.len();
    Some((blob, bytes))
}

/// The one that a repository's name, or a short one, stands for.
pub(crate) fn find<'a>(all: &'a [Foreign], name: &str, variant: Option<&str>) -> Option<&'a Foreign> {
    let wanted = |of: &&Foreign| match (&of.form, variant) {
        (Form::Safetensors, variant) => variant.is_none(),
        (Form::Gguf { variant: is, .. }, Some(variant)) => is.eq_ignore_ascii_case(variant),
        (Form::Gguf { .. }, None) => true,
    };
    let mut of = all.iter().filter(|of| of.name.eq_ignore_ascii_case(name)).filter(wanted);
    // Which of several, nobody said.
    of.next().filter(|_| of.next().is_none())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(path: PathBuf, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn models_of_others_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (studio, ollama) = (dir.path().join("studio"), dir.path().join("ollama"));
        write(studio.join("org/M-GGUF/M-Q4_K_M.gguf"), "GGUF1");
        write(studio.join("org/M-GGUF/mmproj-M.gguf"), "GGUF2");
        write(studio.join("mlx-community/M-4bit/config.json"), "{}");
        write(studio.join("mlx-community/M-4bit/model.safetensors"), "123");
        write(studio.join("bad--name/x/y.gguf"), "GGUF");
        let hash = "ab".repeat(32);
        let manifest = |digest: &str| {
            format!(
                r#"{{"schemaVersion": 2, "config": {{"digest": "sha256:{hash}", "size": 2}}, "layers": [
                    {{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:{hash}", "size": 1}},
                    {{"mediaType": "application/vnd.ollama.image.model", "digest": "{digest}", "size": 7}}]}}"#
            )
        };
        let manifests = ollama.join("manifests/registry.ollama.ai");
        write(ollama.join(format!("blobs/sha256-{hash}")), "GGUF...");
        write(manifests.join("library/qwen3/8b"), manifest(&format!("sha256:{hash}")));
        write(manifests.join("me/mine/latest"), manifest(&format!("sha256:{hash}")));
        write(manifests.join("library/hostile/1"), manifest("sha256:../../../../etc/passwd"));
        write(manifests.join("library/absent/1"), manifest(&format!("sha256:{}", "cd".repeat(32))));
        write(manifests.join("library/broken/1"), "{");
        let settings = Settings {
            cache: dir.path().join("hub"),
            endpoint: String::new(),
            token: None,
            offline: true,
            lm_studio: vec![studio],
            ollama: vec![ollama],
        };
        let all = foreign(&settings);
        let told: Vec<(&str, &str, u64)> =
            all.iter().map(|of| (of.origin.name(), &*of.name, of.bytes)).collect();
        let expected = [
            ("LM Studio", "mlx-community/M-4bit", 5),
            ("LM Studio", "org/M-GGUF", 5),
            ("Ollama", "qwen3:8b", 7),
            ("Ollama", "me/mine:latest", 7),
        ];
        assert_eq!(told, expected);
        assert!(find(&all, "org/m-gguf", None).unwrap().path.ends_with("org/M-GGUF/M-Q4_K_M.gguf"));
        assert!(find(&all, "org/M-GGUF", Some("q4_k_m")).is_some());
        assert!(find(&all, "org/M-GGUF", Some("Q8_0")).is_none());
        assert!(find(&all, "qwen3:8b", None).unwrap().path.ends_with(format!("sha256-{hash}")));
        assert!(find(&all, "qwen3:4b", None).is_none());
    }
}
