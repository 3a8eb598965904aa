//! Every target over its seeds and over what was found once, so that a plain `cargo test` holds them.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{TARGETS, Target};

/// For the seeds of one target; the first is run in any case.
const TIME: Duration = Duration::from_millis(1500);

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target of this name")
}

fn hold(name: &str) {
    let target = target(name);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions").join(name);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        println!("{}", entry.path().display());
        (target.run)(&std::fs::read(entry.path()).unwrap());
    }
    let started = Instant::now();
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for (number, seed) in seeds.iter().enumerate() {
        if number > 0 && started.elapsed() > TIME {
            println!("{name}: {number} of {} seeds, for want of time", seeds.len());
            break;
        }
        println!("seed {number} of {name}");
        (target.run)(seed);
    }
    // Cut short, an input is one, too.
    (target.run)(&[]);
    (target.run)(&seeds[0][..seeds[0].len() / 2]);
}

macro_rules! targets {
    ($($(#[$of:meta])* $name:ident),* $(,)?) => {
        $(#[test] $(#[$of])* fn $name() { hold(stringify!($name)); })*

        #[test]
        fn every_target_has_a_test_and_every_regression_a_target() {
            let names = [$($(#[$of])* stringify!($name)),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(names));
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions");
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap();
                assert!(cfg!(not(all(feature = "server", feature = "hub"))) || names.contains(&&*name), "{name}");
            }
        }
    };
}

targets!(
    safetensors,
    gguf,
    model,
    adapter,
    tokenizer,
    template,
    json,
    sentinel,
    reply,
    stop,
    grammar,
    blocks,
    engine,
    bits,
    #[cfg(feature = "hub")]
    name,
    #[cfg(feature = "hub")]
    listing,
    #[cfg(feature = "hub")]
    cache,
    #[cfg(feature = "server")]
    request,
    #[cfg(feature = "server")]
    http,
);
