//! What is refused, and in which words.

use backstop::ModelFiles;
use backstop::backend::cpu::Isa;
use backstop::backend::kv::KvType;
use backstop::backend::ops::OpKind;

use crate::support::*;

#[test]
fn hostile_options_are_refused_in_their_own_words() {
    let number = "a number from 0 to 100";
    let whole = format!("expected a whole number from 1 to {}", usize::MAX);
    let cases: [(&[&str], String); 17] = [
        (&["--temperature", "NaN"], format!("--temperature is NaN, expected {number}")),
        (&["--temperature", "inf"], format!("--temperature is inf, expected {number}")),
        (&["--temperature", "-1"], format!("--temperature is -1, expected {number}")),
        (&["--temperature", "1e9"], format!("--temperature is 1000000000, expected {number}")),
        (&["--top-p", "0"], "--top-p is 0, expected a number above 0, at most 1".into()),
        (&["--top-p", "-inf"], "--top-p is -inf, expected a number above 0, at most 1".into()),
        (&["--min-p", "NaN"], "--min-p is NaN, expected a number from 0 to 1".into()),
        (&["--min-p", "1.5"], "--min-p is 1.5, expected a number from 0 to 1".into()),
        (&["--repeat-penalty", "0"], "--repeat-penalty is 0, expected a number from 0.1 to 10".into()),
        (&["--repeat-penalty", "-inf"], "--repeat-penalty is -inf, expected a number from 0.1 to 10".into()),
        (&["--top-k", "9223372036854775808"], "--top-k is 9223372036854775808, expected 0 to 1048576".into()),
        (&["--presence-penalty", "3"], "--presence-penalty is 3, expected a number from -2 to 2".into()),
        (
            &["--frequency-penalty", "NaN"],
            "--frequency-penalty is NaN, expected a number from -2 to 2".into(),
        ),
        (
            &["--logit-bias", "3=101"],
            "--logit-bias is 101 for token 3, expected biases from -100 to 100".into(),
        ),
        (&["--logit-bias", "3=1,3=2"], "--logit-bias is token 3 twice, expected each token once".into()),
        (
            &["--logit-bias", "5000=1"],
            "--logit-bias is token 5000, expected token ids of the vocabulary".into(),
        ),
        (&["--isa", "vax"], format!("--isa is vax, expected one of {}", isas())),
    ];
    for (args, expected) in &cases {
        refused(&[&["run", PROMPT], *args].concat(), 2, &format!("error: {expected}"));
    }
    let threads = "expected a whole number from 1 to 4096".to_owned();
    let cases = [
        ("--max-tokens <N>", "0", whole.clone()),
        ("--max-tokens <N>", "-1", whole.clone()),
        ("--max-tokens <N>", "18446744073709551616", whole.clone()),
        ("--ctx <TOKENS>", "0", whole.clone()),
        ("--ctx <TOKENS>", "-1", whole),
        ("--threads <N>", "0", threads.clone()),
        ("--threads <N>", "1000000000", threads),
        ("--top-k <K>", "-1", "invalid digit found in string".into()),
        (
            "--seed <N>",
            "-2",
            format!("expected a whole number from 0 to {}, or -1 for a random one", u64::MAX),
        ),
        ("--temperature <T>", "warm", "invalid float literal".into()),
        ("--logit-bias <ID=BIAS,…>", "3", "expected a token id, = and a number".into()),
    ];
    for (option, value, expected) in cases {
        let name = option.split(' ').next().unwrap();
        let expected = format!(
            "error: invalid value '{value}' for '{option}': {expected}\n\nFor more information, try '--help'."
        );
        refused(&["run", PROMPT, name, value], 2, &expected);
    }
    let expected = "error: invalid value 'quantum' for '--backend <BACKEND>'\n  [possible values: auto, metal, mlx, cpu]";
    refused(
        &["run", "--backend", "quantum"],
        2,
        &format!("{expected}\n\nFor more information, try '--help'."),
    );
}

#[test]
fn a_server_is_not_started_where_it_could_not_serve() {
    let connections = (1_usize << 61).to_string();
    let expected = format!(
        "error: invalid value '{connections}' for '--max-connections <N>': expected a whole number from 1 to 1048576\n\n\
         For more information, try '--help'."
    );
    refused(&["serve", "--max-connections", &connections], 2, &expected);
    let script = "ulimit -n 12; exec \"$0\" serve --port 0";
    let ran = std::process::Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_backstop")]).output();
    let ran = ran.unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    let expected = "error: a server opens files of its own, and one for each connection: raise what ulimit -n says: \
        Too many open files";
    assert!(said.starts_with(expected), "{said}");
}

/// Both say what MLX does: on the CPU they are taken, and it is said that they change nothing.
#[test]
fn what_is_said_of_mlx_changes_nothing_on_the_cpu() {
    let run = ["run", PROMPT, "--max-tokens", "3", "--backend", "Cpu"];
    let plain = ok(&run);
    let ran = ok(&[&run[..], &["--cpu-ops", "attention,linear", "--dtype", "f16"]].concat());
    assert_eq!(ran.out, plain.out);
    let note = "note: --cpu-ops with --dtype changes nothing where the CPU runs the model: it computes every op in f32";
    assert!(ran.err.contains(note) && !plain.err.contains("changes nothing"), "{}", ran.err);
    let names: Vec<&str> = OpKind::ALL.into_iter().map(OpKind::name).collect();
    for (option, typed, value, accepted) in [
        ("--cpu-ops", "attention,softmax", "softmax", names.join(", ")),
        ("--dtype", "q8", "q8", "f32, f16, bf16".to_owned()),
    ] {
        let ran = backstop(&["run", PROMPT, option, typed]);
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        let invalid = format!("error: invalid value '{value}' for '{option} <");
        assert!(ran.err.starts_with(&invalid), "{}", ran.err);
        assert!(ran.err.contains(&format!("[possible values: {accepted}]")), "{}", ran.err);
    }
}

/// Asked for where a model runs or is looked at, told where memory is told, and counted with its scales.
#[test]
fn a_cache_type_is_taken_and_told() {
    let files = ModelFiles::builtin().unwrap();
    for kind in KvType::ALL {
        let bytes = files.kv_token_bytes(kind);
        let told = serde_json::json!({ "type": kind.name(), "bytes_per_token": bytes });
        let typed = ["--kv-type", kind.name(), "--json"];
        let run = ["run", PROMPT, "--max-tokens", "3", "--backend", "cpu"];
        assert_eq!(json(&ok(&[&run[..], &typed].concat()))["kv_cache"], told);
        let inspected = json(&ok(&[&["inspect"], &typed[..]].concat()));
        assert_eq!(inspected["kv_cache"], told);
        let row = &inspected["memory"][0];
        assert_eq!(row["kv_cache"].as_u64().unwrap(), bytes * row["context"].as_u64().unwrap());
        let bench = ["bench", "-p", "8", "-n", "3", "--reps", "1", "--threads", "1", "--backend", "cpu"];
        let benched = json(&ok(&[&bench[..], &typed].concat()));
        assert_eq!(benched["model"]["kv_cache"], told);
        assert_eq!(benched["rows"][0]["kv_bytes_per_token"].as_f64(), Some(2.0 * bytes as f64));
    }
    let ran = ok(&["run", PROMPT, "--max-tokens", "3", "--backend", "cpu", "--kv-type", "q4"]);
    assert!(ran.err.contains("at the peak; KV cache in q4, "), "{}", ran.err);
    for command in [&["run", PROMPT][..], &["chat"], &["bench"], &["inspect"]] {
        let expected =
            "error: invalid value 'q5' for '--kv-type <TYPE>'\n  [possible values: f32, f16, bf16, q8, q4]";
        let expected = format!("{expected}\n\nFor more information, try '--help'.");
        refused(&[command, &["--kv-type", "q5"]].concat(), 2, &expected);
    }
}

fn isas() -> String {
    Isa::variants().into_iter().map(Isa::name).collect::<Vec<_>>().join(", ")
}

#[test]
fn what_cannot_be_run_is_refused_with_what_to_do() {
    let noise = Noise::new();
    let model = noise.path();
    let expected = "error: --ctx is 200001, expected at most 200000, what the model was trained for";
    refused(&["run", PROMPT, "--model", model, "--ctx", "200001"], 2, expected);
    let expected = "error: the prompt has 3 tokens and the context 2: shorten it, or give it a context of up to 200000 (--ctx)";
    refused(&["run", "\u{1}\u{2}\u{3}", "--raw", "--model", model, "--ctx", "2"], 1, expected);

    let expected =
        "error: /no/such/model: does not exist; expected a directory with config.json, or a GGUF file";
    refused(&["run", PROMPT, "--model", "/no/such/model"], 1, expected);
    refused(&["inspect", "/no/such/model"], 1, expected);
    let file = noise.0.path().join("config.json");
    let expected = format!(
        "error: {}: is a file; expected a directory with config.json, or a GGUF file",
        file.display()
    );
    refused(&["chat", "--model", file.to_str().unwrap()], 1, &expected);
    let empty = tempfile::tempdir().unwrap();
    let expected = format!(
        "error: {}: holds no model: it is empty, expected config.json with *.safetensors, or one model's GGUF file",
        empty.path().display()
    );
    refused(&["inspect", empty.path().to_str().unwrap()], 1, &expected);

    let plain = Noise::plain();
    let name = ModelFiles::open(plain.0.path()).unwrap().name();
    let expected = format!(
        "error: --system needs a chat template, and {name} has none: put the instruction into the prompt"
    );
    refused(&["run", PROMPT, "--system", "Be brief.", "--model", plain.path()], 2, &expected);
    let ran = backstop(&["run", PROMPT, "--system", "Be brief.", "--raw", "--model", model]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("'--system <TEXT>' cannot be used with '--raw'"), "{}", ran.err);

    if !cfg!(target_os = "macos") {
        let ran = backstop(&["run", PROMPT, "--backend", "metal"]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
        assert!(ran.err.starts_with("error: backend metal: "), "{}", ran.err);
        assert!(ran.err.contains("try --backend"), "{}", ran.err);
    }
}

#[test]
fn help_and_usage() {
    assert!(ok(&["run", "--help"]).out.contains("--repeat-penalty"));
    assert_eq!(ok(&["--version"]).out, format!("backstop {}\n", env!("CARGO_PKG_VERSION")));
    let ran = backstop(&["run", "a", "b", "c"]);
    assert_eq!(ran.code, Some(2));
    let expected = "error: \"a\" is no model, and several words follow: quote the whole text, or name a model before it\n";
    assert_eq!(ran.err, expected);
}

#[test]
fn a_cache_of_prompts_outlives_a_run_and_is_nobody_elses() {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let prompt = "Once upon a time there was a girl who had a red ball. ".repeat(22);
    let run = ["run", "--backend", "cpu", "--max-tokens", "3", "--json", "--cache-dir", path, &prompt];
    let [first, second] = [(); 2].map(|()| json(&ok(&run)));
    let whole = (first["prompt_tokens"].as_u64().unwrap() - 1) / 64 * 64;
    assert!(whole >= 256 && first["cached_tokens"] == 0 && second["cached_tokens"] == whole, "{second}");
    assert_eq!(first["tokens"], second["tokens"]);

    set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let what = "others may write to it (mode 777): chmod 700 it, or name another directory";
    refused(&run, 1, &format!("error: {path}: {what}"));
    let ran = backstop(&["run", "--cache-disk", "1GiB", "x"]);
    assert!(ran.code == Some(2) && ran.err.contains("--cache-dir <DIR>"), "{}", ran.err);
}
