//! `cargo xtask arm`: the kernels on ARM, from an x86-64 Linux. Debian's own compiler, cross linker and qemu build the tests for
//! aarch64 and run them for three processors, of which each has instructions for bytes that the one before lacks.

mod debian;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::clients;
use crate::steps::Steps;
use crate::util;
use debian::Debian;

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Where the cross compiler has the libraries that a program wants.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// What `cargo xtask arm` takes.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// Only for this processor of qemu's, one of those below or another of `qemu-aarch64 -cpu help`: cortex-a72 (NEON),
    /// neoverse-n1 (and dotprod), neoverse-v1 (and i8mm)
    #[arg(long, value_name = "NAME", value_parser = processor)]
    pub processor: Option<String>,
    /// Only the tests whose names hold this
    #[arg(long, value_name = "WORD")]
    pub filter: Option<String>,
}

/// A processor that tests run for.
struct Processor {
    /// As qemu calls it.
    name: &'static str,
    /// The step of its tests.
    step: &'static str,
}

const PROCESSORS: [Processor; 3] = [
    Processor { name: "cortex-a72", step: "ARM: tests on cortex-a72 (NEON)" },
    Processor { name: "neoverse-n1", step: "ARM: tests on neoverse-n1 (dotprod)" },
    Processor { name: "neoverse-v1", step: "ARM: tests on neoverse-v1 (i8mm)" },
];

/// A target of cargo's, and which of its tests are run. A test takes ten to twenty times as long as without qemu.
struct Tests {
    target: &'static [&'static str],
    only: &'static [&'static str],
    skip: &'static [&'static str],
}

const TESTS: &[Tests] = &[
    Tests {
        target: &["--lib"],
        only: &["backend::cpu::"],
        skip: &[
            // Minutes each, since every type, size and instruction set is in them; tests/bits.rs goes the same ways.
            "attention::tests::chunks_threads_and_neighbours_change_no_bit",
            "attention::tests::latent_vectors_have_the_bits_of_keys_and_values",
            "attention::tests::masks_match_the_reference",
            // It measures speed, and qemu has none.
            "limits::tests::bytes_have_a_peak_of_their_own",
        ],
    },
    Tests {
        target: &["--test", "bits"],
        only: &["every_instruction_set", "a_cache_that_was_filled", "several_texts"],
        skip: &[],
    },
    Tests { target: &["--test", "parity"], only: &["ops::", "models::fixtures", "models::gguf"], skip: &[] },
];

/// A word that is no option.
fn processor(name: &str) -> Result<String, String> {
    let good = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let good = good && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._,=".contains(&byte));
    if good { Ok(name.to_owned()) } else { Err("expected the name of a processor".to_owned()) }
}

/// `cargo xtask arm`: sets up what is missing where that can be done, and runs all. What cannot be had here is skipped; a set-up that
/// fails is a failure.
pub fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::new("arm");
    let home = home()?;
    if let Err(error) = Debian::possible(&home) {
        steps.skip("ARM", &error);
        return steps.summary();
    }
    let mut debian = None;
    steps.step("ARM: set-up", || {
        debian = Some(Debian::set_up(&home)?);
        Ok(())
    });
    if let Some(debian) = debian {
        add(&mut steps, &debian, options);
    }
    steps.summary()
}

/// The same as a part of `cargo xtask test`: a step that is skipped where nobody has set the tools up.
pub fn steps(steps: &mut Steps, filter: &[String]) {
    let here = home().and_then(|home| Debian::here(&home));
    match here {
        // What is left out since it takes minutes under qemu may be what is asked for.
        Ok(_) if !filter.is_empty() => {
            steps.skip("ARM", &anyhow::anyhow!("some tests were asked for: `cargo xtask arm --filter WORD`"));
        }
        Ok(debian) => add(steps, &debian, &Options::default()),
        Err(error) => steps.skip("ARM", &error),
    }
}

/// Where the tools are: `BACKSTOP_ARM`, which several checkouts may share, or a folder of the target directory.
fn home() -> Result<PathBuf> {
    let home = match std::env::var_os("BACKSTOP_ARM") {
        Some(home) => PathBuf::from(home),
        None => clients::target(&util::root()?).join("arm"),
    };
    std::path::absolute(&home).with_context(|| format!("no absolute path of {}", home.display()))
}

fn add(steps: &mut Steps, debian: &Debian, options: &Options) {
    // All processors run the same programs.
    let built = steps.step("ARM: build", || {
        let all: Vec<&str> = TESTS.iter().flat_map(|tests| tests.target).copied().collect();
        cargo_test(debian, PROCESSORS[0].name, &all, &["--no-run"])
    });
    let own = options.processor.as_deref();
    if let Some(name) = own.filter(|name| PROCESSORS.iter().all(|known| known.name != *name)) {
        steps.step("ARM: tests on another processor", || tests(debian, built, name, options));
    }
    for known in PROCESSORS.iter().filter(|known| own.is_none_or(|name| name == known.name)) {
        steps.step(known.step, || tests(debian, built, known.name, options));
    }
}

/// Every group of tests on a processor.
fn tests(debian: &Debian, built: bool, processor: &str, options: &Options) -> Result<()> {
    ensure!(built, "not run, the tests were not built");
    let mut failed = Vec::new();
    for Tests { target, only, skip } in TESTS {
        let mut arguments = vec!["--no-fail-fast", "--"];
        match &options.filter {
            // What is asked for by its name is not left out.
            Some(word) => arguments.push(word),
            None => {
                arguments.extend(*only);
                arguments.extend(skip.iter().flat_map(|name| ["--skip", name]));
            }
        }
        if let Err(error) = cargo_test(debian, processor, target, &arguments) {
            failed.push(format!("{}: {error:#}", target.join(" ")));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// Debian's `cargo test` of `target`, without server and command, which have no kernels; tests run as if on `processor`.
fn cargo_test(debian: &Debian, processor: &str, target: &[&str], arguments: &[&str]) -> Result<()> {
    let gcc = |kind: &str| format!("aarch64-linux-gnu-{kind}");
    let environment = [
        ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", gcc("gcc")),
        ("CC_aarch64_unknown_linux_gnu", gcc("gcc")),
        ("CXX_aarch64_unknown_linux_gnu", gcc("g++")),
        (
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            format!("qemu-aarch64 -L {LIBRARIES} -cpu {processor}"),
        ),
        // What is emulated should be little.
        ("CARGO_PROFILE_DEV_OPT_LEVEL", "2".to_owned()),
        ("CARGO_PROFILE_DEV_DEBUG", "0".to_owned()),
        ("CARGO_INCREMENTAL", "0".to_owned()),
        ("RUST_BACKTRACE", "0".to_owned()),
    ];
    let package = ["cargo", "test", "--target", TARGET, "--package", "backstop", "--no-default-features"];
    let command = [&package, target, &["--locked"], arguments].concat();
    debian.run(&command, &environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_a_name() {
        for name in ["cortex-a72", "max", "max,sve=off", "neoverse-v1"] {
            assert_eq!(processor(name).as_deref(), Ok(name));
        }
        for name in ["", "-cpu", "a b", "a;b", "/bin/sh"] {
            assert!(processor(name).is_err(), "{name:?}");
        }
    }
}
