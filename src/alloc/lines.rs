//! Bytes that kernels stream, in whole cache lines: large ones on huge pages, where the system has them.

use std::sync::Arc;

use super::huge::{self, HUGE, Map};
use super::{ask, refused, zeroed};
use crate::error::Result;

/// 64 bytes: a line of every cache that backstop meets, and an AVX-512 register.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// Zeros to be written. A page is given when it is first written, to the thread that does.
#[derive(Debug)]
pub(crate) struct Blank(Of<Vec<Line>, Map>);

/// What was written once, and is read often.
#[derive(Debug)]
pub(crate) struct Lines(Of<Vec<Line>, Arc<Map>>);

#[derive(Debug)]
enum Of<S, L> {
    Small(S),
    Large(L),
}

impl Blank {
    /// `len` lines for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(len: usize, what: &'static str) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<Line>());
        if bytes < HUGE || !huge::are_there() {
            return Ok(Self(Of::Small(zeroed(len, what)?)));
        }
        ask::<Line>(len, what)?;
        Ok(Self(Of::Large(Map::new(bytes).map_err(|_| refused::<Line>(len, what))?)))
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Of::Small(lines) => bytemuck::cast_slice_mut(lines),
            Of::Large(map) => map.bytes_mut(),
        }
    }

    /// All of it is written.
    pub fn written(self) -> Lines {
        match self.0 {
            Of::Small(lines) => Lines(Of::Small(lines)),
            Of::Large(map) => {
                let map = Arc::new(map);
                huge::want(&map);
                Lines(Of::Large(map))
            }
        }
    }
}

impl Lines {
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Of::Small(lines) => bytemuck::cast_slice(lines),
            Of::Large(map) => map.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn lines_of_any_number_begin_where_they_should_and_stay_what_they_are() {
        for len in [0, 1, HUGE / 64 - 1, HUGE / 64, HUGE / 64 * 3 + 5] {
            let mut blank = Blank::new(len, "x").unwrap();
            assert_eq!(blank.bytes_mut().len(), len * 64);
            assert!(blank.bytes_mut().iter().all(|byte| *byte == 0));
            let wanted = if len * 64 < HUGE || !huge::are_there() { 64 } else { HUGE };
            assert!(blank.bytes_mut().as_ptr().addr().is_multiple_of(wanted), "{len}");
            blank.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
            let lines = blank.written();
            let same = || lines.bytes().iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8);
            assert!(same());
            huge::settle(std::time::Duration::from_secs(60));
            assert!(same());
        }
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        for len in [usize::MAX, usize::MAX / 64, usize::MAX / 256] {
            assert!(matches!(Blank::new(len, "x"), Err(Error::OutOfMemory { what: "x", .. })));
        }
    }
}
