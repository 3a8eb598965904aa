//! The tensors of a GGUF file, with the types of llama.cpp's `llama_tensor_get_type` for its type.

use backstop::quant::GgmlType;
use backstop::tensor::DType;
use backstop::weights::writers::gguf::{Spec, TensorType};

use super::FileType;
use crate::shapes::{DeltaShape, ExpertShape, LatentShape, ModelShape};

/// Elements of a super-block: rows of other lengths take an older type.
const SUPER_BLOCK: usize = GgmlType::Q4_K.block().0;

/// All of them, in the order of the file.
pub fn tensors(shape: &ModelShape, file_type: FileType) -> Vec<Spec> {
    let mut list = List { shape, file_type, prefix: String::new(), all: Vec::new() };
    // What is the head is finer.
    list.matrix("token_embd", shape.vocab, shape.hidden, shape.tied);
    for layer in 0..shape.layers {
        list.prefix = format!("blk.{layer}.");
        list.layer(layer);
    }
    list.prefix.clear();
    list.exact("output_norm.weight", &[shape.hidden]);
    if !shape.tied {
        list.matrix("output", shape.vocab, shape.hidden, true);
    }
    list.all
}

struct List<'a> {
    shape: &'a ModelShape,
    file_type: FileType,
    /// What the names begin with.
    prefix: String,
    all: Vec<Spec>,
}

impl List<'_> {
    fn push(&mut self, name: &str, kind: TensorType, dims: &[usize]) {
        self.all.push(Spec { name: format!("{}{name}", self.prefix), kind, shape: dims.into() });
    }

    /// What stays in `f32`: vectors, routers, convolutions.
    fn exact(&mut self, name: &str, dims: &[usize]) {
        self.push(name, TensorType::Dense(DType::F32), dims);
    }

    fn matrix(&mut self, module: &str, rows: usize, columns: usize, finer: bool) {
        self.stack(module, &[rows, columns], finer);
    }

    fn stack(&mut self, module: &str, dims: &[usize], finer: bool) {
        let columns = dims.last().copied().unwrap_or(1);
        let blocks = TensorType::Blocks;
        let kind = match (self.file_type, finer, columns.is_multiple_of(SUPER_BLOCK)) {
            (FileType::F16, ..) => TensorType::Dense(DType::F16),
            (FileType::Bf16, ..) => TensorType::Dense(DType::BF16),
            (FileType::Q8_0, ..) => blocks(GgmlType::Q8_0),
            (FileType::Mxfp4, ..) if dims.len() > 2 => blocks(GgmlType::MXFP4),
            (FileType::Mxfp4, ..) => blocks(GgmlType::Q8_0),
            (FileType::Q4_0, false, _) => blocks(GgmlType::Q4_0),
            (FileType::Q4_0 | FileType::Q4KM, true, true) => blocks(GgmlType::Q6_K),
            (FileType::Q4_0 | FileType::Q4KM, true, false) => blocks(GgmlType::Q8_0),
            (FileType::Q4KM, false, true) => blocks(GgmlType::Q4_K),
            (FileType::Q4KM, false, false) => blocks(GgmlType::Q5_0),
        };
        self.push(&format!("{module}.weight"), kind, dims);
    }

    fn layer(&mut self, layer: usize) {
        let shape = self.shape;
        // `use_more_bits`: the first and the last eighth, and every third between.
        let eighth = shape.layers / 8;
        let important = layer < eighth || layer >= 7 * shape.layers / 8 || (layer - eighth) % 3 == 2;
        let finer = self.file_type == FileType::Q4KM && important;
        self.exact("attn_norm.weight", &[shape.hidden]);
        match (shape.delta_of(layer), shape.latent) {
            (Some(delta), _) => self.delta(delta, finer),
            (None, Some(latent)) => self.latent(latent),
            (None, None) => self.attention(finer),
        }
        let norm =
            if shape.is_gpt_oss() || shape.delta.is_some() { "post_attention_norm" } else { "ffn_norm" };
        self.exact(&format!("{norm}.weight"), &[shape.hidden]);
        match shape.experts_of(layer) {
            Some(experts) => self.experts(experts, finer),
            None => self.mlp("", shape.ffn, finer),
        }
    }

    fn attention(&mut self, finer: bool) {
        let shape = self.shape;
        let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let queries = if shape.delta.is_some() { 2 * width } else { width };
        for (part, rows, finer) in [("q", queries, false), ("k", kv_width, false), ("v", kv_width, finer)] {
            self.matrix(&format!("attn_{part}"), rows, shape.hidden, finer);
            if shape.has_qkv_biases() {
                self.exact(&format!("attn_{part}.bias"), &[rows]);
            }
        }
        self.matrix("attn_output", shape.hidden, width, false);
        if shape.is_gpt_oss() {
            self.exact("attn_output.bias", &[shape.hidden]);
            self.exact("attn_sinks.weight", &[shape.heads]);
        }
        if shape.has_head_norms() {
            self.exact("attn_q_norm.weight", &[shape.head_dim]);
            self.exact("attn_k_norm.weight", &[shape.head_dim]);
        }
    }

    fn latent(&mut self, LatentShape { query_rank, rank, nope, rope, value }: LatentShape) {
        let (hidden, heads) = (self.shape.hidden, self.shape.heads);
        self.matrix("attn_q_a", query_rank, hidden, false);
        self.exact("attn_q_a_norm.weight", &[query_rank]);
        self.matrix("attn_q_b", heads * (nope + rope), query_rank, false);
        self.matrix("attn_kv_a_mqa", rank + rope, hidden, false);
        self.exact("attn_kv_a_norm.weight", &[rank]);
        self.stack("attn_k_b", &[heads, rank, nope], false);
        self.stack("attn_v_b", &[heads, value, rank], false);
        self.matrix("attn_output", hidden, heads * value, false);
    }

    fn delta(&mut self, DeltaShape { heads, dim, conv }: DeltaShape, finer: bool) {
        let (hidden, width) = (self.shape.hidden, heads * dim);
        self.matrix("attn_qkv", 3 * width, hidden, finer);
        self.matrix("attn_gate", width, hidden, false);
        self.matrix("ssm_beta", heads, hidden, false);
        self.matrix("ssm_alpha", heads, hidden, false);
        self.exact("ssm_conv1d.weight", &[3 * width, conv]);
        self.exact("ssm_dt.bias", &[heads]);
        self.exact("ssm_a", &[heads]);
        self.exact("ssm_norm.weight", &[dim]);
        self.matrix("ssm_out", hidden, width, false);
    }

    fn mlp(&mut self, ending: &str, ffn: usize, finer: bool) {
        let hidden = self.shape.hidden;
        self.matrix(&format!("ffn_gate{ending}"), ffn, hidden, false);
        self.matrix(&format!("ffn_up{ending}"), ffn, hidden, false);
        self.matrix(&format!("ffn_down{ending}"), hidden, ffn, finer);
    }

    fn experts(&mut self, ExpertShape { count, ffn, shared, .. }: ExpertShape, finer: bool) {
        let (hidden, biases) = (self.shape.hidden, self.shape.is_gpt_oss());
        self.exact("ffn_gate_inp.weight", &[count, hidden]);
        if biases {
            self.exact("ffn_gate_inp.bias", &[count]);
        }
        if self.shape.latent.is_some() {
            self.exact("exp_probs_b.bias", &[count]);
        }
        for (part, rows, columns, finer) in
            [("gate", ffn, hidden, false), ("up", ffn, hidden, false), ("down", hidden, ffn, finer)]
        {
            self.stack(&format!("ffn_{part}_exps"), &[count, rows, columns], finer);
            if biases {
                self.exact(&format!("ffn_{part}_exps.bias"), &[count, rows]);
            }
        }
        if shared > 0 {
            self.mlp("_shexp", shared * ffn, finer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SHAPES;

    /// What llama.cpp's own conversion of such a model takes, metadata apart, in MB.
    #[test]
    fn sizes_are_those_of_llama_cpp() {
        let llama = SHAPES.iter().find(|shape| shape.name == "llama-1b").unwrap();
        for (file_type, expected) in
            [(FileType::Q4_0, 763), (FileType::Q4KM, 800), (FileType::Q8_0, 1313), (FileType::F16, 2472)]
        {
            let bytes: u64 = tensors(llama, file_type).iter().map(Spec::bytes).sum();
            assert_eq!((bytes + 500_000) / 1_000_000, expected, "{file_type:?}");
        }
    }

    #[test]
    fn rows_without_super_blocks_take_older_types() {
        let qwen = SHAPES.iter().find(|shape| shape.name == "qwen2.5-0.5b").unwrap();
        let tensors = tensors(qwen, FileType::Q4KM);
        let kind = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap().kind;
        assert_eq!(kind("token_embd.weight"), TensorType::Blocks(GgmlType::Q8_0));
        assert_eq!(kind("blk.0.attn_v.weight"), TensorType::Blocks(GgmlType::Q8_0));
        assert_eq!(kind("blk.0.attn_q.weight"), TensorType::Blocks(GgmlType::Q5_0));
        assert_eq!(
            [kind("blk.0.ffn_down.weight"), kind("blk.3.ffn_down.weight")],
            [TensorType::Blocks(GgmlType::Q6_K), TensorType::Blocks(GgmlType::Q4_K)]
        );
    }

    /// gpt-oss-20b as it is published: 12.1 GB, experts in MXFP4 and all other matrices in Q8_0.
    #[test]
    fn gpt_oss_has_the_types_that_are_published() {
        let cut = SHAPES.iter().find(|shape| shape.name == "gpt-oss-20b-8").unwrap();
        let all = tensors(&ModelShape { layers: 24, ..*cut }, FileType::Mxfp4);
        assert_eq!(all.len(), 459);
        assert_eq!((all.iter().map(Spec::bytes).sum::<u64>() + 50_000_000) / 100_000_000, 121);
        let kind = |name: &str| all.iter().find(|tensor| tensor.name == name).unwrap().kind;
        for part in ["gate", "up", "down"] {
            assert_eq!(kind(&format!("blk.23.ffn_{part}_exps.weight")), TensorType::Blocks(GgmlType::MXFP4));
        }
        for name in ["token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.attn_output.weight"]
        {
            assert_eq!(kind(name), TensorType::Blocks(GgmlType::Q8_0), "{name}");
        }
        assert_eq!(kind("blk.0.ffn_gate_inp.weight"), TensorType::Dense(DType::F32));
    }
}
