//! What the program remembers from one start to the next: typed lines, and bundles that were checked.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

/// `$XDG_STATE_HOME/backstop/NAME`, by default under `~/.local/state`, on a Mac under `~/Library/Application Support`.
pub fn file(name: &str) -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let below = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" };
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(below)))?;
    Some(state.join("backstop").join(name))
}

/// A file as it is now: checked once, it need not be checked again until it is written to.
#[derive(PartialEq)]
pub struct Checked {
    line: String,
    /// Whether a later change of it is sure to show: clocks of files are coarse.
    settled: bool,
}

impl Checked {
    /// Files that are remembered.
    const MOST: usize = 64;
    /// Bytes of the list that are read.
    const LIST: u64 = 64 << 10;
    /// The coarsest clock of a file system, FAT's.
    const CLOCK: Duration = Duration::from_secs(2);

    /// `content` stands for what is in the file, as far as that is cheap to know. Nothing where the file's times are not known.
    pub fn new(path: &Path, content: &str) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let meta = path.metadata().ok()?;
        // Times of writing can be set, and are, by what copies files; that of the last change of anything cannot.
        let changed = SystemTime::UNIX_EPOCH
            .checked_add(Duration::new(meta.ctime().try_into().ok()?, meta.ctime_nsec().try_into().ok()?))?;
        let times = format!(
            "{} {}.{} {}.{}",
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec()
        );
        let place = format!("{} {}", meta.dev(), meta.ino());
        let mut hash = Sha256::new();
        let words = [path.to_str()?, content, &times, &place];
        words.iter().for_each(|word| hash.update(format!("{word}\n")));
        let line = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self { line, settled: changed.elapsed().is_ok_and(|since| since > Self::CLOCK) })
    }

    fn list() -> Option<(PathBuf, Vec<String>)> {
        let path = file("checked")?;
        let mut text = String::new();
        let is_file = path.metadata().is_ok_and(|meta| meta.is_file());
        if is_file && let Ok(from) = File::open(&path) {
            let read = from.take(Self::LIST + 1).read_to_string(&mut text);
            if !read.is_ok_and(|bytes| bytes as u64 <= Self::LIST) {
                text.clear();
            }
        }
        Some((path, text.lines().map(str::to_owned).collect()))
    }

    /// Whether it was found to be whole.
    pub fn is_known(&self) -> bool {
        Self::list().is_some_and(|(_, lines)| lines.contains(&self.line))
    }

    /// Remembers that it is whole; where that cannot be, it is checked anew at the next start.
    pub fn remember(self) {
        let Some((path, mut lines)) = Self::list().filter(|_| self.settled) else { return };
        lines.push(self.line);
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
