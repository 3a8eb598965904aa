//! Commands over several ranks: what MLX's variables say, and what every rank but the first does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop::Ranks;
use backstop::backend::ranks::VARIABLES;

use super::args::Command;
use super::{Usage, term};

/// Another rank takes no part for so long, where nobody says it: then it is lost.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long in place of it, in seconds.
pub const TIMEOUT: &str = "BACKSTOP_RANK_TIMEOUT";

/// Set for the ranks that `launch` starts on its own machine: they end with it, however it ends.
pub const LAUNCHED: &str = "BACKSTOP_LAUNCHED";

/// Commands that compute a model over several ranks.
pub const COMMANDS: [&str; 6] = ["run", "chat", "serve", "bench", "perplexity", "tasks"];

/// A rank that is not the first did what that said, to its end.
#[derive(Debug, thiserror::Error)]
#[error("the first rank has ended")]
pub struct Followed;

/// Refuses what loads a second model, where several ranks compute one.
///
/// # Errors
/// That, where the variables are set.
pub fn one_model(what: &str) -> anyhow::Result<()> {
    match std::env::var_os(VARIABLES[0]) {
        Some(_) => {
            Err(Usage(format!("{what} loads a model more than once, and several ranks compute one")).into())
        }
        None => Ok(()),
    }
}

/// The ranks that this process is one of, which ends where another is lost.
pub fn ranks() -> anyhow::Result<Option<Ranks>> {
    ranks_or(lost)
}

/// The same of a server, which tells everybody.
pub fn ranks_of_server() -> anyhow::Result<Option<Ranks>> {
    ranks_or(|what| {
        if !SERVES.load(Ordering::Relaxed) {
            lost(what);
        }
        LOST.store(true, Ordering::Relaxed);
        term::note(format_args!("{} {what}; nothing is answered any more", term::red("error:")));
    })
}

/// Whether another rank is lost: the engine's thread may then never end, and MLX is not to be torn down beside it.
pub fn is_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// From here on somebody can be told.
pub fn serves() {
    SERVES.store(true, Ordering::Relaxed);
}

static LOST: AtomicBool = AtomicBool::new(false);
static SERVES: AtomicBool = AtomicBool::new(false);

fn ranks_or(lost: fn(&str)) -> anyhow::Result<Option<Ranks>> {
    #[cfg(target_os = "linux")]
    if std::env::var_os(LAUNCHED).is_some() {
        use rustix::process::{Signal, set_parent_process_death_signal};
        // Without it the rank is as well.
        let _ = set_parent_process_death_signal(Some(Signal::TERM));
    }
    let patience = match std::env::var(TIMEOUT) {
        Ok(text) => text
            .parse()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| Usage(format!("{TIMEOUT} is {text}, expected seconds")))?,
        Err(_) => PATIENCE,
    };
    Ok(Ranks::of_environment(patience, lost)?)
}

/// MLX waits for a rank that is lost, and nothing ends that but the end of the process.
fn lost(what: &str) {
    term::note(format_args!("{} {what}", term::red("error:")));
    super::exit_at_once(1);
}

/// Whether a command computes a model over several ranks.
const fn is_over_ranks(command: &Command) -> bool {
    matches!(
        command,
        Command::Run(_)
            | Command::Chat(_)
            | Command::Serve(_)
            | Command::Bench(_)
            | Command::Perplexity(_)
            | Command::Tasks(_)
    )
}

/// Refuses commands that every rank would do by itself.
///
/// # Errors
/// Such a one where the variables are set.
pub fn check(command: &Command) -> anyhow::Result<()> {
    if is_over_ranks(command) || VARIABLES.iter().all(|name| std::env::var_os(name).is_none()) {
        return Ok(());
    }
    if matches!(command, Command::Launch(_) | Command::CheckGrammar) {
        return Ok(());
    }
    let what = format!("{} is set, and several ranks do {} alone", VARIABLES[0], COMMANDS.join(", "));
    Err(Usage(what).into())
}
