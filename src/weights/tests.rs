use std::fs;
use std::time::{Duration, Instant};

use ::safetensors::SafeTensors;

use super::*;

/// A file of this header and `data` zero bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A header of one tensor `w`.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

fn open(bytes: Vec<u8>) -> Result<Checkpoint> {
    Checkpoint::from_static("model.safetensors", bytes.leak())
}

#[track_caller]
fn refused(bytes: Vec<u8>, what: &str) {
    let start = Instant::now();
    let error = open(bytes).unwrap_err().to_string();
    assert!(error.starts_with("model.safetensors: ") && error.contains(what), "{error}");
    assert!(error.len() < 1000, "{} bytes of error", error.len());
    assert!(start.elapsed() < Duration::from_secs(1), "{what}: {:?}", start.elapsed());
}

#[test]
fn hostile_lengths_are_refused() {
    refused(vec![], "file is 0 bytes, expected at least 8");
    refused(vec![1; 7], "file is 7 bytes");
    refused(0u64.to_le_bytes().to_vec(), "header length is 0, expected 1 to 100000000");
    refused(100_000_001u64.to_le_bytes().to_vec(), "header length is 100000001, expected");
    refused(u64::MAX.to_le_bytes().to_vec(), "header length is 18446744073709551615");
    refused(
        3u64.to_le_bytes().iter().copied().chain(*b"{}").collect(),
        "header length is 3, but 2 bytes follow",
    );
}

#[test]
fn hostile_headers_are_refused() {
    refused(file(" {}", 0), "header starts with byte 0x20, expected '{'");
    refused(file("[1]", 0), "header starts with byte 0x5b");
    refused(file("{", 0), "EOF");
    refused(file("{} x", 0), "trailing characters");
    let mut latin = file("{\"a\":1}", 0);
    latin[10] = 0xff;
    refused(latin, "header is not UTF-8");
    refused(file(&"{\"a\":".repeat(1 << 20), 0), "nesting deeper than 3 at byte 15");
    refused(file(&format!("{{\"a\":{}", "[".repeat(1 << 20)), 0), "nesting deeper than 3");
    let info = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    refused(file(&format!(r#"{{"w":{info},"w":{info}}}"#), 4), "duplicate tensor name \"w\"");
    refused(file(&format!(r#"{{"w":{info},"\u0077":{info}}}"#), 4), "duplicate tensor name \"w\"");
    refused(file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "duplicate __metadata__");
    refused(file(r#"{"__metadata__":{"a":"1","\u0061":"2"}}"#, 0), "duplicate or overlong key \"a\"");
    refused(
        file(r#"{"__metadata__":{"a":1}}"#, 0),
        "`1`, expected __metadata__ value of \"a\" to be a string",
    );
    refused(file(r#"{"__metadata__":{"a":{}}}"#, 0), "expected __metadata__ value of \"a\" to be a string");
    refused(file(r#"{"__metadata__":[]}"#, 0), "sequence, expected __metadata__ to be an object of strings");
    refused(file(r#"{"w":7}"#, 0), "`7`, expected tensor \"w\" to be an object");
    refused(file(r#"{"w":{"shape":[],"data_offsets":[0,4]}}"#, 4), "tensor \"w\": dtype is missing");
    refused(file(r#"{"w":{"dtype":"F32","data_offsets":[0,4]}}"#, 4), "tensor \"w\": shape is missing");
    refused(file(r#"{"w":{"dtype":"F32","shape":[]}}"#, 4), "tensor \"w\": data_offsets is missing");
    refused(file(r#"{"w":{"dtype":"F32","dtype":"F16"}}"#, 4), "tensor \"w\": a field is given twice");
    refused(file(r#"{"w":{"strides":[1]}}"#, 4), "tensor \"w\": unknown field `strides`");
    refused(file(&format!("{{\"a\":\"{}\"}}", "x".repeat(17 << 20)), 0), "string at byte 5 is over 16777216");
}

#[test]
fn hostile_tensors_are_refused() {
    refused(file(&one("F31", "[1]", "[0,4]"), 4), "tensor \"w\": dtype: unknown variant `F31`");
    refused(file(&one("F32", "[-1]", "[0,4]"), 4), "tensor \"w\": shape: invalid value: integer `-1`");
    refused(
        file(&one("F32", "[1.5]", "[0,4]"), 4),
        "tensor \"w\": shape: invalid type: floating point `1.5`",
    );
    refused(
        file(&one("F32", "[18446744073709551616]", "[0,4]"), 4),
        "floating point `1.8446744073709552e+19`",
    );
    refused(file(&one("F32", "7", "[0,4]"), 4), "expected a list of at most 8 non-negative integers");
    refused(file(&one("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), "shape: more than 8 values");
    refused(
        file(&one("F32", "[4294967296,4294967296]", "[0,4]"), 4),
        "shape [4294967296, 4294967296] of F32 overflows",
    );
    refused(file(&one("F32", "[1]", "[4,0]"), 4), "data_offsets [4, 0] end before they begin");
    refused(file(&one("F32", "[1]", "[0]"), 4), "data_offsets has 1 values, expected 2");
    refused(file(&one("F32", "[1]", "[0,4,8]"), 4), "data_offsets: more than 2 values");
    refused(file(&one("F32", "[2]", "[0,8]"), 4), "data_offsets [0, 8] leave the 4 bytes of data");
    let far = "[18446744073709551612,18446744073709551615]";
    refused(file(&one("F32", "[1]", far), 4), "leave the 4 bytes of data");
    refused(file(&one("F32", "[3]", "[0,8]"), 8), "data_offsets [0, 8] hold 8 bytes, expected 12 of [3] F32");
    refused(file(&one("F4", "[3]", "[0,1]"), 1), "hold 1 bytes");
    refused(file(&one("F32", "[1]", "[4,8]"), 8), "data_offsets [4, 8] leave a hole from 0");
    refused(file(&one("F32", "[1]", "[0,4]"), 9), "5 trailing bytes after the last tensor, which ends at 4");
    refused(file("{}", 1), "1 trailing bytes");
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    refused(file(&two("[0,4]", "[2,6]"), 6), "tensor \"b\": data_offsets [2, 6] overlap data that ends at 4");
    refused(file(&two("[0,4]", "[0,4]"), 4), "tensor \"b\": data_offsets [0, 4] overlap");
    refused(file(&two("[0,4]", "[6,10]"), 10), "tensor \"b\": data_offsets [6, 10] leave a hole from 4");
}

#[test]
fn floods_are_refused_in_time() {
    let mut tensors = String::from("{");
    for i in 0..=1 << 17 {
        tensors += &format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#);
    }
    refused(file(&tensors, 0), "more than 131072 tensors");
    let mut names = String::from("{");
    for i in 0..20 {
        let name = "n".repeat(1 << 20);
        names += &format!(r#""{name}{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#);
    }
    refused(file(&names, 0), "tensor names take more than 16777216 bytes");
    refused(file(&format!("{{{}", "\"a\"".repeat(20 << 20)), 0), "expected `:`");
}

#[test]
fn legal_oddities_are_accepted() {
    let scalar = open(file(&one("F32", "[]", "[0,4]"), 4)).unwrap();
    assert_eq!(scalar.get("w", &[]).unwrap().to_f32(), [0.0]);
    let empty = open(file(&one("BF16", "[3,0]", "[0,0]"), 0)).unwrap();
    assert!(empty.get("w", &[3, 0]).unwrap().is_empty());
    assert_eq!(open(file("{}   ", 0)).unwrap().tensors().len(), 0);

    // A byte before it leaves `w` unaligned wherever the file starts: it is copied, never cast.
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}"#;
    for padding in 0..4 {
        let mut bytes = file(&format!("{header}{}", " ".repeat(padding)), 9);
        let at = bytes.len() - 8;
        bytes[at..].copy_from_slice(bytemuck::bytes_of(&[1.5f32, -2.0]));
        let weight = open(bytes).unwrap().get("w", &[2]).unwrap();
        assert_eq!(weight.to_f32(), [1.5, -2.0]);
        assert_eq!(weight.bytes().as_ptr().align_offset(4), 0);
    }
}

#[test]
fn get_names_tensor_file_and_shapes() {
    let checkpoint =
        open(file(&one("F64", "[2]", "[0,16]").replace("\"w\"", "\"model.norm.weight\""), 16)).unwrap();
    let error = |name: &str, shape: &[usize]| checkpoint.get(name, shape).unwrap_err().to_string();
    assert_eq!(
        error("model.norm.weight", &[3]),
        "model.safetensors: tensor model.norm.weight: shape is [2], expected [3]"
    );
    assert_eq!(
        error("model.norm.weight", &[2]),
        "model.safetensors: tensor model.norm.weight: type is F64, expected F32, F16 or BF16"
    );
    assert_eq!(
        error("model.norms.weight", &[2]),
        "model.safetensors: tensor model.norms.weight: missing, expected shape [2]; near names: \"model.norm.weight\""
    );
    assert!(error("lm_head.bias", &[2]).ends_with("; the checkpoint has 1 tensors"));
    let info = checkpoint.find("model.norm.weight").unwrap();
    assert_eq!((info.dtype(), info.dtype_name().as_str(), info.bytes()), (None, "F64", 16));
    assert_eq!(checkpoint.total_bytes(), 16);
}

fn shard(name: &str) -> Vec<u8> {
    file(&one("F32", "[1]", "[0,4]").replace("\"w\"", &format!("\"{name}\"")), 4)
}

fn index(dir: &Path, entries: &[(&str, &str)]) {
    let map: serde_json::Map<_, _> = entries.iter().map(|(k, v)| (k.to_string(), (*v).into())).collect();
    fs::write(dir.join(INDEX), serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
}

#[track_caller]
fn open_refused(dir: &Path, what: &str) {
    let error = Checkpoint::open(dir).unwrap_err().to_string();
    assert!(error.contains(what), "{error}");
}

#[test]
fn directories_open_by_index_single_file_or_glob() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    open_refused(
        dir,
        "no weights: expected model.safetensors.index.json, model.safetensors or model*.safetensors",
    );
    fs::write(dir.join("model-b.safetensors"), shard("b")).unwrap();
    fs::write(dir.join("model-a.safetensors"), shard("a")).unwrap();
    fs::write(dir.join("adapter.safetensors"), b"not read").unwrap();
    let names = |c: &Checkpoint| c.tensors().map(|t| t.name().to_owned()).collect::<Vec<_>>();
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.advise_sequential();
    checkpoint.advise_willneed();
    assert_eq!(names(&checkpoint), ["a", "b"]);
    assert_eq!(checkpoint.get("b", &[1]).unwrap().to_f32(), [0.0]);
    index(dir, &[("b", "model-b.safetensors")]);
    assert_eq!(names(&Checkpoint::open(dir).unwrap()), ["b"]);
    assert_eq!(names(&Checkpoint::open(&dir.join("model-a.safetensors")).unwrap()), ["a"]);
    fs::remove_file(dir.join(INDEX)).unwrap();
    fs::write(dir.join(SINGLE), shard("single")).unwrap();
    assert_eq!(names(&Checkpoint::open(dir).unwrap()), ["single"]);
}

#[test]
fn hostile_indexes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a.safetensors"), shard("a")).unwrap();
    fs::write(dir.join("b.safetensors"), shard("a")).unwrap();
    for name in ["../x.safetensors", "..", "/etc/passwd", "x/y.safetensors", "a\0.safetensors", "", "a.bin"] {
        index(dir, &[("a", name)]);
        open_refused(dir, &format!("file name is {}, expected a plain name", quote(name)));
    }
    index(dir, &[("a", "c.safetensors")]);
    open_refused(dir, "model.safetensors.index.json: file \"c.safetensors\" is missing");
    index(dir, &[("a", "a.safetensors"), ("b", "b.safetensors")]);
    open_refused(dir, "b.safetensors: tensor \"a\" is also in ");
    index(dir, &[("x", "a.safetensors")]);
    open_refused(dir, "weight_map puts \"x\" in \"a.safetensors\", but no file has it");
    for (text, what) in [
        (r#"{"weight_map": {"a": "a.safetensors", "\u0061": "b.safetensors"}}"#, "duplicate key \"a\""),
        (r#"{"weight_map": {"a": 1}}"#, "weight_map.\"a\" is 1, expected a string"),
        (r#"{"weight_map": []}"#, "weight_map is a list of 0, expected an object"),
        ("{}", "weight_map is missing"),
    ] {
        fs::write(dir.join(INDEX), text).unwrap();
        open_refused(dir, what);
    }
}

#[cfg(unix)]
#[test]
fn links_may_lead_to_the_cache_and_nowhere_else() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let snapshot = root.path().join("models--a--b/snapshots/0123");
    let blobs = root.path().join("models--a--b/blobs");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("abcd"), shard("a")).unwrap();
    symlink("../../blobs/abcd", snapshot.join(SINGLE)).unwrap();
    assert_eq!(Checkpoint::open(&snapshot).unwrap().tensors().len(), 1);

    fs::write(root.path().join("secret"), shard("a")).unwrap();
    fs::remove_file(snapshot.join(SINGLE)).unwrap();
    symlink(root.path().join("secret"), snapshot.join(SINGLE)).unwrap();
    open_refused(&snapshot, "outside the model's directory");
    let plain = root.path().join("plain");
    fs::create_dir(&plain).unwrap();
    symlink(blobs.join("abcd"), plain.join("model-1.safetensors")).unwrap();
    open_refused(&plain, "\"model-1.safetensors\" is a link to ");
    fs::remove_file(plain.join("model-1.safetensors")).unwrap();
    fs::create_dir(plain.join(SINGLE)).unwrap();
    open_refused(&plain, "not a regular file");
}

/// Seeded mutations of a valid file: an error or tensors, never a panic, and nothing that the `safetensors` crate
/// would refuse.
#[test]
fn mutations_never_panic_and_never_pass_what_the_crate_refuses() {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-bf16/model.safetensors");
    let valid = fs::read(fixture).unwrap();
    let header = u64::from_le_bytes(valid[..8].try_into().unwrap()) as usize + 8;
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let (start, mut runs, mut accepted) = (Instant::now(), 0, 0);
    while runs < 4000 && start.elapsed() < Duration::from_millis(1500) {
        runs += 1;
        let mut bytes = valid.clone();
        for _ in 0..=random(2) {
            let at = random(header.min(bytes.len()));
            match random(5) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = b"{}[],:\"0-.e9\\"[random(13)],
                2 => bytes.truncate(at.max(1)),
                3 => drop(bytes.remove(at)),
                _ => {
                    let from = random(header.min(bytes.len()));
                    bytes[at] = bytes[from];
                }
            }
        }
        let entries = safetensors::parse(Path::new("m"), bytes.len(), |range| Ok(bytes[range].to_vec()));
        if let Ok(entries) = entries {
            accepted += 1;
            assert!(SafeTensors::deserialize(&bytes).is_ok());
            assert!(entries.iter().all(|e| e.range.end <= bytes.len() && e.range.start >= 8));
        }
    }
    assert!(runs > 100 && accepted > 0, "{accepted} of {runs} accepted");
}
