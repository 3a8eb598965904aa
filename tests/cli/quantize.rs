//! `backstop quantize`.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::*;

/// The names in a directory, hidden ones too.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        (fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_quantized_model_runs() {
    let noise = Noise::new();
    let dir = tempfile::tempdir().unwrap();
    fs::write(noise.0.path().join("pytorch_model.bin"), "weights of another kind").unwrap();
    for (mode, bits, kind, factor) in
        [("affine", "8", "affine8 g32", 0.25 + 2.0 / 32.0), ("mxfp4", "4", "mxfp4", 0.1328125)]
    {
        let out = dir.path().join(mode);
        let args =
            ["quantize", noise.path(), "--mode", mode, "--bits", bits, "--group", "32", "-o", text(&out)];
        let ran = ok(&args);
        assert_eq!(ran.out, "");
        // The feed-forward is 48 wide.
        let tail = "8 matrices quantized, 4 tensors kept, 1 matrices among them whose rows are not whole groups of 32; ";
        assert!(
            ran.err.starts_with(&format!("{}: ", out.display())) && ran.err.contains(tail),
            "{}",
            ran.err
        );
        assert_eq!(
            names(&out),
            [
                "config.json",
                "model.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
                "tokenizer_config.json"
            ]
        );
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        let expected = json!({ "group_size": 32, "bits": bits.parse::<u8>().unwrap(), "mode": mode });
        assert_eq!((&config["quantization"], &config["quantization_config"]), (&expected, &expected));
        assert_eq!(config["vocab_size"], 305);

        let shown = json(&ok(&["inspect", "--json", text(&out)]));
        let types: Vec<_> = (shown["weights"]["types"].as_array().unwrap().iter())
            .map(|of| {
                (of["type"].as_str().unwrap(), of["tensors"].as_u64().unwrap(), of["bytes"].as_u64().unwrap())
            })
            .collect();
        let elements = 2 * 305 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 2 * 48 * 32;
        let rest = ("F32", 4, 4 * (3 * 32 + 32 * 48));
        let quantized = (kind, 8, (f64::from(elements) * 4.0 * factor) as u64);
        let mut expected = [rest, quantized];
        expected.sort_unstable();
        assert_eq!(types, expected);
        let run = [
            "run",
            PROMPT,
            "--raw",
            "--max-tokens",
            "4",
            "--backend",
            "cpu",
            "--json",
            "--model",
            text(&out),
        ];
        assert_eq!(json(&ok(&run))["tokens"].as_array().map(Vec::len), Some(4), "{mode}");
    }
    assert_eq!(names(dir.path()), ["affine", "mxfp4"]);
}

#[test]
fn a_gguf_file_is_written_and_run() {
    let noise = Noise::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("noise.gguf");
    let ran = ok(&["quantize", noise.path(), "--to", "gguf", "--type", "q8_0", "-o", text(&out)]);
    assert!(ran.err.contains("8 matrices quantized, 4 tensors kept, 1 matrices among them"), "{}", ran.err);
    assert_eq!(names(dir.path()), ["noise.gguf"]);
    let run = |model: &str| {
        let args =
            ["run", PROMPT, "--raw", "--max-tokens", "6", "--backend", "cpu", "--json", "--model", model];
        let ran = json(&ok(&args));
        (ran["prompt_tokens"].as_u64(), ran["tokens"].as_array().map(Vec::len))
    };
    assert_eq!(run(text(&out)), run(noise.path()));
}

#[test]
fn what_cannot_be_quantized_is_refused_in_one_line() {
    let noise = Noise::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = text(&out);
    let model = noise.path();
    let refuse = |more: &[&str], code, what: &str| {
        refused(&[&["quantize", model, "-o", out], more].concat(), code, &format!("error: {what}"));
    };
    refuse(&["--bits", "7"], 2, "--bits is 7, expected 2, 3, 4, 5, 6 or 8");
    refuse(&["--group", "16"], 2, "--group is 16, expected 32, 64 or 128");
    refuse(&["--mode", "mxfp4", "--group", "64"], 2, "--group is 64, expected 32, the group of mxfp4");
    refuse(
        &["--type", "Q8_0"],
        2,
        "--type is for --to gguf; --mode, --bits and --group are what --to mlx has",
    );
    refuse(&["--to", "gguf", "--bits", "4"], 2, "--bits is for --to mlx; --type is what --to gguf has");
    refuse(
        &["--to", "gguf", "--type", "Q9"],
        2,
        "--type is Q9, expected one of F16, Q8_0, Q6_K, Q5_K_M, Q5_1, Q5_0, Q4_K_M, Q4_1, Q4_0, IQ4_NL, IQ4_XS, Q3_K_M, Q2_K",
    );
    refuse(&["--mode", "nf4"], 2, "--mode is nf4, expected affine or mxfp4");
    refuse(&[], 1, &format!("{model}: has no matrix whose rows are whole groups of 64"));
    let gguf = fixture("gguf/whole.gguf");
    let gguf = text(&gguf);
    refused(
        &["quantize", gguf, "-o", out],
        1,
        &format!("error: {gguf}: is in GGUF; expected a directory of safetensors"),
    );
    // The model itself is no place to write.
    let what = format!("error: {model}: exists; expected a new name (remove it, or name another)");
    refused(&["quantize", model, "--group", "32", "-o", model], 1, &what);

    let weights = noise.0.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // The head, the last tensor: row 304 is its last.
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let what = "tensor lm_head.weight: row 304 holds a NaN or an infinity, expected finite values";
    refuse(&["--group", "32"], 1, &format!("{}: {what}", weights.display()));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn types_are_chosen_under_a_size() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/stories");
    let read = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity/text.txt");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (to, target) in [("gguf", "5.5bpw"), ("mlx", "0.9MB")] {
        let out = path(to);
        let chosen = ["quantize", model, "--to", to, "--target", target, "--text", read, "--tokens", "32"];
        let ran = ok(&[&chosen[..], &["-o", &out]].concat());
        let told = ran.err.lines().find(|line| line.contains("bits a weight, KL of about 0.0")).unwrap();
        assert!(told.matches(" in ").count() > 1 && !told.contains("measured"), "{told}");
        let size = json(&ok(&["inspect", "--json", &out]))["weights"]["bytes"].as_u64().unwrap();
        assert!((820_000..=904_000).contains(&size), "{to}: {size}");
        assert!(!ok(&["run", PROMPT, "--raw", "--max-tokens", "4", "--model", &out]).out.is_empty());
        let taken = format!("error: {out}: exists; expected a new name (remove it, or name another)");
        refused(&[&chosen[..], &["-o", &out]].concat(), 1, &taken);
    }
    let out = path("none");
    let refuse = |more: &[&str], code, what: &str| {
        let args = [&["quantize", model, "-o", &out], more].concat();
        refused(&args, code, what);
    };
    let asked = ["--target", "5bpw", "--text", read];
    let both = |more: &[&'static str]| [&asked[..], more].concat();
    refuse(
        &both(&["--to", "gguf", "--type", "Q8_0"]),
        2,
        "error: --target chooses the types that --type names: one of them",
    );
    refuse(&both(&["--bits", "4"]), 2, "error: --target chooses the bits that --bits names: one of them");
    refuse(&both(&["--mode", "mxfp4"]), 2, "error: --target is for affine groups, and for --to gguf");
    let small = ["--target", "0.1MB", "--text", read];
    refuse(
        &small,
        1,
        &format!(
            "error: {model}: cannot have 0.61 bits a weight: with the smallest types it has 2.52, 0.4 MB"
        ),
    );
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_second_quantization_is_not_silent() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("again.gguf");
    let model = fixture("quantized/llama-affine4");
    let args = ["quantize", text(&model), "-o", text(&out), "--to", "gguf", "--type", "Q4_K_M"];
    let ran = ok(&args);
    let said = "llama-affine4 is quantized already: its values are decoded and rounded anew";
    assert!(ran.err.contains(said), "{}", ran.err);
    assert_eq!(names(dir.path()), ["again.gguf"]);
    let table = ok(&["inspect", text(&out)]).out;
    assert!(table.contains("Q8_0 "), "the value projections, whose rows are no blocks of 256: {table}");
}

#[test]
fn experts_in_mxfp4_stay_so_in_stacks() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("models/gpt_oss-limit");
    for (to, name) in
        [(&["--group", "32"][..], "mlx"), (&["--to", "gguf", "--type", "Q8_0"][..], "experts.gguf")]
    {
        let out = dir.path().join(name);
        let args = [&["quantize", text(&model), "-o", text(&out)][..], to].concat();
        let ran = ok(&args);
        assert!(!ran.err.contains("quantized already"), "MXFP4 stays: {}", ran.err);
        let shown = ok(&["inspect", text(&out)]).out;
        assert!(shown.to_lowercase().contains("mxfp4 "), "{shown}");
    }
    assert_eq!(names(dir.path()), ["experts.gguf", "mlx"]);
}

/// A model of 400 MB on paper: its file is a hole.
fn large(dir: &Path) -> PathBuf {
    let model = dir.join("large");
    fs::create_dir(&model).unwrap();
    let config = r#"{"model_type": "llama", "vocab_size": 390000, "hidden_size": 256, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": true,
        "max_position_embeddings": 128, "bos_token_id": null, "eos_token_id": null}"#;
    fs::write(model.join("config.json"), config).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![390_000, 256]),
        (layer("input_layernorm"), vec![256]),
        (layer("self_attn.q_proj"), vec![256, 256]),
        (layer("self_attn.k_proj"), vec![256, 256]),
        (layer("self_attn.v_proj"), vec![256, 256]),
        (layer("self_attn.o_proj"), vec![256, 256]),
        (layer("post_attention_layernorm"), vec![256]),
        (layer("mlp.gate_proj"), vec![64, 256]),
        (layer("mlp.up_proj"), vec![64, 256]),
        (layer("mlp.down_proj"), vec![256, 64]),
        ("model.norm.weight".to_owned(), vec![256]),
    ];
    let (header, bytes) = header("F32", 4, &tensors);
    let path = model.join("model.safetensors");
    fs::write(&path, &header).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((header.len() + bytes) as u64).unwrap();
    model
}

/// Sends `signal` to a run in the middle of writing, and gives its exit code.
fn interrupted(model: &Path, out: &Path, signal: i32) -> Option<i32> {
    let partial = out.with_file_name(".out.backstop-partial");
    // What an earlier one left is not this one's writing.
    let _ = fs::remove_dir_all(&partial);
    let mut child = command(&["quantize", text(model), "-o", text(out)]).spawn().unwrap();
    let weights = partial.join("whole/model.safetensors");
    let started = Instant::now();
    while !weights.metadata().is_ok_and(|meta| meta.len() > 1_000_000) {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        assert!(!out.exists());
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: `kill` takes any process and signal; this one is a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
    child.wait().unwrap().code()
}

#[test]
fn interrupted_runs_leave_no_half_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = large(dir.path());
    let out = dir.path().join("out");
    assert_eq!(interrupted(&model, &out, libc::SIGINT), Some(130));
    assert_eq!(names(dir.path()), ["large"]);

    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGHUP] {
        assert_eq!(interrupted(&model, &out, signal), None);
        assert_eq!(names(dir.path()), [".out.backstop-partial", "large"]);
    }
    // The next run takes over what that one left.
    let noise = Noise::new();
    ok(&["quantize", noise.path(), "--group", "32", "-o", text(&out)]);
    assert_eq!(names(dir.path()), ["large", "out"]);
    assert!(out.join("tokenizer.json").exists());
}

/// Runs the program where no file may become longer than `most` bytes: a write past it fails there, as on a disk that is full.
fn within(most: u64, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    let set = move || {
        // SAFETY: the pointer is to a value of our own, and the call may be made between fork and exec.
        match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
    ended(command.spawn().unwrap())
}

/// A write that fails at any byte of what is written is one line of error, and leaves nothing behind.
#[test]
fn a_disk_that_is_full_leaves_nothing() {
    let noise = Noise::new();
    let text_of = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity/text.txt");
    let commands: [&[&str]; 3] = [
        &["quantize", noise.path(), "--group", "32", "-o"],
        &["quantize", noise.path(), "--to", "gguf", "--type", "Q8_0", "-o"],
        &["perplexity", text_of, "--window", "128", "--backend", "cpu", "--positions"],
    ];
    for command in commands {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let args = [command, &[text(&out)]].concat();
        ok(&args);
        let files = match out.is_dir() {
            true => names(&out).iter().map(|name| out.join(name)).collect(),
            false => vec![out.clone()],
        };
        let longest = files.iter().map(|file| fs::metadata(file).unwrap().len()).max().unwrap();
        if out.is_dir() {
            fs::remove_dir_all(&out).unwrap()
        } else {
            fs::remove_file(&out).unwrap()
        }
        for most in [0, 1, 23, 24, 1000, longest / 3, longest / 2 + 1, longest - 1] {
            let ran = within(most, &args);
            assert_eq!((ran.code, ran.err.lines().count()), (Some(1), 1), "{args:?} {most}: {}", ran.err);
            assert!(ran.err.contains("File too large"), "{args:?} {most}: {}", ran.err);
            assert!(names(dir.path()).is_empty(), "{args:?} {most}: {:?}", names(dir.path()));
        }
        assert_eq!(within(longest, &args).code, Some(0));
    }
}
