//! Grouped-query attention over paged caches: softmax(scale · q kᵀ, soft-capped, masked) · v.
//!
//! Every query row visits its keys in segments of [`SEGMENT`] keys at absolute positions. In a segment: one chain of
//! `fma` over the head's dimensions for each score; the largest score; exponentials, and their sum in chains fixed by
//! the position; one chain of `fma` over the visible keys, in increasing order, for each output dimension. Segments are
//! merged from first to last, always, even where one thread visits them all. Which rows share a register tile, which
//! thread computes what, and whether segments are computed side by side changes no bit of any row.
//!
//! Keys that a row may not see are excluded exactly: their scores are replaced before anything reads them, and their
//! values are never multiplied, so that a stale slot may hold an infinity or a NaN.

mod block;
mod codes;
mod tile;

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::super::isa::{Isa, Kernel, Simd};
use super::super::pool::{Parts, Pool, Scratch};
use crate::alloc;
use crate::backend::kv::{HostKv, PAGE};
use crate::error::Result;
use block::BlockWork;
use tile::{ROWS, State, factors, merge};

/// Keys whose softmax is computed in one go: their scores for a block of queries (96 KiB) stay in L2, and a merge (two
/// exponentials and a pass over the head) comes once in 256 keys.
pub const SEGMENT: usize = 4 * PAGE;

/// Query rows that share a packed page: widening it costs them about 4% of the arithmetic.
const BLOCK_ROWS: usize = 96;

/// From this many rows on, a page is widened once into scratch; below, the register tiles widen what they load, twice
/// at most.
const PACK_ROWS: usize = 2 * ROWS + 1;

/// Runs of at most this many query rows per key/value head may be computed by segments: the partial results stay small.
const SPLIT_ROWS: usize = 32;

/// Tasks per thread below which the pool would wait for its last one.
const TASKS_PER_THREAD: usize = 4;

/// Elements between rows of scores: not a power of two, so that rows do not fall into the same cache sets.
const SCORES: usize = SEGMENT + 16;

/// A run of a step: its rows in the step's activations, and its sequence's cache of the layer, this step's keys
/// included.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRun<'a> {
    /// The first row.
    pub row: usize,
    /// Number of rows.
    pub len: usize,
    /// Keys and values.
    pub kv: &'a HostKv,
}

/// What attention computes.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Queries, `[T, H * k_dim]`; head `h` reads key/value head `h / (H / KH)`.
    pub q: &'a [f32],
    /// The runs of the step, all with caches of one shape.
    pub runs: &'a [AttentionRun<'a>],
    /// Key positions that each row may see, `[T]`; a row that sees none becomes zeros.
    pub visible: &'a [Range<usize>],
    /// Multiplies the scores.
    pub scale: f32,
    /// `cap · tanh(score / cap)` after the scale.
    pub soft_cap: Option<f32>,
    /// A score of each query head beside those of its keys, `[H]`, which has no value.
    pub sinks: Option<&'a [f32]>,
    /// What each query head adds to the scaled score of a key by how far it lies behind its query, `[H * (2 r + 1)]` from `-r` to
    /// `r`. None beside a cap.
    pub bias: Option<&'a [f32]>,
}

/// Working memory of [`attention`], kept between calls; it grows to the largest call.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    workers: Scratch,
    partials: Vec<f32>,
}

/// Elements of a head's accumulator: whole vectors of every instruction set.
const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// What a call computes, with the sizes that follow from its operands.
#[derive(Clone, Copy)]
struct AttentionCall<'a> {
    args: Attention<'a>,
    out: Parts<'a, f32>,
    k_dim: usize,
    v_dim: usize,
    /// Elements between the values of two keys.
    v_stride: usize,
    kv_heads: usize,
    /// Whether the values are a part of the keys.
    latent: bool,
    /// Whether the caches hold codes.
    quantized: bool,
    /// Query heads of a key/value head.
    group: usize,
    /// Positions of a query block.
    positions: usize,
}

/// Rows `first..first + count` of a run, for one key/value head.
#[derive(Clone, Copy)]
struct RunPlace<'a> {
    run: AttentionRun<'a>,
    head: usize,
    first: usize,
    count: usize,
}

/// Computes attention for all runs of a step, `out` being `[T, H * v_dim]`. Rows of no run are left as they are.
///
/// Scores and outputs are `f32`; the error against exact arithmetic on the cache's rounded values is that of `f32`
/// chains of `k_dim` and of the number of keys. An infinite score of a visible key makes its row NaN.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory), before anything is computed.
///
/// # Panics
/// Where lengths do not fit each other, or a row is to see keys that its cache does not hold.
pub fn attention(
    pool: &Pool,
    isa: Isa,
    args: Attention<'_>,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) -> Result<()> {
    let rows = args.visible.len();
    let Some(first) = args.runs.iter().find(|run| run.len > 0) else { return Ok(()) };
    let shape = *first.kv.shape();
    let [k_width, v_width] = shape.dims().map(|dim| shape.heads * dim);
    assert!(k_width > 0 && v_width > 0, "attention: a cache of shape {shape:?}");
    assert!(rows > 0 && args.q.len().is_multiple_of(rows * k_width), "attention: rows of q");
    let group = args.q.len() / rows / k_width;
    assert_eq!(rows * group * v_width, out.len(), "attention: q and out");
    let mut next = 0;
    for run in args.runs.iter().filter(|run| run.len > 0) {
        assert_eq!(*run.kv.shape(), shape, "attention: caches of one layer");
        assert!(run.row >= next && run.row + run.len <= rows, "attention: rows of a run");
        next = run.row + run.len;
        for visible in &args.visible[run.row..next] {
            assert!(
                visible.is_empty() || visible.end <= run.kv.len(),
                "attention: keys {visible:?} of a run"
            );
        }
    }
    let heads = group * shape.heads;
    assert!(args.sinks.is_none_or(|sinks| sinks.len() == heads), "attention: sinks of {heads} heads");
    if let Some(bias) = args.bias {
        let odd = bias.len().is_multiple_of(heads) && !(bias.len() / heads).is_multiple_of(2);
        assert!(odd && args.soft_cap.is_none(), "attention: a bias of {heads} heads");
    }
    let positions = (BLOCK_ROWS / group.max(1)).max(1);
    let call = AttentionCall {
        args,
        out: Parts::new(out),
        k_dim: shape.k_dim,
        v_dim: shape.v_dim,
        v_stride: shape.value_stride(),
        kv_heads: shape.heads,
        latent: shape.latent,
        quantized: shape.kind.bits().is_some(),
        group,
        positions,
    };
    if group == 0 {
        return Ok(());
    }
    let longest = args.runs.iter().map(|run| run.len).max().unwrap_or(0);
    let block_rows = positions.min(longest) * group;
    scratch.workers.reserve(pool, BlockWork::len(block_rows, &shape))?;

    let blocks = |run: &AttentionRun<'_>| run.len.div_ceil(positions);
    let tasks = args.runs.iter().map(blocks).sum::<usize>() * shape.heads;
    let segments = args.visible.iter().map(|visible| visible.end).max().unwrap_or(0).div_ceil(SEGMENT);
    let spread = pool.threads() > 1 && tasks < TASKS_PER_THREAD * pool.threads();
    if spread && segments > 1 && longest * group <= SPLIT_ROWS {
        return call.by_segment(pool, isa, segments, scratch);
    }
    let workers = &scratch.workers;
    pool.run_on(tasks, |worker, task| {
        let place = call.place(task);
        workers.with(worker, BlockWork::len(block_rows, &shape), |scratch| {
            isa.dispatch(Whole { call: &call, place, scratch });
        });
    });
    Ok(())
}

impl<'a> AttentionCall<'a> {
    /// The block that task `task` computes: blocks of a head follow each other, because they share its pages.
    fn place(&self, mut task: usize) -> RunPlace<'a> {
        for run in self.args.runs {
            let blocks = run.len.div_ceil(self.positions);
            if task < blocks * self.kv_heads {
                // The last block first: it sees the most keys.
                let first = (blocks - 1 - task % blocks) * self.positions;
                let count = self.positions.min(run.len - first);
                return RunPlace { run: *run, head: task / blocks, first, count };
            }
            task -= blocks * self.kv_heads;
        }
        unreachable!("attention: more tasks than blocks")
    }

    /// Elements of a partial result: the largest score, the sum, and the head.
    fn partial(&self) -> usize {
        2 + padded(self.v_dim)
    }

    /// One task for each block and segment, and then one for each block that merges its segments.
    fn by_segment(
        &self,
        pool: &Pool,
        isa: Isa,
        segments: usize,
        scratch: &mut AttentionScratch,
    ) -> Result<()> {
        let blocks = self.args.runs.iter().filter(|run| run.len > 0).count() * self.kv_heads;
        let rows = blocks * SPLIT_ROWS;
        let block = SPLIT_ROWS * segments * self.partial();
        let len = rows * segments * self.partial();
        alloc::replace(&mut scratch.partials, len, "a kernel's working memory")?;
        let partials = Parts::new(&mut scratch.partials);
        let workers = &scratch.workers;
        pool.run_on(blocks * segments, |worker, task| {
            let (index, segment) = (task / segments, task % segments);
            let place = self.place(index);
            let rows = place.count * self.group;
            let len = SPLIT_ROWS * self.partial();
            // SAFETY: the partial results of different blocks and segments do not overlap.
            let to = unsafe { partials.slice(index * block + segment * len, len) };
            workers.with(worker, BlockWork::len(rows, place.run.kv.shape()), |scratch| {
                isa.dispatch(SegmentPart { call: self, place, segment, scratch, to });
            });
        });
        pool.run(blocks, |index| {
            // SAFETY: the partial results of different blocks do not overlap, and the region before is over.
            let from = unsafe { partials.slice(index * block, block) };
            isa.dispatch(Join { call: self, place: self.place(index), from });
        });
        Ok(())
    }
}

impl RunPlace<'_> {
    /// What row `position` of the block may see.
    #[inline(always)]
    fn visible<'b>(&self, call: &AttentionCall<'b>, position: usize) -> &'b Range<usize> {
        &call.args.visible[self.run.row + self.first + position]
    }

    /// The part of `keys` that row `position` of the block may see; an empty one starts and ends at `keys.end`.
    #[inline(always)]
    fn clip(&self, call: &AttentionCall<'_>, position: usize, keys: &Range<usize>) -> Range<usize> {
        let visible = self.visible(call, position);
        let (lo, hi) = (visible.start.max(keys.start), visible.end.min(keys.end));
        if lo < hi { lo..hi } else { keys.end..keys.end }
    }

    /// The keys of `keys` that any row of the block may see.
    #[inline(always)]
    fn union(&self, call: &AttentionCall<'_>, keys: &Range<usize>) -> Range<usize> {
        let mut union = keys.end..keys.start;
        for position in 0..self.count {
            let seen = self.clip(call, position, keys);
            if !seen.is_empty() {
                union = union.start.min(seen.start)..union.end.max(seen.end);
            }
        }
        union
    }

    /// The first row that sees any of `keys`, and how many there are from it to the last: heads of positions.
    #[inline(always)]
    fn rows_that_see(&self, call: &AttentionCall<'_>, keys: &Range<usize>) -> Option<[usize; 2]> {
        let sees = |position: &usize| !self.clip(call, *position, keys).is_empty();
        let (first, last) = ((0..self.count).find(sees)?, (0..self.count).rfind(sees)?);
        Some([first * call.group, (last + 1 - first) * call.group])
    }

    /// Heads of `q`, and of `out`, before those of row `position` of the block.
    #[inline(always)]
    fn heads_before(&self, call: &AttentionCall<'_>, position: usize) -> usize {
        ((self.run.row + self.first + position) * call.kv_heads + self.head) * call.group
    }

    /// Adds what query head `g` of row `position` adds to the scores of `keys`, which are to be scaled.
    #[inline(always)]
    fn add_bias(
        &self,
        call: &AttentionCall<'_>,
        bias: &[f32],
        [position, g]: [usize; 2],
        keys: Range<usize>,
        scores: &mut [f32],
    ) {
        let span = bias.len() / (call.group * call.kv_heads);
        let of_head = &bias[(self.head * call.group + g) * span..][..span];
        let (query, reach) = (self.run.kv.len() - self.run.len + self.first + position, span / 2);
        let by = 1.0 / call.args.scale;
        for (key, score) in keys.zip(scores) {
            *score += by * of_head[(key + reach).saturating_sub(query).min(span - 1)];
        }
    }

    /// Writes query head `g` of row `position`: `acc / sum`, or zeros where the row saw nothing. Both are relative to `max`; a sink
    /// is a part of the sum.
    #[inline(always)]
    fn finish<S: Simd>(
        &self,
        s: S,
        call: &AttentionCall<'_>,
        position: usize,
        g: usize,
        [max, sum]: [f32; 2],
        acc: &[f32],
    ) {
        let at = (self.heads_before(call, position) + g) * call.v_dim;
        // SAFETY: this head of this row belongs to this block alone, and a block is one task.
        let out = unsafe { call.out.slice(at, call.v_dim) };
        if self.visible(call, position).is_empty() {
            out.fill(0.0);
            return;
        }
        let by = match call.args.sinks {
            None => 1.0 / sum,
            Some(sinks) => {
                let sink = sinks[self.head * call.group + g];
                // Relative to the larger of the two, so that neither exponential overflows.
                let joint = max.max(sink);
                let keys = (max - joint).exp();
                keys / (sum * keys + (sink - joint).exp())
            }
        };
        let by = s.splat(by);
        for (to, from) in out.chunks_mut(S::LANES).zip(acc.chunks(S::LANES)) {
            s.store_partial(to, s.mul(s.load_partial(&from[..to.len()]), by));
        }
    }
}

/// A block of query rows, all its segments.
struct Whole<'a, 'b> {
    call: &'a AttentionCall<'b>,
    place: RunPlace<'b>,
    scratch: &'a mut [f32],
}

impl Kernel for Whole<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, place, scratch } = self;
        let (rows, ld) = (place.count * call.group, padded(call.v_dim));
        let mut work = BlockWork::new(scratch, rows, place.run.kv.shape());
        work.load_queries(s, call, &place);
        let seen = place.union(call, &(0..place.run.kv.len()));
        if !seen.is_empty() {
            for segment in seen.start / SEGMENT..seen.end.div_ceil(SEGMENT) {
                work.segment(s, call, &place, segment);
                work.merge(s, call, &place, segment);
            }
        }
        for row in 0..rows {
            let acc = &work.acc_all[row * ld..(row + 1) * ld];
            let of = [work.max_all[row], work.sum_all[row]];
            place.finish(s, call, row / call.group, row % call.group, of, acc);
        }
    }
}

/// One segment of a block: a partial result for each row, `[rows, 2 + padded]`.
struct SegmentPart<'a, 'b> {
    call: &'a AttentionCall<'b>,
    place: RunPlace<'b>,
    segment: usize,
    scratch: &'a mut [f32],
    to: &'a mut [f32],
}

impl Kernel for SegmentPart<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, place, segment, scratch, to } = self;
        let (rows, ld) = (place.count * call.group, padded(call.v_dim));
        if place.union(call, &(segment * SEGMENT..(segment + 1) * SEGMENT)).is_empty() {
            return;
        }
        let mut work = BlockWork::new(scratch, rows, place.run.kv.shape());
        work.load_queries(s, call, &place);
        work.segment(s, call, &place, segment);
        for (row, to) in to.chunks_exact_mut(call.partial()).take(rows).enumerate() {
            (to[0], to[1]) = (work.max[row], work.sum[row]);
            to[2..].copy_from_slice(&work.acc[row * ld..(row + 1) * ld]);
        }
    }
}

/// Merges the partial results of a block's segments, first to last, in place of the first one that a row sees.
struct Join<'a, 'b> {
    call: &'a AttentionCall<'b>,
    place: RunPlace<'b>,
    from: &'a mut [f32],
}

impl Kernel for Join<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, place, from } = self;
        let stride = SPLIT_ROWS * call.partial();
        for row in 0..place.count * call.group {
            let visible = place.visible(call, row / call.group);
            if visible.is_empty() {
                place.finish(s, call, row / call.group, row % call.group, [0.0; 2], &[]);
                continue;
            }
            let (first, end) = (visible.start / SEGMENT, visible.end.div_ceil(SEGMENT));
            let at = |segment: usize| segment * stride + row * call.partial();
            let (state, rest) = from[at(first)..].split_at_mut(call.partial());
            let (head, acc) = state.split_at_mut(2);
            let (max, sum) = head.split_at_mut(1);
            for segment in first + 1..end {
                let part = &rest[at(segment) - at(first) - call.partial()..][..call.partial()];
                let mut both = [0.0; 3];
                for (to, v) in both.iter_mut().zip(factors(s, s.splat(max[0]), s.splat(part[0]))) {
                    s.store_partial(std::slice::from_mut(to), v);
                }
                let state = State { max: &mut max[0], sum: &mut sum[0], acc: &mut *acc };
                merge(s, state, both, part[1], &part[2..]);
            }
            place.finish(s, call, row / call.group, row % call.group, [max[0], sum[0]], acc);
        }
    }
}
