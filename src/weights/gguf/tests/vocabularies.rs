//! Vocabularies: what is refused of them, which tokens are special, how their pre-tokenizers cut.

use super::*;

#[test]
fn hostile_vocabularies_are_refused() {
    let words = ["<unk>", "<s>", "</s>", "a", "b", "ab"];
    let file = |kind: &str| {
        File::new()
            .with("tokenizer.ggml.model", STRING, string(kind))
            .with("tokenizer.ggml.tokens", ARRAY, strings(&words))
            .with("tokenizer.ggml.scores", ARRAY, list(F32, &[0; 6]))
            .with("tokenizer.ggml.merges", ARRAY, strings(&["a b"]))
    };
    let json = |file: File| open(file.bytes()).unwrap().gguf().unwrap().tokenizer_json();
    let refused = |file: File, what: &str| {
        let error = json(file).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: tokenizer.") && error.contains(what), "{error}");
    };
    for kind in ["llama", "gpt2"] {
        assert!(json(file(kind)).unwrap().is_some());
        let with =
            |key: &str, of: u32, value: &[u8]| file(kind).with(&format!("tokenizer.ggml.{key}"), of, value);
        refused(
            with("tokens", ARRAY, &list(U32, &[1])),
            "tokens is a list of 1 integers, expected a list of strings",
        );
        refused(
            with("tokens", ARRAY, &strings(&[])),
            "tokens is a list of 0 strings, expected 1 to 524288 tokens",
        );
        let twins = strings(&["<unk>", "<s>", "</s>", "a", "a", "ab"]);
        refused(with("tokens", ARRAY, &twins), "tokens[4] is \"a\", expected another text than token 3");
        let latin = [strings(&["a"; 5]), 1u64.to_le_bytes().to_vec(), vec![0xff]].concat();
        let latin = [&STRING.to_le_bytes()[..], &6u64.to_le_bytes(), &latin[12..]].concat();
        refused(with("tokens", ARRAY, &latin), "tokens[5] is \"\u{fffd}\", expected UTF-8");
        refused(
            with("token_type", ARRAY, &list(5, &[1; 5])),
            "token_type is a list of 5 integers, expected a list of 6",
        );
        refused(with("token_type", ARRAY, &list(5, &[7; 6])), "token_type[0] is 7, expected 0 to 6");
        refused(with("token_type", ARRAY, &list(F32, &[1; 6])), "expected a list of 32-bit integers");
        refused(with("add_bos_token", U32, &[1, 0, 0, 0]), "add_bos_token is 1, expected true or false");
        let words = with("model", STRING, &string("rwkv"));
        refused(words, "model is \"rwkv\", expected gpt2, gemma4, llama, bert, t5 or none");
        // Of which llama.cpp would take the token before a text to be 101.
        let words = with("model", STRING, &string("bert"));
        refused(words, "cls_token_id is missing, expected an id below 6");
    }
    let with = |kind: &str, key: &str, of: u32, value: &[u8]| {
        file(kind).with(&format!("tokenizer.ggml.{key}"), of, value)
    };
    refused(
        with("llama", "scores", ARRAY, &list(F32, &[0; 7])),
        "scores is a list of 7 numbers, expected a list of 6",
    );
    refused(with("llama", "scores", ARRAY, &list(U32, &[0; 6])), "expected a list of 32-bit floating-point");
    refused(
        with("llama", "scores", ARRAY, &list(F32, &[f32::NAN.to_bits(); 6])),
        "scores[0] is NaN, expected a number",
    );
    let long = "x".repeat(300);
    let long = strings(&["<unk>", "<s>", "</s>", "a", "b", &long]);
    refused(with("llama", "tokens", ARRAY, &long), "(300 bytes), expected at most 256 characters");
    // Each of these is two shorter ones in as many ways as it is long.
    let runs: Vec<String> = ('a'..='z')
        .flat_map(|c| (1..=256).map(move |len| c.to_string().repeat(len)))
        .chain(('A'..='Z').flat_map(|c| (1..=256).map(move |len| c.to_string().repeat(len))))
        .collect();
    let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
    let flood = with("llama", "tokens", ARRAY, &strings(&runs));
    let flood = flood.with("tokenizer.ggml.scores", ARRAY, list(F32, &vec![0; runs.len()]));
    refused(flood, "tokens is a list of 13312 strings, expected tokens that merge in at most 1048576 ways");
    refused(with("gpt2", "merges", ARRAY, &strings(&["ab"])), "merges[0] is \"ab\", expected two tokens");
    refused(with("gpt2", "merges", STRING, &string("a b")), "merges is \"a b\", expected a list of strings");
    let pre = with("gpt2", "pre", STRING, &string("whitespace"));
    refused(pre, "pre is \"whitespace\", expected a pre-tokenizer that is known, such as llama-bpe");
    refused(
        with("gpt2", "add_bos_token", BOOL, &[1]),
        "add_bos_token is true, expected false: the file names no",
    );
}

/// A vocabulary of the kind `kind`, and further keys of it.
fn vocabulary(kind: &str, words: &[&str], entries: &[(&str, u32, Vec<u8>)]) -> File {
    let file = File::new()
        .with("tokenizer.ggml.model", STRING, string(kind))
        .with("tokenizer.ggml.pre", STRING, string("gpt-2"))
        .with("tokenizer.ggml.tokens", ARRAY, strings(words))
        .with("tokenizer.ggml.scores", ARRAY, list(F32, &vec![0; words.len()]))
        .with("tokenizer.ggml.merges", ARRAY, strings(&[]));
    let with = |file: File, (key, of, value): &(&str, u32, Vec<u8>)| {
        file.with(&format!("tokenizer.ggml.{key}"), *of, value.clone())
    };
    entries.iter().fold(file, with)
}

/// The ids of a text as a template writes it, those of the same text as a user types it, and those that end one.
fn read(file: &File, text: &str) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let checkpoint = open(file.bytes()).unwrap();
    let metadata = checkpoint.gguf().unwrap();
    let template = ChatTemplate::from_source(Path::new("t"), text, BTreeMap::new()).unwrap();
    let rendered = template.render(&[Message::new("user", "")], &RenderOptions::default()).unwrap();
    let tokenizer = metadata.tokenizer(1 << 10).unwrap().unwrap();
    let ids = tokenizer.encode_rendered(&rendered).unwrap();
    (
        ids,
        tokenizer.encode_with(text, Specials { add: false, parse: false }).unwrap(),
        super::super::ends(metadata, 1 << 10).unwrap().1,
    )
}

/// Texts that end turns do so whatever the list of types says, and where there is none.
#[test]
fn control_tokens_are_known_by_their_texts() {
    let words = ["a", "b", "<|im_start|>", "<|im_end|>"];
    let types = |types: &[u32]| vec![("token_type", ARRAY, list(5, types))];
    for types in [vec![], types(&[1; 4]), types(&[1, 1, 1, 5]), types(&[1, 1, 1, 4]), types(&[1, 1, 3, 3])] {
        let file = vocabulary("gpt2", &words, &types);
        assert_eq!(read(&file, "a<|im_end|>b"), (vec![0, 3, 1], vec![0, 1], vec![3]), "{types:?}");
    }
    let words = ["<unk>", "<s>", "</s>", "▁", "a", "<|im_end|>"];
    let (ids, typed, ends) = read(&vocabulary("llama", &words, &[]), "a<|im_end|>");
    assert_eq!((ids, ends), (vec![3, 4, 5], vec![2, 5]));
    assert!(!typed.contains(&5), "{typed:?}");
}

#[test]
fn ends_that_are_none_beside_others_are_dropped() {
    let ends = |words: &[&str]| read(&vocabulary("gpt2", words, &[]), "a").2;
    assert_eq!(ends(&["a", "<|end|>", "<|call|>"]), [1, 2]);
    assert_eq!(ends(&["a", "<|end|>", "<|return|>"]), [1, 2]);
    assert_eq!(ends(&["a", "<|end|>", "<|return|>", "<|call|>"]), [2, 3]);
    assert_eq!(ends(&["a", "<|calls|>", "<|end|>", "<|flush|>"]), [1, 3]);
    assert_eq!(ends(&["a", "</s>", "<eos>"]), [1, 2]);
    // A tag of HTML there, and text.
    let gemma = vocabulary("gpt2", &["a", "</s>", "<|tool_response>"], &[]);
    assert_eq!(read(&gemma, "a</s>"), (vec![0], vec![0], vec![2]));
    // Of tokens that fill in code, those that end a file.
    let code = ["a", "<|fim_prefix|>", "<|fim_pad|>", "<|file_sep|>"];
    assert_eq!(read(&vocabulary("gpt2", &code, &[]), "<|fim_prefix|>a"), (vec![1, 0], vec![0], vec![2, 3]));
    let named = vocabulary("gpt2", &code, &[("fim_pad_token_id", U32, 0u32.to_le_bytes().to_vec())]);
    assert_eq!(read(&named, "a").2, [0, 3]);
}

/// Files have -1 where a vocabulary has no such token.
#[test]
fn ids_outside_the_vocabulary_count_as_none() {
    let words = ["<unk>", "<s>", "</s>", "▁", "a", "<|im_end|>"];
    let keys = ["bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask", "fim_pad", "prefix"];
    for kind in ["llama", "gpt2"] {
        let plain = vocabulary(kind, &words, &[]);
        for (key, id) in keys.iter().flat_map(|key| [6, u32::MAX].map(|id| (key, id))) {
            let key = format!("{key}_token_id");
            let file = vocabulary(kind, &words, &[(key.as_str(), U32, id.to_le_bytes().to_vec())]);
            assert_eq!(read(&file, "a<|im_end|>"), read(&plain, "a<|im_end|>"), "{key} is {id}");
        }
    }
    // No BOS is added that is not there.
    let bos = ("bos_token_id", U32, 9u32.to_le_bytes().to_vec());
    let file = vocabulary("gpt2", &words, &[bos, ("add_bos_token", BOOL, vec![1])]);
    let checkpoint = open(file.bytes()).unwrap();
    let tokenizer = checkpoint.gguf().unwrap().tokenizer(6).unwrap().unwrap();
    assert_eq!(tokenizer.encode("a").unwrap(), [4]);
    // Nor is there one without a vocabulary.
    let file = File::new().with("tokenizer.ggml.eos_token_id", U32, 8u32.to_le_bytes());
    let checkpoint = open(file.bytes()).unwrap();
    assert_eq!(super::super::ends(checkpoint.gguf().unwrap(), 8).unwrap(), (None, vec![]));
    assert_eq!(super::super::ends(checkpoint.gguf().unwrap(), 9).unwrap(), (None, vec![8]));
}

/// GPT-2's character for a byte.
fn character(byte: u8) -> String {
    let itself = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = match itself(&byte) {
        true => u32::from(byte),
        false => 0x100 + (0..byte).filter(|b| !itself(b)).count() as u32,
    };
    char::from_u32(code).unwrap().to_string()
}

/// A vocabulary of bytes alone, in both ways of writing them.
fn bytes_vocabulary(pre: &str) -> File {
    let characters = (0..=255).map(character);
    let words: Vec<String> =
        characters.chain((0..=255).map(|byte| format!("<0x{byte:02X}>"))).chain(["▁".to_owned()]).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let bos = ("bos_token_id", U32, 0u32.to_le_bytes().to_vec());
    vocabulary("gpt2", &words, &[bos, ("pre", STRING, string(pre))])
}

/// Every pattern is one that the library reads, and no character is lost.
#[test]
fn every_pre_tokenizer_keeps_the_text() {
    let text = " It's 12345 déjà-vu, 1²,\r\n\n日本語 한국어 ไทย  👩‍🚀\t\"x\" HelloWORLD\u{a0}y<sentinel:1> ";
    let mut names = BTreeSet::new();
    for name in TABLE.iter().flat_map(|pre| pre.names) {
        assert!(names.insert(*name), "{name} is there twice");
        let checkpoint = open(bytes_vocabulary(name).bytes()).unwrap();
        let tokenizer = checkpoint.gguf().unwrap().tokenizer(1 << 10).unwrap().unwrap();
        let ids = tokenizer.encode_with(text, Specials { add: false, parse: false }).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{name}");
    }
    assert_eq!(names.len(), 90);
}

/// Where texts are split, as Oniguruma and Python's `regex` do with the patterns that the models publish.
#[test]
fn pre_tokenizers_split_as_published() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("afmoe", "x1234567 12 日本", &["x", "1", "234", "567", " ", "12", " ", "日本"]),
        ("superbpe", "a12345 1234²", &["a", "12", "345", " ", "1", "234²"]),
        ("tiny_aya", "12345 1234a", &["12", "345", " ", "123", "4", "a"]),
        ("kimi-k2", "Hello中文WORLD's 1234", &["Hello", "中文", "WORLD's", " ", "123", "4"]),
        ("deepseek-v3", "x1234.foo 日本!", &["x", "123", "4", ".foo", " ", "日本", "!"]),
        ("deepseek-coder", "Hi there 12,x\n", &["Hi", " there", " ", "1", "2", ",", "x", "\n"]),
        ("deepseek-llm", "Hi 中  ", &["Hi", " ", "中", "  "]),
        ("chameleon", "IMGIMGABZ12    x", &["IMGIMGABZ", "1", "2", "    ", "x"]),
        ("youtu", "HelloWorld한국12", &["Hello", "World", "한국", "1", "2"]),
        ("falcon", " 1234`x", &[" ", "123", "4", "`", "x"]),
        ("viking", "Hei, 12 x", &["Hei", ",", " ", "1", "2", " x"]),
        ("qwen35", "re\u{301} x\u{301}y", &["re\u{301}", " x\u{301}y"]),
        ("default", "a+b 12345", &["a", "+", "b", " ", "123", "45"]),
        ("gemma4", "a b\n\nc", &["a b", "\n\n", "c"]),
    ];
    for (name, text, expected) in cases {
        let checkpoint = open(bytes_vocabulary(name).bytes()).unwrap();
        let json = checkpoint.gguf().unwrap().tokenizer_json().unwrap().unwrap();
        let tokenizer = Tokenizer::from_bytes(Path::new(name), &json, 1 << 20).unwrap();
        assert_eq!(tokenizer.pieces(text), *expected, "{name}");
    }
}

/// Gemma 4's BOS is added whatever the file says; others' where it does not say no.
#[test]
fn bos_is_added_as_the_pre_tokenizer_has_it() {
    let ids = |pre: &str, flag: Option<u8>| {
        let flag = flag.map(|flag| ("tokenizer.ggml.add_bos_token", BOOL, [flag]));
        let file =
            flag.into_iter().fold(bytes_vocabulary(pre), |file, (key, of, value)| file.with(key, of, value));
        let checkpoint = open(file.bytes()).unwrap();
        checkpoint.gguf().unwrap().tokenizer(1 << 10).unwrap().unwrap().encode("a").unwrap().len()
    };
    assert_eq!([None, Some(0), Some(1)].map(|flag| ids("gemma4", flag)), [2, 2, 2]);
    assert_eq!([None, Some(0), Some(1)].map(|flag| ids("llama-bpe", flag)), [2, 1, 2]);
    assert_eq!([None, Some(0), Some(1)].map(|flag| ids("qwen2", flag)), [1, 1, 2]);
}

/// What is written in a GGUF file is read from it again.
#[test]
fn pre_tokenizers_have_a_name_to_be_written() {
    for pre in TABLE.iter().filter(|pre| pre.letters == Letters::Bytes) {
        let name = pre_name(pre.splits, pre.nfc, pre.ignore_merges).unwrap();
        let same = TABLE.iter().find(|other| other.names.contains(&name)).unwrap();
        let of = |pre: &super::super::pretokenizer::Pre| (pre.splits, pre.nfc, pre.ignore_merges);
        assert_eq!(of(same), of(pre));
    }
    let qwen2 = TABLE.iter().find(|pre| pre.names.contains(&"qwen2")).unwrap().splits;
    assert_eq!(pre_name(qwen2, true, false), Some("qwen2"));
    assert_eq!(pre_name(qwen2, false, false), Some("stablelm2"));
    assert_eq!(pre_name(qwen2, true, true), None);
    // As DeepSeek publishes it, with line breaks as such.
    let deepseek = TABLE.iter().find(|pre| pre.names.contains(&"deepseek-v3")).unwrap().splits;
    let broken = deepseek[2].replace(r"\r\n", "\r\n");
    assert_eq!(pre_name(&[deepseek[0], deepseek[1], broken.as_str()], false, false), Some("deepseek-v3"));
    assert_eq!(pre_name(&[r"\S+"], false, false), None);
}
