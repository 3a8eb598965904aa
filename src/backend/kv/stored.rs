//! Pages as bytes, as they lie in memory: what outlives the process.

use std::sync::Arc;

use super::{HostPage, KvShape, Page};
use crate::error::Result;

impl HostPage {
    /// Hands its bytes to `to`, part by part: as many as [`KvShape::token_bytes`] says of each of its tokens.
    ///
    /// # Errors
    /// Those of `to`.
    pub(crate) fn give(&self, to: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.0.parts().into_iter().try_for_each(to)
    }

    /// A page of `shape` whose bytes `from` fills in, part by part, as [`Self::give`] gave them.
    ///
    /// # Errors
    /// Those of `from`; [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(crate) fn take(shape: &KvShape, from: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<Self> {
        let mut page = Page::new(shape)?;
        page.parts_mut().into_iter().try_for_each(from)?;
        Ok(Self(Arc::new(page)))
    }
}

impl Page {
    fn parts(&self) -> [&[u8]; 2] {
        match self {
            Self::F32(values) => [bytemuck::cast_slice(values), &[]],
            Self::F16(values) => [bytemuck::cast_slice(values), &[]],
            Self::BF16(values) => [bytemuck::cast_slice(values), &[]],
            Self::Q8(page) => page.parts(),
            Self::Q4(page) => page.parts(),
        }
    }

    fn parts_mut(&mut self) -> [&mut [u8]; 2] {
        match self {
            Self::F32(values) => [bytemuck::cast_slice_mut(values), &mut []],
            Self::F16(values) => [bytemuck::cast_slice_mut(values), &mut []],
            Self::BF16(values) => [bytemuck::cast_slice_mut(values), &mut []],
            Self::Q8(page) => page.parts_mut(),
            Self::Q4(page) => page.parts_mut(),
        }
    }
}
