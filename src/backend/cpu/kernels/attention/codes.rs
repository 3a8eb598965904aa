//! Attention over quantized pages: sums of codes first, and then what the codes of a group have in common.
//!
//! A score is `Σ_groups scale · Σ q code + bias · Σ q`, the scales of a page's keys being vectors. A weighted value is
//! `Σ_keys (p · scale) code + Σ_keys p · bias`, the second sum, one for a group, in lanes over keys. Codes are integers and
//! never more than that, so a hidden key is excluded by a weight of zero; its scale and bias, which may be anything, are
//! replaced before anything reads them.

use half::f16;

use super::block::{BIASES, BlockWork, LINE};
use super::tile::{self, LANE, Operand, Product, pack};
use super::{AttentionCall, PACK_ROWS, RunPlace, SCORES, SEGMENT, padded};
use crate::backend::cpu::isa::Simd;
use crate::backend::kv::{Code, Codes, GROUP, PAGE};

impl BlockWork<'_> {
    /// Sums the queries of each group.
    #[inline(always)]
    pub(super) fn sum_queries<S: Simd>(&mut self, s: S, call: &AttentionCall<'_>, place: &RunPlace<'_>) {
        let groups = call.k_dim.div_ceil(GROUP);
        let heads = self.q.chunks_exact(padded(call.k_dim)).zip(self.sums.chunks_exact_mut(groups));
        for (head, sums) in heads.take(place.count * call.group) {
            for (part, sum) in head[..call.k_dim].chunks(GROUP).zip(sums) {
                let mut all = s.zero();
                for part in part.chunks(S::LANES) {
                    all = s.add(all, s.load_partial(part));
                }
                *sum = s.reduce_add(all);
            }
        }
    }

    /// `q · k` for the keys of page `page` and rows `row..row + rows`, which see any of them.
    #[inline(always)]
    pub(super) fn score_codes<S: Simd, T: Operand + Code>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        page: usize,
        block: Codes<'_, T>,
        [row, rows]: [usize; 2],
        ahead: *const u8,
    ) {
        let (k_dim, lda) = (call.k_dim, padded(call.k_dim));
        let (stored, groups) = (k_dim.next_multiple_of(T::ROWS), k_dim.div_ceil(GROUP));
        assert!(block.codes.len() == stored / T::ROWS * PAGE);
        assert!(block.scales.len() == groups * PAGE && block.biases.len() == groups * PAGE);
        assert!((row + rows) * lda <= self.q.len() && (row + rows) * LINE <= self.line.len());
        let packed = rows >= PACK_ROWS;
        let panel_stride = if packed { pack(s, block.codes, stored, [PAGE, PAGE], self.page) } else { 0 };
        let wide = tile::panel::<S>() * S::LANES;
        let at = page * PAGE % SEGMENT;
        for group in 0..groups {
            let first = group * GROUP;
            let product = Product {
                // SAFETY: `row` is inside q, and `first` inside a head (asserted).
                a: unsafe { self.q.as_ptr().add(row * lda + first) },
                lda,
                // SAFETY: the codes of dimension `first` are inside the block (asserted).
                b: unsafe { block.codes.as_ptr().add(first / T::ROWS * PAGE) },
                ldb: PAGE,
                panel_stride: wide,
                c: self.line.as_mut_ptr(),
                ldc: LINE,
                rows,
                vectors: PAGE / S::LANES,
                // Zeros of q and of the codes follow the last dimension.
                k: GROUP.min(stored - first),
                resume: false,
                ahead: ahead.wrapping_add(first / T::ROWS * PAGE * size_of::<T>()),
            };
            // SAFETY: `rows` rows of q (padded to more than `stored`) and of the lines were asserted; the block holds
            // `stored` rows of PAGE codes, and the packed page the same in panels.
            unsafe {
                if packed {
                    product.with(self.page.as_ptr().add(first * wide), wide, panel_stride).compute(s);
                } else {
                    product.compute(s);
                }
            }
            let scales = &block.scales[group * PAGE..][..PAGE];
            let biases = &block.biases[group * PAGE..][..PAGE];
            for n in (0..PAGE).step_by(S::LANES) {
                // SAFETY: a vector begins at each multiple of its length inside the page.
                let (scale, bias) =
                    unsafe { (s.load_f16_ptr(scales[n..].as_ptr()), s.load_f16_ptr(biases[n..].as_ptr())) };
                for r in 0..rows {
                    let sum = s.splat(self.sums[(row + r) * groups + group]);
                    let to = &mut self.scores[(row + r) * SCORES + at + n..][..S::LANES];
                    let before = if group == 0 { s.mul(sum, bias) } else { s.fma(sum, bias, s.load(to)) };
                    s.store(to, s.fma(s.load(&self.line[r * LINE + n..]), scale, before));
                }
            }
        }
    }

    /// Adds the values of page `page`, weighted, to `acc`, and their biases to `biases`.
    #[inline(always)]
    pub(super) fn weigh_codes<S: Simd, T: Operand + Code>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        place: &RunPlace<'_>,
        page: usize,
        block: Codes<'_, T>,
        ahead: *const u8,
    ) {
        let (v_dim, ldc) = (call.v_dim, padded(call.v_dim));
        let (width, groups) = (v_dim.next_multiple_of(T::ROWS), v_dim.div_ceil(GROUP));
        let rows = place.count * call.group;
        assert!(block.codes.len() == PAGE / T::ROWS * width);
        assert!(block.scales.len() == groups * PAGE && block.biases.len() == groups * PAGE);
        assert!(rows * ldc <= self.acc.len() && rows * LINE <= self.line.len());
        let wide = tile::panel::<S>() * S::LANES;
        // A head of partial vectors is read from scratch, where its rows are padded.
        let packed = rows >= PACK_ROWS || !v_dim.is_multiple_of(S::LANES);
        let panel_stride = if packed { pack(s, block.codes, PAGE, [v_dim, width], self.page) } else { wide };
        for group in 0..groups {
            self.weights(
                s,
                call,
                place,
                page,
                [&block.scales[group * PAGE..], &block.biases[group * PAGE..]],
                group,
            );
            let first = group * GROUP;
            let product = Product {
                a: self.line.as_ptr(),
                lda: LINE,
                // SAFETY: column `first` is inside the block (asserted).
                b: unsafe { block.codes.as_ptr().add(first) },
                ldb: width,
                panel_stride,
                // SAFETY: `first` is inside a row of `acc` (asserted).
                c: unsafe { self.acc.as_mut_ptr().add(first) },
                ldc,
                rows,
                vectors: GROUP.min(v_dim - first).div_ceil(S::LANES),
                k: PAGE,
                resume: true,
                ahead: ahead.wrapping_add(first * size_of::<T>()),
            };
            // A group is a part of a panel, or whole panels.
            let column = first / wide * panel_stride + first % wide;
            // SAFETY: `rows` rows of the lines and of `acc` were asserted; the block holds PAGE rows of `width`, of which a
            // group's vectors are whole where they are not packed, and the packed page the same in panels.
            unsafe {
                if packed {
                    product.with(self.page.as_ptr().add(column), wide, panel_stride).compute(s);
                } else {
                    product.compute(s);
                }
            }
        }
    }

    /// The rows' weights of a page times the scales of group `group`, and the sums of those times its biases.
    #[inline(always)]
    fn weights<S: Simd>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        place: &RunPlace<'_>,
        page: usize,
        [scales, biases]: [&[f16]; 2],
        group: usize,
    ) {
        let keys = page * PAGE..(page + 1) * PAGE;
        let (at, groups) = (keys.start % SEGMENT, call.v_dim.div_ceil(GROUP));
        assert!(scales.len() >= PAGE && biases.len() >= PAGE);
        for n in (0..PAGE).step_by(S::LANES) {
            // SAFETY: a vector begins at each multiple of its length inside the page.
            let (scale, bias) =
                unsafe { (s.load_f16_ptr(scales[n..].as_ptr()), s.load_f16_ptr(biases[n..].as_ptr())) };
            for position in 0..place.count {
                let seen = place.clip(call, position, &keys);
                let (lo, hi) = (seen.start - keys.start, seen.end - keys.start);
                let whole = lo <= n && n + S::LANES <= hi;
                for row in position * call.group..(position + 1) * call.group {
                    let mut weight = s.load(&self.scores[row * SCORES + at + n..]);
                    let (mut scale, mut bias) = (scale, bias);
                    if !whole {
                        let lane = s.add(s.load(&LANE), s.splat(n as f32));
                        let hide = |v| {
                            let v = s.select_lt(lane, s.splat(lo as f32), s.zero(), v);
                            s.select_lt(lane, s.splat(hi as f32), v, s.zero())
                        };
                        (weight, scale, bias) = (hide(weight), hide(scale), hide(bias));
                    }
                    s.store(&mut self.line[row * LINE + n..], s.mul(weight, scale));
                    let sums = &mut self.biases[(row * groups + group) * BIASES..][..BIASES];
                    let sum = s.fma(weight, bias, s.load(sums));
                    s.store(sums, sum);
                }
            }
        }
    }

    /// Adds the sums of the biases to the segment's `acc`.
    #[inline(always)]
    pub(super) fn add_biases<S: Simd>(&mut self, s: S, call: &AttentionCall<'_>, rows: usize) {
        let (ld, groups) = (padded(call.v_dim), call.v_dim.div_ceil(GROUP));
        let heads = self.acc.chunks_exact_mut(ld).zip(self.biases.chunks_exact(groups * BIASES));
        for (acc, biases) in heads.take(rows) {
            for (acc, biases) in acc.chunks_mut(GROUP).zip(biases.chunks_exact(BIASES)) {
                let sum = s.splat(s.reduce_add(s.load(biases)));
                for acc in acc.chunks_exact_mut(S::LANES) {
                    // Zero has one sign, whatever hidden keys were added to the chain.
                    let v = s.add(s.add(s.load(acc), sum), s.zero());
                    s.store(acc, v);
                }
            }
        }
    }
}
