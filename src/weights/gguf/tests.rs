mod delta;
mod experts;
mod latent;
mod lfm2;
mod mamba;
mod muse_glimmer;
mod vocabularies;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::pretokenizer::{Letters, TABLE, pre_name};
use crate::error::Result;
use crate::forward::{Architecture, generation_from_gguf};
use crate::quant::Matrix;
use crate::text::{ChatTemplate, Message, RenderOptions, Specials, Tokenizer};
use crate::weights::{Adopted, AdoptedDims, Checkpoint, Form, TensorInfo};

/// Numbers of the types of values.
const U32: u32 = 4;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

/// A GGUF file in parts, to be written rightly or wrongly.
#[derive(Clone)]
struct File {
    magic: [u8; 4],
    version: u32,
    tensor_count: Option<u64>,
    entry_count: Option<u64>,
    /// Keys, types, bytes of values.
    entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    /// Names, sizes (innermost first), types, offsets.
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    alignment: usize,
    data: usize,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn strings(texts: &[&str]) -> Vec<u8> {
    let head = [STRING.to_le_bytes().to_vec(), (texts.len() as u64).to_le_bytes().to_vec()].concat();
    texts.iter().fold(head, |bytes, text| [bytes, string(text)].concat())
}

fn list(kind: u32, words: &[u32]) -> Vec<u8> {
    let head = [kind.to_le_bytes().to_vec(), (words.len() as u64).to_le_bytes().to_vec()].concat();
    words.iter().fold(head, |bytes, word| [bytes, word.to_le_bytes().to_vec()].concat())
}

impl File {
    /// A model of two tensors, 64 bytes of data, and what a loader asks for.
    fn new() -> Self {
        let file = Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: 64,
        };
        file.with("general.architecture", STRING, string("llama"))
            .with("llama.attention.head_count", U32, 2u32.to_le_bytes())
            .tensor("output_norm.weight", &[8], 0, 0)
            .tensor("a", &[2, 4], 0, 32)
    }

    fn with(mut self, key: &str, kind: u32, value: impl Into<Vec<u8>>) -> Self {
        self.entries.retain(|(other, ..)| other != key.as_bytes());
        self.entries.push((key.as_bytes().to_vec(), kind, value.into()));
        self
    }

    fn tensor(mut self, name: &str, sizes: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.push((name.to_owned(), sizes.to_vec(), kind, offset));
        self
    }

    /// The second tensor in place of `a`.
    fn second(mut self, sizes: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.pop();
        self.tensor("a", sizes, kind, offset)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            out.extend((key.len() as u64).to_le_bytes());
            out.extend(key);
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for (name, sizes, kind, offset) in &self.tensors {
            out.extend(string(name));
            out.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend((0..self.data).map(|i| i as u8));
        out
    }
}

fn open(bytes: Vec<u8>) -> Result<Checkpoint> {
    Checkpoint::gguf_from_static(Path::new("m.gguf"), bytes.leak())
}

#[track_caller]
fn refused(file: &File, what: &str) {
    refused_bytes(file.bytes(), what);
}

#[track_caller]
fn refused_bytes(bytes: Vec<u8>, what: &str) {
    let start = Instant::now();
    let error = open(bytes).unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: ") && error.contains(what), "{error}");
    assert!(error.len() < 1000, "{} bytes of error", error.len());
    assert!(start.elapsed() < Duration::from_secs(1), "{what}: {:?}", start.elapsed());
}

#[test]
fn both_versions_are_read() {
    for version in [2, 3] {
        let checkpoint = open(File { version, ..File::new() }.bytes()).unwrap();
        assert_eq!(checkpoint.total_bytes(), 64);
        let a = checkpoint.find("a").unwrap();
        assert_eq!((a.shape(), a.dtype_name().as_str()), (&[4, 2][..], "F32"));
        assert_eq!(checkpoint.get("output_norm.weight", &[8]).unwrap().bytes()[..4], [0, 1, 2, 3]);
    }
}

#[test]
fn hostile_headers_are_refused() {
    refused(&File { magic: *b"GGML", ..File::new() }, "magic is \"GGML\", expected \"GGUF\"");
    refused(&File { magic: *b"FUGG", ..File::new() }, "magic is \"FUGG\"");
    refused(&File { version: 3 << 24, ..File::new() }, "version is 0x03000000: the file is byte-swapped");
    refused(&File { version: 0, ..File::new() }, "version is 0, expected 2 or 3");
    refused(&File { version: 1, ..File::new() }, "version is 1, expected 2 or 3");
    refused(&File { version: 4, ..File::new() }, "version is 4, expected 2 or 3");
    let tensors = |count| File { tensor_count: Some(count), ..File::new() };
    refused(&tensors(u64::MAX), "tensor count: -1, expected no negative count");
    refused(&tensors(1 << 62), "tensor count: 4611686018427387904, but the");
    refused(&tensors(3), "name of tensor 2");
    let entries = |count| File { entry_count: Some(count), ..File::new() };
    refused(&entries(1 << 63), "metadata count: -9223372036854775808, expected no negative count");
    refused(&entries(1 << 40), "metadata count: 1099511627776, but the");
    // As many as the bytes could hold, and more than any file has.
    let flood = File { tensor_count: Some(1 << 18), data: 25 << 18, ..File::new() };
    refused(&flood, "tensor count: 262144, expected at most 131072");
    let flood = File { entry_count: Some(1 << 17), data: 14 << 17, ..File::new() };
    refused(&flood, "metadata count: 131072, expected at most 65536");
}

#[test]
fn hostile_metadata_are_refused() {
    let with = |key: &str, kind: u32, value: &[u8]| File::new().with(key, kind, value);
    refused(&with("", U32, &[0; 4]), "key 2 of the metadata: length 0, expected 1 to 65535 bytes");
    refused(&with(&"k".repeat(65536), U32, &[0; 4]), "length 65536, expected 1 to 65535");
    let mut file = File::new();
    file.entries[0].0 = b"\xffey".to_vec();
    refused(&file, "key 0 of the metadata: not UTF-8");
    let mut file = File::new();
    let twin = file.entries[1].clone();
    file.entries.push(twin);
    refused(&file, "duplicate key \"llama.attention.head_count\"");
    refused(&with("k", 13, &[0; 4]), "type of \"k\": 13, expected 0 to 12");
    refused(&with("k", u32::MAX, &[0; 4]), "type of \"k\": 4294967295");
    refused(&with("k", BOOL, &[2]), "metadata \"k\": 2, expected a boolean, 0 or 1");
    let booleans = [&BOOL.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 7]].concat();
    refused(&with("k", ARRAY, &booleans), "metadata \"k\"[1]: 7, expected a boolean");
    let nested = [&ARRAY.to_le_bytes()[..], &1u64.to_le_bytes(), &list(U32, &[1])].concat();
    refused(&with("k", ARRAY, &nested), "metadata \"k\": a list of lists");
    refused(&with("k", ARRAY, &[99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "type of \"k\": 99");
    // Lengths past the end of the file.
    refused(&with("k", STRING, &u64::MAX.to_le_bytes()), "metadata \"k\": 18446744073709551615 bytes, but");
    let long = [&U64.to_le_bytes()[..], &(1u64 << 61).to_le_bytes()].concat();
    refused(&with("k", ARRAY, &long), "length of the list \"k\": 2305843009213693952, but the");
    let long = [&STRING.to_le_bytes()[..], &1u64.to_le_bytes(), &(1u64 << 40).to_le_bytes()].concat();
    refused(&with("k", ARRAY, &long), "metadata \"k\"[0]: 1099511627776 bytes, but");
}

#[test]
fn hostile_alignments_are_refused() {
    let with = |n: u32| File::new().with("general.alignment", U32, n.to_le_bytes());
    for n in [0, 3, 48, 131_072, u32::MAX] {
        refused(&with(n), &format!("general.alignment is {n}, expected a power of two, at most 65536"));
    }
    let negative = File::new().with("general.alignment", 5, (-32i32).to_le_bytes());
    refused(&negative, "general.alignment is -32, expected an integer, not negative");
    let text = File::new().with("general.alignment", STRING, string("32"));
    refused(&text, "general.alignment is \"32\", expected an integer");
    let mut file = File::new().with("general.alignment", U32, 65536u32.to_le_bytes());
    (file.alignment, file.data) = (65536, 65536 + 32);
    file.tensors[1].3 = 65536;
    open(file.bytes()).unwrap();
}

#[test]
fn hostile_tensors_are_refused() {
    let second = |sizes: &[u64], kind, offset| File::new().second(sizes, kind, offset);
    refused(&second(&[1; 5], 0, 32), "tensor \"a\": 5 dimensions, expected at most 4");
    refused(&second(&[2, 0], 0, 32), "tensor \"a\": a dimension of 0, expected 1 or more");
    refused(&second(&[u64::MAX], 0, 32), "tensor \"a\": a dimension of -1, expected 1 or more");
    refused(&second(&[1 << 32, 1 << 32], 0, 32), "of F32 at offset 32 overflows");
    refused(&second(&[1 << 62, 1], 0, 32), "of F32 at offset 32 overflows");
    refused(&second(&[1 << 61], 0, 1 << 63), "of F32 at offset 9223372036854775808 overflows");
    // The end alone, its padding, and the beginning of the data before it.
    refused(&second(&[8], 0, u64::MAX - 31), "overflows");
    refused(&second(&[1], 0, u64::MAX - 63), "offset 18446744073709551552 and its padding overflow");
    refused(&second(&[1], 0, u64::MAX - 127), "and its padding overflow");
    refused(&second(&[33], 2, 32), "rows of 33, expected a multiple of 32, a block of Q4_0");
    refused(&second(&[128, 2], 12, 32), "rows of 128, expected a multiple of 256, a block of Q4_K");
    refused(&second(&[8], 4, 32), "type is 4, which was removed from the format");
    refused(&second(&[8], 31, 32), "type is 31, which was removed");
    refused(&second(&[8], 4711, 32), "type is 4711, which is not known");
    refused(&second(&[256], 16, 32), "type is IQ2_XXS, expected F32, F16, BF16, Q4_0,");
    refused(&second(&[8], 0, 16), "offset 16, expected a multiple of the alignment, 32");
    refused(&second(&[8], 0, 0), "offset 0 lies in another tensor, which ends at 32");
    refused(&second(&[8], 0, 64), "tensor \"a\": offset 64 and 32 bytes end past the 64 bytes of data");
    refused(&second(&[9], 0, 32), "tensor \"a\": offset 32 and 36 bytes end past the 64 bytes of data");
    let named = |name: &str| File::new().tensor(name, &[1], 0, 0);
    refused(&named(""), "name of tensor 2: length 0, expected 1 to 63 bytes");
    refused(&named(&"n".repeat(64)), "name of tensor 2: length 64, expected 1 to 63");
    refused(&named("a"), "tensor \"a\": declared twice");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = File::new()
        .with("tokenizer.ggml.tokens", ARRAY, strings(&["a", "", "bc"]))
        .with("tokenizer.ggml.scores", ARRAY, list(F32, &[0, 1, 2]))
        .with("flag", BOOL, [1])
        .tensor("scalar", &[], 0, 64);
    let bytes = File { data: 68, ..file }.bytes();
    open(bytes.clone()).unwrap();
    for len in 0..bytes.len() {
        let error = open(bytes[..len].to_vec()).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: "), "{len}: {error}");
    }
}

/// Every byte of a header changed, to several values: an error or a model, never a panic.
#[test]
fn a_changed_byte_never_panics() {
    let file = File::new()
        .with("tokenizer.ggml.model", STRING, string("llama"))
        .with("tokenizer.ggml.tokens", ARRAY, strings(&["<unk>", "<s>", "</s>", "a", "b", "ab"]))
        .with("tokenizer.ggml.scores", ARRAY, list(F32, &[0; 6]))
        .with("tokenizer.ggml.token_type", ARRAY, list(5, &[2, 3, 3, 1, 1, 1]));
    let bytes = file.bytes();
    for at in 0..bytes.len() - file.data {
        for change in [1, 2, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= change;
            if let Ok(checkpoint) = open(bytes) {
                let metadata = checkpoint.gguf().unwrap();
                let _ = metadata.tokenizer_json();
                let _ = Architecture::from_gguf(&checkpoint);
            }
        }
    }
}

/// A model that can be run but for what a test changes; no tokenizer.
fn model(arch: &str) -> File {
    let file = File { data: 64 + 9 * 256, ..File::new() }.with("general.architecture", STRING, string(arch));
    let norm = ["layer_norm_rms_epsilon", "layer_norm_epsilon"].map(|key| format!("{arch}.attention.{key}"));
    let file = norm.iter().fold(file, |file, key| file.with(key, F32, 1e-5f32.to_le_bytes()));
    let keys = [
        ("context_length", 64u32),
        ("embedding_length", 8),
        ("block_count", 1),
        ("feed_forward_length", 8),
        ("attention.head_count", 2),
    ];
    keys.iter().fold(file, |file, (key, n)| file.with(&format!("{arch}.{key}"), U32, n.to_le_bytes())).tensor(
        "token_embd.weight",
        &[8, 8],
        0,
        64,
    )
}

#[test]
fn hostile_configurations_are_refused_by_the_files_keys() {
    use crate::config::RopeScaling;
    let config =
        |file: File| Architecture::from_gguf(&open(file.bytes()).unwrap()).map(|of| of.config().clone());
    let plain = config(model("llama")).unwrap();
    assert_eq!((plain.vocab_size, plain.head_dim, plain.tie_word_embeddings), (8, 4, true));
    assert_eq!((plain.rope.theta, &plain.rope.scaling), (10_000.0, &RopeScaling::None));
    let refused = |file: File, what: &str| {
        let error = config(file).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: ") && error.contains(what), "{error}");
    };
    let with = |key: &str, n: u32| model("llama").with(&format!("llama.{key}"), U32, n.to_le_bytes());
    for key in ["context_length", "embedding_length", "block_count", "feed_forward_length"] {
        let mut file = model("llama");
        file.entries.retain(|(other, ..)| other != format!("llama.{key}").as_bytes());
        refused(file, &format!("llama.{key} is missing, expected an integer"));
        refused(with(key, 1 << 30), &format!("llama.{key} is 1073741824, expected"));
        refused(with(key, 0), &format!("llama.{key} is 0, expected"));
    }
    refused(with("attention.head_count_kv", 4), "llama.attention.head_count_kv is 4, expected");
    refused(
        with("embedding_length", 9),
        "llama.attention.key_length is missing, expected an integer: 2 heads",
    );
    refused(with("attention.key_length", 5), "an even number of rotated elements");
    refused(
        with("attention.value_length", 8),
        "llama.attention.value_length is 8, expected 4, the length of a key",
    );
    refused(with("rope.dimension_count", 2), "llama.rope.dimension_count is 2, expected from 4 to 4");
    refused(with("expert_count", 8), "llama.expert_used_count is missing, expected an integer");
    let none = model("gemma2").with("gemma2.expert_count", U32, 8_u32.to_le_bytes());
    refused(none, "gemma2.expert_count is 8, expected 0 or absent");
    refused(with("vocab_size", 9), "llama.vocab_size is 9, expected 8, the rows of token_embd.weight");
    refused(with("context_length", 1 << 28), "llama.context_length is 268435456, expected");
    let float = |key: &str, x: f32| model("llama").with(&format!("llama.{key}"), F32, x.to_le_bytes());
    for x in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        refused(float("attention.layer_norm_rms_epsilon", x), "llama.attention.layer_norm_rms_epsilon is");
        refused(float("rope.freq_base", x), "llama.rope.freq_base is");
    }
    let scaled = |kind: &str, factor: f32| {
        float("rope.scaling.factor", factor).with("llama.rope.scaling.type", STRING, string(kind))
    };
    let scaling = |file: File| config(file).unwrap().rope.scaling;
    assert_eq!(scaling(scaled("linear", 2.5)), RopeScaling::Linear { factor: 2.5 });
    assert_eq!(scaling(float("rope.scale_linear", 4.0)), RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaling(scaled("none", 4.0)), RopeScaling::None);
    assert_eq!(scaling(scaled("linear", 1.0)), RopeScaling::None);
    refused(scaled("linear", -2.0), "llama.rope.scaling.factor is -2.0, expected");
    refused(scaled("yarn", f32::NAN), "llama.rope.scaling.factor is NaN, expected");
    refused(
        scaled("ntk", 2.0),
        "llama.rope.scaling.type is \"ntk\", expected none, linear, yarn, or longrope",
    );
    refused(scaled("longrope", 2.0), "llama.rope.scaling.type is \"longrope\"");

    // Factors as tensors: the data are bytes 0, 1, 2, 3, … over and over.
    let at = |file: File, name: &str, len: u64, offset: u64| file.tensor(name, &[len], 0, offset);
    let factors = |file: File, name: &str, len: u64| at(file, name, len, 64 + 256);
    let expected = [0x4342_4140, 0x4746_4544].map(f32::from_bits).to_vec();
    let good = factors(model("llama"), "rope_freqs.weight", 2);
    assert_eq!(scaling(good), RopeScaling::Factors { factors: expected });
    let tiny = at(model("llama"), "rope_freqs.weight", 2, 512);
    refused(tiny, "rope_freqs.weight is 3.8204714e-37, expected numbers from");
    refused(factors(model("llama"), "rope_freqs.weight", 3), "shape is [3], expected [2]");
    refused(factors(model("phi3"), "rope_factors_long.weight", 2), "rope_factors_short.weight is missing");
    let phi = |n: u32| model("phi2").with("phi2.rope.dimension_count", U32, n.to_le_bytes());
    refused(phi(5), "phi2.rope.dimension_count is 5, expected from 2 to 4");
    refused(phi(3), "an even number of rotated elements");
    assert_eq!(config(phi(2)).unwrap().rope.dims, 2);
    let gemma = model("gemma2").with("gemma2.attn_logit_softcapping", F32, f32::NAN.to_le_bytes());
    refused(gemma, "gemma2.attn_logit_softcapping is NaN");
    // Types that are wrong for those who read them.
    let architecture = |kind: u32, value: Vec<u8>| model("llama").with("general.architecture", kind, value);
    refused(architecture(U32, vec![0; 4]), "general.architecture is 0, expected a string");
    refused(architecture(STRING, string("clip")), "is \"clip\", expected one of afmoe, bert, cohere2, ");
    let latin = [&1u64.to_le_bytes()[..], b"\xff"].concat();
    refused(architecture(STRING, latin), "general.architecture is \"\u{fffd}\", expected UTF-8");
    let mut nameless = model("llama");
    nameless.entries.retain(|(key, ..)| key != b"general.architecture");
    refused(nameless, "general.architecture is missing, expected one of afmoe, bert, cohere2, ");
    let heads = |kind: u32, value: Vec<u8>| model("llama").with("llama.attention.head_count", kind, value);
    refused(heads(F32, vec![0; 4]), "head_count is 0.0, expected an integer");
    refused(heads(U32, vec![0; 4]), "head_count is 0, expected 1 or more");
    refused(heads(ARRAY, list(5, &[2, 4])), "the same integer for each layer");
    let sampling = model("llama").with("general.sampling.temp", F32, (-1.0f32).to_le_bytes());
    let checkpoint = open(sampling.bytes()).unwrap();
    let error = generation_from_gguf(checkpoint.gguf().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: general.sampling.temp is -1.0, expected"), "{error}");
    const SUPPRESSED: &str = "tokenizer.ggml.suppress_tokens";
    let suppressed = |ids: &[u32]| {
        let checkpoint = open(model("llama").with(SUPPRESSED, ARRAY, list(5, ids)).bytes()).unwrap();
        let generation = generation_from_gguf(checkpoint.gguf().unwrap());
        generation.map(|it| it.suppress_tokens).map_err(|e| e.to_string())
    };
    assert_eq!(suppressed(&[7, 2]), Ok(vec![2, 7]));
    let error = suppressed(&[u32::MAX]).unwrap_err();
    assert!(
        error.starts_with(&format!("m.gguf: {SUPPRESSED} is a list of 1 integers, expected token ids")),
        "{error}"
    );
}

/// Rows of each head, stored in pairs, come out in the order that rotates halves; in blocks, whole rows move.
#[test]
fn rows_are_put_back_in_order() {
    // Two heads of four rows of 32 elements in Q8_0, 34 bytes each.
    let file = File { data: 64 + 288 + 32, ..File::new() };
    let file = file.tensor("blk.0.attn_q.weight", &[32, 8], 8, 64);
    let bytes = file.tensor("blk.0.attn_q.bias", &[8], 0, 64 + 288).bytes();
    let start = bytes.len() - 288 - 32;
    let rows: Vec<Vec<u8>> = bytes[start..][..8 * 34].chunks(34).map(<[u8]>::to_vec).collect();
    let biases: Vec<Vec<u8>> = bytes[start + 288..].chunks(4).map(<[u8]>::to_vec).collect();
    let mut checkpoint = open(bytes).unwrap();
    checkpoint
        .adopt(|info| {
            let Some(leaf) = info.name().strip_prefix("blk.0.attn_q.") else { return Vec::new() };
            let (name, form) =
                (format!("model.layers.0.self_attn.q_proj.{leaf}"), Form::Pairs { heads: 2, dims: 4 });
            vec![Adopted { name, form, rows: None, of: None, dims: AdoptedDims::Same }]
        })
        .unwrap();
    let matrix = checkpoint.matrix("model.layers.0.self_attn.q_proj", [8, 32]).unwrap();
    let Matrix::Quantized(weight) = matrix else { panic!("{matrix:?}") };
    let got: Vec<&[u8]> = weight.planes()[0].bytes().chunks(34).collect();
    let order = [0, 2, 1, 3, 4, 6, 5, 7];
    let expected: Vec<&[u8]> = order.iter().map(|&row: &usize| &rows[row][..]).collect();
    assert_eq!(got, expected);
    let bias = checkpoint.get("model.layers.0.self_attn.q_proj.bias", &[8]).unwrap();
    assert_eq!(bias.bytes(), order.map(|row| &biases[row][..]).concat());
    let error = checkpoint.get("model.layers.0.self_attn.q_proj.weight", &[8, 32]).unwrap_err().to_string();
    let name = "model.layers.0.self_attn.q_proj.weight (blk.0.attn_q.weight in the file)";
    assert_eq!(error, format!("m.gguf: tensor {name}: type is Q8_0, expected F32, F16 or BF16"));
}

#[test]
fn a_fused_tensor_is_taken_apart() {
    let file = File { data: 64 + 24, ..File::new() };
    let bytes = file.tensor("blk.3.attn_qkv.bias", &[6], 0, 64).bytes();
    let mut checkpoint = open(bytes.clone()).unwrap();
    let parts = [("q", 0..4), ("k", 4..5), ("v", 5..6)];
    let part = |(name, rows): (&str, std::ops::Range<usize>)| Adopted {
        name: format!("{name}.bias"),
        form: Form::Plain,
        rows: Some(rows),
        of: None,
        dims: AdoptedDims::Same,
    };
    let fused = |info: &TensorInfo| info.name() == "blk.3.attn_qkv.bias";
    checkpoint.adopt(|info| if fused(info) { parts.clone().map(part).to_vec() } else { Vec::new() }).unwrap();
    // Two names that become one.
    let twice = |_: &TensorInfo| {
        vec![Adopted {
            name: "x".to_owned(),
            form: Form::Plain,
            rows: None,
            of: None,
            dims: AdoptedDims::Same,
        }]
    };
    let error = checkpoint.adopt(twice).unwrap_err().to_string();
    assert!(error.contains("tensor \"x\" is also in m.gguf"), "{error}");
    let mut checkpoint = open(bytes).unwrap();
    checkpoint.adopt(|info| if fused(info) { parts.clone().map(part).to_vec() } else { Vec::new() }).unwrap();
    for (part, rows, first) in [("q", 4, 64), ("k", 1, 80), ("v", 1, 84)] {
        let weight = checkpoint.get(&format!("{part}.bias"), &[rows]).unwrap();
        assert_eq!((weight.bytes()[0], weight.bytes().len()), (first, rows * 4));
    }
}

/// A split model: names, numbers and counts must agree, and every part must be there.
#[test]
fn parts_are_found_and_checked() {
    let part = |number: u16, count: u16, tensors: i32, name: &str| {
        let mut file = File { data: 32, ..File::new() };
        file.tensors = vec![(name.to_owned(), vec![8], 0, 0)];
        let file = file.with("split.no", 2, number.to_le_bytes());
        file.with("split.count", 2, count.to_le_bytes()).with("split.tensors.count", 5, tensors.to_le_bytes())
    };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, file: File| fs::write(path(name), file.bytes()).unwrap();
    let (first, second) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
    let refused = |name: &str, what: &str| {
        let error = Checkpoint::open(&path(name)).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    write(first, part(0, 2, 2, "a"));
    refused(first, "part \"m-00002-of-00002.gguf\" is missing beside it");
    write(second, part(1, 2, 2, "b"));
    let checkpoint = Checkpoint::open(&path(first)).unwrap();
    assert_eq!(checkpoint.tensors().len(), 2);
    assert_eq!(Checkpoint::find_gguf(dir.path()).unwrap(), Some(path(first)));
    refused(second, "part 2 of 2; give the first, \"m-00001-of-00002.gguf\"");

    write(second, part(0, 2, 2, "b"));
    refused(first, "number: 0, count: 2, tensors: 2 }), expected Split { number: 1, count: 2, tensors: 2 }");
    write(second, part(1, 3, 2, "b"));
    refused(first, "count: 3");
    write(second, part(1, 2, 2, "a"));
    refused(first, "tensor \"a\" is also in");
    write(first, part(0, 2, 3, "a"));
    write(second, part(1, 2, 3, "b"));
    refused(first, "split.tensors.count is 3, but the parts have 2");
    write(first, part(2, 2, 2, "a"));
    refused(first, "split.no is 2, expected an integer below split.count, 2");
    write(first, part(0, 2, -1, "a"));
    refused(first, "split.tensors.count is -1, expected an integer, not negative");
    write(first, part(0, 2000, 2, "a"));
    refused(first, "split.count is 2000, expected at most 1000");
    write(first, part(0, 3, 2, "a"));
    refused(first, "file name is \"m-00001-of-00002.gguf\", expected one ending in \"-00001-of-00003.gguf\"");
    write("m.gguf", part(0, 2, 2, "a"));
    refused("m.gguf", "file name is \"m.gguf\", expected one ending in \"-00001-of-00002.gguf\"");
    let error = Checkpoint::find_gguf(dir.path()).unwrap_err().to_string();
    assert!(error.contains("2 GGUF models, \"m-00001-of-00002.gguf\", \"m.gguf\""), "{error}");
    // A sibling that is a link to somewhere else is not followed.
    let other = tempfile::tempdir().unwrap();
    write(first, part(0, 2, 2, "a"));
    fs::write(other.path().join("b"), part(1, 2, 2, "b").bytes()).unwrap();
    fs::remove_file(path(second)).unwrap();
    std::os::unix::fs::symlink(other.path().join("b"), path(second)).unwrap();
    refused(first, "outside the model's directory");
}

/// Sums and products of numbers from a file wrap nowhere: whatever a key says, it is taken or refused.
#[test]
fn numbers_at_the_limits_of_their_types_are_taken_or_refused() {
    const KEYS: [&str; 12] = [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.scaling.original_context_length",
        "vocab_size",
    ];
    let architectures: BTreeSet<&str> = crate::forward::FAMILIES
        .iter()
        .filter_map(|family| family.gguf.as_ref())
        .flat_map(crate::forward::Gguf::architectures)
        .collect();
    assert!(architectures.contains("phi2"));
    let mut refused = 0;
    for arch in architectures {
        for key in KEYS {
            let name = format!("{arch}.{key}");
            for number in [0, 1, 3, 1 << 16, u64::from(u32::MAX), 1 << 62, 1 << 63, u64::MAX - 1, u64::MAX] {
                let mut file = model(arch).tensor("blk.0.attn_qkv.weight", &[8, 24], 0, 320);
                file.entries.retain(|entry| entry.0 != name.as_bytes());
                let file = file.with(&name, U64, number.to_le_bytes());
                let mut checkpoint = open(file.bytes()).unwrap();
                let taken = Architecture::from_gguf(&checkpoint).and_then(|mut architecture| {
                    architecture.adopt(&mut checkpoint)?;
                    architecture.check_weights(&checkpoint)
                });
                // The file has but two tensors: no model is whole.
                refused += usize::from(taken.is_err());
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
