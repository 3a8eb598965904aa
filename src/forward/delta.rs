//! Gated delta nets: layers that keep a matrix for each head in place of keys and values.
//! Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule".

use super::blocks::norm_spec;
use super::blocks::{Linear, NormKind, RmsNorm};
use super::latent::LLAMA_CPP;
use super::list::{Dim, GgufSpec, ModuleSpec, Name, WeightList};
use super::loader::Loader;
use super::step::Step;
use crate::alloc;
use crate::backend::ops::{Backend, Recur, RecurrentShape, StateSpec};
use crate::backend::{Op, PreparedVector, Tensor};
use crate::config::{Activation, Config};
use crate::error::Result;
use crate::json::Fields;
use crate::tensor::Weight;
use crate::weights::Form;

const QKV: Name = ("linear_attn.in_proj_qkv", "attn_qkv");
const Z: Name = ("linear_attn.in_proj_z", "attn_gate");
const BETA: Name = ("linear_attn.in_proj_b", "ssm_beta");
const GATE: Name = ("linear_attn.in_proj_a", "ssm_alpha");
/// The first two of these, and the last two, by head of keys.
const QKVZ: Name = ("linear_attn.in_proj_qkvz", "ssm_in");
const BA: Name = ("linear_attn.in_proj_ba", "ssm_ba");
const CONV: Name = ("linear_attn.conv1d", "ssm_conv1d");
const SHIFT: Name = ("linear_attn.dt_bias", "ssm_dt");
const RATE: Name = ("linear_attn.A_log", "ssm_a");
const NORM: Name = ("linear_attn.norm", "ssm_norm");
const OUTPUT: Name = ("linear_attn.out_proj", "ssm_out");

/// The layers that are delta nets, and their widths.
#[derive(Debug, Clone)]
pub(super) struct DeltaNet {
    /// Which layers.
    pub layers: Vec<bool>,
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, a multiple of these.
    pub heads: usize,
    /// Elements of a head of queries and keys.
    pub key_dim: usize,
    /// Elements of a head of values.
    pub value_dim: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    /// Whether queries, keys, values and gates lie by head of keys, in one projection; and whether the two factors do, in another.
    pub by_key_head: [bool; 2],
    /// Whether heads of values take those of keys in turn, and do not follow each other by them.
    pub in_turn: bool,
    /// Whether the rates are there, and not the logarithms of what they are below 0.
    pub whole_rates: bool,
}

impl DeltaNet {
    /// Reads the fields `linear_*`.
    pub fn read(fields: &Fields<'_>, layers: Vec<bool>) -> Result<Self> {
        let size = |name: &str, absent: usize| fields.size_or(name, Some(absent), 1 << 16);
        let key_heads = size("linear_num_key_heads", 16)?;
        let heads = size("linear_num_value_heads", 32)?;
        if !heads.is_multiple_of(key_heads) {
            let expected = format!("a multiple of linear_num_key_heads, {key_heads}");
            return Err(fields.error("linear_num_value_heads", heads, expected));
        }
        let kernel = size("linear_conv_kernel_dim", 4)?;
        if !(2..=64).contains(&kernel) {
            return Err(fields.error("linear_conv_kernel_dim", kernel, "from 2 to 64"));
        }
        let (key_dim, value_dim) = (size("linear_key_head_dim", 128)?, size("linear_value_head_dim", 128)?);
        let is_gguf = fields.flag(LLAMA_CPP)?.unwrap_or(false);
        Ok(Self {
            layers,
            key_heads,
            heads,
            key_dim,
            value_dim,
            kernel,
            by_key_head: [false; 2],
            in_turn: is_gguf,
            whole_rates: is_gguf,
        })
    }

    /// Whether a layer is one.
    pub fn is_of(&self, layer: usize) -> bool {
        self.layers.get(layer).copied().unwrap_or(false)
    }

    fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.heads * self.value_dim
    }

    /// Elements of the widest row of activations.
    pub fn width(&self) -> usize {
        self.channels()
    }

    /// What a layer keeps.
    pub fn state(&self) -> StateSpec {
        StateSpec::Recurrent(RecurrentShape {
            taps: self.kernel - 1,
            channels: self.channels(),
            heads: self.heads,
            rows: self.key_dim,
            columns: self.value_dim,
        })
    }

    /// Adds the weights of a layer whose names begin with `prefix` and with `blk`.
    pub fn list(&self, list: &mut WeightList, config: &Config, [prefix, blk]: [&str; 2]) {
        let name = |(own, gguf): Name| [format!("{prefix}.{own}"), format!("{blk}.{gguf}")];
        let hidden = config.hidden_dim();
        let channels = Dim {
            field: "2 * linear_num_key_heads * linear_key_head_dim + linear_num_value_heads * linear_value_head_dim",
            size: self.channels(),
        };
        let values = Dim {
            field: "linear_num_value_heads * linear_value_head_dim",
            size: self.heads * self.value_dim,
        };
        let heads = Dim { field: "linear_num_value_heads", size: self.heads };
        let taps = Dim { field: "linear_conv_kernel_dim", size: self.kernel };
        let (keys, each) = (self.key_heads, self.heads / self.key_heads);
        let mut matrices = match self.by_key_head[0] {
            false => vec![
                (QKV, channels.clone(), hidden.clone(), Form::Plain),
                (Z, values.clone(), hidden.clone(), Form::Plain),
            ],
            true => {
                let of_values = each * self.value_dim;
                let all = Dim {
                    field: "2 * linear_num_key_heads * linear_key_head_dim + 2 * linear_num_value_heads * linear_value_head_dim",
                    size: self.channels() + self.heads * self.value_dim,
                };
                let parts = [self.key_dim, self.key_dim, of_values, of_values];
                vec![(QKVZ, all, hidden.clone(), Form::ByParts { heads: keys, parts })]
            }
        };
        if self.by_key_head[1] {
            let both = Dim { field: "2 * linear_num_value_heads", size: 2 * self.heads };
            let form = Form::ByParts { heads: keys, parts: [each, each, 0, 0] };
            matrices.push((BA, both, hidden.clone(), form));
        } else {
            for of in [BETA, GATE] {
                matrices.push((of, heads.clone(), hidden.clone(), Form::Plain));
            }
        }
        matrices.push((CONV, channels, taps, Form::Plain));
        matrices.push((OUTPUT, hidden, values, Form::Plain));
        for (of, rows, columns, form) in matrices {
            let [name, gguf] = name(of);
            let gguf = Some(GgufSpec { name: gguf, form, fused: Vec::new() });
            let stacked = Vec::new();
            list.push(ModuleSpec { name, rows, columns: Some(columns), bias: false, form, gguf, stacked });
        }
        // Tensors of these names alone.
        for (of, bias) in [(SHIFT, true), (RATE, false)] {
            let [own, gguf] = name(of);
            list.push(ModuleSpec {
                stacked: vec![(own.clone(), 0..self.heads)],
                name: own,
                rows: heads.clone(),
                columns: None,
                bias,
                form: Form::Plain,
                gguf: Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() }),
            });
        }
        let width = Dim { field: "linear_value_head_dim", size: self.value_dim };
        list.push(norm_spec(name(NORM), width, NormKind::Rms { offset: 0.0 }));
    }

    /// Whether the checkpoint's norms hold what is multiplied by, and not what is added to 1: in MLX's directories, which have the taps
    /// of convolutions in another place.
    pub fn has_whole_norms(&self, loader: &Loader<'_>, layers: &str) -> bool {
        let first = self.layers.iter().position(|&is| is);
        first.is_some_and(|layer| loader.has_lost_last(&format!("{layers}.{layer}.{}", CONV.0)))
    }

    /// Loads layer `layer`, whose names begin with `prefix`.
    pub fn load(&self, loader: &Loader<'_>, layer: usize, prefix: &str) -> Result<DeltaLayer> {
        let path = |name: Name| format!("{prefix}.{}", name.0);
        let channels = self.channels();
        let conv = turned_taps(loader, &path(CONV), [self.kernel, channels])?;
        let mut rate = loader.vector(&path(RATE))?.widened()?;
        if !self.whole_rates {
            rate.iter_mut().for_each(|x| *x = -x.exp());
        } else if let Some(x) = rate.iter().find(|&&x| x.is_nan() || x > 0.0) {
            let what = format!("holds {x:?}, expected rates of at most 0");
            return Err(loader.wrong(&path(RATE), what));
        }
        let rate = Weight::of_values("rate", &[self.heads], rate);
        let [qkv, z] = match self.by_key_head[0] {
            false => [Linear::load(loader, &path(QKV))?, Linear::load(loader, &path(Z))?],
            true => {
                let parts = [("qkv", channels), ("z", self.heads * self.value_dim)];
                Linear::split(loader, &path(QKVZ), parts)?
            }
        };
        let [beta, gate] = match self.by_key_head[1] {
            false => [Linear::exact(loader, &path(BETA))?, Linear::exact(loader, &path(GATE))?],
            true => Linear::exact_split(loader, &path(BA), [("beta", self.heads), ("gate", self.heads)])?,
        };
        Ok(DeltaLayer {
            layer,
            qkv,
            z,
            beta,
            gate,
            conv: loader.ops.vector(&conv),
            rate: loader.ops.vector(&rate),
            shift: loader.ops.vector(&loader.only_bias(&path(SHIFT))?),
            norm: RmsNorm::load(loader, &path(NORM), 0.0)?,
            output: Linear::load(loader, &path(OUTPUT))?,
            key_heads: self.key_heads,
            in_turn: self.in_turn,
        })
    }
}

/// The taps of the convolution `module`, `[taps, channels]`: files have those of a channel side by side.
pub(super) fn turned_taps(loader: &Loader<'_>, module: &str, [taps, channels]: [usize; 2]) -> Result<Weight> {
    let values = loader.vector(module)?.widened()?;
    let mut turned = alloc::zeroed(values.len(), "the values of a weight")?;
    for (channel, of) in values.chunks_exact(taps).enumerate() {
        of.iter().enumerate().for_each(|(tap, &x)| turned[tap * channels + channel] = x);
    }
    Ok(Weight::of_values("conv1d", &[taps, channels], turned))
}

/// A gated delta net in the place of attention.
#[derive(Debug)]
pub struct DeltaLayer {
    layer: usize,
    qkv: Linear,
    z: Linear,
    beta: Linear,
    gate: Linear,
    conv: PreparedVector,  // [kernel, C]
    rate: PreparedVector,  // [H]
    shift: PreparedVector, // [H]
    /// Of each head of values.
    norm: RmsNorm,
    output: Linear,
    key_heads: usize,
    in_turn: bool,
}

impl DeltaLayer {
    /// `[T, D]` → `[T, D]`; changes the layer's state.
    pub fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let projections = [self.qkv.projection(), self.z.projection(), self.beta.projection()];
        let [qkv, z, beta] = step.run_all(&Op::Qkv { x, projections })?;
        let gate = self.gate.forward(step, x)?;
        let activation = Some(Activation::Silu);
        let convolution =
            Recur::Convolution { x: &qkv, beside: [None; 2], weight: &self.conv, bias: None, activation };
        let qkv = step.recur(self.layer, &convolution)?; // [T, C]
        let rule = Recur::Delta {
            qkv: &qkv,
            beta: &beta,
            strength: 1.0,
            gate: &gate,
            rate: &self.rate,
            shift: &self.shift,
            key_heads: self.key_heads,
            in_turn: self.in_turn,
        };
        let given = step.recur(self.layer, &rule)?; // [T, H * value_dim]
        let normed = self.norm.forward(step, &given)?;
        let gated = step.run(&Op::Mul { a: &normed, b: &step.activate(&z, Activation::Silu)? })?;
        self.output.forward(step, &gated)
    }
}
