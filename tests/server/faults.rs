//! A step that panics, ops and evaluations that fail in mid-stream: whom it concerns gets an error or goes on on the CPU, the
//! others go on, and the server answers the next one. The server runs in this process, where faults can be injected.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstop::backend::Faults;
use backstop::backend::ops::OpKind;
use backstop::backend::select::BackendRequest;
use backstop::server::{self, Listener};
use backstop::{Drafts, LoadOptions, Model, ModelFiles};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::support::{self, Answer, Client, Noise, chat, endless, expected, named_events, read_some, with};

/// A server in this process, and the faults of its model.
struct Faulty {
    client: Client,
    model: Model,
    faults: Faults,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl std::ops::Deref for Faulty {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Faulty {
    fn start(files: ModelFiles, load: LoadOptions) -> Self {
        Self::with(files, load, server::Options::default())
    }

    fn with(files: ModelFiles, load: LoadOptions, options: server::Options) -> Self {
        let faults = load.faults.clone();
        // Faults come after so many steps, and how many tokens a step guesses right is the machine's affair.
        let load = LoadOptions { drafts: Drafts::Off, ..load };
        let options = server::Options { port: 0, ..options };
        let listener = Listener::bind(&options).unwrap();
        let client = Client { address: listener.address() };
        let model = Model::load_with(files, load).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = model.clone();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let stopped = async {
                let _ = stopped.await;
            };
            runtime.unwrap().block_on(server::serve(listener, served, options, stopped)).unwrap();
        };
        let thread = std::thread::spawn(serve);
        Self { client, model, faults, stop: Some(stop), thread: Some(thread) }
    }

    fn builtin(faults: Faults) -> Self {
        let backend = BackendRequest::Cpu;
        Self::start(ModelFiles::builtin().unwrap(), LoadOptions { backend, faults, ..LoadOptions::default() })
    }

    /// The next request is answered, and the engine is well.
    #[track_caller]
    fn lives_on(&self) {
        assert_eq!(self.get("/health").ok()["status"], "ok");
        let next = self.post("/v1/chat/completions", &chat(json!({ "max_tokens": 12 }))).ok();
        assert_eq!(next["choices"][0]["message"]["content"], expected(12));
        for name in ["backstop_sequences_running", "backstop_sequences_queued"] {
            self.wait_for(name, |count| count == 0.0);
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.stop.take();
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

const PANIC: &str = "engine: a step panicked: injected panic in embedding";

/// Steps before the fault: the prompt's, and those of five tokens.
const EARLIER: u64 = 6;

/// A fault, and what is said of it.
type Fault = (fn() -> Faults, &'static str);

const FAULTS: [Fault; 2] = [
    (|| Faults::panic(OpKind::Embedding, EARLIER, 1), PANIC),
    (|| Faults::op(OpKind::Embedding, EARLIER, 1), "embedding failed on cpu: injected fault"),
];

fn openai_error(message: &str) -> Value {
    json!({ "error": { "message": message, "type": "server_error", "param": null, "code": null } })
}

#[test]
fn a_step_that_fails_is_an_error_event_of_a_chat_and_of_a_completion() {
    for (fault, message) in FAULTS {
        let server = Faulty::builtin(Faults::default());
        let completion = json!({ "prompt": "Once upon a time", "temperature": 0 });
        for (path, body) in [("/v1/chat/completions", chat(json!({}))), ("/v1/completions", completion)] {
            server.faults.replace(&fault());
            let body = with(body, json!({ "max_tokens": 12, "stream": true }));
            let events = server.post(path, &body).events();
            let events: Vec<Value> = events.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
            let (last, before) = events.split_last().unwrap();
            assert_eq!(*last, openai_error(message), "{path}");
            let text: String = before
                .iter()
                .map(|event| &event["choices"][0])
                .filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()))
                .collect();
            assert!(!text.is_empty() && expected(12).starts_with(&text), "{path}: {text}");
            server.lives_on();
            server.faults.replace(&fault());
            let whole = server.post(path, &with(body, json!({ "stream": false })));
            assert_eq!((whole.refusal(500), whole.json()), (message.to_owned(), openai_error(message)));
            server.lives_on();
        }
    }
}

#[test]
fn a_step_that_fails_is_an_error_event_of_a_message() {
    for (fault, message) in FAULTS {
        let server = Faulty::builtin(fault());
        let body = chat(json!({ "max_tokens": 12, "stream": true }));
        let events = named_events(&server.post("/v1/messages", &body));
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..4], ["message_start", "ping", "content_block_start", "content_block_delta"]);
        let error = json!({ "type": "error", "error": { "type": "api_error", "message": message } });
        assert_eq!(events.last().unwrap(), &("error".to_owned(), error));
        assert!(names[4..names.len() - 1].iter().all(|name| *name == "content_block_delta"), "{names:?}");
        server.lives_on();
        server.faults.replace(&fault());
        let whole = server.post("/v1/messages", &with(body, json!({ "stream": false })));
        assert_eq!(whole.refusal(500), message);
        assert_eq!(whole.json()["error"]["type"], "api_error");
        server.lives_on();
    }
}

#[test]
fn a_step_that_fails_is_a_failed_response() {
    for (fault, message) in FAULTS {
        let server = Faulty::builtin(fault());
        let body =
            json!({ "input": "Once upon a time", "temperature": 0, "max_output_tokens": 12, "stream": true });
        let events = named_events(&server.post("/v1/responses", &body));
        let [.., (_, delta), (error, told), (failed, last)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(delta["type"], "response.output_text.delta");
        assert_eq!((error.as_str(), failed.as_str()), ("error", "response.failed"));
        let number = |event: &Value| event["sequence_number"].as_u64().unwrap();
        assert_eq!((number(told), number(last)), (number(delta) + 1, number(delta) + 2));
        assert_eq!((&told["code"], &told["message"]), (&json!("server_error"), &json!(message)));
        let error = json!({ "code": "server_error", "message": message });
        assert_eq!((&last["response"]["status"], &last["response"]["error"]), (&json!("failed"), &error));
        server.lives_on();
    }
}

/// A stream that has begun, and what has come of it.
struct Begun(TcpStream, Vec<u8>);

impl Begun {
    fn new(server: &Client, path: &str, body: &Value) -> Self {
        let mut begun = Self(server.begin(path, body), Vec::new());
        let mut bytes = [0; 4096];
        while begun.1.windows(6).filter(|six| six == b"data: ").count() < 3 {
            let count = begun.0.read(&mut bytes).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&begun.1));
            begun.1.extend_from_slice(&bytes[..count]);
        }
        begun
    }

    /// The text to the end of the stream, and the error that it ended with.
    fn end(mut self) -> (String, Option<Value>) {
        self.0.read_to_end(&mut self.1).unwrap();
        let (mut text, mut error) = (String::new(), None);
        for data in Answer::parse(&self.1).events() {
            let Ok(event) = serde_json::from_str::<Value>(&data) else { continue };
            text += event["choices"][0]["text"].as_str().unwrap_or_default();
            error = event.get("error").cloned().or(error);
        }
        (text, error)
    }
}

#[test]
fn a_step_that_panics_ends_the_sequence_at_fault_and_the_others_go_on() {
    let noise = Noise::new();
    let files = ModelFiles::open(noise.0.path()).unwrap();
    let backend = BackendRequest::Cpu;
    let server = Faulty::start(files, LoadOptions { backend, ..LoadOptions::default() });
    let body = |prompt: &str| json!({ "prompt": prompt, "max_tokens": 1000, "temperature": 0.7, "seed": 1 });
    let stream = |prompt: &str| with(body(prompt), json!({ "stream": true }));
    let prompts = ["hello", "world", "hello world"];
    let wanted = prompts.map(|prompt| {
        server.post("/v1/completions", &body(prompt)).ok()["choices"][0]["text"].as_str().unwrap().to_owned()
    });
    // Of the step of three, nobody knows whose fault it is; nobody's, where none of them panics again.
    for (panics, ended) in [(1, 0), (2, 1), (3, 2)] {
        let begun = prompts.map(|prompt| Begun::new(&server, "/v1/completions", &stream(prompt)));
        server.wait_for("backstop_sequences_running", |running| running == 3.0);
        server.faults.replace(&Faults::panic(OpKind::Embedding, 0, panics));
        let mut failed = 0;
        for (begun, wanted) in begun.into_iter().zip(&wanted) {
            match begun.end() {
                (text, None) => assert_eq!(text, *wanted),
                (text, Some(error)) => {
                    assert!(wanted.starts_with(&text));
                    assert_eq!(error, openai_error(PANIC)["error"]);
                    failed += 1;
                }
            }
        }
        assert_eq!(failed, ended, "{panics} panics");
        server.wait_for("backstop_sequences_running", |running| running == 0.0);
        assert_eq!(server.get("/health").ok()["status"], "ok");
    }
}

#[test]
fn what_fails_on_mlx_in_mid_stream_goes_on_on_the_cpu() {
    if !cfg!(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64"))) {
        println!("skipped: this build has no MLX (cargo xtask test has)");
        return;
    }
    let files = || ModelFiles::builtin().unwrap();
    let faulty = |faults| {
        let backend = BackendRequest::Mlx;
        Faulty::start(files(), LoadOptions { backend, faults, ..LoadOptions::default() })
    };
    let cases = [
        (
            Faults::op(OpKind::Attention, 40, 1),
            "backstop_fallbacks_total{op=\"attention\",reason=\"injected fault\"} 1",
            "backstop_replays_total{",
        ),
        (
            Faults::evaluation_at(9, 1),
            "backstop_replays_total{reason=\"eval failed on mlx: injected fault\"} 1",
            "backstop_fallbacks_total{",
        ),
    ];
    let body = |prompt: &str| json!({ "prompt": prompt, "max_tokens": 24, "temperature": 0, "stream": true });
    for (fault, counted, absent) in cases {
        let server = faulty(Faults::default());
        let prompts = ["Once upon a time", "One day"];
        let alone = prompts.map(|prompt| Begun::new(&server, "/v1/completions", &body(prompt)).end());
        assert_eq!(alone[0], (expected(24), None));
        server.faults.replace(&fault);
        let begun = prompts.map(|prompt| Begun::new(&server, "/v1/completions", &body(prompt)));
        assert_eq!(begun.map(Begun::end), alone);
        let metrics = server.get("/metrics").text();
        assert!(metrics.lines().any(|line| line == counted), "{counted}\n{metrics}");
        assert!(!metrics.lines().any(|line| line.starts_with(absent)), "{absent}\n{metrics}");
        server.lives_on();
    }
}

#[test]
fn health_proves_a_recent_step() {
    let noise = Noise::new();
    let files = ModelFiles::open(noise.0.path()).unwrap();
    let options = server::Options { longest_step: Duration::from_secs(1), ..server::Options::default() };
    let backend = BackendRequest::Cpu;
    let load = LoadOptions { backend, context: Some(150_000), ..LoadOptions::default() };
    let server = Faulty::with(files, load, options);
    let health = |status: u16, text: &str| {
        let health = server.get("/health");
        assert_eq!((health.status, &health.json()["status"]), (status, &json!(text)), "{}", health.text());
        health.json()
    };
    // The engine's thread does something else for so long; what is asked meanwhile sees it.
    let busy = |time: Duration| {
        let engine = server.model.engine().clone();
        std::thread::spawn(move || engine.with(move |_| std::thread::sleep(time)).unwrap())
    };
    assert_eq!(health(200, "ok")["running"], 0);
    let idle = busy(Duration::from_secs(4));
    std::thread::sleep(Duration::from_millis(200));
    health(503, "stuck");
    idle.join().unwrap();
    // What was just asked is not late because nothing was asked before.
    let short = busy(Duration::from_millis(500));
    let mut stream = server.begin("/v1/chat/completions", &endless());
    let deadline = Instant::now() + Duration::from_secs(60);
    while health(200, "ok")["queued"] == 0 && !short.is_finished() {
        assert!(Instant::now() < deadline);
    }
    short.join().unwrap();
    read_some(&mut stream);
    let steps = |health: Value| health["steps"].as_u64().unwrap();
    let before = health(200, "ok");
    assert!(before["seconds_since_step"].as_f64().unwrap() < 1.0, "{before}");
    // What was sent already is read first.
    let before = steps(before);
    let deadline = Instant::now() + Duration::from_secs(60);
    while steps(health(200, "ok")) == before {
        assert!(Instant::now() < deadline, "no step since step {before}");
        read_some(&mut stream);
    }
    let running = busy(Duration::from_secs(4));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(health(503, "stuck")["running"], 1);
    running.join().unwrap();
    // Until the next step has ended; what is read at first was sent before.
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.get("/health").status != 200 {
        assert!(Instant::now() < deadline, "no step since the engine is free");
        read_some(&mut stream);
    }
    health(200, "ok");
}

/// A model's file that another program changes ends the requests that may have read it, and not the server.
#[test]
#[cfg(unix)]
fn a_file_that_changes_ends_its_requests_and_not_the_server() {
    use std::io::{Seek, SeekFrom, Write};

    type Change = fn(&Path);
    fn open(path: &Path) -> std::fs::File {
        std::fs::OpenOptions::new().write(true).open(path).unwrap()
    }

    let cases: [(&[&str], Change, Option<&str>); 4] = [
        (&[], |path| open(path).set_len(5000).unwrap(), Some(" bytes have become 5000")),
        (
            &[],
            |path| {
                let mut file = open(path);
                file.seek(SeekFrom::End(-1)).unwrap();
                file.write_all(&[0]).unwrap();
            },
            Some("it was written to"),
        ),
        // As programs write files that others may be reading.
        (
            &[],
            |path| {
                let new = path.with_extension("new");
                std::fs::write(&new, b"another").unwrap();
                std::fs::rename(&new, path).unwrap();
            },
            None,
        ),
        (&["--no-mmap"], |path| open(path).set_len(5000).unwrap(), None),
    ];
    for (args, change, said) in cases {
        let noise = Noise::new();
        let path = noise.0.path().join("model.safetensors");
        let mut server = support::Server::endless(&noise, args);
        let body = json!({ "prompt": "hello", "max_tokens": 60, "temperature": 0 });
        let alone = server.post("/v1/completions", &body).ok();
        let begun = Begun::new(
            &server,
            "/v1/completions",
            &json!({ "prompt": "a", "max_tokens": 140_000, "stream": true }),
        );
        change(&path);
        let (answer, health) = match said {
            Some(said) => {
                let (_, error) = begun.end();
                let message = error.unwrap()["message"].as_str().unwrap().to_owned();
                assert!(message.ends_with(&format!("{said}): load the model anew")), "{message}");
                let answer = server.post("/v1/completions", &body);
                assert_eq!(answer.refusal(503), message);
                (answer, message)
            }
            None => {
                drop(begun);
                let answer = server.post("/v1/completions", &body);
                assert_eq!(answer.ok()["choices"], alone["choices"]);
                (answer, String::new())
            }
        };
        drop(answer);
        let asked = server.get("/health");
        let wanted = if said.is_some() {
            (503, json!("changed"), json!(health))
        } else {
            (200, json!("ok"), Value::Null)
        };
        let told = asked.json();
        assert_eq!((asked.status, told["status"].clone(), told["error"].clone()), wanted);
        assert!(server.child.try_wait().unwrap().is_none());
    }
}
