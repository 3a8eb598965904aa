//! Rows over the machine's cores, for work at load: the kernels have a pool of their own.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::refusals::{self, Site};

/// Rows that are worth a thread: at the widths of models, tens of thousands of elements.
const LEAST: usize = 64;

/// Calls `fill` with ranges that cover `rows`, and the parts of `outputs` that belong to them; an output is a buffer and the
/// elements of one of its rows.
///
/// # Panics
/// Where an output has not `rows` rows.
pub(crate) fn for_rows<T: Send, const N: usize>(
    rows: usize,
    outputs: [(&mut [T], usize); N],
    fill: impl Fn(Range<usize>, [&mut [T]; N]) + Sync,
) {
    for (output, width) in &outputs {
        assert_eq!(output.len(), rows * width, "rows of an output");
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let each = rows.div_ceil(cores.min(rows.div_ceil(LEAST)).max(1));
    std::thread::scope(|scope| {
        let fill = &fill;
        let mut rest = outputs;
        let mut first = 0;
        while first < rows {
            let next = (first + each).min(rows);
            let parts = rest.each_mut().map(|(output, width)| {
                let (part, left) = std::mem::take(output).split_at_mut((next - first) * *width);
                *output = left;
                part
            });
            let at = first..next;
            if next == rows {
                fill(at, parts);
            } else {
                // Where there is no thread to be had, this one does its part.
                let (job, range) = (Arc::new(Mutex::new(Some(parts))), at.clone());
                let theirs = Arc::clone(&job);
                let work =
                    move || theirs.lock().take().into_iter().for_each(|parts| fill(range.clone(), parts));
                let thread = std::thread::Builder::new();
                let started = refusals::io(Site::Thread).and_then(|()| thread.spawn_scoped(scope, work));
                if started.is_err()
                    && let Some(parts) = job.lock().take()
                {
                    fill(at, parts);
                }
            }
            first = next;
        }
    });
}
