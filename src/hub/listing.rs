//! What the hub says that a repository holds: `GET /api/models/{repository}/revision/{revision}?blobs=true`.

use serde::Deserialize;

use super::name::{is_commit, is_hex};
use crate::error::{Error, HubFault, Result};
use crate::json::{self, quote};

/// Bytes of the longest answer that is read: that of a repository of a hundred thousand files has some thirty million.
pub(crate) const MAX_ANSWER: u64 = 64 << 20;
/// Files of the largest repository that is read.
const MAX_FILES: usize = 100_000;

/// A revision of a repository.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The commit that the revision stands for.
    pub commit: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Bytes, as the hub says.
    pub size: u64,
    /// What its bytes hash to, as the hub says.
    pub hash: FileHash,
}

/// What tells a file's bytes from all others, and is its name among the blobs of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileHash {
    /// SHA-256 of its bytes: of large files.
    Sha256(String),
    /// SHA-1 as git has it, of `blob`, the size and the bytes: of small files.
    Git(String),
    /// None that can be checked: what needs the file is refused.
    Absent,
}

impl FileHash {
    /// In hexadecimal digits; empty where there is none.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hash) | Self::Git(hash) => hash,
            Self::Absent => "",
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads an answer, `whose`.
    ///
    /// # Errors
    /// [`Error::Hub`] for what is no listing, names that would lead out of a directory among it, and where no file has a hash to
    /// check it by.
    pub(crate) fn parse(whose: &str, text: &str) -> Result<Self> {
        let wrong = |what: String| Error::hub(HubFault::Answer, format!("{whose}: {what}"));
        let limits = json::Limits { depth: 32, values: 1 << 22 };
        let answer: Answer = json::typed(text, limits)
            .map_err(|e| wrong(format!("the hub's answer is no listing of files: {e}")))?;
        let commit = answer.sha.filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| wrong("the hub's answer names no commit (sha)".to_owned()))?;
        let count = answer.siblings.len();
        if count > MAX_FILES {
            return Err(wrong(format!("the hub lists {count} files, expected at most {MAX_FILES}")));
        }
        if count > 0 && answer.siblings.iter().all(|file| file.lfs.is_none() && file.blob.is_none()) {
            return Err(wrong(
                "the hub lists files without their hashes, as a mirror does that does not know ?blobs=true: what cannot be \
                 checked is not downloaded; set HF_ENDPOINT to another mirror, or to none"
                    .to_owned(),
            ));
        }
        let mut files = Vec::with_capacity(count);
        for sibling in answer.siblings {
            let path = sibling.rfilename;
            if leads_elsewhere(&path) {
                return Err(wrong(format!(
                    "the hub lists a file {}, which is no plain path: nothing is taken of this repository",
                    quote(&path)
                )));
            }
            let (hash, size) = hash_of(sibling.lfs, sibling.blob, sibling.size);
            files.push(RemoteFile { path, size, hash });
        }
        Ok(Self { commit, files })
    }
}

/// What a file's bytes are checked by, and how many they are.
fn hash_of(lfs: Option<Lfs>, blob: Option<String>, size: Option<u64>) -> (FileHash, u64) {
    // Of a large file the blob is what git has in its place.
    if let Some(Lfs { sha256, size }) = lfs {
        let sha256 = sha256.to_ascii_lowercase();
        let is_hash = sha256.len() == 64 && is_hex(&sha256);
        return (if is_hash { FileHash::Sha256(sha256) } else { FileHash::Absent }, size);
    }
    match (blob.map(|blob| blob.to_ascii_lowercase()).filter(|blob| is_commit(blob)), size) {
        (Some(blob), Some(size)) => (FileHash::Git(blob), size),
        (_, size) => (FileHash::Absent, size.unwrap_or(0)),
    }
}

/// Whether a path could name something outside of the directory that it is put into, or something else than it shows.
fn leads_elsewhere(path: &str) -> bool {
    let odd = |part: &str| part.is_empty() || part == "." || part == ".." || part.len() > 255;
    path.len() > 1024
        || path.contains(['\\', ':'])
        || path.chars().any(char::is_control)
        || path.split('/').any(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn listed(siblings: &str) -> Result<Listing> {
        Listing::parse("a/b", &format!(r#"{{"sha": "{COMMIT}", "siblings": [{siblings}]}}"#))
    }

    #[test]
    fn files_have_their_hashes() {
        let sha256 = "ab".repeat(32);
        let listing = listed(&format!(
            r#"{{"rfilename": "config.json", "size": 12, "blobId": "{COMMIT}"}},
               {{"rfilename": "a/model.safetensors", "size": 1, "blobId": "{COMMIT}",
                 "lfs": {{"sha256": "{sha256}", "size": 99, "pointerSize": 134}}}},
               {{"rfilename": "m.gguf", "lfs": {{"sha256": "{}", "size": 3}}}},
               {{"rfilename": "no-hash", "size": 12}},
               {{"rfilename": "bad-hash", "size": 12, "blobId": "x"}},
               {{"rfilename": "no-size", "blobId": "{COMMIT}"}}"#,
            sha256.to_uppercase()
        ))
        .unwrap();
        assert_eq!(listing.commit, COMMIT);
        let file = |path: &str, size, hash| RemoteFile { path: path.to_owned(), size, hash };
        let expected = [
            file("config.json", 12, FileHash::Git(COMMIT.to_owned())),
            file("a/model.safetensors", 99, FileHash::Sha256(sha256.clone())),
            file("m.gguf", 3, FileHash::Sha256(sha256)),
            file("no-hash", 12, FileHash::Absent),
            file("bad-hash", 12, FileHash::Absent),
            file("no-size", 0, FileHash::Absent),
        ];
        assert_eq!(listing.files, expected);
    }

    #[test]
    fn what_cannot_be_checked_has_no_hash() {
        let good = format!(r#"{{"rfilename": "README.md", "size": 1, "blobId": "{COMMIT}"}}"#);
        for hash in [
            String::new(),
            r#", "blobId": "x""#.to_owned(),
            r#", "lfs": {"sha256": "ab", "size": 1}"#.to_owned(),
            // The pointer's hash is not the file's.
            format!(r#", "blobId": "{COMMIT}", "lfs": {{"sha256": "", "size": 1}}"#),
        ] {
            let listing =
                listed(&format!(r#"{good}, {{"rfilename": "config.json", "size": 1{hash}}}"#)).unwrap();
            assert_eq!(listing.files[1].hash, FileHash::Absent, "{hash}");
            assert_eq!(listing.files[0].hash, FileHash::Git(COMMIT.to_owned()), "{hash}");
        }
        // A mirror that passes over what it is asked with.
        let error = listed(r#"{"rfilename": "config.json"}, {"rfilename": "m.safetensors"}"#);
        let error = error.unwrap_err().to_string();
        let start = "a/b: the hub lists files without their hashes, as a mirror does that does not know ?blobs=true: ";
        assert!(error.starts_with(start), "{error}");
        assert_eq!(listed("").unwrap().files, []);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in [
            "../x",
            "a/../x",
            "/x",
            "a//x",
            "./x",
            "..",
            ".",
            "",
            "a/",
            "C:/x",
            "a\\\\x",
            "a\\nb",
            "a\\u0000",
            "a\\u001b[2J",
        ] {
            let error = listed(&format!(r#"{{"rfilename": "{path}", "size": 1, "blobId": "{COMMIT}"}}"#));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("which is no plain path"), "{path}: {error}");
        }
        let long = "x".repeat(256);
        assert!(listed(&format!(r#"{{"rfilename": "{long}", "size": 1, "blobId": "{COMMIT}"}}"#)).is_err());
    }

    #[test]
    fn what_is_no_listing_is_refused() {
        for text in [
            "",
            "[]",
            "<html>",
            r#"{"siblings": []}"#,
            r#"{"sha": "../../x", "siblings": []}"#,
            r#"{"sha": "0123456789012345678901234567890123456789", "siblings": 1}"#,
            r#"{"sha": "0123456789012345678901234567890123456789", "siblings": [{"size": 1}]}"#,
            r#"{"sha": "0123456789012345678901234567890123456789", "siblings": [{"rfilename": "a", "size": -1}]}"#,
        ] {
            let error = Listing::parse("a/b", text).unwrap_err();
            assert!(matches!(error, Error::Hub { fault: HubFault::Answer, .. }), "{text}: {error}");
            assert!(error.to_string().starts_with("a/b: the hub's answer "), "{error}");
        }
    }
}
