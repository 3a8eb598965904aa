//! Pages of quantized K and V: codes in the order in which attention reads them, and scales and biases over tokens.

use std::ops::Range;

use half::f16;

use super::{GROUP, KvShape, PAGE, WHAT};
use crate::alloc;
use crate::error::Result;
use crate::quant::affine_group;

/// What holds codes: a byte one, a word eight of four bits, the first in the lowest ones.
pub trait Code: bytemuck::Pod {
    /// Codes in it.
    const COUNT: usize;
    /// Code `i < COUNT`.
    fn get(self, i: usize) -> u8;
    /// Replaces code `i < COUNT`.
    fn set(&mut self, i: usize, code: u8);
}

impl Code for u8 {
    const COUNT: usize = 1;

    fn get(self, _: usize) -> u8 {
        self
    }
    fn set(&mut self, _: usize, code: u8) {
        *self = code;
    }
}

impl Code for u32 {
    const COUNT: usize = 8;

    fn get(self, i: usize) -> u8 {
        (self >> (4 * i) & 15) as u8
    }
    fn set(&mut self, i: usize, code: u8) {
        *self = *self & !(15 << (4 * i)) | u32::from(code) << (4 * i);
    }
}

/// K or V of one head in a page. Codes lie as the elements of a float page do, but that one `T` holds
/// [`Code::COUNT`] rows of them: K `[k_dim / COUNT, PAGE]`, V `[PAGE / COUNT, v_dim]`, each width rounded up to a multiple of
/// `COUNT`.
#[derive(Debug, Clone, Copy)]
pub struct Codes<'a, T> {
    /// The codes.
    pub codes: &'a [T],
    /// `[groups, PAGE]`.
    pub scales: &'a [f16],
    /// `[groups, PAGE]`.
    pub biases: &'a [f16],
}

impl<T: Code> Codes<'_, T> {
    /// Code, scale and bias of dimension `d` of the key at `slot`.
    pub(super) fn key(&self, slot: usize, d: usize) -> (u8, [f16; 2]) {
        (self.codes[d / T::COUNT * PAGE + slot].get(d % T::COUNT), self.scale(slot, d))
    }

    /// The same of the value.
    pub(super) fn value(&self, slot: usize, d: usize, v_dim: usize) -> (u8, [f16; 2]) {
        let width = v_dim.next_multiple_of(T::COUNT);
        (self.codes[slot / T::COUNT * width + d].get(slot % T::COUNT), self.scale(slot, d))
    }

    fn scale(&self, slot: usize, d: usize) -> [f16; 2] {
        let at = d / GROUP * PAGE + slot;
        [self.scales[at], self.biases[at]]
    }
}

/// The value that a code stands for: the product is exact, the sum rounded once.
pub(super) fn decode((code, [scale, bias]): (u8, [f16; 2])) -> f32 {
    f32::from(code) * scale.to_f32() + bias.to_f32()
}

/// One page of one layer: for each head K and then V.
#[derive(Debug, Clone)]
pub(super) struct CodePage<T> {
    codes: Box<[T]>,
    /// For each K and each V the scales `[groups, PAGE]` and then the biases.
    scales: Box<[f16]>,
}

impl<T: Code> CodePage<T> {
    pub fn new(shape: &KvShape) -> Result<Self> {
        let [(k, k_scales), (v, v_scales)] = Self::lens(shape);
        Ok(Self {
            codes: alloc::zeroed(shape.heads * (k + v), WHAT)?.into(),
            scales: alloc::zeroed(shape.heads * 2 * (k_scales + v_scales), WHAT)?.into(),
        })
    }

    pub fn copy(&self) -> Result<Self> {
        let codes = alloc::copy_of(&self.codes, WHAT)?.into();
        Ok(Self { codes, scales: alloc::copy_of(&self.scales, WHAT)?.into() })
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub fn bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + size_of_val(&self.scales[..])
    }

    /// Its codes and its scales, as they lie in memory.
    pub fn parts(&self) -> [&[u8]; 2] {
        [bytemuck::cast_slice(&self.codes), bytemuck::cast_slice(&self.scales)]
    }

    /// The same, to be filled.
    pub fn parts_mut(&mut self) -> [&mut [u8]; 2] {
        [bytemuck::cast_slice_mut(&mut self.codes), bytemuck::cast_slice_mut(&mut self.scales)]
    }

    /// Elements of `codes` of a head's K and V, and of their scales.
    fn lens(shape: &KvShape) -> [(usize, usize); 2] {
        shape.dims().map(|dim| (dim.div_ceil(T::COUNT) * PAGE, dim.div_ceil(GROUP) * PAGE))
    }

    /// Where the codes and the scales of a head's K (`of` is 0) or V (1) lie.
    fn ranges(shape: &KvShape, head: usize, of: usize) -> [Range<usize>; 2] {
        let lens = Self::lens(shape);
        let [(k, k_scales), (v, v_scales)] = lens;
        let (codes, scales) = lens[of];
        let first = head * (k + v) + of * k;
        let first_scale = 2 * (head * (k_scales + v_scales) + of * k_scales);
        [first..first + codes, first_scale..first_scale + 2 * scales]
    }

    /// K of head `head` where `of` is 0, its V where it is 1.
    pub fn block(&self, shape: &KvShape, head: usize, of: usize) -> Codes<'_, T> {
        let [codes, scales] = Self::ranges(shape, head, of);
        let (scales, biases) = self.scales[scales.clone()].split_at(scales.len() / 2);
        Codes { codes: &self.codes[codes], scales, biases }
    }

    /// Writes K and V of the token at `slot`.
    pub fn write(&mut self, shape: &KvShape, slot: usize, rows: [RowCodes<'_>; 2]) {
        for (of, row) in rows.into_iter().enumerate() {
            let head_dim = shape.dims()[of];
            let (groups, width) = (head_dim.div_ceil(GROUP), head_dim.next_multiple_of(T::COUNT));
            for head in 0..shape.heads {
                let [codes, scales] = Self::ranges(shape, head, of);
                let to = &mut self.codes[codes];
                for (d, &code) in row.codes[head * head_dim..(head + 1) * head_dim].iter().enumerate() {
                    match of {
                        0 => to[d / T::COUNT * PAGE + slot].set(d % T::COUNT, code),
                        _ => to[slot / T::COUNT * width + d].set(slot % T::COUNT, code),
                    }
                }
                let to = &mut self.scales[scales];
                let biases = to.len() / 2;
                for group in 0..groups {
                    to[group * PAGE + slot] = row.scales[head * groups + group];
                    to[biases + group * PAGE + slot] = row.biases[head * groups + group];
                }
            }
        }
    }
}

/// Rows of K or of V in codes, as they are rounded and as they move between backends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CodeRows {
    /// `[n, heads * head_dim]`, one to a byte.
    pub codes: Vec<u8>,
    /// `[n, heads * groups]`.
    pub scales: Vec<f16>,
    /// `[n, heads * groups]`.
    pub biases: Vec<f16>,
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct RowCodes<'a> {
    codes: &'a [u8],
    scales: &'a [f16],
    biases: &'a [f16],
}

impl CodeRows {
    /// Zeros for `rows` rows of `heads` heads.
    pub(super) fn new(heads: usize, head_dim: usize, rows: usize) -> Result<Self> {
        let zeros = || alloc::zeroed(rows * heads * head_dim.div_ceil(GROUP), WHAT);
        Ok(Self { codes: alloc::zeroed(rows * heads * head_dim, WHAT)?, scales: zeros()?, biases: zeros()? })
    }

    /// Makes room for `rows` rows more.
    pub(super) fn reserve(&mut self, heads: usize, head_dim: usize, rows: usize) -> Result<()> {
        let groups = rows * heads * head_dim.div_ceil(GROUP);
        alloc::reserve(&mut self.codes, rows * heads * head_dim, WHAT)?;
        alloc::reserve(&mut self.scales, groups, WHAT)?;
        alloc::reserve(&mut self.biases, groups, WHAT)
    }

    /// Appends dimension `d` of a head, with the scale and the bias of its group.
    pub(super) fn push(&mut self, d: usize, (code, [scale, bias]): (u8, [f16; 2])) {
        self.codes.push(code);
        if d.is_multiple_of(GROUP) {
            self.scales.push(scale);
            self.biases.push(bias);
        }
    }

    /// Rounds one row `[heads * head_dim]` to codes of `bits`. A group that is not all finite becomes NaN, as it would be in
    /// a cache of floats.
    pub(super) fn encode(&mut self, bits: u8, head_dim: usize, row: &[f32]) {
        let heads = row.chunks_exact(head_dim).zip(self.codes.chunks_exact_mut(head_dim));
        let groups = heads.flat_map(|(head, codes)| head.chunks(GROUP).zip(codes.chunks_mut(GROUP)));
        for ((values, codes), (scale, bias)) in groups.zip(self.scales.iter_mut().zip(&mut self.biases)) {
            let exact = affine_group(bits, values, codes);
            let finite = values.iter().all(|x| x.is_finite());
            [*scale, *bias] = [exact.0, exact.1].map(|x| if finite { f16::from_f32(x) } else { f16::NAN });
        }
    }

    pub(super) fn row(&self, heads: usize, head_dim: usize, row: usize) -> RowCodes<'_> {
        let (codes, groups) = (heads * head_dim, heads * head_dim.div_ceil(GROUP));
        RowCodes {
            codes: &self.codes[row * codes..(row + 1) * codes],
            scales: &self.scales[row * groups..(row + 1) * groups],
            biases: &self.biases[row * groups..(row + 1) * groups],
        }
    }
}
