//! Pages of K and V apart from the sequence that computed them: what sequences with one beginning share.
//!
//! On the host a page is shared as it is. On MLX, whose attention wants contiguous keys, it is a copy, and a sequence that
//! begins with it copies it again.

use std::ops::Range;
use std::sync::Arc;

#[cfg(has_mlx)]
use super::MLX_GROWTH;
use super::{HostKv, KvLayer, KvShape, PAGE, Page, SequenceKv};
use crate::backend::LlmBackendDispatch;
use crate::error::Result;

/// K and V of at most [`PAGE`] tokens in all layers; clones share the memory.
#[derive(Debug, Clone)]
pub struct KvPage(Place);

#[derive(Debug, Clone)]
enum Place {
    /// Layers, first to last.
    Host(Arc<[Arc<Page>]>),
    #[cfg(has_mlx)]
    Mlx(std::rc::Rc<[crate::backend::mlx::MlxPage]>),
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

impl KvPage {
    /// A layer of it, where it is in host memory.
    fn host(&self, layer: usize) -> Option<Arc<Page>> {
        match &self.0 {
            Place::Host(layers) => layers.get(layer).cloned(),
            #[cfg(has_mlx)]
            Place::Mlx(_) => None,
        }
    }
}

impl HostKv {
    /// A cache of the first `len` tokens of `pages`, which it shares, but for the last one where `len` ends in it: there it
    /// will be written to.
    fn from_pages(shape: KvShape, mut pages: Vec<Arc<Page>>, len: usize) -> Self {
        if !len.is_multiple_of(PAGE)
            && let Some(last) = pages.last_mut()
        {
            *last = Arc::new(Page::clone(last));
        }
        Self { shape, pages, len }
    }
}

impl SequenceKv {
    /// Holds `page` in place of its own page `index` of the same tokens. Nothing on MLX, where pages are copies.
    pub(crate) fn take_over(&mut self, index: usize, page: &KvPage) {
        match &page.0 {
            Place::Host(pages) => {
                for (layer, page) in self.layers.iter_mut().zip(pages.iter()) {
                    match layer {
                        KvLayer::Host(kv) => kv.pages[index] = Arc::clone(page),
                        #[cfg(has_mlx)]
                        KvLayer::Mlx(_) => {}
                    }
                }
            }
            #[cfg(has_mlx)]
            Place::Mlx(_) => {}
        }
    }
}

impl LlmBackendDispatch {
    /// What K and V in layers of `shapes` take.
    pub(crate) fn kv_cost(&self, shapes: &[KvShape]) -> KvCost {
        match self {
            Self::Cpu { .. } => {
                let token = shapes.iter().map(KvShape::token_bytes).sum::<usize>() as u64;
                KvCost { token, growth: PAGE, shared: true }
            }
            #[cfg(has_mlx)]
            Self::Mlx { .. } => {
                let token = shapes.iter().map(KvShape::mlx_token_bytes).sum::<usize>() as u64;
                KvCost { token, growth: MLX_GROWTH, shared: false }
            }
        }
    }

    /// Pages `range` of a cache, the last of them as far as it is filled. None where a layer is not where the dispatch
    /// keeps it, as after a fallback.
    ///
    /// # Errors
    /// A copy on MLX that fails.
    pub(crate) fn kv_pages(&self, kv: &SequenceKv, range: Range<usize>) -> Result<Option<Vec<KvPage>>> {
        match self {
            Self::Cpu { .. } => {
                let page = |index: usize| {
                    let layers = kv.layers.iter().map(|layer| match layer {
                        KvLayer::Host(kv) => kv.pages.get(index).cloned(),
                        #[cfg(has_mlx)]
                        KvLayer::Mlx(_) => None,
                    });
                    layers.collect::<Option<Arc<[_]>>>().map(|layers| KvPage(Place::Host(layers)))
                };
                Ok(range.map(page).collect())
            }
            // Once MLX was given up, what is cached is on its way to the host.
            #[cfg(has_mlx)]
            Self::Mlx { on_cpu, .. } if on_cpu.get() => Ok(None),
            #[cfg(has_mlx)]
            Self::Mlx { mlx, .. } => {
                let layers = kv.layers.iter().map(|layer| match layer {
                    KvLayer::Mlx(kv) => Some(kv),
                    KvLayer::Host(_) => None,
                });
                let Some(layers) = layers.collect::<Option<Vec<_>>>() else { return Ok(None) };
                let pages = mlx.kv_pages(&layers, range)?;
                Ok(Some(pages.into_iter().map(|page| KvPage(Place::Mlx(page.into()))).collect()))
            }
        }
    }

    /// A cache of the first `len` tokens of `pages`, which are as many as that takes, in layers of `shapes`.
    ///
    /// # Errors
    /// A copy on MLX that fails.
    pub(crate) fn kv_from_pages(
        &self,
        shapes: &[KvShape],
        pages: &[KvPage],
        len: usize,
    ) -> Result<SequenceKv> {
        let layers = shapes.iter().enumerate().map(|(layer, &shape)| {
            #[cfg(has_mlx)]
            if let Self::Mlx { mlx, .. } = self {
                let of = pages.iter().filter_map(|page| match &page.0 {
                    Place::Mlx(layers) => Some(&layers[layer]),
                    Place::Host(_) => None,
                });
                return Ok(KvLayer::Mlx(mlx.kv_from_pages(shape, &of.collect::<Vec<_>>(), len)?));
            }
            let of = pages.iter().filter_map(|page| page.host(layer));
            Ok(KvLayer::Host(HostKv::from_pages(shape, of.collect(), len)))
        });
        let kv = SequenceKv { layers: layers.collect::<Result<_>>()? };
        #[cfg(has_mlx)]
        if let Self::Mlx { mlx, .. } = self {
            mlx.evaluate(&[], &kv.layers.iter().collect::<Vec<_>>(), true)?;
        }
        Ok(kv)
    }
}

/// Where memory is and how many bytes, for tests that count each once.
#[cfg(test)]
impl KvPage {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        match &self.0 {
            Place::Host(layers) => layers.iter().map(memory_of).collect(),
            #[cfg(has_mlx)]
            Place::Mlx(layers) => layers.iter().flat_map(crate::backend::mlx::MlxPage::memory).collect(),
        }
    }
}

#[cfg(test)]
impl SequenceKv {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        let of = |layer: &KvLayer| match layer {
            KvLayer::Host(kv) => kv.pages.iter().map(memory_of).collect::<Vec<_>>(),
            #[cfg(has_mlx)]
            KvLayer::Mlx(kv) => kv.memory(),
        };
        self.layers.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
fn memory_of(page: &Arc<Page>) -> (usize, u64) {
    (Arc::as_ptr(page) as usize, page.bytes())
}
