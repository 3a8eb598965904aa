//! The cache beside Python's `huggingface_hub`: what either downloads, the other finds.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::served::{COMMIT, Hub, ended, noise};

/// A Python that has `huggingface_hub`: the one that `BACKSTOP_HF_PYTHON` names, or `python3` where it does.
fn python() -> Option<String> {
    let named = std::env::var("BACKSTOP_HF_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import huggingface_hub"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert_eq!(named, None, "BACKSTOP_HF_PYTHON has no huggingface_hub");
    eprintln!("skipped: {python} has no huggingface_hub; BACKSTOP_HF_PYTHON names a Python that has");
    None
}

/// What a script prints, as JSON.
fn say(python: &str, hub: &Hub, home: &Path, script: &str) -> Value {
    let mut command = Command::new(python);
    hub.environment(&mut command, home);
    command
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1");
    command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = ended(command.spawn().unwrap());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

const SCAN: &str = "
import json
from huggingface_hub import scan_cache_dir, snapshot_download
path = snapshot_download('org/model', local_files_only=True)
found = scan_cache_dir()
repo, = found.repos
revision, = repo.revisions
files = sorted([file.file_name, file.size_on_disk] for file in revision.files)
print(json.dumps({'path': path, 'warnings': [str(w) for w in found.warnings], 'id': repo.repo_id, 'refs': sorted(revision.refs),
                  'commit': revision.commit_hash, 'files': files}))
";

const DOWNLOAD: &str = "
import json
from huggingface_hub import snapshot_download
print(json.dumps(snapshot_download('org/model', allow_patterns=['*.json', '*.safetensors'])))
";

fn hub() -> Hub {
    let (weights, pooling) = (noise(700_000, 9), b"{\"word_embedding_dimension\": 8}");
    Hub::with(&[
        ("1_Pooling/config.json", pooling),
        ("config.json", b"{}"),
        ("model.safetensors", &weights),
        ("modules.json", b"[]"),
        ("tokenizer.json", b"{ }"),
    ])
}

#[test]
fn python_finds_what_was_pulled() {
    let Some(python) = python() else { return };
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let path = hub.ok(home.path(), &["pull", "org/model"]).out;
    hub.forget();
    let said = say(&python, &hub, home.path(), SCAN);
    assert_eq!(said["path"], path.trim_end());
    assert_eq!(said["warnings"], serde_json::json!([]));
    assert_eq!((&said["id"], &said["commit"]), (&"org/model".into(), &COMMIT.into()));
    assert_eq!(said["refs"], serde_json::json!(["main"]));
    assert_eq!(said["files"].as_array().unwrap().len(), 5);
    assert_eq!(hub.files_seen().len(), 0);
    // Asked to download it, Python finds it, too.
    assert_eq!(say(&python, &hub, home.path(), DOWNLOAD), path.trim_end());
    assert_eq!(hub.files_seen().len(), 0);
}

#[test]
fn what_python_downloaded_is_found() {
    let Some(python) = python() else { return };
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let path = say(&python, &hub, home.path(), DOWNLOAD);
    assert_eq!(hub.files_seen().len(), 5);
    hub.forget();
    let listed: Value = serde_json::from_str(&hub.ok(home.path(), &["list", "--json"]).out).unwrap();
    assert_eq!(listed["models"][0]["name"], "org/model");
    assert_eq!(listed["models"][0]["path"], path);
    assert_eq!(hub.seen().len(), 0);
    assert_eq!(hub.ok(home.path(), &["pull", "org/model"]).out.trim_end(), path.as_str().unwrap());
    assert_eq!(hub.files_seen().len(), 0);
    // A file that Python lacks is added beside the others.
    let blob = std::fs::canonicalize(Path::new(path.as_str().unwrap()).join("tokenizer.json")).unwrap();
    std::fs::remove_file(blob).unwrap();
    hub.ok(home.path(), &["pull", "org/model"]);
    let asked: Vec<String> = hub.files_seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, [format!("/org/model/resolve/{COMMIT}/tokenizer.json")]);
    assert_eq!(say(&python, &hub, home.path(), SCAN)["warnings"], serde_json::json!([]));
}
