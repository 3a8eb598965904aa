//! The time to build the MLX graph of one decode step, which the device waits for where the graph is late.
//!
//! `cargo xtask with-mlx bench --bench graph -- model=DIR [tokens=128] [steps=40] [rounds=5] [python=PROGRAM]`
//!
//! A step is what the engine builds ahead in greedy decoding: the forward pass over the token that the step before chose
//! (still an array), its logits and their argmax. It is evaluated between two timed steps, never inside one. With `python`,
//! an interpreter that has mlx-lm, `tools/graph_build.py` times the same of mlx-lm in alternate rounds.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use backstop::backend::batch::{Batch, Run, Tokens};
use backstop::backend::ops::Backend;
use backstop::backend::select::BackendRequest;
use backstop::backend::{Policy, Tensor};
use backstop::engine::Runtime;
use backstop::forward::step::SequenceState;
use backstop::{LoadOptions, Model};

fn arg(name: &str) -> Option<String> {
    std::env::args().find_map(|a| a.strip_prefix(&format!("{name}=")).map(str::to_owned))
}

fn number(name: &str, default: usize) -> usize {
    arg(name).map_or(default, |n| n.parse().expect("a number"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median milliseconds to build one of `steps` decode steps after `tokens` cached tokens.
fn round(runtime: &Runtime, state: &mut SequenceState, tokens: usize, steps: usize) -> f64 {
    let states = std::slice::from_mut(state);
    let vocab = runtime.config().vocab_size;
    let prompt: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
    if states[0].kv.is_empty() {
        runtime.step(&Batch::of(&[(0, &prompt)]), states).expect("a prefill");
    }
    states[0].kv.truncate(tokens - 1);
    let last = Batch::of(&[(tokens - 1, &prompt[tokens - 1..])]);
    let first = runtime.launch(&last, states, true).expect("a decode step");
    let choice = |logits: &Tensor| runtime.dispatch().greedy_tokens(logits).expect("a lazy backend");
    let mut token = choice(first.logits().expect("logits"));
    let mut times = Vec::with_capacity(steps);
    for i in 0..steps {
        let start = Instant::now();
        let run = Run { sequence: 0, row: 0, len: 1, start: tokens + i };
        let batch = Batch { tokens: Tokens::Pending(token), runs: vec![run], outputs: vec![0] };
        let built = runtime.build(&batch, states, None).expect("a graph");
        let logits = built.logits().expect("logits");
        token = choice(logits);
        times.push(start.elapsed().as_secs_f64());
        runtime.dispatch().evaluate(&[logits, &token], &[], &[], true).expect("an evaluation");
    }
    1e3 * median(times)
}

/// mlx-lm, which times a round whenever it is asked to.
struct Peer {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, model: &str, tokens: usize, steps: usize) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/graph_build.py");
        let mut child = Command::new(python)
            .arg(script)
            .args([model, "--follow", "--tokens", &tokens.to_string(), "--steps", &steps.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let asked = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, asked, answers }
    }

    fn round(&mut self) -> f64 {
        writeln!(self.asked).expect("mlx-lm listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("mlx-lm answers");
        line.trim().parse().expect("milliseconds")
    }

    fn end(mut self) {
        drop(self.asked);
        self.child.wait().expect("mlx-lm ends");
    }
}

fn main() {
    if !cfg!(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64"))) {
        println!("skipped: this build has no MLX (cargo xtask with-mlx bench … has)");
        return;
    }
    let Some(dir) = arg("model") else {
        println!("skipped: model=DIR is not given (cargo xtask random-model makes one)");
        return;
    };
    let (tokens, steps, rounds) = (number("tokens", 128).max(1), number("steps", 40), number("rounds", 5));
    let options =
        LoadOptions { backend: BackendRequest::Mlx, policy: Policy::Deny, ..LoadOptions::default() };
    let model = Model::load_with(backstop::ModelFiles::open(Path::new(&dir)).expect("a model"), options)
        .expect("a model that loads");
    let mut peer = arg("python").map(|python| Peer::start(&python, &dir, tokens, steps));
    let mut state = model.engine().with(move |runtime| runtime.sequence(tokens)).expect("an engine");
    let (mut own, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let took;
        (state, took) = model
            .engine()
            .with(move |runtime| {
                let took = round(runtime, &mut state, tokens, steps);
                (state, took)
            })
            .expect("an engine");
        own.push(took);
        if let Some(peer) = &mut peer {
            let took = peer.round();
            theirs.push(took);
            ratios.push(own[own.len() - 1] / took);
        }
    }
    println!(
        "{}: a decode step's graph in {:.3} ms (medians of {steps} steps, {rounds} rounds, {tokens} tokens cached)",
        model.engine().backend(),
        median(own)
    );
    if let Some(peer) = peer {
        peer.end();
        let ratio = 100.0 * median(ratios);
        println!("mlx-lm: in {:.3} ms; backstop takes {ratio:.0} % of it", median(theirs));
    }
}
