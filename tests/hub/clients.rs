//! Ollama's own packages, of Python and JavaScript, against a server that downloads from the hub.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::models::Noise;
use super::pulled::{Server, question};
use super::served::{Hub, ended, tree};

const PYTHON: &str = r#"
import json, sys, ollama
api = ollama.Client(host=sys.argv[1])
first, second, third = sys.argv[2:]
parts = list(api.pull(first, stream=True))
whole = api.pull(second, stream=False)
again = list(api.pull(third, stream=True)) and list(api.pull(third, stream=True))
say = lambda name: api.chat(model=name, messages=[{"role": "user", "content": "Hello"}],
                            options={"num_predict": 4, "temperature": 0}).message.content
refused = []
for wrong in ("org/none", "/etc"):
    try:
        list(api.pull(wrong, stream=True))
    except ollama.ResponseError as error:
        refused.append(error.error)
print(json.dumps({
    "parts": [[part.status, part.completed, part.total] for part in parts],
    "whole": whole.status, "again": [part.status for part in again], "refused": refused,
    "version": api._request_raw("GET", "/api/version").json()["version"],
    "there": sorted(model.model for model in api.list().models),
    "texts": [say(name) for name in (first, second, third)],
    "running": sorted(model.model for model in api.ps().models),
}))
api.close()
"#;

const JAVASCRIPT: &str = r#"
import { Ollama } from 'ollama';
const [host, first, second, third] = process.argv.slice(2);
const api = new Ollama({ host });
const parts = [], again = [], refused = [];
for await (const part of await api.pull({ model: first, stream: true })) parts.push([part.status, part.completed ?? null, part.total ?? null]);
const whole = (await api.pull({ model: second, stream: false })).status;
await api.pull({ model: third });
for await (const part of await api.pull({ model: third, stream: true })) again.push(part.status);
for (const wrong of ['org/none', '/etc']) {
  try {
    for await (const _ of await api.pull({ model: wrong, stream: true }));
  } catch (error) {
    refused.push(error.message);
  }
}
const messages = [{ role: 'user', content: 'Hello' }], options = { num_predict: 4, temperature: 0 };
const texts = [];
for (const model of [first, second, third]) texts.push((await api.chat({ model, messages, options })).message.content);
const names = async (list) => (await list).models.map((of) => of.name).sort();
process.stdout.write(JSON.stringify({
  parts, whole, again, refused, version: (await api.version()).version,
  there: await names(api.list()), texts, running: await names(api.ps()),
}));
"#;

/// What is needed for a test: what the variable names, which has to have it, or what else has; a skip says why.
fn found(variable: &str, or: &str, what: &str, has: impl Fn(&str) -> bool) -> Option<String> {
    let named = std::env::var(variable).ok();
    let place = named.clone().unwrap_or_else(|| or.to_owned());
    if has(&place) {
        return Some(place);
    }
    assert_eq!(named, None, "{variable} has no {what}");
    eprintln!(
        "skipped: {place} has no {what}; {variable} names a place that has, as `cargo xtask clients` does"
    );
    None
}

/// Has a client pull three models, and talk to each.
fn drive(client: impl Fn(&[&str]) -> Command) {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    let names = ["org/first", "hf.co/org/second", "third/model:latest"];
    let repositories = ["org/first", "org/second", "third/model"];
    for (kind, repository) in repositories.iter().enumerate() {
        let noise = Noise::of(32, 48, 1, kind as u64);
        let files = tree(Path::new(noise.path()));
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(path, of)| (path.to_str().unwrap(), &**of)).collect();
        hub.put(repository, &files);
    }
    let server = Server::start(&hub, home.path(), &["--pull"]);
    let address = format!("http://{}", server.address());
    let mut client = client(&[&[&*address][..], &names].concat());
    let output =
        ended(client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    let parts = made["parts"].as_array().unwrap();
    assert_eq!(
        (&parts[0][0], &parts.last().unwrap()[0]),
        (&json!("pulling manifest"), &json!("success")),
        "{made}"
    );
    let far: Vec<_> = parts.iter().filter_map(|part| Some((part[1].as_u64()?, part[2].as_u64()?))).collect();
    assert!(!far.is_empty() && far.iter().all(|(done, total)| done <= total && *total > 50_000), "{made}");
    assert_eq!(
        (&made["whole"], made["again"].as_array().unwrap().last()),
        (&json!("success"), Some(&json!("success")))
    );
    assert_eq!(made["version"].as_str().map(|version| version.split('.').count()), Some(3), "{made}");
    let there: Vec<&str> = made["there"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut once = there.clone();
    once.dedup();
    assert_eq!(there, once, "each name once");
    for name in ["org/first:latest", "org/second:latest", "third/model:latest"] {
        assert!(there.contains(&name), "{name}: {there:?}");
    }
    let texts = names.map(|name| {
        let (status, answer) = server.post("/api/chat", &question(name));
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["message"]["content"].clone()
    });
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    assert_eq!(made["texts"], json!(texts));
    assert_eq!(made["running"].as_array().map(Vec::len), Some(4), "the three, and the built-in one: {made}");
    let refused = made["refused"].as_array().unwrap();
    assert!(
        refused[0].as_str().unwrap().contains("org/none")
            && refused[1].as_str().unwrap().contains("is a path"),
        "{made}"
    );
    // Each file came once, for whichever name of a model.
    let total: usize = hub.files_seen().len();
    let mut paths: Vec<String> = hub.files_seen().into_iter().map(|seen| seen.path).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(total, paths.len());
}

#[test]
fn ollamas_python_package_pulls_and_talks() {
    let has = |python: &str| {
        Command::new(python)
            .args(["-c", "import ollama"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let Some(python) = found("BACKSTOP_OLLAMA_PYTHON", "python3", "package ollama", has) else { return };
    drive(|args| {
        let mut command = Command::new(&python);
        command.args(["-c", PYTHON]).args(args);
        command
    });
}

#[test]
fn ollamas_javascript_package_pulls_and_talks() {
    let node = Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success());
    let has = |packages: &str| node && Path::new(packages).join("ollama").is_dir();
    let or = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients/node_modules");
    let Some(packages) = found("NODE_PACKAGES", or, "package ollama, with a node to run it", has) else {
        return;
    };
    // Modules are looked for beside the file that asks for them.
    let program = PathBuf::from(packages).join("../ollama_pull.mjs");
    std::fs::write(&program, JAVASCRIPT).unwrap();
    drive(|args| {
        let mut command = Command::new("node");
        command.arg(&program).args(args);
        command
    });
}
