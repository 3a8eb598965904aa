//! `backstop check-grammar`: the process that compiles a grammar before the one that needs it does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backstop::sample::trial;

/// This program, to be started once more, also after its file was replaced.
pub fn checker() -> Option<PathBuf> {
    let running = Path::new("/proc/self/exe");
    if running.exists() { Some(running.to_owned()) } else { std::env::current_exe().ok() }
}

/// Compiles what stdin has, and ends; the system ends it at the limits of [`trial`].
pub fn check() -> anyhow::Result<ExitCode> {
    #[cfg(unix)]
    limits()?;
    trial::answer(std::io::stdin())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(unix)]
fn limits() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};

    let set =
        |what: Resource, most: u64| setrlimit(what, Rlimit { current: Some(most), maximum: Some(most) });
    set(Resource::Cpu, trial::WORK)?;
    set(Resource::Core, 0)?;
    // Linux counts what a process may write to, and thereby what it has beforehand; others do not hold to the limit.
    #[cfg(target_os = "linux")]
    {
        let taken = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = taken.split(' ').nth(5).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        let page = rustix::param::page_size() as u64;
        set(Resource::Data, pages * page + trial::STACK_BYTES + trial::MEMORY)?;
    }
    // Who generates text goes first; on Linux the library sees to it.
    #[cfg(not(target_os = "linux"))]
    let _ = rustix::process::nice(10);
    Ok(())
}
