//! What is kept of a beginning in host memory, apart from the thread that computed it, and as bytes.

use std::sync::Arc;

use super::{KvPage, Layers};
use crate::backend::kind::LlmBackendKind;
use crate::backend::kv::{HostPage, PAGE};
use crate::backend::ops::StateLayout;
use crate::backend::recurrent::HostRecurrent;
use crate::error::Result;

/// A page, a pane or a snapshot in host memory. Clones share the memory, on any thread.
#[derive(Debug, Clone)]
pub(crate) enum HostPart {
    Page(Arc<[HostPage]>),
    Snapshot(Arc<[HostRecurrent]>),
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartKind {
    /// What the layers without a window keep of a page's tokens.
    Page,
    /// What the others do.
    Pane,
    /// What recurrent layers keep behind them.
    Snapshot,
}

impl PartKind {
    pub const ALL: [Self; 3] = [Self::Page, Self::Pane, Self::Snapshot];

    /// In the names of files.
    pub const fn name(self) -> &'static str {
        ["page", "pane", "snapshot"][self as usize]
    }
}

impl KvPage {
    /// What it is made of, where that is in host memory.
    pub(crate) fn host(&self) -> Option<HostPart> {
        match &self.layers {
            Layers::Host(layers) => Some(HostPart::Page(Arc::clone(layers))),
            Layers::HostRecurrent(states) => Some(HostPart::Snapshot(Arc::clone(states))),
            Layers::Mlx(_) | Layers::Recurrent(_) => None,
        }
    }
}

impl From<HostPart> for KvPage {
    fn from(part: HostPart) -> Self {
        Self::of(match part {
            HostPart::Page(layers) => Layers::Host(layers),
            HostPart::Snapshot(states) => Layers::HostRecurrent(states),
        })
    }
}

impl HostPart {
    /// Hands its bytes to `to`, layer by layer: [`PartShapes::bytes`] of them.
    ///
    /// # Errors
    /// Those of `to`; [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn give(&self, to: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            Self::Page(layers) => layers.iter().try_for_each(|page| page.give(to)),
            Self::Snapshot(states) => states.iter().try_for_each(|state| state.give(to)),
        }
    }
}

/// What the parts of a model are made of.
#[derive(Debug, Clone)]
pub(crate) struct PartShapes(StateLayout);

impl PartShapes {
    pub fn new(layout: &StateLayout) -> Self {
        Self(layout.clone())
    }

    /// All that they depend on, in words.
    pub fn describe(&self) -> String {
        format!("{:?} {:?}", self.0.own(), self.0.recurrent())
    }

    /// Bytes of a part.
    pub fn bytes(&self, kind: PartKind) -> u64 {
        let of = |windowed: bool| {
            let own = self.0.own().iter().filter(|(_, window)| window.is_some() == windowed);
            own.map(|(shape, _)| (PAGE * shape.token_bytes()) as u64).sum()
        };
        match kind {
            PartKind::Page => of(false),
            PartKind::Pane => of(true),
            PartKind::Snapshot => {
                self.0.recurrent().iter().map(|shape| shape.bytes_on(LlmBackendKind::Cpu)).sum()
            }
        }
    }

    /// A part whose bytes `from` fills in as [`HostPart::give`] gave them; a snapshot behind `len` tokens.
    ///
    /// # Errors
    /// Those of `from`; [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn take(
        &self,
        kind: PartKind,
        len: usize,
        from: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<HostPart> {
        let mut of = |windowed: bool| {
            let own = self.0.own().iter().filter(|(_, window)| window.is_some() == windowed);
            own.map(|(shape, _)| HostPage::take(shape, from)).collect::<Result<_>>().map(HostPart::Page)
        };
        match kind {
            PartKind::Page => of(false),
            PartKind::Pane => of(true),
            PartKind::Snapshot => {
                let states = self.0.recurrent().iter().map(|shape| HostRecurrent::take(shape, len, from));
                states.collect::<Result<_>>().map(HostPart::Snapshot)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::kv::{HostKv, KvShape, KvType};
    use crate::backend::ops::StateSpec;

    /// Heads that are no multiple of a group or a word, a window, latent vectors, and half a page.
    #[test]
    fn bytes_make_the_pages_that_they_are_of() {
        let kv = |window| StateSpec::Kv { heads: 2, k_dim: 33, v_dim: 20, window };
        for kind in KvType::ALL {
            let latent = kind.bits().is_none().then_some(StateSpec::Latent { rank: 24, rope_dim: 9 });
            let specs: Vec<StateSpec> = [kv(None), kv(Some(100))].into_iter().chain(latent).collect();
            let shapes = PartShapes::new(&StateLayout::new(&specs, kind).unwrap());
            let filled = |(i, (shape, window)): (usize, &(KvShape, Option<usize>))| {
                let mut kv = HostKv::new(*shape).with_window(*window);
                let [k, v] = shape.widths().map(|width| {
                    (0..40 * width).map(|x| ((x * 37 + i) % 101) as f32 - 50.0).collect::<Vec<f32>>()
                });
                kv.write(0, &k, &v).unwrap();
                kv
            };
            let kept: Vec<HostKv> = shapes.0.own().iter().enumerate().map(filled).collect();
            for (part, windowed) in [(PartKind::Page, false), (PartKind::Pane, true)] {
                let layers = kept.iter().filter(|kv| kv.window().is_some() == windowed);
                let pages: Arc<[HostPage]> = layers.clone().map(|kv| kv.page(0).unwrap()).collect();
                let mut bytes = Vec::new();
                HostPart::Page(pages)
                    .give(&mut |part| {
                        bytes.extend_from_slice(part);
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(bytes.len() as u64, shapes.bytes(part), "{kind}");
                let mut rest = &bytes[..];
                let mut take = |part: &mut [u8]| {
                    std::io::Read::read_exact(&mut rest, part).unwrap();
                    Ok(())
                };
                let again = shapes.take(part, 40, &mut take).unwrap();
                assert!(rest.is_empty());
                let HostPart::Page(pages) = KvPage::from(again).host().unwrap() else { panic!("a page") };
                for (page, kv) in pages.iter().zip(layers) {
                    let of = [page.clone()].into_iter();
                    let again = HostKv::from_pages(*kv.shape(), 0, of, 40).unwrap();
                    assert_eq!(again.read().unwrap(), kv.read().unwrap(), "{kind}");
                    assert_eq!(again.read_codes().unwrap(), kv.read_codes().unwrap(), "{kind}");
                }
            }
        }
    }
}
