//! Requests that wait for a place or for memory: of the owners who have the fewest sequences in flight, the oldest comes next. One that
//! waits for memory is not overtaken by those that came later, or it might wait for ever.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::load::Gauges;
use super::request::Request;

/// What is known of the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// It waits for a place, or there is none.
    Untried,
    /// There was too little memory for it; it is the first.
    Blocked,
    /// Likewise, and some was given back since.
    Retry,
}

pub(super) struct Queue {
    /// The oldest first.
    requests: VecDeque<Request>,
    /// Those whose beginnings are looked for on disk, the oldest first: they join the others when that is over, which takes as
    /// long as the disk does. Of the first one an answer may be on its way.
    parked: VecDeque<Request>,
    head: Head,
    gauges: Arc<Gauges>,
}

impl Queue {
    pub fn new(gauges: Arc<Gauges>) -> Self {
        Self { requests: VecDeque::new(), parked: VecDeque::new(), head: Head::Untried, gauges }
    }

    /// Adds a request that waits for the disk.
    pub fn park(&mut self, request: Request) {
        self.parked.push_back(request);
    }

    /// The oldest request that waits for the disk.
    pub fn first_parked(&self) -> Option<&Request> {
        self.parked.front()
    }

    /// Has the oldest request that waits for the disk wait as the others do.
    pub fn unpark(&mut self) {
        self.requests.extend(self.parked.pop_front());
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Requests that wait for memory, for themselves or behind the oldest.
    pub fn waiting_for_memory(&self) -> usize {
        if self.head == Head::Untried { 0 } else { self.requests.len() }
    }

    /// Adds a request, which [`Gauges::asked`] has counted.
    pub fn push(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    /// Takes the next request, unless it is known that there is no memory for it. `running` tells how many sequences an owner has
    /// in flight, and there is a place for those who have fewer than `places`.
    pub fn next(&mut self, places: usize, running: impl Fn(&str) -> usize) -> Option<Request> {
        match self.head {
            Head::Blocked => None,
            Head::Retry => self.take(0),
            Head::Untried => {
                let of = self.requests.iter().map(|request| running(request.owner())).enumerate();
                self.take(of.filter(|of| of.1 < places).min_by_key(|of| of.1)?.0)
            }
        }
    }

    /// Puts back what [`Self::next`] gave: there is too little memory for it.
    pub fn block(&mut self, request: Request) {
        self.requests.push_front(request);
        self.gauges.queued.fetch_add(1, Ordering::Relaxed);
        self.head = Head::Blocked;
    }

    /// Notes that memory was given back.
    pub fn memory_freed(&mut self) {
        if self.head == Head::Blocked {
            self.head = Head::Retry;
        }
    }

    /// Takes out a request that was cancelled.
    pub fn next_cancelled(&mut self) -> Option<Request> {
        let parked = self.parked.iter().skip(1).position(Request::is_cancelled);
        if let Some(request) = parked.and_then(|index| self.parked.remove(index + 1)) {
            self.gauges.queued.fetch_sub(1, Ordering::Relaxed);
            return Some(request);
        }
        self.take(self.requests.iter().position(Request::is_cancelled)?)
    }

    fn take(&mut self, index: usize) -> Option<Request> {
        let request = self.requests.remove(index)?;
        self.gauges.queued.fetch_sub(1, Ordering::Relaxed);
        // One behind it that was cancelled changes nothing for the one that waits for memory.
        if index == 0 {
            self.head = Head::Untried;
        }
        Some(request)
    }
}
