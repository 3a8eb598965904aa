//! Matrices beside their scales as others publish them: FP8 of `transformers`, compressed-tensors, ModelOpt. The types and the
//! shapes of a module's tensors say what they are; each becomes the format of equal values.
//!
//! | codes `[N, K]` | scales | value | format |
//! |---|---|---|---|
//! | e4m3 | powers of two over whole groups of 32 columns, by their type, by the configuration, or all of several | `code · scale` | mxfp8 |
//! | e4m3 | others | `code · scale` | fp8 |
//! | e2m1, two a byte, the low nibble first | e8m0 of 32 | `code · scale` | mxfp4 |
//! | e2m1 | e4m3 of 16 | `code · scale` | nvfp4 |
//! | e2m1 | e4m3 of 16, and one `f32` of the matrix | `code · (scale · global)` | fp4 |
//! | integers of 2 to 8 bits, a stream of 32-bit words along the row, 2^(bits − 1) added | floats | `(code − zero) · scale` | affine |
//! | `i8` | floats | `(code − zero) · scale` | affine |
//!
//! Scales are those of blocks, of groups of columns, of rows or of the whole. What they say of activations changes no value of a
//! weight. The experts of a layer are to have one format: what one scale happens to be, or a zero point, does not decide it.
//!
//! Sources: `transformers` (`integrations/finegrained_fp8.py`), `compressed-tensors` (`compressors/`), `nvidia-modelopt`
//! (`torch/export`, `torch/quantization/qtensor`).

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use half::f16;
use smallvec::SmallVec;

use super::{Checkpoint, TensorInfo, gptq};
use crate::alloc;
use crate::error::{Error, Result};
use crate::quant::{Format, Plane, Published, Publisher, QuantWeight, affine, ocp, write_floats};
use crate::tensor::DType;

/// Planes that are made of some rows.
type Made = SmallVec<[Plane; 3]>;

/// What memory is taken for.
const MADE: &str = "weights in another form";

/// Elements that share an e8m0 scale.
const MX_GROUP: usize = 32;

/// Elements that share an e4m3 scale.
const NV_GROUP: usize = 16;

/// Tensors that change what a matrix means in ways that have no form here.
const WITHOUT_FORM: [&str; 3] = ["pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b"];

/// The codes and the scales of a module; `None` where it is not quantized.
///
/// # Errors
/// One without the other, and tensors that have no form.
fn tensors<'a>(
    checkpoint: &'a Checkpoint,
    of: &Published,
    module: &str,
) -> Result<Option<(&'a TensorInfo, &'a TensorInfo)>> {
    let find = |part: &str| checkpoint.find(&format!("{module}.{part}"));
    let Some(codes) = find("weight_packed").or_else(|| find("weight")) else { return Ok(None) };
    let scales = find(of.by.scales());
    let what = format!("{} is {}", codes.name(), codes.dtype_name());
    match (codes.dtype(), scales) {
        (Some(_), None) => Ok(None),
        (Some(_), Some(scales)) => Err(scales.fail(format!("is there, and {what}"))),
        (None, None) => Err(checkpoint.missing(&format!("{module}.{}", of.by.scales()), what)),
        (None, Some(scales)) => match WITHOUT_FORM.into_iter().find_map(find) {
            Some(other) => Err(other.fail("is there, and this version has no form for it".to_owned())),
            None => Ok(Some((codes, scales))),
        },
    }
}

/// A module's matrix; `None` where it is not quantized.
///
/// # Errors
/// Tensors that are missing, do not fit each other, or have no form.
pub(super) fn matrix(
    checkpoint: &Checkpoint,
    of: &Published,
    module: &str,
    shape: [usize; 2],
) -> Result<Option<QuantWeight>> {
    let Some((codes, scales)) = tensors(checkpoint, of, module)? else { return Ok(None) };
    let weight = match &*codes.dtype_name() {
        "F8_E4M3" => fp8(checkpoint, of, codes, scales, shape)?,
        "U8" => fp4(checkpoint, of, module, [codes, scales], shape)?,
        "I8" | "I32" => integers(checkpoint, of, module, [codes, scales], shape)?,
        other => return Err(codes.fail(format!("type is {other}, expected F8_E4M3, U8, I8 or I32"))),
    };
    Ok(Some(weight))
}

/// Format and shape of a module by its tensors' shapes and types. Whether several scales in `f32` are powers of two is in their
/// values: they count as others.
pub(super) fn describe(
    checkpoint: &Checkpoint,
    of: &Published,
    module: &str,
    columns: Option<usize>,
) -> Option<(Format, [usize; 2])> {
    let (codes, scales) = tensors(checkpoint, of, module).ok()??;
    let [rows, width]: [usize; 2] = codes.shape().try_into().ok()?;
    let kind = codes.dtype_name();
    let shape = match &*kind {
        "F8_E4M3" | "I8" => [rows, width],
        "U8" => [rows, width.checked_mul(2)?],
        "I32" => [rows, stored_columns(checkpoint, module).or(columns)?],
        _ => return None,
    };
    // A tensor without rows may have any number of columns.
    let (_, block) = block_of(of, scales, shape).filter(|_| shape[1] <= 1 << 32)?;
    let has_powers = is_exponents(scales) || of.powers;
    let format = match &*kind {
        "F8_E4M3" if has_powers && fits_mx(block, shape[1]) => Format::Mxfp8,
        "F8_E4M3" => Format::Fp8 { group: group_of(block[1], shape[1])? },
        "U8" if is_exponents(scales) => Format::Mxfp4,
        "U8" if of.by.global_scale().is_some() => Format::Fp4 { group: NV_GROUP as u16 },
        "U8" => Format::Nvfp4,
        _ => {
            let bits = if kind == "I8" { 8 } else { bits_of(width, shape[1])? };
            let scales = affine_type(checkpoint, module, scales);
            Format::Affine { bits, group: group_of(block[1], shape[1])?, scales }
        }
    };
    shape[1].is_multiple_of(format.group()).then_some((format, shape))
}

/// The type that affine scales and biases are made in: the file's, where zero is the middle, a power of two, by which no
/// product is rounded.
fn affine_type(checkpoint: &Checkpoint, module: &str, scales: &TensorInfo) -> DType {
    match checkpoint.find(&format!("{module}.weight_zero_point")) {
        Some(_) => DType::F32,
        None => scales.dtype().unwrap_or(DType::F32),
    }
}

/// Whether scales are e8m0.
fn is_exponents(scales: &TensorInfo) -> bool {
    matches!(&*scales.dtype_name(), "U8" | "F8_E8M0")
}

/// Whether each group of 32 columns lies within one block.
fn fits_mx([_, width]: [usize; 2], columns: usize) -> bool {
    columns.is_multiple_of(MX_GROUP) && (width.is_multiple_of(MX_GROUP) || width >= columns)
}

/// The columns that `weight_shape` says packed words stand for.
fn stored_columns(checkpoint: &Checkpoint, module: &str) -> Option<usize> {
    let info = checkpoint.find(&format!("{module}.weight_shape"))?;
    let plane = checkpoint.plane(info).ok()?;
    let bytes = plane.bytes();
    let last = match (&*info.dtype_name(), info.shape()) {
        ("I64", [2]) => u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
        ("I32", [2]) => u64::from(u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?)),
        _ => return None,
    };
    usize::try_from(last).ok().filter(|&columns| columns > 0)
}

/// Bits of a code, of which `columns` take `words` words.
fn bits_of(words: usize, columns: usize) -> Option<u8> {
    let fits = |bits: u8| columns.checked_mul(usize::from(bits)).is_some_and(|all| all.div_ceil(32) == words);
    [4, 8, 2, 3, 5, 6].into_iter().find(|&bits| fits(bits))
}

/// Columns of a group, of blocks of `width`: what divides both them and the row.
fn group_of(width: usize, columns: usize) -> Option<u16> {
    fn gcd(a: usize, b: usize) -> usize {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let whole = gcd(width, columns);
    let group = u16::try_from(whole).or_else(|_| u16::try_from(gcd(whole, 1 << 15))).ok()?;
    (group > 0 && group.is_multiple_of(8)).then_some(group)
}

/// Dimensions of a grid of scales, and rows and columns of the blocks that each is for.
fn block_of(
    of: &Published,
    scales: &TensorInfo,
    [rows, columns]: [usize; 2],
) -> Option<([usize; 2], [usize; 2])> {
    let grid = match *scales.shape() {
        [] | [1] => [1, 1],
        [each] => [each, 1],
        // ModelOpt's blocks.
        [down, across] | [down, 1, across, 1] => [down, across],
        _ => return None,
    };
    if let Some([height, width]) = of.block
        && grid == [rows.div_ceil(height), columns.div_ceil(width)]
    {
        return Some((grid, [height, width]));
    }
    let height = match grid[0] {
        1 => rows.max(1),
        each if each == rows => 1,
        _ => return None,
    };
    let width = columns.checked_div(grid[1]).filter(|width| *width > 0 && width * grid[1] == columns)?;
    Some((grid, [height, width]))
}

/// The scales of a matrix as the file has them, and which of them belongs to an element.
struct Grid {
    scales: Plane,
    /// None is e8m0.
    dtype: Option<DType>,
    dims: [usize; 2],
    block: [usize; 2],
}

impl Grid {
    fn read(checkpoint: &Checkpoint, of: &Published, scales: &TensorInfo, shape: [usize; 2]) -> Result<Self> {
        let Some((dims, block)) = block_of(of, scales, shape) else {
            let (got, [rows, columns]) = (scales.shape(), shape);
            let blocks = match of.block {
                Some([height, width]) => format!(
                    "{:?} of blocks [{height}, {width}], ",
                    [rows.div_ceil(height), columns.div_ceil(width)]
                ),
                None => String::new(),
            };
            return Err(scales.fail(format!(
                "shape is {got:?}, expected {blocks}[{rows}, G] of {columns} columns in G equal groups, or one scale"
            )));
        };
        let dtype = scales.dtype();
        if dtype.is_none() && !is_exponents(scales) {
            let got = scales.dtype_name();
            return Err(scales.fail(format!("type is {got}, expected F32, F16, BF16, F8_E8M0 or U8")));
        }
        Ok(Self { scales: checkpoint.plane(scales)?, dtype, dims, block })
    }

    /// The scale at `place` of their `bytes`.
    fn scale(&self, bytes: &[u8], place: usize) -> f32 {
        let Some(dtype) = self.dtype else { return ocp::e8m0(bytes[place]) };
        let mut value = [0.0];
        affine::read_floats(dtype, &bytes[place * dtype.size()..], &mut value);
        value[0]
    }

    /// The place and the scale of each group of `group` columns, row after row.
    fn spread(&self, rows: Range<usize>, columns: usize, group: usize) -> impl Iterator<Item = (usize, f32)> {
        let (bytes, [height, width]) = (self.scales.bytes(), self.block);
        rows.flat_map(move |row| {
            (0..columns).step_by(group).map(move |column| {
                let place = row / height * self.dims[1] + column / width;
                (place, self.scale(bytes, place))
            })
        })
    }

    /// Whether all scales are powers of two that e8m0 has.
    fn are_powers(&self) -> bool {
        let (bytes, [down, across]) = (self.scales.bytes(), self.dims);
        self.dtype.is_none() || (0..down * across).all(|place| exponent(self.scale(bytes, place)).is_some())
    }
}

/// A scale as e8m0, where it is a power of two that it has.
fn exponent(scale: f32) -> Option<u8> {
    let bits = scale.to_bits();
    // 2^-127 is subnormal.
    let code = if bits == 0x0040_0000 { 0 } else { (bits >> 23 & 255) as u8 };
    (code < 255 && ocp::e8m0(code).to_bits() == bits).then_some(code)
}

/// e4m3 codes.
fn fp8(
    checkpoint: &Checkpoint,
    of: &Published,
    codes: &TensorInfo,
    scales: &TensorInfo,
    shape: [usize; 2],
) -> Result<QuantWeight> {
    let codes = checkpoint.typed(codes.name(), &["F8_E4M3"], &shape)?;
    let ([rows, columns], name, plane) = (shape, codes.name().to_owned(), checkpoint.plane(codes)?);
    if is_exponents(scales)
        && *scales.shape() == [rows, columns / MX_GROUP]
        && columns.is_multiple_of(MX_GROUP)
    {
        return Ok(QuantWeight::new(name, Format::Mxfp8, shape, [plane, checkpoint.plane(scales)?]));
    }
    let grid = Grid::read(checkpoint, of, scales, shape)?;
    let may_be_mx = is_exponents(scales) || of.powers || grid.dims != [1, 1];
    if may_be_mx && fits_mx(grid.block, columns) && grid.are_powers() {
        let make = move |rows: Range<usize>| -> Result<Made> {
            let mut scales = Vec::new();
            alloc::reserve(&mut scales, rows.len() * (columns / MX_GROUP), MADE)?;
            // Those that are none stay none.
            let spread = grid.spread(rows.clone(), columns, MX_GROUP);
            scales.extend(spread.map(|(_, scale)| exponent(scale).unwrap_or(255)));
            Ok(Made::from_iter([plane.rows(columns, &rows), Plane::owned(scales)]))
        };
        return Ok(QuantWeight::made(name, Format::Mxfp8, shape, make));
    }
    let Some(group) = group_of(grid.block[1], columns) else {
        return Err(
            scales.fail(format!("{columns} columns in blocks of {} have no groups of 8", grid.block[1]))
        );
    };
    let make = move |rows: Range<usize>| -> Result<Made> {
        let scales = grid.spread(rows.clone(), columns, usize::from(group)).map(|(_, scale)| scale);
        let scales = float_bytes(scales, rows.len() * (columns / usize::from(group)))?;
        Ok(Made::from_iter([plane.rows(columns, &rows), Plane::owned(scales)]))
    };
    Ok(QuantWeight::made(name, Format::Fp8 { group }, shape, make))
}

/// The bytes of `count` values.
fn float_bytes(values: impl Iterator<Item = f32>, count: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    alloc::reserve(&mut bytes, count * DType::F32.size(), MADE)?;
    values.for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    Ok(bytes)
}

/// What the scale of the whole matrix makes of an e4m3 scale, where there is one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Global {
    /// Divides it.
    Over(f32),
    /// Multiplies it.
    Times(f32),
}

impl Global {
    fn apply(self, scale: f32) -> f32 {
        match self {
            Self::Over(global) => scale / global,
            Self::Times(global) => scale * global,
        }
    }
}

/// The only value of a tensor.
///
/// # Errors
/// More of them, or another type.
pub(super) fn one_float(checkpoint: &Checkpoint, info: &TensorInfo) -> Result<f32> {
    if !matches!(info.shape(), [] | [1]) || info.dtype() != Some(DType::F32) {
        let (kind, shape) = (info.dtype_name(), info.shape());
        return Err(info.fail(format!("is {kind} {shape:?}, expected one F32")));
    }
    let mut value = [0.0];
    affine::read_floats(DType::F32, checkpoint.plane(info)?.bytes(), &mut value);
    Ok(value[0])
}

/// e2m1 codes.
fn fp4(
    checkpoint: &Checkpoint,
    of: &Published,
    module: &str,
    [codes, scales]: [&TensorInfo; 2],
    shape: [usize; 2],
) -> Result<QuantWeight> {
    let [rows, columns] = shape;
    let (group, kinds): (usize, &[&str]) =
        if is_exponents(scales) { (MX_GROUP, &["U8", "F8_E8M0"][..]) } else { (NV_GROUP, &["F8_E4M3"][..]) };
    if !columns.is_multiple_of(group) {
        return Err(codes.fail(format!("{columns} columns are not whole groups of {group}")));
    }
    let codes = checkpoint.typed(codes.name(), &["U8"], &[rows, columns / 2])?;
    let scales = checkpoint.typed(scales.name(), kinds, &[rows, columns / group])?;
    let (name, planes) = (codes.name().to_owned(), [checkpoint.plane(codes)?, checkpoint.plane(scales)?]);
    if group == MX_GROUP {
        return Ok(QuantWeight::new(name, Format::Mxfp4, shape, planes));
    }
    let Some(global) = of.by.global_scale().map(|part| format!("{module}.{part}")) else {
        return Ok(QuantWeight::new(name, Format::Nvfp4, shape, planes));
    };
    let Some(info) = checkpoint.find(&global) else {
        return Err(checkpoint.missing(&global, format!("{} is F8_E4M3", scales.name())));
    };
    let value = one_float(checkpoint, info)?;
    let global = if of.by == Publisher::ModelOpt { Global::Times(value) } else { Global::Over(value) };
    Ok(with_global(name, shape, planes, global))
}

/// The matrix of NVFP4's planes whose scales are made of `global`, too.
pub(super) fn with_global(
    name: String,
    shape: [usize; 2],
    [codes, scales]: [Plane; 2],
    global: Global,
) -> QuantWeight {
    let columns = shape[1];
    let make = move |rows: Range<usize>| -> Result<Made> {
        let stored = scales.rows(columns / NV_GROUP, &rows);
        let values = stored.bytes().iter().map(|&code| global.apply(ocp::e4m3(code)));
        let made = float_bytes(values, stored.bytes().len())?;
        Ok(Made::from_iter([codes.rows(columns / 2, &rows), Plane::owned(made)]))
    };
    QuantWeight::made(name, Format::Fp4 { group: NV_GROUP as u16 }, shape, make)
}

/// Where zero points are.
enum Zeros {
    /// In the middle.
    Middle,
    /// An `i8` for each scale.
    Bytes(Plane),
    /// Streams of words down the rows, one for each group: the middle is added.
    Words { plane: Plane, groups: usize },
}

/// A matrix `[N, K]` of integers, whose tensors fit each other.
struct Integers {
    shape: [usize; 2],
    bits: u8,
    group: u16,
    codes: Plane,
    /// Bytes of a row of `codes`.
    stride: usize,
    /// Whether codes are `i8`.
    is_signed: bool,
    grid: Grid,
    zeros: Zeros,
    order: Option<Arc<[u32]>>,
}

fn integers(
    checkpoint: &Checkpoint,
    of: &Published,
    module: &str,
    [codes, scales]: [&TensorInfo; 2],
    shape: [usize; 2],
) -> Result<QuantWeight> {
    let ([rows, columns], name) = (shape, |part: &str| format!("{module}.{part}"));
    let is_signed = codes.dtype_name() == "I8";
    let bits = match *codes.shape() {
        _ if is_signed => Some(8),
        [_, words] => bits_of(words, columns),
        _ => None,
    };
    let Some(bits) = bits else {
        let got = codes.shape();
        return Err(codes.fail(format!(
            "shape is {got:?}, expected [{rows}, W], words of 2, 3, 4, 5, 6 or 8 bits for {columns} columns"
        )));
    };
    let (kind, width, stride) = match is_signed {
        true => ("I8", columns, columns),
        false => {
            let words = (columns * usize::from(bits)).div_ceil(32);
            ("I32", words, words * 4)
        }
    };
    let codes = checkpoint.typed(codes.name(), &[kind], &[rows, width])?;
    let grid = Grid::read(checkpoint, of, scales, shape)?;
    let Some(group) = group_of(grid.block[1], columns) else {
        return Err(
            scales.fail(format!("{columns} columns in groups of {} are not whole eights", grid.block[1]))
        );
    };
    let groups = grid.dims[1];
    let zeros = match checkpoint.find(&name("weight_zero_point")) {
        None => Zeros::Middle,
        Some(info) if info.dtype_name() == "I8" => {
            let info = checkpoint.typed(info.name(), &["I8"], scales.shape())?;
            Zeros::Bytes(checkpoint.plane(info)?)
        }
        Some(info) => {
            let words = (rows * usize::from(bits)).div_ceil(32);
            let info = checkpoint.typed(info.name(), &["I32"], &[words, groups])?;
            Zeros::Words { plane: checkpoint.plane(info)?, groups }
        }
    };
    let order = match checkpoint.find(&name("weight_g_idx")) {
        Some(info) => gptq::order(checkpoint, info.name(), columns, usize::from(group))?,
        None => None,
    };
    let (name, codes) = (codes.name().to_owned(), checkpoint.plane(codes)?);
    let dtype = affine_type(checkpoint, module, scales);
    let at = (scales.file().to_owned(), scales.name().to_owned());
    let integers = Integers { shape, bits, group, codes, stride, is_signed, grid, zeros, order };
    Ok(integers.weight(name, dtype, at))
}

impl Integers {
    /// The affine matrix, whose scales and biases have `dtype`: `(q − z) · s` is `q · s + (−s · z)`. `at`: the file of the scales,
    /// and their name.
    fn weight(self, name: String, dtype: DType, at: (PathBuf, String)) -> QuantWeight {
        let (shape, order) = (self.shape, self.order.clone());
        let format = Format::Affine { bits: self.bits, group: self.group, scales: dtype };
        let make = move |rows: Range<usize>| -> Result<Made> {
            let (scales, biases) = self.scales_and_biases(rows.clone())?;
            if dtype == DType::F16 && biases.iter().any(|bias| bias.abs() > f16::MAX.to_f32()) {
                let (path, name) = at.clone();
                let what = "a scale times the code of zero is over 65504, which F16 does not hold".to_owned();
                return Err(Error::Weight { path, name, what });
            }
            let floats = |values: &[f32]| -> Result<Plane> {
                let mut bytes = alloc::zeroed(values.len() * dtype.size(), MADE)?;
                write_floats(dtype, values, &mut bytes);
                Ok(Plane::owned(bytes))
            };
            Ok(Made::from_iter([self.codes(rows)?, floats(&scales)?, floats(&biases)?]))
        };
        let weight = QuantWeight::made(name, format, shape, make);
        match order {
            Some(order) => weight.with_order(order),
            None => weight,
        }
    }

    /// Scales and biases of some rows, `[N, G]`.
    fn scales_and_biases(&self, rows: Range<usize>) -> Result<(Vec<f32>, Vec<f32>)> {
        let (columns, group) = (self.shape[1], usize::from(self.group));
        let (mut scales, mut biases) = (Vec::new(), Vec::new());
        alloc::reserve(&mut scales, rows.len() * (columns / group), MADE)?;
        alloc::reserve(&mut biases, rows.len() * (columns / group), MADE)?;
        for row in rows {
            for (place, scale) in self.grid.spread(row..row + 1, columns, group) {
                scales.push(scale);
                biases.push(-scale * self.zero(row, place));
            }
        }
        Ok((scales, biases))
    }

    /// The code that stands for zero in row `row` and the scale at `place`.
    fn zero(&self, row: usize, place: usize) -> f32 {
        let (bits, middle) = (usize::from(self.bits), f32::from(1_u8 << (self.bits - 1)));
        match &self.zeros {
            Zeros::Middle => middle,
            Zeros::Bytes(plane) => middle + f32::from(plane.bytes()[place].cast_signed()),
            Zeros::Words { plane, groups } => {
                let (group, bytes) = (place % groups, plane.bytes());
                let word = |at: usize| {
                    let from = 4 * (at * groups + group);
                    u64::from(u32::from_le_bytes([
                        bytes[from],
                        bytes[from + 1],
                        bytes[from + 2],
                        bytes[from + 3],
                    ]))
                };
                let (at, shift) = (row * bits / 32, row * bits % 32);
                let next = if shift + bits > 32 { word(at + 1) << 32 } else { 0 };
                ((word(at) | next) >> shift & ((1 << bits) - 1)) as f32
            }
        }
    }

    /// Codes of some rows as a stream of bits: a view of the file's, where they are one there.
    fn codes(&self, rows: Range<usize>) -> Result<Plane> {
        let (columns, width) = (self.shape[1], self.shape[1] * usize::from(self.bits) / 8);
        let stored = self.codes.rows(self.stride, &rows);
        if !self.is_signed && self.order.is_none() && self.stride == width {
            return Ok(stored);
        }
        let mut packed: Vec<u8> = alloc::zeroed(rows.len() * width, MADE)?;
        let mut codes: Vec<u8> = alloc::zeroed(columns, MADE)?;
        let mut ordered: Vec<u8> = alloc::zeroed(columns, MADE)?;
        let pairs =
            stored.bytes().chunks_exact(self.stride.max(1)).zip(packed.chunks_exact_mut(width.max(1)));
        for (stored, packed) in pairs {
            match self.is_signed {
                true => codes.iter_mut().zip(stored).for_each(|(code, byte)| *code = byte ^ 0x80),
                false => affine::unpack(self.bits, &stored[..width], &mut codes),
            }
            match &self.order {
                None => affine::pack(self.bits, &codes, packed),
                Some(order) => {
                    ordered.iter_mut().zip(&**order).for_each(|(code, &k)| *code = codes[k as usize]);
                    affine::pack(self.bits, &ordered, packed);
                }
            }
        }
        stored.release();
        Ok(Plane::owned(packed))
    }
}
