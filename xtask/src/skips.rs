//! What tests by client libraries skipped, and why: counted, and an error where all that they need is installed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Reasons that hold where `BACKSTOP_NO_SKIPS` is set, too: where, and how the reason begins.
const ALLOWED: [(bool, &str); 1] = [
    // There is no Chrome for it, and its runners come with no Chromium.
    (cfg!(all(target_os = "linux", target_arch = "aarch64")), "no Chromium here"),
];

/// The tests that were skipped, by reason.
#[derive(Debug, Default, PartialEq)]
pub struct Skips(BTreeMap<String, Vec<String>>);

impl Skips {
    /// What `tests/clients/run.py` has written: a reason, a tab and a test in each line.
    pub fn read(file: &Path) -> Result<Self> {
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut skips = Self::default();
        for line in text.lines() {
            let (reason, test) =
                line.split_once('\t').with_context(|| format!("no skip: {line} in {}", file.display()))?;
            skips.0.entry(reason.to_owned()).or_default().push(test.to_owned());
        }
        Ok(skips)
    }

    pub fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// # Errors
    /// Where `BACKSTOP_NO_SKIPS` says that nothing lacks, and a test was skipped for a reason that is not one of those that hold.
    pub fn allowed(&self) -> Result<()> {
        self.judged(std::env::var_os("BACKSTOP_NO_SKIPS").is_some(), &ALLOWED)
    }

    fn judged(&self, all_is_there: bool, allowed: &[(bool, &str)]) -> Result<()> {
        let holds =
            |reason: &str| allowed.iter().any(|&(here, beginning)| here && reason.starts_with(beginning));
        let refused: Vec<&str> = self.0.keys().map(String::as_str).filter(|reason| !holds(reason)).collect();
        ensure!(
            !all_is_there || refused.is_empty(),
            "skipped where nothing may lack (BACKSTOP_NO_SKIPS): {}",
            refused.join("; ")
        );
        Ok(())
    }
}

impl fmt::Display for Skips {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} skipped", self.count())?;
        for (i, (reason, tests)) in self.0.iter().enumerate() {
            write!(out, "{} {} × {reason}", if i == 0 { ":" } else { ";" }, tests.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skips(lines: &str) -> Skips {
        let file =
            std::env::temp_dir().join(format!("backstop-skips-{}-{}", std::process::id(), lines.len()));
        fs::write(&file, lines).expect("a file");
        let read = Skips::read(&file).expect("what was written");
        fs::remove_file(&file).expect("a file");
        read
    }

    #[test]
    fn each_is_counted_and_said() {
        let all = skips("no browser\ta.A.one\nno node\tb.B.one\nno browser\ta.A.two\n");
        assert_eq!(all.count(), 3);
        assert_eq!(all.to_string(), "3 skipped: 2 × no browser; 1 × no node");
        assert_eq!(Skips::default().to_string(), "0 skipped");
        assert_eq!(Skips::read(Path::new("/there/is/none")).expect("none"), Skips::default());
    }

    #[test]
    fn where_all_is_there_only_those_of_the_list_may_be() {
        let all = skips("no browser (it says)\ta.A.one\nno node\tb.B.one\n");
        assert!(all.judged(false, &[]).is_ok());
        let error =
            all.judged(true, &[(true, "no browser"), (false, "no node")]).expect_err("one is not allowed");
        assert!(error.to_string().ends_with(": no node"), "{error}");
        assert!(all.judged(true, &[(true, "no browser"), (true, "no node")]).is_ok());
        assert!(Skips::default().judged(true, &[]).is_ok());
    }
}
