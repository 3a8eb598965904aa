//! What the system refuses: the n-th memory of a load, a prompt, a decode, a sample, a text to encode, a score and a vector; threads;
//! reads; writes, those of a download among them. One after the other until nothing is refused any more: what wanted it fails by name, the others' texts are the
//! library's, and memory, places, threads and descriptors are back.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstop::backend::select::BackendRequest;
use backstop::quant::{MlxFormat, MlxMode};
use backstop::quantize::{self, GgufType};
use backstop::refusals::{Refusals, Site};
use backstop::sample::Grammar;
use backstop::{Drafts, Error, KvType, LoadOptions, Message, Model, ModelFiles, Options, SamplingOptions};

#[path = "hub/full.rs"]
#[cfg(unix)]
mod full;
#[path = "hub/served.rs"]
#[cfg(unix)]
#[allow(dead_code, reason = "other tests need the rest")]
mod served;

/// A plan is the whole process's: a test that has none must not meet another's.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn options() -> LoadOptions {
    LoadOptions {
        backend: BackendRequest::Cpu,
        threads: Some(2),
        prefill_chunk: Some(100),
        // What is refused to guesses fails nothing: see below.
        drafts: Drafts::Off,
        ..LoadOptions::default()
    }
}

fn builtin() -> Model {
    Model::load_with(ModelFiles::builtin().unwrap(), options()).unwrap()
}

/// Does `work` with the n-th call of `site` refused, for n = 0, 1, …, until none is and all is well.
/// `check` is told what came of each that was. How many there were.
fn walk<T>(
    site: Site,
    mut work: impl FnMut() -> Result<T, Error>,
    mut check: impl FnMut(u64, Result<T, Error>),
) -> u64 {
    for n in 0.. {
        let plan = Refusals::nth(site, n);
        let result = work();
        let hits = plan.hits();
        drop(plan);
        if hits == 0 {
            result.unwrap();
            return n;
        }
        check(n, result);
    }
    unreachable!("there is an end")
}

fn out_of_memory<T>(at: &str, n: u64, result: Result<T, Error>) {
    match result {
        Err(Error::OutOfMemory { bytes, .. }) => assert!(bytes > 0, "{at} {n}"),
        Err(error) => panic!("{at} {n}: {error}"),
        Ok(_) => panic!("{at} {n}: it went on"),
    }
}

/// Nothing is in flight, no place is taken, and no memory but what is kept.
fn assert_idle(model: &Model, at: &str) {
    let start = Instant::now();
    loop {
        let load = model.engine().load();
        let idle = load.queued == 0 && load.running == 0 && load.kv.reserved == 0 && load.kv.shared == 0;
        if idle && load.kv.used == load.kv.kept {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{at}: {load:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A prompt of some pages, in chunks.
fn long() -> String {
    "Once upon a time there was a little girl who had a red ball. ".repeat(12)
}

/// Every buffer that a sampler has.
fn sampled() -> Options {
    let sampling = SamplingOptions {
        temperature: 0.8,
        seed: 7,
        top_p: 0.9,
        repeat_penalty: 1.1,
        frequency_penalty: 0.1,
        logprobs: Some(3),
        ..SamplingOptions::default()
    };
    Options { max_tokens: Some(8), ignore_eos: true, sampling, ..Options::default() }
}

fn greedy() -> Options {
    Options { max_tokens: Some(8), ignore_eos: true, ..Options::default() }
}

fn text(model: &Model, prompt: &str, options: &Options) -> Result<String, Error> {
    model.generate(prompt, options)?.text()
}

/// Threads of the library in this process, and open files, where the system has a folder that says it. The test harness has
/// threads of its own, named by their tests.
fn held() -> [usize; 2] {
    if !cfg!(target_os = "linux") {
        return [0; 2];
    }
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
    };
    let ours = ["backstop", "tokenizer", "template", "grammar"];
    let threads = tasks.map(name).filter(|name| ours.iter().any(|ours| name.starts_with(ours))).count();
    [threads, std::fs::read_dir("/proc/self/fd").unwrap().count()]
}

/// What was held before is held after.
fn assert_back(before: [usize; 2]) {
    let start = Instant::now();
    while held().iter().zip(before).any(|(now, before)| *now > before) {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}, {before:?} before", held());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_load_without_memory_fails_by_name() {
    let _turn = turn();
    let before = held();
    let mut sites = 0;
    // Blocks that are packed, in GGUF's order of rows, GPTQ's codes, scales of blocks, norms that are made, and types that no
    // file aligns.
    for name in [
        "quantized/llama-affine4",
        "quantized/llama-gptq4-order",
        "quantized/llama-fp8",
        "gguf/blocks-32",
        "models/gpt2-plain",
        "models/gemma2-bf16",
    ] {
        let mut path = fixture(name);
        if name.starts_with("gguf") {
            let files = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            let mut files: Vec<PathBuf> =
                files.filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
            files.sort();
            path = files.remove(0);
        }
        let load = || Model::load_with(ModelFiles::open(&path)?, options());
        let hits = walk(Site::Memory, load, |n, loaded| out_of_memory(name, n, loaded));
        println!("{name}: {hits}");
        assert!(hits >= 2, "{name}: {hits}");
        sites += hits;
    }
    println!("sites of loads: {sites}");
    assert!(sites >= 250, "{sites}");
    assert_back(before);
}

#[test]
fn a_text_whose_guesses_find_no_memory_goes_on() {
    let _turn = turn();
    let drafting = || {
        let options = LoadOptions { drafts: Drafts::On, ..options() };
        Model::load_with(ModelFiles::builtin().unwrap(), options).unwrap()
    };
    // What it generates repeats, too.
    let options = Options { max_tokens: Some(40), ..greedy() };
    let expected = text(&builtin(), &long(), &options).unwrap();
    let (mut model, mut went_on) = (drafting(), 0);
    for n in 0.. {
        let plan = Refusals::nth(Site::Memory, n);
        let result = text(&model, &long(), &options);
        let hits = plan.hits();
        drop(plan);
        match result {
            Ok(text) => assert_eq!(text, expected, "{n}"),
            Err(Error::OutOfMemory { bytes, .. }) => assert!(bytes > 0, "{n}"),
            Err(error) => panic!("{n}: {error}"),
        }
        if hits == 0 {
            break;
        }
        went_on += usize::from(text(&model, &long(), &options).unwrap() == expected);
        assert_idle(&model, "with guesses");
        model = drafting();
    }
    assert!(went_on > 100, "{went_on}");
}

#[test]
fn a_text_without_memory_fails_alone_and_the_engine_lives_on() {
    let _turn = turn();
    let before = held();
    let (prompt, other) = (long(), "Tom had a dog");
    let expected = {
        let model = builtin();
        [text(&model, &prompt, &sampled()).unwrap(), text(&model, other, &greedy()).unwrap()]
    };
    // Alone: there is nobody else whom it could have been. A fresh model has no buffer yet, so that every site is passed.
    let mut model = builtin();
    let mut sites = 0;
    let mut n = 0;
    loop {
        let plan = Refusals::nth(Site::Memory, n);
        let result = text(&model, &prompt, &sampled());
        let hits = plan.hits();
        drop(plan);
        if hits == 0 {
            assert_eq!(result.unwrap(), expected[0]);
            break;
        }
        out_of_memory("alone", n, result);
        assert_idle(&model, "alone");
        assert_eq!(text(&model, other, &greedy()).unwrap(), expected[1], "{n}");
        assert_eq!(text(&model, &prompt, &sampled()).unwrap(), expected[0], "{n}");
        assert_idle(&model, "alone");
        (sites, n) = (sites + 1, n + 1);
        model = builtin();
    }
    drop(model);
    println!("sites of a text: {sites}");
    assert!(sites >= 100, "{sites}");

    // Beside another: at most one of them fails, by name, and the other has its text. The order in which they come is the engine's.
    let mut failed = 0;
    for n in 0.. {
        let model = builtin();
        let plan = Refusals::nth(Site::Memory, n);
        let results = std::thread::scope(|scope| {
            let first = scope.spawn(|| text(&model, &prompt, &sampled()));
            [text(&model, other, &greedy()), first.join().unwrap()]
        });
        let hits = plan.hits();
        drop(plan);
        let [second, first] = results;
        assert!(first.is_ok() || second.is_ok(), "{n}: {first:?}, {second:?}");
        for (result, expected) in [(first, &expected[0]), (second, &expected[1])] {
            match result {
                Ok(text) => assert_eq!(text, *expected, "{n}"),
                Err(error) => {
                    failed += 1;
                    out_of_memory("beside another", n, Err::<(), _>(error));
                }
            }
        }
        assert_idle(&model, "beside another");
        assert_eq!(text(&model, &prompt, &sampled()).unwrap(), expected[0], "{n}");
        if hits == 0 {
            assert!(n >= 80, "{n}");
            break;
        }
    }
    assert!(failed >= 10, "{failed}");
    assert_back(before);
}

#[test]
fn the_one_that_is_too_large_fails_and_those_in_its_steps_do_not() {
    let _turn = turn();
    let (prompt, other) = (long(), "Tom had a dog");
    let model = builtin();
    let options = Options { max_tokens: Some(200), ..greedy() };
    let expected = text(&model, other, &options).unwrap();
    let model = builtin();
    // So many tokens that it would itself be as large, were it computed anew.
    let mut short = model.generate(other, &options).unwrap();
    let begun: String = short.by_ref().take(120).map(|piece| piece.unwrap().text).collect();
    // A chunk of the long prompt has 100 rows of 384 elements; a row of another has 1.
    let plan = Refusals::of_at_least(100 * 384 * 4);
    let results = std::thread::scope(|scope| {
        let rest = scope.spawn(move || short.map(|piece| Ok(piece?.text)).collect::<Result<String, Error>>());
        let long: Vec<_> = (0..3).map(|_| text(&model, &prompt, &options)).collect();
        (rest.join().unwrap(), long)
    });
    assert!(plan.hits() >= 3);
    drop(plan);
    assert_eq!(begun + &results.0.unwrap(), expected);
    results.1.into_iter().for_each(|long| out_of_memory("large", 0, long));
    assert_idle(&model, "large");
    assert_eq!(text(&model, other, &options).unwrap(), expected);
}

/// Each type of K and V has pages of its own; a beginning that ends in a page is copied.
#[test]
fn pages_without_memory_are_taken_later_or_computed_anew() {
    let _turn = turn();
    for kv_type in KvType::ALL {
        let load = || {
            let options = LoadOptions { kv_type: Some(kv_type), ..options() };
            let model = Model::load_with(ModelFiles::builtin().unwrap(), options).unwrap();
            let first = text(&model, "Once upon a time there was a cat", &greedy()).unwrap();
            (model, first)
        };
        let again = "Once upon a time there was a dog";
        let expected = text(&load().0, again, &greedy()).unwrap();
        let mut model = load().0;
        let mut sites = 0;
        for n in 0.. {
            let plan = Refusals::nth(Site::Memory, n);
            let result = text(&model, again, &greedy());
            let hits = plan.hits();
            drop(plan);
            match result {
                // What is kept could not be copied: it was computed.
                Ok(text) => assert_eq!(text, expected, "{kv_type} {n}"),
                Err(error) => out_of_memory("a page", n, Err::<(), _>(error)),
            }
            assert_idle(&model, "a page");
            assert_eq!(text(&model, again, &greedy()).unwrap(), expected, "{kv_type} {n}");
            if hits == 0 {
                break;
            }
            sites += 1;
            model = load().0;
        }
        println!("sites of a page in {kv_type}: {sites}");
        assert!(sites >= 6, "{kv_type}: {sites}");
    }
}

#[test]
fn scores_vectors_and_texts_to_encode_fail_by_name() {
    let _turn = turn();
    let model = builtin();
    let tokens = model.tokenizer().unwrap().encode(&long()).unwrap();
    let logits = model.logits_of(&tokens, 90..tokens.len()).unwrap();
    let vector = model.embed(&tokens).unwrap();

    let mut fresh = builtin();
    let scores = walk_models(&mut fresh, |model| model.logits_of(&tokens, 90..tokens.len()), &logits);
    let mut fresh = builtin();
    let vectors = walk_models(&mut fresh, |model| model.embed(&tokens), &vector);

    let special = "a <|endoftext|> b </s> c <s> d".to_owned() + &long();
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer.encode(&special).unwrap();
    let messages = [Message::new("user", &special)];
    let mut encoded = walk(
        Site::Memory,
        || tokenizer.encode(&special),
        |n, result| match result {
            Ok(again) => assert_eq!(again, ids),
            result => out_of_memory("encode", n, result),
        },
    );
    if model.has_template() {
        let rendered = |n, result| out_of_memory("encode_chat", n, result);
        encoded += walk(Site::Memory, || model.encode_chat(&messages), rendered);
    }
    println!("sites of scores {scores}, of vectors {vectors}, of texts to encode {encoded}");
    assert!(scores >= 30 && vectors >= 30 && encoded >= 2, "{scores} {vectors} {encoded}");
    assert_idle(&model, "encode");
}

/// Walks `work` on fresh models, and does it again on the one where it failed.
fn walk_models<T: PartialEq + std::fmt::Debug>(
    model: &mut Model,
    work: impl Fn(&Model) -> Result<T, Error>,
    expected: &T,
) -> u64 {
    for n in 0.. {
        let plan = Refusals::nth(Site::Memory, n);
        let result = work(model);
        let hits = plan.hits();
        drop(plan);
        if hits == 0 {
            assert_eq!(result.unwrap(), *expected);
            return n;
        }
        out_of_memory("on a model", n, result);
        assert_idle(model, "on a model");
        assert_eq!(work(model).unwrap(), *expected, "{n}");
        *model = builtin();
    }
    unreachable!("there is an end")
}

#[test]
fn threads_that_cannot_be_had() {
    let _turn = turn();
    let before = held();
    let expected = text(&builtin(), "Tom had a dog", &greedy()).unwrap();
    let work = || -> Result<String, Error> {
        let model = Model::load_with(
            ModelFiles::open(&fixture("models/gemma2-bf16")).and_then(|_| ModelFiles::builtin())?,
            LoadOptions { threads: Some(3), ..options() },
        )?;
        let constraint = Some(model.constraint(&Grammar::Regex("[a-z]{4}".into()))?);
        let held = text(&model, "Once", &Options { constraint, ..greedy() })?;
        assert_eq!(held.len(), 4);
        text(&model, "Tom had a dog", &greedy())
    };
    let (mut failed, mut fewer) = (0, 0);
    let sites = walk(Site::Thread, work, |n, result| match result {
        // The pool and the masks do with fewer.
        Ok(text) => {
            assert_eq!(text, expected, "{n}");
            fewer += 1;
        }
        Err(error) => {
            assert!(matches!(error, Error::Thread { .. }), "{n}: {error}");
            failed += 1;
        }
    });
    println!("sites of threads: {sites}, {failed} failed, {fewer} with fewer");
    assert!(sites >= 7 && failed >= 4 && fewer >= 2, "{sites} {failed} {fewer}");
    assert_back(before);
}

#[test]
fn files_that_cannot_be_read() {
    let _turn = turn();
    let before = held();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    for site in [Site::Read, Site::ShortRead] {
        let load = || Model::load_with(ModelFiles::open(&path)?, options());
        let sites = walk(site, load, |n, loaded| match loaded {
            Err(Error::Io { path: file, source }) => {
                assert!(file.starts_with(&path), "{n}: {}", file.display());
                let short = source.kind() == std::io::ErrorKind::UnexpectedEof;
                assert_eq!(short, site == Site::ShortRead, "{n}: {source}");
            }
            other => panic!("{site:?} {n}: {other:?}"),
        });
        println!("sites of {site:?}: {sites}");
        assert!(sites >= 4, "{site:?}: {sites}");
    }
    assert_back(before);
}

#[test]
fn a_quantized_model_that_cannot_be_written_leaves_nothing() {
    let _turn = turn();
    let dense = ModelFiles::open(&fixture("models/llama-bf16")).unwrap();
    // Experts that are turned, and some that are copied.
    let turned = ModelFiles::open(&fixture("models/gpt_oss-pattern")).unwrap();
    let copied = ModelFiles::open(&fixture("models/gpt_oss-limit")).unwrap();
    // Rows enough for a second thread.
    let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    let stories = ModelFiles::open(&stories).unwrap();
    let before = held();
    let mlx = MlxFormat { mode: MlxMode::Affine, bits: 4, group: 32 };
    for gguf in [false, true] {
        for (site, files) in [
            (Site::Memory, &dense),
            (Site::Memory, &turned),
            (Site::Memory, &copied),
            (Site::Write, &dense),
            (Site::Thread, &stories),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            let work = || {
                let made = match gguf {
                    false => quantize::to_mlx(files, mlx, &out, &mut |_, _| true),
                    true => quantize::to_gguf(files, GgufType::Q8_0, &out, &mut |_, _| true),
                };
                if made.is_ok() {
                    let gone = if gguf { std::fs::remove_file(&out) } else { std::fs::remove_dir_all(&out) };
                    gone.unwrap();
                }
                made
            };
            let sites = walk(site, work, |n, made| {
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{site:?} {n}");
                match (site, made) {
                    // Another thread does it.
                    (Site::Thread, made) => drop(made.unwrap()),
                    (Site::Write, Err(Error::Io { source, .. })) => {
                        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{n}");
                    }
                    (_, made) => out_of_memory("quantize", n, made),
                }
            });
            println!("sites of {site:?}, gguf {gguf}: {sites}");
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let least = if site == Site::Thread { u64::from(cores > 1) } else { 5 };
            assert!(sites >= least, "{site:?}: {sites}");
        }
    }
    assert_back(before);
}

/// A disk that is full loses the cache of prompts and nothing else: each write that may fail fails, behind a half of its bytes.
#[test]
fn a_full_disk_loses_the_cache_alone() {
    let _turn = turn();
    let prompt = "Once upon a time there was a little girl who had a red ball. ".repeat(20);
    let generate = |model: &Model| {
        let text =
            Options { max_tokens: Some(5), sampling: SamplingOptions::default(), ..Options::default() };
        let mut generation = model.generate(&prompt, &text).unwrap();
        let text: String = generation.by_ref().map(|piece| piece.unwrap().text).collect();
        let stats = generation.stats().unwrap();
        let whole = (stats.prompt_tokens - 1) / 64 * 64;
        assert!(whole >= 256, "{stats:?}");
        (text, stats.cached_tokens >= whole)
    };
    let (wanted, _) = generate(&builtin());
    let dir = tempfile::tempdir().unwrap();
    let cached = || {
        let cache = Some(backstop::CacheOptions { dir: dir.path().to_owned(), bytes: 1 << 30 });
        Model::load_with(ModelFiles::builtin().unwrap(), LoadOptions { cache, ..options() }).unwrap()
    };
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    for n in 0.. {
        let model = cached();
        let plan = Refusals::nth(Site::Write, n);
        assert_eq!(generate(&model).0, wanted, "{n}");
        // What is kept is written at its end.
        drop(model);
        let hits = plan.hits();
        drop(plan);
        if hits == 0 {
            assert!(n >= 20 && files() >= 5, "{n} {}", files());
            break;
        }
        // Whole files may be there, of which all is as it was; then none, so that the next round writes them all.
        assert_eq!(generate(&cached()).0, wanted, "{n}");
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(path.extension().unwrap(), "page", "{n}");
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(generate(&cached()), (wanted, true));
}
