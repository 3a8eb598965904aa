//! What ranks say to each other, by MLX's own distributed layer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mlx_rs::{Array, Stream};

use super::MlxBackend;
use super::array::{MlxTensor, values};
use super::dims;
use crate::backend::ranks::Rank;
use crate::error::{Error, Result};

/// How long the others may take to be there; those that listen wait without an end.
const PATIENCE: Duration = Duration::from_secs(120);

/// All ranks. MLX keeps it for as long as the process lives.
pub(super) struct Group {
    group: mlx_sys::mlx_distributed_group,
    /// Of the CPU, which has the sockets: what is said is said in the order in which the stream is given it.
    stream: Stream,
    rank: Rank,
}

impl Group {
    /// Waits for all ranks.
    fn join() -> Result<Self> {
        /// MLX has one ring in a process, which it never closes: what was said in it before would be heard by who comes later.
        static JOINED: AtomicBool = AtomicBool::new(false);
        let refuse = |reason: String| Error::Backend { backend: "mlx", reason };
        if JOINED.swap(true, Ordering::Relaxed) {
            return Err(refuse("a process computes one model with others, once".to_owned()));
        }
        let started = Instant::now();
        let mut joined = Self::try_join();
        // MLX gives up after a quarter or half of a minute.
        while joined.is_none() && started.elapsed() < PATIENCE {
            tracing::warn!("the other ranks are not there yet");
            joined = Self::try_join();
        }
        joined.ok_or_else(|| {
            let what = "the ranks do not find each other: an address of the host file is taken, or nobody answers there";
            refuse(what.to_owned())
        })?
    }

    /// The group, where MLX finds the other ranks.
    fn try_join() -> Option<Result<Self>> {
        // SAFETY: the handle is made by the first call, written by the second, and freed here or by its owner; the name is NUL-terminated.
        let (group, status) = unsafe {
            let mut group = mlx_sys::mlx_distributed_group_new();
            let status = mlx_sys::mlx_distributed_init(&mut group, true, c"ring".as_ptr());
            (group, status)
        };
        let mut group = Self { group, stream: Stream::cpu(), rank: Rank::ALONE };
        if status != 0 {
            return None;
        }
        // SAFETY: the handle is a group's.
        let (index, of) = unsafe {
            (
                mlx_sys::mlx_distributed_group_rank(group.group),
                mlx_sys::mlx_distributed_group_size(group.group),
            )
        };
        let (index, of) = (usize::try_from(index).unwrap_or(0), usize::try_from(of).unwrap_or(0));
        Some(Rank::new(index, of).map(|rank| {
            group.rank = rank;
            group
        }))
    }

    /// The sum of what all ranks have, in its type, lazy.
    fn sum(&self, x: &Array) -> Result<Array> {
        // SAFETY: the array, the group and the stream are borrowed for the call; `sum` is written by it alone, and owned from here on.
        let (sum, status) = unsafe {
            let mut sum = mlx_sys::mlx_array_new();
            let status =
                mlx_sys::mlx_distributed_all_sum(&mut sum, x.as_ptr(), self.group, self.stream.as_ptr());
            (Array::from_ptr(sum), status)
        };
        let what = || format!("MLX's all_sum of {:?} says {status}", x.shape());
        if status == 0 { Ok(sum) } else { Err(Error::Op { op: "all_sum", backend: "mlx", reason: what() }) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: nobody else frees it; MLX keeps what it stands for.
        unsafe { mlx_sys::mlx_distributed_group_free(self.group) };
    }
}

impl MlxBackend {
    /// Joins the other ranks, once; waits until all are there.
    pub(in crate::backend) fn join(&self) -> Result<Rank> {
        if let Some(group) = self.group.get() {
            return Ok(group.rank);
        }
        let group = Group::join()?;
        Ok(self.group.get_or_init(|| group).rank)
    }

    /// Which rank it is.
    pub(in crate::backend) fn rank(&self) -> Rank {
        self.group.get().map_or(Rank::ALONE, |group| group.rank)
    }

    fn ranks(&self) -> Result<&Group> {
        let alone =
            || Error::Op { op: "all_sum", backend: "mlx", reason: "there are no other ranks".to_owned() };
        self.group.get().ok_or_else(alone)
    }

    /// The sum of what all ranks have for `x`, lazy.
    pub(super) fn all_sum(&self, x: &MlxTensor) -> Result<MlxTensor> {
        let sum = self.ranks()?.sum(&*x.to_rows(&self.graph)?)?;
        Ok(MlxTensor::rows(sum, x.shape()))
    }

    /// The sums of what all ranks have for each of `words`, which are as many everywhere: what the first one says, where the others have
    /// zeros. It is evaluated.
    pub(in crate::backend) fn sum_words(&self, words: &[u32]) -> Result<Vec<u32>> {
        let words = Array::from_slice(words, &dims::of(&[words.len()])?);
        values(&self.ranks()?.sum(&words)?)
    }
}
