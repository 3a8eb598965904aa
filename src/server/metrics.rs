//! What the server counts, in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::budget::Budget;
use crate::backend::kv::PAGE;
use crate::engine::{DiskLoad, Engine, Load, Stats};
use crate::models::{ModelMoves, ModelStatus, Models};

/// Upper bounds of a histogram's buckets, in seconds: from a step of a tiny model to a long prompt of a large one.
const BOUNDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(bucket) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn seconds(&self) -> f64 {
        self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9
    }

    fn mean(&self) -> Option<f64> {
        let count = self.count.load(Ordering::Relaxed);
        (count > 0).then(|| self.seconds() / count as f64)
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, help, "histogram");
        let mut sum = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            sum += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "backstop_{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let count = self.count.load(Ordering::Relaxed).max(sum);
        let _ = writeln!(out, "backstop_{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "backstop_{name}_sum {}", self.seconds());
        let _ = writeln!(out, "backstop_{name}_count {count}");
    }
}

/// Counters since the server started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    pub connections: AtomicU64,
    pub cancelled: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    prefix_hits: AtomicU64,
    generated_tokens: AtomicU64,
    drafted_tokens: AtomicU64,
    accepted_tokens: AtomicU64,
    first_token: Histogram,
    between_tokens: Histogram,
    sequence: Histogram,
}

/// Tokens that were still cached, in whole pages: one by one they would tell which token somebody's prompt goes on with.
pub(crate) fn whole_pages(stats: &Stats) -> usize {
    stats.cached_tokens / PAGE * PAGE
}

impl Metrics {
    /// A request that was answered; `route` is one of ours.
    pub fn answered(&self, route: &'static str, status: u16) {
        *self.requests.lock().entry((route, status)).or_insert(0) += 1;
    }

    /// A token of a sequence, which was asked for at `asked` and had its last token at `last`.
    pub fn token(&self, asked: Instant, last: Option<Instant>, now: Instant) {
        self.generated_tokens.fetch_add(1, Ordering::Relaxed);
        match last {
            None => self.first_token.observe(now - asked),
            Some(last) => self.between_tokens.observe(now - last),
        }
    }

    /// A sequence that ended by itself.
    pub fn ended(&self, asked: Instant, stats: &Stats) {
        self.prompt_tokens.fetch_add(stats.prompt_tokens as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(whole_pages(stats) as u64, Ordering::Relaxed);
        self.drafted_tokens.fetch_add(stats.drafted_tokens as u64, Ordering::Relaxed);
        self.accepted_tokens.fetch_add(stats.accepted_tokens as u64, Ordering::Relaxed);
        self.prefix_hits.fetch_add(u64::from(whole_pages(stats) > 0), Ordering::Relaxed);
        self.sequence.observe(asked.elapsed());
    }

    /// Seconds after which one of `places` taken ones is likely to be free.
    pub fn retry_after(&self, places: usize) -> u64 {
        let wait = self.sequence.mean().unwrap_or(1.0) / places.max(1) as f64;
        wait.ceil().clamp(1.0, 60.0) as u64
    }

    /// All of it as text. What engines count has their models' names where there are several models.
    pub fn text(&self, models: &Models, budget: &Budget) -> String {
        let ModelMoves { loads, unloads } = models.moves();
        let mut out = String::new();
        head(&mut out, "requests_total", "Requests answered, by route and status.", "counter");
        for ((route, status), count) in self.requests.lock().iter() {
            let _ = writeln!(out, "backstop_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}");
        }
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let gauges = [
            ("connections", "Open connections.", of(&self.connections)),
            ("buffer_budget_bytes", "What bodies and answers may take.", budget.most() as u64),
            (
                "buffer_used_bytes",
                "What bodies of requests, and answers that are not written yet, take.",
                budget.held() as u64,
            ),
        ];
        for (name, help, value) in gauges {
            head(&mut out, name, help, "gauge");
            let _ = writeln!(out, "backstop_{name} {value}");
        }
        let counters = [
            ("cancelled_total", "Requests whose client went away.", of(&self.cancelled)),
            ("prompt_tokens_total", "Tokens of prompts.", of(&self.prompt_tokens)),
            (
                "cached_tokens_total",
                "Of these, tokens whose keys and values were kept, in whole pages.",
                of(&self.cached_tokens),
            ),
            ("generated_tokens_total", "Tokens generated.", of(&self.generated_tokens)),
            ("drafted_tokens_total", "Tokens guessed and computed beside others.", of(&self.drafted_tokens)),
            ("accepted_tokens_total", "Of these, tokens that were chosen.", of(&self.accepted_tokens)),
            (
                "prefix_hits_total",
                "Sequences that began with kept keys and values, of a page at least.",
                of(&self.prefix_hits),
            ),
            (
                "prefix_hit_tokens_total",
                "Tokens that these did not compute, in whole pages.",
                of(&self.cached_tokens),
            ),
            ("model_loads_total", "Models that were loaded.", loads),
            ("model_unloads_total", "Models that were unloaded, and whose memory is free again.", unloads),
        ];
        for (name, help, value) in counters {
            head(&mut out, name, help, "counter");
            let _ = writeln!(out, "backstop_{name} {value}");
        }
        self.engines(&mut out, &models.list());
        let histograms = [
            (&self.first_token, "time_to_first_token_seconds", "From a request to its first token."),
            (&self.between_tokens, "inter_token_seconds", "From one token of a sequence to its next."),
            (&self.sequence, "sequence_seconds", "From a request to the end of its sequence."),
        ];
        for (histogram, name, help) in histograms {
            histogram.write(&mut out, name, help);
        }
        out
    }

    /// What the engines of the loaded models count and hold.
    fn engines(&self, out: &mut String, models: &[ModelStatus]) {
        let several = models.len() > 1;
        let engines =
            models.iter().filter_map(|status| Some((&status.name, status.model.as_ref()?.engine())));
        // A label's text, and what goes before another label.
        let engines: Vec<(String, &Engine, Load)> = engines
            .map(|(name, engine)| {
                let label = if several { format!("model=\"{}\"", escaped(name)) } else { String::new() };
                (label, engine, engine.load())
            })
            .collect();
        let braced = |label: &str| if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        if several {
            head(out, "model_loaded", "Whether a model is loaded.", "gauge");
            for status in models {
                let (name, loaded) = (escaped(&status.name), u8::from(status.model.is_some()));
                let _ = writeln!(out, "backstop_model_loaded{{model=\"{name}\"}} {loaded}");
            }
        }
        for (name, help, kind, value) in OF_ENGINES {
            head(out, name, help, kind);
            for (label, _, load) in &engines {
                let _ = writeln!(out, "backstop_{name}{} {}", braced(label), value(load));
            }
        }
        let disks = engines.iter().filter_map(|(label, _, load)| Some((label, load.disk?)));
        let disks: Vec<(&String, DiskLoad)> = disks.collect();
        for (name, help, kind, value) in OF_DISK.into_iter().filter(|_| !disks.is_empty()) {
            head(out, &format!("disk_cache_{name}"), &format!("Prompts on disk: {help}"), kind);
            for (label, disk) in &disks {
                let _ = writeln!(out, "backstop_disk_cache_{name}{} {}", braced(label), value(disk));
            }
        }
        let with = |label: &str| if label.is_empty() { String::new() } else { format!("{label},") };
        head(out, "fallbacks_total", "Ops that the CPU computed for MLX, by reason.", "counter");
        for (label, engine, _) in &engines {
            for (op, reason, count) in engine.report().fallbacks() {
                let (label, reason) = (with(label), escaped(&reason));
                let _ = writeln!(
                    out,
                    "backstop_fallbacks_total{{{label}op=\"{op}\",reason=\"{reason}\"}} {count}"
                );
            }
        }
        head(out, "replays_total", "Steps that the CPU computed anew, by reason.", "counter");
        for (label, engine, _) in &engines {
            for (reason, count) in engine.report().replays() {
                let (label, reason) = (with(label), escaped(&reason));
                let _ = writeln!(out, "backstop_replays_total{{{label}reason=\"{reason}\"}} {count}");
            }
        }
        head(out, "left_mlx", "Whether the model stays on the CPU after failures of MLX.", "gauge");
        for (label, engine, _) in &engines {
            let left = u8::from(engine.report().left_mlx().is_some());
            let _ = writeln!(out, "backstop_left_mlx{} {left}", braced(label));
        }
    }
}

/// What is told of each engine: a name, what it means, its type, its value.
type OfEngine = (&'static str, &'static str, &'static str, fn(&Load) -> u64);

const OF_ENGINES: [OfEngine; 10] = [
    ("sequences_queued", "Sequences that wait for a place or for memory.", "gauge", |load| {
        load.queued as u64
    }),
    ("sequences_waiting_for_memory", "Of these, those that have a place.", "gauge", |load| {
        load.waiting_for_memory as u64
    }),
    ("sequences_running", "Sequences in flight.", "gauge", |load| load.running as u64),
    ("kv_budget_bytes", "What keys and values may take.", "gauge", |load| load.kv.budget),
    ("kv_used_bytes", "What they take, each shared page counted once.", "gauge", |load| load.kv.used),
    ("kv_kept_bytes", "Of this, pages kept for prompts that begin alike.", "gauge", |load| load.kv.kept),
    ("kv_shared_bytes", "Of these, pages that running sequences use.", "gauge", |load| load.kv.shared),
    ("kv_reserved_bytes", "What running sequences may take beside those.", "gauge", |load| load.kv.reserved),
    ("steps_total", "Steps of the engine.", "counter", |load| load.steps),
    ("kv_evicted_pages_total", "Kept pages that gave way to others.", "counter", |load| load.kv.evicted),
];

/// What is told of a cache on disk: a name, what it means, its type, its value.
type OfDisk = (&'static str, &'static str, &'static str, fn(&DiskLoad) -> u64);

const OF_DISK: [OfDisk; 11] = [
    ("ready", "Whether the model's bytes are known: nothing is read or written before.", "gauge", |disk| {
        u64::from(disk.ready)
    }),
    ("budget_bytes", "What files may take.", "gauge", |disk| disk.budget),
    ("bytes", "What they take, as far as is known.", "gauge", |disk| disk.bytes),
    ("hits_total", "Prompts that began with what was read.", "counter", |disk| disk.hits),
    ("hit_tokens_total", "Tokens of theirs that were read.", "counter", |disk| disk.hit_tokens),
    ("misses_total", "Prompts of which nothing was there that was worth reading.", "counter", |disk| {
        disk.misses
    }),
    ("read_bytes_total", "Keys, values and states that were read.", "counter", |disk| disk.read),
    ("written_bytes_total", "The same that were written.", "counter", |disk| disk.written),
    ("removed_files_total", "Files that gave way to others.", "counter", |disk| disk.removed),
    ("damaged_files_total", "Files that were damaged, and removed.", "counter", |disk| disk.damaged),
    ("dropped_total", "What could not be written, or came too fast.", "counter", |disk| disk.dropped),
];

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP backstop_{name} {help}\n# TYPE backstop_{name} {kind}");
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        for milliseconds in [1, 2, 30, 100_000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let mut out = String::new();
        histogram.write(&mut out, "x_seconds", "X.");
        let wanted = [
            "# TYPE backstop_x_seconds histogram",
            "backstop_x_seconds_bucket{le=\"0.001\"} 1",
            "backstop_x_seconds_bucket{le=\"0.0025\"} 2",
            "backstop_x_seconds_bucket{le=\"0.05\"} 3",
            "backstop_x_seconds_bucket{le=\"60\"} 3",
            "backstop_x_seconds_bucket{le=\"+Inf\"} 4",
            "backstop_x_seconds_sum 100.033",
            "backstop_x_seconds_count 4",
        ];
        for line in wanted {
            assert!(out.lines().any(|got| got == line), "{line}\n{out}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a \"b\"\\\n"), "a \\\"b\\\"\\\\\\n");
    }
}
