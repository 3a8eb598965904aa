//! Memory whose size a file, a prompt, a batch or a body decides. What the system refuses fails the load or the request that wanted
//! it, by name; a plain `Vec` would end the process. Sizes that the code fixes stay plain.

mod huge;
mod lines;

use bytemuck::Zeroable;

pub(crate) use huge::settle;
pub(crate) use lines::{Blank, Lines};

use crate::apart;
use crate::error::{Error, Result};
use crate::refusals::{self, Site};

/// Gives back what was freed since the last time, where that was much.
pub(crate) fn give_back_freed() {
    if apart::was_much_freed() {
        give_back();
    }
}

/// Gives memory that nobody uses any more back to the system, where the allocator keeps it.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number of bytes to keep and touches no memory that is in use; any thread may call it.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// `len` zeros for `what`. The system gives pages of zeros, which are touched when they are first used, as by `vec![0; len]`.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn zeroed<T: Zeroable>(len: usize, what: &'static str) -> Result<Vec<T>> {
    ask::<T>(len, what)?;
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| refused::<T>(len, what))
}

/// Makes room for `more` elements behind those of `values`. It grows by no more than that, so that one call before a buffer is
/// filled takes what is needed.
///
/// # Errors
/// [`Error::OutOfMemory`]; `values` is as it was.
pub(crate) fn reserve<T>(values: &mut Vec<T>, more: usize, what: &'static str) -> Result<()> {
    if values.capacity() - values.len() >= more {
        return Ok(());
    }
    ask::<T>(more, what)?;
    values.try_reserve_exact(more).map_err(|_| refused::<T>(values.len().saturating_add(more), what))
}

/// As [`reserve`], for what grows little by little: it may take as much again, so that the next calls find it.
///
/// # Errors
/// As [`reserve`].
pub(crate) fn reserve_more<T>(values: &mut Vec<T>, more: usize, what: &'static str) -> Result<()> {
    if values.capacity() - values.len() >= more {
        return Ok(());
    }
    ask::<T>(more, what)?;
    values.try_reserve(more).map_err(|_| refused::<T>(values.len().saturating_add(more), what))
}

/// Makes `values` as long as `len`, with zeros behind what it holds.
///
/// # Errors
/// As [`reserve`].
pub(crate) fn resize<T: Copy + Zeroable>(values: &mut Vec<T>, len: usize, what: &'static str) -> Result<()> {
    reserve(values, len.saturating_sub(values.len()), what)?;
    values.resize(len, T::zeroed());
    Ok(())
}

/// Makes `values` at least as long as `len`. What it held goes first, since nothing of it is wanted; where there is no memory for
/// more, it is as long as it was, for those who come with less.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn replace<T: Zeroable>(values: &mut Vec<T>, len: usize, what: &'static str) -> Result<()> {
    if values.len() >= len {
        return Ok(());
    }
    let before = values.len();
    *values = Vec::new();
    match zeroed(len, what) {
        Ok(more) => *values = more,
        Err(error) => {
            *values = zeroed(before, what).unwrap_or_default();
            return Err(error);
        }
    }
    Ok(())
}

/// A copy of `values`.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn copy_of<T: Copy>(values: &[T], what: &'static str) -> Result<Vec<T>> {
    let mut copy = Vec::new();
    reserve(&mut copy, values.len(), what)?;
    copy.extend_from_slice(values);
    Ok(copy)
}

/// A copy of a text.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn text_of(text: &str, what: &'static str) -> Result<String> {
    let mut copy = String::new();
    ask::<u8>(text.len(), what)?;
    copy.try_reserve_exact(text.len()).map_err(|_| refused::<u8>(text.len(), what))?;
    copy.push_str(text);
    Ok(copy)
}

/// What an iterator of known length gives.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn collect<T>(values: impl ExactSizeIterator<Item = T>, what: &'static str) -> Result<Vec<T>> {
    let mut all = Vec::new();
    reserve(&mut all, values.len(), what)?;
    all.extend(values);
    Ok(all)
}

/// Lets a test refuse what the system would give.
#[inline]
fn ask<T>(len: usize, what: &'static str) -> Result<()> {
    match len > 0 && refusals::hit(Site::Memory, len.saturating_mul(size_of::<T>())) {
        true => Err(refused::<T>(len, what)),
        false => Ok(()),
    }
}

#[cold]
fn refused<T>(len: usize, what: &'static str) -> Error {
    Error::OutOfMemory { what, bytes: (len as u64).saturating_mul(size_of::<T>() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused_by_name_and_size() {
        let error = |result: Result<()>| result.unwrap_err().to_string();
        let none = usize::MAX / 16;
        assert_eq!(
            error(zeroed::<f32>(none, "activations of a step").map(drop)),
            "cannot take 4611686.02 TB of memory for activations of a step"
        );
        let mut values = vec![1_u8, 2];
        assert!(matches!(
            reserve(&mut values, usize::MAX - 2, "a text"),
            Err(Error::OutOfMemory { what: "a text", bytes: u64::MAX })
        ));
        assert_eq!(values, [1, 2]);
        assert!(replace(&mut values, none, "x").is_err());
        assert_eq!(values, [0, 0]);
        let mut wide = vec![0_u64; 3];
        assert!(matches!(
            resize(&mut wide, usize::MAX, "x"),
            Err(Error::OutOfMemory { bytes: u64::MAX, .. })
        ));
        assert_eq!(wide.len(), 3);
    }

    #[test]
    fn what_there_is_is_given() {
        assert_eq!(zeroed::<u16>(3, "x").unwrap(), [0; 3]);
        assert_eq!(copy_of(&[1, 2], "x").unwrap(), [1, 2]);
        assert_eq!(text_of("ab", "x").unwrap(), "ab");
        assert_eq!(collect([1, 2].iter().map(|x| x * 2), "x").unwrap(), [2, 4]);
        let mut values = vec![7];
        resize(&mut values, 3, "x").unwrap();
        assert_eq!(values, [7, 0, 0]);
        resize(&mut values, 1, "x").unwrap();
        assert_eq!(values, [7]);
        let mut empty: Vec<()> = Vec::new();
        reserve(&mut empty, 5, "x").unwrap();
        reserve_more(&mut values, 1, "x").unwrap();
        assert!(values.capacity() > values.len());
    }
}
