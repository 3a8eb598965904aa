//! Mixtures of experts: what families say of theirs, its weights, and its block.

use std::ops::Range;

use super::blocks::{Linear, Mlp};
use super::list::{Dim, GgufSpec, InMlx, ModuleSpec, Name, Split, StackSpec, WeightList};
use super::loader::Loader;
use super::step::Step;
use crate::backend::ops::{Backend, ExpertProjection, GateKind, Gating, Router, Scores};
use crate::backend::{LlmBackendDispatch, Op, PreparedStack, PreparedVector, Tensor};
use crate::config::{Activation, Config, Experts};
use crate::error::Result;
use crate::json::Fields;
use crate::quant::{Format, Matrix, Stack};
use crate::tensor::Weight;
use crate::weights::Form;

/// The names of experts' projections, in a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertNames {
    /// What the names of single experts begin with, up to their numbers: `mlp.experts`.
    pub each: &'static str,
    /// Gate, up and down of one.
    pub parts: [&'static str; 3],
    /// Gate over up of all experts, `[E, 2 I, D]`, where a file has them in one.
    pub fused: &'static str,
    /// The down projections of all experts, `[E, D, I]`, beside these.
    pub fused_down: &'static str,
    /// What the names of stacks begin with in an MLX directory, whose parts are always called the same.
    pub stacks: &'static str,
}

impl ExpertNames {
    /// Most families'.
    pub const PLAIN: Self = Self {
        each: "mlp.experts",
        parts: ["gate_proj", "up_proj", "down_proj"],
        fused: "mlp.experts.gate_up_proj",
        fused_down: "mlp.experts.down_proj",
        stacks: "mlp.switch_mlp",
    };

    /// Mixtral's.
    pub const BLOCK: Self = Self {
        each: "block_sparse_moe.experts",
        parts: ["w1", "w3", "w2"],
        stacks: "block_sparse_moe.switch_mlp",
        ..Self::PLAIN
    };
}

/// The parts of an expert as MLX directories and GGUF files name them.
const PARTS: [(&str, &str); 3] =
    [("gate_proj", "ffn_gate_exps"), ("up_proj", "ffn_up_exps"), ("down_proj", "ffn_down_exps")];

/// The same of experts without gates, whose first is none.
const UNGATED: [(&str, &str); 3] = [("", ""), ("fc1", "ffn_up_exps"), ("fc2", "ffn_down_exps")];

/// Gate over up of each expert, in GGUF files that have them in one.
const GATE_UP: &str = "ffn_gate_up_exps";

/// The expert that every token goes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedExpert {
    /// Gate, up and down.
    pub names: [Name; 3],
    /// Its width.
    pub inner: usize,
    /// What the field of its width is called.
    pub field: &'static str,
    /// The row whose product with the token, through a sigmoid, weighs it.
    pub gate: Option<Name>,
}

impl SharedExpert {
    /// Most families' names.
    pub const PLURAL: [Name; 3] = [
        ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
        ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ];
}

/// A vector that experts see and give in place of the residual stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertLatent {
    /// The projections to it and back.
    pub names: [Name; 2],
    /// Its width.
    pub width: usize,
    /// What the field of its width is called.
    pub field: &'static str,
}

/// The feed-forward part of a layer that has experts.
#[derive(Debug, Clone)]
pub(super) struct Sparse {
    /// Which layers have it.
    pub layers: Vec<bool>,
    /// How many experts there are, and their width.
    pub size: Experts,
    /// The router's matrix.
    pub router: Name,
    /// What is added to its scores where experts are chosen: a tensor of this name, and in GGUF a bias of the other.
    pub bias: Option<Name>,
    /// How it chooses.
    pub routing: Router,
    /// A factor of each expert's weight, `[E]`: a tensor of this name.
    pub scales: Option<Name>,
    /// How many a token goes to in each layer, where that differs.
    pub used: Vec<usize>,
    /// Where the experts' weights are.
    pub names: ExpertNames,
    /// Whether single experts have biases.
    pub biases: bool,
    /// Where gate and up of all experts may be one tensor whose rows are columns, `[E, D, 2 I]`: how these lie, the tensor's name,
    /// and that of the down projections, `[E, I, D]`.
    pub turned: Option<(Form, [&'static str; 2])>,
    /// Between gate and up.
    pub gating: Gating,
    /// Whether weights multiply what goes to an expert, in place of what it gives.
    pub on_input: bool,
    /// `cap · tanh(logit / cap)` on the router's logits.
    pub cap: Option<f32>,
    /// The expert that every token goes to.
    pub shared: Option<SharedExpert>,
    /// Its gate over up, where directories have them as one.
    pub shared_fused: Option<&'static str>,
    /// Whether experts have gates; without, they are `down(act(up(x)))`, the one that every token goes to included.
    pub gated: bool,
    /// What experts see in place of the residual stream.
    pub latent: Option<ExpertLatent>,
    /// The format that experts are published in, which they keep when the rest is quantized.
    pub published: Option<Format>,
    /// What mlx-lm quantizes otherwise than the rest.
    pub in_mlx: InMlx,
}

/// The size of experts: the fields of their number, of those that a token goes to, and of their width, and what absence means for
/// each.
pub(super) fn experts(
    fields: &Fields<'_>,
    [count, each, inner]: [&'static str; 3],
    absent: [usize; 3],
) -> Result<Experts> {
    let used = fields.size_or(each, Some(absent[1]), MOST)?;
    experts_of(fields, [count, inner], [absent[0], absent[2]], (each, used))
}

/// Experts of all layers, more than any model has; the ids of a step are counted in 32 bits.
pub(super) const MOST: usize = 1 << 16;

/// The same with the number of those that a token goes to, which the field of this name says.
pub(super) fn experts_of(
    fields: &Fields<'_>,
    [count, inner]: [&'static str; 2],
    absent: [usize; 2],
    (each, used): (&str, usize),
) -> Result<Experts> {
    // transformers writes it by this name, whatever the family calls it.
    let name = if fields.get(count).is_none() { "num_local_experts" } else { count };
    let all = fields.size_or(name, Some(absent[0]), MOST)?;
    // Each is a module of the list of weights, in each layer.
    let layers = fields.size("num_hidden_layers", 1, 1024)?.unwrap_or(1);
    if all.saturating_mul(layers) > MOST {
        return Err(fields.error(name, all, format!("at most {}: {MOST} in {layers} layers", MOST / layers)));
    }
    // llama.cpp has no more; each of them is looked for among all.
    let most = all.min(1024);
    if used > most {
        return Err(fields.error(each, used, format!("at most {most}, of {all} experts")));
    }
    let inner_size = fields.size_or(inner, Some(absent[1]), 1 << 20)?;
    Ok(Experts {
        count: all,
        used,
        inner: inner_size,
        field: inner,
        everywhere: true,
        normalised: false,
        shared: 0,
        clamp: None,
    })
}

/// The layers that have experts: each `decoder_sparse_step`-th, but for those that `mlp_only_layers` names.
pub(super) fn sparse_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    let step = fields.size_or("decoder_sparse_step", Some(1), 1 << 20)?;
    let dense = fields.tokens("mlp_only_layers")?.unwrap_or_default();
    Ok((0..layers)
        .map(|layer| !dense.contains(&(layer as u32)) && (layer + 1).is_multiple_of(step))
        .collect())
}

impl Sparse {
    /// Experts in every layer, chosen by the softmax over all of them.
    pub fn softmax(layers: usize, size: Experts, activation: Activation) -> Self {
        let routing =
            Router { scores: Scores::Softmax, used: size.used, groups: None, normalise: None, scale: 1.0 };
        Self {
            layers: vec![true; layers],
            size,
            router: ("mlp.gate", "ffn_gate_inp"),
            bias: None,
            routing,
            scales: None,
            used: Vec::new(),
            names: ExpertNames::PLAIN,
            biases: false,
            turned: None,
            gating: Gating::Plain(activation),
            on_input: false,
            cap: None,
            shared: None,
            shared_fused: None,
            gated: true,
            latent: None,
            published: None,
            in_mlx: InMlx::default(),
        }
    }

    /// What the configuration holds of them.
    pub fn described(&self) -> Experts {
        Experts {
            everywhere: self.layers.iter().all(|&is_sparse| is_sparse),
            normalised: self.routing.normalise.is_some(),
            shared: self.shared.map_or(0, |shared| shared.inner),
            clamp: match self.gating {
                Gating::Clamped { alpha, limit } => Some([alpha, limit]),
                Gating::Plain(_) => None,
            },
            ..self.size
        }
    }

    /// Whether a layer has experts.
    pub fn is_of(&self, layer: usize) -> bool {
        self.layers.get(layer).copied().unwrap_or(false)
    }

    /// Adds those of layer `layer`, whose names begin with `prefix` and with `blk`.
    pub fn list(&self, list: &mut WeightList, config: &Config, [prefix, blk]: [&str; 2]) {
        let Experts { count, inner, field, .. } = config.experts.unwrap_or(self.size);
        let hidden = &config.hidden_dim();
        let name = |(own, gguf): Name| [format!("{prefix}.{own}"), format!("{blk}.{gguf}")];
        if let Some((own, gguf)) = self.bias {
            let name = format!("{prefix}.{own}");
            list.push(ModuleSpec {
                stacked: vec![(name.clone(), 0..count)],
                name,
                rows: Dim { field: "num_experts", size: count },
                columns: None,
                bias: true,
                form: Form::Plain,
                gguf: Some(GgufSpec { name: format!("{blk}.{gguf}"), form: Form::Plain, fused: Vec::new() }),
            });
        }
        if let Some((own, gguf)) = self.scales {
            let name = format!("{prefix}.{own}");
            list.push(ModuleSpec {
                stacked: vec![(name.clone(), 0..count)],
                name,
                rows: Dim { field: "num_experts", size: count },
                columns: None,
                bias: false,
                form: Form::Plain,
                gguf: Some(GgufSpec { name: format!("{blk}.{gguf}"), form: Form::Plain, fused: Vec::new() }),
            });
        }
        if let (Some(fused), Some(shared)) = (self.shared_fused, &self.shared) {
            let module = ModuleSpec {
                name: format!("{prefix}.{fused}"),
                rows: Dim { field: shared.field, size: 2 * shared.inner },
                columns: Some(hidden.clone()),
                bias: true,
                form: Form::Plain,
                gguf: None,
                stacked: Vec::new(),
            };
            list.push_split(module, Split::Rows);
        }
        let mut matrix = |[name, gguf]: [String; 2], split: Option<Split>, rows: Dim, columns: Dim| {
            let gguf = Some(GgufSpec { name: gguf, form: Form::Plain, fused: Vec::new() });
            let module = ModuleSpec {
                name,
                rows,
                columns: Some(columns),
                bias: true,
                form: Form::Plain,
                gguf,
                stacked: Vec::new(),
            };
            match split {
                Some(split) => list.push_split(module, split),
                None => list.push(module),
            }
        };
        matrix(name(self.router), None, Dim { field: "num_experts", size: count }, hidden.clone());
        if let Some(shared) = &self.shared {
            let width = Dim { field: shared.field, size: shared.inner };
            let [gate, up, down] = shared.names;
            if self.gated {
                matrix(name(gate), Some(Split::Rows), width.clone(), hidden.clone());
            }
            matrix(name(up), Some(Split::Rows), width.clone(), hidden.clone());
            matrix(name(down), Some(Split::Columns), hidden.clone(), width);
            if let Some(gate) = shared.gate {
                matrix(name(gate), None, Dim { field: "1", size: 1 }, hidden.clone());
            }
        }
        let latent = self.latent.map(|latent| {
            let width = Dim { field: latent.field, size: latent.width };
            let [down, up] = latent.names;
            matrix(name(down), None, width.clone(), hidden.clone());
            matrix(name(up), None, hidden.clone(), width.clone());
            width
        });
        let hidden = latent.as_ref().unwrap_or(hidden);
        let inner = Dim { field, size: inner };
        let names = &self.names;
        if let Some((form, [fused, _])) = self.turned {
            for expert in 0..count {
                let rows = expert * 2 * inner.size..(expert + 1) * 2 * inner.size;
                // Dense ones have them as columns, of as many rows as the model is wide.
                let turned = expert * hidden.size..(expert + 1) * hidden.size;
                let stacked = ["_blocks", "_scales", "_bias"]
                    .map(|end| (format!("{prefix}.{fused}{end}"), rows.clone()));
                let module = ModuleSpec {
                    name: self.fused(prefix, expert),
                    rows: Dim { field: "2 * intermediate_size", size: 2 * inner.size },
                    columns: Some(hidden.clone()),
                    bias: self.biases,
                    form,
                    gguf: None,
                    stacked: stacked.into_iter().chain([(format!("{prefix}.{fused}"), turned)]).collect(),
                };
                list.push_split(module, Split::Rows);
            }
        }
        for expert in 0..count {
            for (part, (stack, gguf)) in self.parts() {
                let (rows, columns) = if part == 2 { (hidden, &inner) } else { (&inner, hidden) };
                let of_stack = expert * rows.size..(expert + 1) * rows.size;
                // Gate over up: two stretches of rows for each expert.
                let first = (2 * expert + part) * inner.size;
                let fused = match part {
                    2 => (names.fused_down, of_stack.clone()),
                    _ if !self.gated => (names.fused, of_stack.clone()),
                    _ => (names.fused, first..first + inner.size),
                };
                let stacked =
                    [(format!("{}.{stack}", names.stacks), of_stack.clone()), (fused.0.to_owned(), fused.1)];
                let gguf = format!("{blk}.{gguf}");
                let mut held = vec![(gguf.clone(), of_stack)];
                if part != 2 && self.gated {
                    held.push((format!("{blk}.{GATE_UP}"), first..first + inner.size));
                }
                let gguf = GgufSpec { name: gguf, form: Form::Plain, fused: held };
                let mut stacked: Vec<(String, Range<usize>)> =
                    stacked.map(|(name, rows)| (format!("{prefix}.{name}"), rows)).into();
                // Of families whose stacks have one name in both kinds of directories.
                stacked.dedup();
                let mut form = Form::Plain;
                if let Some((_, [fused, down])) = self.turned {
                    stacked.retain(|(name, _)| !name.ends_with(fused) && !name.ends_with(down));
                }
                if let (Some((_, [_, down])), 2) = (self.turned, part) {
                    let turned = expert * columns.size..(expert + 1) * columns.size;
                    stacked.push((format!("{prefix}.{down}"), turned));
                    let ends = ["_blocks", "_scales", "_bias"].map(|end| format!("{prefix}.{down}{end}"));
                    stacked.extend(ends.map(|name| (name, expert * rows.size..(expert + 1) * rows.size)));
                    form = Form::Transposed;
                }
                let module = ModuleSpec {
                    name: self.expert(prefix, expert, part),
                    rows: rows.clone(),
                    columns: Some(columns.clone()),
                    bias: self.biases,
                    form,
                    gguf: Some(gguf),
                    stacked,
                };
                list.push_split(module, if part == 2 { Split::Columns } else { Split::Rows });
            }
        }
        let all = |name: &dyn Fn(usize) -> String| -> Vec<String> { (0..count).map(name).collect() };
        for (part, (stack, gguf)) in self.parts() {
            let has_fused = part < 2 && self.turned.is_some();
            let fused = has_fused.then(|| (all(&|expert| self.fused(prefix, expert)), part * inner.size));
            list.push_stack(StackSpec {
                mlx: format!("{prefix}.{}.{stack}", names.stacks),
                gguf: format!("{blk}.{gguf}"),
                each: all(&|expert| self.expert(prefix, expert, part)),
                fused,
                shape: if part == 2 { [hidden.size, inner.size] } else { [inner.size, hidden.size] },
                published: self.published,
            });
        }
        list.set_in_mlx(self.in_mlx);
    }

    /// The parts of an expert, by their numbers, and how MLX directories and GGUF files name them.
    fn parts(&self) -> impl Iterator<Item = (usize, (&'static str, &'static str))> + use<> {
        let parts = if self.gated { PARTS } else { UNGATED };
        parts.into_iter().enumerate().skip(usize::from(!self.gated))
    }

    /// The module of gate and up of an expert.
    fn fused(&self, prefix: &str, expert: usize) -> String {
        format!("{prefix}.{}.{expert}.gate_up_proj", self.names.each)
    }

    /// The module of a part of an expert.
    fn expert(&self, prefix: &str, expert: usize, part: usize) -> String {
        format!("{prefix}.{}.{expert}.{}", self.names.each, self.names.parts[part])
    }

    /// Loads those of layer `layer`, whose names begin with `prefix`.
    pub fn load(&self, loader: &Loader<'_>, layer: usize, prefix: &str) -> Result<SparseMlp> {
        let size = loader.config.experts.unwrap_or(self.size);
        let prepared = |each: Vec<Expert>| {
            let (each, biases): (Vec<Matrix>, Vec<Option<Vec<f32>>>) = each.into_iter().unzip();
            let rows = each.first().map_or(0, |matrix| matrix.as_ref().shape()[0]);
            let some: Vec<Vec<f32>> = biases.into_iter().flatten().collect();
            let bias = match some.len() {
                0 => None,
                all if all == size.count => {
                    let bias = Weight::of_values(prefix, &[size.count, rows], some.concat());
                    Some(loader.ops.vector(&bias))
                }
                all => {
                    let what = format!("{all} of {} experts have biases, expected all or none", size.count);
                    return Err(loader.wrong(prefix, what));
                }
            };
            Ok(Projections { weight: loader.ops.stack(&Stack::new(each)), bias })
        };
        let part = |part: usize| -> Result<Projections> {
            let each = (0..size.count).map(|expert| {
                let name = self.expert(prefix, expert, part);
                let bias = loader.bias(&name)?.map(|bias| bias.widened()).transpose()?;
                Ok((loader.matrix(&name)?, bias))
            });
            prepared(each.collect::<Result<Vec<Expert>>>()?)
        };
        let fused = self.turned.is_some() && loader.has(&self.fused(prefix, 0));
        let (gate, up) = match fused {
            false if !self.gated => (None, part(1)?),
            false => (Some(part(0)?), part(1)?),
            true => {
                let (mut gates, mut ups) = (Vec::new(), Vec::new());
                for expert in 0..size.count {
                    let name = self.fused(prefix, expert);
                    let both = loader.whole(&name)?;
                    let bias = loader.whole_bias(&name)?.map(|bias| bias.widened()).transpose()?;
                    let [of_gate, of_up] =
                        [0, size.inner].map(|first| loader.rows_of(&name, first..first + size.inner));
                    let every_other = |from: usize| {
                        let of_all = bias.as_ref().map(|bias| bias.iter().skip(from).step_by(2));
                        of_all.map(|all| all.skip(of_gate.start).take(of_gate.len()).copied().collect())
                    };
                    let [of_gate_bias, of_up_bias] = [every_other(0), every_other(1)];
                    gates.push((both.rows("gate", of_gate.clone()), of_gate_bias));
                    ups.push((both.rows("up", of_up), of_up_bias));
                }
                (Some(prepared(gates)?), prepared(ups)?)
            }
        };
        let path = |name: Name| format!("{prefix}.{}", name.0);
        let activation = loader.config.hidden_act;
        let shared = self.shared.map(|shared| -> Result<Shared> {
            let [gate, up, down] = shared.names;
            // Summed with what the experts give.
            let linear = |name: Name| Linear::load(loader, &path(name)).map(Linear::unsummed);
            let mlp = match self.shared_fused.filter(|_| !loader.has(&path(gate))) {
                _ if !self.gated => Mlp::Plain { fc1: linear(up)?, fc2: linear(down)?, activation },
                None => Mlp::Gated { gate: linear(gate)?, up: linear(up)?, down: linear(down)?, activation },
                Some(fused) => {
                    let parts = [("gate", shared.inner), ("up", shared.inner)];
                    let [gate, up] = Linear::split(loader, &format!("{prefix}.{fused}"), parts)?;
                    Mlp::Gated { gate, up, down: linear(down)?, activation }
                }
            };
            let gate = shared.gate.map(|gate| Linear::exact(loader, &path(gate))).transpose()?;
            Ok(Shared { mlp, gate })
        });
        let latent = self.latent.map(|latent| -> Result<[Linear; 2]> {
            let [down, up] = latent.names.map(|name| Linear::load(loader, &path(name)));
            Ok([down?, up?])
        });
        let bias = self.bias.map(|bias| Ok(loader.ops.vector(&loader.only_bias(&path(bias))?)));
        let scales = self.scales.map(|scales| loader.vector(&path(scales))).transpose()?;
        Ok(SparseMlp {
            router: Linear::exact(loader, &path(self.router))?,
            bias: bias.transpose()?,
            scales: scales.map(|scales| loader.ops.vector(&scales)),
            routing: Router {
                used: self.used.get(layer).copied().unwrap_or(self.routing.used),
                ..self.routing
            },
            gate,
            up,
            down: part(2)?,
            gating: self.gating,
            on_input: self.on_input,
            cap: self.cap,
            shared: shared.transpose()?,
            latent: latent.transpose()?,
            summed: loader.is_summed(&self.expert(prefix, 0, 2)),
        })
    }
}

/// The expert that every token goes to.
#[derive(Debug)]
struct Shared {
    mlp: Mlp,
    gate: Option<Linear>,
}

/// The matrix of an expert, and its bias.
type Expert = (Matrix, Option<Vec<f32>>);

/// A projection of all experts.
#[derive(Debug)]
struct Projections {
    weight: PreparedStack,        // [E, N, K]
    bias: Option<PreparedVector>, // [E, N]
}

impl Projections {
    fn as_op(&self) -> ExpertProjection<'_, LlmBackendDispatch> {
        ExpertProjection { weight: &self.weight, bias: self.bias.as_ref() }
    }
}

/// A feed-forward part of experts.
#[derive(Debug)]
pub struct SparseMlp {
    router: Linear,
    bias: Option<PreparedVector>,
    scales: Option<PreparedVector>,
    routing: Router,
    gate: Option<Projections>,
    up: Projections,
    down: Projections,
    gating: Gating,
    on_input: bool,
    cap: Option<f32>,
    shared: Option<Shared>,
    /// To what experts see, and back.
    latent: Option<[Linear; 2]>,
    /// Whether it has a part of each expert, and what they give is summed over the ranks.
    summed: bool,
}

impl SparseMlp {
    /// `[T, D]` → `[T, D]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        self.forward_by(step, x, x)
    }

    /// The same of `x`, for which the router sees `h`, `[T, D]` both.
    pub fn forward_by(&self, step: &Step<'_>, h: &Tensor, x: &Tensor) -> Result<Tensor> {
        let mut logits = self.router.forward(step, h)?; // [T, E]
        if let Some(cap) = self.cap {
            logits = step.run(&Op::SoftCap { x: &logits, cap })?;
        }
        let bias = self.bias.as_ref();
        let (scales, router) = (self.scales.as_ref(), self.routing);
        let [ids, weights] = step.run_all(&Op::Route { logits: &logits, bias, scales, router })?;
        let seen = self.latent.as_ref().map(|[down, _]| down.forward(step, x)).transpose()?;
        let mut y = step.run(&Op::Experts {
            x: seen.as_ref().unwrap_or(x),
            ids: &ids,
            weights: &weights,
            gate: self.gate.as_ref().map(Projections::as_op),
            up: self.up.as_op(),
            down: self.down.as_op(),
            gating: self.gating,
            on_input: self.on_input,
        })?;
        if let Some([_, up]) = &self.latent {
            y = up.forward(step, &y)?;
        }
        if let Some(own) = self.shared(step, x)? {
            y = step.add(&y, &own)?;
        }
        if self.summed { step.run(&Op::AllSum { x: &y }) } else { Ok(y) }
    }

    /// What the expert that every token goes to gives, where there is one.
    fn shared(&self, step: &Step<'_>, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(shared) = &self.shared else { return Ok(None) };
        let mut own = shared.mlp.forward(step, x)?;
        if let Some(gate) = &shared.gate {
            let (gate, kind) = (&gate.forward(step, x)?, GateKind::Sigmoid);
            own = step.run(&Op::Gate { x: &own, gate, kind })?;
        }
        Ok(Some(own))
    }
}
