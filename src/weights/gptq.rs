//! GPTQ and AWQ checkpoints, turned into affine matrices at load: `w = s · (q − z)` is `q · s + (−s · z)`.
//!
//! Both pack codes into 32-bit words, lowest bits first. GPTQ packs along the input: `qweight` `[K · bits / 32, N]`,
//! `qzeros` `[G, N · bits / 32]`, `scales` `[G, N]`, and `g_idx` `[K]`, the group of each input. Its first layout stores
//! each zero point less one. AWQ packs eight outputs into a word of `qweight` `[K, N / 8]` and `qzeros` `[G, N / 8]`, in the
//! order 0, 2, 4, 6, 1, 3, 5, 7.
//!
//! Sources: GPTQModel (`qlinear/torch.py`, `utils/model.py`) and AutoAWQ (`modules/linear/gemm.py`).

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use smallvec::SmallVec;

use super::Checkpoint;
use crate::alloc;
use crate::error::Result;
use crate::quant::{Format, Plane, QuantWeight, affine, for_rows, write_floats};
use crate::tensor::DType;

/// What memory is taken for.
const MADE: &str = "weights in another form";

/// Types that 32-bit words come in.
const WORDS: &[&str] = &["I32", "U32"];

/// AWQ's place of output `j` in a word of eight.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Format and shape of a GPTQ module by its tensors' shapes.
pub(super) fn describe_gptq(checkpoint: &Checkpoint, module: &str) -> Option<(Format, [usize; 2])> {
    let [packed, rows] = checkpoint.matrix_shape(&format!("{module}.qweight"))?;
    let [_, zeros] = checkpoint.matrix_shape(&format!("{module}.qzeros"))?;
    let [groups, _] = checkpoint.matrix_shape(&format!("{module}.scales"))?;
    // Only the zeros say how many bits there are without knowing the columns.
    let bits = zeros.checked_mul(32)?.checked_div(rows)?;
    let columns = packed.checked_mul(32)?.checked_div(bits)?;
    format_of(bits, columns, groups).map(|format| (format, [rows, columns]))
}

/// Format and shape of an AWQ module by its tensors' shapes.
pub(super) fn describe_awq(checkpoint: &Checkpoint, module: &str) -> Option<(Format, [usize; 2])> {
    let [columns, packed] = checkpoint.matrix_shape(&format!("{module}.qweight"))?;
    let [groups, _] = checkpoint.matrix_shape(&format!("{module}.scales"))?;
    let rows = packed.checked_mul(8)?;
    format_of(4, columns, groups).map(|format| (format, [rows, columns]))
}

/// Columns in equal groups that hold whole bytes.
fn format_of(bits: usize, columns: usize, groups: usize) -> Option<Format> {
    let group = columns.checked_div(groups).filter(|group| group * groups == columns)?;
    let fits = matches!(bits, 4 | 8) && group.is_multiple_of(8) && group > 0 && columns <= 1 << 32;
    let group = u16::try_from(group).ok().filter(|_| fits)?;
    Some(Format::Affine { bits: bits as u8, group, scales: DType::F32 })
}

/// A module's matrix in GPTQ's layout; `None` where it has no `qweight`.
///
/// # Errors
/// Tensors that are missing or do not fit each other, and groups of unequal size.
pub(super) fn gptq(
    checkpoint: &Checkpoint,
    module: &str,
    shape: [usize; 2],
    v2: bool,
) -> Result<Option<QuantWeight>> {
    let name = |part: &str| format!("{module}.{part}");
    let Some(weight) = checkpoint.find(&name("qweight")) else { return Ok(None) };
    let [rows, columns] = shape;
    let bits = match *weight.shape() {
        [packed, _] if packed.checked_mul(8) == Some(columns) => 4,
        [packed, _] if packed.checked_mul(4) == Some(columns) => 8,
        _ => {
            let got = weight.shape();
            return Err(weight.fail(format!(
                "shape is {got:?}, expected {:?} of 4 bits or {:?} of 8 for a matrix of {shape:?}",
                [columns / 8, rows],
                [columns / 4, rows]
            )));
        }
    };
    let weight = checkpoint.typed(&name("qweight"), WORDS, &[columns * bits / 32, rows])?;
    let (group, scales) = scales(checkpoint, &name("scales"), shape, bits)?;
    let order = match checkpoint.find(&name("g_idx")) {
        Some(_) => order(checkpoint, &name("g_idx"), columns, group)?,
        None => None,
    };
    let zeros = match checkpoint.find(&name("qzeros")) {
        None => None,
        Some(_) => {
            let dims = [columns / group, rows.div_ceil(32 / bits)];
            Some(checkpoint.plane(checkpoint.typed(&name("qzeros"), WORDS, &dims)?)?)
        }
    };
    let codes = checkpoint.plane(weight)?;
    let packed = Packed { layout: Layout::Gptq { v2 }, shape, bits, group, codes, zeros, scales, order };
    packed.weight(name("weight")).map(Some)
}

/// A module's matrix in AWQ's GEMM layout; `None` where it has no `qweight`.
///
/// # Errors
/// Tensors that are missing or do not fit each other.
pub(super) fn awq(checkpoint: &Checkpoint, module: &str, shape: [usize; 2]) -> Result<Option<QuantWeight>> {
    let name = |part: &str| format!("{module}.{part}");
    let Some(weight) = checkpoint.find(&name("qweight")) else { return Ok(None) };
    let [rows, columns] = shape;
    if !rows.is_multiple_of(8) {
        return Err(weight.fail(format!("a matrix of {shape:?} has not whole words of 8 rows")));
    }
    let weight = checkpoint.typed(&name("qweight"), WORDS, &[columns, rows / 8])?;
    let (group, scales) = scales(checkpoint, &name("scales"), shape, 4)?;
    let zeros = match checkpoint.find(&name("qzeros")) {
        None => None,
        Some(_) => {
            let dims = [columns / group, rows / 8];
            Some(checkpoint.plane(checkpoint.typed(&name("qzeros"), WORDS, &dims)?)?)
        }
    };
    let codes = checkpoint.plane(weight)?;
    let packed = Packed { layout: Layout::Awq, shape, bits: 4, group, codes, zeros, scales, order: None };
    packed.weight(name("weight")).map(Some)
}

/// 32-bit words, copied: the file may not align them.
fn words(plane: &Plane) -> Result<Vec<u32>> {
    let words = plane.bytes().chunks_exact(4);
    alloc::collect(words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])), MADE)
}

/// Elements of a group, and the scales of a matrix, `[G, N]`, as the file has them.
fn scales(
    checkpoint: &Checkpoint,
    name: &str,
    shape: [usize; 2],
    bits: usize,
) -> Result<(usize, (DType, Plane))> {
    let [rows, columns] = shape;
    let Some(info) = checkpoint.find(name) else {
        return Err(checkpoint.missing(name, "the module has a qweight"));
    };
    let format = match *info.shape() {
        [groups, n] if n == rows => format_of(bits, columns, groups),
        _ => None,
    };
    let Some(format) = format else {
        let got = info.shape();
        return Err(info.fail(format!(
            "shape is {got:?}, expected [G, {rows}] with {columns} columns in G equal groups of a multiple of 8"
        )));
    };
    let Some(dtype) = info.dtype() else {
        return Err(info.fail(format!("type is {}, expected F32, F16 or BF16", info.dtype_name())));
    };
    Ok((format.group(), (dtype, checkpoint.plane(info)?)))
}

/// How codes and zero points are packed.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// Along the input; zero points less one unless `v2`.
    Gptq { v2: bool },
    /// Eight outputs in a word.
    Awq,
}

/// A matrix `[N, K]` as its file has it, whose tensors fit each other.
struct Packed {
    layout: Layout,
    shape: [usize; 2],
    bits: usize,
    group: usize,
    codes: Plane,
    zeros: Option<Plane>,
    scales: (DType, Plane),
    order: Option<Arc<[u32]>>,
}

impl Packed {
    /// The affine matrix. Its planes are made of the file whenever they are asked for: beside what a backend makes of them
    /// they would only take memory.
    fn weight(self, name: String) -> Result<QuantWeight> {
        let (shape, order) = (self.shape, self.order.clone());
        let (scales, biases) = self.scales_and_biases(0..shape[0])?;
        // A bias has the bits of the scale and those of the zero point.
        let exact =
            |values: &[f32]| values.iter().all(|&v| f16::from_f32(v).to_f32().to_bits() == v.to_bits());
        let dtype = if exact(&scales) && exact(&biases) { DType::F16 } else { DType::F32 };
        drop((scales, biases));
        let format = Format::Affine { bits: self.bits as u8, group: self.group as u16, scales: dtype };
        let make = move |rows: Range<usize>| {
            let (scales, biases) = self.scales_and_biases(rows.clone())?;
            let floats = |values: &[f32]| -> Result<Vec<u8>> {
                let mut bytes = alloc::zeroed(values.len() * dtype.size(), MADE)?;
                write_floats(dtype, values, &mut bytes);
                Ok(bytes)
            };
            let planes = [self.codes(rows)?, floats(&scales)?, floats(&biases)?];
            let read = [Some(&self.codes), self.zeros.as_ref(), Some(&self.scales.1)];
            read.into_iter().flatten().for_each(Plane::release);
            Ok(SmallVec::from(planes.map(Plane::owned)))
        };
        let weight = QuantWeight::made(name, format, shape, make);
        Ok(match order {
            Some(order) => weight.with_order(order),
            None => weight,
        })
    }

    /// Scales and biases of some rows, `[N, G]`.
    fn scales_and_biases(&self, rows: Range<usize>) -> Result<(Vec<f32>, Vec<f32>)> {
        let [all, columns] = self.shape;
        let groups = columns / self.group;
        let mut values = alloc::zeroed(all * groups, MADE)?;
        affine::read_floats(self.scales.0, self.scales.1.bytes(), &mut values);
        let zeros = self.zeros.as_ref().map(words).transpose()?;
        let each = || rows.clone().flat_map(|n| (0..groups).map(move |g| (g, n)));
        let (mut scales, mut biases) = (Vec::new(), Vec::new());
        alloc::reserve(&mut scales, rows.len() * groups, MADE)?;
        alloc::reserve(&mut biases, rows.len() * groups, MADE)?;
        scales.extend(each().map(|(g, n)| values[g * all + n]));
        biases.extend(each().map(|(g, n)| -values[g * all + n] * self.zero(zeros.as_deref(), g, n)));
        Ok((scales, biases))
    }

    /// The zero point of row `n` in group `g`: the middle where the file has none.
    fn zero(&self, zeros: Option<&[u32]>, g: usize, n: usize) -> f32 {
        let Some(zeros) = zeros else { return (1_u32 << (self.bits - 1)) as f32 };
        let per_word = 32 / self.bits;
        let word = zeros[g * self.shape[0].div_ceil(per_word) + n / per_word];
        let (word, place) = match self.layout {
            Layout::Awq => (word, AWQ_PLACES[n % 8]),
            Layout::Gptq { v2: true } => (word, n % per_word),
            Layout::Gptq { v2: false } => {
                // One in each field, added to the whole word as GPTQModel does: it takes it off the whole word, too.
                let ones = (0..per_word).fold(0_u32, |word, i| word | 1 << (i * self.bits));
                (word.wrapping_add(ones), n % per_word)
            }
        };
        (word >> (place * self.bits) & ((1 << self.bits) - 1)) as f32
    }

    /// Codes of some rows, packed `[N, K]`.
    fn codes(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let ([all, columns], bits, first) = (self.shape, self.bits, rows.start);
        let packed = words(&self.codes)?;
        let (per_word, mask) = (32 / bits, (1_u32 << bits) - 1);
        let code =
            |n: usize, k: usize| (packed[k / per_word * all + n] >> (k % per_word * bits) & mask) as u8;
        transposed(rows.len(), columns, bits, |rows_at, columns_at, tile| match (self.layout, &self.order) {
            (Layout::Awq, _) => {
                let width = columns_at.len();
                for (i, k) in columns_at.enumerate() {
                    for (j, n) in rows_at.clone().map(|n| first + n).enumerate() {
                        let word = packed[k * (all / 8) + n / 8];
                        tile[j * width + i] = (word >> (4 * AWQ_PLACES[n % 8]) & 15) as u8;
                    }
                }
            }
            (Layout::Gptq { .. }, order) => {
                for (i, n) in rows_at.map(|n| first + n).enumerate() {
                    let out = &mut tile[i * columns_at.len()..][..columns_at.len()];
                    match order {
                        None => out.iter_mut().zip(columns_at.clone()).for_each(|(out, k)| *out = code(n, k)),
                        Some(order) => out
                            .iter_mut()
                            .zip(&order[columns_at.clone()])
                            .for_each(|(out, &k)| *out = code(n, k as usize)),
                    }
                }
            }
        })
    }
}

/// Packed codes `[N, K]` of a layout that stores them column by column; `read` fills a tile of rows × columns.
fn transposed(
    rows: usize,
    columns: usize,
    bits: usize,
    read: impl Fn(Range<usize>, Range<usize>, &mut [u8]) + Sync,
) -> Result<Vec<u8>> {
    // 64 rows are what a cache line of four-byte words along the rows holds four times over; 512 columns of them fit L1.
    const ROWS: usize = 64;
    const COLUMNS: usize = 512;
    let width = columns * bits / 8;
    let mut packed = alloc::zeroed(rows * width, MADE)?;
    for_rows(rows, [(&mut packed, width)], |at, [packed]| {
        let mut tile = vec![0; ROWS * COLUMNS];
        for first in (0..at.len()).step_by(ROWS) {
            let some = first..(first + ROWS).min(at.len());
            for from in (0..columns).step_by(COLUMNS) {
                let columns_at = from..(from + COLUMNS).min(columns);
                let tile = &mut tile[..some.len() * columns_at.len()];
                read(at.start + some.start..at.start + some.end, columns_at.clone(), tile);
                for (row, codes) in some.clone().zip(tile.chunks_exact(columns_at.len())) {
                    let bytes = columns_at.start * bits / 8..columns_at.end * bits / 8;
                    affine::pack(bits as u8, codes, &mut packed[row * width..][bytes]);
                }
            }
        }
    });
    Ok(packed)
}

/// The stored order of columns, groups side by side, where `g_idx` is not already so.
///
/// # Errors
/// A group out of range, or groups of unequal size.
pub(super) fn order(
    checkpoint: &Checkpoint,
    name: &str,
    columns: usize,
    group: usize,
) -> Result<Option<Arc<[u32]>>> {
    let info = checkpoint.typed(name, WORDS, &[columns])?;
    let groups = words(&checkpoint.plane(info)?)?;
    if groups.iter().enumerate().all(|(k, &g)| g as usize == k / group) {
        return Ok(None);
    }
    if let Some(bad) = groups.iter().find(|&&g| g as usize >= columns / group) {
        return Err(info.fail(format!("group {} is not one of {}", *bad as i32, columns / group)));
    }
    let mut order: Vec<u32> = (0..columns as u32).collect();
    order.sort_by_key(|&k| groups[k as usize]);
    let mut members = vec![0; columns / group];
    groups.iter().for_each(|&g| members[g as usize] += 1);
    if let Some((g, count)) = members.iter().enumerate().find(|(_, count)| **count != group) {
        return Err(info.fail(format!("group {g} has {count} columns, expected {group}")));
    }
    Ok(Some(order.into()))
}
