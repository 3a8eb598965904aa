//! Where requests are answered: threads of their own. Whatever a request takes there, the thread of the connections goes on
//! accepting, reading and writing, notices signals, and answers `/health`.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::routes::Service;
use crate::error::{Error, Result};

/// One may read a large body while the other answers who asks for less.
const THREADS: usize = 2;
/// How long what is cut off may take to notice.
const CUT_OFF: Duration = Duration::from_secs(2);

/// The threads that answer requests; what runs there ends when this is dropped.
pub(crate) struct Handlers {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Handlers {
    /// # Errors
    /// The system gives no threads.
    pub fn start() -> Result<Self> {
        let mut threads = Builder::new_multi_thread();
        threads.worker_threads(THREADS).thread_name("backstop-answer").enable_time();
        let runtime =
            threads.build().map_err(|source| Error::io(Path::new("the server's threads"), source))?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Where [`answer`] runs.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends what still runs.
    pub async fn end(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(CUT_OFF)).await;
        }
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        // Waiting for the threads is not allowed in a task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lost() -> io::Error {
    io::Error::other("the answer is lost")
}

/// A task that ends with what waits for it.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer's body on its way to its connection.
enum Made {
    /// All of it is there.
    Whole(Body),
    /// A frame at a time, and none at the end.
    Frames(mpsc::Receiver<Option<Frame<Bytes>>>),
}

/// Answers `request` on a handler's thread, for whoever writes the answer elsewhere. Dropping the future, or the answer's body,
/// ends it.
///
/// # Errors
/// The answer is lost: its handler panicked, or the server ends.
pub(crate) async fn answer(
    handle: &Handle,
    service: Service,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let (head, answered) = oneshot::channel();
    let task = handle.spawn(async move {
        let (parts, mut body) = service.answer(request).await.into_parts();
        if body.size_hint().exact().is_some() {
            let _ = head.send(Response::from_parts(parts, Made::Whole(body)));
            return;
        }
        // One waits while the next is made: what is not read is not made.
        let (sender, frames) = mpsc::channel(1);
        if head.send(Response::from_parts(parts, Made::Frames(frames))).is_err() {
            return;
        }
        while let Some(frame) = body.frame().await {
            // A body that fails has no end.
            let Ok(frame) = frame else { return };
            if sender.send(Some(frame)).await.is_err() {
                return;
            }
        }
        let _ = sender.send(None).await;
    });
    let task = Task(task.abort_handle());
    let (parts, made) = answered.await.map_err(|_| lost())?.into_parts();
    let body = match made {
        Made::Whole(body) => body,
        Made::Frames(frames) => Body::new(Frames { frames, _task: task }),
    };
    Ok(Response::from_parts(parts, body))
}

/// A body that is made by a handler's thread.
struct Frames {
    frames: mpsc::Receiver<Option<Frame<Bytes>>>,
    _task: Task,
}

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, io::Error>>> {
        self.frames.poll_recv(cx).map(|received| match received {
            Some(frame) => frame.map(Ok),
            // What was cut off is not to look whole.
            None => Some(Err(lost())),
        })
    }
}
