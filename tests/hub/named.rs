//! Every command by a model's name, from the hub to its end.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use super::models::Noise;
use super::pulled::{Server, question};
use super::served::{Hub, ended, tree};
use super::{commands, parts};

/// A hub with a model, its number of files, and a home for each that asks it.
fn hub() -> (Hub, Noise, usize) {
    let (hub, noise) = (Hub::new(), Noise::new());
    let files = tree(Path::new(noise.path()));
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(path, bytes)| (path.to_str().unwrap(), &**bytes)).collect();
    hub.put("org/model", &files);
    (hub, noise, files.len())
}

/// What a command says on stdout by the model's path, and by its name, which is not here before: nobody is asked once it is.
#[track_caller]
fn both(hub: &Hub, noise: &Noise, files: usize, args: &[&str]) -> [Value; 2] {
    let home = tempfile::tempdir().unwrap();
    let by_path = hub.ok(home.path(), &[args, &["--model", noise.path()]].concat());
    hub.forget();
    let named = [args, &["--model", "org/model", "--pull"]].concat();
    let by_name = hub.ok(home.path(), &named);
    assert_eq!(hub.files_seen().len(), files, "{args:?}");
    hub.forget();
    hub.ok(home.path(), &named[..named.len() - 1]);
    assert_eq!(hub.seen().len(), 0, "{args:?}");
    [by_path, by_name].map(|ran| serde_json::from_str(&ran.out).unwrap())
}

#[test]
fn run_parity_perplexity_and_bench_take_a_name() {
    let (hub, noise, files) = hub();
    let on = ["--backend", "cpu", "--json", "--threads", "1"];
    let run = ["run", "Hello", "--raw", "--max-tokens", "5", "--temperature", "0"];
    let [path, name] = both(&hub, &noise, files, &[&run[..], &on].concat());
    assert_eq!(path["text"], name["text"]);
    let [path, name] = both(&hub, &noise, files, &[&["parity", "--tokens", "8"], &on[..]].concat());
    assert_eq!((&path["perplexity"], &path["tokens"]), (&name["perplexity"], &json!(8)));
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity/text.txt");
    let [path, name] = both(
        &hub,
        &noise,
        files,
        &[&["perplexity", text, "--window", "16", "--tokens", "32"], &on[..]].concat(),
    );
    assert!(
        path["perplexity"]["value"].as_f64().unwrap() > 1.0 && path["perplexity"] == name["perplexity"],
        "{path} {name}"
    );
    let bench = ["bench", "-p", "4", "-n", "2", "--reps", "1"];
    let [path, name] = both(&hub, &noise, files, &[&bench[..], &on].concat());
    let measured = |of: &Value| {
        let row = &of["rows"][0];
        (row["weight_bytes_per_token"].clone(), row["rates"]["generation"]["median"].as_f64().unwrap() > 0.0)
    };
    assert_eq!(measured(&path), measured(&name));
    assert!(measured(&name).1, "{name}");
    assert_eq!(name["model"]["name"], "model");
}

#[test]
fn what_measures_takes_a_model_before_what_it_reads() {
    let (hub, noise, _) = hub();
    let home = tempfile::tempdir().unwrap();
    hub.ok(home.path(), &["pull", "org/model"]);
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity/text.txt");
    let says = |args: &[&str], value: &str| {
        let args = [args, &["--backend", "cpu", "--json", "--threads", "1"]].concat();
        let said: Value = serde_json::from_str(&hub.ok(home.path(), &args).out).unwrap();
        assert_ne!(said[value], Value::Null, "{said}");
        said[value].clone()
    };
    let window = ["--window", "16", "--tokens", "32"];
    let scores = [&["perplexity", "org/model", text][..], &["perplexity", text, "-m", noise.path()]];
    let [typed, by_path] = scores.map(|args| says(&[args, &window].concat(), "perplexity"));
    assert_eq!(typed, by_path);
    let parity = [
        &["parity", "org/model", "Hello there", "--tokens", "8"][..],
        &["parity", "Hello there", "--model", noise.path(), "--tokens", "8"],
    ];
    let [typed, by_path] = parity.map(|args| says(args, "perplexity"));
    assert_eq!(typed, by_path);
    // One name by itself is the model, and the text is the usual one.
    let [alone, by_path] = [&["parity", "org/model"][..], &["parity", "--model", noise.path()]]
        .map(|args| says(&[args, &["--tokens", "8"]].concat(), "perplexity"));
    assert_eq!(alone, by_path);
    let bench = says(&["bench", "org/model", "-p", "4", "-n", "2", "--reps", "1"], "model");
    assert_eq!(bench["name"], "model");

    for model in ["org/model", noise.path()] {
        let ran = hub.run(home.path(), &["perplexity", model]);
        let expected = format!(
            "error: {model} is a model, and the FILE to read is left out: {model} FILE is expected\n"
        );
        assert_eq!((ran.code, ran.err), (Some(2), expected));
    }
    let ran = hub.run(home.path(), &["tasks", "-m", "org/model"]);
    let expected = "error: the FILE to read is left out: [MODEL] FILE is expected\n";
    assert_eq!((ran.code, &*ran.err), (Some(2), expected));
    for text in [&["-p", "Hello"][..], &["Hello"], &["Hello", "there"]] {
        let ran = hub.run(home.path(), &[&["run", "-m", "org/other", "org/model"], text].concat());
        let expected = "error: the model is named twice: by itself, and by --model\n";
        assert_eq!((ran.code, &*ran.err), (Some(2), expected), "{text:?}");
    }
    let said = ["Hello there you", "Hello"].map(|text| {
        let words = text.split(' ').collect::<Vec<_>>();
        let typed = ["run", "-m", "org/model", "--max-tokens", "4", "--temperature", "0"];
        let [one, several] = [&[text][..], &words].map(|text| hub.ok(home.path(), &[&typed, text].concat()));
        assert_eq!(one.out, several.out);
        one.out
    });
    assert_ne!(said[0], said[1]);
    let ran = hub.run(home.path(), &["perplexity", "org/model", text, "--model", noise.path()]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
}

#[test]
fn quantize_takes_a_name() {
    let (hub, noise, files) = hub();
    let home = tempfile::tempdir().unwrap();
    let out = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (from_path, from_name) = (out("path.gguf"), out("name.gguf"));
    let to = ["--to", "gguf", "--type", "Q8_0", "-o"];
    hub.ok(home.path(), &[&["quantize", noise.path()], &to[..], &[&*from_path]].concat());
    hub.ok(home.path(), &[&["quantize", "org/model", "--pull"], &to[..], &[&*from_name]].concat());
    assert_eq!(hub.files_seen().len(), files);
    let texts = [from_path, from_name].map(|file| {
        let args =
            ["run", "Hello", "--raw", "--max-tokens", "5", "--temperature", "0", "--json", "--model", &*file];
        serde_json::from_str::<Value>(&hub.ok(home.path(), &args).out).unwrap()["tokens"].clone()
    });
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[0].as_array().map(Vec::len), Some(5));
}

#[test]
fn a_conversation_takes_a_name() {
    let (hub, noise, files) = hub();
    let home = tempfile::tempdir().unwrap();
    let talk = |model: &str, more: &[&str]| {
        let args =
            [&["chat", model, "--max-tokens", "5", "--temperature", "0", "--no-summary"], more].concat();
        let mut child = hub.command(home.path(), &args).stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"Hello\nAnd you?\n").unwrap();
        let output = ended(child);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let by_path = talk(noise.path(), &[]);
    assert!(!by_path.is_empty());
    assert_eq!(talk("org/model", &["--pull"]), by_path);
    assert_eq!(hub.files_seen().len(), files);
    hub.forget();
    assert_eq!(talk("org/model", &[]), by_path);
    assert_eq!(hub.seen().len(), 0);
}

#[test]
fn a_server_takes_names_and_answers_by_them() {
    let (hub, noise, files) = hub();
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&hub, home.path(), &[noise.path(), "--alias", "path"]);
    let text = |server: &Server, model: &str| {
        let (status, answer) = server.post("/api/chat", &question(model));
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["message"]["content"].clone()
    };
    let by_path = text(&server, "path");
    drop(server);
    let server = Server::start(&hub, home.path(), &["org/model", "--pull"]);
    assert_eq!(hub.files_seen().len(), files);
    assert_eq!(text(&server, "org/model"), by_path);
}

/// All parts of a split file come, and none of another variant; as one they are what the file is that was split.
#[test]
fn a_file_in_parts_is_pulled_whole_and_run() {
    let whole = std::fs::read(commands::GGUF).unwrap();
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    let of = parts::of(&whole, 3);
    let name = |number: usize| format!("Q4_0/tiny-Q4_0-{number:05}-of-00003.gguf");
    let names = [1, 2, 3].map(name);
    let mut files: Vec<(&str, &[u8])> =
        names.iter().zip(&of).map(|(name, part)| (&**name, &**part)).collect();
    files.push(("tiny-Q8_0.gguf", b"another"));
    hub.put("org/tiny-GGUF", &files);
    let home = home.path();
    let run = ["Hello", "--raw", "--max-tokens", "5", "--temperature", "0", "--backend", "cpu", "--json"];
    let text = |args: &[&str]| {
        let ran = hub.ok(home, &[&["run"], args, &run[..]].concat());
        serde_json::from_str::<Value>(&ran.out).unwrap()["text"].clone()
    };
    let expected = text(&["--model", commands::GGUF]);
    assert_eq!(text(&["org/tiny-GGUF:Q4_0", "--pull"]), expected);
    let total: usize = of.iter().map(Vec::len).sum();
    assert_eq!((hub.files_seen().len(), hub.sent()), (3, total as u64));
    let path = hub.ok(home, &["pull", "org/tiny-GGUF:Q4_0"]).out;
    assert!(path.trim_end().ends_with(&names[0]), "{path}");
    let folder = Path::new(path.trim_end()).parent().unwrap();
    for (name, part) in names.iter().zip(&of) {
        let file = folder.join(Path::new(name).file_name().unwrap());
        assert!(std::fs::read(file).unwrap() == *part, "{name}");
    }
    let listed: Value = serde_json::from_str(&hub.ok(home, &["list", "--json"]).out).unwrap();
    assert_eq!(
        (
            &listed["models"][0]["name"],
            &listed["models"][0]["bytes"],
            listed["models"].as_array().unwrap().len()
        ),
        (&json!("org/tiny-GGUF:Q4_0"), &json!(total), 1)
    );
    // One of them gone, it is no model that could be run half.
    std::fs::remove_file(folder.join(Path::new(&names[1]).file_name().unwrap())).unwrap();
    let ran = hub.run(home, &[&["run", "org/tiny-GGUF:Q4_0"], &run[..]].concat());
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.err.contains("org/tiny-GGUF:Q4_0 is not on this machine"), "{}", ran.err);
    hub.forget();
    assert_eq!(text(&["org/tiny-GGUF:Q4_0", "--pull"]), expected);
}
