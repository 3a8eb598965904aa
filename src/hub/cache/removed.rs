//! What is taken out of the cache.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::choose::{self, Entry};
use super::super::fit::Fit;
use super::super::name::{RepositoryId, is_commit};
use super::super::parts;
use super::{Cache, Linked, linked, names, own, walk};
use crate::error::{Error, HubFault, Result};

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Bytes that are free by that.
    pub bytes: u64,
    /// Files.
    pub files: usize,
}

impl Cache {
    /// Whether there is something of what [`Self::remove`] would take away.
    ///
    /// # Errors
    /// [`Error::Format`] where one of the folders is a link, as there.
    pub fn has(&self, id: &RepositoryId, revision: Option<&str>, variant: Option<&str>) -> Result<bool> {
        self.own_folders(id)?;
        if revision.is_none() && variant.is_none() {
            return Ok(self.holds(id));
        }
        for commit in self.commits(id, revision)? {
            let snapshot = self.snapshot(id, &commit);
            let is_here = match variant {
                None => snapshot.is_dir(),
                Some(variant) => !files_of(id, &snapshot, variant)?.is_empty(),
            };
            if is_here {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The commits that are here, or that of a revision.
    fn commits(&self, id: &RepositoryId, revision: Option<&str>) -> Result<Vec<String>> {
        let snapshots = self.repository(id).join("snapshots");
        let mut commits = match revision {
            Some(revision) => self.commit(id, revision).into_iter().collect(),
            None if snapshots.is_dir() => names(&snapshots)?,
            None => Vec::new(),
        };
        commits.retain(|name| is_commit(name));
        Ok(commits)
    }

    /// Refuses folders that are links: what they lead to may be somebody's.
    fn own_folders(&self, id: &RepositoryId) -> Result<()> {
        let home = self.repository(id);
        ["", "blobs", "snapshots", "refs"].iter().try_for_each(|folder| own(&home.join(folder)))
    }

    /// Removes a repository, or of it a revision or a variant; blobs go with the last link to them.
    ///
    /// # Errors
    /// [`Error::Hub`] where it is not here, or is being downloaded; [`Error::Format`] where one of its folders is a link, and what it
    /// leads to may be somebody's; [`Error::Io`].
    pub fn remove(
        &self,
        id: &RepositoryId,
        revision: Option<&str>,
        variant: Option<&str>,
    ) -> Result<Removed> {
        let home = self.repository(id);
        let absent = |what: String| Error::hub(HubFault::Absent, what);
        if !home.is_dir() {
            return Err(absent(format!(
                "{id} is not in {}: backstop list shows what is",
                self.root.display()
            )));
        }
        self.own_folders(id)?;
        let _locks = self.lock_all(id)?;
        if revision.is_none() && variant.is_none() {
            let mut removed = Removed::default();
            walk(&home.join("blobs"), "", 1, &mut |_, bytes| {
                removed.bytes += bytes;
                removed.files += 1;
            });
            fs::remove_dir_all(&home).map_err(|e| Error::io(&home, e))?;
            return Ok(removed);
        }
        let commits = self.commits(id, revision)?;
        if let (Some(revision), true) = (revision, commits.is_empty()) {
            return Err(absent(format!("{id}@{revision} is not here: backstop list shows what is")));
        }
        let mut found = false;
        for commit in &commits {
            let snapshot = self.snapshot(id, commit);
            let Some(variant) = variant else {
                found |= snapshot.is_dir();
                if snapshot.is_dir() {
                    fs::remove_dir_all(&snapshot).map_err(|e| Error::io(&snapshot, e))?;
                }
                continue;
            };
            for link in files_of(id, &snapshot, variant)? {
                found = true;
                fs::remove_file(&link).map_err(|e| Error::io(&link, e))?;
            }
        }
        if !found {
            let name = variant.or(revision).unwrap_or_default();
            return Err(absent(format!("{id} has no {name} here: backstop list shows what is")));
        }
        for (name, commit) in self.refs(id) {
            if commits.contains(&commit) && !self.snapshot(id, &commit).is_dir() {
                let path = home.join("refs").join(name);
                fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        self.sweep(id)
    }

    /// Removes the blobs that no snapshot links to, and what broken downloads left.
    fn sweep(&self, id: &RepositoryId) -> Result<Removed> {
        let home = self.repository(id);
        let (mut used, snapshots) = (HashSet::new(), home.join("snapshots"));
        if snapshots.is_dir() {
            linked_blobs(&snapshots, &mut used).map_err(|e| Error::io(&snapshots, e))?;
        }
        let mut removed = Removed::default();
        for name in names(&home.join("blobs"))? {
            // Where there are no links, nothing tells whose the bytes are.
            if used.contains(std::ffi::OsStr::new(&name)) || cfg!(not(unix)) {
                continue;
            }
            let path = home.join("blobs").join(&name);
            removed.bytes += path.symlink_metadata().map_or(0, |meta| meta.len());
            removed.files += usize::from(!parts::is_left_over(&name));
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
        Ok(removed)
    }
}

/// The links to the files of a variant in a snapshot; none where it has no such variant.
///
/// # Errors
/// [`Error::Format`] for a snapshot that is a link itself.
fn files_of(id: &RepositoryId, snapshot: &Path, variant: &str) -> Result<Vec<PathBuf>> {
    own(snapshot)?;
    let files = linked(snapshot);
    let entries: Vec<Entry<'_>> = files.iter().map(Linked::entry).collect();
    let choice = choose::choose(id.as_str(), &entries, Some(variant), Fit::default());
    let paths = choice.map(|choice| choice.files.iter().map(|&at| snapshot.join(&files[at].path)).collect());
    Ok(paths.unwrap_or_default())
}

/// The names of all that is linked to below a folder, however deep and whatever it is called.
fn linked_blobs(folder: &Path, used: &mut HashSet<OsString>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
        let kind = entry?;
        if kind.is_symlink() {
            used.extend(fs::read_link(&path)?.file_name().map(OsString::from));
        } else if kind.is_dir() {
            linked_blobs(&path, used)?;
        }
    }
    Ok(())
}
