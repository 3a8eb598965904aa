//! A segment of keys for a block of query rows: scores, softmax, weighted values, in a worker's scratch.

use std::ops::Range;

use super::tile::{self, Product, ROWS, pack, softmax};
use super::{Call, PACK_ROWS, Place, SCORES, SEGMENT, padded};
use crate::backend::cpu::isa::{Element, Simd};
use crate::backend::kv::{Block, PAGE};

/// Where a block begins, for prefetching.
#[inline(always)]
fn address(block: Block<'_>) -> *const u8 {
    match block {
        Block::F32(block) => block.as_ptr().cast(),
        Block::F16(block) => block.as_ptr().cast(),
        Block::BF16(block) => block.as_ptr().cast(),
    }
}

/// The parts of a worker's scratch, for a block of `rows` query rows: a row is a query head of a position, heads of a
/// position side by side.
pub(super) struct Work<'a> {
    /// `[rows, head_dim]`.
    q: &'a mut [f32],
    /// `[rows, SCORES]`.
    scores: &'a mut [f32],
    /// The segment's weighted values, `[rows, padded]`.
    pub(super) acc: &'a mut [f32],
    /// The segment's largest scores and sums, `[rows]` each.
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    /// The same of all segments so far.
    pub(super) acc_all: &'a mut [f32],
    pub(super) max_all: &'a mut [f32],
    pub(super) sum_all: &'a mut [f32],
    /// A page of one head, widened.
    page: &'a mut [f32],
}

impl<'a> Work<'a> {
    /// Elements of scratch for a block of `rows` rows.
    pub(super) fn len(rows: usize, head_dim: usize) -> usize {
        let line = rows.next_multiple_of(16);
        rows * (padded(head_dim) * 3 + SCORES) + 4 * line + head_dim.next_multiple_of(64) * PAGE
    }

    #[inline(always)]
    pub(super) fn new(scratch: &'a mut [f32], rows: usize, head_dim: usize) -> Self {
        let line = rows.next_multiple_of(16);
        let (acc, scratch) = scratch.split_at_mut(rows * padded(head_dim));
        let (acc_all, scratch) = scratch.split_at_mut(rows * padded(head_dim));
        let (q, scratch) = scratch.split_at_mut(rows * padded(head_dim));
        let (scores, scratch) = scratch.split_at_mut(rows * SCORES);
        let (max, scratch) = scratch.split_at_mut(line);
        let (sum, scratch) = scratch.split_at_mut(line);
        let (max_all, scratch) = scratch.split_at_mut(line);
        let (sum_all, page) = scratch.split_at_mut(line);
        Self { q, scores, acc, max, sum, acc_all, max_all, sum_all, page }
    }

    /// Copies the block's queries in.
    #[inline(always)]
    pub(super) fn load_queries(&mut self, call: &Call<'_>, place: &Place<'_>) {
        let len = call.group * call.head_dim;
        for (position, to) in self.q.chunks_exact_mut(len).take(place.count).enumerate() {
            let at = place.offset(call, position);
            to.copy_from_slice(&call.args.q[at..at + len]);
        }
    }

    /// Computes `max`, `sum` and `acc` of segment `segment` for every row that sees a key of it.
    #[inline(always)]
    pub(super) fn segment<S: Simd>(&mut self, s: S, call: &Call<'_>, place: &Place<'_>, segment: usize) {
        let keys = segment * SEGMENT..(segment + 1) * SEGMENT;
        let seen = place.union(call, &keys);
        if seen.is_empty() {
            return;
        }
        let pages = seen.start / PAGE..seen.end.div_ceil(PAGE);
        let (kv, head) = (place.run.kv, place.head);
        for page in pages.clone() {
            // The next page's keys, or the values once the keys end.
            let next =
                if page + 1 < pages.end { kv.keys(page + 1, head) } else { kv.values(pages.start, head) };
            let next = address(next);
            match kv.keys(page, head) {
                Block::F32(block) => self.score_page(s, call, place, page, block, next),
                Block::F16(block) => self.score_page(s, call, place, page, block, next),
                Block::BF16(block) => self.score_page(s, call, place, page, block, next),
            }
        }
        for position in 0..place.count {
            let seen = place.clip(call, position, &keys);
            if seen.is_empty() {
                continue;
            }
            for row in position * call.group..(position + 1) * call.group {
                let scores = &mut self.scores[row * SCORES..row * SCORES + SEGMENT];
                let (lo, hi) = (seen.start - keys.start, seen.end - keys.start);
                (self.max[row], self.sum[row]) =
                    softmax(s, scores, lo, hi, call.args.scale, call.args.soft_cap);
            }
        }
        self.acc.fill(0.0);
        for page in pages.clone() {
            // The next page's values, or the keys of the next segment.
            let next = if page + 1 < pages.end {
                kv.values(page + 1, head)
            } else {
                kv.keys(pages.end.min(kv.len().div_ceil(PAGE) - 1), head)
            };
            let next = address(next);
            match kv.values(page, head) {
                Block::F32(block) => self.weigh_page(s, call, place, page, block, next),
                Block::F16(block) => self.weigh_page(s, call, place, page, block, next),
                Block::BF16(block) => self.weigh_page(s, call, place, page, block, next),
            }
        }
    }

    /// `q · k` for the keys of a page and the rows that see any of them; `block` is `[head_dim, PAGE]`.
    #[inline(always)]
    fn score_page<S: Simd, T: Element>(
        &mut self,
        s: S,
        call: &Call<'_>,
        place: &Place<'_>,
        page: usize,
        block: &[T],
        ahead: *const u8,
    ) {
        let keys = page * PAGE..(page + 1) * PAGE;
        let sees = |position: &usize| !place.clip(call, *position, &keys).is_empty();
        let (Some(first), Some(last)) = ((0..place.count).find(sees), (0..place.count).rfind(sees)) else {
            return;
        };
        let (row, rows) = (first * call.group, (last + 1 - first) * call.group);
        let head_dim = call.head_dim;
        assert!(block.len() == head_dim * PAGE);
        assert!((row + rows) * head_dim <= self.q.len() && (row + rows) * SCORES <= self.scores.len());
        let packed = rows >= PACK_ROWS;
        let panel_stride = if packed { pack(s, block, head_dim, PAGE, self.page) } else { 0 };
        let wide = tile::panel::<S>() * S::LANES;
        let product = Product {
            // SAFETY: `row` is inside q (asserted).
            a: unsafe { self.q.as_ptr().add(row * head_dim) },
            lda: head_dim,
            b: block.as_ptr(),
            ldb: PAGE,
            panel_stride: wide,
            // SAFETY: `row` is inside the scores (asserted), and a page inside its segment.
            c: unsafe { self.scores.as_mut_ptr().add(row * SCORES + keys.start % SEGMENT) },
            ldc: SCORES,
            rows,
            vectors: PAGE / S::LANES,
            k: head_dim,
            resume: false,
            ahead,
        };
        // SAFETY: `rows` rows of q and of the scores were asserted; the block holds head_dim rows of PAGE, and the
        // packed page the same in panels.
        unsafe {
            if packed {
                product.with(self.page.as_ptr(), wide, panel_stride).compute(s);
            } else {
                product.compute(s);
            }
        }
    }

    /// Adds the page's values, weighted, to `acc`; `block` is `[PAGE, head_dim]`.
    #[inline(always)]
    fn weigh_page<S: Simd, T: Element>(
        &mut self,
        s: S,
        call: &Call<'_>,
        place: &Place<'_>,
        page: usize,
        block: &[T],
        ahead: *const u8,
    ) {
        let head_dim = call.head_dim;
        assert!(block.len() == head_dim * PAGE);
        let rows = place.count * call.group;
        // A head of partial vectors is read from scratch, where its rows are padded.
        if rows >= PACK_ROWS || !head_dim.is_multiple_of(S::LANES) {
            let stride = pack(s, block, PAGE, head_dim, self.page);
            let from = self.page.as_ptr();
            self.weigh(s, call, place, page, from, tile::panel::<S>() * S::LANES, stride, from.cast());
        } else {
            let wide = tile::panel::<S>() * S::LANES;
            self.weigh(s, call, place, page, block.as_ptr(), head_dim, wide, ahead);
        }
    }

    /// [`Self::weigh_page`] for values at `b`, `[PAGE, head_dim]` in panels of whole vectors.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn weigh<S: Simd, T: Element>(
        &mut self,
        s: S,
        call: &Call<'_>,
        place: &Place<'_>,
        page: usize,
        b: *const T,
        ldb: usize,
        panel_stride: usize,
        ahead: *const u8,
    ) {
        let keys = page * PAGE..(page + 1) * PAGE;
        let (group, ldc) = (call.group, padded(call.head_dim));
        let all = place.count * group;
        assert!(all * SCORES <= self.scores.len() && all * ldc <= self.acc.len());
        let (scores, acc) = (self.scores.as_ptr(), self.acc.as_mut_ptr());
        let add = |row: usize, rows: usize, part: Range<usize>| {
            if part.is_empty() {
                return;
            }
            debug_assert!(row + rows <= all && keys.start <= part.start && part.end <= keys.end);
            // SAFETY: rows row..row + rows are inside the scores and acc (asserted above for all of them); `part` is
            // inside the page, whose PAGE rows lie at b.
            unsafe {
                Product {
                    a: scores.add(row * SCORES + part.start % SEGMENT),
                    lda: SCORES,
                    b: b.add((part.start - keys.start) * ldb),
                    ldb,
                    panel_stride,
                    c: acc.add(row * ldc),
                    ldc,
                    rows,
                    vectors: call.head_dim.div_ceil(S::LANES),
                    k: part.len(),
                    resume: true,
                    ahead: ahead.wrapping_add((part.start - keys.start) * ldb * size_of::<T>()),
                }
                .compute(s);
            }
        };
        let seen = |row: usize| place.clip(call, row / group, &keys);
        let mut row = 0;
        while row < all {
            // Rows that see the same keys share tiles.
            let part = seen(row);
            let mut end = row + group;
            while end < all && seen(end) == part {
                end += group;
            }
            if end - row >= 4 || end == all {
                add(row, end - row, part);
                row = end;
                continue;
            }
            // Otherwise a tile's rows share the keys that all of them see; those before and after go row by row.
            let end = (row / group + ROWS.div_ceil(group)).min(place.count) * group;
            let (mut lo, mut hi) = (keys.start, keys.end);
            for row in (row..end).step_by(group) {
                let part = seen(row);
                (lo, hi) = (lo.max(part.start), hi.min(part.end));
            }
            let common = lo..hi.max(lo);
            for row in (row..end).step_by(group) {
                let part = seen(row);
                add(row, group, part.start..part.end.min(common.start));
            }
            add(row, end - row, common.clone());
            for row in (row..end).step_by(group) {
                let part = seen(row);
                add(row, group, part.start.max(common.end)..part.end);
            }
            row = end;
        }
    }
}
