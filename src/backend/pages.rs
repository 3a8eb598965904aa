//! The states of all layers of a sequence, and pages of them apart from it: what sequences with one beginning share.
//!
//! On the host a page is shared as it is. On MLX, whose attention wants contiguous keys, it is a copy, and a sequence that
//! begins with it copies it again.

mod stored;

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

pub(crate) use stored::{HostPart, PartKind, PartShapes};

use super::dispatch::LlmBackendDispatch;
use super::kv::{HostKv, HostPage, KvShape, MLX_GROWTH, PAGE};
use super::mlx::MlxPage;
use super::ops::{Backend, Mark, Recurrent, State, StateLayout, held, held_behind};
use super::ranks::Told;
use super::recurrent::HostRecurrent;
use super::values::{LayerState, RecurrentState};
use crate::error::{Error, Result};

/// What the layers of a model keep of one sequence.
#[derive(Debug)]
pub struct SequenceKv {
    /// The states, each once, in the order of their layers.
    pub layers: Vec<LayerState>,
    /// Those of recurrent layers, in their order.
    pub recurrent: Vec<RecurrentState>,
    layout: StateLayout,
}

impl SequenceKv {
    /// Tokens cached in every layer.
    pub fn len(&self) -> usize {
        let recurrent = self.recurrent.iter().map(Recurrent::len);
        self.layers.iter().map(LayerState::len).chain(recurrent).min().unwrap_or(0)
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

    /// What recurrent layer `layer` keeps.
    ///
    /// # Panics
    /// Where the model has no such layer.
    pub fn recurrent_mut(&mut self, layer: usize) -> &mut RecurrentState {
        &mut self.recurrent[self.layout.of(layer)]
    }

    /// Whether all recurrent layers have seen `len` tokens.
    pub fn recurrent_is_at(&self, len: usize) -> bool {
        self.recurrent.iter().all(|state| state.len() == len)
    }

    /// The place that the sequence is at, to which it can go back: before drafts that may be refused.
    pub fn mark(&self) -> Mark {
        Mark { len: self.len() }
    }

    /// Goes back to a place that the sequence was at. Where a layer gave back what the next token would see, or is recurrent and more than
    /// a step further, that layer forgets everything, and the sequence has [no token](Self::len) then.
    pub fn rollback(&mut self, to: Mark) {
        self.truncate(to.len);
    }

    /// Gives back what lies behind the windows of layers that have one, but for a page. What is to be kept for other sequences is
    /// to be taken before: pages that were given back are none.
    pub fn give_back(&mut self) {
        self.layers.iter_mut().for_each(State::give_back);
    }

    /// Whether it can go back to where it had `len` tokens, as far as its recurrent layers know.
    pub fn reaches(&self, len: usize) -> bool {
        self.recurrent.iter().all(|state| state.reaches(len))
    }

    /// Forgets the tokens from `len` on, as [`Self::rollback`].
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
        self.recurrent.iter_mut().for_each(|state| state.truncate(len));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let recurrent = self.recurrent.iter().map(Recurrent::bytes);
        self.layers.iter().map(LayerState::bytes).chain(recurrent).sum()
    }

    /// Holds `page` in place of its own page `index` of the same tokens. Nothing on MLX, where pages are copies.
    pub(crate) fn take_over(&mut self, index: usize, page: &KvPage, pane: Option<&KvPage>) {
        let of = |page: &KvPage| match &page.layers {
            Layers::Host(layers) => Arc::clone(layers),
            Layers::Mlx(_) | Layers::Recurrent(_) | Layers::HostRecurrent(_) => Arc::default(),
        };
        let (page, pane) = (of(page), pane.map(of).unwrap_or_default());
        let (mut pages, mut panes) = (page.iter(), pane.iter());
        for (layer, (_, window)) in self.layers.iter_mut().zip(self.layout.own()) {
            let from = if window.is_some() { &mut panes } else { &mut pages };
            if let (LayerState::Host(kv), Some(page)) = (layer, from.next()) {
                kv.set_page(index, page.clone());
            }
        }
    }

    /// Copies its last page, if others hold it, too, and it is not full: one that goes on writes to it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(crate) fn own_last(&mut self) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| match layer {
            LayerState::Host(kv) => kv.own_last(),
            LayerState::Mlx(_) => Ok(()),
        })
    }
}

/// K and V of at most [`PAGE`] tokens in some layers of a model; clones share the memory.
///
/// A page of a sequence is one of the layers without a window and, where there are others, a *pane* of those: what lies behind
/// a window may be gone while the rest is there. On MLX, which gives nothing back, a page is of all layers.
#[derive(Debug, Clone)]
pub struct KvPage {
    layers: Layers,
    /// What other ranks call it, once they have theirs.
    told: Option<Rc<Told>>,
}

impl KvPage {
    fn of(layers: Layers) -> Self {
        Self { layers, told: None }
    }

    /// What other ranks call it, where they have theirs.
    pub(crate) fn told(&self) -> Option<u32> {
        self.told.as_ref().map(|told| told.number())
    }

    /// As other ranks are told of it.
    pub(crate) fn with_told(self, told: Told) -> Self {
        Self { told: Some(Rc::new(told)), ..self }
    }
}

/// A page of a sequence, and its pane, where the model has windows and the sequence has not given it back.
pub type PageAndPane = (KvPage, Option<KvPage>);

/// Layers, first to last.
#[derive(Debug, Clone)]
enum Layers {
    Host(Arc<[HostPage]>),
    Mlx(Rc<[MlxPage]>),
    /// What recurrent layers keep at one place.
    Recurrent(Rc<[RecurrentState]>),
    /// The same where all of it is in host memory.
    HostRecurrent(Arc<[HostRecurrent]>),
}

/// What K and V take in memory where a dispatch keeps them, all layers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCost {
    /// Bytes of one token in the layers that keep all tokens.
    pub token: u64,
    /// The same in those that give back what lies behind their windows; 0 where none does.
    pub windowed: u64,
    /// The most tokens that those hold of a sequence, in whole pages.
    pub held: usize,
    /// The widest window of theirs.
    pub window: Option<usize>,
    /// Bytes of a sequence in its recurrent layers, whatever its length.
    pub fixed: u64,
    /// Tokens by which the memory of a sequence grows.
    pub growth: usize,
    /// Whether sequences hold a [`KvPage`] itself; else copies of it.
    pub shared: bool,
}

impl KvCost {
    /// Bytes of a sequence that holds `tokens`, at most, on its way there and then.
    pub fn of_sequence(&self, tokens: usize) -> u64 {
        let whole = (tokens.div_ceil(self.growth) as u64).saturating_mul(self.growth as u64);
        let held = whole.min(self.held as u64);
        let windowed = held.saturating_mul(self.windowed);
        whole.saturating_mul(self.token).saturating_add(windowed).saturating_add(self.fixed)
    }

    /// Bytes of a [`KvPage`] of `tokens`, without its pane.
    pub fn of_page(&self, tokens: usize) -> u64 {
        self.token * if self.shared { PAGE } else { tokens } as u64
    }

    /// Bytes of a pane.
    pub fn of_pane(&self) -> u64 {
        self.windowed * PAGE as u64
    }

    /// The most tokens of a sequence that takes at most `bytes`.
    pub fn tokens_in(&self, bytes: u64) -> usize {
        let bytes = bytes.saturating_sub(self.fixed);
        let (growth, all) = (self.growth as u64, self.token + self.windowed);
        // Up to where windows are full every token costs the same, and less from there on.
        let (full, behind) = ((self.held as u64).saturating_mul(all), bytes / all.max(1));
        let tokens = match bytes.checked_sub(full) {
            Some(rest) => (self.held as u64).saturating_add(rest.checked_div(self.token).unwrap_or(u64::MAX)),
            None => behind,
        };
        usize::try_from(tokens / growth * growth).unwrap_or(usize::MAX)
    }

    /// The first page of which the layers with windows hold anything in a sequence of `tokens` that has given back the rest.
    pub fn first_held(&self, tokens: usize) -> usize {
        self.window.map_or(0, |window| (tokens + 1).saturating_sub(held_behind(window)) / PAGE)
    }

    /// The first page whose pane the token after `tokens` sees anything of.
    pub fn first_seen(&self, tokens: usize) -> usize {
        self.window.map_or(0, |window| (tokens + 1).saturating_sub(window) / PAGE)
    }
}

impl LlmBackendDispatch {
    /// A sequence with nothing cached.
    pub(crate) fn sequence(&self, layout: &StateLayout) -> SequenceKv {
        let layers = layout.own().iter().map(|(shape, window)| self.state(shape, *window)).collect();
        let recurrent = layout.recurrent().iter().map(|shape| self.recurrent(shape)).collect();
        SequenceKv { layers, recurrent, layout: layout.clone() }
    }

    /// What K and V of a sequence take, where a step brings at most `step` tokens of it.
    pub(crate) fn kv_cost(&self, layout: &StateLayout, step: usize) -> KvCost {
        let sum = |of: &mut dyn Iterator<Item = &(KvShape, Option<usize>)>| {
            let bytes = |(shape, _): &(KvShape, Option<usize>)| match self {
                Self::Cpu { .. } => shape.token_bytes(),
                Self::Mlx { .. } => shape.mlx_token_bytes(),
            };
            of.map(bytes).sum::<usize>() as u64
        };
        let own = layout.own();
        let fixed = layout.recurrent().iter().map(|shape| 2 * shape.bytes_on(self.kind())).sum();
        match self {
            Self::Cpu { .. } => KvCost {
                token: sum(&mut own.iter().filter(|(_, window)| window.is_none())),
                windowed: sum(&mut own.iter().filter(|(_, window)| window.is_some())),
                held: layout.window().map_or(0, |window| held(window, step)),
                window: layout.window(),
                fixed,
                growth: PAGE,
                shared: true,
            },
            Self::Mlx { .. } => KvCost {
                token: sum(&mut own.iter()),
                windowed: 0,
                held: 0,
                window: None,
                fixed,
                growth: MLX_GROWTH,
                shared: false,
            },
        }
    }

    /// Pages `range` of a sequence, the last of them as far as it is filled. None where a state is not where the dispatch
    /// keeps it, as after a fallback.
    ///
    /// # Errors
    /// A copy on MLX that fails.
    pub(crate) fn snapshot(&self, kv: &SequenceKv, range: Range<usize>) -> Result<Option<Vec<PageAndPane>>> {
        if range.is_empty() {
            return Ok(Some(Vec::new()));
        }
        match self {
            Self::Cpu { .. } => {
                let of = |index: usize, windowed: bool| {
                    let layers = kv.layers.iter().zip(kv.layout.own());
                    let layers = layers.filter(|(_, (_, window))| window.is_some() == windowed);
                    let page = |(layer, _): (&LayerState, _)| match layer {
                        LayerState::Host(kv) => kv.page(index),
                        LayerState::Mlx(_) => None,
                    };
                    layers
                        .map(page)
                        .collect::<Option<Arc<[_]>>>()
                        .map(|layers| KvPage::of(Layers::Host(layers)))
                };
                let has_windows = kv.layout.window().is_some();
                let both = |index| Some((of(index, false)?, of(index, true).filter(|_| has_windows)));
                Ok(range.map(both).collect())
            }
            // Once MLX was given up, what is cached is on its way to the host.
            Self::Mlx { on_cpu, .. } if on_cpu.get() => Ok(None),
            Self::Mlx { mlx, .. } => {
                let layers = kv.layers.iter().map(|layer| match layer {
                    LayerState::Mlx(kv) => Some(kv),
                    LayerState::Host(_) => None,
                });
                let Some(layers) = layers.collect::<Option<Vec<_>>>() else { return Ok(None) };
                let pages = mlx.snapshot(&layers, range)?;
                Ok(Some(pages.into_iter().map(|page| (KvPage::of(Layers::Mlx(page.into())), None)).collect()))
            }
        }
    }

    /// What the recurrent layers of a sequence keep; none once MLX was given up.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory); an evaluation that fails.
    pub(crate) fn recurrent_snapshot(&self, kv: &SequenceKv) -> Result<Option<KvPage>> {
        if let Self::Mlx { mlx, on_cpu, .. } = self {
            if on_cpu.get() {
                return Ok(None);
            }
            let states = kv.recurrent.iter().filter_map(|state| match state {
                RecurrentState::Mlx(state) => Some(state),
                RecurrentState::Host(_) => None,
            });
            mlx.evaluate(&[], &[], &states.collect::<Vec<_>>(), true)?;
        }
        let on_host = kv.recurrent.iter().map(|state| match state {
            RecurrentState::Host(state) => Some(state.copy()),
            RecurrentState::Mlx(_) => None,
        });
        if let (Self::Cpu { .. }, Some(copies)) = (self, on_host.collect::<Option<Result<Arc<[_]>>>>()) {
            return Ok(Some(KvPage::of(Layers::HostRecurrent(copies?))));
        }
        let copies = kv.recurrent.iter().map(RecurrentState::copy).collect::<Result<Rc<[_]>>>()?;
        Ok(Some(KvPage::of(Layers::Recurrent(copies))))
    }

    /// A sequence of the first `len` tokens of `pages`, which are as many as that takes, and of the `snapshot` behind them. Layers with a window begin with the first
    /// of the last panes that follow each other.
    ///
    /// # Errors
    /// A copy on MLX that fails; [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(crate) fn restore(
        &self,
        layout: &StateLayout,
        pages: &[PageAndPane],
        snapshot: Option<&KvPage>,
        len: usize,
    ) -> Result<SequenceKv> {
        let recurrent = match snapshot.map(|snapshot| &snapshot.layers) {
            Some(Layers::Recurrent(states)) => {
                states.iter().map(RecurrentState::copy).collect::<Result<_>>()?
            }
            Some(Layers::HostRecurrent(states)) => {
                states.iter().map(|state| Ok(RecurrentState::Host(state.copy()?))).collect::<Result<_>>()?
            }
            _ if layout.recurrent().is_empty() => Vec::new(),
            _ => return Err(Error::shape("restore", "what recurrent layers keep is not there")),
        };
        let Self::Mlx { mlx, .. } = self else {
            let first = pages.iter().rposition(|(_, pane)| pane.is_none()).map_or(0, |gone| gone + 1);
            let (mut whole, mut windowed) = (0, 0);
            let layer = |&(shape, window): &(KvShape, Option<usize>)| {
                let (at, first) = match window {
                    Some(_) => (&mut windowed, first),
                    None => (&mut whole, 0),
                };
                let of = pages[first..].iter().filter_map(|(page, pane)| {
                    match &pane.as_ref().filter(|_| window.is_some()).unwrap_or(page).layers {
                        Layers::Host(layers) => layers.get(*at).cloned(),
                        Layers::Mlx(_) | Layers::Recurrent(_) | Layers::HostRecurrent(_) => None,
                    }
                });
                let kv = HostKv::from_pages(shape, first, of, len)?.with_window(window);
                *at += 1;
                Ok(LayerState::Host(kv))
            };
            let layers = layout.own().iter().map(layer).collect::<Result<_>>()?;
            return Ok(SequenceKv { layers, recurrent, layout: layout.clone() });
        };
        let on_mlx = |(layer, &of_layer): (usize, &(KvShape, Option<usize>))| {
            let of = pages.iter().filter_map(|(page, _)| match &page.layers {
                Layers::Mlx(layers) => layers.get(layer),
                Layers::Host(_) | Layers::Recurrent(_) | Layers::HostRecurrent(_) => None,
            });
            mlx.restore(of_layer, &of.collect::<Vec<_>>(), len)
        };
        let layers = layout.own().iter().enumerate().map(on_mlx).collect::<Result<Vec<_>>>()?;
        mlx.evaluate(&[], &layers.iter().collect::<Vec<_>>(), &[], true)?;
        let layers = layers.into_iter().map(LayerState::Mlx).collect();
        Ok(SequenceKv { layers, recurrent, layout: layout.clone() })
    }
}

/// Where a recurrent state is, and bytes.
#[cfg(any(test, feature = "fuzzing"))]
fn address(state: &RecurrentState) -> (usize, u64) {
    (std::ptr::from_ref(state) as usize, state.bytes() as u64)
}

/// Where memory is and how many bytes, for tests that count each once.
#[cfg(any(test, feature = "fuzzing"))]
impl KvPage {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        match &self.layers {
            Layers::Host(layers) => layers.iter().map(HostPage::memory).collect(),
            Layers::Mlx(layers) => layers.iter().flat_map(MlxPage::memory).collect(),
            Layers::Recurrent(states) => states.iter().map(address).collect(),
            Layers::HostRecurrent(states) => {
                let address = |state: &HostRecurrent| std::ptr::from_ref(state) as usize;
                states.iter().map(|state| (address(state), state.bytes() as u64)).collect()
            }
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl SequenceKv {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        let of = |layer: &LayerState| match layer {
            LayerState::Host(kv) => {
                (0..kv.len().div_ceil(PAGE)).filter_map(|i| kv.page(i)).map(|page| page.memory()).collect()
            }
            LayerState::Mlx(kv) => kv.memory(),
        };
        self.layers.iter().flat_map(of).chain(self.recurrent.iter().map(address)).collect()
    }
}
