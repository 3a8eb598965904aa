//! `backstop perplexity`: how well a model predicts a text, and how far from it another one is.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use backstop::perplexity::{Mean, Scored, Windows, quantile, score};
use backstop::text::Specials;
use backstop::{LoadOptions, Model};
use serde_json::{Value, json};

use super::args::{ModelArgs, PerplexityArgs, SessionArgs};
use super::html::{self, Mark, Page};
use super::progress::Progress;
use super::stream::print;
use super::summary::aligned;
use super::whole::Whole;
use super::{Usage, names, ranks};

/// Tokens of a window where nothing says it: what most published numbers are of.
const WINDOW: usize = 512;

pub fn perplexity(args: &PerplexityArgs) -> anyhow::Result<ExitCode> {
    let from = names::replace(&args.model, args.read.model());
    if compared(args, &from).is_some() {
        ranks::one_model("--compare")?;
    }
    let (_, text) = names::text(&args.read)?;
    let longest = super::open_as(&from)?.config().max_context();
    let window = args.window.unwrap_or(WINDOW.min(longest));
    if window > longest {
        let what = format!("--window is {window}, and the model was trained for {longest} tokens");
        return Err(Usage(what).into());
    }
    let windows = match args.llama_cpp {
        true => Windows::Halves { window },
        false => Windows::Sliding { window, stride: args.stride.unwrap_or((window / 2).max(1)) },
    };
    let session = SessionArgs { ctx: Some(window), threads: args.threads, ..SessionArgs::default() };
    let load = |args: &ModelArgs| {
        super::load_as(args, &session, false, |options| LoadOptions { max_sequences: Some(1), ..options })
    };
    let model = load(&from)?.model;
    let tokenizer = model.tokenizer()?;
    let mut tokens = tokenizer.encode(&text)?;
    let all = tokens.len();
    tokens.truncate(args.tokens.unwrap_or(all));
    // What a text begins with that has nothing in it.
    let none = || tokenizer.encode_with("", Specials { add: true, parse: true });
    let begin = if args.llama_cpp { none()?.first().copied() } else { None };
    let other = compared(args, &from).map(|other| load(&other)).transpose()?.map(|loaded| loaded.model);
    let mut positions = args.positions.as_deref().map(Whole::create).transpose()?;
    let html = args.html.as_deref().map(Whole::create).transpose()?;

    let count = windows.cut(tokens.len())?.len();
    let done = Arc::new(AtomicUsize::new(0));
    let shown = Arc::clone(&done);
    let progress =
        Progress::start(move || format!("window {} of {count}", shown.load(Ordering::Relaxed) + 1));
    let mut scored: Vec<Scored> = Vec::new();
    let mut failed = None;
    score(&model, other.as_ref(), &tokens, windows, begin, |more| {
        done.fetch_add(1, Ordering::Relaxed);
        scored.extend_from_slice(more);
        if let Some(file) = &mut positions
            && failed.is_none()
        {
            failed = more.iter().try_for_each(|one| writeln!(file, "{}", line(one, other.is_some()))).err();
        }
        Ok(())
    })?;
    drop(progress);
    if let Some(file) = positions {
        failed.map_or(Ok(()), Err).with_context(|| file.name())?;
        file.finish()?;
    }
    let report =
        Report { model: &model, other: other.as_ref(), tokens: (tokens.len(), all), windows, scored };
    if let Some(mut file) = html {
        file.write_all(report.html(&tokens).as_bytes()).with_context(|| file.name())?;
        file.finish()?;
    }
    print(&if args.json { format!("{}\n", report.json()) } else { report.table() })?;
    Ok(ExitCode::SUCCESS)
}

/// What the model is compared with: another one, or itself in other settings.
fn compared(args: &PerplexityArgs, of: &ModelArgs) -> Option<ModelArgs> {
    let PerplexityArgs { compare, compare_backend, compare_activations, compare_kv_type, .. } = args;
    let is_asked = compare.is_some()
        || compare_backend.is_some()
        || compare_activations.is_some()
        || compare_kv_type.is_some();
    is_asked.then(|| ModelArgs {
        model: compare.clone().or_else(|| of.model.clone()),
        backend: compare_backend.unwrap_or(of.backend),
        activations: compare_activations.unwrap_or(of.activations),
        kv_type: (*compare_kv_type).or(of.kv_type),
        // What a text gains by one is told beside the model without it.
        adapter: Vec::new(),
        ..of.clone()
    })
}

/// A line of the file of positions.
fn line(one: &Scored, compared: bool) -> Value {
    let Scored { position, token, surprise: [of_model, of_other], divergence, agree } = *one;
    match compared {
        false => json!({ "position": position, "token": token, "nll": of_model }),
        true => json!({
            "position": position,
            "token": token,
            "nll": of_model,
            "other_nll": of_other,
            "kl": divergence,
            "same_top": agree,
        }),
    }
}

struct Report<'a> {
    model: &'a Model,
    other: Option<&'a Model>,
    /// Read, and in the text.
    tokens: (usize, usize),
    windows: Windows,
    scored: Vec<Scored>,
}

/// How far another model is.
struct Distance {
    perplexity: Mean,
    /// Of the logarithm of the ratio of both perplexities.
    ratio: Mean,
    mean: Mean,
    /// The median, 99 %, 99.9 %, and the largest.
    quantiles: [f64; 4],
    same_top: Mean,
}

impl Report<'_> {
    fn surprise(&self, which: usize) -> Mean {
        Mean::of(self.scored.iter().map(|one| one.surprise[which]))
    }

    fn distance(&self) -> Option<Distance> {
        self.other?;
        let mut divergences: Vec<f64> = self.scored.iter().map(|one| one.divergence).collect();
        divergences.sort_by(f64::total_cmp);
        Some(Distance {
            perplexity: self.surprise(1).exp(),
            ratio: Mean::of(self.scored.iter().map(|one| one.surprise[1] - one.surprise[0])),
            mean: Mean::of(self.scored.iter().map(|one| one.divergence)),
            quantiles: [0.5, 0.99, 0.999, 1.0].map(|part| quantile(&divergences, part)),
            same_top: Mean::of(self.scored.iter().map(|one| f64::from(u8::from(one.agree)))),
        })
    }

    fn cut(&self) -> String {
        match self.windows {
            Windows::Sliding { window, stride } => {
                format!("windows of {window} tokens, {stride} apart (as transformers)")
            }
            Windows::Halves { window } => {
                format!("windows of {window} tokens, the second half of each (as llama.cpp)")
            }
        }
    }

    /// What was scored by token, and the worst tokens in their text.
    fn html(&self, tokens: &[u32]) -> String {
        let info = self.model.info();
        let mut page = Page::new(&match self.other {
            Some(other) => format!("{} compared with {}", other.info().name, info.name),
            None => format!("Perplexity of {}", info.name),
        });
        page.facts(&self.lines());
        let of: fn(&Scored) -> f64 = match self.other {
            Some(_) => |one| one.divergence,
            None => |one| one.surprise[0],
        };
        let of_name = if self.other.is_some() { "KL divergence, nats" } else { "-ln p, nats" };
        // Of each token of the text; nothing where it was not scored.
        let mut values = vec![0.0; tokens.len()];
        for one in &self.scored {
            if let Some(value) = values.get_mut(one.position) {
                *value = of(one);
            }
        }

        page.heading("By token");
        let marks: Vec<Mark> =
            (self.scored.iter()).map(|one| Mark { name: one.position.to_string(), value: of(one) }).collect();
        page.plot(of_name, "by position", &marks);

        let texts = html::texts(self.model.tokenizer().ok(), tokens);
        let numbers: Vec<f64> = self.scored.iter().map(of).collect();
        let worst = html::worst(&numbers, html::WORST);
        if !worst.is_empty() {
            page.heading("The worst tokens");
            let p = |surprise: f64| format!("{:.2} %", 100.0 * (-surprise).exp());
            let lines: Vec<Vec<String>> = (worst.iter().map(|&at| &self.scored[at]))
                .map(|one| {
                    let before = one.position.checked_sub(1).map(|before| html::before(&texts, before));
                    let mut line = vec![
                        one.position.to_string(),
                        before.unwrap_or_default(),
                        texts.get(one.position).cloned().unwrap_or_default(),
                        p(one.surprise[0]),
                    ];
                    if self.other.is_some() {
                        let same = if one.agree { "the same" } else { "another" };
                        line.extend([p(one.surprise[1]), same.to_owned(), html::number(one.divergence)]);
                    }
                    line
                })
                .collect();
            let heads = match self.other {
                Some(_) => &["token", "after", "text", "model", "other", "likeliest", "KL, nats"][..],
                None => &["token", "after", "text", "probability"],
            };
            page.table(heads, &lines);
        }
        page.heading("The text");
        page.note(&format!("Each token is as dark as its {of_name}, from a thousandth of the largest on."));
        let told = |at: usize| format!("{at}: {} nats", html::number(values[at]));
        page.text(&html::heat(&texts, &values, told));
        page.finish()
    }

    fn table(&self) -> String {
        aligned(&self.lines(), 2)
    }

    /// What is told at the end.
    fn lines(&self) -> Vec<[String; 2]> {
        let (read, all) = self.tokens;
        let of = if read < all { format!(" of {all}") } else { String::new() };
        let with_error =
            |mean: Mean, digits: usize| format!("{:.digits$} ± {:.digits$}", mean.value, mean.error);
        let mut lines = vec![
            ["model".to_owned(), format!("{}: {}", self.model.info().name, self.model.engine().backend())],
            ["text".to_owned(), format!("{read}{of} tokens, {} scored, {}", self.scored.len(), self.cut())],
            ["perplexity".to_owned(), with_error(self.surprise(0).exp(), 4)],
        ];
        if let (Some(other), Some(distance)) = (self.other, self.distance()) {
            let [median, high, higher, most] = distance.quantiles;
            let percent = |mean: Mean| Mean { value: 100.0 * mean.value, error: 100.0 * mean.error };
            lines.extend([
                ["other".to_owned(), format!("{}: {}", other.info().name, other.engine().backend())],
                ["perplexity".to_owned(), with_error(distance.perplexity, 4)],
                ["ln of the ratio".to_owned(), with_error(distance.ratio, 6)],
                ["KL divergence".to_owned(), format!("{} nats", with_error(distance.mean, 6))],
                [
                    String::new(),
                    format!("median {median:.6}, 99 % {high:.6}, 99.9 % {higher:.6}, largest {most:.6}"),
                ],
                ["same top token".to_owned(), format!("{} %", with_error(percent(distance.same_top), 2))],
            ]);
        }
        lines
    }

    fn json(&self) -> Value {
        let mean = |mean: Mean| json!({ "value": mean.value, "error": mean.error });
        let device = |model: &Model| json!({ "name": model.info().name, "device": model.engine().backend() });
        let windows = match self.windows {
            Windows::Sliding { window, stride } => {
                json!({ "kind": "sliding", "window": window, "stride": stride })
            }
            Windows::Halves { window } => json!({ "kind": "halves", "window": window }),
        };
        let mut report = json!({
            "model": device(self.model),
            "tokens": self.tokens.0,
            "text_tokens": self.tokens.1,
            "scored": self.scored.len(),
            "windows": windows,
            "nll": mean(self.surprise(0)),
            "perplexity": mean(self.surprise(0).exp()),
        });
        if let (Some(other), Some(distance)) = (self.other, self.distance()) {
            let [median, high, higher, most] = distance.quantiles;
            report["other"] = json!({
                "model": device(other),
                "perplexity": mean(distance.perplexity),
                "ln_ratio": mean(distance.ratio),
                "kl": {
                    "mean": mean(distance.mean),
                    "median": median,
                    "p99": high,
                    "p999": higher,
                    "max": most,
                },
                "same_top": mean(distance.same_top),
            });
        }
        report
    }
}
