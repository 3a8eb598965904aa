//! A hub that means harm: nothing is written outside of the cache, and nothing takes time or memory without end.

use std::time::{Duration, Instant};

use serde_json::json;

use super::served::{Action, COMMIT, Hub, noise, sha256, tree};

fn listed(hub: &Hub, files: serde_json::Value) {
    hub.lists("org/model", json!({ "sha": COMMIT, "siblings": files }).to_string());
}

#[test]
fn paths_that_lead_out_of_the_cache_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for path in [
        "../../../../x.gguf",
        "/tmp/x.gguf",
        "a/../../x.gguf",
        "a\\..\\x.gguf",
        "x\n.gguf",
        "a//x.gguf",
        "C:x.gguf",
    ] {
        let hub = Hub::with(&[("x.gguf", b"GGUF")]);
        listed(&hub, json!([{ "rfilename": path, "lfs": { "sha256": sha256(b"GGUF"), "size": 4 } }]));
        let ran = hub.run(home.path(), &["pull", "org/model"]);
        let expected = format!(
            "error: org/model: the hub lists a file {path:?}, which is no plain path: nothing is taken of this repository"
        );
        assert_eq!((ran.err.trim_end(), ran.code), (&*expected, Some(1)));
        assert_eq!(hub.files_seen().len(), 0);
        assert_eq!(tree(home.path()).len(), 0);
    }
}

#[test]
fn names_that_are_hashes_of_something_else_are_no_paths() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with(&[("x.gguf", b"GGUF")]);
    for hash in ["../../../x", "", &"g".repeat(64), &"a".repeat(63)] {
        listed(&hub, json!([{ "rfilename": "x.gguf", "lfs": { "sha256": hash, "size": 4 } }]));
        let ran = hub.run(home.path(), &["pull", "org/model"]);
        let expected = "error: org/model: the hub lists \"x.gguf\" without a hash to check it by (lfs.sha256, or blobId and size), and \
                        what cannot be checked is not downloaded; NAME:VARIANT takes another file of this repository";
        assert_eq!((ran.err.trim_end(), ran.code), (expected, Some(1)), "{hash}");
    }
    hub.lists("org/model", json!({ "sha": "../../../../x", "siblings": [] }).to_string());
    let ran = hub.run(home.path(), &["pull", "org/model"]);
    assert_eq!(ran.err.trim_end(), "error: org/model: the hub's answer names no commit (sha)");
    assert_eq!(tree(home.path()).len(), 0);
}

#[test]
fn hashes_are_read_in_capitals() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with(&[("x.gguf", b"GGUF")]);
    let hash = sha256(b"GGUF");
    listed(&hub, json!([{ "rfilename": "x.gguf", "lfs": { "sha256": hash.to_uppercase(), "size": 4 } }]));
    hub.ok(home.path(), &["pull", "org/model"]);
    let blob = home.path().join("hub/models--org--model/blobs").join(hash);
    assert_eq!(std::fs::read(blob).unwrap(), b"GGUF");
}

#[test]
fn sizes_that_no_disk_has_are_refused_before_anything_is_written() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with(&[("x.gguf", b"GGUF")]);
    for size in [1_u64 << 60, u64::MAX] {
        listed(&hub, json!([{ "rfilename": "x.gguf", "lfs": { "sha256": sha256(b"GGUF"), "size": size } }]));
        let ran = hub.run(home.path(), &["pull", "org/model"]);
        assert_eq!(ran.code, Some(1));
        let said = ran.err.lines().last().unwrap();
        assert!(
            said.starts_with("error: org/model needs ") && said.contains(" too little: make room"),
            "{said}"
        );
        // No memory holds it either.
        let warned = ran.err.lines().any(|line| {
            line.starts_with("warning: it needs about ")
                && line.ends_with("a variant of fewer bits, would fit")
        });
        assert!(warned, "{}", ran.err);
        assert_eq!((tree(home.path()).len(), hub.files_seen().len()), (0, 0));
    }
}

#[test]
fn answers_without_end_are_cut() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with(&[("x.gguf", b"GGUF")]);
    hub.rule(|_, _| Action::Endless);
    let ran = hub.run(home.path(), &["pull", "org/model"]);
    let expected = "error: org/model: the hub's answer is longer than a listing may be, 67108864 bytes";
    assert_eq!((ran.err.trim_end(), ran.code), (expected, Some(1)));
    // A file is read as far as it is listed.
    let hub = Hub::with(&[("x.gguf", &noise(100_000, 1))]);
    hub.rule(|seen, _| if seen.is_file() { Action::Endless } else { Action::Serve });
    let ran = hub.run(home.path(), &["pull", "org/model"]);
    let said = ran.err.lines().last().unwrap();
    assert!(said.starts_with("error: org/model: x.gguf is not what the hub lists"), "{said}");
    let bytes: usize = tree(home.path()).values().map(Vec::len).sum();
    assert_eq!(bytes, 0);
}

#[test]
fn a_listing_of_a_hundred_thousand_files_is_read() {
    let home = tempfile::tempdir().unwrap();
    let bytes = noise(1000, 1);
    let hub = Hub::with(&[("m-Q4_0.gguf", &bytes)]);
    let other = |i: usize| json!({ "rfilename": format!("images/{i}.png"), "size": 10, "blobId": COMMIT });
    let mut files: Vec<_> = (1..100_000).map(other).collect();
    files.push(json!({ "rfilename": "m-Q4_0.gguf", "lfs": { "sha256": sha256(&bytes), "size": 1000 } }));
    listed(&hub, files.clone().into());
    let started = Instant::now();
    let ran = hub.ok(home.path(), &["pull", "org/model"]);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(std::fs::read(ran.out.trim_end()).unwrap(), bytes);
    // One more is refused.
    files.push(other(0));
    listed(&hub, files.into());
    let ran = hub.run(home.path(), &["pull", "org/model"]);
    let expected = "error: org/model: the hub lists 100001 files, expected at most 100000";
    assert_eq!((ran.err.trim_end(), ran.code), (expected, Some(1)));
}

#[test]
fn what_a_hub_writes_reaches_a_terminal_as_text() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with(&[("x.gguf", b"GGUF")]);
    for text in ["\u{1b}]0;title\u{7}", "{\"sha\": \"\\u001b[2J\"}", "<html>\u{1b}[31m"] {
        hub.lists("org/model", text.to_owned());
        let ran = hub.run(home.path(), &["pull", "org/model"]);
        assert_eq!(ran.code, Some(1));
        assert!(!ran.err.contains('\u{1b}'), "{:?}", ran.err);
    }
}

#[test]
fn code_and_pickles_are_never_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let names = [
        "config.json",
        "model.safetensors",
        "modeling_x.py",
        "pytorch_model.bin",
        "model.pt",
        "x.pickle",
        "tokenizer.json",
        "a.sh",
        "ckpt/model.ckpt",
        "handler.py",
        "training_args.bin",
    ];
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, name.as_bytes())).collect();
    let hub = Hub::with(&files);
    let ran = hub.ok(home.path(), &["pull", "org/model"]);
    let mut asked: Vec<String> = hub.files_seen().into_iter().map(|seen| seen.path).collect();
    asked.sort();
    let of = |name: &str| format!("/org/model/resolve/{COMMIT}/{name}");
    assert_eq!(asked, ["config.json", "model.safetensors", "tokenizer.json"].map(of));
    let there = std::fs::read_dir(ran.out.trim_end()).unwrap().count();
    assert_eq!(there, 3);
}

#[test]
fn a_file_without_a_hash_is_refused_where_it_is_needed() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with(&[("m-Q4_0.gguf", b"four"), ("m-Q8_0.gguf", b"eight"), ("README.md", b"read")]);
    let mut listing = hub.listing("org/model");
    for file in listing["siblings"].as_array_mut().unwrap() {
        if file["rfilename"] != "m-Q8_0.gguf" {
            for name in ["lfs", "blobId"] {
                file.as_object_mut().unwrap().remove(name);
            }
        }
    }
    hub.lists("org/model", listing.to_string());
    let path = hub.ok(home.path(), &["pull", "org/model:Q8_0"]).out;
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), b"eight");
    for name in ["org/model", "org/model:Q4_0"] {
        let ran = hub.run(home.path(), &["pull", name]);
        let expected = "error: org/model: the hub lists \"m-Q4_0.gguf\" without a hash to check it by (lfs.sha256, or blobId and \
                        size), and what cannot be checked is not downloaded; NAME:VARIANT takes another file of this repository\n";
        assert_eq!((&*ran.err, ran.code), (expected, Some(1)));
    }
    assert_eq!(hub.files_seen().len(), 1);
}

/// Whoever puts a link in the place of a folder has what it leads to, and loses nothing of it.
#[test]
fn nothing_is_removed_through_a_link() {
    let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::with(&[("m-Q8_0.gguf", b"GGUF"), ("m-Q4_0.gguf", b"GGUF4")]);
    hub.ok(home.path(), &["pull", "org/model:Q8_0"]);
    let repository = home.path().join("hub/models--org--model");
    let snapshot = format!("snapshots/{COMMIT}");
    // As a folder that was moved to another disk, or a trap.
    let folders = [
        ("blobs", &["org/model", "org/model@main", "org/model:Q8_0"][..]),
        ("snapshots", &["org/model", "org/model@main", "org/model:Q8_0"]),
        ("refs", &["org/model", "org/model@main", "org/model:Q8_0"]),
        (&snapshot, &["org/model:Q8_0"]),
    ];
    for (folder, names) in folders {
        let (place, moved) = (repository.join(folder), elsewhere.path().join("moved"));
        std::fs::rename(&place, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &place).unwrap();
        let before = (tree(&moved), tree(&repository));
        for name in names {
            let ran = hub.run(home.path(), &["rm", "--yes", name]);
            let expected = format!(
                "error: {}: is a link, and what it leads to is not removed: remove both by hand",
                place.display()
            );
            assert_eq!((ran.err.trim_end(), ran.code), (&*expected, Some(1)), "{name}");
            assert!((tree(&moved), tree(&repository)) == before, "{folder} {name}");
        }
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(&moved, &place).unwrap();
    }
    hub.ok(home.path(), &["rm", "--yes", "org/model"]);
    assert!(!repository.exists());
}
