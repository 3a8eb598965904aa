//! What came of a kind of soak: a line of a table, or a JSON object.

use serde_json::{Value, json};

use super::plan::{Counts, Outcome};
use crate::load::process::Taken;

/// What came of a kind of soak.
#[derive(Debug, Default)]
pub struct Report {
    pub kind: String,
    pub seconds: f64,
    pub counts: Counts,
    /// Times that the queue was full, and the client came back.
    pub busy: usize,
    /// The longest that `/health` took, in seconds.
    pub health: f64,
    /// Before and after.
    pub taken: Option<(Taken, Taken)>,
    /// What else was measured.
    pub notes: Vec<String>,
    pub failure: Option<String>,
}

impl Report {
    pub const HEAD: &str = "| kind | seconds | answered | cancelled | refused | cut off | queue full | /health, longest | MB | \
        descriptors | threads | outcome |\n|---|---|---|---|---|---|---|---|---|---|---|---|";

    pub fn line(&self) -> String {
        let of = |outcome| self.counts.of(outcome);
        let taken = self.taken.map_or_else(
            || "? | ? | ?".to_owned(),
            |(before, after)| {
                let mb = |bytes: u64| bytes as f64 / 1e6;
                format!(
                    "{:.1} → {:.1}, at most {:.1} | {} → {} | {} → {}",
                    mb(before.memory),
                    mb(after.memory),
                    mb(after.peak),
                    before.descriptors,
                    after.descriptors,
                    before.threads,
                    after.threads
                )
            },
        );
        format!(
            "| {} | {:.1} | {} | {} | {} | {} | {} | {:.0} ms | {taken} | {} |",
            self.kind,
            self.seconds,
            of(Outcome::Answered),
            of(Outcome::Cancelled),
            of(Outcome::Refused),
            of(Outcome::Cut),
            self.busy,
            self.health * 1e3,
            if self.failure.is_some() { "FAILED" } else { "held" },
        )
    }

    pub fn json(&self) -> Value {
        let of = |outcome| self.counts.of(outcome);
        let taken = |taken: &Taken| {
            json!({ "bytes": taken.memory, "peak_bytes": taken.peak, "descriptors": taken.descriptors,
                "threads": taken.threads })
        };
        json!({
            "kind": self.kind,
            "seconds": self.seconds,
            "answered": of(Outcome::Answered),
            "cancelled": of(Outcome::Cancelled),
            "refused": of(Outcome::Refused),
            "cut_off": of(Outcome::Cut),
            "queue_full": self.busy,
            "health_seconds": self.health,
            "before": self.taken.as_ref().map(|(before, _)| taken(before)),
            "after": self.taken.as_ref().map(|(_, after)| taken(after)),
            "notes": self.notes,
            "failure": self.failure,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_as_many_cells_as_the_head() {
        let counts = Counts::default();
        counts.add(Outcome::Cut);
        let taken =
            Taken { memory: 17_900_000, own: 9_000_000, peak: 20_000_000, descriptors: 12, threads: 5 };
        let mut report =
            Report { kind: "mixed".into(), counts, taken: Some((taken, taken)), ..Report::default() };
        let cells = |line: &str| line.matches(" | ").count();
        assert_eq!(cells(&report.line()), cells(Report::HEAD.lines().next().unwrap()));
        assert!(report.line().ends_with("| 17.9 → 17.9, at most 20.0 | 12 → 12 | 5 → 5 | held |"));
        report.taken = None;
        report.failure = Some("x".into());
        assert_eq!(cells(&report.line()), cells(Report::HEAD.lines().next().unwrap()));
        assert_eq!((&report.json()["cut_off"], &report.json()["failure"]), (&json!(1), &json!("x")));
    }
}
