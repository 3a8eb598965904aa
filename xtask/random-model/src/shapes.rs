//! Real models' shapes, and what their `config.json` says.

use serde_json::{Value, json};

/// Whose directory it is: who names its tensors, and lays experts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    HuggingFace,
    Mlx,
    /// gpt-oss with its experts in MXFP4.
    OpenAi,
}

/// A real model's shape.
#[derive(Debug)]
pub struct ModelShape {
    pub name: &'static str,
    pub model_type: &'static str,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    /// Whether the embedding is the head.
    pub tied: bool,
    pub theta: f64,
    pub eps: f64,
    pub experts: Option<ExpertShape>,
    pub latent: Option<LatentShape>,
    pub delta: Option<DeltaShape>,
}

/// Experts in place of the MLP.
#[derive(Debug, Clone, Copy)]
pub struct ExpertShape {
    pub count: usize,
    /// Those that a token goes to.
    pub used: usize,
    /// Their width.
    pub ffn: usize,
    /// Those that every token goes to, beside them.
    pub shared: usize,
    /// Layers in front that have none.
    pub dense: usize,
}

/// Latent attention.
#[derive(Debug, Clone, Copy)]
pub struct LatentShape {
    pub query_rank: usize,
    pub rank: usize,
    /// The part of a head of queries and keys that does not rotate, and the one that does.
    pub nope: usize,
    pub rope: usize,
    pub value: usize,
}

/// A gated delta net in place of attention, but for each fourth layer.
#[derive(Debug, Clone, Copy)]
pub struct DeltaShape {
    /// Heads of keys, and as many of values.
    pub heads: usize,
    pub dim: usize,
    /// Tokens that the convolution sees.
    pub conv: usize,
}

impl DeltaShape {
    /// All but each so many layers have it.
    pub const EVERY: usize = 4;

    /// The part of a head of attention that rotates.
    pub const ROTATES: f64 = 0.25;
}

/// The window of attention of gpt-oss, in every other layer from the first on.
pub const WINDOW: usize = 128;

/// What a yarn stretches: the tokens of the training before it, and by how much.
pub const STRETCHED: (usize, usize) = (4096, 32);

const LLAMA: ModelShape = ModelShape {
    name: "",
    model_type: "llama",
    hidden: 64,
    layers: 4,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    ffn: 160,
    vocab: 512,
    tied: true,
    theta: 10_000.0,
    eps: 1e-5,
    experts: None,
    latent: None,
    delta: None,
};

const fn experts(count: usize, used: usize, ffn: usize) -> Option<ExpertShape> {
    Some(ExpertShape { count, used, ffn, shared: 0, dense: 0 })
}

#[rustfmt::skip]
pub const SHAPES: [ModelShape; 12] = [
    ModelShape { name: "llama-1b", hidden: 2048, layers: 16, heads: 32, kv_heads: 8, head_dim: 64, ffn: 8192, vocab: 128_256,
            theta: 500_000.0, ..LLAMA },
    ModelShape { name: "qwen2.5-0.5b", model_type: "qwen2", hidden: 896, layers: 24, heads: 14, kv_heads: 2, head_dim: 64,
            ffn: 4864, vocab: 151_936, theta: 1e6, ..LLAMA },
    ModelShape { name: "smollm2-135m", hidden: 576, layers: 30, heads: 9, kv_heads: 3, head_dim: 64, ffn: 1536, vocab: 49_152,
            theta: 100_000.0, ..LLAMA },
    ModelShape { name: "tiny", ..LLAMA },
    // A sixth of the layers.
    ModelShape { name: "qwen3-30b-a3b-8", model_type: "qwen3_moe", hidden: 2048, layers: 8, heads: 32, kv_heads: 4, head_dim: 128,
            ffn: 6144, vocab: 151_936, theta: 1e6, experts: experts(128, 8, 768), ..LLAMA },
    ModelShape { name: "tiny-moe", model_type: "qwen3_moe", theta: 1e6, experts: experts(8, 2, 32), ..LLAMA },
    // A third of the layers.
    ModelShape { name: "gpt-oss-20b-8", model_type: "gpt_oss", hidden: 2880, layers: 8, heads: 64, kv_heads: 8, head_dim: 64,
            ffn: 2880, vocab: 201_088, tied: false, theta: 150_000.0, experts: experts(32, 4, 2880), ..LLAMA },
    ModelShape { name: "tiny-gpt-oss", model_type: "gpt_oss", ffn: 32, tied: false, theta: 150_000.0, experts: experts(8, 2, 32),
            ..LLAMA },
    // A sixth of the layers.
    ModelShape { name: "glm-4.7-flash-8", model_type: "glm4_moe_lite", hidden: 2048, layers: 8, heads: 20, kv_heads: 20,
            head_dim: 64, ffn: 10_240, vocab: 154_880, tied: false, theta: 1e6,
            experts: Some(ExpertShape { count: 64, used: 4, ffn: 1536, shared: 1, dense: 1 }),
            latent: Some(LatentShape { query_rank: 768, rank: 512, nope: 192, rope: 64, value: 256 }), ..LLAMA },
    ModelShape { name: "tiny-glm-flash", model_type: "glm4_moe_lite", kv_heads: 4, tied: false, theta: 1e6,
            experts: Some(ExpertShape { count: 8, used: 2, ffn: 32, shared: 1, dense: 1 }),
            latent: Some(LatentShape { query_rank: 32, rank: 64, nope: 32, rope: 16, value: 32 }), ..LLAMA },
    ModelShape { name: "qwen3.5-0.8b", model_type: "qwen3_5_text", hidden: 1024, layers: 24, heads: 8, kv_heads: 2, head_dim: 256,
            ffn: 3584, vocab: 248_320, theta: 1e7, eps: 1e-6, delta: Some(DeltaShape { heads: 16, dim: 128, conv: 4 }), ..LLAMA },
    ModelShape { name: "tiny-qwen3.5", model_type: "qwen3_5_text", head_dim: 64, theta: 1e7, eps: 1e-6,
            delta: Some(DeltaShape { heads: 4, dim: 16, conv: 4 }), ..LLAMA },
];

impl ModelShape {
    /// Whether projections of queries, keys and values have biases.
    pub fn has_qkv_biases(&self) -> bool {
        matches!(self.model_type, "qwen2" | "gpt_oss")
    }

    /// Whether this is gpt-oss: biases everywhere, sinks, windows, and a yarn.
    pub fn is_gpt_oss(&self) -> bool {
        self.model_type == "gpt_oss"
    }

    /// Whether queries and keys have norms.
    pub fn has_head_norms(&self) -> bool {
        matches!(self.model_type, "qwen3_moe" | "qwen3_5_text")
    }

    /// The experts of layer `layer`.
    pub fn experts_of(&self, layer: usize) -> Option<ExpertShape> {
        self.experts.filter(|experts| layer >= experts.dense)
    }

    /// The delta net of layer `layer`.
    pub fn delta_of(&self, layer: usize) -> Option<DeltaShape> {
        self.delta.filter(|_| !(layer + 1).is_multiple_of(DeltaShape::EVERY))
    }

    /// Tokens of context.
    pub fn context(&self) -> usize {
        if self.is_gpt_oss() { STRETCHED.0 * STRETCHED.1 } else { 8192 }
    }

    /// `config.json` with weights of type `dtype` in PyTorch's name.
    pub fn config(&self, form: Form, dtype: &str) -> Value {
        let architecture = match self.model_type {
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3_moe" => "Qwen3MoeForCausalLM",
            "gpt_oss" => "GptOssForCausalLM",
            "glm4_moe_lite" => "Glm4MoeLiteForCausalLM",
            "qwen3_5_text" => "Qwen3_5ForCausalLM",
            _ => "LlamaForCausalLM",
        };
        let mut config = json!({
            "architectures": [architecture],
            "model_type": self.model_type, "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "vocab_size": self.vocab,
            "max_position_embeddings": self.context(), "rms_norm_eps": self.eps, "rope_theta": self.theta, "hidden_act": "silu",
            "tie_word_embeddings": self.tied, "torch_dtype": dtype, "bos_token_id": 1, "eos_token_id": 2,
            "attention_bias": self.is_gpt_oss(), "mlp_bias": false,
        });
        let mut put = |members: Value| {
            let Value::Object(members) = members else { unreachable!("members of an object") };
            members.into_iter().for_each(|(name, value)| config[name] = value);
        };
        match (self.model_type, self.experts) {
            ("gpt_oss", Some(ExpertShape { count, used, .. })) => {
                let (original, factor) = STRETCHED;
                put(json!({
                    "num_local_experts": count, "num_experts_per_tok": used, "sliding_window": WINDOW, "swiglu_limit": 7.0,
                    "layer_types": self.layer_types("sliding_attention", |layer| layer.is_multiple_of(2)),
                    "rope_scaling": {
                        "rope_type": "yarn", "factor": factor as f64, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                        "original_max_position_embeddings": original,
                    },
                }));
                if form == Form::OpenAi {
                    let kept = [
                        "model.layers.*.self_attn",
                        "model.layers.*.mlp.router",
                        "model.embed_tokens",
                        "lm_head",
                    ];
                    put(
                        json!({ "quantization_config": { "quant_method": "mxfp4", "modules_to_not_convert": kept } }),
                    );
                }
            }
            ("glm4_moe_lite", Some(ExpertShape { count, used, ffn, shared, dense })) => put(json!({
                "n_routed_experts": count, "num_experts_per_tok": used, "moe_intermediate_size": ffn,
                "n_shared_experts": shared, "first_k_dense_replace": dense, "norm_topk_prob": true,
                "routed_scaling_factor": SCALE, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
            })),
            (_, Some(ExpertShape { count, used, ffn, .. })) => put(json!({
                "num_experts": count, "num_experts_per_tok": used, "moe_intermediate_size": ffn, "norm_topk_prob": true,
            })),
            (_, None) => {}
        }
        if let Some(LatentShape { query_rank, rank, nope, rope, value }) = self.latent {
            put(json!({
                "q_lora_rank": query_rank, "kv_lora_rank": rank, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope,
                "v_head_dim": value,
            }));
        }
        let Some(DeltaShape { heads, dim, conv }) = self.delta else { return config };
        put(json!({
            "layer_types": self.layer_types("linear_attention", |layer| self.delta_of(layer).is_some()),
            "full_attention_interval": DeltaShape::EVERY, "linear_conv_kernel_dim": conv, "linear_key_head_dim": dim,
            "linear_value_head_dim": dim, "linear_num_key_heads": heads, "linear_num_value_heads": heads,
            "attn_output_gate": true,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": self.theta, "partial_rotary_factor": DeltaShape::ROTATES,
            },
        }));
        match form {
            // mlx-lm knows the whole model by its name, and the text as a part of it.
            Form::Mlx => json!({
                "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "torch_dtype": dtype,
                "tie_word_embeddings": self.tied, "text_config": config,
            }),
            _ => config,
        }
    }

    /// `layer_types`, of which those of `other` layers are called `kind`.
    fn layer_types(&self, kind: &str, other: impl Fn(usize) -> bool) -> Vec<String> {
        let name = |layer| if other(layer) { kind } else { "full_attention" };
        (0..self.layers).map(|layer| name(layer).to_owned()).collect()
    }
}

/// What multiplies the weights of GLM's experts.
pub const SCALE: f64 = 1.8;
