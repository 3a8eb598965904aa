//! An adapter, made here.

use std::path::Path;

use backstop::Model;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

/// An adapter of PEFT of the built-in model's last values, in the directory `dir`.
pub fn write(dir: &Path, seed: usize) {
    let config = Model::builtin().unwrap().info().config.clone();
    let (width, heads) = (config.hidden_size, config.num_key_value_heads * config.head_dim);
    let values = |len: usize, size: f32| -> Vec<u8> {
        (0..len).flat_map(|i| (size * ((i * 7919 + seed * 31) as f32).sin()).to_le_bytes()).collect()
    };
    let module = format!("base_model.model.model.layers.{}.self_attn.v_proj", config.num_hidden_layers - 1);
    let (low, high) = (values(2 * width, 0.5), values(heads * 2, 0.5));
    let view = |shape: [usize; 2], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
    let tensors = [
        (format!("{module}.lora_A.weight"), view([2, width], &low)),
        (format!("{module}.lora_B.weight"), view([heads, 2], &high)),
    ];
    std::fs::create_dir_all(dir).unwrap();
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(dir.join("adapter_model.safetensors"), bytes).unwrap();
    let settings = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["v_proj"] });
    std::fs::write(dir.join("adapter_config.json"), settings.to_string()).unwrap();
}
