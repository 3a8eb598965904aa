//! The bytes that bodies of requests and answers not yet written hold, of all connections together.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;

/// How many bytes are held, and how many may be.
#[derive(Debug)]
pub(crate) struct Budget {
    held: AtomicUsize,
    most: usize,
}

/// Bytes that somebody holds, until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most })
    }

    /// Bytes that may be held.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Counts `bytes` that are there already, even past the end of the budget.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Charge { budget: Arc::clone(self), bytes }
    }

    /// `bytes`, counted until the last part of them is dropped.
    pub fn charged(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        let charge = self.charge(bytes.len());
        Bytes::from_owner(Charged { bytes, _charge: charge })
    }
}

impl Charge {
    /// Makes room for `bytes` more, where there is.
    #[must_use]
    pub fn reserve(&mut self, bytes: usize) -> bool {
        let most = self.budget.most;
        let more = |held: usize| held.checked_add(bytes).filter(|&held| held <= most || bytes == 0);
        let fits = self.budget.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        self.bytes += if fits { bytes } else { 0 };
        fits
    }

    /// Counts `bytes` more that are there already.
    pub fn add(&mut self, bytes: usize) {
        self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The charge of a request's body, until the request is answered or its answer begins.
#[derive(Debug, Clone)]
pub(crate) struct BodyCharge(pub Arc<Mutex<Charge>>);

impl BodyCharge {
    /// Bytes of the body, as far as it has come.
    pub fn bytes(&self) -> usize {
        self.0.lock().bytes
    }

    pub fn new(budget: &Arc<Budget>) -> Self {
        Self(Arc::new(Mutex::new(budget.charge(0))))
    }
}

/// An answer's body, each part of it counted from when it is made until it is written.
pub(crate) struct ChargedBody {
    pub body: Body,
    pub budget: Arc<Budget>,
}

impl HttpBody for ChargedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        frame.map_ok(|frame| frame.map_data(|bytes| self.budget.charged(bytes)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Charged {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_back() {
        let budget = Budget::new(10);
        let mut body = budget.charge(0);
        assert!(body.reserve(7) && !body.reserve(4) && body.reserve(3) && body.reserve(0));
        assert_eq!(budget.held(), 10);
        // An answer is there, whatever the budget says; nothing more is let in beside it.
        let answer = budget.charged(Bytes::from_static(b"answer"));
        let part = answer.slice(..2);
        drop(answer);
        assert_eq!((budget.held(), body.reserve(1), body.reserve(0)), (16, false, true));
        drop(body);
        assert_eq!(budget.held(), 6);
        drop(part);
        assert_eq!(budget.held(), 0);
    }
}
