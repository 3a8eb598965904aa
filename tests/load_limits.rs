//! What is refused when a model is loaded, before anything of it is computed.

use backstop::Error;

/// A file of some megabytes of zeros, which a disk need not hold, for steps of half a terabyte.
#[test]
fn a_model_whose_steps_fit_no_memory_is_refused_when_it_is_loaded() {
    const WIDE: usize = 1 << 26;
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2,
        "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": WIDE / 1024, "num_key_value_heads": 1,
        "head_dim": 1024, "vocab_size": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": "float16" });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let layer = "model.layers.0.";
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![2, 2]),
        ("model.norm.weight".to_owned(), vec![2]),
        (format!("{layer}input_layernorm.weight"), vec![2]),
        (format!("{layer}post_attention_layernorm.weight"), vec![2]),
        (format!("{layer}self_attn.q_proj.weight"), vec![WIDE, 2]),
        (format!("{layer}self_attn.k_proj.weight"), vec![1024, 2]),
        (format!("{layer}self_attn.v_proj.weight"), vec![1024, 2]),
        (format!("{layer}self_attn.o_proj.weight"), vec![2, WIDE]),
        (format!("{layer}mlp.gate_proj.weight"), vec![2, 2]),
        (format!("{layer}mlp.up_proj.weight"), vec![2, 2]),
        (format!("{layer}mlp.down_proj.weight"), vec![2, 2]),
    ];
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let info = serde_json::json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name, info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    let files = backstop::ModelFiles::open(dir.path()).unwrap();
    match backstop::Model::load_with(files, backstop::LoadOptions::default()).map(|_| ()) {
        Err(Error::Memory { what, needed, available }) => {
            assert!(what.ends_with(": what a step computes on its way"), "{what}");
            assert!(needed > 500 << 30 && available < needed, "{needed} {available}");
        }
        other => panic!("{other:?}"),
    }
}

/// A model of the fixtures in which a tensor, found by the end of its name, claims to have other dimensions of as many elements.
fn reshaped(name: &str, end: &str, shape: &[usize]) -> Result<(), Error> {
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let tensor = header.iter_mut().find(|(name, _)| name.ends_with(end)).unwrap().1;
    let elements =
        |shape: &[serde_json::Value]| shape.iter().map(|dim| dim.as_u64().unwrap()).product::<u64>();
    assert_eq!(
        elements(tensor["shape"].as_array().unwrap()),
        shape.iter().product::<usize>() as u64,
        "{end}"
    );
    tensor["shape"] = shape.into();
    let header = serde_json::Value::Object(header).to_string();
    let written = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + len..]].concat();
    std::fs::write(dir.path().join("model.safetensors"), written).unwrap();
    let files = backstop::ModelFiles::open(dir.path())?;
    backstop::Model::load_with(files, backstop::LoadOptions::default()).map(drop)
}

/// Experts that lie in one tensor are cut out of it by their rows: of another number of rows, none would be its own.
#[test]
fn stacks_of_other_dimensions_are_refused() {
    reshaped("qwen3_moe-fused", "experts.gate_up_proj", &[8, 12, 32]).unwrap();
    reshaped("gpt_oss-yarn", "experts.down_proj_bias", &[4, 32]).unwrap();
    for (name, end, shape) in [
        ("qwen3_moe-fused", "experts.gate_up_proj", &[8, 32, 12][..]),
        ("qwen3_moe-fused", "experts.gate_up_proj", &[8, 24, 16]),
        ("qwen3_moe-fused", "experts.down_proj", &[16, 32, 3]),
        ("qwen3_moe-fused", "experts.down_proj", &[8, 6, 32]),
        ("gpt_oss-yarn", "experts.down_proj_bias", &[1, 128]),
        ("gpt_oss-yarn", "experts.down_proj_bias", &[8, 16]),
        ("gpt_oss-yarn", "experts.gate_up_proj_bias", &[1, 80]),
        ("gpt_oss-yarn", "experts.gate_up_proj", &[2, 32, 40]),
        ("gpt_oss-yarn", "experts.gate_up_proj", &[4, 20, 32]),
        ("gpt_oss-yarn", "experts.down_proj", &[4, 20, 16]),
        ("gpt_oss-yarn", "self_attn.sinks", &[3, 1]),
        ("glm4_moe-groups", "e_score_correction_bias", &[2, 4]),
    ] {
        match reshaped(name, end, shape) {
            Err(Error::Weight { .. } | Error::Config { .. }) => {}
            other => panic!("{name}: {end} as {shape:?}: {other:?}"),
        }
    }
}
