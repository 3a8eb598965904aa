//! The bytes of a quantized matrix: views of what a file holds, or made of it when they are asked for.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use crate::alloc;
use crate::error::Result;
use crate::tensor::{Bytes, cut};

/// One kind of a quantized matrix's bytes, row after row.
#[derive(Clone)]
pub struct Plane {
    owner: Arc<dyn Bytes>,
    range: Range<usize>,
}

impl Plane {
    /// A view of `owner[range]`.
    ///
    /// # Panics
    /// Where the range leaves the owner.
    pub fn new(owner: Arc<dyn Bytes>, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= owner.bytes().len(),
            "plane {range:?} leaves its file"
        );
        Self { owner, range }
    }

    /// A plane that owns its bytes.
    pub fn owned(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self::new(Arc::new(bytes), 0..len)
    }

    /// The bytes of all rows, at any alignment.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// What keeps the bytes alive.
    pub fn owner(&self) -> Arc<dyn Bytes> {
        Arc::clone(&self.owner)
    }

    /// Says that the bytes will hardly be read again.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }

    pub(super) fn len(&self) -> usize {
        self.range.len()
    }

    /// This plane and `next` as one, where `next` follows it in the same bytes.
    pub(super) fn joined(&self, next: &Self) -> Option<Self> {
        let follows = std::ptr::addr_eq(Arc::as_ptr(&self.owner), Arc::as_ptr(&next.owner))
            && self.range.end == next.range.start;
        follows.then(|| Self { owner: Arc::clone(&self.owner), range: self.range.start..next.range.end })
    }

    /// Rows `rows` of `width` bytes each.
    pub(crate) fn rows(&self, width: usize, rows: &Range<usize>) -> Self {
        let range = self.range.start + rows.start * width..self.range.start + rows.end * width;
        Self { owner: Arc::clone(&self.owner), range }
    }
}

/// All planes of a matrix. Clones share them.
#[derive(Clone)]
pub(super) enum Planes {
    /// As they lie in a file, or as long as the matrix lives.
    Held(Arc<[Plane]>),
    /// Made of what a file holds.
    Made(Arc<Made>),
}

/// Makes the planes of some rows.
pub(super) type Make = Arc<dyn Fn(Range<usize>) -> Result<Arc<[Plane]>> + Send + Sync>;

/// Planes that are made when they are asked for.
pub(super) struct Made {
    make: Make,
    rows: Range<usize>,
    kept: OnceLock<Arc<[Plane]>>,
}

impl Made {
    fn planes(&self) -> Result<Arc<[Plane]>> {
        (self.make)(self.rows.clone())
    }
}

impl Planes {
    /// The planes of `rows`, which `make` makes.
    pub fn made(make: Make, rows: Range<usize>) -> Self {
        Self::Made(Arc::new(Made { make, rows, kept: OnceLock::new() }))
    }

    /// The planes, in memory from here on.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), where they had to be made.
    pub fn kept(&self) -> Result<&[Plane]> {
        match self {
            Self::Held(planes) => Ok(planes),
            Self::Made(made) => match made.kept.get() {
                Some(planes) => Ok(planes),
                None => {
                    let planes = made.planes()?;
                    Ok(made.kept.get_or_init(|| planes))
                }
            },
        }
    }

    /// The planes, in memory for as long as the answer lives.
    ///
    /// # Errors
    /// As [`Self::kept`].
    pub fn held(&self) -> Result<Self> {
        match self {
            Self::Held(planes) => Ok(Self::Held(Arc::clone(planes))),
            Self::Made(made) => {
                Ok(Self::Held(made.kept.get().map_or_else(|| made.planes(), |kept| Ok(Arc::clone(kept)))?))
            }
        }
    }

    /// Whether they are made when they are asked for.
    pub fn is_made(&self) -> bool {
        matches!(self, Self::Made(_))
    }

    /// An address and a length that no other planes have while these are there.
    pub fn key(&self) -> (usize, usize) {
        match self {
            Self::Held(planes) => {
                let bytes = planes[0].bytes();
                (bytes.as_ptr() as usize, bytes.len())
            }
            Self::Made(made) => (Arc::as_ptr(made).cast::<u8>() as usize, 0),
        }
    }

    /// Of each of `rows` rows, which have `widths` bytes, the bytes `columns`: copied when they are asked for.
    pub fn columns(&self, rows: usize, widths: &[usize], columns: &[Range<usize>]) -> Self {
        let (whole, columns): (Self, SmallVec<[Range<usize>; 3]>) = (self.clone(), columns.into());
        let widths: SmallVec<[usize; 3]> = widths.into();
        let make = move |rows: Range<usize>| -> Result<Arc<[Plane]>> {
            let height = rows.len();
            let planes = whole.rows(&widths, rows).held()?;
            let parts = planes.kept()?.iter().zip(&widths).zip(&columns);
            let parts = parts.map(|((plane, &width), columns)| {
                let mut part = alloc::zeroed(height * columns.len(), "a part of a matrix")?;
                cut(plane.bytes(), width, columns.clone(), &mut part);
                Ok(Plane::owned(part))
            });
            parts.collect::<Result<Vec<Plane>>>().map(Into::into)
        };
        Self::made(Arc::new(make), 0..rows)
    }

    /// Rows `rows` of the planes, whose rows have `widths` bytes.
    pub fn rows(&self, widths: &[usize], rows: Range<usize>) -> Self {
        match self {
            Self::Held(planes) => {
                let parts = planes.iter().zip(widths).map(|(plane, &width)| plane.rows(width, &rows));
                Self::Held(parts.collect())
            }
            Self::Made(made) => {
                let start = made.rows.start;
                Self::made(Arc::clone(&made.make), start + rows.start..start + rows.end)
            }
        }
    }
}
