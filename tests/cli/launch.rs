//! One model over several ranks: the same texts, and nobody waits for a rank that is lost.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::ring::write_hosts;
use crate::support::*;

/// How long a rank may keep the other waiting here, in seconds.
const TIMEOUT: &str = "3";
/// What a starved machine adds to it.
const LATE: Duration = Duration::from_secs(60);

fn has_mlx() -> bool {
    let has = cfg!(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64")));
    if !has {
        println!("skipped: this build has no MLX (cargo xtask test has)");
    }
    has
}

/// Ranks that end with the test, however that ends.
struct Started(Vec<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}

/// The ranks of a command, started by hand.
fn ranks(hosts: &Path, args: &[&str], count: usize) -> Started {
    write_hosts(hosts, count);
    let start = |index: usize| {
        let mut command = command(args);
        command.env("MLX_RANK", index.to_string()).env("MLX_HOSTFILE", hosts);
        command.env("BACKSTOP_RANK_TIMEOUT", TIMEOUT).spawn().unwrap()
    };
    Started((0..count).map(start).collect())
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// What a rank that lives comes to once another does not: within the time that it may wait.
fn left(mut child: Child) -> Ran {
    let due = Instant::now() + LATE;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < due, "it waits for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    ended(child)
}

#[test]
fn ranks_write_what_one_writes() {
    if !has_mlx() {
        return;
    }
    let run = ["run", "--backend", "mlx", "--dtype", "f32", "--kv-type", "f32", "-n", "60", PROMPT];
    let (greedy, drawn) = (["--temperature", "0"], ["--temperature", "1", "--seed", "7"]);
    for more in [&greedy[..], &drawn, &["--drafts", "on"], &["--regex", "[a-z ,.]{30,40}"]] {
        let run = [&run[..], more].concat();
        let alone = ok(&run);
        for ranks in ["--ranks=2", "--ranks=3"] {
            let ran = backstop(&[&["launch", ranks, "--"], &run[..]].concat());
            // The built-in model has two key/value heads.
            if ranks == "--ranks=3" {
                let refused = "error: --ranks is 3 for a model with 4 heads, expected one, or a number that divides its heads and widths";
                assert!(ran.code == Some(2) && ran.err.contains(refused), "{ran:?}", ran = ran.err);
                continue;
            }
            assert_eq!((ran.code, &*ran.out), (Some(0), &*alone.out), "{more:?}: {}", ran.err);
            assert!(ran.err.contains("mlx (CPU device)"), "{}", ran.err);
        }
    }
}

#[test]
fn what_is_not_for_several_ranks_is_refused() {
    refused(
        &["launch", "--", "inspect", "stories"],
        2,
        "error: launch is for run, chat, serve, bench, perplexity, tasks over several ranks, and not for inspect: other programs \
         ask `backstop serve`, whose address goes into their settings",
    );
    let ran = ended(command(&["inspect"]).env("MLX_RANK", "0").spawn().unwrap());
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("MLX_RANK is set, and several ranks do run, chat,"), "{}", ran.err);
    let ran = ended(command(&["run", PROMPT]).env("MLX_RANK", "0").spawn().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("MLX_RANK alone, expected MLX_RANK and MLX_HOSTFILE together"), "{}", ran.err);
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts.json");
    for (text, what) in
        [("{}", "it is no host file"), ("[]", "it is no host file"), ("[[\"a:1\"]]", "rank is 1")]
    {
        std::fs::write(&hosts, text).unwrap();
        let mut run = command(&["run", PROMPT]);
        let ran = ended(run.env("MLX_RANK", "1").env("MLX_HOSTFILE", &hosts).spawn().unwrap());
        assert!(ran.code == Some(1) && ran.err.contains(what), "{}", ran.err);
    }
    if !has_mlx() {
        return;
    }
    for (args, what) in [
        (&["--backend", "cpu"][..], "several ranks compute by MLX's distributed layer"),
        (&["--cpu-ops", "all_sum"], "a sum over ranks is MLX's alone"),
        (&["--model", fixture("models/deepseek_v2-plain").to_str().unwrap()], "latent attention"),
    ] {
        let ran = backstop(&[&["launch", "--", "run"], args, &[PROMPT]].concat());
        assert!(ran.code != Some(0) && ran.err.contains(what), "{args:?}: {}", ran.err);
    }
    // Each has another model than the other.
    write_hosts(&hosts, 2);
    let start = |(index, dtype): (usize, &str)| {
        let mut command = command(&["run", "--backend", "mlx", "--dtype", dtype, PROMPT]);
        command.env("MLX_RANK", index.to_string()).env("MLX_HOSTFILE", &hosts).spawn().unwrap()
    };
    let mut started = Started(["f32", "bf16"].into_iter().enumerate().map(start).collect());
    while !started.0.is_empty() {
        let ran = left(started.0.remove(0));
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        assert!(
            ran.err.contains("rank 1 was started with another model, or another version, than rank 0"),
            "{}",
            ran.err
        );
    }
}

/// Each rank is killed, and stopped, in the middle of a text.
#[test]
fn who_waits_for_a_lost_rank_ends_and_names_it() {
    if !has_mlx() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (victim, how) in [(0, Signal::KILL), (1, Signal::KILL), (0, Signal::STOP), (1, Signal::STOP)] {
        let args = ["run", "--backend", "mlx", "-n", "450", "--temperature", "0", PROMPT];
        let mut ranks = ranks(&dir.path().join("hosts.json"), &args, 2);
        let mut first = [0; 4];
        ranks.0[0].stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        signal(&ranks.0[victim], how);
        let ran = left(ranks.0.remove(1 - victim));
        let what = format!("rank {victim} {how:?}: {:?}: {}", ran.code, ran.err);
        assert_eq!(ran.code, Some(1), "{what}");
        assert!(ran.err.contains(&format!("rank {victim}")), "{what}");
    }
}

/// The answer to a request, with its status.
fn ask(port: u16, path: &str, body: Option<&Value>) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let body = body.map(Value::to_string).unwrap_or_default();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/json";
    write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn a_server_of_two_ranks_answers_many_and_says_when_one_is_lost() {
    if !has_mlx() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let args = ["serve", "stories", "--port", "0", "--backend", "mlx", "--dtype", "f32", "--kv-type", "f32"];
    let mut ranks = ranks(&dir.path().join("hosts.json"), &args, 2);
    let mut lines = BufReader::new(ranks.0[0].stderr.take().unwrap()).lines();
    let line = lines.find_map(|line| line.unwrap().strip_prefix("listening on http://").map(str::to_owned));
    let port = line.expect("it listens").rsplit_once(':').unwrap().1.parse().unwrap();
    let said = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    let body = |prompt: &str, tokens: usize| json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logit_bias": { "1": -100 } });
    let text = |answer: &str| {
        serde_json::from_str::<Value>(answer).unwrap()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    // One after the other, and then all at once.
    let prompts = ["Once upon a time", "One day, a cat", "Tom had a", "The sun was"];
    let alone = prompts.map(|prompt| text(&ask(port, "/v1/completions", Some(&body(prompt, 40))).1));
    std::thread::scope(|scope| {
        let asked =
            prompts.map(|prompt| scope.spawn(move || ask(port, "/v1/completions", Some(&body(prompt, 40)))));
        for (asked, alone) in asked.into_iter().zip(&alone) {
            let (status, answer) = asked.join().unwrap();
            assert_eq!((status, &text(&answer)), (200, alone));
        }
    });
    // What begins alike is kept by all ranks.
    let beginning = "Once upon a time there was a little cat who liked to sit in the sun. ".repeat(6);
    for (end, least) in [("One day", 0), ("One day", 64), ("Then", 64)] {
        let prompt = format!("{beginning}{end}");
        let (status, answer) = ask(port, "/v1/completions", Some(&body(&prompt, 24)));
        assert_eq!(status, 200, "{answer}");
        let usage = &serde_json::from_str::<Value>(&answer).unwrap()["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached >= least && (least > 0 || cached == 0), "{cached} tokens were kept: {answer}");
        let run = [
            "run",
            "--backend",
            "mlx",
            "--dtype",
            "f32",
            "--kv-type",
            "f32",
            "--raw",
            "--logit-bias",
            "1=-100",
            "--temperature",
            "0",
            "-n",
            "24",
            &prompt,
        ];
        assert_eq!(text(&answer).trim_end(), ok(&run).out.trim_end(), "{cached} tokens were kept");
    }
    assert_eq!(ask(port, "/health", None).0, 200);
    // One who waits for a long text is told.
    let long = std::thread::spawn(move || ask(port, "/v1/completions", Some(&body("Once upon a time", 450))));
    while !ask(port, "/health", None).1.contains("\"running\":1") {
        assert!(!long.is_finished(), "it was too fast");
    }
    signal(&ranks.0[1], Signal::STOP);
    let (status, answer) = long.join().unwrap();
    assert_eq!(status, 500, "{answer}");
    assert!(answer.contains("rank 1 "), "{answer}");
    let (status, answer) = ask(port, "/health", None);
    assert!(status == 503 && answer.contains("\"lost\"") && answer.contains("rank 1 "), "{status}: {answer}");
    let (status, answer) = ask(port, "/v1/completions", Some(&body("x", 1)));
    assert!(status == 500 && answer.contains("rank 1 "), "{status}: {answer}");
    signal(&ranks.0[0], Signal::TERM);
    let ran = left(ranks.0.remove(0));
    assert_eq!(ran.code, Some(1), "{}", said.join().unwrap());
}
