//! Mamba 2: layers that keep a matrix for each head, which fades and grows with each token, in place of keys and values.
//! Dao & Gu 2024, "Transformers are SSMs".

use super::blocks::{Linear, NormKind, RmsNorm, norm_spec};
use super::list::{Dim, GgufSpec, ModuleSpec, WeightList};
use super::loader::Loader;
use super::step::Step;
use super::taps::turned_taps;
use crate::backend::ops::{Backend, Recur, RecurrentShape, StateSpec};
use crate::backend::{Op, PreparedVector, Tensor};
use crate::config::{Activation, Config};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::tensor::Weight;
use crate::weights::Form;

/// A module's name behind [`Mamba::part`], and its name in GGUF.
const INPUT: [&str; 2] = ["in_proj", "ssm_in"];
const CONV: [&str; 2] = ["conv1d", "ssm_conv1d"];
const SHIFT: [&str; 2] = ["dt_bias", "ssm_dt"];
const RATE: [&str; 2] = ["A_log", "ssm_a"];
const SKIP: [&str; 2] = ["D", "ssm_d"];
const NORM: [&str; 2] = ["norm", "ssm_norm"];
const OUTPUT: [&str; 2] = ["out_proj", "ssm_out"];

/// What a family calls the widths, and what stands for products of them where a tensor contradicts.
#[derive(Debug, Clone, Copy)]
pub(super) struct MambaFields {
    pub heads: &'static str,
    pub groups: &'static str,
    pub state: &'static str,
    pub kernel: &'static str,
    /// Heads times their elements.
    pub inner: &'static str,
    /// What the convolution sees.
    pub channels: &'static str,
    /// What a token is projected to.
    pub all: &'static str,
}

/// Where the norm is of what the scan gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MambaNorm {
    /// Behind the gate.
    Last,
    /// Before it.
    First,
    /// There is none.
    None,
}

/// What activations are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct MambaScales {
    /// The input.
    pub input: f32,
    /// What it is projected to: the gate, values, keys, queries and steps.
    pub parts: [f32; 5],
    /// The output.
    pub output: f32,
}

impl MambaScales {
    /// Nothing is multiplied.
    pub const NONE: Self = Self { input: 1.0, parts: [1.0; 5], output: 1.0 };
}

/// The widths of Mamba 2's layers.
#[derive(Debug, Clone)]
pub(super) struct Mamba {
    /// What the names of its modules begin with, in a layer.
    pub part: &'static str,
    pub fields: MambaFields,
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Groups of heads that share what they are written and read by, a divisor of `heads`.
    pub groups: usize,
    /// Rows of the matrix of a head.
    pub state: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    /// The least and the largest step.
    pub limits: [f32; 2],
    /// Where the norm is.
    pub norm: MambaNorm,
}

impl Mamba {
    /// Reads the widths that `names` calls so; `absent` is what absence means for heads, groups, rows and taps, and `head_dim` says the
    /// elements of each of so many heads.
    pub fn read(
        fields: &Fields<'_>,
        part: &'static str,
        names: MambaFields,
        absent: [usize; 4],
        head_dim: impl FnOnce(usize) -> Result<usize>,
    ) -> Result<Self> {
        let size = |name: &str, absent: usize| fields.size_or(name, Some(absent), 1 << 16);
        let (heads, groups) = (size(names.heads, absent[0])?, size(names.groups, absent[1])?);
        if !heads.is_multiple_of(groups) {
            let expected = format!("a divisor of {}, {heads}", names.heads);
            return Err(fields.error(names.groups, groups, expected));
        }
        let kernel = size(names.kernel, absent[3])?;
        if !(2..=64).contains(&kernel) {
            return Err(fields.error(names.kernel, kernel, "from 2 to 64"));
        }
        let (state, limits) = (size(names.state, absent[2])?, limits(fields)?);
        Ok(Self {
            part,
            fields: names,
            heads,
            head_dim: head_dim(heads)?,
            groups,
            state,
            kernel,
            limits,
            norm: MambaNorm::Last,
        })
    }

    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    fn channels(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    /// Elements of the widest row of activations.
    pub fn width(&self) -> usize {
        self.channels() + self.heads
    }

    /// What a layer keeps.
    pub fn state(&self) -> StateSpec {
        StateSpec::Recurrent(RecurrentShape {
            taps: self.kernel - 1,
            channels: self.channels(),
            heads: self.heads,
            rows: self.state,
            columns: self.head_dim,
        })
    }

    /// Adds the weights of a layer whose names begin with `prefix` and with `blk`.
    pub fn list(&self, list: &mut WeightList, config: &Config, [prefix, blk]: [&str; 2]) {
        let name =
            |[own, gguf]: [&str; 2]| [format!("{prefix}.{}.{own}", self.part), format!("{blk}.{gguf}")];
        let hidden = || config.hidden_dim();
        let inner = || Dim { field: self.fields.inner, size: self.inner() };
        let heads = || Dim { field: self.fields.heads, size: self.heads };
        let all = Dim { field: self.fields.all, size: self.inner() + self.channels() + self.heads };
        let channels = Dim { field: self.fields.channels, size: self.channels() };
        let taps = Dim { field: self.fields.kernel, size: self.kernel };
        for (of, rows, columns) in
            [(INPUT, all, hidden()), (CONV, channels, taps), (OUTPUT, hidden(), inner())]
        {
            let [name, gguf] = name(of);
            list.push(ModuleSpec {
                name,
                rows,
                columns: Some(columns),
                bias: true,
                form: Form::Plain,
                gguf: Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() }),
                stacked: Vec::new(),
            });
        }
        // Tensors of these names alone.
        for (of, bias) in [(SHIFT, true), (RATE, false), (SKIP, false)] {
            let [own, gguf] = name(of);
            list.push(ModuleSpec {
                stacked: vec![(own.clone(), 0..self.heads)],
                name: own,
                rows: heads(),
                columns: None,
                bias,
                form: Form::Plain,
                gguf: Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() }),
            });
        }
        if self.norm != MambaNorm::None {
            list.push(norm_spec(name(NORM), inner(), NormKind::Rms { offset: 0.0 }));
        }
    }

    /// Whether the convolution of a layer whose names begin with `prefix` lies as in MLX's directories.
    pub fn is_of_mlx(&self, loader: &Loader<'_>, prefix: &str) -> bool {
        loader.has_lost_last(&format!("{prefix}.{}.{}", self.part, CONV[0]))
    }

    /// The projections of a layer whose names begin with `prefix`.
    pub fn projections(&self, prefix: &str) -> [String; 2] {
        [INPUT, OUTPUT].map(|[own, _]| format!("{prefix}.{}.{own}", self.part))
    }

    /// Loads a layer whose names begin with `prefix`, whose activations are multiplied by `scales`, and whose state is the model's
    /// `layer`-th.
    pub fn load(
        &self,
        loader: &Loader<'_>,
        scales: MambaScales,
        layer: usize,
        prefix: &str,
    ) -> Result<MambaLayer> {
        let path = |[own, _]: [&str; 2]| format!("{prefix}.{}.{own}", self.part);
        let (inner, channels) = (self.inner(), self.channels());
        // A factor of the input is one of what it is projected to, but for biases.
        let input = if loader.bias(&path(INPUT))?.is_some() { scales.input } else { 1.0 };
        let [of_z, of_v, of_k, of_q, of_dt] = scales.parts.map(|part| part * (scales.input / input));
        let [z, vkq] = Linear::split(loader, &path(INPUT), [("z", inner), ("vkq", channels)])?;
        let dt = Linear::exact_rows(loader, &path(INPUT), inner + channels..inner + channels + self.heads)?;
        let mut conv = turned_taps(loader, &[path(CONV)], [self.kernel, channels])?;
        if [of_v, of_k, of_q] != [1.0; 3] {
            let mut values = conv.widened()?;
            let keys = inner + self.groups * self.state;
            for (at, x) in values.iter_mut().enumerate() {
                *x *= match at % channels {
                    channel if channel < inner => of_v,
                    channel if channel < keys => of_k,
                    _ => of_q,
                };
            }
            conv = Weight::of_values(conv.name(), conv.shape(), values);
        }
        let mut rate = loader.vector(&path(RATE))?.widened()?;
        if !loader.is_gguf() {
            rate.iter_mut().for_each(|x| *x = -x.exp());
        } else if let Some(x) = rate.iter().find(|&&x| x.is_nan() || x > 0.0) {
            let what = format!("holds {x:?}, expected rates of at most 0");
            return Err(loader.wrong(&path(RATE), what));
        }
        let rate = Weight::of_values("rate", &[self.heads], rate);
        Ok(MambaLayer {
            layer,
            z,
            vkq,
            dt,
            conv: loader.ops.vector(&conv),
            conv_bias: loader.bias(&path(CONV))?.map(|bias| loader.ops.vector(&bias)),
            rate: loader.ops.vector(&rate),
            shift: loader.ops.vector(&loader.only_bias(&path(SHIFT))?),
            skip: loader.ops.vector(&loader.vector(&path(SKIP))?),
            norm: match self.norm {
                MambaNorm::None => None,
                MambaNorm::First | MambaNorm::Last => {
                    Some(RmsNorm::of_stretches(loader, &path(NORM), self.groups)?)
                }
            },
            norm_first: self.norm == MambaNorm::First,
            output: Linear::load(loader, &path(OUTPUT))?,
            groups: self.groups,
            limits: self.limits,
            by: By { input, gate: of_z, steps: of_dt, output: scales.output },
        })
    }
}

/// The least and the largest step: `time_step_limit`, whose infinity transformers 5 writes as an object.
fn limits(fields: &Fields<'_>) -> Result<[f32; 2]> {
    // What Nemotron H called it first.
    const OLDER: &str = "mamba_dt_limit";
    let name = if fields.get(OLDER).is_some() { OLDER } else { "time_step_limit" };
    let (Some(items), Some(value)) = (fields.list(name)?, fields.get(name)) else {
        return Ok([0.0, f32::INFINITY]);
    };
    let number = |item: &Value| match item {
        Value::UInt(n) => Some(*n as f64),
        Value::Float(x) => Some(*x),
        Value::Object(of) => match of.get("__float__") {
            Some(Value::String(name)) if name == "Infinity" => Some(f64::INFINITY),
            _ => None,
        },
        _ => None,
    };
    match items {
        [least, most] => match (number(least), number(most)) {
            (Some(least), Some(most)) if (0.0..=most).contains(&least) => Ok([least as f32, most as f32]),
            _ => Err(fields.error(name, value, "two numbers from 0 on, the least first")),
        },
        _ => Err(fields.error(name, value, "two numbers from 0 on, the least first")),
    }
}

/// A Mamba 2 in the place of attention.
#[derive(Debug)]
pub struct MambaLayer {
    layer: usize,
    z: Linear,
    vkq: Linear,
    dt: Linear,
    conv: PreparedVector,              // [kernel, C]
    conv_bias: Option<PreparedVector>, // [C]
    rate: PreparedVector,              // [H]
    shift: PreparedVector,             // [H]
    skip: PreparedVector,              // [H]
    /// Of the heads of each group.
    norm: Option<RmsNorm>,
    norm_first: bool,
    output: Linear,
    groups: usize,
    limits: [f32; 2],
    by: By,
}

/// What activations of a layer are multiplied by; taps of its convolution are.
#[derive(Debug)]
struct By {
    input: f32,
    gate: f32,
    steps: f32,
    output: f32,
}

impl MambaLayer {
    /// `[T, D]` → `[T, D]`; changes the layer's state.
    pub fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let input;
        let x = if self.by.input == 1.0 {
            x
        } else {
            input = step.scale(x, self.by.input)?;
            &input
        };
        let [z, vkq, dt] = step.project([&self.z, &self.vkq, &self.dt], x)?;
        let (z, dt) = (step.scaled(z, self.by.gate)?, step.scaled(dt, self.by.steps)?);
        let (weight, bias, activation) = (&self.conv, self.conv_bias.as_ref(), Some(Activation::Silu));
        let convolution = Recur::Convolution { x: &vkq, beside: [None; 2], weight, bias, activation };
        let vkq = step.recur(self.layer, &convolution)?; // [T, C]
        let scan = Recur::Scan {
            vkq: &vkq,
            dt: &dt,
            rate: &self.rate,
            shift: &self.shift,
            skip: &self.skip,
            groups: self.groups,
            limits: self.limits,
        };
        let mut given = step.recur(self.layer, &scan)?; // [T, H * P]
        let gate = step.activate(&z, Activation::Silu)?;
        if let Some(norm) = self.norm.as_ref().filter(|_| self.norm_first) {
            given = norm.forward(step, &given)?;
        }
        let mut gated = step.run(&Op::Mul { a: &given, b: &gate })?;
        if let Some(norm) = self.norm.as_ref().filter(|_| !self.norm_first) {
            gated = norm.forward(step, &gated)?;
        }
        step.scaled(self.output.forward(step, &gated)?, self.by.output)
    }
}
