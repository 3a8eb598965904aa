//! Models over two and four ranks, each a process of its own: the logits are transformers', and what cannot be split is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use backstop::backend::kv::KvType;
use backstop::backend::ranks::{Rank, VARIABLES};
use backstop::backend::{LlmBackendKind, Policy};
use backstop::forward::Architecture;
use backstop::tensor::DType;
use backstop::{LoadOptions, Model, ModelFiles, Options, Ranks};

use super::fixtures::{cached_of, exact_backends, fixtures};
use crate::harness::{Expected, backends, close, options};
use crate::ring::write_hosts;
use crate::tolerance;

/// The fixture that a rank computes.
const MODEL: &str = "BACKSTOP_TEST_MODEL";

/// Starts the test `a_rank` as each of the ranks, on addresses of their own.
fn ranks(model: &Path, hosts: &Path, count: usize) -> Vec<Child> {
    write_hosts(hosts, count);
    let start = |index: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "models::ranks::a_rank", "--ignored", "--nocapture"]);
        command.env(VARIABLES[0], index.to_string()).env(VARIABLES[1], hosts).env(MODEL, model);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    (0..count).map(start).collect()
}

/// What they said, in the order of their numbers.
fn ended(ranks: Vec<Child>) -> Vec<Output> {
    // None waits for another to read what it says.
    let waits: Vec<_> =
        ranks.into_iter().map(|rank| std::thread::spawn(move || rank.wait_with_output().unwrap())).collect();
    waits.into_iter().map(|wait| wait.join().unwrap()).collect()
}

fn lost(what: &str) {
    eprintln!("lost: {what}");
    std::process::exit(1);
}

/// A process of the tests below.
#[test]
#[ignore = "a rank of another test"]
fn a_rank() {
    let path = PathBuf::from(std::env::var_os(MODEL).expect("a model"));
    let ranks = Ranks::of_environment(Duration::from_secs(300), lost).unwrap().expect("the ranks");
    // Some prompts are longer than a chunk.
    let options = LoadOptions {
        ranks: Some(ranks),
        policy: Policy::Deny,
        dtype: Some(DType::F32),
        kv_type: Some(KvType::F32),
        prefill_chunk: Some(7),
        ..options(LlmBackendKind::Mlx)
    };
    let model = match Model::load_with(ModelFiles::open(&path).unwrap(), options) {
        // Groups of a format that a part would cut: every rank finds that.
        Err(error) if error.to_string().contains("not possible in") => return println!("refused, {error}"),
        loaded => loaded.unwrap(),
    };
    assert_eq!(model.own_rank(), ranks.rank);
    if !ranks.rank.leads() {
        return model.follow().unwrap();
    }
    // A rank that had all of it would give the same logits.
    let whole = ModelFiles::open(&path).unwrap().kv_token_bytes(KvType::F32);
    let part = model.engine().with(|runtime| runtime.kv_cost(1).token).unwrap();
    assert_eq!(part * ranks.rank.of() as u64, whole, "bytes of a token's keys and values");
    let expected = Expected::load(&path);
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let wanted = expected.logits_wide.as_ref().unwrap_or(&expected.logits);
    let bound = match model.info().config.model_type {
        "gemma2" => tolerance::GEMMA2_SCALE,
        _ => tolerance::logits(DType::F32),
    };
    for chunk in [usize::MAX, 7, 1] {
        let (got, _) = cached_of(&model, &expected, chunk);
        let (apart, rms) = close(&format!("{name}, chunks of {chunk}"), &got, wanted, bound);
        let of = ranks.rank.of();
        println!("{name} over {of} ranks: {apart:.2e} standard deviations, {rms:.2e} in the mean");
    }
    if expected.logits_wide.is_none() {
        let asked =
            Options { max_tokens: Some(expected.greedy.len()), ignore_eos: true, ..Options::default() };
        let mut generation = model.generate_tokens(expected.prompt.clone(), &asked).unwrap();
        for piece in generation.by_ref() {
            piece.unwrap();
        }
        assert_eq!(generation.tokens(), expected.greedy);
    }
    assert!(model.engine().report().is_clean());
}

#[test]
fn two_ranks_have_the_logits_of_the_reference() {
    agree(2, usize::MAX, [17, 7]);
}

#[test]
fn four_ranks_have_the_logits_of_the_reference() {
    agree(4, 1, [1, 0]);
}

/// Where it is set, all fixtures are compared.
const ALL: &str = "BACKSTOP_TEST_ALL_RANKS";

/// Compares a fixture of each family that `count` ranks can compute, `most` at most, and each quantized one; at least so many of both.
fn agree(count: usize, most: usize, [plain, quantized]: [usize; 2]) {
    if !backends().contains(&LlmBackendKind::Mlx) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (mut families, mut refused, mut compared) = (BTreeSet::new(), BTreeSet::new(), [0; 2]);
    for path in fixtures() {
        let architecture = Architecture::read(&path.join("config.json")).unwrap();
        let family = architecture.config().model_type;
        if let Err(error) = architecture.of_rank(Rank::new(0, count).unwrap()) {
            refused.insert(format!("{family}: {error}"));
            continue;
        }
        let is_plain = !path.to_string_lossy().contains("quantized");
        let known = families.contains(family) || families.len() >= most;
        if is_plain && known && std::env::var_os(ALL).is_none() {
            continue;
        }
        if !exact_backends(&path).contains(&LlmBackendKind::Mlx) {
            continue;
        }
        let ended = ended(ranks(&path, &home.path().join("hosts.json"), count));
        for (index, rank) in ended.iter().enumerate() {
            let [out, err] = [&rank.stdout, &rank.stderr].map(|said| String::from_utf8_lossy(said));
            assert!(rank.status.success(), "{}, rank {index}: {out}{err}", path.display());
            if index == 0 {
                out.lines().filter(|line| line.contains(" ranks: ")).for_each(|line| println!("{line}"));
                refused.extend(out.lines().filter(|line| line.starts_with("refused")).map(str::to_owned));
                if out.contains(" ranks: ") {
                    families.insert(family);
                    compared[usize::from(!is_plain)] += 1;
                }
            }
        }
    }
    refused.iter().for_each(|what| println!("refused, {what}"));
    println!("{compared:?} fixtures, plain and quantized, of {families:?}");
    assert!(compared[0] >= plain && compared[1] >= quantized, "{compared:?}");
}
