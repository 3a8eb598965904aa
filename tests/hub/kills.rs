//! Processes that are killed, and several that want the same.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use super::served::{Action, Hub, ended, etag, noise, sha256, tree};
use super::signals::{hangs_up, send};

/// Bytes of a unit.
const UNIT: u64 = 256 << 10;

/// Kills of the usual run; `BACKSTOP_KILLS` says another number, as `cargo xtask kills` does.
const KILLS: usize = 25;
const NUMBER: &str = "BACKSTOP_KILLS";

fn kills() -> usize {
    match std::env::var(NUMBER) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{NUMBER} is {text:?}, expected a number")),
        Err(_) => KILLS,
    }
}

/// The units of a blob in the making that are here, by its journal.
fn units_here(blobs: &Path, name: &str) -> Vec<u64> {
    let flags = std::fs::read(blobs.join(format!("{name}.backstop-parts"))).unwrap_or_default();
    flags.iter().enumerate().filter(|(_, flag)| **flag == b'1').map(|(unit, _)| unit as u64).collect()
}

#[test]
fn a_killed_pull_leaves_nothing_wrong_and_goes_on() {
    let large = noise(2_500_000, 3);
    let small = noise(5_000, 4);
    let files: [(&str, &[u8]); 3] =
        [("config.json", &small), ("model.safetensors", &large), ("tokenizer.json", &small[1..])];
    let hub = Hub::with(&files);
    let home = tempfile::tempdir().unwrap();
    let blobs = home.path().join("hub/models--org--model/blobs");
    let large_name = etag("model.safetensors", &large);
    let mut random = 12_345_u64;
    let (mut killed, mut whole, mut resumed, mut finals) = (0, 0, 0, 0);
    let mut corrupt = Vec::new();
    let kills = kills();
    while killed < kills {
        hub.rule(|seen, _| {
            if seen.is_file() { Action::Slow(8 << 10, Duration::from_millis(4)) } else { Action::Serve }
        });
        hub.forget();
        let before = units_here(&blobs, &large_name);
        let mut child = hub.command(home.path(), &["pull", "org/model"]).spawn().unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((random >> 33) % 900));
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        // What was here is not asked for again.
        for seen in hub.files_seen().iter().filter(|seen| seen.path.ends_with("model.safetensors")) {
            let (first, last) = seen.range.unwrap();
            let again = before.iter().find(|unit| first < (**unit + 1) * UNIT && **unit * UNIT <= last);
            assert_eq!(again, None, "{first}-{last} asks for what is here: {before:?}");
        }
        resumed += usize::from(!before.is_empty() && !hub.files_seen().is_empty());
        killed += usize::from(!ended.success());
        // Whatever has a final name is right.
        for (name, bytes) in tree(&blobs) {
            let name = name.to_str().unwrap().to_owned();
            if !name.contains('.') {
                finals += 1;
                if ![etag("config.json", &bytes), sha256(&bytes)].contains(&name) {
                    corrupt.push((killed, name));
                }
            }
        }
        if killed.is_multiple_of(20) && !ended.success() {
            eprintln!(
                "{killed} of {kills} kills: {resumed} resumed, {finals} finals checked, {} corrupt",
                corrupt.len()
            );
        }
        if ended.success() || !hub.settings(home.path()).cache.join("models--org--model/refs/main").exists() {
            if ended.success() {
                std::fs::remove_dir_all(home.path().join("hub")).unwrap();
                whole += 1;
            }
            continue;
        }
        // It was killed between its last file and its end: all of it is here.
        std::fs::remove_dir_all(home.path().join("hub")).unwrap();
    }
    hub.rule(|_, _| Action::Serve);
    let path = hub.ok(home.path(), &["pull", "org/model"]).out;
    for (name, bytes) in files {
        assert!(std::fs::read(Path::new(path.trim_end()).join(name)).unwrap() == bytes, "{name}");
    }
    assert!(tree(&blobs).keys().all(|name| !name.to_str().unwrap().contains('.')));
    // `cargo xtask kills` reads this line.
    println!(
        "kills: {killed} killed, {whole} ended before, {resumed} resumed, {finals} finals checked, {} corrupt",
        corrupt.len()
    );
    assert!(
        corrupt.is_empty(),
        "finals with other bytes, by the kill after which they were seen: {corrupt:?}"
    );
    assert!(resumed > 0 && finals > 0);
}

/// As [`a_killed_pull_leaves_nothing_wrong_and_goes_on`]: no handler of these has anything to do.
#[test]
fn a_signal_ends_a_pull_that_goes_on_the_next_time() {
    let large = noise(2_000_000, 6);
    let hub = Hub::with(&[("config.json", b"{}"), ("model.safetensors", &large)]);
    let blobs = "hub/models--org--model/blobs";
    let name = etag("model.safetensors", &large);
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        let home = tempfile::tempdir().unwrap();
        let blobs = home.path().join(blobs);
        hub.rule(|seen, _| match seen.is_file() {
            true => Action::Slow(20_000, Duration::from_millis(20)),
            false => Action::Serve,
        });
        hub.forget();
        let mut command = hub.command(home.path(), &["pull", "org/model"]);
        hangs_up(&mut command);
        let child = command.spawn().unwrap();
        while hub.sent() < 1_000_000 {
            std::thread::sleep(Duration::from_millis(5));
        }
        send(&child, signal);
        let ended = ended(child);
        assert_eq!((ended.status.signal(), ended.stdout.len()), (Some(signal), 0));
        assert!(!blobs.join(&name).exists());
        let len = large.len() as u64;
        let units = units_here(&blobs, &name).into_iter();
        let here: u64 = units.map(|unit| ((unit + 1) * UNIT).min(len) - unit * UNIT).sum();
        assert!(here > 0);
        hub.rule(|_, _| Action::Serve);
        hub.forget();
        let path = hub.ok(home.path(), &["pull", "org/model"]).out;
        assert!(std::fs::read(Path::new(path.trim_end()).join("model.safetensors")).unwrap() == large);
        let asked: u64 = hub
            .files_seen()
            .iter()
            .filter(|seen| seen.path.ends_with("model.safetensors"))
            .filter_map(|seen| seen.range.map(|(first, last)| last + 1 - first))
            .sum();
        assert_eq!(asked, len - here);
    }
}

#[test]
fn two_processes_download_each_byte_once() {
    let large = noise(1_500_000, 5);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &large)];
    let hub = Hub::with(&files);
    hub.rule(
        |seen, _| {
            if seen.is_file() { Action::Slow(32 << 10, Duration::from_millis(10)) } else { Action::Serve }
        },
    );
    let home = tempfile::tempdir().unwrap();
    let pull = || hub.command(home.path(), &["pull", "org/model"]).spawn().unwrap();
    let both = [pull(), pull(), pull()];
    for child in both {
        let output = ended(child);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = String::from_utf8(output.stdout).unwrap();
        for (name, bytes) in files {
            assert!(std::fs::read(Path::new(path.trim_end()).join(name)).unwrap() == bytes);
        }
    }
    assert_eq!(hub.sent(), files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
}

#[test]
fn a_lock_whose_file_is_taken_away_is_not_taken_for_one() {
    let (hub, home) = (Hub::with(&[("m.gguf", b"GGUF")]), tempfile::tempdir().unwrap());
    let folder = home.path().join("hub/.locks/models--org--model");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{}.lock", sha256(b"GGUF")));
    let locked = || {
        let file = std::fs::File::create(&path).unwrap();
        file.lock().unwrap();
        file
    };
    let first = locked();
    let mut child = hub.command(home.path(), &["pull", "org/model"]).spawn().unwrap();
    let wait = || std::thread::sleep(std::time::Duration::from_millis(500));
    while hub.seen().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    wait();
    // As some of Python's locks do at their end; then another process has one of this name.
    std::fs::remove_file(&path).unwrap();
    let second = locked();
    drop(first);
    wait();
    assert!(
        child.try_wait().unwrap().is_none() && hub.files_seen().is_empty(),
        "the second lock is passed over"
    );
    drop(second);
    let output = ended(child);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(hub.files_seen().len(), 1);
}
