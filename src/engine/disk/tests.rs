//! The directory: who may write to it, what its files take, and in which order they go.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::file;
use super::key::Key;
use super::store::Store;
use crate::backend::kv::{HostKv, KvType};
use crate::backend::ops::{StateLayout, StateSpec};
use crate::backend::{HostPart, PartKind, PartShapes};
use crate::error::Error;

fn shapes() -> PartShapes {
    let spec = StateSpec::Kv { heads: 1, k_dim: 8, v_dim: 8, window: None };
    PartShapes::new(&StateLayout::new(&[spec], KvType::F32).unwrap())
}

/// A page whose values are `value`.
fn page(value: f32) -> HostPart {
    let layout =
        StateLayout::new(&[StateSpec::Kv { heads: 1, k_dim: 8, v_dim: 8, window: None }], KvType::F32);
    let mut kv = HostKv::new(layout.unwrap().own()[0].0);
    kv.write(0, &[value; 64 * 8], &[value; 64 * 8]).unwrap();
    HostPart::Page(Arc::new([kv.page(0).unwrap()]))
}

fn bytes_of(part: &HostPart) -> Vec<u8> {
    let mut bytes = Vec::new();
    part.give(&mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })
    .unwrap();
    bytes
}

fn size_of(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn refused(dir: &Path) -> String {
    match Store::open(dir, 1 << 20) {
        Err(Error::Format { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_else_may_write_to_the_directory() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a/b");
    let store = Store::open(&dir, 1 << 20).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&dir), mode(dir.parent().unwrap())), (0o700, 0o700));
    store.write(&Key::of([]), PartKind::Page, &page(1.0), &shapes(), (SystemTime::now(), 0)).unwrap();
    let files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    assert_eq!(mode(&files[0]), 0o600);
    for mode in [0o720, 0o702, 0o777, 0o1777] {
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        let wanted =
            format!("others may write to it (mode {mode:o}): chmod 700 it, or name another directory");
        assert_eq!(refused(&dir), wanted);
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&dir, 1 << 20).unwrap();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Store::open(&file, 1), Err(Error::Io { .. } | Error::Format { .. })));
}

#[test]
fn the_budget_is_kept_and_beginnings_go_from_their_ends() {
    let (dir, shapes) = (tempfile::tempdir().unwrap(), shapes());
    let size = file::size(shapes.bytes(PartKind::Page));
    assert_eq!(size, 64 * 16 * 4 + 88);
    // For ten, and for nine of them once it was full.
    let store = Store::open(dir.path(), 10 * size + size / 2).unwrap();
    let key = |of: u32, index: u32| Key::of([]).then(&[of, index]);
    let start = SystemTime::now() - Duration::from_secs(1000);
    let at = |of: u32| start + Duration::from_secs(of.into());
    let write = |of: u32, index: u32| {
        let (part, place) = (page(index as f32), (at(of), index as usize));
        store.write(&key(of, index), PartKind::Page, &part, &shapes, place).unwrap();
        assert!(size_of(dir.path()) <= store.budget(), "{of} {index}");
        assert_eq!(store.bytes(), size_of(dir.path()));
    };
    let has = |of: u32| -> Vec<u32> {
        (0..5).filter(|&index| store.has(&key(of, index), PartKind::Page, &shapes)).collect()
    };
    for (of, index) in (1..3).flat_map(|of| (0..5).map(move |index| (of, index))) {
        write(of, index);
    }
    assert_eq!((has(1), has(2)), (vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]));
    // The first was of use longest ago, and of it the last page.
    write(3, 0);
    assert_eq!((has(1), has(2), has(3)), (vec![0, 1, 2], vec![0, 1, 2, 3, 4], vec![0]));
    // It is of use again: now the second gives way.
    (0..3).for_each(|index| store.touch(&key(1, index), PartKind::Page, (at(4), index as usize)));
    write(3, 1);
    write(3, 2);
    assert_eq!((has(1), has(2), has(3)), (vec![0, 1, 2], vec![0, 1, 2], vec![0, 1, 2]));
    assert_eq!(store.counts().removed.load(Ordering::Relaxed), 4);
    // What others have removed is no error.
    fs::read_dir(dir.path()).unwrap().for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
    store.write(&key(5, 0), PartKind::Page, &page(0.0), &shapes, (at(5), 0)).unwrap();
    let read = store.read(&key(5, 0), PartKind::Page, &shapes, 64).unwrap();
    assert_eq!(bytes_of(&read), bytes_of(&page(0.0)));
    assert!(store.read(&key(1, 0), PartKind::Page, &shapes, 64).is_none());
    assert_eq!(store.counts().damaged.load(Ordering::Relaxed), 0);
    // One that never fits is not written.
    let small = Store::open(dir.path(), size - 1).unwrap();
    small.write(&key(6, 0), PartKind::Page, &page(1.0), &shapes, (at(6), 0)).unwrap();
    assert!(!small.has(&key(6, 0), PartKind::Page, &shapes));
}

/// By a day in both directions: what was of use last stays, as without it.
#[test]
fn a_clock_that_jumps_takes_nothing_that_is_in_use() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let (dir, shapes) = (tempfile::tempdir().unwrap(), shapes());
    let size = file::size(shapes.bytes(PartKind::Page));
    let store = Store::open(dir.path(), 4 * size + size / 2).unwrap();
    let key = |of: u32| Key::of([]).then(&[of]);
    let has = || -> Vec<u32> { (0..16).filter(|&of| store.has(&key(of), PartKind::Page, &shapes)).collect() };
    let start = SystemTime::now();
    let write = |of: u32, base: SystemTime| {
        let at = base + Duration::from_secs(of.into());
        store.write(&key(of), PartKind::Page, &page(of as f32), &shapes, (at, 0)).unwrap();
        assert!(size_of(dir.path()) <= store.budget(), "{of}");
    };
    (0..4).for_each(|of| write(of, start));
    assert_eq!(has(), [0, 1, 2, 3]);
    for (of, jump) in [(4, start - DAY), (5, start - DAY), (6, start - DAY), (7, start - DAY)] {
        write(of, jump);
    }
    assert_eq!(has(), [4, 5, 6, 7]);
    (8..12).for_each(|of| write(of, start + DAY));
    assert_eq!(has(), [8, 9, 10, 11]);
    // What is in the making by a clock that was ahead is left over, too.
    let making = dir.path().join(".part.1-1-1.making");
    let file = fs::File::create(&making).unwrap();
    file.set_modified(start + 2 * DAY).unwrap();
    fs::remove_file(dir.path().join(format!("{}.page", key(8)))).unwrap();
    write(12, start);
    write(13, start);
    assert!(!making.exists());
    assert_eq!(has(), [10, 11, 12, 13]);
}

#[test]
fn models_of_a_process_share_a_budget() {
    let (dir, shapes) = (tempfile::tempdir().unwrap(), shapes());
    let size = file::size(shapes.bytes(PartKind::Page));
    let stores = [(); 2].map(|()| Store::open(dir.path(), 10 * size).unwrap());
    for i in 0..40_u32 {
        let (key, place) = (Key::of([]).then(&[i]), (SystemTime::now(), 0));
        stores[i as usize % 2].write(&key, PartKind::Page, &page(i as f32), &shapes, place).unwrap();
        let held = size_of(dir.path());
        assert!(held <= 10 * size, "{i}");
        assert_eq!(stores.each_ref().map(Store::bytes), [held; 2], "{i}");
    }
    let removed = stores.each_ref().map(|store| store.counts().removed.load(Ordering::Relaxed));
    assert_eq!(removed.iter().sum::<u64>() * size, 40 * size - size_of(dir.path()));
    // By another path it is one directory, too.
    let link = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(dir.path(), link.path().join("x")).unwrap();
    assert_eq!(Store::open(&link.path().join("x"), 1 << 30).unwrap().bytes(), stores[0].bytes());
}

#[test]
fn keys_are_told_by_the_names_of_files() {
    let (dir, shapes) = (tempfile::tempdir().unwrap(), shapes());
    let store = Store::open(dir.path(), 1 << 20).unwrap();
    let keys = [1_u32, 2].map(|of| Key::of([]).then(&[of]));
    for key in &keys {
        assert_eq!(Key::parse(&key.to_string()).as_ref(), Some(key));
        store.write(key, PartKind::Page, &page(1.0), &shapes, (SystemTime::now(), 0)).unwrap();
    }
    fs::write(dir.path().join("x.page"), "").unwrap();
    assert_eq!(store.keys(PartKind::Page), keys.into());
    assert!(store.keys(PartKind::Snapshot).is_empty());
    for text in ["", "0", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
        assert_eq!(Key::parse(text), None, "{text}");
    }
}

/// Two processes on one directory, and what a third left that was killed while it wrote.
#[test]
fn a_directory_is_shared() {
    let (dir, shapes) = (tempfile::tempdir().unwrap(), shapes());
    let [one, two] = [(); 2].map(|()| Store::open(dir.path(), 1 << 20).unwrap());
    let key = Key::of([b"x".as_slice()]);
    std::thread::scope(|scope| {
        for store in [&one, &two] {
            scope.spawn(|| {
                for i in 0..200_u32 {
                    let (key, place) = (key.then(&[i]), (SystemTime::now(), 0));
                    store.write(&key, PartKind::Page, &page(i as f32), &shapes, place).unwrap();
                    let read = store.read(&key, PartKind::Page, &shapes, 64).unwrap();
                    assert_eq!(bytes_of(&read), bytes_of(&page(i as f32)));
                }
            });
        }
    });
    // What the other wrote counts from the next listing on.
    let left = dir.path().join(".part.1-2-3.making");
    fs::write(&left, "half").unwrap();
    Store::open(dir.path(), 1 << 20).unwrap();
    assert!(left.exists());
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(&left).unwrap().set_modified(long_ago).unwrap();
    Store::open(dir.path(), 1 << 20).unwrap();
    assert!(!left.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 200);
}

#[test]
fn keys_tell_all_apart_that_bits_depend_on() {
    use crate::backend::rope::Frequencies;
    let rope = |inv_freq: &[f32], attention_factor| {
        Arc::new(Frequencies { inv_freq: inv_freq.to_vec(), attention_factor })
    };
    let base = Key::of([b"a".as_slice(), b"b"]);
    let keys = [
        base,
        Key::of([b"ab".as_slice(), b""]),
        Key::of([b"".as_slice(), b"ab"]),
        base.then(&[1, 2]),
        base.then(&[1]).then(&[2]),
        base.then(&[2, 1]),
        base.beginning(None, &[rope(&[1.0, 2.0], 1.0)]),
        base.beginning(Some(""), &[rope(&[1.0, 2.0], 1.0)]),
        base.beginning(Some("a"), &[rope(&[1.0, 2.0], 1.0)]),
        base.beginning(None, &[rope(&[1.0], 2.0), rope(&[], 1.0)]),
        base.beginning(None, &[rope(&[1.0, 2.0], 1.5)]),
    ];
    for (i, key) in keys.iter().enumerate() {
        assert!(keys[..i].iter().all(|other| other != key), "{i}");
        assert_eq!(key.to_string().len(), 64);
    }
}
