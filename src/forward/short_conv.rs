//! Short convolutions: layers that see a few tokens back, between two gates, in place of attention.
//! Liquid AI 2025, "LFM2 Technical Report".

use super::blocks::Linear;
use super::gguf_mamba;
use super::gguf_members::Members;
use super::list::{Dim, GgufSpec, ModuleSpec, WeightList};
use super::loader::Loader;
use super::step::Step;
use super::taps::turned_taps;
use crate::backend::ops::{Backend, Recur, RecurrentShape, StateSpec};
use crate::backend::{Op, PreparedVector, Tensor};
use crate::config::Config;
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Form;

/// A module's name, and its name in GGUF.
const INPUT: [&str; 2] = ["conv.in_proj", "shortconv.in_proj"];
const CONV: [&str; 2] = ["conv.conv", "shortconv.conv"];
const OUTPUT: [&str; 2] = ["conv.out_proj", "shortconv.out_proj"];
const TAPS: &str = "conv_L_cache";
const TYPES: &str = "layer_types";

/// The layers that are short convolutions.
#[derive(Debug, Clone)]
pub(super) struct ShortConv {
    /// Which layers.
    pub layers: Vec<bool>,
    /// Taps.
    pub kernel: usize,
    /// Whether its modules have biases.
    pub bias: bool,
}

/// Reads what GGUF files say of these layers, which have no heads of keys; of the others, what changes them is refused.
pub(super) fn members(members: &mut Members<'_>) -> Result<()> {
    members.required(TAPS, "shortconv.l_cache")?;
    gguf_mamba::kinds(members, TYPES, |attends, _| if attends { "full_attention" } else { "conv" })?;
    let (metadata, window) = (members.metadata, members.key("attention.sliding_window"));
    if metadata.uint(&window)?.is_some_and(|window| window > 0) {
        return Err(
            metadata.refuse(&window, "0 or absent: attention beside short convolutions sees everything")
        );
    }
    let causal = members.key("attention.causal");
    match metadata.flag(&causal)? {
        Some(false) => {
            Err(metadata.refuse(&causal, "true or absent: convolutions see no token behind theirs"))
        }
        _ => Ok(()),
    }
}

impl ShortConv {
    /// Reads `conv_*`, and the kinds of layers: `layer_types`, else all are attention but for those that `full_attn_idxs` leaves out.
    pub fn read(fields: &Fields<'_>, layers: usize) -> Result<Self> {
        let is_conv = |(i, kind): (usize, &Value)| match kind {
            Value::String(kind) if kind == "conv" => Ok(true),
            Value::String(kind) if kind == "full_attention" => Ok(false),
            other => Err(fields.error(format!("{TYPES}[{i}]"), other, "conv or full_attention")),
        };
        let convs = match (fields.list(TYPES)?, fields.tokens("full_attn_idxs")?) {
            (Some(types), _) if types.len() != layers => {
                let expected = format!("a list of num_hidden_layers, {layers}");
                return Err(fields.error(TYPES, format!("a list of {}", types.len()), expected));
            }
            (Some(types), _) => types.iter().enumerate().map(is_conv).collect::<Result<_>>()?,
            (None, Some(full)) => (0..layers).map(|layer| !full.contains(&(layer as u32))).collect(),
            (None, None) => vec![false; layers],
        };
        let kernel = fields.size_or(TAPS, Some(3), 1 << 16)?;
        if !(2..=64).contains(&kernel) {
            return Err(fields.error(TAPS, kernel, "from 2 to 64"));
        }
        Ok(Self { layers: convs, kernel, bias: fields.flag("conv_bias")?.unwrap_or(false) })
    }

    /// Whether a layer is one.
    pub fn is_of(&self, layer: usize) -> bool {
        self.layers.get(layer).copied().unwrap_or(false)
    }

    /// Elements of the widest row of activations.
    pub fn width(config: &Config) -> usize {
        3 * config.hidden_size
    }

    /// What a layer keeps.
    pub fn state(&self, config: &Config) -> StateSpec {
        let channels = config.hidden_size;
        StateSpec::Recurrent(RecurrentShape {
            taps: self.kernel - 1,
            channels,
            heads: 0,
            rows: 0,
            columns: 0,
        })
    }

    /// Adds the weights of a layer whose names begin with `prefix` and with `blk`.
    pub fn list(&self, list: &mut WeightList, config: &Config, [prefix, blk]: [&str; 2]) {
        let hidden = || config.hidden_dim();
        let thirds = Dim { field: "3 * hidden_size", size: 3 * config.hidden_size };
        let taps = Dim { field: TAPS, size: self.kernel };
        for ([own, gguf], rows, columns) in
            [(INPUT, thirds, hidden()), (CONV, hidden(), taps), (OUTPUT, hidden(), hidden())]
        {
            list.push(ModuleSpec {
                name: format!("{prefix}.{own}"),
                rows,
                columns: Some(columns),
                bias: self.bias,
                form: Form::Plain,
                gguf: Some(GgufSpec { name: format!("{blk}.{gguf}"), form: Form::Plain, fused: Vec::new() }),
                stacked: Vec::new(),
            });
        }
    }

    /// Loads layer `layer`, whose names begin with `prefix`.
    pub fn load(
        &self,
        loader: &Loader<'_>,
        config: &Config,
        layer: usize,
        prefix: &str,
    ) -> Result<ShortConvLayer> {
        let path = |[own, _]: [&str; 2]| format!("{prefix}.{own}");
        let hidden = config.hidden_size;
        let conv = turned_taps(loader, &[path(CONV)], [self.kernel, hidden])?;
        Ok(ShortConvLayer {
            layer,
            inputs: Linear::split(loader, &path(INPUT), [("b", hidden), ("c", hidden), ("x", hidden)])?,
            conv: loader.ops.vector(&conv),
            conv_bias: loader.bias(&path(CONV))?.map(|bias| loader.ops.vector(&bias)),
            output: Linear::load(loader, &path(OUTPUT))?,
        })
    }
}

/// A short convolution in the place of attention.
#[derive(Debug)]
pub struct ShortConvLayer {
    layer: usize,
    /// The gate before it, the gate after it, and what it sees.
    inputs: [Linear; 3],
    conv: PreparedVector,              // [kernel, D]
    conv_bias: Option<PreparedVector>, // [D]
    output: Linear,
}

impl ShortConvLayer {
    /// `[T, D]` → `[T, D]`; changes the layer's state.
    pub fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let [before, after, x] = step.project(self.inputs.each_ref(), x)?;
        let seen = step.run(&Op::Mul { a: &before, b: &x })?;
        let (weight, bias) = (&self.conv, self.conv_bias.as_ref());
        let convolution = Recur::Convolution { x: &seen, beside: [None; 2], weight, bias, activation: None };
        let given = step.recur(self.layer, &convolution)?;
        self.output.forward(step, &step.run(&Op::Mul { a: &after, b: &given })?)
    }
}
