//! Models in a folder of one's own: directories with `config.json`, and GGUF files, however they are laid out.

use std::path::{Path, PathBuf};

use super::cache::{names, place};
use super::choose::{self, Entry, Form};
use crate::error::{Error, Result};
use crate::weights::gguf;

/// How many folders deep models are looked for.
const DEPTH: usize = 4;

/// A model in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFolder {
    /// Its path below the folder, of a GGUF model without the part's number and `.gguf`.
    pub name: String,
    /// The directory, or the first GGUF file.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
}

/// The models below `root`, by name.
///
/// # Errors
/// A folder that cannot be read.
pub fn folder(root: &Path) -> Result<Vec<InFolder>> {
    std::fs::read_dir(root).map_err(|error| Error::io(root, error))?;
    let mut found = Vec::new();
    look(root, "", DEPTH, &mut found)?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn look(root: &Path, below: &str, depth: usize, found: &mut Vec<InFolder>) -> Result<()> {
    let folder = root.join(below);
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for name in names(&folder)?.into_iter().filter(|name| !name.starts_with('.')) {
        let path = folder.join(&name);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => files.push((name, meta.len())),
            // A folder that is a link could lead round.
            Ok(meta) if meta.is_dir() && !path.is_symlink() => folders.push(name),
            _ => {}
        }
    }
    let entries: Vec<Entry<'_>> = files.iter().map(|(path, bytes)| Entry { path, bytes: *bytes }).collect();
    let join = |name: &str| match (below, name) {
        ("", name) => name.to_owned(),
        (below, "") => below.to_owned(),
        (below, name) => format!("{below}/{name}"),
    };
    let mut whole = false;
    for choice in choose::all(&entries) {
        let bytes = choice.files.iter().map(|&at| files[at].1).fold(0, u64::saturating_add);
        let name = match &choice.form {
            Form::Safetensors => {
                whole = true;
                match below {
                    "" => {
                        root.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into())
                    }
                    below => below.to_owned(),
                }
            }
            Form::Gguf { first, .. } => join(gguf::model_name(first)),
        };
        found.push(InFolder { name, path: place(&folder, &choice.form), bytes });
    }
    // What lies below a model's directory is a part of it.
    if !whole && depth > 1 {
        for name in folders {
            look(root, &join(&name), depth - 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_however_they_are_laid_out() {
        let root = std::env::temp_dir().join(format!("backstop-folder-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        let write = |path: &str, bytes: usize| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![0; bytes]).unwrap();
        };
        for (path, bytes) in [
            ("a-Q4_0.gguf", 5),
            ("mmproj-a.gguf", 9),
            ("big-00001-of-00002.gguf", 3),
            ("big-00002-of-00002.gguf", 4),
            ("cut-00001-of-00002.gguf", 3),
            ("org/name/config.json", 1),
            ("org/name/model.safetensors", 7),
            ("org/name/1_Pooling/config.json", 1),
            ("org/other/some.txt", 1),
            ("org/third/x.gguf", 2),
            (".hidden/x.gguf", 2),
            ("1/2/3/deep.gguf", 1),
            ("1/2/3/4/deeper.gguf", 1),
        ] {
            write(path, bytes);
        }
        let found = folder(&root).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|model| {
                let path = model.path.strip_prefix(&root).unwrap().to_str().unwrap();
                (model.name.as_str(), path, model.bytes)
            })
            .collect();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            found,
            [
                ("1/2/3/deep", "1/2/3/deep.gguf", 1),
                ("a-Q4_0", "a-Q4_0.gguf", 5),
                ("big", "big-00001-of-00002.gguf", 7),
                ("org/name", "org/name", 8),
                ("org/third/x", "org/third/x.gguf", 2),
            ]
        );
        assert!(folder(&root).unwrap_err().to_string().contains("backstop-folder"));
    }
}
