//! The tensors of a model that is quantized, whatever form they have there: a few rows at a time, as `f32`.

use std::ops::Range;

use crate::alloc;
use crate::error::{Error, Result};
use crate::model::ModelFiles;
use crate::quant::{Plane, QuantWeight, affine};
use crate::tensor::{DType, Shape};
use crate::weights::{Form, Stored, TensorInfo, quantized};

/// A tensor, named as in a Hugging Face checkpoint.
pub(super) struct Source<'a> {
    pub name: String,
    pub shape: Shape,
    /// Bytes in the files.
    pub bytes: u64,
    rows: Rows,
    /// The tensor, or one of those that make it up.
    info: &'a TensorInfo,
}

enum Rows {
    Dense(DType, Plane),
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
            let plane = checkpoint.plane(info)?;
            if info.form() == Form::Transposed {
                // Turned as a whole: the models that are stored so are small.
                let weight = checkpoint.get(&name, &shape)?;
                let plane = Plane::owned(alloc::copy_of(weight.bytes(), "a tensor to quantize")?);
                return Ok(Self { name, shape, bytes, rows: Rows::Dense(weight.dtype(), plane), info });
            }
            let rows = match (format, info.dtype(), &shape[..]) {
                (Some(format), _, &[rows, columns]) => {
                    Rows::Quantized(QuantWeight::new(name.as_str(), format, [rows, columns], [plane]))
                }
                (None, Some(dtype), _) => Rows::Dense(dtype, plane),
                _ => {
                    let what = format!("type is {}, expected F32, F16, BF16 or blocks", info.dtype_name());
                    return Err(info.fail(what));
                }
            };
            return Ok(Self { name, shape, bytes, rows, info });
        }
        let missing = || Error::format(&files.path, format!("{name} is no quantized matrix"));
        let quantization = files.config().quantization.as_ref().ok_or_else(missing)?;
        let dims: [usize; 2] = shape[..].try_into().map_err(|_| missing())?;
        let weight = quantized::matrix(checkpoint, quantization, &name, dims)?.ok_or_else(missing)?;
        let part = ["weight", "qweight"].iter().find_map(|part| checkpoint.find(&format!("{name}.{part}")));
        let info = part.ok_or_else(missing)?;
        Ok(Self { name: format!("{name}.weight"), shape, bytes, rows: Rows::Quantized(weight), info })
    }

    /// With all that is needed to read it in memory, for as long as the answer lives.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn held(&self) -> Result<Self> {
        let rows = match &self.rows {
            Rows::Dense(dtype, plane) => Rows::Dense(*dtype, plane.clone()),
            Rows::Quantized(weight) => Rows::Quantized(weight.held()?),
        };
        let (name, shape) = (self.name.clone(), self.shape.clone());
        Ok(Self { name, shape, bytes: self.bytes, rows, info: self.info })
    }

    /// The element type, where it has one.
    pub fn dtype(&self) -> Option<DType> {
        match self.rows {
            Rows::Dense(dtype, _) => Some(dtype),
            Rows::Quantized(_) => None,
        }
    }

    /// The bytes of a tensor that is not quantized.
    pub fn plain(&self) -> Option<&[u8]> {
        match &self.rows {
            Rows::Dense(_, plane) => Some(plane.bytes()),
            Rows::Quantized(_) => None,
        }
    }

    /// Adds the values of some rows, `of` saying which row of the tensor each is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn read(&self, rows: Range<usize>, of: impl Fn(usize) -> usize, values: &mut Vec<f32>) -> Result<()> {
        let columns: usize = self.shape.get(1..).map_or(1, |dims| dims.iter().product());
        let mut stored = alloc::zeroed(columns, "a tensor to quantize")?;
        alloc::reserve(values, rows.len() * columns, "a tensor to quantize")?;
        for row in rows {
            let at = values.len();
            values.resize(at + columns, 0.0);
            let (row, out) = (of(row), &mut values[at..]);
            match &self.rows {
                Rows::Dense(dtype, plane) => {
                    let stride = columns * dtype.size();
                    affine::read_floats(*dtype, &plane.bytes()[row * stride..][..stride], out);
                }
                Rows::Quantized(weight) => {
                    weight.dequantize_row(row, &mut stored);
                    weight.restore_order(&stored, out);
                }
            }
        }
        Ok(())
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

    /// An error about the tensor.
    pub fn fail(&self, what: String) -> Error {
        self.info.fail(what)
    }
}
