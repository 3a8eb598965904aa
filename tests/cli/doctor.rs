//! `backstop doctor`.

use std::net::TcpListener;
use std::process::Command;

use crate::support::*;

/// With a home of its own, so that this machine's models are not among what is found.
fn doctor(home: &str, args: &[&str]) -> Command {
    let mut command = command(&[&["doctor"], args].concat());
    for name in
        ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN", "OLLAMA_MODELS"]
    {
        command.env_remove(name);
    }
    command.env("HOME", home).env_remove("HF_HUB_OFFLINE").env_remove("HF_ENDPOINT");
    command
}

#[test]
fn a_machine_that_runs_models_is_told_so() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    let ran = ended(doctor(path, &[]).spawn().unwrap());
    assert_eq!((ran.code, &*ran.err), (Some(0), ""), "{}", ran.out);
    for part in
        ["version   backstop ", "\ncpu  ", "\nmemory ", "\nspeed ", "\nmlx ", "\nmodels    hub: 0 models, "]
    {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    assert!(ran.out.contains("→ backstop pull qwen3:0.6b") && !ran.out.contains('\x1b'), "{}", ran.out);
    assert!(ran.out.ends_with("\n\nThis machine runs models.\n"), "{}", ran.out);

    // What is there is found, and a token is not told.
    cached(&home.path().join(".cache/huggingface/hub"), "models--org--m");
    let taken = TcpListener::bind("127.0.0.1:8080");
    let mut command = doctor(path, &["--json"]);
    command
        .env("HF_TOKEN", "hf_secret")
        .env("HF_ENDPOINT", "http://hub.example.org")
        .env("HF_HUB_OFFLINE", "1");
    let ran = ended(command.spawn().unwrap());
    assert!(!ran.out.contains("hf_secret"), "{}", ran.out);
    let told = json(&ran);
    assert_eq!((&told["ok"], ran.code), (&true.into(), Some(0)), "{told}");
    let parts = &told["parts"];
    assert_eq!(
        (&parts["models"]["folders"][0]["models"], &parts["port"]["free"]),
        (&1.into(), &false.into()),
        "{told}"
    );
    assert_eq!((&parts["hub"]["token"], &parts["hub"]["offline"]), (&true.into(), &true.into()));
    assert_eq!(
        parts["trial"].as_array().unwrap().iter().filter(|of| of["ok"] == true).count(),
        parts["trial"].as_array().unwrap().len()
    );
    assert!(parts["speed"]["read_bandwidth"].as_f64().is_none_or(|rate| rate > 1e8), "{told}");
    let said = told["advice"].to_string();
    for part in
        ["--port 0 one that is free", "HF_ENDPOINT should begin with https://", "nothing can be downloaded"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    drop(taken);
}

#[test]
fn what_is_broken_is_said_and_the_code_is_one() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    let mut command = doctor(path, &[]);
    command.env("HF_TOKEN", "not a token\n\n");
    let ran = ended(command.spawn().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.out.contains("error: set HOME or HF_HOME, and check HF_TOKEN"), "{}", ran.out);
    assert!(ran.out.ends_with("1 part is wrong: see what is said of it above.\n"), "{}", ran.out);
    let mut command = doctor(path, &["--json"]);
    command.env_remove("HOME");
    let told = json(&ended(command.spawn().unwrap()));
    assert_eq!((&told["ok"], &told["broken"][0]["part"]), (&false.into(), &"models".into()), "{told}");
}
