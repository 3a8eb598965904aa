//! What a run took: lines for a person, JSON for a script, and the units of both.

use std::fmt::Write;
use std::time::Duration;

use backstop::backend::FallbackReport;
use backstop::backend::select::Bytes;
use backstop::engine::FinishReason;
use backstop::{Model, ModelInfo, Options, Stats};
use serde_json::{Value, json};

use super::stream::Answer;
use super::term;

/// A run that has ended.
pub struct Summary<'a> {
    pub model: &'a Model,
    pub options: &'a Options,
    /// What opening and loading the model took.
    pub loading: Duration,
    pub answer: &'a Answer,
}

impl Summary<'_> {
    /// Writes the summary to stderr.
    pub fn show(&self) {
        for (name, what) in self.lines() {
            term::note(format_args!("{}  {what}", term::dim(&format!("{name:<9}"))));
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let (info, stats) = (self.model.info(), &self.answer.stats);
        let mut lines = vec![
            (
                "model",
                format!(
                    "{}: {}, {}, {}, loaded in {}",
                    info.name,
                    info.config.model_type,
                    info.dtype,
                    Bytes(info.weight_bytes),
                    seconds(self.loading)
                ),
            ),
            ("backend", format!("{}: {}", self.model.engine().backend(), info.selection.reason)),
        ];
        let mut prompt = prompt_tokens(self.answer);
        if let Some(first) = self.answer.first_token {
            let _ = write!(prompt, " at {}, first token after {}", rate(stats.prompt_rate()), seconds(first));
        }
        lines.push(("prompt", prompt));
        lines.push((
            "generated",
            format!("{}, {}", generated(self.answer), ending(self.answer, self.model, self.options)),
        ));
        if stats.drafted_tokens > 0 {
            lines.push(("drafts", drafts(stats)));
        }
        if self.answer.conforms == Some(false) {
            lines.push(("form", "cut off: the text is not what was asked for".to_owned()));
        }
        if let Some(peak) = peak_memory() {
            let kv = format!("KV cache in {}, {} a token", info.kv_type, Bytes(info.kv_token_bytes));
            lines.push(("memory", format!("{} at the peak; {kv}", Bytes(peak))));
        }
        let report = self.model.engine().report();
        for (op, reason, count) in report.fallbacks() {
            lines.push(("fallback", format!("{op} on the CPU {}: {reason}", times(count))));
        }
        for (reason, count) in report.replays() {
            lines.push(("replay", format!("a step on the CPU {}: {reason}", times(count))));
        }
        if let Some(reason) = report.left_mlx() {
            lines.push(("left MLX", format!("the model stays on the CPU: {reason}")));
        }
        lines
    }

    /// One JSON object: everything, rates in tokens per second, times in seconds, sizes in bytes.
    pub fn json(&self) -> Value {
        let (info, answer, stats) = (self.model.info(), self.answer, &self.answer.stats);
        let (fallbacks, replays) = fallen_back(self.model.engine().report());
        json!({
            "text": answer.reply.content,
            "reasoning": (!answer.reply.reasoning.is_empty()).then_some(&answer.reply.reasoning),
            "tokens": answer.tokens,
            "logprobs": answer.logprobs,
            "finish_reason": answer.finish.name(),
            "conforms": answer.conforms,
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "generated_tokens": answer.tokens.len(),
            "drafted_tokens": stats.drafted_tokens,
            "accepted_tokens": stats.accepted_tokens,
            "seed": self.options.sampling.seed,
            "timings": {
                "load": self.loading.as_secs_f64(),
                "first_token": answer.first_token.map(|time| time.as_secs_f64()),
                "prompt": stats.prompt_time.as_secs_f64(),
                "generation": stats.generation_time.as_secs_f64(),
                "total": answer.total.as_secs_f64(),
            },
            "rates": { "prompt": stats.prompt_rate(), "generation": stats.generation_rate() },
            "model": {
                "name": info.name,
                "model_type": info.config.model_type,
                "dtype": info.dtype.name(),
                "weight_bytes": info.weight_bytes,
                "context": info.context,
            },
            "backend": {
                "kind": info.selection.kind.name(),
                "device": self.model.engine().backend(),
                "reason": info.selection.reason,
                "activations": info.activation_dtype.name(),
                "left_mlx": self.model.engine().report().left_mlx(),
            },
            "kv_cache": kv_cache(info),
            "peak_memory_bytes": peak_memory(),
            "fallbacks": fallbacks,
            "replays": replays,
        })
    }
}

/// What keys and values are kept in, for JSON.
pub fn kv_cache(info: &ModelInfo) -> Value {
    json!({ "type": info.kv_type.name(), "bytes_per_token": info.kv_token_bytes })
}

/// What fell back and what was replayed, for JSON.
pub fn fallen_back(report: &FallbackReport) -> (Vec<Value>, Vec<Value>) {
    let fallbacks = (report.fallbacks().into_iter())
        .map(|(op, reason, count)| json!({ "op": op.name(), "reason": reason, "count": count }))
        .collect();
    let replays = (report.replays().into_iter())
        .map(|(reason, count)| json!({ "reason": reason, "count": count }))
        .collect();
    (fallbacks, replays)
}

/// One line about a turn of a conversation.
pub fn turn(answer: &Answer, model: &Model, options: &Options) -> String {
    let mut line = prompt_tokens(answer);
    if let Some(first) = answer.first_token {
        let _ = write!(line, ", first token after {}", seconds(first));
    }
    let ending = match answer.finish {
        FinishReason::Stop => String::new(),
        _ => format!(", {}", ending(answer, model, options)),
    };
    format!("{line}; {}{ending}", generated(answer))
}

fn ending(answer: &Answer, model: &Model, options: &Options) -> &'static str {
    let generated = Some(answer.tokens.len());
    match answer.finish {
        FinishReason::Stop => "ended by the model",
        FinishReason::Cancelled => "interrupted",
        FinishReason::Length if options.max_tokens == generated => "stopped at --max-tokens",
        FinishReason::Length
            if options.max_tokens.is_none()
                && model.default_max_tokens(answer.stats.prompt_tokens) == generated =>
        {
            "stopped at the model's own limit (--max-tokens)"
        }
        FinishReason::Length => "stopped by the full context (--ctx)",
    }
}

fn prompt_tokens(answer: &Answer) -> String {
    let stats = &answer.stats;
    match stats.cached_tokens {
        0 => tokens(stats.prompt_tokens),
        cached => format!("{} ({cached} cached)", tokens(stats.prompt_tokens)),
    }
}

fn generated(answer: &Answer) -> String {
    match answer.stats.generation_rate() {
        // One token has no rate: its time is the prompt's.
        0.0 => tokens(answer.tokens.len()),
        per_second => format!("{} at {}", tokens(answer.tokens.len()), rate(per_second)),
    }
}

/// What guessing tokens came to.
fn drafts(stats: &Stats) -> String {
    let Stats { drafted_tokens: drafted, accepted_tokens: accepted, generated_tokens, .. } = *stats;
    let steps = generated_tokens.saturating_sub(accepted).max(1);
    let a_step = digits(generated_tokens as f64 / steps as f64);
    format!("{accepted} of {} were right, {a_step} tokens a step", tokens(drafted))
}

fn tokens(count: usize) -> String {
    if count == 1 { "1 token".to_owned() } else { format!("{count} tokens") }
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// Three digits: `0.04 ms`, `6.21 ms`, `812 ms`, `12.3 s`.
pub fn seconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 1e3 { format!("{} ms", digits(ms)) } else { format!("{} s", digits(ms / 1e3)) }
}

/// Three digits: `6.31 tok/s`, `48.2 tok/s`, `1012 tok/s`.
pub fn rate(per_second: f64) -> String {
    format!("{} tok/s", digits(per_second))
}

/// Three digits and a power of a thousand: `260 thousand`, `1.24 billion`.
pub fn count(number: u64) -> String {
    let value = number as f64;
    match number {
        0..1_000 => number.to_string(),
        1_000..1_000_000 => format!("{} thousand", digits(value / 1e3)),
        1_000_000..1_000_000_000 => format!("{} million", digits(value / 1e6)),
        _ => format!("{} billion", digits(value / 1e9)),
    }
}

/// Lines of cells under each other: the first `left` columns begin at one place, the others end at one.
pub fn aligned<const N: usize>(lines: &[[String; N]], left: usize) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut table = String::new();
    for line in lines {
        let cells = line.iter().zip(widths).enumerate().map(|(i, (cell, width))| {
            if i < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(table, "{}", cells.collect::<Vec<_>>().join("  "));
    }
    table
}

/// Three digits: `0.04`, `48.2`, `1012`.
pub fn digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The most memory that this process has had resident, in bytes, mapped files included; none where it is not known.
#[cfg(target_os = "linux")]
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The most memory that this process has had resident, in bytes, mapped files included; none where it is not known.
#[cfg(target_os = "macos")]
pub fn peak_memory() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a `rusage` of our own, which the call fills and does not keep.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: zeroes are a valid `rusage`, whatever the call wrote of it.
    let usage = unsafe { usage.assume_init() };
    // In bytes here; in kilobytes elsewhere.
    (result == 0).then_some(usage.ru_maxrss).and_then(|bytes| u64::try_from(bytes).ok())
}

/// The most memory that this process has had resident, in bytes, mapped files included; none where it is not known.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn peak_memory() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_keep_three_digits() {
        let ms = |ms: f64| seconds(Duration::from_secs_f64(ms / 1e3));
        assert_eq!(
            [ms(0.04), ms(6.214), ms(812.3), ms(12_345.0)],
            ["0.04 ms", "6.21 ms", "812 ms", "12.3 s"]
        );
        assert_eq!([rate(6.306), rate(48.24), rate(1012.3)], ["6.31 tok/s", "48.2 tok/s", "1012 tok/s"]);
        let counts = [999, 260_032, 1_235_814_400].map(count);
        assert_eq!(counts, ["999", "260 thousand", "1.24 billion"]);
    }

    #[test]
    #[cfg(feature = "fault-injection")]
    fn fallbacks_and_replays_have_rows() {
        use backstop::backend::Faults;
        use backstop::backend::ops::OpKind;
        use backstop::backend::select::BackendRequest;
        use backstop::{LoadOptions, ModelFiles};

        if backstop::backends().iter().any(|backend| backend.name == "mlx" && backend.there.is_err()) {
            return println!("skipped: this build has no MLX (cargo xtask test has)");
        }
        let attention = json!([{ "op": "attention", "reason": "injected fault", "count": 3 }]);
        let none: &[(&str, &str)] = &[];
        let evaluations =
            |count: u64| json!([{ "reason": "eval failed on mlx: injected fault", "count": count }]);
        for (faults, expected, fallbacks, replays) in [
            (Faults::default(), none, json!([]), json!([])),
            (
                Faults::op(OpKind::Attention, 4, 3),
                &[("fallback", "attention on the CPU 3 times: injected fault")][..],
                attention,
                json!([]),
            ),
            (
                Faults::evaluation_at(1, 1),
                &[("replay", "a step on the CPU once: eval failed on mlx: injected fault")][..],
                json!([]),
                evaluations(1),
            ),
            (
                Faults::evaluation_at(1, u64::MAX),
                &[
                    ("replay", "a step on the CPU 3 times: eval failed on mlx: injected fault"),
                    ("left MLX", "the model stays on the CPU: injected fault"),
                ][..],
                json!([]),
                evaluations(3),
            ),
        ] {
            let load = LoadOptions { backend: BackendRequest::Mlx, faults, ..LoadOptions::default() };
            let model = Model::load_with(ModelFiles::builtin().unwrap(), load).unwrap();
            let options = Options { max_tokens: Some(6), ..Options::default() };
            let answer =
                crate::cli::stream::stream(|| model.generate("Once upon a time", &options), None).unwrap();
            let summary =
                Summary { model: &model, options: &options, loading: Duration::ZERO, answer: &answer };
            let rows: Vec<_> = summary
                .lines()
                .into_iter()
                .filter(|(name, _)| ["fallback", "replay", "left MLX"].contains(name))
                .collect();
            let expected: Vec<_> = expected.iter().map(|(name, what)| (*name, (*what).to_owned())).collect();
            assert_eq!(rows, expected);
            let json = summary.json();
            assert_eq!((&json["fallbacks"], &json["replays"]), (&fallbacks, &replays));
            assert_eq!(json["backend"]["left_mlx"].is_string(), rows.len() == 2);
        }
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    fn the_peak_is_that_of_a_process() {
        let peak = peak_memory().unwrap();
        assert!((1 << 20..1 << 40).contains(&peak), "{peak}");
    }
}
