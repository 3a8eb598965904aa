//! Reading a quantized matrix: values, codes and scales, a row at a time. Scalar: the reference of every kernel, and what
//! repacks weights.

use super::{Format, QuantWeight, affine, ggml, ocp};
use crate::alloc;
use crate::error::Result;
use crate::tensor::DType;

impl Format {
    /// Bits of a code and elements of a group, where every element is `w = q · scale + bias`: what
    /// [`QuantWeight::affine_row`] gives out.
    pub const fn affine(self) -> Option<(u8, usize)> {
        match self {
            Self::Affine { bits, group, .. } => Some((bits, group as usize)),
            Self::Ggml(of) => of.affine(),
            _ => None,
        }
    }
}

impl QuantWeight {
    /// The bytes of row `row` in plane `plane`.
    ///
    /// # Panics
    /// Where there is no such row or plane.
    pub fn row_bytes(&self, plane: usize, row: usize) -> &[u8] {
        assert!(row < self.shape[0], "row {row} of {:?}", self.shape);
        let width = self.format.row_bytes(self.shape[1])[plane];
        &self.planes()[plane].bytes()[row * width..(row + 1) * width]
    }

    /// The values of row `row`, `[K]`, in the order of the stored columns: column `j` belongs to column
    /// [`order`](Self::order)`[j]` of the input, or to `j` where there is no order. [`restore_order`](Self::restore_order)
    /// puts them in the input's.
    ///
    /// Values equal those of MLX's `dequantize` computed in `f32`, and for GGUF blocks those of the `gguf` Python package,
    /// to the bit.
    ///
    /// # Panics
    /// Where there is no such row, or `out` is not `[K]`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.shape[1], "columns of {self:?}");
        match self.format {
            Format::Affine { bits, group, scales: dtype } => {
                let group = usize::from(group);
                let mut codes = vec![0; out.len()];
                let (mut scales, mut biases) = (vec![0.0; out.len() / group], vec![0.0; out.len() / group]);
                affine::unpack(bits, self.row_bytes(0, row), &mut codes);
                affine::read_floats(dtype, self.row_bytes(1, row), &mut scales);
                affine::read_floats(dtype, self.row_bytes(2, row), &mut biases);
                for (i, out) in out.chunks_exact_mut(group).enumerate() {
                    for (w, &code) in out.iter_mut().zip(&codes[i * group..]) {
                        *w = f32::from(code) * scales[i] + biases[i];
                    }
                }
            }
            Format::Mxfp4 | Format::Nvfp4 => {
                let bytes = self.row_bytes(0, row).iter();
                let codes =
                    bytes.flat_map(|&byte| [byte & 15, byte >> 4]).map(|code| ocp::E2M1[usize::from(code)]);
                let scale = if self.format == Format::Mxfp4 { ocp::e8m0 } else { ocp::e4m3 };
                let scales = self.row_bytes(1, row).iter().map(|&code| scale(code));
                ocp::decode_row(codes, scales, self.format.group(), out);
            }
            Format::Mxfp8 => {
                let codes = self.row_bytes(0, row).iter().map(|&code| ocp::e4m3(code));
                let scales = self.row_bytes(1, row).iter().map(|&code| ocp::e8m0(code));
                ocp::decode_row(codes, scales, self.format.group(), out);
            }
            Format::Fp8 { .. } | Format::Fp4 { .. } => {
                let group = self.format.group();
                let (mut codes, mut scales) = (vec![0; out.len()], vec![0.0; out.len() / group]);
                self.codes(row, &mut codes);
                self.scales(row, &mut scales);
                let is_wide = matches!(self.format, Format::Fp8 { .. });
                let value = |code: u8| if is_wide { ocp::e4m3(code) } else { ocp::E2M1[usize::from(code)] };
                ocp::decode_row(codes.into_iter().map(value), scales.into_iter(), group, out);
            }
            Format::Ggml(of) => {
                let (elements, bytes) = of.block();
                let blocks = self.row_bytes(0, row).chunks_exact(bytes);
                for (block, out) in blocks.zip(out.chunks_exact_mut(elements)) {
                    ggml::decode_block(of.row(), block, out);
                }
            }
        }
    }

    /// Puts a row from the order of the stored columns into that of the input: both are the same where there is no
    /// [`order`](Self::order).
    ///
    /// # Panics
    /// Where a slice is not `[K]`.
    pub fn restore_order(&self, stored: &[f32], out: &mut [f32]) {
        assert!(stored.len() == self.shape[1] && out.len() == self.shape[1], "columns of {self:?}");
        match &self.order {
            None => out.copy_from_slice(stored),
            Some(order) => {
                stored.iter().zip(&**order).for_each(|(&value, &column)| out[column as usize] = value);
            }
        }
    }

    /// All values, `[N, K]`, row-major, columns in the order of the input: the matrix that inputs are multiplied by.
    ///
    /// # Panics
    /// Where the system has no memory for them.
    pub fn to_f32(&self) -> Vec<f32> {
        self.widened().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// As [`to_f32`](Self::to_f32).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(crate) fn widened(&self) -> Result<Vec<f32>> {
        let [rows, columns] = self.shape;
        self.keep()?;
        let mut values = alloc::zeroed(rows * columns, "decoded weights")?;
        let mut stored = alloc::zeroed(columns, "decoded weights")?;
        for (row, out) in values.chunks_exact_mut(columns.max(1)).enumerate() {
            self.dequantize_row(row, &mut stored);
            self.restore_order(&stored, out);
        }
        Ok(values)
    }

    /// The codes of row `row`, `[K]`, in the order of the stored columns: affine codes (see
    /// [`affine_row`](Self::affine_row) for those of GGUF), e2m1 or e4m3 bits.
    ///
    /// # Panics
    /// Where there is no such row, `out` is not `[K]`, or the format is one of GGUF's.
    pub fn codes(&self, row: usize, out: &mut [u8]) {
        assert_eq!(out.len(), self.shape[1], "columns of {self:?}");
        match self.format {
            Format::Affine { bits, .. } => affine::unpack(bits, self.row_bytes(0, row), out),
            Format::Mxfp4 | Format::Nvfp4 | Format::Fp4 { .. } => ocp::nibbles(self.row_bytes(0, row), out),
            Format::Mxfp8 | Format::Fp8 { .. } => out.copy_from_slice(self.row_bytes(0, row)),
            Format::Ggml(of) => panic!("{} has no plane of codes", of.name()),
        }
    }

    /// The scales of row `row`, `[K / group]`, as `f32`.
    ///
    /// # Panics
    /// As [`codes`](Self::codes); `out` is not `[K / group]`.
    pub fn scales(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.shape[1] / self.format.group(), "groups of {self:?}");
        let bytes = self.row_bytes(1, row);
        match self.format {
            Format::Affine { scales, .. } => affine::read_floats(scales, bytes, out),
            Format::Mxfp4 | Format::Mxfp8 => out.iter_mut().zip(bytes).for_each(|(s, &c)| *s = ocp::e8m0(c)),
            Format::Nvfp4 => out.iter_mut().zip(bytes).for_each(|(s, &c)| *s = ocp::e4m3(c)),
            Format::Fp8 { .. } | Format::Fp4 { .. } => affine::read_floats(DType::F32, bytes, out),
            Format::Ggml(of) => panic!("{} has no plane of scales", of.name()),
        }
    }

    /// Row `row` as `w = q · scale + bias`: codes `[K]` in the order of the stored columns, scales and biases
    /// `[K / group]`, with the bits and the group of [`Format::affine`]. Scales and biases are exact; the sum in `f32`
    /// equals the value but for rounding, which only the K-quants of three and six bits need.
    ///
    /// # Panics
    /// Where there is no such row, a slice has another length, or the format is not affine.
    pub fn affine_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
        let Some((_, group)) = self.format.affine() else { panic!("{} is not affine", self.format) };
        let groups = self.shape[1] / group;
        assert_eq!(
            (codes.len(), scales.len(), biases.len()),
            (self.shape[1], groups, groups),
            "columns and groups of {self:?}"
        );
        match self.format {
            Format::Affine { scales: dtype, .. } => {
                self.codes(row, codes);
                self.scales(row, scales);
                affine::read_floats(dtype, self.row_bytes(2, row), biases);
            }
            Format::Ggml(of) => {
                let (elements, bytes) = of.block();
                let blocks = self.row_bytes(0, row).chunks_exact(bytes);
                let groups = elements / group;
                let outputs = codes
                    .chunks_exact_mut(elements)
                    .zip(scales.chunks_exact_mut(groups).zip(biases.chunks_exact_mut(groups)));
                for (block, (codes, (scales, biases))) in blocks.zip(outputs) {
                    ggml::affine_block(of.row(), block, codes, scales, biases);
                }
            }
            _ => unreachable!("{} is not affine", self.format),
        }
    }
}
