//! Values in host memory: [`HostTensor`], typed and whole; [`MatrixView`], some of its rows and columns; [`Weight`], a view of bytes
//! that the model file keeps, in their own type.

mod view;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use smallvec::SmallVec;

pub use view::MatrixView;

use crate::alloc;
use crate::error::{Error, Result};

/// Element types of weights and KV caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl DType {
    /// Every type, the widest first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name that users see, as in `torch_dtype` but short.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| Error::Option {
            option: "dtype",
            got: name.to_owned(),
            expected: "f32, f16 or bf16",
        })
    }
}

/// Dimensions, outermost first; row-major.
pub type Shape = SmallVec<[usize; 4]>;

/// Bytes that outlive every view of them: a mapped file, an owned buffer, or a part of the binary.
pub trait Bytes: Send + Sync + fmt::Debug {
    /// All the bytes, at an address that never changes while the owner lives.
    fn bytes(&self) -> &[u8];

    /// Says that a part of the bytes will hardly be read again: what can come back from a file leaves memory.
    fn release(&self, _part: Range<usize>) {}
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Bytes for Vec<f32> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }
}

impl Bytes for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A weight: a named, typed, shaped view of bytes in their own type, never copied. Clones share the bytes.
#[derive(Clone)]
pub struct Weight {
    name: Arc<str>,
    dtype: DType,
    shape: Shape,
    owner: Arc<dyn Bytes>,
    range: Range<usize>,
}

impl Weight {
    /// A view of `owner[range]`.
    ///
    /// # Panics
    /// Where the range leaves the owner, or its length is not `shape`'s product × `dtype`'s size: loaders check
    /// both against the file before they make a view.
    pub fn new(
        name: impl Into<Arc<str>>,
        dtype: DType,
        shape: &[usize],
        owner: Arc<dyn Bytes>,
        range: Range<usize>,
    ) -> Self {
        let elements: usize = shape.iter().product();
        assert!(range.end <= owner.bytes().len(), "weight range {range:?} leaves its file");
        assert_eq!(range.len(), elements * dtype.size(), "weight bytes against shape {shape:?} of {dtype}");
        Self { name: name.into(), dtype, shape: shape.into(), owner, range }
    }

    /// A weight that owns its `f32` values (tests, and values derived at load).
    pub fn from_f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::of_values(name, shape, values.to_vec())
    }

    /// The same of values that need no copy.
    pub(crate) fn of_values(name: &str, shape: &[usize], values: Vec<f32>) -> Self {
        let len = values.len() * size_of::<f32>();
        Self::new(name, DType::F32, shape, Arc::new(values), 0..len)
    }

    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The element type, that of the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The weight's bytes, little-endian, row-major; not necessarily aligned to the element.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// What keeps the bytes alive: the weight cache holds it so that an address is never reused under it.
    pub fn owner(&self) -> Arc<dyn Bytes> {
        Arc::clone(&self.owner)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows `rows` of the outermost dimension as a weight of its own, without a copy: the parts of a fused
    /// projection.
    ///
    /// # Panics
    /// Where `rows` leaves the outermost dimension.
    pub fn rows(&self, part: &str, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.shape[0], "rows {rows:?} of {:?}", self.shape);
        let stride = self.shape[1..].iter().product::<usize>() * self.dtype.size();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self {
            name: format!("{}[{part}]", self.name).into(),
            dtype: self.dtype,
            shape,
            owner: Arc::clone(&self.owner),
            range: self.range.start + rows.start * stride..self.range.start + rows.end * stride,
        }
    }

    /// Columns `columns` of a matrix as one of its own, copied.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    ///
    /// # Panics
    /// Where it is no matrix, or `columns` leaves it.
    pub(crate) fn columns(&self, part: &str, columns: Range<usize>) -> Result<Self> {
        let &[rows, width] = self.shape() else { panic!("columns of {:?}", self.shape) };
        assert!(
            columns.start <= columns.end && columns.end <= width,
            "columns {columns:?} of {:?}",
            self.shape
        );
        let size = self.dtype.size();
        let mut copy = Aligned::zeros(rows * columns.len() * size)?;
        cut(self.bytes(), width * size, columns.start * size..columns.end * size, copy.bytes_mut());
        let (name, shape) = (format!("{}[{part}]", self.name), [rows, columns.len()]);
        let len = copy.bytes().len();
        Ok(Self::new(name, self.dtype, &shape, Arc::new(copy), 0..len))
    }

    /// The same elements in rows of `width`, without a copy.
    ///
    /// # Panics
    /// Where they make up no whole rows.
    pub(crate) fn in_rows_of(&self, width: usize) -> Self {
        let rows = self.len() / width.max(1);
        assert_eq!(self.len(), rows * width, "rows of {width} of {:?}", self.shape);
        Self { shape: Shape::from_slice(&[rows, width]), ..self.clone() }
    }

    /// All values as `f32`: for small weights (norms, biases) and for tests; large ones are read in place.
    ///
    /// # Panics
    /// Where the system has no memory for them.
    pub fn to_f32(&self) -> Vec<f32> {
        self.widened().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// As [`Self::to_f32`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn widened(&self) -> Result<Vec<f32>> {
        const WHAT: &str = "the values of a weight";
        let bytes = self.bytes();
        match self.dtype {
            DType::F32 => alloc::collect(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
                WHAT,
            ),
            DType::F16 => alloc::collect(
                bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
                WHAT,
            ),
            DType::BF16 => alloc::collect(
                bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
                WHAT,
            ),
        }
    }
}

/// Copies bytes `columns` of each row of `width` bytes.
pub(crate) fn cut(whole: &[u8], width: usize, columns: Range<usize>, into: &mut [u8]) {
    if !columns.is_empty() {
        let rows = whole.chunks_exact(width).zip(into.chunks_exact_mut(columns.len()));
        rows.for_each(|(row, into)| into.copy_from_slice(&row[columns.clone()]));
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.dtype, self.shape.as_slice())
    }
}

/// A copy of bytes that starts at a multiple of 8.
#[derive(Debug)]
pub(crate) struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl Aligned {
    pub fn zeros(len: usize) -> Result<Self> {
        Ok(Self { words: alloc::zeroed(len.div_ceil(8), "an aligned copy of a tensor")?, len })
    }

    pub fn copy_of(bytes: &[u8]) -> Result<Self> {
        let mut copy = Self::zeros(bytes.len())?;
        copy.bytes_mut().copy_from_slice(bytes);
        Ok(copy)
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

impl Bytes for Aligned {
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

/// Host memory of activations, given back to its pool when dropped.
pub struct Buffer {
    values: Vec<f32>,
    pool: Option<BufferPool>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::take(&mut self.values));
        }
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.values.len())
    }
}

/// Recycles activation buffers, so that a step neither allocates nor touches fresh pages. Clones share the pool.
#[derive(Clone, Default)]
pub struct BufferPool {
    free: Arc<parking_lot::Mutex<Vec<Vec<f32>>>>,
}

impl BufferPool {
    /// Buffers kept for reuse: a step holds about a dozen at once.
    const KEPT: usize = 32;

    /// A buffer of `len` elements with unspecified values: the caller writes every one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where none is left over and the system has none.
    pub fn take(&self, len: usize) -> Result<Buffer> {
        let mut free = self.free.lock();
        // Best fit, so that the head's logits do not take the buffer that the next layer wants.
        let fit = (0..free.len())
            .filter(|&i| free[i].capacity() >= len)
            .min_by_key(|&i| free[i].capacity())
            .map(|i| free.swap_remove(i));
        drop(free);
        let values = match fit {
            Some(mut values) => {
                values.resize(len, 0.0);
                values
            }
            None => alloc::zeroed(len, "activations of a step")?,
        };
        Ok(Buffer { values, pool: Some(self.clone()) })
    }

    fn give_back(&self, values: Vec<f32>) {
        let mut free = self.free.lock();
        if free.len() == Self::KEPT {
            let smallest = (0..free.len()).min_by_key(|&i| free[i].capacity());
            if let Some(smallest) = smallest {
                free.swap_remove(smallest);
            }
        }
        free.push(values);
    }

    /// Bytes held for reuse.
    pub fn bytes(&self) -> usize {
        self.free.lock().iter().map(|values| values.capacity() * size_of::<f32>()).sum()
    }
}

/// What the elements of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// Floats: `f32` in host memory, elsewhere the backend's type of activations.
    F32,
    /// Signed integers of 32 bits.
    I32,
    /// Unsigned integers of 32 bits: ids.
    U32,
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "floats",
            Self::I32 => "i32",
            Self::U32 => "u32",
        })
    }
}

/// The elements of a host tensor.
#[derive(Debug)]
enum Elements {
    F32(Buffer),
    I32(Vec<i32>),
    U32(Vec<u32>),
}

impl Elements {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::U32(values) => values.len(),
        }
    }
}

/// A tensor in host memory, row-major: activations (`f32`), or integers.
#[derive(Debug)]
pub struct HostTensor {
    shape: Shape,
    elements: Elements,
}

impl HostTensor {
    /// A tensor of `f32` over `data`.
    ///
    /// # Panics
    /// Where the length is not the product of `shape`.
    pub fn new(shape: &[usize], data: Buffer) -> Self {
        Self::of(shape, Elements::F32(data))
    }

    /// A tensor of `f32` that owns `values`.
    ///
    /// # Panics
    /// Where the length is not the product of `shape`.
    pub fn from_vec(shape: &[usize], values: Vec<f32>) -> Self {
        Self::new(shape, Buffer { values, pool: None })
    }

    /// A tensor of `i32` that owns `values`.
    ///
    /// # Panics
    /// Where the length is not the product of `shape`.
    pub fn from_i32(shape: &[usize], values: Vec<i32>) -> Self {
        Self::of(shape, Elements::I32(values))
    }

    /// A tensor of `u32` that owns `values`.
    ///
    /// # Panics
    /// Where the length is not the product of `shape`.
    pub fn from_u32(shape: &[usize], values: Vec<u32>) -> Self {
        Self::of(shape, Elements::U32(values))
    }

    fn of(shape: &[usize], elements: Elements) -> Self {
        assert_eq!(shape.iter().product::<usize>(), elements.len(), "host tensor of shape {shape:?}");
        Self { shape: shape.into(), elements }
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// What its elements are.
    pub fn element(&self) -> ElementType {
        match self.elements {
            Elements::F32(_) => ElementType::F32,
            Elements::I32(_) => ElementType::I32,
            Elements::U32(_) => ElementType::U32,
        }
    }

    /// The values, row-major.
    ///
    /// # Panics
    /// Where its elements are integers: ops check what they are given beforehand.
    pub fn data(&self) -> &[f32] {
        match &self.elements {
            Elements::F32(values) => values,
            _ => panic!("a tensor of {}, expected floats", self.element()),
        }
    }

    /// The values, row-major.
    ///
    /// # Panics
    /// As [`Self::data`].
    pub fn data_mut(&mut self) -> &mut [f32] {
        let element = self.element();
        match &mut self.elements {
            Elements::F32(values) => values,
            _ => panic!("a tensor of {element}, expected floats"),
        }
    }

    /// The values of a tensor of `i32`, row-major; none of another one.
    pub fn as_i32(&self) -> Option<&[i32]> {
        match &self.elements {
            Elements::I32(values) => Some(values),
            _ => None,
        }
    }

    /// The values of a tensor of `u32`, row-major; none of another one.
    pub fn as_u32(&self) -> Option<&[u32]> {
        match &self.elements {
            Elements::U32(values) => Some(values),
            _ => None,
        }
    }

    /// A copy, whose floats lie in a buffer that `buffer` gives.
    ///
    /// # Errors
    /// Those of `buffer`, and [`Error::OutOfMemory`].
    pub(crate) fn copy(&self, buffer: impl FnOnce(usize) -> Result<Buffer>) -> Result<Self> {
        let elements = match &self.elements {
            Elements::F32(values) => {
                let mut copy = buffer(values.len())?;
                copy.copy_from_slice(values);
                Elements::F32(copy)
            }
            Elements::I32(values) => Elements::I32(alloc::copy_of(values, "integers of a step")?),
            Elements::U32(values) => Elements::U32(alloc::copy_of(values, "integers of a step")?),
        };
        Ok(Self { shape: self.shape.clone(), elements })
    }

    /// A matrix of floats.
    ///
    /// # Panics
    /// As [`Self::data`], and where it is no matrix.
    pub fn view(&self) -> MatrixView<'_> {
        let &[rows, columns] = &self.shape[..] else { panic!("a tensor of shape {:?}", self.shape) };
        MatrixView::new(self.data(), [rows, columns])
    }

    /// Row `row` of a matrix of floats.
    ///
    /// # Panics
    /// As [`Self::view`], and where there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        self.view().row(row)
    }
}
