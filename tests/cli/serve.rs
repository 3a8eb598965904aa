//! What `backstop serve` says when it starts.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::*;

/// The answer to the line that a server gives to try.
fn tried(args: &[&str]) -> Value {
    let mut server = command(&[&["serve", "--port", "0"], args].concat());
    server.stdout(Stdio::null()).env("BACKSTOP_API_KEY", "sesame");
    let mut server = server.spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let line = lines.find_map(|line| line.unwrap().strip_prefix("try: ").map(str::to_owned)).unwrap();
    std::thread::spawn(move || lines.for_each(drop));
    let ran = Command::new("sh").args(["-c", &line]).env("BACKSTOP_API_KEY", "sesame").output().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(ran.status.success(), "{line}: {ran:?}");
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{line}: {error}: {ran:?}"))
}

#[test]
fn the_line_to_try_works_as_it_is() {
    if Command::new("curl").arg("--version").output().is_err() {
        return println!("skipped: there is no curl");
    }
    let path = |name: &str| fixture(name).to_str().unwrap().to_owned();
    let answer = tried(&[]);
    assert!(
        answer["choices"][0]["message"]["content"].as_str().is_some_and(|text| text.len() > 20),
        "{answer}"
    );
    let answer = tried(&["--host", "0.0.0.0"]);
    assert!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
    // Without a tokenizer.
    let answer = tried(&[&path("models/llama-bf16")]);
    assert_eq!(answer["object"], "text_completion", "{answer}");
    let noise = Noise::plain();
    let answer = tried(&[noise.path()]);
    assert!(answer["choices"][0]["text"].is_string(), "{answer}");
}

#[test]
fn the_line_to_try_names_a_model_where_none_is_loaded() {
    if Command::new("curl").arg("--version").output().is_err() {
        return println!("skipped: there is no curl");
    }
    let (dir, noise) = (tempfile::tempdir().unwrap(), Noise::new());
    let put = |name: &str, from: &std::path::Path| {
        let to = dir.path().join(name);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    // The first is broken, and the next one of a name that a shell would part.
    std::fs::create_dir(dir.path().join("a")).unwrap();
    std::fs::write(dir.path().join("a/config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("a/model.safetensors"), "none").unwrap();
    put("it's b", noise.0.path());
    put("c", noise.0.path());
    let answer = tried(&["--models-dir", dir.path().to_str().unwrap()]);
    assert_eq!((&answer["model"], &answer["object"]), (&"c".into(), &"chat.completion".into()), "{answer}");
    std::fs::remove_dir_all(dir.path().join("c")).unwrap();
    let answer = tried(&["--models-dir", dir.path().to_str().unwrap()]);
    assert_eq!(answer["model"], "it's b", "{answer}");
}
