//! Gated delta nets: layers that keep a matrix for each head in place of keys and values.
//! Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule".

use super::blocks::{Linear, NormKind, RmsNorm, norm_spec};
use super::gguf_members::LLAMA_CPP;
use super::list::{Dim, GgufSpec, ModuleSpec, Name, WeightList};
use super::loader::Loader;
use super::step::Step;
use super::taps::{taps, turned_taps};
use crate::backend::ops::{Backend, GateKind, Recur, RecurrentShape, StateSpec};
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

/// The fields of the width of keys and values where these are of one.
const OF_BOTH: &str = "linear_attn_config.num_heads * linear_attn_config.head_dim";

/// How the projections of a layer are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Projections {
    /// Queries, keys and values in one, which has a convolution.
    Fused,
    /// Queries, keys, values and gates by head of keys, in one, and the two factors in another.
    ByKeyHead,
    /// Queries, keys and values in one, and the two factors by head of keys in another.
    FactorsByKeyHead,
    /// One each, and three convolutions; the names of a layer's modules begin with this.
    Apart(&'static str),
}

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
    /// How projections are stored.
    pub projections: Projections,
    /// The vectors that gates are made of, where they are; there is a decay for each element of a key then, and not for a head.
    pub gate_rank: Option<usize>,
    /// What the factor of a change is at most.
    pub strength: f32,
    /// Whether the gate of what the rule gives is a sigmoid, and not SiLU.
    pub sigmoid: bool,
    /// Added to the mean squares of what the rule gives, where that is another number than in the model's other norms.
    pub eps: Option<f32>,
    /// The norms of its layers, where these are others than those of layers with attention: before and after this part, before and
    /// after the feed-forward part.
    pub norms: Option<[Option<Name>; 4]>,
    /// Whether heads of values take those of keys in turn, and do not follow each other by them.
    pub in_turn: bool,
    /// Whether the rates are there, and not the logarithms of what they are below 0.
    pub whole_rates: bool,
}

impl DeltaNet {
    /// Reads the fields `linear_*`, of a family that has 16 heads of keys and 32 of values where they are absent, of 128 elements.
    pub fn read(fields: &Fields<'_>, layers: Vec<bool>) -> Result<Self> {
        let is_gguf = fields.flag(LLAMA_CPP)?.unwrap_or(false);
        let delta = Self::read_or(fields, layers, [16, 32], |_| 128, |_| 128)?;
        Ok(Self { in_turn: is_gguf, whole_rates: is_gguf, ..delta })
    }

    /// The same with what the absence of the heads of keys and of values means, of the elements of a head of these keys, and of the
    /// elements of a head of values beside them.
    pub fn read_or(
        fields: &Fields<'_>,
        layers: Vec<bool>,
        heads: [usize; 2],
        key_dim: impl FnOnce(usize) -> usize,
        value_dim: impl FnOnce(usize) -> usize,
    ) -> Result<Self> {
        let size = |name: &str, absent: usize| fields.size_or(name, Some(absent), 1 << 16);
        let key_heads = size("linear_num_key_heads", heads[0])?;
        let heads = size("linear_num_value_heads", heads[1])?;
        if !heads.is_multiple_of(key_heads) {
            let expected = format!("a multiple of linear_num_key_heads, {key_heads}");
            return Err(fields.error("linear_num_value_heads", heads, expected));
        }
        let kernel = taps(fields, "linear_conv_kernel_dim")?;
        let key_dim = size("linear_key_head_dim", key_dim(key_heads))?;
        let value_dim = size("linear_value_head_dim", value_dim(key_dim))?;
        Ok(Self::of(layers, [key_heads, heads], [key_dim, value_dim], kernel))
    }

    /// Qwen's nets, of these heads of keys and of values, these elements of each, and this many taps.
    pub fn of(layers: Vec<bool>, heads: [usize; 2], dims: [usize; 2], kernel: usize) -> Self {
        Self {
            layers,
            key_heads: heads[0],
            heads: heads[1],
            key_dim: dims[0],
            value_dim: dims[1],
            kernel,
            projections: Projections::Fused,
            gate_rank: None,
            strength: 1.0,
            sigmoid: false,
            eps: None,
            norms: None,
            in_turn: false,
            whole_rates: false,
        }
    }

    /// Whether a layer is one.
    pub fn is_of(&self, layer: usize) -> bool {
        self.layers.get(layer).copied().unwrap_or(false)
    }

    fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.heads * self.value_dim
    }

    /// Queries and keys, or values, of all heads.
    fn keys(&self) -> Dim {
        let field = self.field("linear_num_key_heads * linear_key_head_dim");
        Dim { field, size: self.key_heads * self.key_dim }
    }

    fn values(&self) -> Dim {
        let field = self.field("linear_num_value_heads * linear_value_head_dim");
        Dim { field, size: self.heads * self.value_dim }
    }

    /// Decays of all heads.
    fn decays(&self) -> Dim {
        match self.gate_rank {
            None => Dim { field: "linear_num_value_heads", size: self.heads },
            Some(_) => Dim { field: OF_BOTH, size: self.heads * self.key_dim },
        }
    }

    /// What makes up a width, which has fewer names where keys and values are of one.
    fn field(&self, of_both: &'static str) -> &'static str {
        if self.gate_rank.is_some() { OF_BOTH } else { of_both }
    }

    /// The modules whose taps stand side by side, and their rows.
    fn convolutions(&self) -> Vec<(Name, Dim)> {
        match self.projections {
            Projections::Fused | Projections::ByKeyHead | Projections::FactorsByKeyHead => {
                let field = "2 * linear_num_key_heads * linear_key_head_dim + linear_num_value_heads * linear_value_head_dim";
                vec![(CONV, Dim { field, size: self.channels() })]
            }
            Projections::Apart(_) => {
                let rows = [self.keys(), self.keys(), self.values()];
                let names = [
                    ("q_conv1d", "ssm_conv1d_q"),
                    ("k_conv1d", "ssm_conv1d_k"),
                    ("v_conv1d", "ssm_conv1d_v"),
                ];
                names.into_iter().zip(rows).collect()
            }
        }
    }

    /// The rates, the shifts, the norm of what the rule gives, and the output.
    fn small(&self) -> [Name; 4] {
        match self.projections {
            Projections::Fused | Projections::ByKeyHead | Projections::FactorsByKeyHead => {
                [RATE, SHIFT, NORM, OUTPUT]
            }
            Projections::Apart(_) => {
                [("A_log", "ssm_a"), ("dt_bias", "ssm_dt"), ("o_norm", "ssm_norm"), ("o_proj", "attn_output")]
            }
        }
    }

    /// The names of a module in a layer whose names begin with these: in directories, and in GGUF where it has one there.
    fn name(&self, [prefix, blk]: [&str; 2], (own, gguf): Name) -> (String, Option<String>) {
        match self.projections {
            Projections::Fused | Projections::ByKeyHead | Projections::FactorsByKeyHead => {
                (format!("{prefix}.{own}"), Some(format!("{blk}.{gguf}")))
            }
            Projections::Apart(within) => {
                (format!("{prefix}.{within}.{own}"), (!gguf.is_empty()).then(|| format!("{blk}.{gguf}")))
            }
        }
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
    pub fn list(&self, list: &mut WeightList, config: &Config, prefixes: [&str; 2]) {
        let hidden = config.hidden_dim();
        let values = self.values();
        let heads = Dim { field: "linear_num_value_heads", size: self.heads };
        let taps = Dim { field: "linear_conv_kernel_dim", size: self.kernel };
        let (keys, each) = (self.key_heads, self.heads / self.key_heads);
        let joined_factors = || {
            let both = Dim { field: "2 * linear_num_value_heads", size: 2 * self.heads };
            (BA, both, hidden.clone(), Form::ByParts { heads: keys, parts: [each, each, 0, 0] })
        };
        let convolutions = self.convolutions();
        let mut matrices = match self.projections {
            Projections::Fused => vec![
                (QKV, convolutions[0].1.clone(), hidden.clone(), Form::Plain),
                (Z, values.clone(), hidden.clone(), Form::Plain),
                (BETA, heads.clone(), hidden.clone(), Form::Plain),
                (GATE, heads.clone(), hidden.clone(), Form::Plain),
            ],
            Projections::FactorsByKeyHead => vec![
                (QKV, convolutions[0].1.clone(), hidden.clone(), Form::Plain),
                (Z, values.clone(), hidden.clone(), Form::Plain),
                joined_factors(),
            ],
            Projections::Apart(_) => {
                let of_x = |name: Name, rows: Dim| (name, rows, hidden.clone(), Form::Plain);
                let mut all = vec![
                    of_x(("q_proj", "attn_q"), self.keys()),
                    of_x(("k_proj", "attn_k"), self.keys()),
                    of_x(("v_proj", "attn_v"), values.clone()),
                    of_x(("b_proj", "ssm_beta"), heads.clone()),
                ];
                match self.gate_rank {
                    None => all
                        .extend([of_x(("g_proj", ""), values.clone()), of_x(("a_proj", ""), self.decays())]),
                    Some(size) => {
                        let rank = Dim { field: "linear_attn_config.head_dim", size };
                        let up = |name: Name, rows: Dim| (name, rows, rank.clone(), Form::Plain);
                        all.extend([
                            of_x(("g_a_proj", "ssm_g_a"), rank.clone()),
                            up(("g_b_proj", "ssm_g_b"), values.clone()),
                            of_x(("f_a_proj", "ssm_f_a"), rank.clone()),
                            up(("f_b_proj", "ssm_f_b"), self.decays()),
                        ]);
                    }
                }
                all
            }
            Projections::ByKeyHead => {
                let of_values = each * self.value_dim;
                let all = Dim {
                    field: "2 * linear_num_key_heads * linear_key_head_dim + 2 * linear_num_value_heads * linear_value_head_dim",
                    size: self.channels() + self.heads * self.value_dim,
                };
                let parts = [self.key_dim, self.key_dim, of_values, of_values];
                vec![(QKVZ, all, hidden.clone(), Form::ByParts { heads: keys, parts }), joined_factors()]
            }
        };
        let [rate, shift, norm, output] = self.small();
        for (of, rows) in convolutions {
            matrices.push((of, rows, taps.clone(), Form::Plain));
        }
        matrices.push((output, hidden, values, Form::Plain));
        let in_gguf =
            |name: Option<String>, form: Form| name.map(|name| GgufSpec { name, form, fused: Vec::new() });
        for (of, rows, columns, form) in matrices {
            let (name, gguf) = self.name(prefixes, of);
            let (gguf, stacked) = (in_gguf(gguf, form), Vec::new());
            list.push(ModuleSpec { name, rows, columns: Some(columns), bias: false, form, gguf, stacked });
        }
        // Tensors of these names alone.
        for (of, bias, rows) in [(shift, true, self.decays()), (rate, false, heads)] {
            let (own, gguf) = self.name(prefixes, of);
            list.push(ModuleSpec {
                stacked: vec![(own.clone(), 0..rows.size)],
                name: own,
                rows,
                columns: None,
                bias,
                form: Form::Plain,
                gguf: in_gguf(gguf, Form::Plain),
            });
        }
        let width = Dim { field: "linear_value_head_dim", size: self.value_dim };
        let (own, gguf) = self.name(prefixes, norm);
        let spec = norm_spec([own, String::new()], width, NormKind::Rms { offset: 0.0 });
        list.push(ModuleSpec { gguf: in_gguf(gguf, Form::Plain), ..spec });
    }

    /// Whether the checkpoint's norms hold what is multiplied by, and not what is added to 1: in MLX's directories, which have the taps
    /// of convolutions in another place.
    pub fn has_whole_norms(&self, loader: &Loader<'_>, layers: &str) -> bool {
        let first = self.layers.iter().position(|&is| is);
        first.is_some_and(|layer| loader.has_lost_last(&format!("{layers}.{layer}.{}", CONV.0)))
    }

    /// Loads layer `layer`, whose names begin with `prefix`.
    pub fn load(&self, loader: &Loader<'_>, layer: usize, prefix: &str) -> Result<DeltaLayer> {
        let path = |name: Name| self.name([prefix, ""], name).0;
        let channels = self.channels();
        let modules: Vec<String> = self.convolutions().into_iter().map(|(name, _)| path(name)).collect();
        let conv = turned_taps(loader, &modules, [self.kernel, channels])?;
        let [of_rate, of_shift, of_norm, of_output] = self.small().map(path);
        let mut rate = loader.vector(&of_rate)?.widened()?;
        if !self.whole_rates {
            rate.iter_mut().for_each(|x| *x = -x.exp());
        } else if let Some(x) = rate.iter().find(|&&x| x.is_nan() || x > 0.0) {
            let what = format!("holds {x:?}, expected rates of at most 0");
            return Err(loader.wrong(&of_rate, what));
        }
        let rate = Weight::of_values("rate", &[self.heads], rate);
        let (inputs, beta, gate) = match self.projections {
            Projections::Fused => {
                let (qkv, z) = (Linear::load(loader, &path(QKV))?, Linear::load(loader, &path(Z))?);
                let [beta, gate] = [Linear::exact(loader, &path(BETA))?, Linear::exact(loader, &path(GATE))?];
                (Inputs::Fused { qkv, z }, beta, Gate::Whole(gate))
            }
            Projections::FactorsByKeyHead => {
                let (qkv, z) = (Linear::load(loader, &path(QKV))?, Linear::load(loader, &path(Z))?);
                let parts = [("beta", self.heads), ("gate", self.heads)];
                let [beta, gate] = Linear::exact_split(loader, &path(BA), parts)?;
                (Inputs::Fused { qkv, z }, beta, Gate::Whole(gate))
            }
            Projections::ByKeyHead => {
                let parts = [("qkv", channels), ("z", self.heads * self.value_dim)];
                let [qkv, z] = Linear::split(loader, &path(QKVZ), parts)?;
                let parts = [("beta", self.heads), ("gate", self.heads)];
                let [beta, gate] = Linear::exact_split(loader, &path(BA), parts)?;
                (Inputs::Fused { qkv, z }, beta, Gate::Whole(gate))
            }
            Projections::Apart(_) => {
                let load = |name: &'static str| Linear::load(loader, &path((name, "")));
                let exact = |name: &'static str| Linear::exact(loader, &path((name, "")));
                let qkv = [load("q_proj")?, load("k_proj")?, load("v_proj")?];
                let beta = exact("b_proj")?;
                let (z, gate) = match self.gate_rank {
                    None => (Gate::Whole(load("g_proj")?), Gate::Whole(exact("a_proj")?)),
                    Some(_) => (
                        Gate::Low { down: load("g_a_proj")?, up: load("g_b_proj")? },
                        Gate::Low { down: load("f_a_proj")?, up: load("f_b_proj")? },
                    ),
                };
                (Inputs::Apart { qkv, z }, beta, gate)
            }
        };
        let norm = RmsNorm::load(loader, &of_norm, 0.0)?;
        Ok(DeltaLayer {
            layer,
            inputs,
            beta,
            gate,
            conv: loader.ops.vector(&conv),
            rate: loader.ops.vector(&rate),
            shift: loader.ops.vector(&loader.only_bias(&of_shift)?),
            norm: match self.eps {
                Some(eps) => norm.with_eps(eps),
                None => norm,
            },
            output: Linear::load(loader, &of_output)?,
            key_heads: self.key_heads,
            in_turn: self.in_turn,
            strength: self.strength,
            sigmoid: self.sigmoid,
        })
    }
}

/// Where queries, keys, values and the gate of what the rule gives come from.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a layer, which is never moved")]
enum Inputs {
    Fused { qkv: Linear, z: Linear },
    Apart { qkv: [Linear; 3], z: Gate },
}

/// A projection, or one through a vector of lower rank.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a layer, which is never moved")]
enum Gate {
    Whole(Linear),
    Low { down: Linear, up: Linear },
}

impl Gate {
    /// `[T, D]` → `[T, N]`.
    fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Whole(whole) => whole.forward(step, x),
            Self::Low { down, up } => up.forward(step, &down.forward(step, x)?),
        }
    }
}

/// A gated delta net in the place of attention.
#[derive(Debug)]
pub struct DeltaLayer {
    layer: usize,
    inputs: Inputs,
    beta: Linear,
    gate: Gate,
    conv: PreparedVector,  // [kernel, C]
    rate: PreparedVector,  // [H]
    shift: PreparedVector, // [H], or [H * key_dim]
    /// Of each head of values.
    norm: RmsNorm,
    output: Linear,
    key_heads: usize,
    in_turn: bool,
    strength: f32,
    sigmoid: bool,
}

impl DeltaLayer {
    /// `[T, D]` → `[T, D]`; changes the layer's state.
    pub fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let (parts, z, beta) = match &self.inputs {
            Inputs::Fused { qkv, z } => {
                let [qkv, z, beta] = step.project([qkv, z, &self.beta], x)?;
                ([Some(qkv), None, None], z, beta)
            }
            Inputs::Apart { qkv: [q, k, v], z } => {
                let qkv: [Tensor; 3] = step.project([q, k, v], x)?;
                (qkv.map(Some), z.forward(step, x)?, self.beta.forward(step, x)?)
            }
        };
        let gate = self.gate.forward(step, x)?;
        let activation = Some(Activation::Silu);
        let [Some(first), second, third] = &parts else { unreachable!("no queries") };
        let beside = [second.as_ref(), third.as_ref()];
        let weight = &self.conv;
        let convolution = Recur::Convolution { x: first, beside, weight, bias: None, activation };
        let qkv = step.recur(self.layer, &convolution)?; // [T, C]
        let rule = Recur::Delta {
            qkv: &qkv,
            beta: &beta,
            strength: self.strength,
            gate: &gate,
            rate: &self.rate,
            shift: &self.shift,
            key_heads: self.key_heads,
            in_turn: self.in_turn,
        };
        let given = step.recur(self.layer, &rule)?; // [T, H * value_dim]
        let normed = self.norm.forward(step, &given)?;
        let gated = match self.sigmoid {
            true => step.run(&Op::Gate { x: &normed, gate: &z, kind: GateKind::Sigmoid })?,
            false => step.run(&Op::Mul { a: &normed, b: &step.activate(&z, Activation::Silu)? })?,
        };
        self.output.forward(step, &gated)
    }
}
