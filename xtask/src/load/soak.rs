//! Many clients that answer for nothing: some go away, some ask what cannot be; every answer is held against that of a
//! single user, and nothing of the server may be left over. Each kind of soak leans on another part of the server.

mod attack;
mod check;
mod kinds;
mod neighbour;
mod plan;
mod question;
mod raw;
mod replaced;
mod report;
mod stage;

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use super::Backstop;
use super::process::program;
use attack::Attack;
use plan::Plan;
use report::Report;
use stage::Bound;

/// What `load soak` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What the clients do
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Kind::Mixed)]
    pub(super) kind: Kind,
    /// Clients at a time
    #[arg(long, value_name = "N", default_value = "32")]
    pub(super) clients: NonZeroUsize,
    /// Requests of all of them, for each kind
    #[arg(long, value_name = "N", default_value = "5000", conflicts_with = "minutes")]
    pub(super) requests: NonZeroUsize,
    /// Ask for so many minutes instead, for each kind
    #[arg(long, value_name = "N", value_parser = minutes)]
    pub(super) minutes: Option<Duration>,
    /// What the hostile neighbour does [default: all of it]
    #[arg(long, value_name = "NAME,…", value_enum, value_delimiter = ',')]
    pub(super) attack: Vec<Attack>,
    /// The model beside whose good client the hostile one is [default: the built-in model]
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,
    /// Print a JSON object for each kind instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backstop: Backstop,
}

/// What the clients of a soak do.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Kind {
    /// All APIs, streamed or not, some with a format; 30 % go away, 5 % are hostile
    Mixed,
    /// Every client leaves midway
    CancelOnly,
    /// Every answer has a format
    ConstrainedOnly,
    /// Memory for two pages: sequences wait for it
    TwoPageBudget,
    /// More beginnings of prompts than are kept
    PrefixChurn,
    /// Half read a few bytes at a time, or stop
    SlowReaders,
    /// A connection for each request, half of them closed at odd points
    ConnectionChurn,
    /// Half send bodies over the limit
    OversizeBodies,
    /// The model's file is replaced while it is served
    ModelReplaced,
    /// A good client alone, and then beside a hostile one
    HostileNeighbour,
    /// Each of them in turn
    All,
}

impl Kind {
    fn each(self) -> Vec<Self> {
        match self {
            Self::All => Self::value_variants().iter().copied().filter(|&kind| kind != Self::All).collect(),
            one => vec![one],
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn plan(self) -> Result<Plan> {
        Ok(match self {
            Self::Mixed => kinds::mixed(),
            Self::CancelOnly => kinds::cancel_only(),
            Self::ConstrainedOnly => kinds::constrained_only(),
            Self::TwoPageBudget => kinds::two_page_budget(),
            Self::PrefixChurn => kinds::prefix_churn(),
            Self::SlowReaders => kinds::slow_readers(),
            Self::ConnectionChurn => kinds::connection_churn(),
            Self::OversizeBodies => kinds::oversize_bodies(),
            Self::ModelReplaced => replaced::model_replaced()?,
            Self::HostileNeighbour | Self::All => bail!("{} has no plan of its own", self.name()),
        })
    }
}

/// Minutes, also parts of them.
fn minutes(text: &str) -> Result<Duration, String> {
    /// A week.
    const MOST: f64 = 7.0 * 24.0 * 60.0;
    text.parse()
        .ok()
        .filter(|minutes| (0.01..=MOST).contains(minutes))
        .map(|minutes: f64| Duration::from_secs_f64(minutes * 60.0))
        .ok_or_else(|| format!("expected minutes from 0.01 to {MOST}"))
}

pub fn run(options: &Options) -> Result<()> {
    let kinds = options.kind.each();
    ensure!(
        options.attack.is_empty() || kinds.contains(&Kind::HostileNeighbour),
        "--attack is for the kind hostile-neighbour"
    );
    ensure!(
        options.model.is_none() || kinds == [Kind::HostileNeighbour],
        "--model is for the kind hostile-neighbour: the others know what the built-in model writes"
    );
    let program = program(&options.backstop)?;
    let mut reports = Vec::new();
    for kind in kinds {
        eprintln!("   {}", kind.name());
        let mut report = Report { kind: kind.name(), ..Report::default() };
        if let Err(error) = one(kind, options, &program, &mut report) {
            report.failure = Some(format!("{error:#}"));
        }
        report.notes.iter().for_each(|note| eprintln!("{note}"));
        report.failure.iter().for_each(|failure| eprintln!("{} failed: {failure}", report.kind));
        reports.push(report);
    }
    if options.json {
        reports.iter().for_each(|report| println!("{}", report.json()));
    } else {
        println!("{}", Report::HEAD);
        reports.iter().for_each(|report| println!("{}", report.line()));
    }
    let failed: Vec<&str> =
        reports.iter().filter(|report| report.failure.is_some()).map(|report| report.kind.as_str()).collect();
    ensure!(failed.is_empty(), "what must hold did not: {}", failed.join(", "));
    Ok(())
}

fn one(kind: Kind, options: &Options, program: &Path, report: &mut Report) -> Result<()> {
    let bound = options.minutes.map_or(Bound::Requests(options.requests.get()), Bound::Time);
    if kind == Kind::HostileNeighbour {
        let attacks = match &options.attack[..] {
            [] => Attack::value_variants(),
            some => some,
        };
        return neighbour::run(program, options.model.clone(), attacks, bound, report);
    }
    stage::soak(program, &kind.plan()?, options.clients.get(), bound, report)
}

/// A number that says all about request `number`.
fn scatter(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_plan_or_is_the_neighbours() {
        let kinds = Kind::All.each();
        assert_eq!(kinds.len(), Kind::value_variants().len() - 1);
        assert_eq!(Kind::PrefixChurn.each(), [Kind::PrefixChurn]);
        assert_eq!(Kind::TwoPageBudget.name(), "two-page-budget");
        // The kind that copies a model needs cargo's environment.
        for kind in
            kinds.into_iter().filter(|kind| !matches!(kind, Kind::ModelReplaced | Kind::HostileNeighbour))
        {
            assert!(!kind.plan().unwrap().questions.is_empty(), "{}", kind.name());
        }
    }

    #[test]
    fn minutes_may_be_parts() {
        assert_eq!(minutes("0.5"), Ok(Duration::from_secs(30)));
        for wrong in ["", "0", "-1", "NaN", "1e9", "x"] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }
}
