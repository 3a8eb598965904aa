//! The states of all layers of a sequence, and pages of them apart from it: what sequences with one beginning share.
//!
//! On the host a page is shared as it is. On MLX, whose attention wants contiguous keys, it is a copy, and a sequence that
//! begins with it copies it again.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::dispatch::LlmBackendDispatch;
use super::kv::{HostKv, HostPage, KvShape, MLX_GROWTH, PAGE};
use super::mlx::MlxPage;
use super::ops::{Backend, Mark, State, StateLayout};
use super::values::LayerState;
use crate::error::Result;

/// What the layers of a model keep of one sequence.
#[derive(Debug)]
pub struct SequenceKv {
    /// The states, each once, in the order of their layers.
    pub layers: Vec<LayerState>,
    layout: StateLayout,
}

impl SequenceKv {
    /// Tokens cached in every layer.
    pub fn len(&self) -> usize {
        self.layers.iter().map(LayerState::len).min().unwrap_or(0)
    }

    /// Whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What layer `layer` reads: its own, or that of the layer it shares with.
    ///
    /// # Panics
    /// Where the model has no such layer.
    pub fn layer(&self, layer: usize) -> &LayerState {
        &self.layers[self.layout.of(layer)]
    }

    /// What layer `layer` writes.
    ///
    /// # Panics
    /// As [`Self::layer`].
    pub fn layer_mut(&mut self, layer: usize) -> &mut LayerState {
        &mut self.layers[self.layout.of(layer)]
    }

    /// The place that the sequence is at, to which it can go back: before drafts that may be refused.
    pub fn mark(&self) -> Mark {
        Mark { len: self.len() }
    }

    /// Goes back to a place that the sequence was at. Where a layer gave back what the next token would see, that layer forgets
    /// everything, and the sequence has [no token](Self::len) then.
    pub fn rollback(&mut self, to: Mark) {
        self.truncate(to.len);
    }

    /// Gives back what lies behind the windows of layers that have one, but for a page. What is to be kept for other sequences is
    /// to be taken before: pages that were given back are none.
    pub fn give_back(&mut self) {
        self.layers.iter_mut().for_each(State::give_back);
    }

    /// Forgets the tokens from `len` on; [`Self::rollback`] to any place.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerState::bytes).sum()
    }

    /// Holds `page` in place of its own page `index` of the same tokens. Nothing on MLX, where pages are copies.
    pub(crate) fn take_over(&mut self, index: usize, page: &KvPage) {
        let Layers::Host(pages) = &page.0 else { return };
        for (layer, page) in self.layers.iter_mut().zip(pages.iter()) {
            if let LayerState::Host(kv) = layer {
                kv.set_page(index, page.clone());
            }
        }
    }
}

/// K and V of at most [`PAGE`] tokens in all layers; clones share the memory.
#[derive(Debug, Clone)]
pub struct KvPage(Layers);

/// Layers, first to last.
#[derive(Debug, Clone)]
enum Layers {
    Host(Arc<[HostPage]>),
    Mlx(Rc<[MlxPage]>),
}

/// What K and V take in memory where a dispatch keeps them, all layers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCost {
    /// Bytes of one token.
    pub token: u64,
    /// Tokens by which the memory of a sequence grows.
    pub growth: usize,
    /// Whether sequences hold a [`KvPage`] itself; else copies of it.
    pub shared: bool,
}

impl KvCost {
    /// Bytes of a sequence that holds `tokens`.
    pub fn of_sequence(&self, tokens: usize) -> u64 {
        (tokens.div_ceil(self.growth) as u64).saturating_mul(self.growth as u64).saturating_mul(self.token)
    }

    /// Bytes of a [`KvPage`] of `tokens`.
    pub fn of_page(&self, tokens: usize) -> u64 {
        self.token * if self.shared { PAGE } else { tokens } as u64
    }

    /// The most tokens of a sequence that takes at most `bytes`.
    pub fn tokens_in(&self, bytes: u64) -> usize {
        let steps = bytes / (self.token * self.growth as u64).max(1);
        usize::try_from(steps).unwrap_or(usize::MAX).saturating_mul(self.growth)
    }
}

impl LlmBackendDispatch {
    /// A sequence with nothing cached.
    pub(crate) fn sequence(&self, layout: &StateLayout) -> SequenceKv {
        let layers = layout.own().iter().map(|(shape, window)| self.state(shape, *window)).collect();
        SequenceKv { layers, layout: layout.clone() }
    }

    /// What K and V of a sequence take.
    pub(crate) fn kv_cost(&self, layout: &StateLayout) -> KvCost {
        let shapes = layout.own().iter().map(|(shape, _)| shape);
        match self {
            Self::Cpu { .. } => {
                let token = shapes.map(KvShape::token_bytes).sum::<usize>() as u64;
                KvCost { token, growth: PAGE, shared: true }
            }
            Self::Mlx { .. } => {
                let token = shapes.map(KvShape::mlx_token_bytes).sum::<usize>() as u64;
                KvCost { token, growth: MLX_GROWTH, shared: false }
            }
        }
    }

    /// Pages `range` of a sequence, the last of them as far as it is filled. None where a state is not where the dispatch
    /// keeps it, as after a fallback, or gave one of them back.
    ///
    /// # Errors
    /// A copy on MLX that fails.
    pub(crate) fn kv_pages(&self, kv: &SequenceKv, range: Range<usize>) -> Result<Option<Vec<KvPage>>> {
        if range.is_empty() {
            return Ok(Some(Vec::new()));
        }
        match self {
            Self::Cpu { .. } => {
                let page = |index: usize| {
                    let layers = kv.layers.iter().map(|layer| match layer {
                        LayerState::Host(kv) => kv.page(index),
                        LayerState::Mlx(_) => None,
                    });
                    layers.collect::<Option<Arc<[_]>>>().map(|layers| KvPage(Layers::Host(layers)))
                };
                Ok(range.map(page).collect())
            }
            // Once MLX was given up, what is cached is on its way to the host.
            Self::Mlx { on_cpu, .. } if on_cpu.get() => Ok(None),
            Self::Mlx { mlx, .. } => {
                let layers = kv.layers.iter().map(|layer| match layer {
                    LayerState::Mlx(kv) if State::first(kv) <= range.start * PAGE => Some(kv),
                    _ => None,
                });
                let Some(layers) = layers.collect::<Option<Vec<_>>>() else { return Ok(None) };
                let pages = mlx.kv_pages(&layers, range)?;
                Ok(Some(pages.into_iter().map(|page| KvPage(Layers::Mlx(page.into()))).collect()))
            }
        }
    }

    /// A sequence of the first `len` tokens of `pages`, which are as many as that takes.
    ///
    /// # Errors
    /// A copy on MLX that fails.
    pub(crate) fn kv_from_pages(
        &self,
        layout: &StateLayout,
        pages: &[KvPage],
        len: usize,
    ) -> Result<SequenceKv> {
        let on_host = |(layer, &(shape, window)): (usize, &(KvShape, Option<usize>))| {
            let of = pages.iter().filter_map(|page| match &page.0 {
                Layers::Host(layers) => layers.get(layer).cloned(),
                Layers::Mlx(_) => None,
            });
            LayerState::Host(HostKv::from_pages(shape, of, len).with_window(window))
        };
        let Self::Mlx { mlx, .. } = self else {
            let layers = layout.own().iter().enumerate().map(on_host).collect();
            return Ok(SequenceKv { layers, layout: layout.clone() });
        };
        let on_mlx = |(layer, &of_layer): (usize, &(KvShape, Option<usize>))| {
            let of = pages.iter().filter_map(|page| match &page.0 {
                Layers::Mlx(layers) => layers.get(layer),
                Layers::Host(_) => None,
            });
            mlx.kv_from_pages(of_layer, &of.collect::<Vec<_>>(), len)
        };
        let layers = layout.own().iter().enumerate().map(on_mlx).collect::<Result<Vec<_>>>()?;
        mlx.evaluate(&[], &layers.iter().collect::<Vec<_>>(), true)?;
        let layers = layers.into_iter().map(LayerState::Mlx).collect();
        Ok(SequenceKv { layers, layout: layout.clone() })
    }
}

/// Where memory is and how many bytes, for tests that count each once.
#[cfg(test)]
impl KvPage {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        match &self.0 {
            Layers::Host(layers) => layers.iter().map(HostPage::memory).collect(),
            Layers::Mlx(layers) => layers.iter().flat_map(MlxPage::memory).collect(),
        }
    }
}

#[cfg(test)]
impl SequenceKv {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        let of = |layer: &LayerState| match layer {
            LayerState::Host(kv) => {
                (0..kv.len().div_ceil(PAGE)).filter_map(|i| kv.page(i)).map(|page| page.memory()).collect()
            }
            LayerState::Mlx(kv) => kv.memory(),
        };
        self.layers.iter().flat_map(of).collect()
    }
}
