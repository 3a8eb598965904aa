//! Models that other programs have downloaded: LM Studio's and Ollama's. They are read and nothing else.

use std::path::{Path, PathBuf};

use super::cache::{names, walk};
use super::choose::{self, Entry, Form};
use super::name::{RepositoryId, is_hex};
use super::origin::Origin;
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
    /// What follows the colon of the name, where it is Ollama's.
    pub tag: Option<String>,
    /// What its files are.
    pub form: Form,
    /// The directory, or the first GGUF file.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
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
                    tag: None,
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
        // A name of the hub is typed with its host and without.
        let name = match (host, namespace) {
            ("registry.ollama.ai", "library") => format!("{model}:{tag}"),
            ("registry.ollama.ai" | "hf.co" | "huggingface.co", _) => format!("{namespace}/{model}:{tag}"),
            _ => format!("{host}/{namespace}/{model}:{tag}"),
        };
        let (blob, bytes) = model_layer(root, &manifests.join(path))?;
        // What is no GGUF file, or one that is not here, cannot be run.
        gguf::is_gguf(&blob).ok().filter(|is| *is)?;
        let first = blob.file_name()?.to_str()?.to_owned();
        let form = Form::Gguf { variant: tag.to_owned(), first };
        let tag = Some(tag.to_owned());
        Some(Foreign { origin: Origin::Ollama, name, tag, form, path: blob, bytes })
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
    let mut of = all.iter().filter(|of| match &of.tag {
        Some(tag) => of.is_tagged(tag, name, variant),
        None => of.name.eq_ignore_ascii_case(name) && of.is_variant(variant),
    });
    // Which of several, nobody said.
    of.next().filter(|_| of.next().is_none())
}

impl Foreign {
    /// Whether Ollama calls it so: `qwen3:8b`, where the tag is a part of a short name, or `org/name:TAG`, where it is what a
    /// variant is elsewhere. Without a tag it is `latest`.
    fn is_tagged(&self, tag: &str, name: &str, variant: Option<&str>) -> bool {
        let (model, asked) = match (variant, name.split_once(':')) {
            (Some(variant), _) => (name, variant),
            (None, Some(apart)) => apart,
            (None, None) => (name, "latest"),
        };
        let own = self.name.strip_suffix(tag).and_then(|rest| rest.strip_suffix(':'));
        own.is_some_and(|own| own.eq_ignore_ascii_case(model)) && tag.eq_ignore_ascii_case(asked)
    }

    fn is_variant(&self, asked: Option<&str>) -> bool {
        match (&self.form, asked) {
            (Form::Safetensors, asked) => asked.is_none(),
            (Form::Gguf { variant, .. }, Some(asked)) => variant.eq_ignore_ascii_case(asked),
            (Form::Gguf { .. }, None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::hub::Name;

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
        let hub = "manifests/hf.co/bartowski/M-GGUF/Q4_K_M";
        write(ollama.join(hub), manifest(&format!("sha256:{hash}")));
        write(ollama.join("manifests/localhost:5000/me/mine/v2"), manifest(&format!("sha256:{hash}")));
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
            ("Ollama", "bartowski/M-GGUF:Q4_K_M", 7),
            ("Ollama", "localhost:5000/me/mine:v2", 7),
            ("Ollama", "qwen3:8b", 7),
            ("Ollama", "me/mine:latest", 7),
        ];
        assert_eq!(told, expected);
        assert!(find(&all, "org/m-gguf", None).unwrap().path.ends_with("org/M-GGUF/M-Q4_K_M.gguf"));
        assert!(find(&all, "org/M-GGUF", Some("q4_k_m")).is_some());
        assert!(find(&all, "org/M-GGUF", Some("Q8_0")).is_none());
        assert!(find(&all, "qwen3:8b", None).unwrap().path.ends_with(format!("sha256-{hash}")));
        assert!(find(&all, "qwen3:4b", None).is_none());
        // What a list shows is found by what it shows, as a person types it.
        for (typed, listed) in [
            ("qwen3:8b", Some("qwen3:8b")),
            ("Qwen3:8B", Some("qwen3:8b")),
            ("me/mine:latest", Some("me/mine:latest")),
            ("me/mine", Some("me/mine:latest")),
            ("hf.co/bartowski/M-GGUF:Q4_K_M", Some("bartowski/M-GGUF:Q4_K_M")),
            ("bartowski/m-gguf:q4_k_m", Some("bartowski/M-GGUF:Q4_K_M")),
            ("org/M-GGUF:Q4_K_M", Some("org/M-GGUF")),
            ("mlx-community/M-4bit", Some("mlx-community/M-4bit")),
            ("localhost:5000/me/mine:v2", Some("localhost:5000/me/mine:v2")),
            ("localhost:5000/me/mine:v1", None),
            ("elsewhere/me/mine:v2", None),
            ("qwen3", None),
            ("qwen3:8b:Q4_0", None),
            ("me/mine:v1", None),
            ("bartowski/M-GGUF", None),
            ("bartowski/M-GGUF:Q8_0", None),
            ("x/mine:latest", None),
            ("mlx-community/M-4bit:Q4_0", None),
        ] {
            let found = match Name::parse(typed).unwrap() {
                Name::Repository { id, variant, .. } => find(&all, id.as_str(), variant.as_deref()),
                Name::Short { name, variant } => find(&all, &name, variant.as_deref()),
                Name::Ollama { name, tag } => find(&all, &name, Some(&tag)),
                Name::Path(path) => panic!("{path:?}"),
            };
            assert_eq!(found.map(|of| &*of.name), listed, "{typed}");
        }
        // Two of one name: nobody said which.
        let two = [all[0].clone(), all[0].clone()];
        assert!(find(&two, &all[0].name, None).is_none());
    }
}
