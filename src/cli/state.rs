//! What the program remembers from one start to the next: typed lines, and bundles that were checked.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

/// `$XDG_STATE_HOME/backstop/NAME`, by default under `~/.local/state`, on a Mac under `~/Library/Application Support`.
pub fn file(name: &str) -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let below = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" };
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(below)))?;
    Some(state.join("backstop").join(name))
}

/// A file as it is now: checked once, it need not be checked again until it is written to.
pub struct Checked(String);

impl Checked {
    /// Files that are remembered.
    const MOST: usize = 64;
    /// Bytes of the list that are read.
    const LIST: u64 = 64 << 10;

    /// `content` stands for what is in the file, as far as that is cheap to know. Nothing where the file's times are not known.
    pub fn new(path: &Path, content: &str) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let meta = path.metadata().ok()?;
        let modified = meta.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let mut hash = Sha256::new();
        let words = [path.to_str()?, content, &format!("{} {}", meta.len(), modified.as_nanos())];
        words.iter().for_each(|word| hash.update(format!("{word}\n")));
        Some(Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    fn list() -> Option<(PathBuf, Vec<String>)> {
        let path = file("checked")?;
        let bytes = match path.metadata() {
            Ok(meta) if meta.len() <= Self::LIST => std::fs::read(&path).unwrap_or_default(),
            _ => Vec::new(),
        };
        Some((path, String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()))
    }

    /// Whether it was found to be whole.
    pub fn is_known(&self) -> bool {
        Self::list().is_some_and(|(_, lines)| lines.contains(&self.0))
    }

    /// Remembers that it is whole; where that cannot be, it is checked anew at the next start.
    pub fn remember(self) {
        let Some((path, mut lines)) = Self::list() else { return };
        lines.push(self.0);
        let from = lines.len().saturating_sub(Self::MOST);
        let write = || {
            let folder = path.parent().unwrap_or(&path);
            std::fs::create_dir_all(folder)?;
            let beside = tempfile::NamedTempFile::new_in(folder)?;
            std::fs::write(&beside, lines[from..].join("\n") + "\n")?;
            beside.persist(&path).map(drop).map_err(|error| error.error)
        };
        if let Err(error) = write() {
            tracing::info!(%error, path = %path.display(), "that the model was checked is not remembered");
        }
    }
}
