//! What was measured: a table for a person, JSON for a script.

use std::fmt::Write;

use backstop::backend::OpTime;
use backstop::backend::select::Bytes;
use serde_json::{Value, json};

use super::measure::{Case, Phase};
use super::{BenchWork, Loaded};
use crate::cli::args::BenchArgs;
use crate::cli::summary::{aligned, digits, kv_cache};

/// Everything that one call measured.
pub struct Report {
    prompt: usize,
    generate: usize,
    reps: usize,
    work: BenchWork,
    /// The model in words, and for scripts, once it is loaded.
    model: (String, Value),
    pub rows: Vec<Row>,
}

/// One case at one number of threads.
pub struct Row {
    pub threads: usize,
    pub device: String,
    /// Seconds to open and load the model.
    pub load: f64,
    pub case: Case,
    /// Tokens per second of all sequences together.
    pub prompt: Option<Spread>,
    pub generation: Option<Spread>,
    /// Seconds to each sequence's first token.
    pub first_token: Option<Spread>,
    /// Bytes, the limits' measurement apart.
    pub peak_memory: Option<u64>,
    pub read_bandwidth: Spread,
    pub fma_peak: Spread,
    pub int8_peak: Spread,
    /// Whether the CPU kernels run it, which multiply quantized weights as bytes.
    pub on_cpu: bool,
    pub fallen_back: (Vec<Value>, Vec<Value>),
    /// Of a prompt, and of generation.
    pub profile: Option<(Phase, Phase)>,
}

/// Repetitions of one measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of at least one value; between the two in the middle, their mean.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Self {
            median: (values[last / 2] + values[last.div_ceil(2)]) / 2.0,
            min: values[0],
            max: values[last],
        }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }

    /// `48.2 (47.9–48.6)`.
    fn shown(self) -> String {
        format!("{} ({}–{})", digits(self.median), digits(self.min), digits(self.max))
    }
}

impl Report {
    pub fn new(args: &BenchArgs, work: BenchWork) -> Self {
        let (prompt, generate, reps) = (args.prompt, args.generate, args.reps);
        Self { prompt, generate, reps, work, model: (String::new(), Value::Null), rows: Vec::new() }
    }

    /// Notes what was loaded.
    pub fn loaded(&mut self, loaded: &Loaded) {
        let info = loaded.model.info();
        let words = format!(
            "{}: {}, {}, {} of weights, KV cache in {}",
            info.name,
            info.config.model_type,
            info.dtype,
            Bytes(info.weight_bytes),
            info.kv_type
        );
        let json = json!({
            "name": info.name,
            "model_type": info.config.model_type,
            "dtype": info.dtype.name(),
            "weight_bytes": info.weight_bytes,
            "kv_cache": kv_cache(info),
        });
        self.model = (words, json);
    }

    /// One JSON object: rates in tokens per second, times in seconds, sizes in bytes, limits per second.
    pub fn json(&self) -> Value {
        json!({
            "model": self.model.1,
            "prompt_tokens": self.prompt,
            "generated_tokens": self.generate,
            "reps": self.reps,
            "rows": self.rows.iter().map(|row| row.json(&self.work)).collect::<Vec<_>>(),
        })
    }

    pub fn table(&self) -> String {
        let Self { prompt, generate, reps, work, .. } = self;
        let mut text =
            format!("model  {}, {} read per step\n", self.model.0, Bytes(work.step_bytes(1) as u64));
        let _ = writeln!(
            text,
            "runs   {reps} of prompts of {prompt} and {generate} generated tokens: medians (least–greatest)\n"
        );
        let head = [
            "device",
            "depth",
            "batch",
            "prompt tok/s",
            "of peak",
            "generation tok/s",
            "of bandwidth",
            "first token ms",
            "load ms",
            "peak memory",
        ];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(self.rows.iter().map(|row| row.cells(work)));
        text += &aligned(&lines, 1);
        text.push('\n');
        let mut lines = vec![["limits", "read GB/s", "f32 GFLOP/s", "int8 GOP/s"].map(str::to_owned)];
        for row in &self.rows {
            let giga =
                |of: Spread| Spread { median: of.median / 1e9, min: of.min / 1e9, max: of.max / 1e9 }.shown();
            let threads = format!("{} thread{}", row.threads, if row.threads == 1 { "" } else { "s" });
            lines.push([threads, giga(row.read_bandwidth), giga(row.fma_peak), giga(row.int8_peak)]);
        }
        text += &aligned(&lines, 1);
        for row in &self.rows {
            row.write_profile(&mut text);
        }
        text
    }
}

impl Row {
    /// The fraction of the bandwidth that generation takes, and that of the arithmetic peak that the prompt does: the time
    /// that its products would take at the peak of their kind, of the time that it takes; and which peak that is.
    fn fractions(&self, work: &BenchWork) -> (Option<f64>, Option<f64>, &'static str) {
        let (weights, kv) = work.token_bytes(self.case);
        let bandwidth = self.generation.map(|rate| rate.median * (weights + kv) / self.read_bandwidth.median);
        let [floats, bytes] = match (work.prompt_operations(self.case), self.on_cpu) {
            (kinds, true) => kinds,
            ([floats, bytes], false) => [floats + bytes, 0.0],
        };
        let ideal = floats / self.fma_peak.median + bytes / self.int8_peak.median;
        let peak = self.first_token.map(|time| ideal / time.median);
        let kind = match (floats > 0.0, bytes > 0.0) {
            (_, false) => "f32",
            (false, true) => "int8",
            (true, true) => "int8 and f32",
        };
        (bandwidth, peak, kind)
    }

    fn json(&self, work: &BenchWork) -> Value {
        let (weights, kv) = work.token_bytes(self.case);
        let (bandwidth, peak, kind) = self.fractions(work);
        let (fallbacks, replays) = &self.fallen_back;
        let mut row = json!({
            "threads": self.threads,
            "device": self.device,
            "depth": self.case.depth,
            "batch": self.case.batch,
            "load": self.load,
            "rates": { "prompt": self.prompt.map(Spread::json), "generation": self.generation.map(Spread::json) },
            "first_token": self.first_token.map(Spread::json),
            "peak_memory_bytes": self.peak_memory,
            "weight_bytes_per_token": weights,
            "kv_bytes_per_token": kv,
            "limits": {
                "read_bandwidth": self.read_bandwidth.json(),
                "fma_peak": self.fma_peak.json(),
                "int8_peak": self.int8_peak.json(),
            },
            "fractions": { "read_bandwidth": bandwidth, "arithmetic_peak": peak },
            "arithmetic": kind,
            "fallbacks": fallbacks,
            "replays": replays,
        });
        if let Some((prompt, generation)) = &self.profile {
            row["profile"] = json!({ "prompt": profile(prompt), "generation": profile(generation) });
        }
        row
    }

    fn cells(&self, work: &BenchWork) -> [String; 10] {
        let (bandwidth, peak, kind) = self.fractions(work);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let percent = |part: Option<f64>| or_dash(part.map(|part| format!("{:.0} %", 100.0 * part)));
        let first = self.first_token.map(|Spread { median, min, max }| {
            Spread { median: 1e3 * median, min: 1e3 * min, max: 1e3 * max }.shown()
        });
        [
            self.device.clone(),
            self.case.depth.to_string(),
            self.case.batch.to_string(),
            or_dash(self.prompt.map(Spread::shown)),
            or_dash(peak.map(|part| format!("{:.0} % {kind}", 100.0 * part))),
            or_dash(self.generation.map(Spread::shown)),
            percent(bandwidth),
            or_dash(first),
            digits(1e3 * self.load),
            or_dash(self.peak_memory.map(|bytes| Bytes(bytes).to_string())),
        ]
    }

    fn write_profile(&self, text: &mut String) {
        let Some((prompt, generation)) = &self.profile else { return };
        let Case { depth, batch, .. } = self.case;
        for (name, phase) in [("prompt", prompt), ("generation", generation)] {
            if phase.ops.is_empty() {
                continue;
            }
            let _ = writeln!(text, "\n{name} on {}, depth {depth}, batch {batch}, by op", self.device);
            let head = ["op", "matrix", "calls", "total ms", "share", "GB/s", "GFLOP/s"];
            let mut lines = vec![head.map(str::to_owned)];
            let all = phase.time.as_secs_f64();
            for OpTime { op, matrix, calls, time, bytes, operations } in &phase.ops {
                let time = time.as_secs_f64();
                let giga = |count: u64| match count {
                    0 => "–".to_owned(),
                    count => digits(count as f64 / time / 1e9),
                };
                lines.push([
                    op.to_string(),
                    matrix.clone(),
                    calls.to_string(),
                    digits(1e3 * time),
                    format!("{:.1} %", 100.0 * time / all),
                    giga(*bytes),
                    giga(*operations),
                ]);
            }
            let rest = all - ops_time(phase);
            let dash = || "–".to_owned();
            let share = format!("{:.1} %", 100.0 * rest / all);
            lines.push([
                "between ops".to_owned(),
                String::new(),
                dash(),
                digits(1e3 * rest),
                share,
                dash(),
                dash(),
            ]);
            *text += &aligned(&lines, 2);
        }
    }
}

fn ops_time(phase: &Phase) -> f64 {
    phase.ops.iter().map(|of| of.time.as_secs_f64()).sum()
}

fn profile(phase: &Phase) -> Value {
    let ops: Vec<Value> = (phase.ops.iter())
        .map(|of| {
            json!({
                "op": of.op.name(),
                "matrix": of.matrix,
                "calls": of.calls,
                "time": of.time.as_secs_f64(),
                "bytes": of.bytes,
                "operations": of.operations,
            })
        })
        .collect();
    json!({ "time": phase.time.as_secs_f64(), "between_ops": phase.time.as_secs_f64() - ops_time(phase), "ops": ops })
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(of(&[7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
    }
}
