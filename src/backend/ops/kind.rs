//! The names of the ops: in logs, counters, errors and fault injection.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// What an op is called: in logs, counters, errors and fault injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OpKind {
    /// Rows of the embedding table.
    Embedding,
    /// `x · Wᵀ + b`.
    Linear,
    /// A product of each head with a matrix of its own.
    HeadLinear,
    /// Root-mean-square norm.
    RmsNorm,
    /// Layer norm.
    LayerNorm,
    /// `x · sigmoid(x)`.
    Silu,
    /// The Gaussian error linear unit, by erf or by tanh.
    Gelu,
    /// The square of what is positive.
    Relu2,
    /// Elementwise sum.
    Add,
    /// Elementwise product.
    Mul,
    /// Product with a number.
    Scale,
    /// Product of each row with a number of its own.
    ScaleRows,
    /// Product with the sigmoid of a gate.
    Gate,
    /// Sums of the stretches of a row, weighed by numbers of the row.
    Mix,
    /// What lies above a bound that is made of the mean and the deviation of its row.
    Cut,
    /// Rows beside each other.
    Join,
    /// `cap · tanh(x / cap)`.
    SoftCap,
    /// Rotary position embedding.
    Rope,
    /// A write to the KV cache.
    KvWrite,
    /// A causal convolution of channels.
    Convolution,
    /// The gated delta rule.
    DeltaRule,
    /// The selective scan.
    Scan,
    /// Grouped-query attention over the KV cache.
    Attention,
    /// Some rows of a matrix.
    TakeRows,
    /// Which experts each row goes to, and their weights.
    Route,
    /// The feed-forward parts of the experts that rows go to, and their weighted sum.
    Experts,
    /// The sum over all ranks of what each has.
    AllSum,
    /// Fused: `act(x · Wgᵀ) ∘ (x · Wuᵀ)`.
    GateUp,
    /// Fused: residual sum and norm.
    AddRmsNorm,
    /// Fused: what an adapter adds to a product.
    Adapt,
    /// Fused: the three projections of attention.
    Qkv,
}

impl OpKind {
    /// Every op, in the order of their declaration.
    pub const ALL: [Self; 31] = [
        Self::Embedding,
        Self::Linear,
        Self::HeadLinear,
        Self::RmsNorm,
        Self::LayerNorm,
        Self::Silu,
        Self::Gelu,
        Self::Relu2,
        Self::Add,
        Self::Mul,
        Self::Scale,
        Self::ScaleRows,
        Self::Gate,
        Self::Mix,
        Self::Cut,
        Self::Join,
        Self::SoftCap,
        Self::Rope,
        Self::KvWrite,
        Self::Convolution,
        Self::DeltaRule,
        Self::Scan,
        Self::Attention,
        Self::TakeRows,
        Self::Route,
        Self::Experts,
        Self::AllSum,
        Self::GateUp,
        Self::AddRmsNorm,
        Self::Adapt,
        Self::Qkv,
    ];

    /// The name in logs, counters and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Linear => "linear",
            Self::HeadLinear => "head_linear",
            Self::RmsNorm => "rms_norm",
            Self::LayerNorm => "layer_norm",
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::Relu2 => "relu2",
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Scale => "scale",
            Self::ScaleRows => "scale_rows",
            Self::Gate => "gate",
            Self::Mix => "mix",
            Self::Cut => "cut",
            Self::Join => "join",
            Self::SoftCap => "soft_cap",
            Self::Rope => "rope",
            Self::KvWrite => "kv_write",
            Self::Convolution => "convolution",
            Self::DeltaRule => "delta_rule",
            Self::Scan => "scan",
            Self::Attention => "attention",
            Self::TakeRows => "take_rows",
            Self::Route => "route",
            Self::Experts => "experts",
            Self::AllSum => "all_sum",
            Self::GateUp => "gate_up",
            Self::AddRmsNorm => "add_rms_norm",
            Self::Adapt => "adapt",
            Self::Qkv => "qkv",
        }
    }

    /// Whether [`compose`](super::compose()) knows its parts.
    pub const fn is_fused(self) -> bool {
        matches!(self, Self::GateUp | Self::AddRmsNorm | Self::Adapt | Self::Qkv)
    }
}

impl FromStr for OpKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|op| op.name() == name).ok_or_else(|| Error::Option {
            option: "cpu_ops",
            got: name.to_owned(),
            expected: "names of ops: embedding, linear, head_linear, rms_norm, layer_norm, silu, gelu, relu2, add, mul, scale, \
                scale_rows, gate, mix, cut, join, soft_cap, rope, kv_write, convolution, delta_rule, scan, attention, take_rows, route, experts, all_sum, gate_up, add_rms_norm, adapt, qkv",
        })
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
