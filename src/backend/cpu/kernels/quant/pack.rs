//! Packs quantized weights into panels: what kernels stream.

use std::slice::ChunksExact;
use std::sync::Arc;

use half::{bf16, f16};

use super::codes::{CodeKind, Nibbles, Route, put_bytes, put_nibbles, put_q6_k};
use super::scales::ScaleKind;
use super::{BLOCK, ROWS};
use crate::alloc::{self, Blank, Lines};
use crate::backend::cpu::pool::{Parts, Pool};
use crate::error::Result;
use crate::quant::block::{Scales, Values};
use crate::quant::ggml::{self, E2M1_DOUBLED};
use crate::quant::{Format, GgmlType, QuantWeight, affine, ocp};
use crate::tensor::DType;

/// A quantized matrix in panels of [`ROWS`] rows: the codes of a panel, then its scales.
#[derive(Debug)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    codes: CodeKind,
    scales: ScaleKind,
    /// What is taken off a code before it is multiplied by its scale.
    offset: i32,
    table: [u8; 16],
    order: Option<Arc<[u32]>>,
    /// Bytes of a panel's codes, and of the whole panel.
    panel: (usize, usize),
    lines: Lines,
}

impl PackedMatrix {
    /// Whether there are kernels for a format: for all but affine groups of an odd number of eights, which only GPTQ and AWQ
    /// could have.
    pub fn supports(format: Format) -> bool {
        format.group().is_multiple_of(BLOCK / 2)
    }

    /// Packs all of `weight`; values stay what they are.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    ///
    /// # Panics
    /// Where [`supports`](Self::supports) refuses the format.
    pub fn pack(pool: &Pool, weight: &QuantWeight) -> Result<Self> {
        let [rows, cols] = *weight.shape();
        assert!(Self::supports(weight.format()), "no kernel for {}", weight.format());
        let (codes, scales, offset) = layout(weight.format());
        let table = table_of(weight.format());
        let panel = panel_bytes(codes, scales, cols);
        let panels = rows.div_ceil(ROWS);
        // Written, and so given its memory, by all threads at once.
        let mut blank = Blank::new(panels * panel.1 / 64, "packed weights")?;
        // A row's codes for each thread, taken here: within the region there is nothing to fail.
        let mut decoded = alloc::zeroed(pool.threads() * cols, "packed weights")?;
        let parts = Parts::new(blank.bytes_mut());
        let rooms = Parts::new(&mut decoded);
        pool.run_on(panels, |worker, index| {
            // SAFETY: panels do not overlap.
            let bytes = unsafe { parts.slice(index * panel.1, panel.1) };
            let (code_part, scale_part) = bytes.split_at_mut(panel.0);
            // SAFETY: tasks that run at the same time have different workers.
            let decoded = unsafe { rooms.slice(worker * cols, cols) };
            for row in 0..ROWS.min(rows - index * ROWS) {
                let from = Row { weight, n: index * ROWS + row, cols };
                from.put_codes(codes, row, code_part, decoded);
                from.put_scales(scales, row, scale_part);
            }
        });
        let table = table.map(|value| (i32::from(value) + offset) as u8);
        let (order, lines) = (weight.order().cloned(), blank.written());
        debug_assert_eq!(lines.bytes().len(), Self::bytes_of(weight.format(), [rows, cols]));
        Ok(Self { rows, cols, codes, scales, offset, table, order, panel, lines })
    }

    /// Bytes that a matrix `[N, K]` of `format` takes once packed.
    ///
    /// # Panics
    /// Where [`supports`](Self::supports) refuses the format.
    pub fn bytes_of(format: Format, [rows, cols]: [usize; 2]) -> usize {
        assert!(Self::supports(format), "no kernel for {format}");
        let (codes, scales, _) = layout(format);
        rows.div_ceil(ROWS) * panel_bytes(codes, scales, cols).1
    }

    /// N: the width of the output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K: the width of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.lines.bytes().len()
    }

    /// The input column of each stored one, where they are not the same.
    pub fn order(&self) -> Option<&Arc<[u32]>> {
        self.order.as_ref()
    }

    pub(super) fn codes(&self) -> CodeKind {
        self.codes
    }

    pub(super) fn scale_kind(&self) -> ScaleKind {
        self.scales
    }

    pub(super) fn route(&self) -> Route {
        Route::of(self.codes, self.scales)
    }

    pub(super) fn offset(&self) -> i32 {
        self.offset
    }

    pub(super) fn table(&self) -> &[u8; 16] {
        &self.table
    }

    /// Whether codes are integers, which rounded activations can be multiplied with.
    pub(super) fn integral(&self) -> bool {
        self.codes != CodeKind::E4m3
    }

    pub(super) fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// The codes and the scales of panel `index`.
    #[inline(always)]
    pub(super) fn panel(&self, index: usize) -> (&[u8], &[u8]) {
        self.lines.bytes()[index * self.panel.1..][..self.panel.1].split_at(self.panel.0)
    }
}

/// Bytes of a panel's codes, and of the whole panel, in whole cache lines.
fn panel_bytes(codes: CodeKind, scales: ScaleKind, cols: usize) -> (usize, usize) {
    let blocks = cols.div_ceil(BLOCK);
    let (group, record) = scales.record();
    let code_bytes = blocks * codes.block_bytes();
    let scale_bytes = (blocks * BLOCK).div_ceil(group) * record;
    (code_bytes, (code_bytes + scale_bytes).next_multiple_of(64))
}

/// What four bits of a format stand for, where that is a table.
fn table_of(format: Format) -> &'static [i8; 16] {
    let table = match format {
        Format::Ggml(of) => of.row().table(),
        _ => None,
    };
    table.unwrap_or(&E2M1_DOUBLED)
}

/// How a format is packed: its codes, its scales, and what is taken off the codes.
fn layout(format: Format) -> (CodeKind, ScaleKind, i32) {
    let plain = |dtype, group, min| ScaleKind::Plain { dtype, group, min };
    let of_table = |scales| {
        let (codes, offset) = CodeKind::of_table(table_of(format));
        (codes, scales, offset)
    };
    match format {
        Format::Affine { bits, group, scales } => {
            (CodeKind::Bits(bits), plain(scales, group as usize, true), 0)
        }
        // A bf16 has the exponents of e8m0, an f16 all values of e4m3.
        Format::Mxfp4 => of_table(plain(DType::BF16, 32, false)),
        Format::Mxfp8 => (CodeKind::E4m3, plain(DType::BF16, 32, false), 0),
        Format::Nvfp4 => of_table(plain(DType::F16, 16, false)),
        Format::Fp8 { group } => (CodeKind::E4m3, plain(DType::F32, group as usize, false), 0),
        Format::Fp4 { group } => of_table(plain(DType::F32, group as usize, false)),
        Format::Ggml(of) => {
            let row = of.row();
            let (codes, offset) = match row.values {
                Values::Offset(offset) => (CodeKind::Bits(row.bits), i32::from(offset)),
                Values::Min => (CodeKind::Bits(row.bits), 0),
                Values::Table(_) => CodeKind::of_table(table_of(format)),
            };
            let min = row.has_min();
            let scales = match row.scales {
                Scales::Half => plain(DType::F16, row.group(), min),
                Scales::E8m0 => plain(DType::BF16, row.group(), false),
                Scales::Super { group: sub, .. } => ScaleKind::Super { sub, min, signed: !min },
            };
            (codes, scales, offset)
        }
    }
}

/// A row of a weight as its file holds it.
struct Row<'a> {
    weight: &'a QuantWeight,
    n: usize,
    cols: usize,
}

impl Row<'_> {
    /// The row's bytes in plane `plane`.
    fn plane(&self, plane: usize) -> &[u8] {
        let row = self.weight.format().row_bytes(self.cols)[plane];
        &self.weight.planes()[plane].bytes()[self.n * row..][..row]
    }

    /// Puts its codes into row `row` of a panel's; `decoded` is room for them, `[K]`.
    fn put_codes(&self, kind: CodeKind, row: usize, panel: &mut [u8], decoded: &mut [u8]) {
        let bytes = self.plane(0);
        let whole = self.cols.is_multiple_of(BLOCK);
        match self.weight.format() {
            Format::Affine { bits: 4, .. } | Format::Mxfp4 | Format::Nvfp4 | Format::Fp4 { .. } if whole => {
                put_nibbles(Nibbles::Sequential, bytes.chunks_exact(16), row, panel);
            }
            Format::Affine { bits: 8, .. } | Format::Mxfp8 | Format::Fp8 { .. } if whole => {
                put_bytes(bytes.chunks_exact(BLOCK), 0, row, panel);
            }
            Format::Affine { bits, .. } => {
                affine::unpack(bits, bytes, decoded);
                kind.scatter(decoded, row, panel);
            }
            Format::Mxfp4 | Format::Nvfp4 | Format::Fp4 { .. } => {
                ocp::nibbles(bytes, decoded);
                kind.scatter(decoded, row, panel);
            }
            Format::Mxfp8 | Format::Fp8 { .. } => kind.scatter(bytes, row, panel),
            Format::Ggml(of) => {
                let (elements, size) = of.block();
                let blocks = bytes.chunks_exact(size);
                let halves = |blocks: ChunksExact<'_, u8>, from: usize, panel: &mut [u8]| {
                    put_nibbles(Nibbles::Halves, blocks.map(|block| &block[from..]), row, panel);
                };
                match of {
                    GgmlType::Q4_0 | GgmlType::IQ4_NL => halves(blocks, 2, panel),
                    GgmlType::Q4_1 => halves(blocks, 4, panel),
                    GgmlType::MXFP4 => halves(blocks, 1, panel),
                    GgmlType::IQ4_XS => {
                        let parts = blocks.flat_map(|block| block[8..].chunks_exact(16));
                        put_nibbles(Nibbles::Halves, parts, row, panel);
                    }
                    GgmlType::Q4_K => {
                        let parts = blocks.flat_map(|block| block[16..].chunks_exact(32));
                        put_nibbles(Nibbles::Pairs, parts, row, panel);
                    }
                    GgmlType::Q6_K => put_q6_k(blocks, row, panel),
                    GgmlType::Q8_0 => put_bytes(blocks.map(|block| &block[2..]), 128, row, panel),
                    _ => {
                        let blocks = decoded.chunks_exact_mut(elements).zip(blocks);
                        blocks.for_each(|(codes, block)| (of.row().codes)(block, codes));
                        kind.scatter(decoded, row, panel);
                    }
                }
            }
        }
    }

    /// Puts its scales and biases into row `row` of a panel's.
    fn put_scales(&self, kind: ScaleKind, row: usize, panel: &mut [u8]) {
        let format = self.weight.format();
        match format {
            Format::Affine { scales: dtype, .. } => {
                let size = dtype.size();
                let (d, m) = (self.plane(1).chunks_exact(size), self.plane(2).chunks_exact(size));
                for (record, (d, m)) in d.zip(m).enumerate() {
                    kind.put_plain(panel, record, row, [d, m]);
                }
            }
            Format::Mxfp4 | Format::Nvfp4 => {
                for (record, &scale) in self.plane(1).iter().enumerate() {
                    let d = match format {
                        Format::Mxfp4 => bf16::from_f32(ggml::e8m0_half(scale)).to_le_bytes(),
                        _ => f16::from_f32(0.5 * ocp::e4m3(scale)).to_le_bytes(),
                    };
                    kind.put_plain(panel, record, row, [&d, &[]]);
                }
            }
            Format::Mxfp8 => {
                let groups = self.plane(1).iter().zip(self.plane(0).chunks(32));
                for (record, (&scale, codes)) in groups.enumerate() {
                    let d = bf16::from_f32(if has_nan(codes) { f32::NAN } else { ocp::e8m0(scale) });
                    kind.put_plain(panel, record, row, [&d.to_le_bytes(), &[]]);
                }
            }
            Format::Fp8 { group } => {
                let groups = self.plane(1).chunks_exact(4).zip(self.plane(0).chunks(usize::from(group)));
                for (record, (scale, codes)) in groups.enumerate() {
                    let wrong = f32::NAN.to_le_bytes();
                    let d = if has_nan(codes) { &wrong[..] } else { scale };
                    kind.put_plain(panel, record, row, [d, &[]]);
                }
            }
            Format::Fp4 { .. } => {
                for (record, scale) in self.plane(1).chunks_exact(4).enumerate() {
                    // The table is doubled.
                    let d = 0.5 * f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
                    kind.put_plain(panel, record, row, [&d.to_le_bytes(), &[]]);
                }
            }
            Format::Ggml(of) => {
                let blocks = self.plane(0).chunks_exact(of.block().1);
                blocks
                    .enumerate()
                    .for_each(|(record, block)| ggml_scales(of, block, record, kind, row, panel));
            }
        }
    }
}

/// Whether one of a group's e4m3 codes is a NaN, which the kernel's conversion does not know: the group is one as a whole then.
fn has_nan(codes: &[u8]) -> bool {
    codes.iter().any(|code| code & 127 == 127)
}

/// The scales of a block of a GGUF file.
fn ggml_scales(of: GgmlType, block: &[u8], record: usize, kind: ScaleKind, row: usize, panel: &mut [u8]) {
    let half = |at: usize| [block[at], block[at + 1]];
    let mut plain = |d: &[u8], m: &[u8]| kind.put_plain(panel, record, row, [d, m]);
    let (format, min) = (of.row(), of.row().has_min());
    match format.scales {
        Scales::Half if min => plain(&half(0), &half(2)),
        Scales::Half => plain(&half(0), &[]),
        Scales::E8m0 => plain(&bf16::from_f32(ggml::e8m0_half(block[0])).to_le_bytes(), &[]),
        Scales::Super { d, read, .. } => {
            let (integers, groups) = (read(block), format.groups());
            let (dmin, mins) = if min { (half(d + 2), &integers.mins[..groups]) } else { ([0; 2], &[][..]) };
            kind.put_super(panel, record, row, [half(d), dmin], [&integers.scales[..groups], mins]);
        }
    }
}
