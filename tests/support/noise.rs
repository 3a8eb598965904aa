//! A model of noise, made in a moment: it never ends a text by itself.

use std::fs;
use std::path::Path;

use backstop::{LoadOptions, Model, ModelFiles};

/// A model with a chat template: the fixture `chatml`'s tokenizer, and weights that are noise. It never ends by
/// itself.
pub struct Noise(pub tempfile::TempDir);

impl Noise {
    pub fn new() -> Self {
        Self::of(32, 48, 1, 0)
    }

    /// One of this width, of so many layers; each of its kind is another.
    pub fn of(hidden: usize, intermediate: usize, layers: usize, kind: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/chatml");
        fs::copy(fixture.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        // Neither this file nor its template names a token that ends a turn.
        let config = fs::read_to_string(fixture.join("tokenizer_config.json")).unwrap();
        let config =
            config.replace("\"eos_token\": \"<|im_end|>\",", "").replace("<|im_end|>", ".<|im_end|>");
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let config = format!(
            r#"{{"model_type": "llama", "vocab_size": 305, "hidden_size": {hidden}, "intermediate_size": {intermediate},
            "num_hidden_layers": {layers}, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "max_position_embeddings": 200000, "bos_token_id": null, "eos_token_id": null}}"#
        );
        fs::write(dir.path().join("config.json"), config).unwrap();
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![305, hidden])];
        for index in 0..layers {
            let layer =
                |(name, shape): (&str, Vec<usize>)| (format!("model.layers.{index}.{name}.weight"), shape);
            let of_layer = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![32, hidden]),
                ("self_attn.k_proj", vec![16, hidden]),
                ("self_attn.v_proj", vec![16, hidden]),
                ("self_attn.o_proj", vec![hidden, 32]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![intermediate, hidden]),
                ("mlp.up_proj", vec![intermediate, hidden]),
                ("mlp.down_proj", vec![hidden, intermediate]),
            ];
            tensors.extend(of_layer.map(layer));
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        tensors.push(("lm_head.weight".to_owned(), vec![305, hidden]));
        let (mut file, bytes) = header("F32", 4, &tensors);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ kind << 32;
        for _ in 0..bytes / 4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let uniform = (state >> 40) as f32 / (1 << 24) as f32;
            file.extend((uniform - 0.5).to_le_bytes());
        }
        fs::write(dir.path().join("model.safetensors"), file).unwrap();
        Self(dir)
    }

    /// Without a chat template.
    pub fn plain() -> Self {
        let noise = Self::new();
        fs::remove_file(noise.0.path().join("tokenizer_config.json")).unwrap();
        noise
    }

    pub fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    pub fn load(&self) -> Model {
        Model::load_with(ModelFiles::open(self.0.path()).unwrap(), LoadOptions::default()).unwrap()
    }
}

/// The header of a safetensors file, and the bytes of data that must follow it.
pub fn header(dtype: &str, size: usize, tensors: &[(String, Vec<usize>)]) -> (Vec<u8>, usize) {
    let mut end = 0;
    let entries = tensors.iter().map(|(name, shape)| {
        let start = end;
        end += size * shape.iter().product::<usize>();
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
    });
    let mut text = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    while text.len() % 8 != 0 {
        text.push(' ');
    }
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    (file, end)
}
