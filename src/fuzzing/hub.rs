//! Models by name: what a person types, what the hub answers, and what lies in a cache that others write, too.

use std::fs;
use std::path::{Component, Path};

use super::input::{Input, Scratch, joined, parts, sound};
use crate::hub::{
    Cache, Entry, FileHash, Fit, Form, Listing, Name, RemoteFile, RepositoryId, all_choices, choose_files,
};

const COMMIT: &str = "0123456789012345678901234567890123456789";

/// Whether a path goes down alone.
fn stays(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// A name is read as what it is written as; what it is made of is safe in paths, and a repository's folder is its own.
pub(super) fn name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some(name) = sound(Name::parse(&text)) else { return };
    match &name {
        // What exists is one, and what exists is the machine's.
        Name::Path(_) => return,
        Name::Repository { id, revision, variant } => {
            assert!(stays(&id.folder()) && !id.folder().contains('/'), "{id}");
            assert_eq!(RepositoryId::of_folder(&id.folder()).as_ref(), Some(id));
            assert!(revision.as_deref().is_none_or(stays), "{revision:?}");
            assert!(variant.as_deref().is_none_or(|variant| !variant.contains(['/', '\\'])), "{variant:?}");
        }
        Name::Short { name, variant } => {
            assert!(!name.contains('/') && variant.as_deref().is_none_or(|variant| !variant.contains('/')));
        }
        Name::Ollama { name, tag } => assert!(stays(name) && !tag.contains('/'), "{name}:{tag}"),
    }
    let written = name.to_string();
    if !Path::new(&written).exists() {
        assert_eq!(sound(Name::parse(&written)), Some(name), "{written}");
    }
}

pub(super) fn names() -> Vec<Vec<u8>> {
    let names = [
        "Qwen/Qwen3-0.6B",
        "org/name@refs/pr/3:Q4_K_M",
        "https://huggingface.co/a/b",
        "qwen3:8b:Q4_K_M",
        "host:80/ns/model:tag",
        "../x",
        "a/b.gguf",
        "hf.co/hf.co/a@b/c",
        "A.GGUF",
    ];
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// What is taken of a listing stays in its folder and can be checked; and of its files a model takes each once, with what it says of
/// itself.
pub(super) fn listing(data: &[u8]) {
    let [text, variant] = parts(data).map(String::from_utf8_lossy);
    let Some(listing) = sound(Listing::parse("a/b", &text)) else { return };
    let is_hash = |hash: &str, len| hash.len() == len && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_hash(&listing.commit, 40), "{}", listing.commit);
    for file in &listing.files {
        assert!(stays(&file.path) && !file.path.chars().any(char::is_control), "{:?}", file.path);
        match &file.hash {
            FileHash::Sha256(hash) => assert!(is_hash(hash, 64), "{hash}"),
            FileHash::Git(hash) => assert!(is_hash(hash, 40), "{hash}"),
            FileHash::Absent => {}
        }
    }
    let entry = |file: &RemoteFile| (file.path.clone(), file.size);
    let files: Vec<_> = listing.files.iter().map(entry).collect();
    let entries: Vec<_> = files.iter().map(|(path, bytes)| Entry { path, bytes: *bytes }).collect();
    let choices = all_choices(&entries);
    let variants = [None, Some(&*variant)];
    let chosen = variants.map(|variant| sound(choose_files("a/b", &entries, variant, Fit::default())));
    let small = Fit { memory: Some(1 << 30), ..Fit::default() };
    sound(choose_files("a/b", &entries, None, small));
    for choice in choices.iter().chain(chosen.iter().flatten()) {
        let mut places = choice.files.clone();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), choice.files.len(), "a file is taken twice: {choice:?}");
        assert!(!places.is_empty() && places.iter().all(|&at| at < files.len()), "{choice:?}");
    }
    assert!(chosen.iter().flatten().all(|choice| choices.contains(choice)), "{chosen:?} of {choices:?}");
}

pub(super) fn listings() -> Vec<Vec<u8>> {
    let file = |path: &str| format!(r#"{{"rfilename":"{path}","size":9,"blobId":"{COMMIT}"}}"#);
    let answer = |paths: &[&str]| {
        let files: Vec<String> = paths.iter().map(|path| file(path)).collect();
        format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, files.join(","))
    };
    let directory = ["config.json", "tokenizer.json", "model.safetensors.index.json"];
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let parted = ["q/m-Q4_K_M-00001-of-00002.gguf", "q/m-Q4_K_M-00002-of-00002.gguf", "m-Q8_0.gguf"];
    [
        (answer(&[&directory[..], &shards].concat()), ""),
        (answer(&parted), "Q4_K_M"),
        (answer(&["m.gguf", "mmproj-F16.gguf", "pytorch_model.bin"]), "m"),
        (answer(&["../x"]), ""),
        (answer(&parted).replace(":9,", &format!(":{},", u64::MAX)), ""),
        (
            format!(
                r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"m.gguf","lfs":{{"oid":"ab","size":3}}}}]}}"#
            ),
            "",
        ),
    ]
    .map(|(text, variant)| joined(&[text.as_bytes(), variant.as_bytes()]))
    .to_vec()
}

/// Files of a cache by the input's choices. What is listed lies in the cache, what is whole is found, and what is removed takes
/// nothing beside the cache with it.
pub(super) fn cache(data: &[u8]) {
    const NAMES: [&str; 12] = [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "m-Q4_K_M.gguf",
        "q/m-Q8_0-00001-of-00002.gguf",
        "q/m-Q8_0-00002-of-00002.gguf",
        "vocab.txt/x",
        "q",
        "\u{1b}[2J.gguf",
        "a b.gguf",
    ];
    const FOLDERS: [&str; 4] = ["models--a--b", "models--a--b--c", "models--..--x", "models--c--d"];
    let scratch = Scratch::new();
    let outside = scratch.write("outside.gguf", b"mine");
    let elsewhere = scratch.dir().join("elsewhere");
    fs::create_dir_all(&elsewhere).expect("a folder beside the cache");
    let theirs = [COMMIT, "main"].map(|name| elsewhere.join(name));
    theirs.iter().for_each(|path| fs::write(path, COMMIT).expect("a file in it"));
    let mut links = Vec::new();
    let root = scratch.dir().join("hub");
    let mut input = Input(data);
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let home = root.join(input.pick(&FOLDERS));
        let commit = input.pick(&[COMMIT, "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd", "main"]);
        let snapshot = home.join("snapshots").join(commit);
        let (path, kind) = (snapshot.join(input.pick(&NAMES)), input.below(9));
        let len = input.below(64);
        let (path, bytes) = match kind {
            0 => (home.join("refs").join(input.pick(&["main", "v1", "refs/pr/3"])), commit.as_bytes()),
            1 => (home.join("refs/main"), input.take(len)),
            2 => (home.join("blobs").join(input.pick(&["ab", "ab.incomplete", "cd"])), input.take(len)),
            7 => {
                links.push(home.join(input.pick(&["blobs", "snapshots", "refs"])));
                continue;
            }
            8 => {
                links.push(snapshot);
                continue;
            }
            _ => (path, input.take(len)),
        };
        // Where a file is in the place of a folder, nothing comes below it.
        let _ = fs::create_dir_all(path.parent().unwrap_or(&path));
        let _ = fs::remove_file(&path);
        let _ = match kind {
            3 => link(Path::new("../../blobs/ab"), &path),
            4 => link(&outside, &path),
            5 => link(Path::new("."), &path),
            _ => fs::write(&path, bytes),
        };
    }
    // Folders that lead elsewhere, the deepest first, since nothing is to be written through one.
    links.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in links {
        let _ = fs::remove_dir_all(&path);
        let _ = link(&elsewhere, &path);
    }
    let cache = Cache::new(&root);
    let listed = cache.list().expect("a folder that can be read");
    for cached in &listed {
        assert!(cached.path.starts_with(root.join(cached.id.folder())), "{cached:?}");
        let variant = match &cached.form {
            Form::Gguf { variant, .. } => Some(&**variant),
            Form::Safetensors => None,
        };
        let found = cache.find(&cached.id, cached.revision.as_deref(), variant);
        assert!(found.is_none_or(|path| path.starts_with(root.join(cached.id.folder()))));
    }
    for cached in &listed {
        sound(cache.remove(&cached.id, cached.revision.as_deref(), None));
        // What is a link is not removed.
        let removed = cache.remove(&cached.id, None, None);
        let is_link = removed.as_ref().is_err_and(|error| error.to_string().contains("is a link"));
        sound(removed);
        assert!(is_link || !cache.holds(&cached.id), "{}", cached.id);
    }
    theirs.iter().for_each(|path| assert_eq!(fs::read(path).expect("a file of theirs"), COMMIT.as_bytes()));
    assert_eq!(fs::read(&outside).expect("a file beside the cache"), b"mine");
}

#[cfg(unix)]
fn link(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn link(target: &Path, path: &Path) -> std::io::Result<()> {
    fs::hard_link(target, path)
}

pub(super) fn caches() -> Vec<Vec<u8>> {
    // A folder, a commit, a name, a kind, a length; then which ref or blob.
    let list: [&[u8]; 3] = [
        // A directory that is whole: a ref, a blob, and two links to it and a file.
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 3, 0, 0, 0, 2, 6, 0],
        // Links out of the cache and round, a folder that is no repository's, a name that no terminal is to see.
        &[0, 0, 5, 4, 0, 0, 0, 9, 5, 0, 0, 0, 6, 6, 0, 2, 0, 10, 4, 0, 3, 1, 5, 6, 0],
        // A model whose blobs are elsewhere.
        &[0, 0, 0, 6, 0, 0, 0, 1, 6, 0, 0, 0, 2, 6, 0, 0, 0, 0, 7, 0, 0],
    ];
    list.map(<[u8]>::to_vec).to_vec()
}
