//! `backstop bundle`: one file that is the program and a model.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::*;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/stories");

/// Starts a bundle. A process that another test starts has what this one wrote open for writing until it runs its own program.
fn started(command: &mut Command) -> Child {
    for _ in 0..1000 {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            child => return child.unwrap(),
        }
    }
    panic!("{command:?}: text file busy for ten seconds");
}

/// Where a bundle remembers that it was checked.
fn state(program: &Path) -> PathBuf {
    program.with_extension("state")
}

/// Runs a bundle as `backstop` runs the program.
fn run(program: &Path, stdin: &str, args: &[&str]) -> Ran {
    let mut command = Command::new(program);
    command.args(args).env_remove("RUST_LOG").env("XDG_STATE_HOME", state(program)).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = started(&mut command);
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    ended(child)
}

/// Runs to success, and gives stdout.
fn said(program: &Path, args: &[&str]) -> String {
    let ran = run(program, "", args);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
    ran.out
}

fn bundled(dir: &Path, name: &str, model: &str) -> PathBuf {
    let path = dir.join(name);
    let ran = ok(&["bundle", model, "-o", path.to_str().unwrap()]);
    assert!(ran.err.starts_with(&format!("{}: ", path.display())), "{}", ran.err);
    path
}

const SAMPLED: [&str; 7] = ["--temperature", "0.9", "--seed", "7", "--max-tokens", "24", "--no-summary"];

#[test]
fn what_a_link_leads_to_elsewhere_is_not_packed() {
    let dir = tempfile::tempdir().unwrap();
    let (model, secret) = (dir.path().join("model"), dir.path().join("secret"));
    std::fs::create_dir(&model).unwrap();
    let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(stories.join(name), model.join(name)).unwrap();
    }
    std::fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink("../secret", model.join("chat_template.jinja")).unwrap();
    let (model, out) = (model.to_str().unwrap(), dir.path().join("out"));
    let ran = backstop(&["bundle", model, "-o", out.to_str().unwrap()]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("outside the model's directory"), "{}", ran.err);
    assert!(!out.exists());
}

#[test]
fn a_bundle_is_the_program_and_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundled(dir.path(), "story", STORIES);
    assert_ne!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o100, 0);
    let expected = ok(&[&["run", STORIES, PROMPT], &SAMPLED[..]].concat());
    assert_eq!(expected.err, "");
    // A prompt by itself, the command, weights that are read, and the bundle as another program's model.
    assert_eq!(said(&bundle, &[&[PROMPT], &SAMPLED[..]].concat()), expected.out);
    assert_eq!(said(&bundle, &[&["run", PROMPT], &SAMPLED[..]].concat()), expected.out);
    assert_eq!(said(&bundle, &[&["run", PROMPT, "--no-mmap"], &SAMPLED[..]].concat()), expected.out);
    assert_eq!(ok(&[&["run", bundle.to_str().unwrap(), PROMPT], &SAMPLED[..]].concat()).out, expected.out);
    let inner = bundle.join("stories");
    assert_eq!(
        ok(&[&["run", "--model", inner.to_str().unwrap(), PROMPT], &SAMPLED[..]].concat()).out,
        expected.out
    );
    // Options come before the prompt, too; what is a command's name behind `--`; and a word by itself is the prompt, whatever else
    // it names.
    assert_eq!(said(&bundle, &[&SAMPLED[..], &[PROMPT]].concat()), expected.out);
    for prompt in ["run", STORIES] {
        let wanted = ok(&[&["run"], &SAMPLED[..], &["--", STORIES, prompt]].concat()).out;
        assert_eq!(said(&bundle, &[&SAMPLED[..], &["--", prompt]].concat()), wanted, "{prompt}");
    }
    // The model within, by a path from where one is.
    let mut within = command(&[&["run"], &SAMPLED[..], &["story/stories", PROMPT]].concat());
    let within =
        within.current_dir(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(ended(within).out, expected.out);
    let rates = said(&bundle, &["bench", "-p", "8", "-n", "2", "--reps", "1", "--threads", "1", "--json"]);
    let rates: serde_json::Value = serde_json::from_str(&rates).unwrap();
    assert!(rates["rows"][0]["rates"].is_object(), "{rates}");
    // Without arguments it holds a conversation.
    let chat = run(&bundle, "Once upon a time\n", &[]);
    let of_directory = backstop_with("Once upon a time\n", &["chat", STORIES]);
    assert_eq!((chat.code, &chat.out), (Some(0), &of_directory.out), "{}", chat.err);
    let shown: serde_json::Value = serde_json::from_str(&said(&bundle, &["inspect", "--json"])).unwrap();
    assert_eq!((&shown["name"], &shown["builtin"]), (&"stories".into(), &false.into()), "{shown}");
    let told: serde_json::Value = serde_json::from_str(&said(&bundle, &["doctor", "--json"])).unwrap();
    assert_eq!(told["parts"]["bundle"]["model"], "stories", "{told}");
    assert!(said(&bundle, &["--version"]).starts_with("backstop "));
    ok(&["bundle", "--verify", bundle.to_str().unwrap()]);

    // A bundle writes bundles, of its model and of another.
    let noise = Noise::new();
    let (again, other) = (dir.path().join("again"), dir.path().join("other"));
    said(&bundle, &["bundle", bundle.to_str().unwrap(), "-o", again.to_str().unwrap()]);
    assert!(fs::read(&again).unwrap() == fs::read(&bundle).unwrap(), "a copy is another file");
    said(&bundle, &["bundle", noise.path(), "-o", other.to_str().unwrap()]);
    assert_eq!(
        said(&other, &[&["run", "--raw", "x"], &SAMPLED[..]].concat()),
        ok(&[&["run", "--raw", "--model", noise.path(), "x"], &SAMPLED[..]].concat()).out
    );
    assert!(fs::metadata(&other).unwrap().len() < fs::metadata(&bundle).unwrap().len() + (16 << 20));
    refused(
        &["bundle", STORIES, "-o", other.to_str().unwrap()],
        1,
        &format!("error: {}: exists; expected a new name (remove it, or name another)", other.display()),
    );
    refused(
        &["bundle", "--verify", &format!("{STORIES}/config.json")],
        1,
        &format!("error: {STORIES}/config.json: has no model behind it"),
    );
}

/// A program that serves, ended with this.
pub struct Serving(std::process::Child, String);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Serving {
    pub fn start(program: &Path, args: &[&str]) -> Self {
        use std::io::{BufRead, BufReader};

        let state = state(program);
        let mut program = Command::new(program);
        program.args(["serve", "--port", "0"]).args(args).env_remove("BACKSTOP_API_KEY");
        program
            .env("XDG_STATE_HOME", state)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut serving = Self(started(&mut program), String::new());
        let mut lines = BufReader::new(serving.0.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split("listening on http://").nth(1)?.to_owned()));
        let address = address.unwrap();
        serving.1 = address.split(|c: char| c == '/' || c.is_whitespace()).next().unwrap().to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        serving
    }

    /// The status and the body of an answer.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        use std::io::Read;

        let mut stream = std::net::TcpStream::connect(&self.1).unwrap();
        let (host, length) = (&self.1, body.len());
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
    }
}

#[test]
fn an_encoder_is_bundled() {
    let dir = tempfile::tempdir().unwrap();
    let encoder = fixture("encoders/bert-mean");
    let bundle = bundled(dir.path(), "vectors", encoder.to_str().unwrap());
    let vector = |program: &Path, args: &[&str]| {
        let body = r#"{ "input": "a bird" }"#;
        let (status, answer) = Serving::start(program, args).ask("POST", "/v1/embeddings", body);
        assert_eq!(status, 200, "{answer}");
        answer["data"][0]["embedding"].clone()
    };
    let wanted = vector(backstop_bin(), &[encoder.to_str().unwrap()]);
    assert!(wanted.as_array().is_some_and(|numbers| numbers.len() > 8), "{wanted}");
    assert_eq!(vector(&bundle, &[]), wanted);
    assert_eq!(vector(backstop_bin(), &[bundle.to_str().unwrap()]), wanted);
}

#[test]
fn a_bundle_that_changes_while_it_is_served_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundled(dir.path(), "story", STORIES);
    let serving = Serving::start(backstop_bin(), &[bundle.to_str().unwrap()]);
    assert_eq!(serving.ask("GET", "/health", "").0, 200);
    let copy = dir.path().join("copy");
    fs::copy(&bundle, &copy).unwrap();
    let serving_too = Serving::start(backstop_bin(), &[copy.to_str().unwrap()]);
    let len = fs::metadata(&copy).unwrap().len();
    OpenOptions::new().write(true).open(&copy).unwrap().write_all_at(&[0], len - 1).unwrap();
    let (status, health) = serving_too.ask("GET", "/health", "");
    assert_eq!((status, &health["status"]), (503, &"changed".into()), "{health}");
    let said = health["error"].as_str().unwrap();
    assert!(said.starts_with(&format!("{}", copy.display())), "{said}");
    assert_eq!(serving.ask("GET", "/health", "").0, 200);
}

pub fn backstop_bin() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_backstop"))
}

/// Words that are commands elsewhere, or by names that no help shows, are prompts to a bundle; several words are one text.
#[test]
fn what_is_no_command_is_a_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundled(dir.path(), "story", STORIES);
    let answer = |words: &[&str]| said(&bundle, &[&SAMPLED[..], words].concat());
    for word in ["start", "get", "remove", "status", "create", "version", "search"] {
        let typed = said(&bundle, &[&[word], &SAMPLED[..]].concat());
        assert_eq!(typed, answer(&["--", word]), "{word}");
    }
    let quoted = answer(&["--", "convert 3 miles"]);
    assert_eq!(said(&bundle, &[&["convert", "3", "miles"], &SAMPLED[..]].concat()), quoted);
    assert!(!quoted.is_empty());
}

#[test]
fn a_bundle_serves() {
    use std::io::{BufRead, BufReader};

    let dir = tempfile::tempdir().unwrap();
    let bundle = bundled(dir.path(), "story", STORIES);
    let mut server = Command::new(&bundle);
    server
        .args(["serve", "--port", "0"])
        .env_remove("BACKSTOP_API_KEY")
        .env("XDG_STATE_HOME", state(&bundle));
    let mut server = started(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()));
    let lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let said: Vec<String> =
        lines.map_while(Result::ok).take_while(|line| !line.starts_with("try: ")).collect();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(
        said[0].starts_with("stories on ") && said.last().unwrap().starts_with("listening on "),
        "{said:?}"
    );
}

#[test]
fn gguf_files_are_bundled_whole_and_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("tiny.gguf");
    ok(&["quantize", STORIES, "-o", gguf.to_str().unwrap(), "--to", "gguf", "--type", "Q8_0"]);
    let bundle = bundled(dir.path(), "one", gguf.to_str().unwrap());
    let expected = ok(&[&["run", gguf.to_str().unwrap(), PROMPT], &SAMPLED[..]].concat()).out;
    fs::remove_file(&gguf).unwrap();
    assert_eq!(said(&bundle, &[&[PROMPT], &SAMPLED[..]].concat()), expected);

    let split = fixture("gguf/llama-f16-00001-of-00003.gguf");
    let bundle = bundled(dir.path(), "three", split.to_str().unwrap());
    let compared = |ran: String| {
        let mut told: serde_json::Value = serde_json::from_str(&ran).unwrap();
        let shown = told.as_object_mut().unwrap();
        shown.remove("path");
        shown.remove("selection");
        (told["weights"].clone(), told["architecture"].clone(), told["name"].clone())
    };
    let directly = compared(ok(&["inspect", "--json", split.to_str().unwrap()]).out);
    assert_eq!(compared(said(&bundle, &["inspect", "--json"])), directly);
    assert!(!directly.0.is_null());
    let mut nearby = command(&["inspect", "--json", "./three"]);
    assert_eq!(compared(ended(nearby.current_dir(dir.path()).spawn().unwrap()).out), directly);
    assert!(said(&bundle, &["parity", "--tokens", "8"]).contains("layer"));
}

#[test]
fn bundles_that_are_cut_or_changed_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundled(dir.path(), "story", STORIES);
    let len = fs::metadata(&bundle).unwrap().len();
    let open = || OpenOptions::new().read(true).write(true).open(&bundle).unwrap();
    let wrong = |what: &str| {
        for args in [&[][..], &["run", PROMPT], &["--version"][..1]] {
            if args == ["--version"] {
                continue;
            }
            let ran = run(&bundle, "", args);
            assert_eq!((ran.code, &*ran.out), (Some(1), ""), "{what}: {}", ran.err);
            assert!(ran.err.starts_with(&format!("error: {}: ", bundle.display())), "{what}: {}", ran.err);
            assert!(ran.err.contains(what) && ran.err.contains("bundle"), "{what}: {}", ran.err);
        }
    };
    let flip = |at: u64| {
        let (file, mut byte) = (open(), [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    };
    // The index, the trailer, and back.
    for (at, what) in [
        (len - 40, "its index is not what was written"),
        (len - 32, "its end is damaged"),
        (len - 24, "is a bundle of version"),
        (len - 1, "its index is not what was written"),
    ] {
        flip(at);
        wrong(what);
        flip(at);
    }
    said(&bundle, &["run", PROMPT, "--max-tokens", "1"]);
    // What was read through once is known, until the file is written to.
    let checked = state(&bundle).join("backstop/checked");
    let known = || fs::read_to_string(&checked).unwrap().lines().count();
    assert!(!checked.exists(), "it was written to in the last moment, and a clock may be coarse");
    std::thread::sleep(Duration::from_millis(2100));
    for _ in 0..2 {
        said(&bundle, &["run", PROMPT, "--max-tokens", "1"]);
        assert_eq!(known(), 1);
    }
    // A byte of the weights.
    let config = fs::read(format!("{STORIES}/config.json")).unwrap();
    let bytes = fs::read(&bundle).unwrap();
    let at = bytes.chunks(16 << 10).position(|page| page.starts_with(&config)).unwrap() as u64 * (16 << 10);
    let weights = fs::read(format!("{STORIES}/model.safetensors")).unwrap();
    let place = bytes.chunks(16 << 10).position(|page| page.starts_with(&weights[..4096])).unwrap() as u64
        * (16 << 10);
    assert!(at > 0 && place > 0);
    let modified = fs::metadata(&bundle).unwrap().modified().unwrap();
    flip(place + weights.len() as u64 - 100);
    // As what copies files with their times does.
    let file = open();
    file.set_modified(modified).unwrap();
    drop(file);
    wrong("stories/model.safetensors is damaged: get the bundle anew");
    let served = run(&bundle, "", &["serve", "--port", "0"]);
    assert!(
        served.code == Some(1) && served.err.contains("stories/model.safetensors is damaged"),
        "{}",
        served.err
    );
    assert_eq!(known(), 1);
    let ran = run(&bundle, "", &["doctor"]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.out.contains("stories/model.safetensors is damaged"), "{}", ran.out);
    let path = bundle.to_str().unwrap();
    let ran = backstop(&["bundle", "--verify", path]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("stories/model.safetensors is damaged"), "{}", ran.err);
    // Longer and shorter by a byte, and without what is behind the program.
    open().set_len(len + 1).unwrap();
    wrong(&format!("has {} of {len} bytes", len + 1));
    open().set_len(len - 1).unwrap();
    wrong(&format!("has {} of {len} bytes", len - 1));
    open().set_len(place).unwrap();
    wrong(&format!("has {place} of {len} bytes"));
}

#[test]
fn a_bundle_that_no_disk_holds_is_refused_before_it_is_written() {
    let (model, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for entry in fs::read_dir(STORIES).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.path().join(entry.file_name())).unwrap();
    }
    // It takes no room as it is.
    let large = std::fs::File::create(model.path().join("vocab.txt")).unwrap();
    if large.set_len(1 << 43).is_err() {
        return println!("skipped: no file of 8 TiB can be made here");
    }
    let there = rustix::fs::statvfs(place.path()).unwrap();
    if there.f_bavail.saturating_mul(there.f_frsize) > 1 << 43 {
        return println!("skipped: this disk has room for 8 TiB");
    }
    let out = place.path().join("out");
    let ran = backstop(&["bundle", model.path().to_str().unwrap(), "-o", out.to_str().unwrap()]);
    let begins = format!("error: {}: takes 8796.", out.display());
    assert!(ran.err.starts_with(&begins) && ran.err.ends_with(" are free there\n"), "{}", ran.err);
    assert_eq!((ran.code, std::fs::read_dir(place.path()).unwrap().count()), (Some(1), 0));
}
