//! Quantized matrices on MLX: its own quantized matmul where it has the format, and the nearest that it has elsewhere.

use std::ffi::CStr;
use std::rc::Rc;

use mlx_rs::{Array, Dtype};
use smallvec::SmallVec;

use super::cache::Slot;
use super::dims;
use super::graph::QuantArrays;
use super::{MlxBackend, cache};
use crate::error::{Error, Result};
use crate::quant::repack::{MlxForm, repack};
use crate::quant::{Format, QuantWeight};

/// A matrix that MLX has no form for.
pub(super) fn unsupported(weight: &QuantWeight) -> Option<String> {
    let (format, columns) = (weight.format(), weight.shape()[1]);
    format.on_mlx(columns).is_none().then(|| format!("no kernel for {format} in rows of {columns}"))
}

impl MlxBackend {
    /// The matrix's planes, uploaded once, or repacked and then uploaded once. Planes that had to be made for that leave
    /// host memory.
    fn quantized(&self, weight: &QuantWeight, slots: &[Rc<Slot>]) -> Result<QuantArrays> {
        let Some(first) = slots.first() else { return Err(no_form(weight)) };
        if !is_native(weight) || weight.is_made() {
            return self.arrays(weight, first, || self.own_form(weight));
        }
        let planes = layouts(weight).zip(weight.planes()).zip(slots);
        let arrays = planes.map(|(((dims, dtype), plane), slot)| slot.plane(plane, &dims, dtype));
        Ok(quant_arrays(weight.format(), arrays.collect::<Result<SmallVec<[_; 3]>>>()?))
    }

    /// The planes in `slot` of a matrix, or of several, in the form that MLX has for `weight`; `make` makes them the first time.
    pub(super) fn arrays(
        &self,
        weight: &QuantWeight,
        slot: &Slot,
        make: impl FnOnce() -> Result<Vec<Array>>,
    ) -> Result<QuantArrays> {
        let format = match weight.format().on_mlx(weight.shape()[1]) {
            None => return Err(no_form(weight)),
            Some(MlxForm::Native) => weight.format(),
            Some(MlxForm::Equal(to) | MlxForm::Nearest(to)) => to,
        };
        let make = || {
            self.report(weight);
            make()
        };
        Ok(quant_arrays(format, slot.made(make)?))
    }

    /// A matrix's planes in the form that MLX has for it.
    pub(super) fn own_form(&self, weight: &QuantWeight) -> Result<Vec<Array>> {
        match weight.format().on_mlx(weight.shape()[1]) {
            None => Err(no_form(weight)),
            Some(MlxForm::Native) => upload_planes(&weight.held()?),
            Some(MlxForm::Equal(to) | MlxForm::Nearest(to)) => {
                upload_planes(&repack(&weight.held()?, to, self.dtype == Dtype::Float16))
            }
        }
    }

    /// Says once for each format what computes it.
    fn report(&self, weight: &QuantWeight) {
        let format = weight.format();
        let Some(form) = format.on_mlx(weight.shape()[1]) else { return };
        if !self.reported.borrow_mut().insert(format) {
            return;
        }
        match form {
            MlxForm::Native => {}
            MlxForm::Equal(to) => tracing::info!("MLX computes {format} as {to}, with equal values"),
            MlxForm::Nearest(to) => {
                tracing::warn!("MLX has no kernel for {format}: computed as {to}, the nearest that it has");
            }
        }
    }

    /// `x · Wᵀ`, `[T, K]` → `[T, N]`.
    pub(super) fn quantized_matmul(
        &self,
        x: &Array,
        weight: &QuantWeight,
        slots: &[Rc<Slot>],
    ) -> Result<Array> {
        let of = self.quantized(weight, slots)?;
        let Some(order) = weight.order() else { return self.graph.quantized_matmul(x, &of, true) };
        let order = slots[0].order(|| upload_order(order))?;
        self.graph.quantized_matmul(&self.graph.take_columns(x, &order)?, &of, true)
    }

    /// Rows `ids` of the matrix, `[T, K]`: the rows of its planes, and then their values.
    pub(super) fn quantized_rows(
        &self,
        ids: &Array,
        weight: &QuantWeight,
        slots: &[Rc<Slot>],
    ) -> Result<Array> {
        let of = self.quantized(weight, slots)?;
        // MLX decodes affine codes in the type of the scales: one that is not that of the activations must not round them.
        let other = of.biases.is_some() && of.scales.dtype() != self.dtype;
        let floats = |plane: &Array| {
            let rows = self.graph.take(plane, ids)?;
            if other { self.graph.astype(&rows, Dtype::Float32) } else { Ok(rows) }
        };
        let rows = QuantArrays {
            codes: Rc::new(self.graph.take(&of.codes, ids)?),
            scales: Rc::new(floats(&of.scales)?),
            biases: of.biases.as_deref().map(floats).transpose()?.map(Rc::new),
            ..of
        };
        let values = self.graph.dequantize(&rows, self.dtype)?;
        let Some(order) = weight.order() else { return Ok(values) };
        let mut inverse = vec![0_u32; order.len()];
        order.iter().zip(0..).for_each(|(&column, stored)| inverse[column as usize] = stored);
        self.graph.take_columns(&values, &upload_order(&inverse)?)
    }
}

/// Whether MLX reads a matrix in its own format.
pub(super) fn is_native(weight: &QuantWeight) -> bool {
    matches!(weight.format().on_mlx(weight.shape()[1]), Some(MlxForm::Native))
}

fn no_form(weight: &QuantWeight) -> Error {
    Error::Op { op: "linear", backend: "mlx", reason: unsupported(weight).unwrap_or_default() }
}

/// Planes of a matrix in `format` as MLX's ops take them.
fn quant_arrays(format: Format, planes: SmallVec<[Rc<Array>; 3]>) -> QuantArrays {
    let (bits, group, mode) = parameters(format);
    let mut planes = planes.into_iter();
    let (Some(codes), Some(scales)) = (planes.next(), planes.next()) else {
        unreachable!("{format} has codes and scales")
    };
    QuantArrays { codes, scales, biases: planes.next(), bits, group, mode }
}

/// Dimensions and type of a plane as MLX has it.
type Layout = ([usize; 2], Dtype);

/// The planes of a matrix in one of MLX's formats.
pub(super) fn layouts(weight: &QuantWeight) -> impl Iterator<Item = Layout> {
    let (format, [rows, columns]) = (weight.format(), *weight.shape());
    let (bits, ..) = parameters(format);
    let groups = [rows, columns / format.group()];
    let (scales, count) = match format {
        Format::Affine { scales, .. } => (dims::dtype(scales), 2),
        _ => (Dtype::Uint8, 1),
    };
    let codes = ([rows, columns * bits as usize / 32], Dtype::Uint32);
    std::iter::once(codes).chain(std::iter::repeat_n((groups, scales), count))
}

fn upload_planes(weight: &QuantWeight) -> Result<Vec<Array>> {
    let uploads = layouts(weight).zip(weight.planes());
    uploads.map(|((dims, dtype), plane)| cache::upload(plane.bytes(), &dims, dtype)).collect()
}

fn upload_order(order: &[u32]) -> Result<Array> {
    Ok(Array::from_slice(order, &dims::of(&[order.len()])?))
}

/// Bits, group and mode as MLX's ops take them.
fn parameters(format: Format) -> (i32, i32, &'static CStr) {
    match format {
        Format::Affine { bits, group, .. } => (i32::from(bits), i32::from(group), c"affine"),
        Format::Mxfp4 => (4, 32, c"mxfp4"),
        Format::Mxfp8 => (8, 32, c"mxfp8"),
        Format::Nvfp4 => (4, 16, c"nvfp4"),
        Format::Fp8 { .. } | Format::Fp4 { .. } | Format::Ggml(_) => unreachable!("MLX has no {format}"),
    }
}
