//! A cache on disk: engines that start anew begin with what the ones before them left, with the bits of those that compute it
//! all. What is damaged, or another's, is computed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;
use crate::backend::kv::KvType;
use crate::engine::{Cache, CacheOptions, DiskLoad, ModelBytes};

/// Of a full cache, of one with windows in some of its layers and in all, of latent vectors, and of recurrent layers.
const MODELS: [&str; 5] = [MODEL, "gemma3-pattern", "mistral-window", "deepseek_v3-plain", "qwen3_5-delta"];

/// An engine whose cache is in `dir`, of a model of these bytes.
fn rig_of(model: &str, bytes: &str, kv: Option<KvType>, tokens: usize, dir: &Path) -> Rig {
    let options = CacheOptions { dir: dir.to_owned(), bytes: 1 << 30 };
    let cache = Cache::open(&options, ModelBytes::new([], &[bytes.as_bytes()]).unwrap()).unwrap();
    Rig::cached(model, kv, tokens, cache)
}

fn rig(model: &str, kv: Option<KvType>, dir: &Path) -> Rig {
    rig_of(model, model, kv, 4096, dir)
}

impl Rig {
    fn disk(&self) -> DiskLoad {
        self.gauges.load(self.budget.bytes).disk.unwrap()
    }

    /// Ends as an engine does.
    fn end(mut self) {
        self.worker.save_all(Some(Instant::now() + Duration::from_secs(60)));
    }

    /// Waits until what was handed over is written.
    fn written(&self, bytes: u64) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.disk().written < bytes {
            assert!(Instant::now() < until, "{:?}", self.disk());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The text behind a prompt, and how many of its tokens were cached.
    fn text(&mut self, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, usize) {
        let mut asked = self.ask(prompt.to_vec(), max_tokens);
        self.finish(&mut asked);
        (asked.tokens.clone(), asked.cached())
    }

    /// The bits of the logits behind the last token, and how many of those before it were cached.
    fn bits(&mut self, tokens: &[u32]) -> (Vec<u32>, u64) {
        let before = self.gauges.load(self.budget.bytes).kv.hit_tokens;
        let asked = self.score(tokens.to_vec(), tokens.len() - 1..tokens.len());
        let rows = self.rows(&asked).unwrap();
        let load = self.gauges.load(self.budget.bytes);
        (rows[0].iter().map(|x| x.to_bits()).collect(), load.kv.hit_tokens - before)
    }
}

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().ends_with(ending));
    paths.sort();
    paths
}

fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for path in files(dir, "") {
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn an_engine_begins_with_what_one_before_it_left() {
    for model in MODELS {
        for kv in [None].into_iter().chain(KvType::ALL.map(Some)) {
            let of_codes = kv.is_some_and(|kv| kv.bits().is_some());
            if of_codes && model.starts_with("deepseek") {
                // Latent vectors are not kept in codes.
                continue;
            }
            let name = format!("{model} {kv:?}");
            let (dir, none) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let mut first = rig(model, kv, dir.path());
            let prompt = first.prompt(1, 300);
            let (text, cached) = first.text(&prompt, 10);
            assert_eq!(cached, 0, "{name}");
            let turn = [&prompt[..], &text, &first.prompt(2, 60)].concat();
            let (next, cached) = first.text(&turn, 10);
            assert_eq!(cached, 309, "{name}");
            let warm = first.bits(&turn);
            first.end();

            let mut cold = rig(model, kv, none.path());
            let wanted = cold.bits(&turn);
            assert_eq!((wanted.1, &wanted.0), (0, &warm.0), "{name}");
            let mut second = rig(model, kv, dir.path());
            let bits = second.bits(&turn);
            // Nothing is kept at a prompt's last token but by recurrent layers, which stop there.
            let end = if model == "qwen3_5-delta" { 369 } else { 320 };
            assert_eq!((bits.1, bits.0), (end, wanted.0), "{name}");
            let load = second.disk();
            assert_eq!((load.hits, load.hit_tokens, load.misses, load.damaged), (1, end, 0, 0), "{name}");
            // Now it is in memory; what is not looked for is not read again.
            assert_eq!(second.text(&turn, 10), (next, 369), "{name}");
            assert_eq!((second.disk().hits, second.disk().read), (1, load.read), "{name}");
            assert_eq!(second.turn().kv.reserved, 0);

            // Another way of the conversation: the page in which they part went on, but a recurrent state stayed.
            let mut third = rig(model, kv, dir.path());
            let part = [&prompt[..], &text, &third.prompt(3, 70)].concat();
            let end = if model == "qwen3_5-delta" { 309 } else { 256 };
            assert_eq!(third.text(&part, 4), (cold.text(&part, 4).0, end), "{name}");
        }
    }
}

#[test]
fn what_gives_way_in_memory_is_read_again() {
    for model in [MODEL, "qwen3_5-delta"] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = rig_of(model, model, None, 640, dir.path());
        let prompts: Vec<Vec<u32>> = (1..4).map(|seed| rig.prompt(seed, 400)).collect();
        let texts: Vec<Vec<u32>> = prompts.iter().map(|prompt| rig.text(prompt, 5).0).collect();
        let load = rig.turn();
        assert!(load.kv.evicted > 0);
        // The first is gone from memory by now.
        rig.written(6 * rig.budget.cost.of_page(PAGE));
        let again = rig.text(&prompts[0], 5);
        let cached = if model == MODEL { 384 } else { 399 };
        assert_eq!((again.1, &again.0), (cached, &texts[0]), "{model}");
        assert_eq!((rig.disk().hits, rig.disk().hit_tokens), (1, cached as u64), "{model}");
        assert_eq!(rig.disk().dropped, 0);
    }
}

/// Requests that wait for the disk hold up nobody, may be cancelled, and are all answered.
#[test]
fn many_requests_wait_for_the_disk_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = rig(MODEL, None, dir.path());
    let prompts: Vec<Vec<u32>> = (1..5).map(|seed| first.prompt(seed, 300)).collect();
    let texts: Vec<Vec<u32>> = prompts.iter().map(|prompt| first.text(prompt, 5).0).collect();
    first.end();
    let mut second = rig(MODEL, None, dir.path());
    let mut asked: Vec<Asked> =
        prompts.iter().chain(&prompts).map(|prompt| second.ask(prompt.clone(), 5)).collect();
    let gone = second.ask(second.prompt(9, 300), 5);
    gone.cancel.store(true, Ordering::Relaxed);
    for (i, asked) in asked.iter_mut().enumerate() {
        second.finish(asked);
        assert_eq!(asked.tokens, texts[i % 4], "{i}");
        assert!(asked.cached() >= 256, "{i}");
    }
    let load = second.disk();
    assert_eq!((load.hits, load.hit_tokens), (4, 4 * 256));
    let end = second.turn();
    assert_eq!((end.queued, end.running, end.kv.reserved), (0, 0, 0));
}

#[test]
fn short_prompts_and_those_of_others_are_computed() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = rig(MODEL, None, dir.path());
    let (prompt, short) = (first.prompt(1, 300), first.prompt(2, 200));
    first.space = Some("a".into());
    let (text, _) = first.text(&prompt, 5);
    first.text(&short, 5);
    first.end();
    // Of the short one nothing is written: 4 whole pages and a part of the fifth.
    assert_eq!(files(dir.path(), ".page").len(), 5);
    let kept = copy_of(dir.path());
    let cached = |rig: &mut Rig, space: Option<&str>| {
        rig.space = space.map(Into::into);
        let (again, cached) = rig.text(&prompt, 5);
        assert_eq!(again, text);
        (cached, rig.disk().hits)
    };
    for space in [None, Some(""), Some("b"), Some("a\n")] {
        assert_eq!(cached(&mut rig(MODEL, None, dir.path()), space), (0, 0), "{space:?}");
    }
    assert_eq!(cached(&mut rig_of(MODEL, "other bytes", None, 4096, dir.path()), Some("a")), (0, 0));
    assert_eq!(rig(MODEL, Some(KvType::F16), dir.path()).text(&prompt, 5).1, 0);
    assert_eq!(cached(&mut rig(MODEL, None, dir.path()), Some("a")), (256, 1));
    // What was asked in between was written, too, and disturbs nobody.
    assert_eq!(cached(&mut rig(MODEL, None, kept.path()), Some("a")), (256, 1));
}

/// A file in whose place there is anything else is a miss, and is removed; the text is the same.
#[test]
fn what_is_damaged_is_computed() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 12] = [
        ("magic", |bytes| bytes[0] ^= 1),
        ("version", |bytes| bytes[7] ^= 1),
        ("key", |bytes| bytes[20] ^= 0x80),
        ("kind", |bytes| bytes[40] ^= 1),
        ("length", |bytes| bytes[55] ^= 0x80),
        ("first byte", |bytes| bytes[56] ^= 1),
        ("middle", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 16;
        }),
        ("last byte", |bytes| {
            let last = bytes.len() - 33;
            bytes[last] ^= 1;
        }),
        ("checksum", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("one byte less", |bytes| bytes.truncate(bytes.len() - 1)),
        ("one byte more", |bytes| bytes.push(0)),
        ("nothing", Vec::clear),
    ];
    for model in ["gemma3-pattern", "qwen3_5-delta"] {
        let dir = tempfile::tempdir().unwrap();
        let mut first = rig(model, None, dir.path());
        let prompt = first.prompt(1, 300);
        let (text, _) = first.text(&prompt, 5);
        first.end();
        let other = if model == "gemma3-pattern" { ".pane" } else { ".snapshot" };
        for ending in [".page", other] {
            for (name, damage) in damages {
                let dir = copy_of(dir.path());
                for path in files(dir.path(), ending) {
                    let mut bytes = fs::read(&path).unwrap();
                    damage(&mut bytes);
                    fs::write(&path, bytes).unwrap();
                }
                let mut rig = rig(model, None, dir.path());
                assert_eq!(rig.text(&prompt, 5), (text.clone(), 0), "{model} {ending} {name}");
                let load = rig.disk();
                // One of another length is none from the start. Of the others, all that were to be read: four whole pages,
                // and that with the recurrent state; the pane that the next token sees; the state.
                let seen = match (name, ending, model) {
                    ("one byte less" | "one byte more" | "nothing", ..) => 0,
                    (_, ".page", "qwen3_5-delta") => 5,
                    (_, ".page", _) => 4,
                    _ => 1,
                };
                assert_eq!((load.hits, load.misses, load.damaged), (0, 1, seen), "{model} {ending} {name}");
                // What was computed takes its place.
                rig.end();
                let mut again = self::rig(model, None, dir.path());
                let (got, cached) = again.text(&prompt, 5);
                assert_eq!((got, cached >= 256), (text.clone(), true), "{model} {ending} {name}");
            }
        }
    }
}

#[test]
fn what_is_no_file_is_none_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = rig(MODEL, None, dir.path());
    let prompt = first.prompt(1, 300);
    let (text, _) = first.text(&prompt, 5);
    first.end();
    let elsewhere = tempfile::tempdir().unwrap();
    type Replace = fn(&Path, &Path);
    let replaced: [(&str, Replace); 4] = [
        ("a directory", |path, _| fs::create_dir(path).unwrap()),
        ("a link to a copy", |path, copy| symlink(copy, path).unwrap()),
        ("a link to nowhere", |path, _| symlink("nowhere", path).unwrap()),
        ("a pipe", |path, _| {
            assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        }),
    ];
    for (name, replace) in replaced {
        let dir = copy_of(dir.path());
        for path in files(dir.path(), ".page") {
            let copy = elsewhere.path().join(path.file_name().unwrap());
            fs::rename(&path, &copy).unwrap();
            replace(&path, &copy);
        }
        fs::write(dir.path().join("what a person put here"), "x").unwrap();
        let mut rig = rig(MODEL, None, dir.path());
        assert_eq!(rig.text(&prompt, 5), (text.clone(), 0), "{name}");
        rig.end();
        assert!(dir.path().join("what a person put here").exists());
    }
}

/// A disk that takes nothing more loses the cache and nothing else; nor does one that is gone.
#[test]
fn a_directory_that_is_gone_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(MODEL, None, dir.path());
    let prompt = rig.prompt(1, 300);
    fs::remove_dir_all(dir.path()).unwrap();
    let (text, _) = rig.text(&prompt, 5);
    assert_eq!(text, Rig::alone(MODEL, LlmBackendKind::Cpu, prompt.clone(), 5));
    rig.worker.save_all(None);
    let until = Instant::now() + Duration::from_secs(60);
    while rig.disk().dropped == 0 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((rig.text(&prompt, 5), rig.disk().written), ((text, 299), 0));
    // It is there again: what was lost is written.
    fs::create_dir(dir.path()).unwrap();
    rig.worker.save_all(Some(Instant::now() + Duration::from_secs(60)));
    rig.end();
    let mut second = rig_of(MODEL, MODEL, None, 4096, dir.path());
    assert_eq!((second.text(&prompt, 5).1, second.disk().damaged), (256, 0));
}

/// What waits to be written is no more than the queue has room for, however long a beginning is.
#[test]
fn a_long_beginning_is_handed_over_in_parts() {
    for model in MODELS {
        let [wide, narrow] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let options = CacheOptions { dir: narrow.path().to_owned(), bytes: 1 << 30 };
        let cache = Cache::open(&options, ModelBytes::new([], &[model.as_bytes()]).unwrap()).unwrap();
        let mut parts = Rig::cached(model, None, 4096, cache.queue(1));
        let mut whole = rig(model, None, wide.path());
        let prompt = whole.prompt(1, 700);
        assert_eq!(parts.text(&prompt, 5), whole.text(&prompt, 5), "{model}");
        parts.end();
        whole.end();
        let names = |dir: &Path| -> Vec<_> {
            files(dir, "").iter().map(|path| path.file_name().unwrap().to_owned()).collect()
        };
        let written = names(wide.path());
        assert!(written.len() >= 10, "{model}: {written:?}");
        assert_eq!(names(narrow.path()), written, "{model}");
    }
}
