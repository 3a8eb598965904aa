//! `cargo xtask kills`: downloads that are killed at random moments, more often than the usual tests have time for.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::steps::Steps;
use crate::util;

/// The test, which says at its end what it saw, in a line that begins so.
const TEST: &str = "kills::a_killed_pull_leaves_nothing_wrong_and_goes_on";
const FIGURE: &str = "kills: ";
const NUMBER: &str = "BACKSTOP_KILLS";

/// What `cargo xtask kills` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many downloads are killed
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub kills: u32,
}

pub fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::new("kills");
    // As the usual tests are built, so that nothing is built twice.
    let build = "test --package backstop --features fault-injection --test hub";
    steps.cargo("build", &format!("{build} --no-run"), &[]);
    let mut figure = None;
    steps.step("downloads that are killed", || {
        let mut command = util::cargo();
        command.args(build.split(' ')).args(["--", "--exact", TEST, "--nocapture"]);
        command.env(NUMBER, options.kills.to_string()).current_dir(util::root()?).stdout(Stdio::piped());
        eprintln!("   {NUMBER}={} {}", options.kills, util::shown(&command));
        let mut child = command.spawn().context("cannot start cargo")?;
        for line in BufReader::new(child.stdout.take().context("cargo has no stdout")?).lines() {
            let line = line?;
            // The line that names a test has no end before what the test says.
            figure = line.split_once(FIGURE).map(|(_, told)| told.to_owned()).or(figure.take());
        }
        let status = child.wait()?;
        ensure!(status.success(), "cargo ended with {status}");
        let told = figure.as_deref().with_context(|| format!("{TEST} has not run"))?;
        ensure!(told.starts_with(&format!("{} killed, ", options.kills)), "{told}");
        Ok(())
    });
    if let Some(figure) = figure {
        steps.note(figure);
    }
    steps.summary()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_is_there_and_says_its_figure() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = std::fs::read_to_string(root.join("tests/hub/kills.rs")).unwrap();
        let (_, name) = TEST.split_once("::").unwrap();
        assert!(
            text.contains(&format!("\nfn {name}() {{"))
                && text.contains(&format!("\"{FIGURE}{{killed}} killed, "))
        );
        assert!(text.contains(&format!("const NUMBER: &str = \"{NUMBER}\";")));
    }
}
