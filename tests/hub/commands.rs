//! The commands, as a person or a script types them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::models;
use super::served::{Action, COMMIT, Hub, Ran, ended, noise, sha256, tree};

pub const GGUF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/whole.gguf");
const RUN: [&str; 7] = ["--raw", "--max-tokens", "5", "--backend", "cpu", "--json", "--temperature"];

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}", ran.out))
}

#[track_caller]
fn refused(hub: &Hub, home: &Path, args: &[&str], code: i32, expected: &str) {
    let ran = hub.run(home, args);
    assert_eq!((ran.err.trim_end(), ran.code, &*ran.out), (expected, Some(code), ""), "{args:?}");
}

/// Files of a directory.
fn files_of(dir: &Path) -> Vec<(String, Vec<u8>)> {
    tree(dir).into_iter().map(|(path, bytes)| (path.to_str().unwrap().to_owned(), bytes)).collect()
}

#[test]
fn a_name_is_pulled_run_listed_shown_and_removed() {
    let (noise, home) = (models::Noise::new(), tempfile::tempdir().unwrap());
    let (hub, home) = (Hub::new(), home.path());
    let files = files_of(Path::new(noise.path()));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (&**path, &**bytes)).collect();
    hub.put("org/model", &files);

    let absent =
        "error: org/model is not on this machine: --pull downloads it, as `backstop pull org/model` does";
    refused(&hub, home, &["run", "org/model", "Hello"], 1, absent);
    refused(&hub, home, &["inspect", "org/model"], 1, absent);
    refused(&hub, home, &["chat", "org/model"], 1, absent);
    refused(&hub, home, &["serve", "org/model", "--port", "0"], 1, absent);
    refused(&hub, home, &["bench", "--model", "org/model"], 1, absent);
    refused(&hub, home, &["parity", "--model", "org/model"], 1, absent);
    refused(&hub, home, &["quantize", "org/model", "-o", "out"], 1, absent);
    assert_eq!(hub.seen().len(), 0);

    let by_path =
        json(&hub.ok(home, &[&["run", "Hello", "--model", noise.path()], &RUN[..], &["0"]].concat()));
    let first = hub.ok(home, &[&["run", "org/model", "Hello", "--pull"], &RUN[..], &["0"]].concat());
    assert_eq!(json(&first)["text"], by_path["text"]);
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(first.err.starts_with("org/model: 4 files, "), "{}", first.err);
    assert_eq!(hub.sent(), total as u64);
    hub.forget();
    // It is here: nobody is asked.
    for name in ["org/model", "org/model@main", &format!("org/model@{COMMIT}"), "hf.co/org/model"] {
        let again = json(&hub.ok(home, &[&["run", "Hello", "--model", name], &RUN[..], &["0"]].concat()));
        assert_eq!(again["text"], by_path["text"]);
    }
    // One text alone is a name; the prompt comes from stdin.
    let mut child = hub.command(home, &[&["run", "org/model"], &RUN[..], &["0"]].concat());
    child.stdin(std::process::Stdio::piped());
    let mut child = child.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"Hello").unwrap();
    let output = ended(child);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["text"], by_path["text"]);

    let snapshot = home.join("hub/models--org--model/snapshots").join(COMMIT);
    let mut listed = json(&hub.ok(home, &["list", "--json"]));
    let modified = listed["models"][0]["modified"].take().as_u64().unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!((now - 600..=now).contains(&modified), "{modified} {now}");
    let expected = json!({
        "cache": home.join("hub"),
        "models": [{ "name": "org/model", "short_name": null, "form": "safetensors", "bytes": total, "origin": "hub", "path": snapshot, "complete": true, "modified": null }],
    });
    assert_eq!(listed, expected);
    let table = hub.ok(home, &["list"]).out;
    assert!(
        table.starts_with("NAME       FORM         ORIGIN") && table.contains("org/model  safetensors  hub"),
        "{table}"
    );
    let shown = hub.ok(home, &["show", "org/model"]).out;
    let inspected = hub.ok(home, &["inspect", noise.path()]).out;
    assert!(shown.starts_with("model") && shown.lines().count() == inspected.lines().count(), "{shown}");
    assert!(shown.lines().next().unwrap().contains("model"), "{shown}");
    // A second pull asks what there is, and downloads nothing.
    assert_eq!(hub.ok(home, &["pull", "org/model"]).out.trim_end(), snapshot.to_str().unwrap());
    assert_eq!((hub.seen().len(), hub.files_seen().len()), (1, 0));

    let ask = "error: --yes removes org/model where nobody can be asked";
    refused(&hub, home, &["rm", "org/model"], 2, ask);
    let removed = hub.ok(home, &["rm", "org/model", "--yes"]);
    assert!(removed.err.starts_with("org/model is removed: "), "{}", removed.err);
    assert_eq!(tree(&home.join("hub/models--org--model")).len(), 0);
    let nothing = hub.run(home, &["rm", "org/model", "--yes"]);
    assert!(nothing.err.contains("org/model is not in ") && nothing.code == Some(1), "{}", nothing.err);
    // Nobody is asked whether what is not here is to go.
    for command in [&["rm", "org/model"][..], &["rm", "qwen3:1.7b"]] {
        let nothing = hub.run(home, command);
        assert!(nothing.err.contains(" is not in ") && nothing.code == Some(1), "{}", nothing.err);
    }
}

#[test]
fn variants_and_short_names_are_pulled() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    let home = home.path();
    let bytes = std::fs::read(GGUF).unwrap();
    let wrong = noise(100, 1);
    let files: [(&str, &[u8]); 4] = [
        ("Qwen3-0.6B-Q8_0.gguf", &bytes),
        ("Qwen3-0.6B-F16.gguf", &wrong),
        ("README.md", b"x"),
        ("config.json", b"{}"),
    ];
    hub.put("Qwen/Qwen3-0.6B-GGUF", &files);
    let path = hub.ok(home, &["pull", "qwen3:0.6b:Q8_0"]).out;
    assert!(path.trim_end().ends_with("/Qwen3-0.6B-Q8_0.gguf"), "{path}");
    assert_eq!(hub.sent(), bytes.len() as u64);
    hub.forget();
    let by_path = json(&hub.ok(home, &[&["run", "Hello", "--model", GGUF], &RUN[..], &["0"]].concat()));
    for name in [
        "qwen3:0.6b",
        "qwen3:0.6b:q8_0",
        "qwen3:0.6b-q8_0",
        "Qwen3-0.6B",
        "Qwen/Qwen3-0.6B-GGUF",
        "Qwen/Qwen3-0.6B-GGUF:Q8_0",
    ] {
        let ran = json(&hub.ok(home, &[&["run", name, "Hello"], &RUN[..], &["0"]].concat()));
        assert_eq!(ran["text"], by_path["text"], "{name}");
    }
    // Several words are one text, as Ollama has it.
    let words = json(&hub.ok(home, &[&["run", "qwen3:0.6b", "Hello", "you"], &RUN[..], &["0"]].concat()));
    let quoted = json(&hub.ok(home, &[&["run", "qwen3:0.6b", "Hello you"], &RUN[..], &["0"]].concat()));
    assert_eq!(words["text"], quoted["text"]);
    assert_ne!(words["text"], by_path["text"]);
    assert_eq!(hub.seen().len(), 0);
    let listed = hub.ok(home, &["list"]).out;
    assert!(listed.contains("Qwen/Qwen3-0.6B-GGUF:Q8_0  qwen3:0.6b  GGUF"), "{listed}");
    assert_eq!(json(&hub.ok(home, &["list", "--json"]))["models"][0]["short_name"], "qwen3:0.6b");
    // What has a word in a name, in either.
    for word in ["QWEN3", "3:0.6", "6b-gguf"] {
        assert_eq!(hub.ok(home, &["list", word]).out, listed, "{word}");
    }
    let ran = hub.ok(home, &["list", "gemma"]);
    let none = "none of 1 models on this machine has gemma in its name; `backstop list --names gemma` looks through short names\n";
    assert_eq!((ran.out, &*ran.err), (String::new(), none));
    let absent = hub.run(home, &["run", "qwen3:0.6b:Q4_K_M", "Hello"]);
    let others = "--pull downloads it, as `backstop pull qwen3:0.6b:Q4_K_M` does; here are Qwen/Qwen3-0.6B-GGUF:Q8_0\n";
    assert!(absent.err.ends_with(others), "{}", absent.err);
    // The other variant goes beside it, and either goes by itself.
    hub.ok(home, &["pull", "Qwen/Qwen3-0.6B-GGUF:F16"]);
    assert_eq!(hub.sent(), wrong.len() as u64);
    hub.ok(home, &["rm", "--yes", "Qwen/Qwen3-0.6B-GGUF:F16"]);
    let listed = json(&hub.ok(home, &["list", "--json"]));
    assert_eq!(listed["models"].as_array().unwrap().len(), 1);
    hub.ok(home, &["rm", "--yes", "qwen3:0.6b"]);
    assert_eq!(json(&hub.ok(home, &["list", "--json"]))["models"], json!([]));

    let expected = "error: Qwen/Qwen3-0.6B-GGUF has no variant \"Q2_K\": there are Q8_0 (";
    let ran = hub.run(home, &["pull", "Qwen/Qwen3-0.6B-GGUF:Q2_K"]);
    assert!(ran.err.starts_with(expected), "{}", ran.err);
    let ran = hub.run(home, &["pull", "qwen9:1b"]);
    assert!(
        ran.err.starts_with("error: \"qwen9:1b\" is no short name, and no file is called so; qwen"),
        "{}",
        ran.err
    );
    let all = hub.ok(home, &["list", "--names"]).out;
    assert!(all.contains("qwen3:8b") && all.contains("gemma3:4b"), "{all}");
    for words in [&["list", "--names", "Qwen3:8"][..], &["search", "qwen3:8"]] {
        let some = hub.ok(home, words).out;
        assert!(some.contains("qwen3:8b") && !some.contains("gemma3:4b"), "{some}");
        assert!(some.lines().next().unwrap().ends_with("FITS"), "{some}");
    }
    let none = hub.ok(home, &["search", "nothing"]).err;
    assert!(none.starts_with("none of ") && none.contains(" short names has nothing in it: "), "{none}");
}

#[test]
fn several_are_pulled_and_removed_at_once() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    let home = home.path();
    let bytes = std::fs::read(GGUF).unwrap();
    hub.put("org/a", &[("m.gguf", &bytes)]);
    hub.put("org/b", &[("m.gguf", &bytes)]);
    let out = hub.ok(home, &["pull", "org/a", "org/b"]).out;
    assert_eq!(out.lines().count(), 2, "{out}");
    assert!(out.lines().all(|path| path.ends_with("/m.gguf")), "{out}");
    hub.forget();
    // What cannot be meant is known before anything is asked for.
    let path = "error: ./x is a path, and no name: expected org/name[@revision][:VARIANT], or a short name";
    refused(&hub, home, &["pull", "org/a", "./x"], 2, path);
    let unknown = hub.run(home, &["pull", "org/a", "qwen9:1b"]);
    assert!(
        unknown.err.contains("\"qwen9:1b\" is no short name") && unknown.code == Some(1),
        "{}",
        unknown.err
    );
    assert_eq!(hub.seen().len(), 0);
    let kept = hub.run(home, &["rm", "--yes", "org/a", "org/c"]);
    assert!(kept.err.contains("org/c is not in ") && kept.code == Some(1), "{}", kept.err);
    let names = || json(&hub.ok(home, &["list", "--json"]))["models"].as_array().unwrap().len();
    assert_eq!(names(), 2);
    let kept = hub.run(home, &["rm", "--yes", "org/b", "org/a:Q2_K"]);
    assert!(kept.err.contains("org/a:Q2_K is not here: ") && kept.code == Some(1), "{}", kept.err);
    assert_eq!(names(), 2);
    let ask = "error: --yes removes org/a, org/b where nobody can be asked";
    refused(&hub, home, &["rm", "org/a", "org/b", "org/a"], 2, ask);
    let removed = hub.ok(home, &["rm", "--yes", "org/a", "org/b"]).err;
    assert!(removed.contains("org/a is removed: ") && removed.contains("org/b is removed: "), "{removed}");
    assert_eq!(names(), 0);
}

#[test]
fn what_cannot_be_meant_says_what_can() {
    let (hub, home) = (Hub::with(&[("m.gguf", b"GGUF")]), tempfile::tempdir().unwrap());
    let home = home.path();
    refused(
        &hub,
        home,
        &["pull", "org/none"],
        1,
        &format!("error: org/none: {} has no such repository, revision or file", hub.address()),
    );
    refused(&hub, home, &["pull", "."], 2, "error: . is here, there is nothing to download");
    let path = "error: ./x is a path, and no name: expected org/name[@revision][:VARIANT], or a short name";
    refused(&hub, home, &["pull", "./x"], 2, path);
    let ran = hub.run(home, &["pull", "a b/c"]);
    assert!(
        ran.err.starts_with("error: \"a b/c\" names no model: it is no repository; expected"),
        "{}",
        ran.err
    );
    let offline = |args: &[&str]| {
        let output = ended(hub.command(home, args).env("HF_HUB_OFFLINE", "1").spawn().unwrap());
        String::from_utf8(output.stderr).unwrap().trim_end().to_owned()
    };
    let expected = "error: HF_HUB_OFFLINE is set: nothing is downloaded; unset it, or take a model that is here (backstop list)";
    assert_eq!(offline(&["pull", "org/model"]), expected);
    let expected = "error: org/model is not on this machine, and HF_HUB_OFFLINE is set: backstop list shows what is here";
    assert_eq!(offline(&["run", "org/model", "x", "--pull"]), expected);
    assert_eq!(hub.seen().len(), 1);
    // A token on the command line, and in the environment.
    hub.rule(|seen, _| match seen.authorization.as_deref() {
        Some("Bearer hf_good") => Action::Serve,
        _ => Action::Status(401, Vec::new()),
    });
    let ran = hub.run(home, &["pull", "org/model"]);
    assert!(
        ran.err.contains("wants to know who asks (401 Unauthorized)")
            && ran.err.contains("--token or HF_TOKEN"),
        "{}",
        ran.err
    );
    hub.ok(home, &["pull", "org/model", "--token", "hf_good"]);
    let output = ended(hub.command(home, &["pull", "org/model"]).env("HF_TOKEN", "hf_bad").spawn().unwrap());
    assert!(String::from_utf8(output.stderr).unwrap().contains("does not know the token"));
}

#[test]
fn ctrl_c_keeps_what_came_and_says_so() {
    let bytes = noise(2_000_000, 2);
    let (hub, home) = (Hub::with(&[("m.gguf", &bytes)]), tempfile::tempdir().unwrap());
    hub.rule(
        |seen, _| {
            if seen.is_file() { Action::Slow(20_000, Duration::from_millis(20)) } else { Action::Serve }
        },
    );
    let child = hub.command(home.path(), &["pull", "org/model"]).spawn().unwrap();
    while hub.sent() < 1_400_000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = ended(child);
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(
        last.starts_with("interrupted: ")
            && last.ends_with("of 2.0 MB are kept, and `backstop pull org/model` goes on there"),
        "{last}"
    );
    hub.rule(|_, _| Action::Serve);
    hub.forget();
    let ran = hub.ok(home.path(), &["pull", "org/model"]);
    assert!(
        ran.err.starts_with("org/model:m: 1 file, 2.0 MB, ") && ran.err.contains(" of them are here"),
        "{}",
        ran.err
    );
    assert!((1..bytes.len() as u64).contains(&hub.sent()), "{}", hub.sent());
    assert!(std::fs::read(ran.out.trim_end()).unwrap() == bytes);
}

#[test]
fn models_of_other_programs_are_run_and_not_removed() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    let home = home.path();
    let bytes = std::fs::read(GGUF).unwrap();
    let hash = sha256(&bytes);
    let write = |path: &str, bytes: &[u8]| {
        let path = home.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write(&format!("ollama/blobs/sha256-{hash}"), &bytes);
    let layers = json!([{ "mediaType": "application/vnd.ollama.image.model", "digest": format!("sha256:{hash}"), "size": bytes.len() }]);
    let manifest = json!({ "schemaVersion": 2, "layers": layers }).to_string();
    write("ollama/manifests/registry.ollama.ai/library/tiny/1b", manifest.as_bytes());
    write("ollama/manifests/registry.example.com:81/me/tiny/1b", manifest.as_bytes());
    write(".lmstudio/models/org/tiny-GGUF/tiny-F16.gguf", &bytes);
    let by_path = json(&hub.ok(home, &[&["run", "Hello", "--model", GGUF], &RUN[..], &["0"]].concat()));
    for name in ["tiny:1b", "registry.example.com:81/me/tiny:1b", "org/tiny-GGUF", "org/tiny-GGUF:F16"] {
        let ran = json(&hub.ok(home, &[&["run", "--model", name, "Hello"], &RUN[..], &["0"]].concat()));
        assert_eq!(ran["text"], by_path["text"], "{name}");
        let ran = hub.run(home, &["rm", "--yes", name]);
        assert!(ran.err.contains("another program's: remove it there") && ran.code == Some(1), "{}", ran.err);
    }
    let listed = json(&hub.ok(home, &["list", "--json"]));
    let of = |i: usize| {
        (listed["models"][i]["name"].as_str().unwrap(), listed["models"][i]["origin"].as_str().unwrap())
    };
    let expected = [
        ("org/tiny-GGUF:F16", "LM Studio"),
        ("registry.example.com:81/me/tiny:1b", "Ollama"),
        ("tiny:1b", "Ollama"),
    ];
    assert_eq!([of(0), of(1), of(2)], expected);
    hub.ok(home, &["show", "registry.example.com:81/me/tiny:1b"]);
    for (name, whose, path) in [
        ("org/tiny-GGUF:F16", "LM Studio", home.join(".lmstudio/models/org/tiny-GGUF/tiny-F16.gguf")),
        ("tiny:1b", "Ollama", home.join(format!("ollama/blobs/sha256-{hash}"))),
    ] {
        let ran = hub.ok(home, &["pull", name]);
        assert_eq!(ran.out, format!("{}\n", path.display()));
        assert_eq!(ran.err, format!("{whose} has {name}: --again downloads it all the same\n"));
    }
    let absent = "error: registry.example.com/me/none:1 is not on this machine, and a name of Ollama's: `ollama pull \
                  registry.example.com/me/none:1` downloads it";
    for command in [&["show"][..], &["pull"], &["rm", "--yes"], &["run", "--pull", "Hello", "--model"]] {
        refused(&hub, home, &[command, &["registry.example.com/me/none:1"]].concat(), 1, absent);
    }
    assert_eq!(hub.seen().len(), 0);
    hub.put("org/tiny-GGUF", &[("tiny-F16.gguf", &bytes)]);
    let ran = hub.ok(home, &["pull", "org/tiny-GGUF", "--again"]);
    assert!(
        ran.out.starts_with(home.join("hub").to_str().unwrap()) && !hub.files_seen().is_empty(),
        "{}",
        ran.out
    );
}

#[test]
fn what_is_here_needs_no_hub() {
    let (hub, home) = (Hub::with(&[("m.gguf", b"GGUF")]), tempfile::tempdir().unwrap());
    let home = home.path();
    let path = hub.ok(home, &["pull", "org/model"]).out;
    hub.forget();
    let pull = |variable: &str, value: &str, name: &str| {
        let output = ended(hub.command(home, &["pull", name]).env(variable, value).spawn().unwrap());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = pull("HF_HUB_OFFLINE", "1", "org/model");
    assert_eq!((code, &out), (Some(0), &path), "{err}");
    assert!(err.starts_with("org/model is here; HF_HUB_OFFLINE is set"), "{err}");
    // Nobody listens there.
    let (code, out, err) = pull("HF_ENDPOINT", "http://127.0.0.1:1", "org/model");
    assert_eq!((code, &out), (Some(0), &path), "{err}");
    assert!(err.contains("; what is here of org/model may not be the newest"), "{err}");
    for (variable, value) in [("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:1")] {
        let (code, out, err) = pull(variable, value, "org/other");
        assert_eq!((code, &*out), (Some(1), ""), "{err}");
    }
    assert_eq!(hub.seen().len(), 0);
}

#[test]
fn what_is_incomplete_is_listed_as_that_and_completed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("model-00001-of-00002.safetensors", b"first"),
        ("model-00002-of-00002.safetensors", b"second"),
        ("model.safetensors.index.json", index),
        ("tokenizer.json", b"{ }"),
    ];
    let hub = Hub::with(&files);
    let path = hub.ok(home, &["pull", "org/model"]).out;
    // As Python leaves it where it was stopped, or was asked for some files.
    let shard = Path::new(path.trim_end()).join(files[2].0);
    std::fs::remove_file(std::fs::canonicalize(&shard).unwrap()).unwrap();
    std::fs::remove_file(&shard).unwrap();
    hub.forget();
    let ran = hub.ok(home, &["list"]);
    let bytes = 2 + 5 + 3 + index.len();
    assert!(
        ran.out.contains(&format!("org/model  safetensors  hub     {bytes} B, incomplete  ")),
        "{}",
        ran.out
    );
    assert_eq!(
        ran.err,
        "note: files of what is incomplete are missing: `backstop pull org/model` completes it\n"
    );
    assert_eq!(json(&hub.ok(home, &["list", "--json"]))["models"][0]["complete"], false);
    let absent =
        "error: org/model is not on this machine: --pull downloads it, as `backstop pull org/model` does";
    refused(&hub, home, &["run", "org/model", "Hello"], 1, absent);
    assert_eq!(hub.seen().len(), 0);
    assert_eq!(hub.ok(home, &["pull", "org/model"]).out, path);
    let asked: Vec<String> = hub.files_seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, [format!("/org/model/resolve/{COMMIT}/{}", files[2].0)]);
    assert_eq!(std::fs::read(&shard).unwrap(), b"second");
    let ran = hub.ok(home, &["list"]);
    assert!(!ran.out.contains("incomplete") && ran.err.is_empty(), "{}{}", ran.out, ran.err);
}

#[test]
fn a_password_in_the_address_of_the_hub_is_not_repeated() {
    let (hub, home) = (Hub::with(&[("m.gguf", b"GGUF")]), tempfile::tempdir().unwrap());
    let endpoint = hub.address().replace("http://", "http://me:secret@");
    let mut pull = hub.command(home.path(), &["pull", "org/model", "-vvv"]);
    let output = ended(pull.env("HF_ENDPOINT", endpoint).spawn().unwrap());
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "error: HF_ENDPOINT is {:?}, expected an address such as https://huggingface.co, without a name and password, which are \
         not sent: HF_TOKEN says who asks",
        hub.address()
    );
    assert_eq!(said.lines().last(), Some(&*expected));
    assert!(!said.contains("secret"), "{said}");
    assert_eq!((output.status.code(), hub.seen().len()), (Some(1), 0));
}
