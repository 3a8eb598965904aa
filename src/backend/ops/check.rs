//! Which shapes fit an op.

use std::ops::Range;

use super::experts::{ExpertGroups, Router, Scores};
use super::{
    Ids, MatrixOperand, Op, Operands, Projection, StackOperand, State, TensorOperand, VectorOperand,
};
use crate::error::{Error, Result};
use crate::tensor::ElementType;

impl<B: Operands> Op<'_, B> {
    /// Checks every shape, so that backends need not.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the op, what was expected and what was got.
    pub fn check(&self) -> Result<()> {
        let op = self.kind().name();
        let refuse = |what: String| Err(Error::shape(op, what));
        let wanted = match self {
            Self::Embedding { .. } => ElementType::U32,
            // These have their own.
            Self::Experts { .. } => return check_experts(self),
            _ => ElementType::F32,
        };
        self.inputs().into_iter().try_for_each(|input| elements::<B>(op, input, wanted))?;
        match *self {
            Self::Embedding { table, tokens, .. } => {
                let [rows, _] = *table.shape() else {
                    return refuse(format!("table has shape {:?}, expected [V, D]", table.shape()));
                };
                match tokens {
                    Ids::Known(ids) => match ids.iter().find(|&&id| id as usize >= rows) {
                        Some(id) => {
                            refuse(format!("token id {id}, expected one below the table's {rows} rows"))
                        }
                        None => Ok(()),
                    },
                    Ids::Pending(ids) if ids.shape().len() != 1 => {
                        refuse(format!("ids have shape {:?}, expected [T]", ids.shape()))
                    }
                    Ids::Pending(_) => Ok(()),
                }
            }
            Self::Route { logits, bias, scales, ref router } => {
                check_route::<B>(logits, [bias, scales], router)
            }
            Self::Experts { .. } => check_experts(self),
            Self::Gate { x, gate, .. } => check_gate::<B>(x, gate),
            Self::Mix { x, by, into, width } => check_mix::<B>(x, by, into, width),
            Self::Cut { x, .. } | Self::AllSum { x } => matrix::<B>(op, x).map(|_| ()),
            Self::Join { a, b } => match (matrix::<B>(op, a)?, matrix::<B>(op, b)?) {
                ((rows, _), (others, _)) if rows == others => Ok(()),
                _ => refuse(format!("a is {:?} and b {:?}, expected as many rows", a.shape(), b.shape())),
            },
            Self::Linear { x, projection } => check_projection::<B>(op, x, &projection),
            Self::HeadLinear { x, weight, beside } => check_heads::<B>(x, weight, beside),
            Self::ScaleRows { x, by } => match matrix::<B>(op, x)? {
                (rows, _) if rows == by.len() => Ok(()),
                _ => refuse(format!(
                    "x is {:?} and there are {} factors, expected [T, D] and T",
                    x.shape(),
                    by.len()
                )),
            },
            Self::GateUp { x, gate, up, .. } => {
                check_projection::<B>(op, x, &gate)?;
                check_projection::<B>(op, x, &up)?;
                if gate.weight.shape() != up.weight.shape() {
                    return refuse(format!(
                        "gate is {:?} and up {:?}, expected equal shapes",
                        gate.weight.shape(),
                        up.weight.shape()
                    ));
                }
                Ok(())
            }
            Self::Adapt { x, into, rows, low, high, columns, .. } => {
                let (height, width) = matrix::<B>(op, x)?;
                let (into_height, columns_of) = matrix::<B>(op, into)?;
                let rank = low.shape().first().copied().unwrap_or(0);
                let fits = height == into_height
                    && *low.shape() == [rank, width]
                    && *high.shape() == [columns_of, rank]
                    && columns.iter().flatten().all(|of| *of.shape() == [2, columns_of]);
                if fits && rows.start <= rows.end && rows.end <= height {
                    return Ok(());
                }
                refuse(format!(
                    "x is {:?}, the product {:?}, A {:?} and B {:?} for rows {rows:?}, expected [T, K], [T, N], [r, K] and [N, r]",
                    x.shape(),
                    into.shape(),
                    low.shape(),
                    high.shape()
                ))
            }
            Self::Qkv { x, projections } => {
                projections.iter().try_for_each(|projection| check_projection::<B>(op, x, projection))
            }
            Self::RmsNorm { x, weight, .. } => match *weight.shape() {
                [heads, len] => check_head_norm::<B>(op, x, [heads, len], None),
                _ => check_norm::<B>(op, x, weight),
            },
            Self::LayerNorm { x, weight, bias, .. } => {
                if let [heads, len] = *weight.shape() {
                    return check_head_norm::<B>(op, x, [heads, len], bias);
                }
                check_norm::<B>(op, x, weight)?;
                match bias {
                    Some(bias) if bias.shape() != weight.shape() => refuse(format!(
                        "bias is {:?} and weight {:?}, expected equal shapes",
                        bias.shape(),
                        weight.shape()
                    )),
                    _ => Ok(()),
                }
            }
            Self::Add { a, b } | Self::Mul { a, b } => check_equal::<B>(op, a, b),
            Self::AddRmsNorm { a, b, weight, .. } => {
                check_equal::<B>(op, a, b)?;
                check_norm::<B>(op, a, weight)
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
                let (rows, width) = matrix::<B>(op, x)?;
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
            Self::Attention { q, kv, mask, sinks, bias, soft_cap, .. } => {
                let (rows, width) = matrix::<B>(op, q)?;
                if mask.visible.len() != rows || mask.runs.iter().map(|run| run.len).sum::<usize>() != rows {
                    return refuse(format!("the mask has {} rows, q {rows}", mask.visible.len()));
                }
                if kv.len() != mask.runs.len() {
                    return refuse(format!("{} caches for {} runs", kv.len(), mask.runs.len()));
                }
                if let (Some(bias), Some(layer)) = (bias, kv.first()) {
                    let heads = width.checked_div(layer.shape().k_dim).unwrap_or(0);
                    let odd = |all: usize| all.is_multiple_of(heads) && !(all / heads).is_multiple_of(2);
                    let is_odd = matches!(*bias.shape(), [all] if heads > 0 && odd(all));
                    if !is_odd || soft_cap.is_some() {
                        let what = "expected an odd number for each head, and no cap of scores";
                        return refuse(format!("the bias is {:?} for {heads} heads, {what}", bias.shape()));
                    }
                }
                if let (Some(sinks), Some(layer)) = (sinks, kv.first()) {
                    let heads = width.checked_div(layer.shape().k_dim).unwrap_or(0);
                    if sinks.shape() != [heads] {
                        return refuse(format!("sinks are {:?}, expected [{heads}]", sinks.shape()));
                    }
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
                    let [group, v_width] = shape.dims().map(|dim| shape.heads * dim);
                    if group == 0 || v_width == 0 || width % group != 0 {
                        return refuse(format!(
                            "q is {:?}, expected a multiple of {} key/value heads of {}",
                            q.shape(),
                            shape.heads,
                            shape.k_dim
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
                    let first = layer.first();
                    if let Some(keys) = mask.visible[run.rows()].iter().find(|keys| keys.start < first) {
                        return refuse(format!(
                            "a row sees keys {keys:?}, those before {first} were given back"
                        ));
                    }
                }
                Ok(())
            }
            Self::TakeRows { x, rows } => {
                let (height, _) = matrix::<B>(op, x)?;
                match rows.iter().find(|&&row| row >= height) {
                    Some(row) => refuse(format!("row {row}, expected one below {height}")),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Refuses elements that are not `wanted`.
fn elements<B: Operands>(op: &'static str, x: &B::Tensor, wanted: ElementType) -> Result<()> {
    if x.element() == wanted {
        return Ok(());
    }
    Err(Error::shape(op, format!("{:?} of {}, expected {wanted}", x.shape(), x.element())))
}

/// Refuses what are no activations.
pub(super) fn floats<B: Operands>(op: &'static str, x: &B::Tensor) -> Result<()> {
    elements::<B>(op, x, ElementType::F32)
}

/// Rows and columns of `x`.
fn matrix<B: Operands>(op: &'static str, x: &B::Tensor) -> Result<(usize, usize)> {
    match *x.shape() {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(Error::shape(op, format!("x is {:?}, expected [T, D]", x.shape()))),
    }
}

fn check_equal<B: Operands>(op: &'static str, a: &B::Tensor, b: &B::Tensor) -> Result<()> {
    if a.shape() == b.shape() {
        return Ok(());
    }
    Err(Error::shape(op, format!("a is {:?} and b {:?}, expected equal shapes", a.shape(), b.shape())))
}

/// Refuses weights of stretches that do not make up a row.
fn check_head_norm<B: Operands>(
    op: &'static str,
    x: &B::Tensor,
    [heads, len]: [usize; 2],
    bias: Option<&B::Vector>,
) -> Result<()> {
    let (_, width) = matrix::<B>(op, x)?;
    if len != 0 && heads * len == width && bias.is_none() {
        return Ok(());
    }
    let what = format!(
        "weight is {:?}, expected heads that make up the last dim of x {:?}, and no bias",
        [heads, len],
        x.shape()
    );
    Err(Error::shape(op, what))
}

fn check_norm<B: Operands>(op: &'static str, x: &B::Tensor, weight: &B::Vector) -> Result<()> {
    let (_, width) = matrix::<B>(op, x)?;
    let len = weight.source().len();
    if weight.shape().len() == 1 && len != 0 && width.is_multiple_of(len) {
        return Ok(());
    }
    let what = format!(
        "weight has {len} elements, expected {width} (last dim of x {:?}) or a part of it",
        x.shape()
    );
    Err(Error::shape(op, what))
}

fn check_projection<B: Operands>(
    op: &'static str,
    x: &B::Tensor,
    projection: &Projection<'_, B>,
) -> Result<()> {
    let (_, width) = matrix::<B>(op, x)?;
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

/// The shapes that fit [`Op::HeadLinear`].
fn check_heads<B: Operands>(x: &B::Tensor, weight: &B::Stack, beside: Option<&B::Tensor>) -> Result<()> {
    let (rows, width) = matrix::<B>("head_linear", x)?;
    let [heads, n, k] = weight.shape();
    if heads * k != width {
        let what = format!(
            "weights are [{heads}, {n}, {k}], expected heads that make up the last dim of {:?}",
            x.shape()
        );
        return Err(Error::shape("head_linear", what));
    }
    match beside.map(TensorOperand::shape) {
        None => Ok(()),
        Some(&[of, width]) if of == rows && width % heads == 0 => Ok(()),
        Some(shape) => {
            let what = format!("{shape:?} stand beside heads, expected {rows} rows of {heads} equal parts");
            Err(Error::shape("head_linear", what))
        }
    }
}

/// The shapes that fit [`Op::Mix`].
fn check_mix<B: Operands>(
    x: &B::Tensor,
    by: &B::Tensor,
    into: Option<&B::Tensor>,
    width: usize,
) -> Result<()> {
    let refuse = |what: String| Err(Error::shape("mix", what));
    let (rows, all) = matrix::<B>("mix", x)?;
    let stretches = all.checked_div(width).filter(|count| *count > 0 && count * width == all);
    let Some(stretches) = stretches else {
        return refuse(format!("x is {:?}, expected rows of stretches of {width}", x.shape()));
    };
    let results = match *by.shape() {
        [of, numbers] if of == rows && numbers > 0 && numbers % stretches == 0 => numbers / stretches,
        _ => {
            let expected = format!("{rows} rows of {stretches} for each result");
            return refuse(format!("by is {:?}, expected {expected}", by.shape()));
        }
    };
    match into.map(TensorOperand::shape) {
        Some(shape) if shape != [rows, results * width] => {
            refuse(format!("into is {shape:?}, expected [{rows}, {}]", results * width))
        }
        _ => Ok(()),
    }
}

/// The shapes that fit [`Op::Route`].
fn check_route<B: Operands>(
    logits: &B::Tensor,
    [bias, scales]: [Option<&B::Vector>; 2],
    router: &Router,
) -> Result<()> {
    let refuse = |what: String| Err(Error::shape("route", what));
    let &[_, experts] = logits.shape() else {
        return refuse(format!("logits are {:?}, expected [T, E]", logits.shape()));
    };
    if let Some(bias) = bias.filter(|bias| bias.shape() != [experts]) {
        return refuse(format!("bias is {:?}, expected [{experts}]", bias.shape()));
    }
    if let Some(scales) = scales.filter(|scales| scales.shape() != [experts]) {
        return refuse(format!("scales are {:?}, expected [{experts}]", scales.shape()));
    }
    let Router { used, groups, .. } = *router;
    if used == 0 || used > experts {
        return refuse(format!("{used} of {experts} experts, expected from 1 to all"));
    }
    let Some(ExpertGroups { count, used: open, best }) = groups else { return Ok(()) };
    if matches!(router.scores, Scores::SparseMixer { .. }) {
        return refuse("groups, which this router has none of".to_owned());
    }
    let size = experts.checked_div(count).unwrap_or(0);
    if size * count != experts || open == 0 || open > count || best == 0 || best > size || used > open * size
    {
        return refuse(format!(
            "{used} experts from {open} of {count} groups by their best {best}, expected of {experts} in equal groups"
        ));
    }
    Ok(())
}

/// The shapes that fit [`Op::Gate`].
fn check_gate<B: Operands>(x: &B::Tensor, gate: &B::Tensor) -> Result<()> {
    match (x.shape(), gate.shape()) {
        (&[rows, width], &[of_gate, gates]) if rows == of_gate && gates > 0 && width % gates == 0 => Ok(()),
        (x, gate) => {
            let what = format!("x is {x:?} and gate {gate:?}, expected [T, D] and [T, G], G dividing D");
            Err(Error::shape("gate", what))
        }
    }
}

/// The shapes that fit [`Op::Experts`].
fn check_experts<B: Operands>(op: &Op<'_, B>) -> Result<()> {
    let Op::Experts { x, ids, weights, gate, up, down, gating, .. } = *op else { return Ok(()) };
    let refuse = |what: String| Err(Error::shape("experts", what));
    if ids.element() != ElementType::U32 {
        return refuse(format!("ids of {}, expected u32", ids.element()));
    }
    let (&[rows, width], &[of_ids, used]) = (x.shape(), ids.shape()) else {
        return refuse(format!("x is {:?} and ids {:?}, expected [T, D] and [T, k]", x.shape(), ids.shape()));
    };
    if of_ids != rows || weights.shape() != [rows, used] {
        let (ids, weights) = (ids.shape(), weights.shape());
        return refuse(format!("ids are {ids:?} and weights {weights:?}, expected both [{rows}, k]"));
    }
    if gate.is_none() {
        gating.alone()?;
    }
    let [experts, inner, _] = up.weight.shape();
    for (projection, shape) in [(Some(up), [experts, inner, width]), (gate, [experts, inner, width])]
        .into_iter()
        .filter_map(|(projection, shape)| Some((projection?, shape)))
        .chain([(down, [experts, down.weight.shape()[1], inner])])
    {
        if projection.weight.shape() != shape {
            return refuse(format!("weights are {:?}, expected {shape:?}", projection.weight.shape()));
        }
        if let Some(bias) = projection.bias.filter(|bias| bias.shape() != [shape[0], shape[1]]) {
            return refuse(format!("a bias is {:?}, expected {:?}", bias.shape(), &shape[..2]));
        }
    }
    Ok(())
}
