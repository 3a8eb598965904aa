//! `--cache-dir`: prompts' beginnings outlive the server, with their keys; a server that is killed while it writes leaves nothing
//! that another takes for whole.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::support::{Noise, Server};

/// More than 256 tokens of the built-in model.
fn text(seed: usize) -> String {
    let names = ["Lily", "Tom", "Sara", "Ben", "Anna", "Max"];
    let sentence =
        |i: usize| format!("{} had a ball and {} ran. ", names[(i + seed) % 6], names[(i * seed + 1) % 6]);
    (0..26).map(sentence).collect()
}

/// The text behind a prompt, and whether all whole pages of it were cached; else none were.
fn ask(server: &Server, key: &str, seed: usize) -> (String, bool) {
    let (text, cached, whole) = asked(server, key, seed);
    assert!(cached == 0 || cached == whole, "{cached} of {whole} tokens");
    (text, cached > 0)
}

/// The text behind a prompt, how many tokens of it were cached, and how many are in its whole pages.
fn asked(server: &Server, key: &str, seed: usize) -> (String, u64, u64) {
    let body = json!({ "prompt": text(seed), "max_tokens": 8, "temperature": 0 }).to_string();
    let answer = server.request("POST", "/v1/completions", &[("x-api-key", key)], body.as_bytes()).ok();
    let usage = &answer["usage"];
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(prompt > 260, "{usage}");
    (answer["choices"][0]["text"].as_str().unwrap().to_owned(), cached, (prompt - 1) / 64 * 64)
}

fn served(dir: &Path, keys: &[&str]) -> Server {
    let mut args = vec!["--backend", "cpu", "--cache-dir", dir.to_str().unwrap(), "--cache-disk", "64MiB"];
    keys.iter().for_each(|key| args.extend(["--api-key", key]));
    Server::start(&args)
}

/// A value of `/metrics`, which needs a key.
fn metric(server: &Server, key: &str, name: &str) -> f64 {
    let text = server.request("GET", "/metrics", &[("x-api-key", key)], b"").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
}

#[test]
fn beginnings_outlive_the_server_and_stay_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = served(dir.path(), &["ann", "ben"]);
    let (ann, cached) = ask(&first, "ann", 1);
    assert!(!cached);
    assert_eq!(metric(&first, "ann", "backstop_disk_cache_ready"), 1.0);
    assert_eq!(metric(&first, "ann", "backstop_disk_cache_budget_bytes"), f64::from(64 << 20));
    first.signal("-TERM");
    assert_eq!(first.ended(), Some(0));

    // The keys in another order, and a new one in the place of the first.
    let second = served(dir.path(), &["cat", "ben", "ann"]);
    for key in ["cat", "ben"] {
        assert_eq!(ask(&second, key, 1), (ann.clone(), false), "{key}");
    }
    assert_eq!(metric(&second, "ann", "backstop_disk_cache_hits_total"), 0.0);
    assert_eq!(ask(&second, "ann", 1), (ann.clone(), true));
    assert_eq!(metric(&second, "ann", "backstop_disk_cache_hits_total"), 1.0);
    assert!(metric(&second, "ann", "backstop_disk_cache_hit_tokens_total") >= 256.0);
    // From memory by now.
    assert_eq!(ask(&second, "ann", 1), (ann, true));
    assert_eq!(metric(&second, "ann", "backstop_disk_cache_hits_total"), 1.0);
}

#[test]
fn a_model_that_is_on_its_way_out_writes_what_it_has() {
    let (dir, noise) = (tempfile::tempdir().unwrap(), Noise::new());
    let cache = ["--backend", "cpu", "--cache-dir", dir.path().to_str().unwrap()];
    let served = || Server::start(&[&["stories", noise.path()], &cache[..]].concat());
    let mut first = served();
    // It goes when it has answered, and the server just then.
    let body =
        json!({ "model": "stories", "prompt": text(2), "max_tokens": 8, "temperature": 0, "keep_alive": 0 });
    let said = first.post("/v1/completions", &body).ok()["choices"].clone();
    first.signal("-TERM");
    assert_eq!(first.ended(), Some(0));
    let second = served();
    let answer = second.post("/v1/completions", &body).ok();
    let usage = &answer["usage"];
    assert_eq!(answer["choices"], said);
    let whole = (usage["prompt_tokens"].as_u64().unwrap() - 1) / 64 * 64;
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], whole);
}

#[test]
fn a_server_that_is_killed_while_it_writes_leaves_no_half_file() {
    let (dir, plain) = (tempfile::tempdir().unwrap(), Server::start(&["--backend", "cpu"]));
    let wanted: Vec<String> = (1..6).map(|seed| ask(&plain, "", seed).0).collect();
    for round in 0..12_u64 {
        let mut server = served(dir.path(), &[]);
        for (seed, wanted) in (1..6).zip(&wanted) {
            // The one before was killed behind any of its pages.
            let (text, cached, whole) = asked(&server, "", seed);
            assert_eq!(text, *wanted, "{round} {seed}");
            assert!(cached % 64 == 0 && cached <= whole, "{cached} of {whole} tokens");
        }
        assert_eq!(metric(&server, "", "backstop_disk_cache_damaged_files_total"), 0.0, "{round}");
        // It writes now what it keeps.
        server.signal("-TERM");
        std::thread::sleep(Duration::from_micros(700 * round * round));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            // Some leave nothing, some a file in the making, some all of it.
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.ends_with(".page") || name.ends_with(".making"), "{name}");
        }
    }
    let mut server = served(dir.path(), &[]);
    server.signal("-TERM");
    assert_eq!(server.ended(), Some(0));
}
