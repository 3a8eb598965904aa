//! `backstop doctor`.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::support::*;

/// With a home of its own, so that this machine's models are not among what is found.
fn doctor(home: &str, args: &[&str]) -> Command {
    let mut command = command(&[&["doctor"], args].concat());
    for name in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN"] {
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
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = doctor(path, &["--json", "--port", &port]);
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
fn a_server_that_runs_is_told_of_with_its_models() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    for key in [None, Some("sesame")] {
        let mut command = command(&["serve", "--port", "0"]);
        command.args(key.iter().flat_map(|key| ["--api-key", key])).env_remove("BACKSTOP_API_KEY");
        let mut server = command.stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let address =
            lines.find_map(|line| Some(line.unwrap().strip_prefix("listening on http://")?.to_owned()));
        let port = address.unwrap().rsplit(':').next().unwrap().to_owned();
        let rest = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let ran = ended(doctor(path, &["--port", &port]).spawn().unwrap());
        let told = json(&ended(doctor(path, &["--port", &port, "--json"]).spawn().unwrap()));
        server.kill().unwrap();
        server.wait().unwrap();
        rest.join().unwrap();
        let version = env!("CARGO_PKG_VERSION");
        let (said, who) = match key {
            None => (
                format!("backstop {version} with 1 model, 1 loaded: stories"),
                serde_json::json!({ "version": version, "models": ["stories"], "loaded": 1 }),
            ),
            Some(_) => (
                "backstop, which does not tell its models without a key".to_owned(),
                serde_json::json!({ "version": null, "models": null, "loaded": null }),
            ),
        };
        assert!(ran.out.contains(&format!("port      {port} is taken: {said}\n")), "{}", ran.out);
        assert!(ran.out.contains("→ it serves already: backstop ps --url http://127.0.0.1:"), "{}", ran.out);
        let found = &told["parts"]["port"]["who"];
        assert_eq!(found["program"], "backstop", "{told}");
        for (name, value) in who.as_object().unwrap() {
            assert_eq!(found[name], *value, "{told}");
        }
    }
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
