//! A server that downloads what its clients ask for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::models;
use super::served::{Action, COMMIT, Hub, ended, noise, sha256, tree};

pub struct Server {
    child: Child,
    address: String,
    /// Lines of its log.
    log: mpsc::Receiver<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn start(hub: &Hub, home: &Path, args: &[&str]) -> Self {
        let mut command = hub.command(home, &[&["serve", "--port", "0"], args].concat());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned));
        let (tell, log) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        Self { child, address: address.unwrap(), log }
    }

    /// The next line of its log that holds this.
    pub fn says(&self, what: &str) -> String {
        let mut before = Vec::new();
        loop {
            match self.log.recv_timeout(Duration::from_secs(120)) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => before.push(line),
                Err(error) => panic!("{error}: nothing says {what:?} in {before:?}"),
            }
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The status and the body, without chunks' sizes where it has chunks.
    pub fn post(&self, path: &str, body: &Value) -> (u16, String) {
        self.ask("POST", path, &body.to_string())
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "")
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let lines: Vec<&str> = body.lines().filter(|line| line.starts_with('{')).collect();
        (status, lines.join("\n"))
    }
}

pub fn question(model: &str) -> Value {
    let message = json!({ "role": "user", "content": "Hello" });
    json!({ "model": model, "messages": [message], "options": { "num_predict": 4, "temperature": 0 }, "stream": false })
}

fn served(hub: &Hub) {
    let noise = models::Noise::new();
    let files = tree(Path::new(noise.path()));
    let files: Vec<(String, Vec<u8>)> =
        files.into_iter().map(|(path, bytes)| (path.to_str().unwrap().to_owned(), bytes)).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (&**path, &**bytes)).collect();
    hub.put("org/model", &files);
}

#[test]
fn a_client_has_a_model_pulled_and_talks_to_it() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    served(&hub);
    let server = Server::start(&hub, home.path(), &["--pull"]);
    let (status, answer) = server.post("/api/chat", &question("org/model"));
    assert_eq!((status, answer.as_str()), (404, r#"{"error":"model 'org/model' not found"}"#));
    assert_eq!(hub.seen().len(), 0, "a question alone downloads nothing");

    let (status, answer) = server.post("/api/pull", &json!({ "model": "hf.co/org/model" }));
    let lines: Vec<Value> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((status, &lines[0]), (200, &json!({ "status": "pulling manifest" })));
    assert_eq!(lines.last(), Some(&json!({ "status": "success" })));
    let progress: Vec<_> = lines.iter().filter(|line| line.get("total").is_some()).collect();
    assert!(!progress.is_empty());
    for line in progress {
        let (done, total) = (line["completed"].as_u64().unwrap(), line["total"].as_u64().unwrap());
        assert!(done <= total && total > 50_000 && line["digest"] == "org/model", "{line}");
    }
    // By the name that was asked for, by the repository's, and by the model's own.
    for name in ["hf.co/org/model", "org/model:latest"] {
        assert_eq!(server.post("/api/chat", &question(name)).0, 200, "{name}");
    }
    let (status, answer) = server.post("/api/chat", &question("org/model"));
    assert!(status == 200 && answer.contains("\"done\":true"), "{answer}");
    hub.forget();
    // It is here: nobody is asked, and it is there by its name.
    let (status, answer) = server.post("/api/pull", &json!({ "name": "org/model:latest", "stream": false }));
    assert_eq!((status, answer.as_str()), (200, r#"{"status":"success"}"#));
    assert_eq!(hub.seen().len(), 0);
    drop(server);
    // Another server finds it in the cache.
    let server = Server::start(&hub, home.path(), &["--pull"]);
    assert_eq!(server.post("/api/pull", &json!({ "model": "org/model", "stream": false })).0, 200);
    assert_eq!(hub.seen().len(), 0);
    assert_eq!(server.post("/v1/models/load", &json!({ "model": "org/model" })).0, 200);
    drop(server);
    // Another repository's model of the same name, and a server whose first model takes any name.
    hub.forget();
    let noise = models::Noise::new();
    let files = tree(Path::new(noise.path()));
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(path, bytes)| (path.to_str().unwrap(), bytes.as_slice())).collect();
    hub.put("alt/model", &files);
    let server = Server::start(&hub, home.path(), &["--pull", "--alias", "*"]);
    for name in ["org/model", "alt/model"] {
        assert_eq!(server.post("/api/pull", &json!({ "model": name, "stream": false })).0, 200);
        let (status, answer) = server.post("/v1/models/load", &json!({ "model": name }));
        assert!(status == 200 && answer.contains(&format!("\"id\":\"{name}\"")), "{answer}");
        assert!(answer.contains("\"context_length\":200000"), "{answer}");
    }
    assert!(!hub.seen().is_empty());
}

/// Where nothing is named, all is offered that is here, and the built-in model; what comes later, too.
#[test]
fn a_server_by_itself_offers_what_is_here() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    served(&hub);
    let bare = Server::start(&hub, home.path(), &[]);
    let has = |server: &Server| {
        let answer: Value = serde_json::from_str(&server.get("/v1/models").1).unwrap();
        let name = |model: &Value| (model["id"].as_str().unwrap().to_owned(), model["state"] == "loaded");
        answer["data"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(has(&bare), [("stories".to_owned(), true)]);
    hub.ok(home.path(), &["pull", "org/model"]);
    let server = Server::start(&hub, home.path(), &[]);
    assert_eq!(has(&server), [("org/model".to_owned(), false), ("stories".to_owned(), false)]);
    for name in ["stories", "org/model"] {
        let (status, answer) = server.post("/api/chat", &question(name));
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(has(&server), [("org/model".to_owned(), true), ("stories".to_owned(), true)]);
    let url = format!("http://{}", server.address());
    let port = url.rsplit(':').next().unwrap();
    let ran = hub.ok(home.path(), &["stop", "org/model", "--port", port]);
    assert_eq!(ran.err, "org/model is unloaded\n");
    assert_eq!(has(&server), [("org/model".to_owned(), false), ("stories".to_owned(), true)]);
    let ran = hub.run(home.path(), &["stop", "nothing", "--url", &url]);
    assert!(ran.code == Some(1) && ran.err.contains("answers 404: "), "{}", ran.err);
    // The one that ran before looks anew.
    let came = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        has(&bare).len() == 2
    });
    assert!(came, "{:?}", has(&bare));
    // A name that none has: what there is to do is not what is done already.
    let none = json!({ "model": "none", "messages": [{ "role": "user", "content": "Hello" }] });
    let (status, answer) = server.post("/v1/chat/completions", &none);
    assert!(status == 404 && answer.contains("(`backstop pull NAME` brings one"), "{answer}");
    // Of what is said of one model, one is meant: the built-in one.
    let one = Server::start(&hub, home.path(), &["--alias", "mine"]);
    let names: Vec<_> = has(&one).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["stories", "mine"]);
}

/// What was pulled by one name is asked for by any that means it, whichever the server lists.
#[test]
fn a_model_is_asked_for_by_any_of_its_names() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    let gguf = std::fs::read(super::commands::GGUF).unwrap();
    hub.put("Qwen/Qwen3-0.6B-GGUF", &[("Qwen3-0.6B-Q8_0.gguf", &gguf)]);
    hub.put("org/other", &[("other-Q8_0.gguf", &gguf)]);
    hub.ok(home.path(), &["pull", "qwen3:0.6b"]);
    let bare = Server::start(&hub, home.path(), &[]);
    let named = Server::start(&hub, home.path(), &["qwen3:0.6b"]);
    hub.ok(home.path(), &["pull", "org/other"]);
    let names = [
        "qwen3:0.6b",
        "Qwen3:0.6B",
        "qwen3:0.6b:Q8_0",
        "Qwen/Qwen3-0.6B-GGUF",
        "Qwen/Qwen3-0.6B-GGUF:q8_0",
        "hf.co/Qwen/Qwen3-0.6B-GGUF:Q8_0",
    ];
    for (server, path) in [(&bare, "/api/chat"), (&named, "/api/chat"), (&bare, "/v1/chat/completions")] {
        for name in names {
            let (status, answer) = server.post(path, &question(name));
            assert_eq!(status, 200, "{path} {name}: {answer}");
        }
    }
    let url = format!("http://{}", bare.address());
    assert_eq!(hub.ok(home.path(), &["stop", "qwen3:0.6b", "--url", &url]).err.lines().count(), 1);
    // Who pulls before each question needs no permission for what is here.
    for name in ["qwen3:0.6b", "Qwen/Qwen3-0.6B-GGUF"] {
        let (status, answer) = bare.post("/api/pull", &json!({ "model": name }));
        assert!(status == 200 && answer.ends_with(r#"{"status":"success"}"#), "{answer}");
    }
    // Another model's names are its own, and what is not offered is not there.
    for name in ["qwen3:1.7b", "org/other", "org/nothing"] {
        let (status, answer) = named.post("/v1/chat/completions", &question(name));
        assert_eq!(status, 404, "{name}: {answer}");
    }
    // What came just now is left alone for a moment.
    let mut asked = (0..200).map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        bare.post("/v1/chat/completions", &question("org/other"))
    });
    let (status, answer) = asked.find(|(status, _)| *status != 404).unwrap();
    assert_eq!(status, 200, "{answer}");
}

/// Who names no model gets one that can talk, whatever else is here.
#[test]
fn a_server_by_itself_answers_who_names_no_model() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders/bert-mean");
    let mut files = tree(&encoder);
    for name in ["encoder", "broken"] {
        if name == "broken" {
            files.insert("config.json".into(), br#"{"model_type": "whisper"}"#.to_vec());
        }
        for (path, bytes) in &files {
            let path = home.path().join(".lmstudio/models/aa").join(name).join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    let server = Server::start(&hub, home.path(), &[]);
    let chat = json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 4 });
    let (status, answer) = server.post("/v1/chat/completions", &chat);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["model"], "stories");
    let models: Value = serde_json::from_str(&server.get("/v1/models").1).unwrap();
    let names: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["stories", "aa/broken", "aa/broken:twin", "aa/encoder", "aa/encoder:twin"]);
    // What no model could run on is told at the start.
    let ran = hub.run(home.path(), &["serve", "--port", "0", "--backend", "metal"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
}

#[test]
fn what_is_pulled_fits_the_memory_that_the_server_may_take() {
    let small = noise(1000, 1);
    let hub = Hub::with(&[("m-Q4_K_M.gguf", &small), ("m-Q2_K.gguf", &small)]);
    let file = |name: &str, size: u64| json!({ "rfilename": name, "lfs": { "sha256": sha256(&small), "size": size } });
    let files = json!([file("m-Q4_K_M.gguf", 400_000_000), file("m-Q2_K.gguf", 1000)]);
    hub.lists("org/model", json!({ "sha": COMMIT, "siblings": files }).to_string());
    for (memory, asked) in [(&["--memory", "1GB"][..], "m-Q2_K.gguf"), (&[], "m-Q4_K_M.gguf")] {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start(&hub, home.path(), &[&["--pull"], memory].concat());
        // Neither is a model.
        let (_, answer) = server.post("/api/pull", &json!({ "model": "org/model", "stream": false }));
        assert!(answer.contains("error"), "{answer}");
        let seen = hub.files_seen();
        assert!(!seen.is_empty() && seen.iter().all(|seen| seen.path.ends_with(asked)), "{asked}: {seen:?}");
        hub.forget();
    }
}

#[test]
fn what_does_not_fit_is_warned_of_where_a_request_has_it_pulled() {
    let small = noise(1000, 1);
    let file = |name: &str, size: u64| json!({ "rfilename": name, "lfs": { "sha256": sha256(&small), "size": size } });
    let lists = |hub: &Hub, files: Value| {
        hub.lists("org/model", json!({ "sha": COMMIT, "siblings": files }).to_string());
    };
    let hub = Hub::with(&[("m-Q4_K_M.gguf", &small), ("m-Q2_K.gguf", &small)]);
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(&hub, home.path(), &["--pull", "--memory", "1GB", "-v"]);
    let pull = |name: &str| server.post("/api/pull", &json!({ "model": name, "stream": false }));
    lists(&hub, json!([file("m-Q4_K_M.gguf", 400_000_000)]));
    pull("org/model");
    let said = server.says("org/model: it needs about ");
    assert!(
        said.contains("WARN")
            && said.contains(" of memory to run, and ")
            && said.ends_with(" are to be had here"),
        "{said}"
    );
    // Among variants the one that fits is taken, and why is said.
    lists(&hub, json!([file("m-Q4_K_M.gguf", 400_000_000), file("m-Q2_K.gguf", 1000)]));
    pull("org/model");
    let said = server.says("org/model:Q2_K is taken");
    assert!(said.contains("since Q4_K_M (400.0 MB) does not fit the ") && said.contains("INFO"), "{said}");
}

/// A file that has this length, and no bytes on the disk.
fn sparse(path: &Path, len: u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::File::create(path).unwrap().set_len(len).unwrap();
}

#[test]
fn of_what_is_here_the_variant_that_fits_is_taken() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    let repository = home.path().join("hub/models--org--model");
    let snapshot = repository.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), COMMIT).unwrap();
    sparse(&snapshot.join("m-Q4_K_M.gguf"), 400_000_000);
    // None of these is a model: the error names what was taken.
    let said = |offline: bool| {
        let mut serve = hub.command(home.path(), &["serve", "org/model", "--port", "0", "--memory", "1GB"]);
        if offline {
            serve.env("HF_HUB_OFFLINE", "1");
        }
        let output = ended(serve.spawn().unwrap());
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    for (offline, other) in [
        (false, "`backstop pull org/model` takes a variant that fits, where there is one"),
        (true, "a smaller model, or a variant of fewer bits, would fit"),
    ] {
        let said = said(offline);
        assert!(said.contains("m-Q4_K_M.gguf"), "{said}");
        let warning = said.lines().next().unwrap();
        assert!(warning.starts_with("warning: org/model is here as Q4_K_M, and it needs about 7"), "{said}");
        assert!(warning.ends_with(&format!(" are to be had here: {other}")), "{said}");
    }
    sparse(&snapshot.join("m-Q2_K.gguf"), 20_000_000);
    for offline in [false, true] {
        let said = said(offline);
        assert!(said.contains("m-Q2_K.gguf") && !said.contains("warning"), "{said}");
    }
    assert_eq!(hub.seen().len(), 0);
}

#[test]
fn what_cannot_be_pulled_is_told_of() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    served(&hub);
    let server = Server::start(&hub, home.path(), &[]);
    let (status, answer) = server.post("/api/pull", &json!({ "model": "org/model" }));
    let wanted =
        "pull is not allowed here: backstop serve --pull allows it, and `backstop pull NAME` downloads, too";
    assert_eq!((status, answer), (403, json!({ "error": wanted }).to_string()));
    assert_eq!(hub.seen().len(), 0);

    let server = Server::start(&hub, home.path(), &["--pull"]);
    let said = |model: &str| {
        let (status, answer) = server.post("/api/pull", &json!({ "model": model }));
        assert_eq!(status, 200);
        let last: Value = serde_json::from_str(answer.lines().last().unwrap()).unwrap();
        last["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    assert!(said("/etc").ends_with("/etc is a path, and no name of a model"));
    assert!(said("./model").ends_with("is a path, and no name of a model"));
    assert!(said("org/other").contains("org/other"), "{}", said("org/other"));
    let (status, _) = server.post("/api/pull", &json!({ "model": "org/other", "stream": false }));
    assert_eq!(status, 404);
    assert_eq!(server.post("/api/pull", &json!({ "model": "/etc", "stream": false })).0, 400);
    // Cut in the middle of a file: the error is the last line, and what came is kept.
    hub.rule(|seen, _| if seen.is_file() { Action::Status(500, Vec::new()) } else { Action::Serve });
    assert!(said("org/model").contains("500"), "{}", said("org/model"));
}
