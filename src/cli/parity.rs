//! `backstop parity`: what would run a model here beside the reference, the CPU with activations as they are.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use backstop::backend::cpu::Activations;
use backstop::backend::select::BackendRequest;
use backstop::parity::{Parity, StateError, Trace};
use backstop::{LoadOptions, Model};
use serde_json::{Value, json};

use super::args::{ModelArgs, ParityArgs, SessionArgs};
use super::html::{self, Mark, Page};
use super::stream::print;
use super::summary::{aligned, fallen_back};
use super::whole::Whole;
use super::{Loaded, Usage, input, names, typed};

/// What is read where nothing is given.
const TEXT: &str = "The old lighthouse keeper counted the steps as he climbed: one hundred and twelve, the same as every \
    evening for thirty years. At the top he lit the lamp, wiped the salt from the glass, and wrote the date, the wind and \
    the height of the sea into his book. Two ships passed before midnight. The first, a small boat with a red sail, was \
    late; her captain had promised to be home by noon. The second did not answer when he raised his flag. \"Strange,\" he \
    said to the cat, \"nobody sails past these rocks without a word.\" He took the long brass telescope from its hook and \
    looked again. There was no one on deck, and yet the ship turned slowly towards the land, as if a careful hand held \
    the wheel. In the morning, when the fog had gone, the harbour was full of people who asked each other where she had \
    come from, and why every clock on board had stopped at exactly a quarter past four.";

pub fn parity(args: &ParityArgs) -> anyhow::Result<ExitCode> {
    if let Some(limit) = args.fail_above
        && (limit.is_nan() || limit < 0.0)
    {
        let what = format!("--fail-above is {limit}, expected a number of nats from 0 on");
        return Err(Usage(what).into());
    }
    let (named, text) = typed::model_and_text(&args.model, args.first.as_deref(), args.second.as_deref());
    if text.is_some() && args.text_file.is_some() {
        return Err(Usage("--text-file is the text to read: leave TEXT out".to_owned()).into());
    }
    let model = names::replace(&args.model, named);
    let text = text_of(text, args)?;
    let html = args.html.as_deref().map(Whole::create).transpose()?;
    let context = args.tokens.min(super::open_as(&model)?.config().max_context());
    let session = SessionArgs { ctx: Some(context), threads: args.threads, ..SessionArgs::default() };
    // What is said of MLX is said of what is compared.
    let plain = ModelArgs { dtype: None, cpu_ops: Vec::new(), ..model.clone() };
    let reference = load(&plain, &session, BackendRequest::Cpu, Activations::F32)?;
    let (tokens, all) = tokens(&reference.model, &text, context)?;
    let trace = Trace::of(&reference.model, &tokens)?;
    let reference_device = Device::of(&reference.model, Activations::F32);
    // The weights of both need not be in memory together.
    drop(reference);
    let compared = load(&model, &session, model.backend, model.activations)?;
    let parity = trace.compare(&compared.model)?;
    let report = Report {
        model: &compared.model,
        devices: [reference_device, Device::of(&compared.model, model.activations)],
        tokens: (tokens.len(), all),
        parity,
    };
    if let Some(mut file) = html {
        file.write_all(report.html(&tokens).as_bytes()).with_context(|| file.name())?;
        file.finish()?;
    }
    print(&if args.json { format!("{}\n", report.json()) } else { report.table() })?;
    let mean = report.parity.divergence.mean;
    if let Some(limit) = args.fail_above
        && (mean.is_nan() || mean > limit)
    {
        bail!("the mean KL divergence is {mean:.3e} nats, above --fail-above {limit}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The text that was typed, or is in a file, or is there for want of one.
fn text_of(typed: Option<&str>, args: &ParityArgs) -> anyhow::Result<String> {
    match (typed, &args.text_file) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(path)) => read(path).with_context(|| path.display().to_string()),
        (None, None) => Ok(TEXT.to_owned()),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    input::utf8(input::read_all(&mut std::fs::File::open(path)?)?, 0)
}

/// The model with another backend and other activations than were typed.
fn load(
    args: &ModelArgs,
    session: &SessionArgs,
    backend: BackendRequest,
    activations: Activations,
) -> anyhow::Result<Loaded> {
    super::load_as(args, session, false, |options| LoadOptions { backend, activations, ..options })
}

/// The first of the text's tokens, and how many it has: without a tokenizer, ids that differ from their neighbours.
fn tokens(model: &Model, text: &str, most: usize) -> anyhow::Result<(Vec<u32>, usize)> {
    let mut tokens = match model.tokenizer() {
        Ok(tokenizer) => tokenizer.encode(text)?,
        Err(_) => (0..most).map(|i| (i * 7919 % model.info().config.vocab_size) as u32).collect(),
    };
    let all = tokens.len();
    tokens.truncate(most);
    Ok((tokens, all))
}

/// What computed.
struct Device {
    name: String,
    activations: Option<Activations>,
    fallbacks: Vec<Value>,
    replays: Vec<Value>,
    left_mlx: Option<String>,
}

impl Device {
    fn of(model: &Model, activations: Activations) -> Self {
        let (fallbacks, replays) = fallen_back(model.engine().report());
        let on_cpu = model.info().selection.kind == backstop::backend::LlmBackendKind::Cpu;
        let name = model.engine().backend().to_owned();
        let left_mlx = model.engine().report().left_mlx();
        Self { name, activations: on_cpu.then_some(activations), fallbacks, replays, left_mlx }
    }

    fn shown(&self) -> String {
        match self.activations {
            Some(activations) => format!("{}, activations {}", self.name, name(activations)),
            None => self.name.clone(),
        }
    }

    /// Calls that ran elsewhere.
    fn fallen(&self) -> u64 {
        self.fallbacks.iter().chain(&self.replays).filter_map(|of| of["count"].as_u64()).sum()
    }

    fn json(&self) -> Value {
        json!({
            "device": self.name,
            "activations": self.activations.map(name),
            "fallbacks": self.fallbacks,
            "replays": self.replays,
            "left_mlx": self.left_mlx,
        })
    }
}

/// As it is typed.
fn name(activations: Activations) -> &'static str {
    match activations {
        Activations::Int8 => "int8",
        Activations::F32 => "f32",
    }
}

struct Report<'a> {
    model: &'a Model,
    devices: [Device; 2],
    /// Compared, and in the text.
    tokens: (usize, usize),
    parity: Parity,
}

impl Report<'_> {
    /// A token as its vocabulary has it.
    fn token(&self, id: u32) -> String {
        let text = self.model.tokenizer().ok().and_then(|tokenizer| tokenizer.token_text(id));
        text.map_or_else(|| id.to_string(), |text| format!("{id} {text:?}"))
    }

    fn read(&self) -> String {
        match self.tokens {
            (some, all) if some == all => format!("{all} tokens"),
            (some, all) => format!("the first {some} of {all} tokens"),
        }
    }

    /// Errors by layer and by position, and the worst tokens in their text.
    fn html(&self, tokens: &[u32]) -> String {
        let (parity, info) = (&self.parity, self.model.info());
        let mut page = Page::new(&format!("Parity of {}", info.name));
        let facts: [[&str; 2]; 7] = [
            ["model", &format!("{}: {}, {}", info.name, info.config.model_type, info.dtype)],
            ["reference", &self.devices[0].shown()],
            ["compared", &self.devices[1].shown()],
            ["text", &self.read()],
            ["KL divergence", &format!("{} nats on average", html::number(parity.divergence.mean))],
            ["likeliest token", &format!("the same after {} of {} tokens", parity.agreeing, parity.tokens)],
            ["fallbacks", &self.devices[1].fallen().to_string()],
        ];
        let mut facts = facts.map(|line| line.map(str::to_owned)).to_vec();
        if let Some([reference, other]) = parity.perplexity {
            facts.push(["perplexity".into(), format!("{reference:.4} of the reference, {other:.4}")]);
        }
        page.facts(&facts);

        page.heading("By layer");
        let states = || parity.states.iter().chain([&parity.logits]);
        let marks = |of: fn(&StateError) -> f64| -> Vec<Mark> {
            states().map(|state| Mark { name: state.name.clone(), value: of(state) }).collect()
        };
        page.plot("Relative error", "by layer", &marks(|state| state.relative));
        page.plot("Largest error of a value", "by layer", &marks(|state| state.largest));

        page.heading("By token");
        let divergences: Vec<f64> = parity.positions.iter().map(|of| of.divergence).collect();
        let marks: Vec<Mark> = (divergences.iter().enumerate())
            .map(|(position, &value)| Mark { name: position.to_string(), value })
            .collect();
        page.plot("KL divergence of the next token, nats", "by position", &marks);

        let texts = html::texts(self.model.tokenizer().ok(), tokens);
        let worst = html::worst(&divergences, html::WORST);
        if !worst.is_empty() {
            page.heading("The worst tokens");
            let lines: Vec<Vec<String>> = worst.iter().map(|&at| self.worst(at, tokens, &texts)).collect();
            let heads = ["after", "text", "goes on with", "reference", "compared", "KL, nats"];
            page.table(&heads, &lines);
        }
        page.heading("The text");
        page.note("Each token is as dark as the divergence of what follows it, from a thousandth of the largest on.");
        let told = |at: usize| format!("{at}: {} nats", html::number(divergences[at]));
        page.text(&html::heat(&texts, &divergences, told));
        page.finish()
    }

    /// A line about what follows the token at `at`.
    fn worst(&self, at: usize, tokens: &[u32], texts: &[String]) -> Vec<String> {
        let of = &self.parity.positions[at];
        let likeliest = |which: usize| {
            format!("{} {:.1} %", self.token(of.likeliest[which]), 100.0 * of.probability[which])
        };
        let next = tokens.get(at + 1).map_or_else(String::new, |&id| self.token(id));
        vec![
            at.to_string(),
            html::before(texts, at),
            next,
            likeliest(0),
            likeliest(1),
            html::number(of.divergence),
        ]
    }

    fn table(&self) -> String {
        let (parity, info, tokens) = (&self.parity, self.model.info(), self.read());
        let mut text = format!(
            "model      {}: {}, {}\nreference  {}\ncompared   {}\ntext       {tokens}\n\n",
            info.name,
            info.config.model_type,
            info.dtype,
            self.devices[0].shown(),
            self.devices[1].shown(),
        );
        let mut lines = vec![["", "largest error", "at token", "relative error"].map(str::to_owned)];
        for state in parity.states.iter().chain([&parity.logits]) {
            let StateError { name, largest, position, relative } = state;
            lines.push([
                name.clone(),
                format!("{largest:.3e}"),
                position.to_string(),
                format!("{relative:.3e}"),
            ]);
        }
        text += &aligned(&lines, 1);
        let of = parity.divergence;
        text += &format!(
            "\nKL divergence   {:.3e} nats on average, at most {:.3e}, after token {}\n",
            of.mean, of.largest, of.position
        );
        text += &format!("likeliest token the same after {} of {} tokens", parity.agreeing, parity.tokens);
        if let Some(first) = parity.first_difference {
            let (reference, other) = (self.token(first.reference), self.token(first.other));
            text += &format!(", first another after token {}: {other} for {reference}", first.position);
        }
        if let Some([reference, other]) = parity.perplexity {
            text += &format!("\nperplexity      {reference:.4} of the reference, {other:.4}");
        }
        text += &format!("\nfallbacks       {}\n", self.devices[1].fallen());
        text
    }

    fn json(&self) -> Value {
        let (parity, info) = (&self.parity, self.model.info());
        let state = |of: &StateError| json!({ "name": of.name, "largest": of.largest, "position": of.position, "relative": of.relative });
        json!({
            "model": { "name": info.name, "model_type": info.config.model_type, "dtype": info.dtype.name() },
            "reference": self.devices[0].json(),
            "compared": self.devices[1].json(),
            "tokens": self.tokens.0,
            "text_tokens": self.tokens.1,
            "states": parity.states.iter().map(state).collect::<Vec<_>>(),
            "logits": state(&parity.logits),
            "divergence": {
                "mean": parity.divergence.mean,
                "largest": parity.divergence.largest,
                "position": parity.divergence.position,
            },
            "agreeing": parity.agreeing,
            "first_difference": parity.first_difference.map(|first| json!({
                "position": first.position,
                "reference": first.reference,
                "compared": first.other,
            })),
            "perplexity": parity.perplexity.map(|[reference, compared]| json!({
                "reference": reference,
                "compared": compared,
            })),
        })
    }
}
