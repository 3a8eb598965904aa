//! Texts of one request that the engine makes something of, several beside each other. They leave half of its places to others.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::failure::Failure;
use super::places::QueuePlace;
use super::served::Served;
use crate::engine::CancelOnDrop;
use crate::error::{Error, Result};

/// Takes what was made of a text.
pub(crate) type Take<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// What runs of a request, the oldest first; dropping it cancels that.
pub(crate) struct Beside<T> {
    running: VecDeque<Running<T>>,
    most: usize,
    place: Arc<Vec<QueuePlace>>,
}

struct Running<T> {
    _asked: CancelOnDrop,
    made: oneshot::Receiver<Result<T>>,
}

impl<T: Send + 'static> Beside<T> {
    /// Room for the texts of a request, which takes one place of the queue.
    pub fn new(app: &Served) -> Result<Self, Failure> {
        let most = (app.model.engine().max_sequences() / 2).max(1);
        Ok(Self { running: VecDeque::new(), most, place: Arc::new(app.places(1)?) })
    }

    /// Waits until another may start: what the oldest has become, where it had to be waited for.
    pub async fn room(&mut self) -> Result<Option<T>, Failure> {
        match self.running.len() >= self.most {
            true => self.next().await,
            false => Ok(None),
        }
    }

    /// Starts another.
    pub fn start(&mut self, start: impl FnOnce(Take<T>) -> Result<CancelOnDrop>) -> Result<(), Failure> {
        let (sender, made) = oneshot::channel();
        let place = Arc::clone(&self.place);
        let take = move |answer| {
            // The place is free once the engine has let go of all of them.
            drop(place);
            // Whoever asked may have gone.
            let _ = sender.send(answer);
        };
        self.running.push_back(Running { _asked: start(Box::new(take))?, made });
        Ok(())
    }

    /// What the oldest has become; none where nothing runs.
    pub async fn next(&mut self) -> Result<Option<T>, Failure> {
        let Some(oldest) = self.running.pop_front() else { return Ok(None) };
        let answer = oldest.made.await;
        Ok(Some(answer.map_err(|_| Error::Engine("it ended without an answer".into()))??))
    }
}
