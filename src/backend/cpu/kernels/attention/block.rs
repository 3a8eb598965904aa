//! A segment of keys for a block of query rows: scores, softmax, weighted values, in a worker's scratch.

use std::ops::Range;

use super::tile::{self, Operand, Product, ROWS, pack, softmax, widen};
use super::{AttentionCall, PACK_ROWS, RunPlace, SCORES, SEGMENT, padded};
use crate::backend::cpu::isa::Simd;
use crate::backend::kv::{Block, GROUP, KvShape, PAGE};

/// Where a block begins, for prefetching.
#[inline(always)]
fn address(block: Block<'_>) -> *const u8 {
    match block {
        Block::F32(block) => block.as_ptr().cast(),
        Block::F16(block) => block.as_ptr().cast(),
        Block::BF16(block) => block.as_ptr().cast(),
        Block::Q8(block) => block.codes.as_ptr(),
        Block::Q4(block) => block.codes.as_ptr().cast(),
    }
}

/// Elements between rows of a page's sums or weights: not a power of two, as [`SCORES`].
pub(super) const LINE: usize = PAGE + 16;
/// Partial sums of a group's biases: the lanes of the widest vector.
pub(super) const BIASES: usize = 16;

/// The parts of a worker's scratch, for a block of `rows` query rows: a row is a query head of a position, heads of a
/// position side by side.
pub(super) struct BlockWork<'a> {
    /// `[rows, padded k_dim]`, zeros behind a head; of latent caches turned, `[k_dim, turned(rows)]`.
    pub(super) q: &'a mut [f32],
    /// `[rows, SCORES]`.
    pub(super) scores: &'a mut [f32],
    /// The segment's weighted values, `[rows, padded v_dim]`.
    pub(super) acc: &'a mut [f32],
    /// The segment's largest scores and sums, `[rows]` each.
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    /// The same of all segments so far.
    pub(super) acc_all: &'a mut [f32],
    pub(super) max_all: &'a mut [f32],
    pub(super) sum_all: &'a mut [f32],
    /// [`tile::factors`] of both, three times `[rows]`.
    factors: &'a mut [f32],
    /// A page of one head, widened.
    pub(super) page: &'a mut [f32],
    /// Of quantized caches: the queries' sums `[rows, groups]`, a page's sums of codes or its weights `[rows, LINE]`, and the
    /// sums of biases `[rows, groups, BIASES]`.
    pub(super) sums: &'a mut [f32],
    pub(super) line: &'a mut [f32],
    pub(super) biases: &'a mut [f32],
    /// Of latent caches: a page's scores, turned, `[PAGE, turned(rows)]`.
    turned: &'a mut [f32],
}

/// Columns of what is turned: a vector from any of `rows` on is inside them.
fn turned(rows: usize) -> usize {
    rows.next_multiple_of(16) + 16
}

impl<'a> BlockWork<'a> {
    /// Elements of scratch for a block of `rows` rows over caches of `shape`.
    pub(super) fn len(rows: usize, shape: &KvShape) -> usize {
        let line = rows.next_multiple_of(16);
        let [sums, lines, biases] = Self::of_codes(rows, shape);
        let [q, scores] = Self::of_keys(rows, shape);
        q + scores
            + rows * (2 * padded(shape.v_dim) + SCORES)
            + 7 * line
            + shape.k_dim.max(shape.v_dim).next_multiple_of(64) * PAGE
            + sums
            + lines
            + biases
    }

    /// Elements of the queries, and of a page's turned scores.
    fn of_keys(rows: usize, shape: &KvShape) -> [usize; 2] {
        match shape.latent {
            true => [shape.k_dim * turned(rows), PAGE * turned(rows)],
            false => [rows * padded(shape.k_dim), 0],
        }
    }

    /// Elements of what only quantized caches need.
    fn of_codes(rows: usize, shape: &KvShape) -> [usize; 3] {
        let [k_groups, v_groups] = shape.dims().map(|dim| dim.div_ceil(GROUP));
        match shape.kind.bits() {
            Some(_) => [rows * k_groups, rows * LINE, rows * v_groups * BIASES],
            None => [0; 3],
        }
    }

    #[inline(always)]
    pub(super) fn new(scratch: &'a mut [f32], rows: usize, shape: &KvShape) -> Self {
        let (line, acc_len) = (rows.next_multiple_of(16), rows * padded(shape.v_dim));
        let [q_len, turned_len] = Self::of_keys(rows, shape);
        let (turned, scratch) = scratch.split_at_mut(turned_len);
        let [sums, lines, biases] = Self::of_codes(rows, shape);
        let (sums, scratch) = scratch.split_at_mut(sums);
        let (lines, scratch) = scratch.split_at_mut(lines);
        let (biases, scratch) = scratch.split_at_mut(biases);
        let (acc, scratch) = scratch.split_at_mut(acc_len);
        let (acc_all, scratch) = scratch.split_at_mut(acc_len);
        let (q, scratch) = scratch.split_at_mut(q_len);
        let (scores, scratch) = scratch.split_at_mut(rows * SCORES);
        let (max, scratch) = scratch.split_at_mut(line);
        let (sum, scratch) = scratch.split_at_mut(line);
        let (max_all, scratch) = scratch.split_at_mut(line);
        let (sum_all, scratch) = scratch.split_at_mut(line);
        let (factors, page) = scratch.split_at_mut(3 * line);
        Self {
            q,
            scores,
            acc,
            max,
            sum,
            acc_all,
            max_all,
            sum_all,
            factors,
            page,
            sums,
            line: lines,
            biases,
            turned,
        }
    }

    /// Copies the block's queries in.
    #[inline(always)]
    pub(super) fn load_queries<S: Simd>(&mut self, s: S, call: &AttentionCall<'_>, place: &RunPlace<'_>) {
        let (group, k_dim) = (call.group, call.k_dim);
        if call.latent {
            let columns = turned(place.count * group);
            for row in 0..place.count * group {
                let at = (place.heads_before(call, row / group) + row % group) * k_dim;
                for (d, &x) in call.args.q[at..at + k_dim].iter().enumerate() {
                    self.q[d * columns + row] = x;
                }
            }
            // Zeros where there is no row: what they come to is never read.
            for line in self.q.chunks_exact_mut(columns) {
                line[place.count * group..].fill(0.0);
            }
            return;
        }
        for (row, to) in self.q.chunks_exact_mut(padded(k_dim)).take(place.count * group).enumerate() {
            let at = (place.heads_before(call, row / group) + row % group) * k_dim;
            let (head, rest) = to.split_at_mut(k_dim);
            head.copy_from_slice(&call.args.q[at..at + k_dim]);
            rest.fill(0.0);
        }
        if call.quantized {
            self.sum_queries(s, call, place);
        }
    }

    /// Computes `max`, `sum` and `acc` of segment `segment` for every row that sees a key of it.
    #[inline(always)]
    pub(super) fn segment<S: Simd>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        place: &RunPlace<'_>,
        segment: usize,
    ) {
        let keys = segment * SEGMENT..(segment + 1) * SEGMENT;
        let seen = place.union(call, &keys);
        if seen.is_empty() {
            return;
        }
        let pages = seen.start / PAGE..seen.end.div_ceil(PAGE);
        let (kv, head) = (place.run.kv, place.head);
        let keys_of = |page| if call.latent { kv.values(page, head) } else { kv.keys(page, head) };
        for page in pages.clone() {
            // The next page's keys, or the values once the keys end.
            let next = if page + 1 < pages.end { keys_of(page + 1) } else { kv.values(pages.start, head) };
            let next = address(next);
            let Some(rows) = place.rows_that_see(call, &(page * PAGE..(page + 1) * PAGE)) else { continue };
            match keys_of(page) {
                Block::F32(block) if call.latent => self.score_latents(s, call, page, block, rows, next),
                Block::F16(block) if call.latent => self.score_latents(s, call, page, block, rows, next),
                Block::BF16(block) if call.latent => self.score_latents(s, call, page, block, rows, next),
                Block::F32(block) => self.score_page(s, call, page, block, rows, next),
                Block::F16(block) => self.score_page(s, call, page, block, rows, next),
                Block::BF16(block) => self.score_page(s, call, page, block, rows, next),
                Block::Q8(block) => self.score_codes(s, call, page, block, rows, next),
                Block::Q4(block) => self.score_codes(s, call, page, block, rows, next),
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
                if let Some(bias) = call.args.bias {
                    let head = [position, row % call.group];
                    place.add_bias(call, bias, head, seen.clone(), &mut scores[lo..hi]);
                }
                (self.max[row], self.sum[row]) =
                    softmax(s, scores, lo, hi, call.args.scale, call.args.soft_cap);
            }
        }
        self.acc.fill(0.0);
        self.biases.fill(0.0);
        for page in pages.clone() {
            // The next page's values, or the keys of the next segment.
            let next = if page + 1 < pages.end {
                kv.values(page + 1, head)
            } else {
                keys_of(pages.end.min(kv.len().div_ceil(PAGE) - 1))
            };
            let next = address(next);
            match kv.values(page, head) {
                Block::F32(block) => self.weigh_page(s, call, place, page, block, next),
                Block::F16(block) => self.weigh_page(s, call, place, page, block, next),
                Block::BF16(block) => self.weigh_page(s, call, place, page, block, next),
                Block::Q8(block) => self.weigh_codes(s, call, place, page, block, next),
                Block::Q4(block) => self.weigh_codes(s, call, place, page, block, next),
            }
        }
        if call.quantized {
            self.add_biases(s, call, place.count * call.group);
        }
    }

    /// Takes segment `segment` into what all before it came to, for the rows that see a key of it.
    #[inline(always)]
    pub(super) fn merge<S: Simd>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        place: &RunPlace<'_>,
        segment: usize,
    ) {
        let (ld, line) = (padded(call.v_dim), self.max.len());
        // For all rows at once, because an exponential costs as much as a row's accumulator.
        for row in (0..place.count * call.group).step_by(S::LANES) {
            let both = tile::factors(s, s.load(&self.max_all[row..]), s.load(&self.max[row..]));
            for (i, v) in both.into_iter().enumerate() {
                s.store(&mut self.factors[i * line + row..], v);
            }
        }
        for position in 0..place.count {
            let visible = place.visible(call, position);
            let first = visible.start / SEGMENT;
            if visible.is_empty() || segment < first || segment * SEGMENT >= visible.end {
                continue;
            }
            for row in position * call.group..(position + 1) * call.group {
                let (acc, to) =
                    (&self.acc[row * ld..(row + 1) * ld], &mut self.acc_all[row * ld..(row + 1) * ld]);
                if segment == first {
                    (self.max_all[row], self.sum_all[row]) = (self.max[row], self.sum[row]);
                    to.copy_from_slice(acc);
                    continue;
                }
                let state = tile::State { max: &mut self.max_all[row], sum: &mut self.sum_all[row], acc: to };
                let factors = [0, 1, 2].map(|i| self.factors[i * line + row]);
                tile::merge(s, state, factors, self.sum[row], acc);
            }
        }
    }

    /// `q · k` for the keys of page `page` and rows `row..row + rows`, which see any of them; `block` is
    /// `[k_dim, PAGE]`.
    #[inline(always)]
    fn score_page<S: Simd, T: Operand>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        page: usize,
        block: &[T],
        [row, rows]: [usize; 2],
        ahead: *const u8,
    ) {
        let (k_dim, lda) = (call.k_dim, padded(call.k_dim));
        assert!(block.len() == k_dim * PAGE);
        assert!((row + rows) * lda <= self.q.len() && (row + rows) * SCORES <= self.scores.len());
        let packed = rows >= PACK_ROWS;
        let panel_stride = if packed { pack(s, block, k_dim, [PAGE, PAGE], self.page) } else { 0 };
        let wide = tile::panel::<S>() * S::LANES;
        let product = Product {
            // SAFETY: `row` is inside q (asserted).
            a: unsafe { self.q.as_ptr().add(row * lda) },
            lda,
            b: block.as_ptr(),
            ldb: PAGE,
            panel_stride: wide,
            // SAFETY: `row` is inside the scores (asserted), and a page inside its segment.
            c: unsafe { self.scores.as_mut_ptr().add(row * SCORES + page * PAGE % SEGMENT) },
            ldc: SCORES,
            rows,
            vectors: PAGE / S::LANES,
            k: k_dim,
            resume: false,
            ahead,
        };
        // SAFETY: `rows` rows of q and of the scores were asserted; the block holds k_dim rows of PAGE, and the
        // packed page the same in panels.
        unsafe {
            if packed {
                product.with(self.page.as_ptr(), wide, panel_stride).compute(s);
            } else {
                product.compute(s);
            }
        }
    }

    /// The same of latent vectors: `block` is `[PAGE, k_dim]`. Turned, it is the keys that are rows, and the queries columns, so
    /// that a lane is a query; the chain of each score is the same.
    #[inline(always)]
    fn score_latents<S: Simd, T: Operand>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        page: usize,
        block: &[T],
        [row, rows]: [usize; 2],
        ahead: *const u8,
    ) {
        let (k_dim, columns) = (call.k_dim, self.turned.len() / PAGE);
        assert!(block.len() == k_dim * PAGE && self.page.len() >= k_dim * PAGE);
        assert!(row + rows.next_multiple_of(S::LANES) <= columns && self.q.len() == k_dim * columns);
        assert!((row + rows) * SCORES <= self.scores.len());
        widen(s, block, &mut self.page[..k_dim * PAGE]);
        // SAFETY: the page was widened, PAGE rows of k_dim; `rows` columns from `row` on, in whole vectors, are inside the
        // queries and the turned scores (asserted).
        unsafe {
            Product {
                a: self.page.as_ptr(),
                lda: k_dim,
                b: self.q.as_ptr().add(row),
                ldb: columns,
                panel_stride: tile::panel::<S>() * S::LANES,
                c: self.turned.as_mut_ptr().add(row),
                ldc: columns,
                rows: PAGE,
                vectors: rows.div_ceil(S::LANES),
                k: k_dim,
                resume: false,
                ahead,
            }
            .compute(s);
        }
        let first = page * PAGE % SEGMENT;
        for row in row..row + rows {
            let to = &mut self.scores[row * SCORES + first..][..PAGE];
            for (to, line) in to.iter_mut().zip(self.turned.chunks_exact(columns)) {
                *to = line[row];
            }
        }
    }

    /// Adds the page's values, weighted, to `acc`; `block` is `[PAGE, v_dim]`, or latent vectors `[PAGE, k_dim]`, which begin with
    /// them.
    #[inline(always)]
    fn weigh_page<S: Simd, T: Operand>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        place: &RunPlace<'_>,
        page: usize,
        block: &[T],
        ahead: *const u8,
    ) {
        let (v_dim, v_stride) = (call.v_dim, call.v_stride);
        assert!(v_dim <= v_stride && block.len() == v_stride * PAGE);
        let rows = place.count * call.group;
        // A head of partial vectors is read from scratch, where its rows are padded.
        if rows >= PACK_ROWS || !v_dim.is_multiple_of(S::LANES) {
            let stride = pack(s, block, PAGE, [v_dim, v_stride], self.page);
            let from = self.page.as_ptr();
            self.weigh(s, call, place, page, from, tile::panel::<S>() * S::LANES, stride, from.cast());
        } else {
            let wide = tile::panel::<S>() * S::LANES;
            self.weigh(s, call, place, page, block.as_ptr(), v_stride, wide, ahead);
        }
    }

    /// [`Self::weigh_page`] for values at `b`, `[PAGE, v_dim]` in panels of whole vectors.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn weigh<S: Simd, T: Operand>(
        &mut self,
        s: S,
        call: &AttentionCall<'_>,
        place: &RunPlace<'_>,
        page: usize,
        b: *const T,
        ldb: usize,
        panel_stride: usize,
        ahead: *const u8,
    ) {
        let keys = page * PAGE..(page + 1) * PAGE;
        let (group, ldc) = (call.group, padded(call.v_dim));
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
                    vectors: call.v_dim.div_ceil(S::LANES),
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
