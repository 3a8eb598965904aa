//! `backstop bundle NAME`: a model of the hub in an executable.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::models::Noise;
use super::served::{Hub, tree};

/// What a program says that another test may still have open for writing, as it starts a process of its own.
fn output(command: &mut Command) -> Output {
    for _ in 0..1000 {
        match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            ran => return ran.unwrap(),
        }
    }
    panic!("{command:?}: text file busy for ten seconds");
}

#[test]
fn a_bundle_of_a_name_is_that_model() {
    let (hub, noise) = (Hub::new(), Noise::new());
    let files = tree(Path::new(noise.path()));
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(path, bytes)| (path.to_str().unwrap(), &**bytes)).collect();
    hub.put("org/model", &files);
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [first, again, refused] = ["first", "again", "refused"].map(|name| out.path().join(name));
    let bundle = |to: &Path, more: &[&str]| {
        let args = [&["bundle", "org/model", "-o", to.to_str().unwrap()], more].concat();
        hub.run(home.path(), &args)
    };
    // Nobody is there who could be asked.
    let ran = bundle(&refused, &[]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("org/model is not on this machine") && !refused.exists(), "{}", ran.err);
    assert_eq!(hub.files_seen().len(), 0);
    let ran = bundle(&first, &["--pull"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(hub.files_seen().len(), files.len());
    hub.forget();
    assert_eq!(bundle(&again, &[]).code, Some(0));
    assert_eq!(hub.seen().len(), 0);
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&again).unwrap(), "the same model twice");
    hub.ok(home.path(), &["bundle", "--verify", first.to_str().unwrap()]);

    // It needs neither the hub nor the cache.
    let elsewhere = tempfile::tempdir().unwrap();
    let options = ["--raw", "--max-tokens", "5", "--temperature", "0", "--json", "--threads", "1"];
    let mut program = Command::new(&first);
    hub.environment(&mut program, elsewhere.path());
    let ran = output(program.arg("run").arg("Hello").args(options).stdin(Stdio::null()));
    assert!(ran.status.success(), "{ran:?}");
    let said: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let run = ["run", "Hello", "--model", noise.path()];
    let directly: Value =
        serde_json::from_str(&hub.ok(elsewhere.path(), &[&run[..], &options].concat()).out).unwrap();
    assert_eq!(said["tokens"], directly["tokens"]);
    assert_eq!(said["tokens"].as_array().map(Vec::len), Some(5));
    assert_eq!(hub.seen().len(), 0);
}
