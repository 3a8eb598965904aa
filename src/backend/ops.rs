//! Ops as data: what a forward pass asks of a backend, how its shapes are checked, and how a fused op is composed of
//! plain ones.
//!
//! An [`Op`] borrows its operands. [`Op::check`] is the one place that knows which shapes fit; [`compose`] is the
//! executable specification of the fused ops, and what a backend without a fused kernel runs.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use smallvec::{SmallVec, smallvec};

use super::batch::{Mask, RopeStep, Tokens};
use super::kv::KvLayer;
use crate::config::Activation;
use crate::error::{Error, Result};
use crate::quant::MatrixRef;
use crate::tensor::{Shape, Tensor, Weight};

/// The results of an op: one for plain ops, which are moved about a lot, up to three for fused ones.
pub type Outputs = SmallVec<[Tensor; 1]>;

/// What an op is called: in logs, counters, errors and fault injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OpKind {
    /// Rows of the embedding table.
    Embedding,
    /// `x · Wᵀ + b`.
    Linear,
    /// Root-mean-square norm.
    RmsNorm,
    /// Layer norm.
    LayerNorm,
    /// `x · sigmoid(x)`.
    Silu,
    /// The Gaussian error linear unit, by erf or by tanh.
    Gelu,
    /// Elementwise sum.
    Add,
    /// Elementwise product.
    Mul,
    /// Product with a number.
    Scale,
    /// `cap · tanh(x / cap)`.
    SoftCap,
    /// Rotary position embedding.
    Rope,
    /// A write to the KV cache.
    KvWrite,
    /// Grouped-query attention over the KV cache.
    Attention,
    /// Some rows of a matrix.
    TakeRows,
    /// Fused: `act(x · Wgᵀ) ∘ (x · Wuᵀ)`.
    GateUp,
    /// Fused: residual sum and norm.
    AddRmsNorm,
    /// Fused: the three projections of attention.
    Qkv,
}

impl OpKind {
    /// Every op, in the order of their declaration.
    pub const ALL: [Self; 17] = [
        Self::Embedding,
        Self::Linear,
        Self::RmsNorm,
        Self::LayerNorm,
        Self::Silu,
        Self::Gelu,
        Self::Add,
        Self::Mul,
        Self::Scale,
        Self::SoftCap,
        Self::Rope,
        Self::KvWrite,
        Self::Attention,
        Self::TakeRows,
        Self::GateUp,
        Self::AddRmsNorm,
        Self::Qkv,
    ];

    /// The name in logs, counters and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Linear => "linear",
            Self::RmsNorm => "rms_norm",
            Self::LayerNorm => "layer_norm",
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Scale => "scale",
            Self::SoftCap => "soft_cap",
            Self::Rope => "rope",
            Self::KvWrite => "kv_write",
            Self::Attention => "attention",
            Self::TakeRows => "take_rows",
            Self::GateUp => "gate_up",
            Self::AddRmsNorm => "add_rms_norm",
            Self::Qkv => "qkv",
        }
    }
}

impl FromStr for OpKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|op| op.name() == name).ok_or_else(|| Error::Option {
            option: "cpu_ops",
            got: name.to_owned(),
            expected: "names of ops: embedding, linear, rms_norm, layer_norm, silu, gelu, add, mul, scale, soft_cap, \
                rope, kv_write, attention, take_rows, gate_up, add_rms_norm, qkv",
        })
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A projection: a weight `[N, K]` and, where the checkpoint has one, a bias `[N]`.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    /// `[N, K]`, row-major or in blocks.
    pub weight: MatrixRef<'a>,
    /// `[N]`.
    pub bias: Option<&'a Weight>,
}

/// One op with its operands. Activations are `[T, …]`: the rows of all runs of the step.
#[derive(Debug, Clone)]
pub enum Op<'a> {
    /// Rows `tokens` of `table` `[V, D]`, times `scale` → `[T, D]`.
    Embedding {
        /// The embedding table.
        table: MatrixRef<'a>,
        /// Ids below `V`.
        tokens: &'a Tokens,
        /// Multiplies the rows (Gemma's √D), 1 elsewhere.
        scale: f32,
    },
    /// `x · Wᵀ + b`: `[T, K]` → `[T, N]`.
    Linear {
        /// `[T, K]`.
        x: &'a Tensor,
        /// `[N, K]` and `[N]`.
        projection: Projection<'a>,
    },
    /// `x / √(mean(x²) + eps) · (weight + offset)` over each stretch of `weight.len()` elements of a row.
    RmsNorm {
        /// `[T, D]`.
        x: &'a Tensor,
        /// `[N]`, `N` dividing `D` (the head dimension for a norm per head).
        weight: &'a Weight,
        /// Added to the mean square.
        eps: f32,
        /// Added to the weight: 1 for Gemma, else 0.
        offset: f32,
    },
    /// `(x − mean) / √(var + eps) · weight + bias` over each stretch of `weight.len()` elements of a row.
    LayerNorm {
        /// `[T, D]`.
        x: &'a Tensor,
        /// `[N]`, `N` dividing `D`.
        weight: &'a Weight,
        /// `[N]`.
        bias: Option<&'a Weight>,
        /// Added to the variance.
        eps: f32,
    },
    /// An activation function, elementwise.
    Activate {
        /// Any shape.
        x: &'a Tensor,
        /// Which.
        activation: Activation,
    },
    /// `a + b`, equal shapes.
    Add {
        /// Any shape.
        a: &'a Tensor,
        /// As `a`.
        b: &'a Tensor,
    },
    /// `a ∘ b`, equal shapes.
    Mul {
        /// Any shape.
        a: &'a Tensor,
        /// As `a`.
        b: &'a Tensor,
    },
    /// `x · by`.
    Scale {
        /// Any shape.
        x: &'a Tensor,
        /// The factor.
        by: f32,
    },
    /// `cap · tanh(x / cap)`.
    SoftCap {
        /// Any shape.
        x: &'a Tensor,
        /// Above 0.
        cap: f32,
    },
    /// Rotates the first `rope.dims` elements of each head, pairs `(i, i + dims/2)`.
    Rope {
        /// `[T, H * head_dim]`.
        x: &'a Tensor,
        /// Elements of a head.
        head_dim: usize,
        /// The step's tables.
        rope: &'a RopeStep,
    },
    /// Softmax(scale · q kᵀ, soft-capped, masked) · v over the cache, query head `h` reading key/value head
    /// `h / (H / KH)`.
    Attention {
        /// `[T, H * head_dim]`.
        q: &'a Tensor,
        /// The layer's cache of each run's sequence, in the order of the mask's runs, this step's keys included.
        kv: &'a [&'a KvLayer],
        /// What each row may see.
        mask: &'a Mask,
        /// Multiplies the scores.
        scale: f32,
        /// `cap · tanh(score / cap)` after the scale.
        soft_cap: Option<f32>,
    },
    /// Rows `rows` of `x`.
    TakeRows {
        /// `[T, D]`.
        x: &'a Tensor,
        /// Indices below `T`.
        rows: &'a [usize],
    },
    /// Fused `act(x · Wgᵀ + bg) ∘ (x · Wuᵀ + bu)`: `[T, K]` → `[T, N]`.
    GateUp {
        /// `[T, K]`.
        x: &'a Tensor,
        /// `[N, K]`.
        gate: Projection<'a>,
        /// `[N, K]`.
        up: Projection<'a>,
        /// Applied to the gate.
        activation: Activation,
    },
    /// Fused: `sum = a + b`, and its RMS norm; two outputs.
    AddRmsNorm {
        /// `[T, D]`.
        a: &'a Tensor,
        /// `[T, D]`.
        b: &'a Tensor,
        /// `[N]`, `N` dividing `D`.
        weight: &'a Weight,
        /// Added to the mean square.
        eps: f32,
        /// Added to the weight.
        offset: f32,
    },
    /// Fused: three projections of one input; three outputs.
    Qkv {
        /// `[T, K]`.
        x: &'a Tensor,
        /// Query, key and value projections.
        projections: [Projection<'a>; 3],
    },
}

impl<'a> Op<'a> {
    /// What this op is called.
    pub fn kind(&self) -> OpKind {
        match self {
            Self::Embedding { .. } => OpKind::Embedding,
            Self::Linear { .. } => OpKind::Linear,
            Self::RmsNorm { .. } => OpKind::RmsNorm,
            Self::LayerNorm { .. } => OpKind::LayerNorm,
            Self::Activate { activation: Activation::Silu, .. } => OpKind::Silu,
            Self::Activate { .. } => OpKind::Gelu,
            Self::Add { .. } => OpKind::Add,
            Self::Mul { .. } => OpKind::Mul,
            Self::Scale { .. } => OpKind::Scale,
            Self::SoftCap { .. } => OpKind::SoftCap,
            Self::Rope { .. } => OpKind::Rope,
            Self::Attention { .. } => OpKind::Attention,
            Self::TakeRows { .. } => OpKind::TakeRows,
            Self::GateUp { .. } => OpKind::GateUp,
            Self::AddRmsNorm { .. } => OpKind::AddRmsNorm,
            Self::Qkv { .. } => OpKind::Qkv,
        }
    }

    /// Whether [`compose`] knows this op's parts.
    pub fn is_fused(&self) -> bool {
        matches!(self, Self::GateUp { .. } | Self::AddRmsNorm { .. } | Self::Qkv { .. })
    }

    /// Whether it reads a matrix in blocks.
    pub fn is_quantized(&self) -> bool {
        let in_blocks = |projection: &Projection<'_>| matches!(projection.weight, MatrixRef::Quantized(_));
        match self {
            Self::Embedding { table, .. } => matches!(table, MatrixRef::Quantized(_)),
            Self::Linear { projection, .. } => in_blocks(projection),
            Self::GateUp { gate, up, .. } => in_blocks(gate) || in_blocks(up),
            Self::Qkv { projections, .. } => projections.iter().any(in_blocks),
            _ => false,
        }
    }

    /// The activations that the op reads, in the order that [`Self::with_inputs`] takes them.
    pub fn inputs(&self) -> SmallVec<[&'a Tensor; 2]> {
        match *self {
            Self::Embedding { tokens: Tokens::Pending(ids), .. } => smallvec![ids],
            Self::Embedding { .. } => smallvec![],
            Self::Linear { x, .. }
            | Self::RmsNorm { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Activate { x, .. }
            | Self::Scale { x, .. }
            | Self::SoftCap { x, .. }
            | Self::Rope { x, .. }
            | Self::TakeRows { x, .. }
            | Self::GateUp { x, .. }
            | Self::Qkv { x, .. } => smallvec![x],
            Self::Attention { q, .. } => smallvec![q],
            Self::Add { a, b } | Self::Mul { a, b } | Self::AddRmsNorm { a, b, .. } => smallvec![a, b],
        }
    }

    /// The same op on other copies of its activations: what a fallback runs.
    ///
    /// # Panics
    /// Where there are fewer inputs than [`Self::inputs`] gave.
    pub fn with_inputs<'b>(&self, inputs: &'b [Tensor]) -> Op<'b>
    where
        'a: 'b,
    {
        let mut op: Op<'b> = self.clone();
        match &mut op {
            Op::Embedding { .. } => {}
            Op::Linear { x, .. }
            | Op::RmsNorm { x, .. }
            | Op::LayerNorm { x, .. }
            | Op::Activate { x, .. }
            | Op::Scale { x, .. }
            | Op::SoftCap { x, .. }
            | Op::Rope { x, .. }
            | Op::TakeRows { x, .. }
            | Op::GateUp { x, .. }
            | Op::Qkv { x, .. } => *x = &inputs[0],
            Op::Attention { q, .. } => *q = &inputs[0],
            Op::Add { a, b } | Op::Mul { a, b } | Op::AddRmsNorm { a, b, .. } => {
                *a = &inputs[0];
                *b = &inputs[1];
            }
        }
        op
    }

    /// Checks every shape, so that backends need not.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the op, what was expected and what was got.
    pub fn check(&self) -> Result<()> {
        let op = self.kind().name();
        let refuse = |what: String| Err(Error::shape(op, what));
        match *self {
            Self::Embedding { table, tokens, .. } => {
                let [rows, _] = *table.shape() else {
                    return refuse(format!("table has shape {:?}, expected [V, D]", table.shape()));
                };
                if let Tokens::Known(ids) = tokens
                    && let Some(id) = ids.iter().find(|&&id| id as usize >= rows)
                {
                    return refuse(format!("token id {id}, expected one below the table's {rows} rows"));
                }
                Ok(())
            }
            Self::Linear { x, projection } => check_projection(op, x, &projection),
            Self::GateUp { x, gate, up, .. } => {
                check_projection(op, x, &gate)?;
                check_projection(op, x, &up)?;
                if gate.weight.shape() != up.weight.shape() {
                    return refuse(format!(
                        "gate is {:?} and up {:?}, expected equal shapes",
                        gate.weight.shape(),
                        up.weight.shape()
                    ));
                }
                Ok(())
            }
            Self::Qkv { x, projections } => {
                projections.iter().try_for_each(|projection| check_projection(op, x, projection))
            }
            Self::RmsNorm { x, weight, .. } => check_norm(op, x, weight),
            Self::LayerNorm { x, weight, bias, .. } => {
                check_norm(op, x, weight)?;
                match bias {
                    Some(bias) if bias.shape() != weight.shape() => refuse(format!(
                        "bias is {:?} and weight {:?}, expected equal shapes",
                        bias.shape(),
                        weight.shape()
                    )),
                    _ => Ok(()),
                }
            }
            Self::Add { a, b } | Self::Mul { a, b } => check_equal(op, a, b),
            Self::AddRmsNorm { a, b, weight, .. } => {
                check_equal(op, a, b)?;
                check_norm(op, a, weight)
            }
            Self::Activate { .. } | Self::Scale { .. } => Ok(()),
            Self::SoftCap { cap, .. } => {
                if cap.is_finite() && cap > 0.0 {
                    Ok(())
                } else {
                    refuse(format!("cap is {cap}, expected above 0"))
                }
            }
            Self::Rope { x, head_dim, rope } => {
                let (rows, width) = matrix(op, x)?;
                let half = rope.dims / 2;
                if head_dim == 0 || width % head_dim != 0 || rope.dims > head_dim || rope.dims % 2 != 0 {
                    return refuse(format!(
                        "x is {:?} with heads of {head_dim} and {} rotated, expected whole heads and an even part of one",
                        x.shape(),
                        rope.dims
                    ));
                }
                if rope.cos.len() != rows * half || rope.sin.len() != rows * half {
                    return refuse(format!(
                        "tables have {} and {} elements, expected {rows} rows of {half}",
                        rope.cos.len(),
                        rope.sin.len()
                    ));
                }
                Ok(())
            }
            Self::Attention { q, kv, mask, .. } => {
                let (rows, width) = matrix(op, q)?;
                if mask.visible.len() != rows || mask.runs.iter().map(|run| run.len).sum::<usize>() != rows {
                    return refuse(format!("the mask has {} rows, q {rows}", mask.visible.len()));
                }
                if kv.len() != mask.runs.len() {
                    return refuse(format!("{} caches for {} runs", kv.len(), mask.runs.len()));
                }
                let mut next = 0;
                for (run, layer) in mask.runs.iter().zip(kv) {
                    let shape = layer.shape();
                    if run.row != next {
                        return refuse(format!("a run starts at row {}, expected {next}", run.row));
                    }
                    next += run.len;
                    if shape != kv[0].shape() {
                        return refuse(format!(
                            "caches of {:?} and {shape:?}, expected one shape",
                            kv[0].shape()
                        ));
                    }
                    let group = shape.heads * shape.head_dim;
                    if group == 0 || width % group != 0 {
                        return refuse(format!(
                            "q is {:?}, expected a multiple of {} key/value heads of {}",
                            q.shape(),
                            shape.heads,
                            shape.head_dim
                        ));
                    }
                    if layer.len() != run.end() {
                        return refuse(format!(
                            "the cache of sequence {} holds {} tokens, expected {}",
                            run.sequence,
                            layer.len(),
                            run.end()
                        ));
                    }
                    let unfit = |keys: &&Range<usize>| keys.is_empty() || keys.end > run.end();
                    if let Some(keys) = mask.visible[run.rows()].iter().find(unfit) {
                        return refuse(format!("a row sees keys {keys:?}, expected some of {}", run.end()));
                    }
                }
                Ok(())
            }
            Self::TakeRows { x, rows } => {
                let (height, _) = matrix(op, x)?;
                match rows.iter().find(|&&row| row >= height) {
                    Some(row) => refuse(format!("row {row}, expected one below {height}")),
                    None => Ok(()),
                }
            }
        }
    }

    /// The shape of each output, for an op that [`Self::check`] accepts.
    pub fn output_shapes(&self) -> SmallVec<[Shape; 1]> {
        let projected = |x: &Tensor, projection: &Projection<'_>| -> Shape {
            smallvec![x.shape()[0], projection.weight.shape()[0]]
        };
        match *self {
            Self::Embedding { table, tokens, .. } => smallvec![smallvec![tokens.len(), table.shape()[1]]],
            Self::Linear { x, projection } => smallvec![projected(x, &projection)],
            Self::GateUp { x, gate, .. } => smallvec![projected(x, &gate)],
            Self::Qkv { x, projections } => {
                projections.iter().map(|projection| projected(x, projection)).collect()
            }
            Self::TakeRows { x, rows } => smallvec![smallvec![rows.len(), x.shape()[1]]],
            Self::AddRmsNorm { a, .. } => smallvec![a.shape().into(), a.shape().into()],
            Self::Add { a, .. } | Self::Mul { a, .. } => smallvec![a.shape().into()],
            Self::Attention { q, .. } => smallvec![q.shape().into()],
            Self::RmsNorm { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Activate { x, .. }
            | Self::Scale { x, .. }
            | Self::SoftCap { x, .. }
            | Self::Rope { x, .. } => smallvec![x.shape().into()],
        }
    }
}

/// Rows and columns of `x`.
fn matrix(op: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match *x.shape() {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(Error::shape(op, format!("x is {:?}, expected [T, D]", x.shape()))),
    }
}

fn check_equal(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() == b.shape() {
        return Ok(());
    }
    Err(Error::shape(op, format!("a is {:?} and b {:?}, expected equal shapes", a.shape(), b.shape())))
}

fn check_norm(op: &'static str, x: &Tensor, weight: &Weight) -> Result<()> {
    let (_, width) = matrix(op, x)?;
    let len = weight.len();
    if weight.shape().len() == 1 && len != 0 && width.is_multiple_of(len) {
        return Ok(());
    }
    let what = format!(
        "weight has {len} elements, expected {width} (last dim of x {:?}) or a part of it",
        x.shape()
    );
    Err(Error::shape(op, what))
}

fn check_projection(op: &'static str, x: &Tensor, projection: &Projection<'_>) -> Result<()> {
    let (_, width) = matrix(op, x)?;
    let [rows, columns] = *projection.weight.shape() else {
        let what = format!("weight is {:?}, expected [N, K]", projection.weight.shape());
        return Err(Error::shape(op, what));
    };
    if columns != width {
        let what =
            format!("weight is [{rows}, {columns}], expected [N, {width}] (last dim of x {:?})", x.shape());
        return Err(Error::shape(op, what));
    }
    match projection.bias {
        Some(bias) if bias.shape() != [rows] => {
            Err(Error::shape(op, format!("bias is {:?}, expected [{rows}]", bias.shape())))
        }
        _ => Ok(()),
    }
}

/// What computes ops: a backend, or the dispatch over them.
pub trait Ops {
    /// Runs one op that [`Op::check`] accepts, and returns its outputs in the order of its documentation.
    ///
    /// # Errors
    /// Whatever kept the backend from computing it.
    fn run(&self, op: &Op<'_>) -> Result<Outputs>;

    /// Runs an op with one output.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Panics
    /// Where the op has another number of outputs.
    fn run1(&self, op: &Op<'_>) -> Result<Tensor> {
        let mut outputs = self.run(op)?;
        assert_eq!(outputs.len(), 1, "{} has several outputs", op.kind());
        Ok(outputs.remove(0))
    }
}

/// A fused op by its plain parts: the specification of what a fused kernel computes.
///
/// # Errors
/// As the parts; a plain op has none and is an [`Error::Op`].
pub fn compose(ops: &(impl Ops + ?Sized), op: &Op<'_>) -> Result<Outputs> {
    match *op {
        Op::GateUp { x, gate, up, activation } => {
            let gate = ops.run1(&Op::Linear { x, projection: gate })?;
            let gate = ops.run1(&Op::Activate { x: &gate, activation })?;
            let up = ops.run1(&Op::Linear { x, projection: up })?;
            ops.run(&Op::Mul { a: &gate, b: &up })
        }
        Op::AddRmsNorm { a, b, weight, eps, offset } => {
            let sum = ops.run1(&Op::Add { a, b })?;
            let normed = ops.run1(&Op::RmsNorm { x: &sum, weight, eps, offset })?;
            Ok(smallvec![sum, normed])
        }
        Op::Qkv { x, projections } => projections
            .into_iter()
            .map(|projection| ops.run1(&Op::Linear { x, projection }))
            .collect::<Result<Outputs>>(),
        _ => Err(Error::Op {
            op: op.kind().name(),
            backend: "composition",
            reason: "a plain op has no parts".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused_with_the_list() {
        for op in OpKind::ALL {
            assert_eq!(op.to_string().parse::<OpKind>().unwrap(), op);
        }
        let error = "softmax".parse::<OpKind>().unwrap_err().to_string();
        assert!(error.contains("softmax"), "{error}");
        for op in OpKind::ALL {
            assert!(error.contains(op.name()), "{op} is missing: {error}");
        }
    }
}
