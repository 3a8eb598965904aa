//! What the server counts, in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::budget::Budget;
use crate::backend::FallbackReport;
use crate::backend::kv::PAGE;
use crate::engine::{DiskLoad, Load, Stats};

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
        self.prefix_hits.fetch_add(u64::from(whole_pages(stats) > 0), Ordering::Relaxed);
        self.sequence.observe(asked.elapsed());
    }

    /// Seconds after which one of `places` taken ones is likely to be free.
    pub fn retry_after(&self, places: usize) -> u64 {
        let wait = self.sequence.mean().unwrap_or(1.0) / places.max(1) as f64;
        wait.ceil().clamp(1.0, 60.0) as u64
    }

    /// All of it as text.
    pub fn text(&self, load: Load, report: &FallbackReport, budget: &Budget) -> String {
        let mut out = String::new();
        head(&mut out, "requests_total", "Requests answered, by route and status.", "counter");
        for ((route, status), count) in self.requests.lock().iter() {
            let _ = writeln!(out, "backstop_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}");
        }
        let gauges = [
            ("connections", "Open connections.", self.connections.load(Ordering::Relaxed)),
            ("sequences_queued", "Sequences that wait for a place or for memory.", load.queued as u64),
            (
                "sequences_waiting_for_memory",
                "Of these, those that have a place.",
                load.waiting_for_memory as u64,
            ),
            ("sequences_running", "Sequences in flight.", load.running as u64),
            ("kv_budget_bytes", "What keys and values may take.", load.kv.budget),
            ("kv_used_bytes", "What they take, each shared page counted once.", load.kv.used),
            ("kv_kept_bytes", "Of this, pages kept for prompts that begin alike.", load.kv.kept),
            ("kv_shared_bytes", "Of these, pages that running sequences use.", load.kv.shared),
            ("kv_reserved_bytes", "What running sequences may take beside those.", load.kv.reserved),
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
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = [
            ("steps_total", "Steps of the engine.", load.steps),
            ("cancelled_total", "Requests whose client went away.", of(&self.cancelled)),
            ("prompt_tokens_total", "Tokens of prompts.", of(&self.prompt_tokens)),
            (
                "cached_tokens_total",
                "Of these, tokens whose keys and values were kept, in whole pages.",
                of(&self.cached_tokens),
            ),
            ("generated_tokens_total", "Tokens generated.", of(&self.generated_tokens)),
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
            ("kv_evicted_pages_total", "Kept pages that gave way to others.", load.kv.evicted),
        ];
        for (name, help, value) in counters {
            head(&mut out, name, help, "counter");
            let _ = writeln!(out, "backstop_{name} {value}");
        }
        if let Some(disk) = load.disk {
            write_disk(&mut out, &disk);
        }
        head(&mut out, "fallbacks_total", "Ops that the CPU computed for MLX, by reason.", "counter");
        for (op, reason, count) in report.fallbacks() {
            let reason = escaped(&reason);
            let _ = writeln!(out, "backstop_fallbacks_total{{op=\"{op}\",reason=\"{reason}\"}} {count}");
        }
        head(&mut out, "replays_total", "Steps that the CPU computed anew, by reason.", "counter");
        for (reason, count) in report.replays() {
            let _ = writeln!(out, "backstop_replays_total{{reason=\"{}\"}} {count}", escaped(&reason));
        }
        head(&mut out, "left_mlx", "Whether the model stays on the CPU after failures of MLX.", "gauge");
        let _ = writeln!(out, "backstop_left_mlx {}", u8::from(report.left_mlx().is_some()));
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
}

/// The cache on disk, where there is one.
fn write_disk(out: &mut String, disk: &DiskLoad) {
    let values = [
        (
            "ready",
            "Whether the model's bytes are known: nothing is read or written before.",
            "gauge",
            disk.ready.into(),
        ),
        ("budget_bytes", "What files may take.", "gauge", disk.budget),
        ("bytes", "What they take, as far as is known.", "gauge", disk.bytes),
        ("hits_total", "Prompts that began with what was read.", "counter", disk.hits),
        ("hit_tokens_total", "Tokens of theirs that were read.", "counter", disk.hit_tokens),
        (
            "misses_total",
            "Prompts of which nothing was there that was worth reading.",
            "counter",
            disk.misses,
        ),
        ("read_bytes_total", "Keys, values and states that were read.", "counter", disk.read),
        ("written_bytes_total", "The same that were written.", "counter", disk.written),
        ("removed_files_total", "Files that gave way to others.", "counter", disk.removed),
        ("damaged_files_total", "Files that were damaged, and removed.", "counter", disk.damaged),
        ("dropped_total", "What could not be written, or came too fast.", "counter", disk.dropped),
    ];
    for (name, help, kind, value) in values {
        head(out, &format!("disk_cache_{name}"), &format!("Prompts on disk: {help}"), kind);
        let _ = writeln!(out, "backstop_disk_cache_{name} {value}");
    }
}

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
