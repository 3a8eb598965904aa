//! The tensors of a model that is quantized, whatever form they have there: a few rows at a time, as `f32`.

use std::ops::Range;

use crate::alloc;
use crate::error::{Error, Result};
use crate::model::ModelFiles;
use crate::quant::{Format, Plane, QuantWeight, affine};
use crate::tensor::{DType, Shape};
use crate::weights::{Checkpoint, Stored, TensorInfo, quantized};

/// What memory is taken for.
const WHAT: &str = "a tensor to quantize";

/// A tensor, named as in a Hugging Face checkpoint.
pub(super) struct Source<'a> {
    pub name: String,
    pub shape: Shape,
    /// Bytes in the files.
    pub bytes: u64,
    rows: Rows,
    /// The tensor, or one of those that make it up.
    info: &'a TensorInfo,
    checkpoint: &'a Checkpoint,
}

enum Rows {
    Dense(DType),
    Quantized(QuantWeight),
}

impl<'a> Source<'a> {
    /// All tensors, in the order of their names; those of a GGUF file with the order of rows that they have there.
    ///
    /// # Errors
    /// Parts of a quantized matrix that do not fit each other, and types that cannot be read.
    pub fn all(files: &'a ModelFiles) -> Result<Vec<Self>> {
        files.tensors().into_iter().map(|stored| Self::of(files, stored)).collect()
    }

    fn of(files: &'a ModelFiles, stored: Stored) -> Result<Self> {
        let (checkpoint, Stored { name, format, shape, bytes, .. }) = (&files.checkpoint, stored);
        if let Some(info) = checkpoint.find(&name) {
            let rows = match (format, info.dtype(), &shape[..]) {
                (Some(format), _, &[rows, columns]) => {
                    let plane = checkpoint.plane(info)?;
                    Rows::Quantized(QuantWeight::new(name.as_str(), format, [rows, columns], [plane]))
                }
                (None, Some(dtype), _) => Rows::Dense(dtype),
                _ => {
                    let what = format!("type is {}, expected F32, F16, BF16 or blocks", info.dtype_name());
                    return Err(info.fail(what));
                }
            };
            return Ok(Self { name, shape, bytes, rows, info, checkpoint });
        }
        let missing = || Error::format(&files.path, format!("{name} is no quantized matrix"));
        let quantization = files.config().quantization.as_ref().ok_or_else(missing)?;
        let dims: [usize; 2] = shape[..].try_into().map_err(|_| missing())?;
        let weight = quantized::matrix(checkpoint, quantization, &name, dims)?.ok_or_else(missing)?;
        let part = ["weight", "qweight", "weight_packed"]
            .iter()
            .find_map(|part| checkpoint.find(&format!("{name}.{part}")));
        let info = part.ok_or_else(missing)?;
        let rows = Rows::Quantized(weight);
        Ok(Self { name: format!("{name}.weight"), shape, bytes, rows, info, checkpoint })
    }

    /// With all that is needed to read it in memory, for as long as the answer lives.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and a file that cannot be read.
    pub fn held(&self) -> Result<Held<'_>> {
        let rows = match &self.rows {
            // Turned as a whole, and not kept.
            Rows::Dense(dtype) if self.info.form().is_turned() => {
                let weight = self.checkpoint.get(&self.name, &self.shape)?;
                HeldRows::Dense(*dtype, Plane::owned(alloc::copy_of(weight.bytes(), WHAT)?))
            }
            Rows::Dense(dtype) => HeldRows::Dense(*dtype, self.checkpoint.plane(self.info)?),
            Rows::Quantized(weight) => HeldRows::Quantized(weight.held()?),
        };
        Ok(Held { source: self, rows })
    }

    /// The element type, where it has one.
    pub fn dtype(&self) -> Option<DType> {
        match self.rows {
            Rows::Dense(dtype) => Some(dtype),
            Rows::Quantized(_) => None,
        }
    }

    /// The format, where it is quantized.
    pub fn format(&self) -> Option<Format> {
        match &self.rows {
            Rows::Dense(_) => None,
            Rows::Quantized(weight) => Some(weight.format()),
        }
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.shape.get(1..).map_or(1, |dims| dims.iter().product())
    }

    /// Bytes of some of its rows in the files, for a display of progress: all of them are all bytes.
    pub fn bytes_of(&self, rows: Range<usize>) -> u64 {
        let all = self.shape.first().copied().unwrap_or(1).max(1) as u64;
        let before = |row: usize| self.bytes * row as u64 / all;
        before(rows.end) - before(rows.start)
    }

    /// The name in the file, where it is another.
    pub fn stored_name(&self) -> &str {
        self.info.stored_name()
    }

    /// The dimensions in the file, where those of 1 are left out of its own.
    pub fn stored_shape(&self) -> Option<&'a [usize]> {
        self.info.stored_shape()
    }

    /// An error about the tensor.
    pub fn fail(&self, what: String) -> Error {
        self.info.fail(what)
    }
}

/// A tensor whose bytes can be read.
pub(super) struct Held<'s> {
    source: &'s Source<'s>,
    rows: HeldRows,
}

enum HeldRows {
    Dense(DType, Plane),
    Quantized(QuantWeight),
}

impl Held<'_> {
    /// The bytes of a tensor that is not quantized.
    pub fn plain(&self) -> Option<&[u8]> {
        match &self.rows {
            HeldRows::Dense(_, plane) => Some(plane.bytes()),
            HeldRows::Quantized(_) => None,
        }
    }

    /// Adds the values of some rows, `of` saying which row of the tensor each is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn read(&self, rows: Range<usize>, of: impl Fn(usize) -> usize, values: &mut Vec<f32>) -> Result<()> {
        let columns = self.source.columns();
        let mut stored = alloc::zeroed(columns, WHAT)?;
        alloc::reserve(values, rows.len() * columns, WHAT)?;
        for row in rows {
            let at = values.len();
            values.resize(at + columns, 0.0);
            let (row, out) = (of(row), &mut values[at..]);
            match &self.rows {
                HeldRows::Dense(dtype, plane) => {
                    let stride = columns * dtype.size();
                    affine::read_floats(*dtype, &plane.bytes()[row * stride..][..stride], out);
                }
                HeldRows::Quantized(weight) => {
                    weight.dequantize_row(row, &mut stored);
                    weight.restore_order(&stored, out);
                }
            }
        }
        Ok(())
    }

    /// The planes of some rows of a quantized matrix as they are, `of` saying which row of the tensor each is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn copy(
        &self,
        rows: Range<usize>,
        of: impl Fn(usize) -> usize,
        planes: &mut [Vec<u8>; 3],
    ) -> Result<()> {
        planes.iter_mut().for_each(Vec::clear);
        let HeldRows::Quantized(weight) = &self.rows else { return Ok(()) };
        let widths = weight.format().row_bytes(weight.shape()[1]);
        for ((out, plane), width) in planes.iter_mut().zip(weight.planes()).zip(widths) {
            alloc::reserve(out, rows.len() * width, WHAT)?;
            for row in rows.clone() {
                out.extend_from_slice(&plane.bytes()[of(row) * width..][..width]);
            }
        }
        Ok(())
    }
}
