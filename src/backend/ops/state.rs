//! What a layer keeps of each sequence.

use std::sync::Arc;

use super::recurrent::RecurrentShape;
use crate::backend::kind::LlmBackendKind;
use crate::backend::kv::{KvShape, KvType, MLX_GROWTH, PAGE};
use crate::error::{Error, Result};

/// What one layer keeps of each sequence, as its family says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateSpec {
    /// Keys and values of its tokens.
    Kv {
        /// Key/value heads.
        heads: usize,
        /// Elements of a head of K.
        k_dim: usize,
        /// Elements of a head of V.
        v_dim: usize,
        /// The last keys that a token sees, its own included; all where there is no window.
        window: Option<usize>,
    },
    /// A vector that keys and values of all heads are made of, and the part of the keys that rotates, which they share.
    Latent {
        /// Elements of the vector.
        rank: usize,
        /// Elements that rotate.
        rope_dim: usize,
    },
    /// A state of fixed size that each token changes.
    Recurrent(RecurrentShape),
    /// Nothing of its own: it reads what this layer before it keeps.
    SharedWith(usize),
}

impl StateSpec {
    /// Bytes of a token on `backend`, K and V in `kind`.
    pub fn token_bytes(&self, kind: KvType, backend: LlmBackendKind) -> u64 {
        let Some((shape, _)) = self.kv(kind) else { return 0 };
        (match backend {
            LlmBackendKind::Cpu => shape.token_bytes(),
            LlmBackendKind::Mlx => shape.mlx_token_bytes(),
        }) as u64
    }

    /// What is kept of each token, K and V in `kind`, and its window; none where nothing of its own is.
    fn kv(&self, kind: KvType) -> Option<(KvShape, Option<usize>)> {
        match *self {
            Self::Kv { heads, k_dim, v_dim, window } => {
                Some((KvShape { heads, k_dim, v_dim, kind, latent: false }, window))
            }
            Self::Latent { rank, rope_dim } => Some((KvShape::latent(rank, rope_dim, kind), None)),
            Self::Recurrent(_) | Self::SharedWith(_) => None,
        }
    }

    /// Bytes that the layer keeps at most of a sequence of `len` tokens on `backend`, K and V in `kind`. A step takes at most
    /// `step` tokens of a sequence, and what lies behind a window is [given back](super::State::give_back) after each.
    pub fn bytes(&self, len: usize, step: usize, kind: KvType, backend: LlmBackendKind) -> u64 {
        if let Self::Recurrent(shape) = self {
            // What was there before the last step is kept, too.
            return 2 * shape.bytes_on(backend);
        }
        let Some((_, window)) = self.kv(kind) else { return 0 };
        let growth = match backend {
            LlmBackendKind::Cpu => PAGE,
            LlmBackendKind::Mlx => MLX_GROWTH,
        };
        let whole = len.checked_next_multiple_of(growth).unwrap_or(len);
        let tokens = match (backend, window) {
            (LlmBackendKind::Cpu, Some(window)) => whole.min(held(window, step)),
            // Arrays on MLX keep what lies behind a window.
            _ => whole,
        };
        self.token_bytes(kind, backend).saturating_mul(tokens as u64)
    }
}

/// Tokens before the next one that stay in a layer with a window: those that it sees, and a page more, so that a step can be taken
/// back.
pub(crate) fn held_behind(window: usize) -> usize {
    window.saturating_add(PAGE)
}

/// The most tokens that a layer with a window holds, in whole pages, where a step brings at most `step`.
pub(crate) fn held(window: usize, step: usize) -> usize {
    let tokens = held_behind(window).saturating_add(step).saturating_add(PAGE);
    tokens.checked_next_multiple_of(PAGE).unwrap_or(usize::MAX)
}

/// What all layers of a model keep, and which of them share it. Clones share the lists.
#[derive(Debug, Clone)]
pub struct StateLayout {
    own: Arc<[(KvShape, Option<usize>)]>,
    recurrent: Arc<[RecurrentShape]>,
    /// For each layer the place in `own`, or in `recurrent` where its state is one of these.
    of: Arc<[usize]>,
}

impl StateLayout {
    /// The layout of layers that keep `specs`, first to last, K and V in `kind`.
    ///
    /// # Errors
    /// [`Error::Shape`] where a layer shares with one that is not before it; [`Error::Option`] where latent vectors are to be
    /// kept in codes.
    pub fn new(specs: &[StateSpec], kind: KvType) -> Result<Self> {
        let (mut own, mut recurrent, mut of) = (Vec::new(), Vec::new(), Vec::with_capacity(specs.len()));
        for (layer, spec) in specs.iter().enumerate() {
            if matches!(spec, StateSpec::Latent { .. }) && kind.bits().is_some() {
                return Err(Error::Option {
                    option: "kv_type",
                    got: kind.to_string(),
                    expected: "f32, f16 or bf16, in which latent vectors can be kept",
                });
            }
            of.push(match (spec.kv(kind), *spec) {
                (Some(kept), _) => {
                    own.push(kept);
                    own.len() - 1
                }
                (None, StateSpec::Recurrent(shape)) => {
                    recurrent.push(shape);
                    recurrent.len() - 1
                }
                (None, StateSpec::SharedWith(other))
                    if other < layer && !matches!(specs[other], StateSpec::Recurrent(_)) =>
                {
                    of[other]
                }
                (None, other) => {
                    let what = format!("layer {layer} is {other:?}, expected one before it");
                    return Err(Error::shape("states", what));
                }
            });
        }
        Ok(Self { own: own.into(), recurrent: recurrent.into(), of: of.into() })
    }

    /// The states that a sequence has, each with its window.
    pub fn own(&self) -> &[(KvShape, Option<usize>)] {
        &self.own
    }

    /// The recurrent states that a sequence has beside these.
    pub fn recurrent(&self) -> &[RecurrentShape] {
        &self.recurrent
    }

    /// The widest window, where there is any.
    pub fn window(&self) -> Option<usize> {
        self.own.iter().filter_map(|(_, window)| *window).max()
    }

    /// Which of them layer `layer` reads.
    ///
    /// # Panics
    /// Where there is no such layer.
    pub fn of(&self, layer: usize) -> usize {
        self.of[layer]
    }
}

/// A place in a sequence that a state can go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Tokens that it had seen.
    pub(crate) len: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: StateSpec = StateSpec::Kv { heads: 2, k_dim: 8, v_dim: 4, window: None };
    const WINDOW: StateSpec = StateSpec::Kv { heads: 2, k_dim: 8, v_dim: 4, window: Some(100) };

    #[test]
    fn a_layer_that_shares_has_the_state_of_the_one_before_it() {
        let specs = [FULL, StateSpec::SharedWith(0), WINDOW, StateSpec::SharedWith(1)];
        let layout = StateLayout::new(&specs, KvType::F16).unwrap();
        assert_eq!(layout.own().len(), 2);
        assert_eq!([0, 1, 2, 3].map(|layer| layout.of(layer)), [0, 0, 1, 0]);
        let error = StateLayout::new(&[FULL, StateSpec::SharedWith(1)], KvType::F16).unwrap_err();
        assert_eq!(error.to_string(), "states: layer 1 is SharedWith(1), expected one before it");
    }

    #[test]
    fn bytes_grow_by_pages_and_with_a_window_no_more() {
        let token = 2 * (8 + 4) * 2;
        let bytes = |spec: StateSpec, len| spec.bytes(len, 32, KvType::F16, LlmBackendKind::Cpu);
        assert_eq!([0, 1, 64, 65].map(|len| bytes(FULL, len)), [0, 64 * token, 64 * token, 128 * token]);
        assert_eq!(bytes(WINDOW, 120), bytes(FULL, 120));
        // The window, the page behind it, a step, and the rest of a page at either end.
        assert_eq!(bytes(WINDOW, 10_000), (100 + 64 + 32 + 64 + 60) * token);
        assert_eq!(bytes(WINDOW, 10_000), bytes(WINDOW, 1_000));
        assert_eq!(FULL.bytes(1, 32, KvType::F16, LlmBackendKind::Mlx), 256 * token);
        assert_eq!(WINDOW.bytes(1000, 32, KvType::F16, LlmBackendKind::Mlx), 1024 * token);
        assert_eq!(StateSpec::SharedWith(0).bytes(1000, 32, KvType::F16, LlmBackendKind::Cpu), 0);
        assert!(FULL.bytes(usize::MAX, 32, KvType::F32, LlmBackendKind::Cpu) > u64::MAX / 2);
    }
}
