//! Bytes that kernels stream, in whole cache lines: on huge pages, where the system has them.

use super::huge::{self, Part};
use super::{ask, refused, zeroed};
use crate::error::Result;

/// 64 bytes: a line of every cache that backstop meets, and an AVX-512 register.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// Zeros to be written. A page is given when it is first written, to the thread that does.
#[derive(Debug)]
pub(crate) struct Blank(Of);

/// What was written once, and is read often.
#[derive(Debug)]
pub(crate) struct Lines(Of);

#[derive(Debug)]
enum Of {
    Small(Vec<Line>),
    Large(Part),
}

/// Bytes that are worth their part of a huge page.
const LARGE: usize = 64 << 10;

impl Blank {
    /// `len` lines for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(len: usize, what: &'static str) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<Line>());
        if bytes < LARGE || !huge::are_there() {
            return Ok(Self(Of::Small(zeroed(len, what)?)));
        }
        ask::<Line>(len, what)?;
        Ok(Self(Of::Large(Part::new(bytes).map_err(|_| refused::<Line>(len, what))?)))
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Of::Small(lines) => bytemuck::cast_slice_mut(lines),
            Of::Large(part) => part.bytes_mut(),
        }
    }

    /// All of it is written.
    pub fn written(self) -> Lines {
        if let Of::Large(part) = &self.0 {
            part.written();
        }
        Lines(self.0)
    }
}

impl Lines {
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Of::Small(lines) => bytemuck::cast_slice(lines),
            Of::Large(part) => part.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::huge::HUGE;
    use super::*;
    use crate::Error;

    #[test]
    fn lines_of_any_number_begin_where_they_should_and_stay_what_they_are() {
        let of = [0, 1, LARGE / 64 - 1, LARGE / 64, 20_000, 20_000, HUGE / 64 - 1, HUGE / 64, 98_309];
        let blanks = of.map(|len| (len, Blank::new(len, "x").unwrap()));
        let all = blanks.map(|(len, mut blank)| {
            assert_eq!(blank.bytes_mut().len(), len * 64);
            assert!(blank.bytes_mut().iter().all(|byte| *byte == 0));
            let wanted = if len * 64 < HUGE || !huge::are_there() { 64 } else { HUGE };
            assert!(blank.bytes_mut().as_ptr().addr().is_multiple_of(wanted), "{len}");
            blank.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = ((i + len) % 251) as u8);
            (len, blank.written())
        });
        let same = |(len, lines): &(usize, Lines)| {
            lines.bytes().iter().enumerate().all(|(i, byte)| *byte == ((i + len) % 251) as u8)
        };
        assert!(all.iter().all(same));
        huge::settle(std::time::Duration::from_secs(60));
        assert!(all.iter().all(same));
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        for len in [usize::MAX, usize::MAX / 64, usize::MAX / 256] {
            assert!(matches!(Blank::new(len, "x"), Err(Error::OutOfMemory { what: "x", .. })));
        }
    }
}
