//! Quantized matrices as their files hold them: block formats as data, and views of the bytes that are never copied.
//!
//! A [`Format`] says how a row of `K` elements lies in bytes; a [`QuantWeight`] is a matrix `[N, K]` in one of them; a
//! [`Matrix`] is what a linear layer or an embedding holds, quantized or not.

pub mod affine;
pub(crate) mod block;
pub(crate) mod blocks;
mod codec;
mod encode;
pub(crate) mod ggml;
pub mod ocp;
mod parallel;
mod planes;
pub mod repack;
mod scheme;
mod stack;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::error::Result;
use crate::tensor::{DType, Weight};

pub use blocks::GgmlType;
pub(crate) use encode::affine_group;
pub use encode::write_floats;
pub(crate) use parallel::for_rows;
pub use planes::Plane;
use planes::Planes;
pub use scheme::{MlxFormat, MlxMode, MlxQuantization, Published, Publisher, Quantization};
pub use stack::Stack;

/// How the elements of a row are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// MLX's: `w = q · scale + bias` for each group. Planes: codes (a little-endian bit stream along the row), scales and
    /// biases `[N, K / group]` of `scales`.
    Affine {
        /// 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// Elements that share a scale and a bias: 32, 64 or 128; GPTQ and AWQ files may have others.
        group: u16,
        /// The type of the scales and the biases.
        scales: DType,
    },
    /// OCP MXFP4: e2m1 codes, low nibble first, and an e8m0 scale for each 32. Planes: codes, scales.
    Mxfp4,
    /// OCP MXFP8: e4m3 codes and an e8m0 scale for each 32. Planes: codes, scales.
    Mxfp8,
    /// NVFP4: e2m1 codes, low nibble first, and an e4m3 scale for each 16. Planes: codes, scales.
    Nvfp4,
    /// e4m3 codes and an `f32` scale for each group: FP8 whose scales are those of blocks, of rows or of the whole matrix.
    /// Planes: codes, scales.
    Fp8 {
        /// Elements of a row that share a scale.
        group: u16,
    },
    /// e2m1 codes, low nibble first, and an `f32` scale for each group: NVFP4 with a scale of the whole matrix. Planes: codes,
    /// scales.
    Fp4 {
        /// Elements of a row that share a scale.
        group: u16,
    },
    /// Blocks of a GGUF file. One plane.
    Ggml(GgmlType),
}

impl Format {
    /// Elements that a row's length must be a multiple of.
    pub const fn group(self) -> usize {
        match self {
            Self::Affine { group, .. } | Self::Fp8 { group } | Self::Fp4 { group } => group as usize,
            Self::Mxfp4 | Self::Mxfp8 => 32,
            Self::Nvfp4 => 16,
            Self::Ggml(of) => of.block().0,
        }
    }

    /// Whether its codes stand for integers that a scale multiplies, so that products with rounded activations are exact
    /// sums of integers: all but mxfp8 and fp8.
    pub const fn has_integers(self) -> bool {
        !matches!(self, Self::Mxfp8 | Self::Fp8 { .. })
    }

    /// Bytes that a row of `columns` elements takes in each plane, in their order.
    pub fn row_bytes(self, columns: usize) -> SmallVec<[usize; 3]> {
        let groups = columns / self.group();
        match self {
            Self::Affine { bits, scales, .. } => {
                let scales = groups * scales.size();
                SmallVec::from_slice(&[columns * bits as usize / 8, scales, scales])
            }
            Self::Mxfp4 | Self::Nvfp4 => SmallVec::from_slice(&[columns / 2, groups]),
            Self::Mxfp8 => SmallVec::from_slice(&[columns, groups]),
            Self::Fp8 { .. } => SmallVec::from_slice(&[columns, groups * DType::F32.size()]),
            Self::Fp4 { .. } => SmallVec::from_slice(&[columns / 2, groups * DType::F32.size()]),
            Self::Ggml(of) => SmallVec::from_slice(&[groups * of.block().1]),
        }
    }
}

impl fmt::Display for Format {
    /// `affine4 g64`, `mxfp4`, `fp8 g128`, `Q4_K`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affine { bits, group, .. } => write!(f, "affine{bits} g{group}"),
            Self::Mxfp4 => f.write_str("mxfp4"),
            Self::Mxfp8 => f.write_str("mxfp8"),
            Self::Nvfp4 => f.write_str("nvfp4"),
            Self::Fp8 { group } => write!(f, "fp8 g{group}"),
            Self::Fp4 { group } => write!(f, "fp4 g{group}"),
            Self::Ggml(of) => f.write_str(of.name()),
        }
    }
}

/// A quantized matrix `[N, K]`. Clones share the bytes.
#[derive(Clone)]
pub struct QuantWeight {
    name: Arc<str>,
    format: Format,
    shape: [usize; 2],
    planes: Planes,
    order: Option<Arc<[u32]>>,
}

impl QuantWeight {
    /// A matrix of `planes`, which are those that `format` names.
    ///
    /// # Panics
    /// Where `K` is no multiple of the format's group, or a plane's length is not what the format and `shape` want:
    /// loaders check both against the file before they make a view.
    pub fn new(
        name: impl Into<Arc<str>>,
        format: Format,
        shape: [usize; 2],
        planes: impl IntoIterator<Item = Plane>,
    ) -> Self {
        let planes: Arc<[Plane]> = planes.into_iter().collect();
        check_planes(format, shape, &planes);
        Self { name: name.into(), format, shape, planes: Planes::Held(planes), order: None }
    }

    /// A matrix whose planes lie in no file as the format has them: `make` makes those of some rows, and they stay in
    /// memory only where [`planes`](Self::planes) is asked for them.
    ///
    /// # Panics
    /// As [`new`](Self::new); about what `make` makes, once it is called.
    pub fn made(
        name: impl Into<Arc<str>>,
        format: Format,
        shape: [usize; 2],
        make: impl Fn(Range<usize>) -> Result<SmallVec<[Plane; 3]>> + Send + Sync + 'static,
    ) -> Self {
        let make = move |rows: Range<usize>| {
            let part = [rows.len(), shape[1]];
            let planes: Arc<[Plane]> = make(rows)?.into_iter().collect();
            check_planes(format, part, &planes);
            Ok(planes)
        };
        let planes = Planes::made(Arc::new(make), 0..shape[0]);
        Self { name: name.into(), format, shape, planes, order: None }
    }

    /// The matrix with its planes in memory for as long as it lives: for one who reads them once.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), where they had to be made.
    pub fn held(&self) -> Result<Self> {
        Ok(Self { planes: self.planes.held()?, ..self.clone() })
    }

    /// Makes its planes, where they lie in no file, and keeps them: for one who will read rows again and again.
    ///
    /// # Errors
    /// As [`held`](Self::held).
    pub(crate) fn keep(&self) -> Result<()> {
        self.planes.kept().map(drop)
    }

    /// Whether its planes lie in no file, and are made when they are asked for.
    pub fn is_made(&self) -> bool {
        self.planes.is_made()
    }

    /// What tells the matrix from every other that is there at the same time: it and its clones have this address and this
    /// length, and none else has.
    pub fn key(&self) -> (usize, usize) {
        self.planes.key()
    }

    /// With stored column `j` standing for column `order[j]` of the input: GPTQ's activation order.
    ///
    /// # Panics
    /// Where `order` is no permutation of the columns.
    pub fn with_order(mut self, order: Arc<[u32]>) -> Self {
        let mut seen = vec![false; self.shape[1]];
        for &column in order.iter() {
            assert!(
                !std::mem::replace(&mut seen[column as usize], true),
                "column {column} twice in an order"
            );
        }
        assert_eq!(order.len(), self.shape[1], "columns of an order");
        self.order = Some(order);
        self
    }

    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its elements are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// `[N, K]`.
    pub fn shape(&self) -> &[usize; 2] {
        &self.shape
    }

    /// Its bytes, in the order that the format names. Planes that had to be made are kept from here on.
    ///
    /// # Panics
    /// Where there is no memory to make them. Of what is [`held`](Self::held) they are there.
    pub fn planes(&self) -> &[Plane] {
        self.planes.kept().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The input column of each stored one, where they are not the same.
    pub fn order(&self) -> Option<&Arc<[u32]>> {
        self.order.as_ref()
    }

    /// Bytes of all planes.
    pub fn len_bytes(&self) -> usize {
        self.format.row_bytes(self.shape[1]).iter().map(|row| row * self.shape[0]).sum()
    }

    /// Rows `rows` as a matrix of their own, without a copy: the parts of a fused projection.
    ///
    /// # Panics
    /// Where `rows` leaves the matrix.
    pub fn rows(&self, part: &str, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.shape[0], "rows {rows:?} of {:?}", self.shape);
        let widths = self.format.row_bytes(self.shape[1]);
        Self {
            name: format!("{}[{part}]", self.name).into(),
            format: self.format,
            shape: [rows.len(), self.shape[1]],
            planes: self.planes.rows(&widths, rows),
            order: self.order.clone(),
        }
    }

    /// As [`Matrix::columns`].
    fn columns(&self, part: &str, columns: Range<usize>) -> Self {
        assert!(
            columns.start <= columns.end && columns.end <= self.shape[1],
            "columns {columns:?} of {:?}",
            self.shape
        );
        assert!(self.order.is_none(), "columns of {} by their order", self.name);
        let bytes = |columns: usize| self.format.row_bytes(columns);
        let ends = bytes(columns.start).into_iter().zip(bytes(columns.end));
        let parts: SmallVec<[Range<usize>; 3]> = ends.map(|(start, end)| start..end).collect();
        Self {
            name: format!("{}[{part}]", self.name).into(),
            format: self.format,
            shape: [self.shape[0], columns.len()],
            planes: self.planes.columns(self.shape[0], &bytes(self.shape[1]), &parts),
            order: None,
        }
    }

    /// As [`Matrix::in_rows_of`].
    fn in_rows_of(&self, width: usize) -> Option<Self> {
        let [rows, columns] = self.shape;
        let whole = width > 0 && columns.is_multiple_of(width) && width.is_multiple_of(self.format.group());
        if !whole || self.is_made() || self.order.is_some() {
            return None;
        }
        Some(Self { shape: [rows * (columns / width), width], ..self.clone() })
    }
}

fn check_planes(format: Format, shape: [usize; 2], planes: &[Plane]) {
    assert!(shape[1].is_multiple_of(format.group()), "K = {} in groups of {}", shape[1], format.group());
    let wanted: SmallVec<[usize; 3]> = format.row_bytes(shape[1]).iter().map(|row| row * shape[0]).collect();
    let lengths: SmallVec<[usize; 3]> = planes.iter().map(Plane::len).collect();
    assert_eq!(lengths, wanted, "bytes of the planes of {shape:?} in {format}");
}

impl fmt::Debug for QuantWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.format, self.shape)
    }
}

/// The matrix of a linear layer or an embedding, `[N, K]`.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// In an element type.
    Dense(Weight),
    /// In blocks.
    Quantized(QuantWeight),
}

impl Matrix {
    /// What ops take.
    pub fn as_ref(&self) -> MatrixRef<'_> {
        match self {
            Self::Dense(weight) => MatrixRef::Dense(weight),
            Self::Quantized(weight) => MatrixRef::Quantized(weight),
        }
    }

    /// The element type, or the one that blocks stand in for: that of affine scales, `bf16` for those of small floats, `f32`
    /// for those of GGUF.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Dense(weight) => weight.dtype(),
            Self::Quantized(weight) => match weight.format {
                Format::Affine { scales, .. } => scales,
                Format::Ggml(_) => DType::F32,
                _ => DType::BF16,
            },
        }
    }

    /// Bytes that it takes as it is stored.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.bytes().len(),
            Self::Quantized(weight) => weight.len_bytes(),
        }
    }

    /// The same elements in rows of `width`, which divides the columns, without a copy; none where groups of a format would be cut,
    /// or where rows are no bytes of a file.
    pub(crate) fn in_rows_of(&self, width: usize) -> Option<Self> {
        match self {
            Self::Dense(weight) => Some(Self::Dense(weight.in_rows_of(width))),
            Self::Quantized(weight) => weight.in_rows_of(width).map(Self::Quantized),
        }
    }

    /// Columns `columns` as a matrix of their own, copied; none where they cut groups of a format, or have an order.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    ///
    /// # Panics
    /// Where `columns` leaves the matrix.
    pub(crate) fn columns(&self, part: &str, columns: Range<usize>) -> Result<Option<Self>> {
        match self {
            Self::Dense(weight) => weight.columns(part, columns).map(Self::Dense).map(Some),
            Self::Quantized(weight) => {
                let whole = |end: usize| end.is_multiple_of(weight.format.group());
                let cuts = !whole(columns.start) || !whole(columns.end) || weight.order.is_some();
                Ok((!cuts).then(|| Self::Quantized(weight.columns(part, columns))))
            }
        }
    }

    /// Rows `rows` as a matrix of their own, without a copy.
    ///
    /// # Panics
    /// Where `rows` leaves the matrix.
    pub fn rows(&self, part: &str, rows: Range<usize>) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.rows(part, rows)),
            Self::Quantized(weight) => Self::Quantized(weight.rows(part, rows)),
        }
    }
}

/// A borrowed [`Matrix`].
#[derive(Debug, Clone, Copy)]
pub enum MatrixRef<'a> {
    /// In an element type.
    Dense(&'a Weight),
    /// In blocks.
    Quantized(&'a QuantWeight),
}

impl<'a> MatrixRef<'a> {
    /// `[N, K]`.
    pub fn shape(self) -> &'a [usize] {
        match self {
            Self::Dense(weight) => weight.shape(),
            Self::Quantized(weight) => weight.shape(),
        }
    }
}

impl<'a> From<&'a Weight> for MatrixRef<'a> {
    fn from(weight: &'a Weight) -> Self {
        Self::Dense(weight)
    }
}

impl<'a> From<&'a QuantWeight> for MatrixRef<'a> {
    fn from(weight: &'a QuantWeight) -> Self {
        Self::Quantized(weight)
    }
}
