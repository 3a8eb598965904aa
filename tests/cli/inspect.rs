//! `backstop inspect`.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use backstop::ModelFiles;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::support::*;

#[test]
fn inspect_tells_what_a_model_is() {
    let ran = ok(&["inspect"]);
    let files = ModelFiles::builtin().unwrap();
    for part in [
        format!("model         {}\n", files.name()),
        format!("architecture  llama: {} layers, hidden ", files.config().num_hidden_layers),
        format!("context       {} tokens trained, ", files.config().max_position_embeddings),
        "template      yes\n".to_owned(),
        "backend       auto takes ".to_owned(),
        "backends      metal: ".to_owned(),
        "\n\ncontext  ".to_owned(),
    ] {
        assert!(ran.out.contains(&part), "{part}: {}", ran.out);
    }
    assert_eq!(ran.err, "");

    let built_in = json(&ok(&["inspect", "--json"]));
    assert_eq!(
        (&built_in["builtin"], &built_in["weights"]["bytes"]),
        (&true.into(), &files.checkpoint.total_bytes().into())
    );

    let cases = fs::read_dir(fixture("models")).unwrap().map(|entry| entry.unwrap().path());
    let mut seen = 0;
    for dir in cases.filter(|path| path.is_dir()) {
        let shown = json(&ok(&["inspect", "--json", dir.to_str().unwrap()]));
        let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        let architecture = &shown["architecture"];
        // Of a model that it is a part of, the text's; and one family has names of its own.
        let text = config.get("text_config").unwrap_or(&config);
        for (ours, theirs, gpt2) in [
            ("model_type", "model_type", "model_type"),
            ("layers", "num_hidden_layers", "n_layer"),
            ("hidden_size", "hidden_size", "n_embd"),
            ("attention_heads", "num_attention_heads", "n_head"),
            ("vocab_size", "vocab_size", "vocab_size"),
        ] {
            let said = [theirs, gpt2].into_iter().find_map(|name| text.get(name));
            let said = said.or_else(|| config.get(theirs)).cloned();
            // Layers may be a list alone, and one family has no attention.
            let listed = || Some(Value::from(text.get("layers_block_type")?.as_array()?.len()));
            let Some(said) = said.or_else(listed) else {
                assert_eq!((ours, &architecture["model_type"]), ("attention_heads", &"mamba2".into()));
                continue;
            };
            let flat = said == "qwen2_5_vl";
            assert!(flat || architecture[ours] == said, "{}: {ours}", dir.display());
        }
        for row in shown["memory"].as_array().unwrap() {
            let part = |name: &str| row[name].as_u64().unwrap();
            // A cache grows by pages of 64 tokens, and arrays of MLX by 256.
            let growth = if row["backend"] == "cpu" { 64 } else { 256 };
            let tokens = part("context").next_multiple_of(growth);
            let of_tokens = shown["kv_cache"]["bytes_per_token"].as_u64().unwrap() * tokens;
            // A layer that guesses further tokens, in f32, does so on the CPU where nobody says otherwise.
            let of_head = |name: &str| architecture[name].as_u64().unwrap();
            let guesses = shown["guesses_ahead"] == true && row["backend"] == "cpu";
            let of_layer = 2 * of_head("key_value_heads") * of_head("head_dim") * 4 * tokens;
            let ahead = if guesses { of_layer } else { 0 };
            assert_eq!(part("kv_cache"), of_tokens + part("recurrent_states") + ahead, "{}", dir.display());
            let parts = ["weights", "kv_cache", "activations", "reserve"].map(part);
            assert_eq!(part("total"), parts.iter().sum::<u64>());
        }
        let table = ok(&["inspect", dir.to_str().unwrap()]).out;
        assert!(
            table.contains(&format!("architecture  {}: ", architecture["model_type"].as_str().unwrap())),
            "{table}"
        );
        seen += 1;
    }
    assert!(seen >= 20, "{seen} fixtures");
    refused(
        &["inspect", fixture("models/llama-bf16").to_str().unwrap(), "--ctx", "300"],
        2,
        "error: --ctx is 300, expected at most 256, what the model was trained for",
    );
}

/// GGUF's blocks are larger in the forms that MLX has kernels for; what is MLX's own is what it is.
#[test]
fn inspect_counts_weights_in_the_form_of_each_backend() {
    let weights = |name: &str| {
        let shown = json(&ok(&["inspect", "--json", fixture(name).to_str().unwrap()]));
        let rows = shown["memory"].as_array().unwrap();
        let row = rows.iter().find(|row| row["backend"] == "mlx").unwrap();
        (shown["weights"]["bytes"].as_u64().unwrap(), row["weights"].as_u64().unwrap())
    };
    let (stored, mlx) = weights("quantized/llama-affine4");
    assert_eq!(mlx, stored);
    for name in ["gguf/blocks-32", "gguf/blocks-256"] {
        let (stored, mlx) = weights(name);
        assert!(mlx > stored, "{name}: {stored} in the file, {mlx} on MLX");
    }
}

#[test]
fn inspect_counts_experts() {
    let dir = fixture("models/qwen3_moe-norm");
    let ran = ok(&["inspect", dir.to_str().unwrap()]);
    assert!(ran.out.contains("experts       8 of 6 a layer, 3 for each token\n"), "{}", ran.out);
    assert!(ran.out.contains("mlp.experts.*.up_proj.weight"), "{}", ran.out);
    let shown = json(&ok(&["inspect", "--json", dir.to_str().unwrap()]));
    let experts = serde_json::json!({ "count": 8, "used": 3, "intermediate_size": 6 });
    assert_eq!(shown["architecture"]["experts"], experts);
    assert_eq!(built_in_experts(), Value::Null);
}

fn built_in_experts() -> Value {
    json(&ok(&["inspect", "--json"]))["architecture"]["experts"].clone()
}

/// 16 GB of weights that no disk holds: their pages would come as zeroes, and reading them would take seconds.
#[test]
fn inspect_reads_headers_only() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072}"#;
    fs::write(dir.path().join("config.json"), config).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![128_256, 4096]),
        ("model.norm.weight".to_owned(), vec![4096]),
        ("lm_head.weight".to_owned(), vec![128_256, 4096]),
    ];
    for layer in 0..32 {
        let shapes: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![4096]),
            ("self_attn.q_proj", vec![4096, 4096]),
            ("self_attn.k_proj", vec![1024, 4096]),
            ("self_attn.v_proj", vec![1024, 4096]),
            ("self_attn.o_proj", vec![4096, 4096]),
            ("post_attention_layernorm", vec![4096]),
            ("mlp.gate_proj", vec![14_336, 4096]),
            ("mlp.up_proj", vec![14_336, 4096]),
            ("mlp.down_proj", vec![4096, 14_336]),
        ];
        tensors.extend(shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    let (header, bytes) = header("BF16", 2, &tensors);
    let mut file = fs::File::create(dir.path().join("model.safetensors")).unwrap();
    file.write_all(&header).unwrap();
    file.set_len((header.len() + bytes) as u64).unwrap();

    let started = Instant::now();
    let child = command(&["inspect", "--json", dir.path().to_str().unwrap()]).spawn().unwrap();
    let (ran, faults) = ended_with_faults(child);
    let took = started.elapsed();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(json(&ran)["weights"]["bytes"], bytes);
    assert_eq!(json(&ran)["parameters"], 8_030_261_248_u64);
    assert!(took < Duration::from_secs(1), "{took:?}");
    // Every page that it used is a fault, of 4 KB in its own memory; of a file, of up to 64 KB.
    assert!(faults < (64 << 20) / 4096, "{faults} page faults");
}

/// As [`ended`], with the process's page faults: its peak of memory would be that of this process where it was made from it.
fn ended_with_faults(mut child: Child) -> (Ran, u64) {
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the process is our child and not yet waited for; both pointers are to values of our own.
    let id = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(id, child.id() as libc::pid_t);
    // SAFETY: zeroes are a valid `rusage`, and the call filled it.
    let usage = unsafe { usage.assume_init() };
    let faults = (usage.ru_minflt + usage.ru_majflt) as u64;
    (Ran { code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)), out, err }, faults)
}

/// A quantized matrix is one tensor of the shape that it stands for, whatever it is stored in.
#[test]
fn inspect_shows_quantized_matrices_as_what_they_stand_for() {
    for (name, kind) in [
        ("llama-affine4", "affine4 g64"),
        ("llama-gptq4-order", "affine4 g32"),
        ("llama-awq4", "affine4 g64"),
    ] {
        let dir = fixture("quantized").join(name);
        let shown = json(&ok(&["inspect", "--json", dir.to_str().unwrap()]));
        let rows = shown["weights"]["table"].as_array().unwrap();
        let up = rows.iter().find(|row| row["name"] == "model.layers.*.mlp.up_proj").unwrap();
        let expected = serde_json::json!([kind, [64, 64], 2]);
        assert_eq!(serde_json::json!([up["type"], up["shape"], up["tensors"]]), expected, "{name}");
        let norm = rows.iter().find(|row| row["name"] == "model.norm.weight").unwrap();
        assert_eq!(norm["type"], "F32", "{name}");
        // 96 rows of the tied embedding; Q and O of 64, K and V of 32 rows, three of the feed-forward; five norms.
        let parameters = 96 * 64 + 2 * (64 + 32 + 32 + 64 + 3 * 64) * 64 + 5 * 64;
        assert_eq!(shown["parameters"], parameters, "{name}");
    }
    let dir = fixture("quantized/llama-mixed");
    let table = ok(&["inspect", dir.to_str().unwrap()]).out;
    for kind in [
        "affine3 g64",
        "affine5 g32",
        "affine6 g64",
        "affine8 g32",
        "mxfp4",
        "nvfp4",
        "mxfp8",
        "affine2 g128",
        "affine4 g32",
        "F32",
    ] {
        assert!(table.contains(kind), "{kind}: {table}");
    }
}

/// Codes beside their scales, as what they become; one of them is declared in a file of its own.
#[test]
fn inspect_shows_published_forms_as_what_they_become() {
    for (name, kind) in [
        ("llama-fp8", "fp8 g32"),
        ("qwen3_moe-fp8", "mxfp8"),
        ("llama-pack4", "affine4 g32"),
        ("qwen3-int8", "affine8 g64"),
        ("qwen3-float8", "fp8 g64"),
        ("llama-nvfp4-pack", "fp4 g16"),
        ("llama-mxfp4-pack", "mxfp4"),
        ("qwen3-modelopt-nvfp4", "fp4 g16"),
        ("llama-modelopt-fp8", "fp8 g64"),
        ("llama-nvfp4-global", "fp4 g16"),
    ] {
        let dir = fixture("quantized").join(name);
        let shown = json(&ok(&["inspect", "--json", dir.to_str().unwrap()]));
        let rows = shown["weights"]["table"].as_array().unwrap();
        let query = rows.iter().find(|row| row["name"] == "model.layers.*.self_attn.q_proj").unwrap();
        let expected = serde_json::json!([kind, [64, 64], 1]);
        assert_eq!(serde_json::json!([query["type"], query["shape"], query["tensors"]]), expected, "{name}");
    }
}

/// Of a model of no known family: the type, and the keys and weights that no family has.
#[test]
fn what_no_family_understands_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-default");
    let config = std::fs::read_to_string(fixture.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    (config["model_type"], config["num_experts_per_tok"]) = ("elephant".into(), 2.into());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let weight = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
    let names = ["model.layers.0.mlp.experts.7.w1.weight", "model.layers.0.input_layernorm.weight"];
    let bytes = safetensors::serialize(names.map(|name| (name, weight.clone())), None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let ran = backstop(&["inspect", dir.path().to_str().unwrap()]);
    let error = ran.err;
    assert_eq!(ran.code, Some(1), "{error}");
    assert!(error.contains("model_type is \"elephant\", expected one of llama, mistral, "), "{error}");
    let said = "\nkeys that no family has: num_experts_per_tok\nweights that no family has: \
        model.layers.*.mlp.experts.*.w1.weight";
    assert!(error.contains(said), "{error}");
}

#[test]
fn inspect_tells_what_encoders_are_for() {
    let embeds = "embeddings    32 elements, mean of all tokens";
    let cases: [(&str, &[&str]); 3] = [
        (
            "bert-mean",
            &[", of length 1 (as its files say)\n", "template      none, and it generates no text\n"],
        ),
        (
            "gemma3_text-dense",
            &[
                ", 2 dense, of length 1 (as its files say)\n",
                ", a window on both sides of 24 tokens in 3 of 4",
            ],
        ),
        (
            "bert-cross",
            &[
                ", of length 1 (no file says how)\n",
                "scores        one of a pair of texts: a cross-encoder\n",
            ],
        ),
    ];
    for (name, parts) in cases {
        let dir = fixture("encoders").join(name);
        let ran = ok(&["inspect", dir.to_str().unwrap()]);
        for part in [&[embeds, " tokens, no output head\n"], parts].concat() {
            assert!(ran.out.contains(part), "{name}, {part}: {}", ran.out);
        }
        let shown = json(&ok(&["inspect", "--json", dir.to_str().unwrap()]));
        assert_eq!((&shown["generates"], &shown["embeddings"]["dimensions"]), (&false.into(), &32.into()));
        assert_eq!(shown["labels"] == 1, name == "bert-cross", "{name}");
    }
    let qwen3 = fixture("encoders").join("qwen3-last");
    let shown = json(&ok(&["inspect", "--json", qwen3.to_str().unwrap()]));
    assert_eq!(
        (&shown["generates"], &shown["embeddings"]["pooling"]),
        (&true.into(), &"the last token".into())
    );
    let dir = fixture("encoders").join("bert-mean");
    let ran = backstop(&["run", "--model", dir.to_str().unwrap(), "a"]);
    assert!(
        ran.code != Some(0) && ran.err.contains("it reads whole texts and generates none"),
        "{}",
        ran.err
    );
}

#[test]
fn memory_is_told_of_each_of_several_ranks() {
    let path = fixture("models/qwen2-bf16");
    let path = path.to_str().unwrap();
    let [alone, both] = [&["--ranks", "1"], &["--ranks", "2"]]
        .map(|more| json(&ok(&[&["inspect", path, "--json"], &more[..]].concat())));
    assert_eq!((&alone["ranks"], &both["ranks"]), (&1.into(), &2.into()));
    let of = |told: &Value| {
        let on_mlx = |need: &&Value| need["backend"] == "mlx";
        let need = told["memory"].as_array().unwrap().iter().find(on_mlx).unwrap().clone();
        ["weights", "kv_cache"].map(|field| need[field].as_u64().unwrap())
    };
    let ([weights, kv], [part, kv_part]) = (of(&alone), of(&both));
    assert_eq!(kv_part, kv / 2);
    // Embedding, norms and head are whole on each.
    assert!(part < weights && 2 * part > weights, "{part} of {weights}");
    let all_on_mlx = both["memory"].as_array().unwrap().iter().all(|need| need["backend"] == "mlx");
    assert!(all_on_mlx, "{both}");
    refused(
        &["inspect", path, "--ranks", "5"],
        2,
        "error: --ranks is 5 for a model with 4 heads, expected one, or a number that divides its heads and widths",
    );
}
