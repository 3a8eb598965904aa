//! The tensors that a GGUF file declares: names, types, shapes and where their bytes lie.

use std::ops::Range;
use std::path::Path;

use super::reader::Reader;
use crate::error::{Error, Result};
use crate::json::quote;
use crate::quant::GgmlType;
use crate::tensor::{DType, Shape};

/// Tensors in one file, as in a safetensors file.
const MAX_TENSORS: usize = 1 << 17;
/// Bytes of a tensor's name: `GGML_MAX_NAME`, whose last byte is a zero.
const MAX_NAME: usize = 63;
/// Dimensions of one tensor: `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// Bytes of the smallest entry: length and one byte of name, number of dimensions, type, offset.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 4 + 8;

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    /// One by one.
    Dense(DType),
    /// In blocks along its rows.
    Blocks(GgmlType),
}

impl TensorType {
    /// The type of a number in the file; where there is none that can be read, why.
    fn of(number: u32) -> Result<Self, String> {
        if let Some(of) = GgmlType::by_id(number) {
            return Ok(Self::Blocks(of));
        }
        match number {
            0 => Ok(Self::Dense(DType::F32)),
            1 => Ok(Self::Dense(DType::F16)),
            30 => Ok(Self::Dense(DType::BF16)),
            4 | 5 | 31..=33 | 36..=38 => Err(format!("{number}, which was removed from the format")),
            _ => {
                let name = match number {
                    9 => "Q8_1",
                    15 => "Q8_K",
                    16 => "IQ2_XXS",
                    17 => "IQ2_XS",
                    18 => "IQ3_XXS",
                    19 => "IQ1_S",
                    21 => "IQ3_S",
                    22 => "IQ2_S",
                    24 => "I8",
                    25 => "I16",
                    26 => "I32",
                    27 => "I64",
                    28 => "F64",
                    29 => "IQ1_M",
                    34 => "TQ1_0",
                    35 => "TQ2_0",
                    40 => "NVFP4",
                    41 => "Q1_0",
                    _ => return Err(format!("{number}, which is not known")),
                };
                let known: Vec<_> = GgmlType::ALL.iter().map(|of| of.name()).collect();
                Err(format!("{name}, expected F32, F16, BF16, {}", known.join(", ")))
            }
        }
    }

    /// Its number in ggml's `enum ggml_type`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Dense(DType::F32) => 0,
            Self::Dense(DType::F16) => 1,
            Self::Dense(DType::BF16) => 30,
            Self::Blocks(of) => of.id(),
        }
    }

    /// The name that `llama.cpp` prints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense(DType::F32) => "F32",
            Self::Dense(DType::F16) => "F16",
            Self::Dense(DType::BF16) => "BF16",
            Self::Blocks(of) => of.name(),
        }
    }

    /// Elements and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Dense(dtype) => (1, dtype.size()),
            Self::Blocks(of) => of.block(),
        }
    }
}

/// One tensor; `range` is absolute in the file and lies inside it.
#[derive(Debug, Clone)]
pub(crate) struct TensorEntry {
    pub name: Box<str>,
    pub kind: TensorType,
    /// Outermost first, the reverse of the file's order.
    pub shape: Shape,
    pub range: Range<usize>,
}

/// The smallest bytes that an entry takes.
pub(super) const fn least_entry() -> u64 {
    LEAST_ENTRY
}

/// Reads `count` entries; their ranges count from the beginning of the data.
pub(super) fn read(reader: &mut Reader<'_>, count: usize) -> Result<Vec<TensorEntry>> {
    if count > MAX_TENSORS {
        let what = format_args!("{count}, expected at most {MAX_TENSORS}");
        return Err(reader.fail(format_args!("tensor count"), what));
    }
    let mut entries = Vec::with_capacity(count);
    for i in 0..count {
        let (name, _) = reader.name(MAX_NAME, format_args!("name of tensor {i}"))?;
        let quoted = quote(name);
        let field = format_args!("tensor {quoted}");
        let dims = reader.u32(field)?;
        if dims > MAX_DIMS {
            return Err(reader.fail(field, format_args!("{dims} dimensions, expected at most {MAX_DIMS}")));
        }
        let mut sizes = [1u64; MAX_DIMS as usize]; // innermost first
        for size in &mut sizes[..dims as usize] {
            *size = reader.u64(field)?;
            if *size == 0 || *size > i64::MAX as u64 {
                return Err(
                    reader.fail(field, format_args!("a dimension of {}, expected 1 or more", *size as i64))
                );
            }
        }
        let kind = TensorType::of(reader.u32(field)?)
            .map_err(|what| reader.fail(field, format_args!("type is {what}")))?;
        let (elements, bytes) = kind.block();
        if sizes[0] % elements as u64 != 0 {
            let what = format_args!(
                "rows of {}, expected a multiple of {elements}, a block of {}",
                sizes[0],
                kind.name()
            );
            return Err(reader.fail(field, what));
        }
        let shape: Shape = sizes[..dims as usize].iter().rev().map(|&size| size as usize).collect();
        let total = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let bytes = total.and_then(|total| (total / elements as u64).checked_mul(bytes as u64));
        let offset = reader.u64(field)?;
        let end = bytes.and_then(|bytes| offset.checked_add(bytes));
        let (Some(_), Some(end)) = (bytes, end.and_then(|end| usize::try_from(end).ok())) else {
            let what = format_args!("{:?} of {} at offset {offset} overflows", &shape[..], kind.name());
            return Err(reader.fail(field, what));
        };
        entries.push(TensorEntry { name: name.into(), kind, shape, range: offset as usize..end });
    }
    Ok(entries)
}

/// Checks that each tensor is named once, lies in the file at a multiple of `alignment`, and shares no byte with another;
/// `start` is where the data begins. Makes the ranges absolute.
pub(super) fn place(
    path: &Path,
    entries: &mut [TensorEntry],
    alignment: usize,
    start: usize,
    len: usize,
) -> Result<()> {
    let fail = |entry: &TensorEntry, what: String| {
        Error::format(path, format!("tensor {}: {what}", quote(&entry.name)))
    };
    let mut order: Vec<u32> = (0..entries.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| entries[a as usize].name.cmp(&entries[b as usize].name));
    if let Some(twins) =
        order.windows(2).find(|pair| entries[pair[0] as usize].name == entries[pair[1] as usize].name)
    {
        return Err(fail(&entries[twins[0] as usize], "declared twice".to_owned()));
    }
    order.sort_unstable_by_key(|&i| entries[i as usize].range.start);
    let mut end = 0;
    for &i in &order {
        let entry = &mut entries[i as usize];
        let range = entry.range.clone();
        if !range.start.is_multiple_of(alignment) {
            let what = format!("offset {}, expected a multiple of the alignment, {alignment}", range.start);
            return Err(fail(entry, what));
        }
        if range.start < end {
            return Err(fail(
                entry,
                format!("offset {} lies in another tensor, which ends at {end}", range.start),
            ));
        }
        // Files are written tensor after tensor, each padded: a padded end that no file can have is refused as well.
        let padded = range.end.checked_next_multiple_of(alignment).and_then(|end| end.checked_add(start));
        let absolute = range.end.checked_add(start).filter(|_| padded.is_some());
        match absolute {
            Some(absolute) if absolute <= len => entry.range = range.start + start..absolute,
            Some(_) => {
                let what = format!(
                    "offset {} and {} bytes end past the {} bytes of data",
                    range.start,
                    range.len(),
                    len.saturating_sub(start)
                );
                return Err(fail(entry, what));
            }
            None => return Err(fail(entry, format!("offset {} and its padding overflow", range.start))),
        }
        end = range.end;
    }
    Ok(())
}
