//! The tensors of a directory, in the order of its files.

use super::shapes::{DeltaShape, ExpertShape, Form, LatentShape, ModelShape};

/// What a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Rows whose products keep the size of what they multiply.
    Matrix,
    /// The same, in the type of norms even where matrices are in codes.
    Exact,
    /// The matrices of experts that are in MXFP4 wherever there are codes.
    Experts,
    /// Numbers about one.
    Norm,
    /// Numbers about nothing: biases, and norms to which one is added.
    Small,
    /// MXFP4's codes, two a byte.
    Codes,
    /// MXFP4's scales of rows of so many elements.
    Scales(usize),
}

/// A tensor to be made.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<usize>,
    pub content: Content,
}

impl Tensor {
    /// Elements that are made at a time: a row's, or a whole expert's in MXFP4, whose rows are short.
    pub fn columns(&self) -> usize {
        match self.content {
            Content::Codes | Content::Scales(_) => self.dims[1..].iter().product(),
            _ => self.dims.last().copied().unwrap_or(1),
        }
    }
}

/// The tensors of `shape`, as `form` has them.
pub fn tensors(shape: &ModelShape, form: Form) -> Vec<Tensor> {
    let root = match (&shape.delta, form) {
        (Some(_), Form::Mlx) => "language_model.",
        _ => "",
    };
    let mut list = List { shape, form, prefix: root.to_owned(), all: Vec::new() };
    list.push("model.embed_tokens.weight", &[shape.vocab, shape.hidden], Content::Matrix);
    for layer in 0..shape.layers {
        list.prefix = format!("{root}model.layers.{layer}.");
        list.layer(layer);
    }
    list.prefix = root.to_owned();
    list.norm("model.norm", shape.hidden);
    if !shape.tied {
        list.push("lm_head.weight", &[shape.vocab, shape.hidden], Content::Matrix);
    }
    list.all
}

struct List<'a> {
    shape: &'a ModelShape,
    form: Form,
    /// What the names begin with.
    prefix: String,
    all: Vec<Tensor>,
}

impl List<'_> {
    fn push(&mut self, name: &str, dims: &[usize], content: Content) {
        self.all.push(Tensor { name: format!("{}{name}", self.prefix), dims: dims.into(), content });
    }

    fn matrix(&mut self, module: &str, rows: usize, columns: usize) {
        self.push(&format!("{module}.weight"), &[rows, columns], Content::Matrix);
    }

    /// A norm of the residual stream or of heads, to which families with a delta net add one; MLX has done so.
    fn norm(&mut self, module: &str, len: usize) {
        let added = self.shape.delta.is_some() && self.form != Form::Mlx;
        self.push(&format!("{module}.weight"), &[len], if added { Content::Small } else { Content::Norm });
    }

    fn layer(&mut self, layer: usize) {
        let shape = self.shape;
        let delta = shape.delta_of(layer);
        self.norm("input_layernorm", shape.hidden);
        match (delta, shape.latent) {
            (Some(delta), _) => self.delta(delta),
            (None, Some(latent)) => self.latent(latent),
            (None, None) => self.attention(),
        }
        self.norm("post_attention_layernorm", shape.hidden);
        if shape.has_head_norms() && delta.is_none() {
            self.norm("self_attn.q_norm", shape.head_dim);
            self.norm("self_attn.k_norm", shape.head_dim);
        }
        match shape.experts_of(layer) {
            Some(experts) if shape.is_gpt_oss() => self.open_experts(experts),
            Some(experts) => self.experts(experts),
            None => self.mlp("mlp", shape.ffn),
        }
    }

    fn attention(&mut self) {
        let shape = self.shape;
        let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        // Each head of queries has a gate beside it where there is a delta net.
        let queries = if shape.delta.is_some() { 2 * width } else { width };
        for (part, rows) in [("q", queries), ("k", kv_width), ("v", kv_width)] {
            self.matrix(&format!("self_attn.{part}_proj"), rows, shape.hidden);
            if shape.has_qkv_biases() {
                self.push(&format!("self_attn.{part}_proj.bias"), &[rows], Content::Small);
            }
        }
        self.matrix("self_attn.o_proj", shape.hidden, width);
        if shape.is_gpt_oss() {
            self.push("self_attn.o_proj.bias", &[shape.hidden], Content::Small);
            self.push("self_attn.sinks", &[shape.heads], Content::Small);
        }
    }

    fn latent(&mut self, LatentShape { query_rank, rank, nope, rope, value }: LatentShape) {
        let (hidden, heads) = (self.shape.hidden, self.shape.heads);
        self.matrix("self_attn.q_a_proj", query_rank, hidden);
        self.norm("self_attn.q_a_layernorm", query_rank);
        self.matrix("self_attn.q_b_proj", heads * (nope + rope), query_rank);
        self.matrix("self_attn.kv_a_proj_with_mqa", rank + rope, hidden);
        self.norm("self_attn.kv_a_layernorm", rank);
        if self.form == Form::Mlx {
            self.push("self_attn.embed_q.weight", &[heads, rank, nope], Content::Matrix);
            self.push("self_attn.unembed_out.weight", &[heads, value, rank], Content::Matrix);
        } else {
            self.matrix("self_attn.kv_b_proj", heads * (nope + value), rank);
        }
        self.matrix("self_attn.o_proj", hidden, heads * value);
    }

    fn delta(&mut self, DeltaShape { heads, dim, conv }: DeltaShape) {
        let (hidden, width) = (self.shape.hidden, heads * dim);
        self.matrix("linear_attn.in_proj_qkv", 3 * width, hidden);
        self.matrix("linear_attn.in_proj_z", width, hidden);
        self.matrix("linear_attn.in_proj_b", heads, hidden);
        self.matrix("linear_attn.in_proj_a", heads, hidden);
        let kernel = if self.form == Form::Mlx { [3 * width, conv, 1] } else { [3 * width, 1, conv] };
        self.push("linear_attn.conv1d.weight", &kernel, Content::Exact);
        self.push("linear_attn.dt_bias", &[heads], Content::Small);
        self.push("linear_attn.A_log", &[heads], Content::Small);
        self.push("linear_attn.norm.weight", &[dim], Content::Norm);
        self.matrix("linear_attn.out_proj", hidden, width);
    }

    fn mlp(&mut self, module: &str, ffn: usize) {
        let hidden = self.shape.hidden;
        self.matrix(&format!("{module}.gate_proj"), ffn, hidden);
        self.matrix(&format!("{module}.up_proj"), ffn, hidden);
        self.matrix(&format!("{module}.down_proj"), hidden, ffn);
    }

    fn experts(&mut self, ExpertShape { count, ffn, shared, .. }: ExpertShape) {
        let hidden = self.shape.hidden;
        // A sigmoid and a bias choose where there is latent attention, from a matrix that MLX leaves as it is.
        if self.shape.latent.is_some() {
            self.push("mlp.gate.weight", &[count, hidden], Content::Exact);
            self.push("mlp.gate.e_score_correction_bias", &[count], Content::Small);
        } else {
            self.matrix("mlp.gate", count, hidden);
        }
        if self.form == Form::Mlx {
            for (part, rows, columns) in [("gate", ffn, hidden), ("up", ffn, hidden), ("down", hidden, ffn)] {
                let name = format!("mlp.switch_mlp.{part}_proj.weight");
                self.push(&name, &[count, rows, columns], Content::Matrix);
            }
        } else {
            (0..count).for_each(|expert| self.mlp(&format!("mlp.experts.{expert}"), ffn));
        }
        if shared > 0 {
            self.mlp("mlp.shared_experts", shared * ffn);
        }
    }

    /// Those of gpt-oss, all of whose matrices have biases.
    fn open_experts(&mut self, ExpertShape { count, ffn, .. }: ExpertShape) {
        let hidden = self.shape.hidden;
        self.matrix("mlp.router", count, hidden);
        self.push("mlp.router.bias", &[count], Content::Small);
        if self.form == Form::Mlx {
            for (part, rows, columns) in [("gate", ffn, hidden), ("up", ffn, hidden), ("down", hidden, ffn)] {
                let module = format!("mlp.experts.{part}_proj");
                self.push(&format!("{module}.weight"), &[count, rows, columns], Content::Experts);
                self.push(&format!("{module}.bias"), &[count, rows], Content::Small);
            }
            return;
        }
        for (part, rows, columns) in [("gate_up", 2 * ffn, hidden), ("down", hidden, ffn)] {
            let name = format!("mlp.experts.{part}_proj");
            if self.form == Form::OpenAi {
                let groups = columns / 32;
                self.push(&format!("{name}_blocks"), &[count, rows, groups, 16], Content::Codes);
                self.push(&format!("{name}_scales"), &[count, rows, groups], Content::Scales(columns));
            } else {
                // Rows are columns there.
                self.push(&name, &[count, columns, rows], Content::Matrix);
            }
            self.push(&format!("{name}_bias"), &[count, rows], Content::Small);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SHAPES;

    /// As transformers counts those of the whole models, of which some shapes have fewer layers.
    #[test]
    fn parameters_are_those_of_transformers() {
        for (name, layers, expected) in [
            ("llama-1b", 16, 1_235_814_400),
            ("qwen3-30b-a3b-8", 48, 30_220_957_696),
            ("gpt-oss-20b-8", 24, 20_914_757_184),
            ("glm-4.7-flash-8", 47, 29_943_393_920),
            ("qwen3.5-0.8b", 24, 752_393_024),
        ] {
            let cut = SHAPES.iter().find(|shape| shape.name == name).unwrap();
            let whole = ModelShape { layers, ..*cut };
            let elements = |tensor: &Tensor| tensor.dims.iter().product::<usize>();
            let count: usize = tensors(&whole, Form::HuggingFace).iter().map(elements).sum();
            assert_eq!(count, expected, "{name}");
        }
    }
}
