//! Connections: how many, for how long, and what ends one that stalls.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{Request, Response};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use super::app::App;
use super::handlers::{self, Handlers};
use super::routes::{Service, is_health};

/// Bytes of a connection that wait in hyper before a body is asked for no more.
const WRITE_BUFFER: usize = 64 << 10;
/// Bytes of a connection that wait in the kernel: what a client does not read is soon noticed.
const SEND_BUFFER: usize = 64 << 10;
/// How long nothing is accepted after the system refused: it is out of descriptors, or of memory.
const BREATH: Duration = Duration::from_millis(100);

/// How long those may take to hear it who are refused at the end.
const REFUSALS: Duration = Duration::from_secs(2);

/// How long a connection may be without a request before its place may go to another that waits for one.
const GRACE: Duration = Duration::from_millis(250);
/// How often places are looked for then.
const LOOK: Duration = Duration::from_millis(20);

/// A connection that has a place.
struct Open {
    peer: IpAddr,
    /// Since when it has had no request, a head that is not whole yet among them; none while it has one.
    idle: Mutex<Option<Instant>>,
    cut: Notify,
}

/// The connections that have places, by their numbers.
#[derive(Default)]
struct Opened(Mutex<HashMap<u64, Arc<Open>>>);

impl Opened {
    /// Ends the connection that has been without a request the longest, of the peer that has the most such.
    fn cut_one(&self) {
        let open = self.0.lock();
        let idle = |open: &&Arc<Open>| open.idle.lock().filter(|since| since.elapsed() >= GRACE);
        let mut of_peer: HashMap<IpAddr, usize> = HashMap::new();
        for open in open.values().filter(|open| idle(open).is_some()) {
            *of_peer.entry(open.peer).or_default() += 1;
        }
        let most = of_peer.values().copied().max();
        let of_most = open.values().filter(|open| of_peer.get(&open.peer).copied() == most);
        if let Some(oldest) = of_most.filter(|open| idle(open).is_some()).min_by_key(|open| *open.idle.lock())
        {
            oldest.cut.notify_one();
        }
    }
}

/// What a connection ends with; none where it gives up its place, which one whose request has come meanwhile keeps.
async fn unless_cut<T>(connection: impl Future<Output = T>, open: &Open) -> Option<T> {
    let mut connection = std::pin::pin!(connection);
    loop {
        tokio::select! {
            // A request that waits to be read makes it busy first.
            biased;
            ended = &mut connection => return Some(ended),
            () = open.cut.notified() => if open.idle.lock().is_some() {
                return None;
            },
        }
    }
}

/// A request of a connection, until its answer is out.
struct Busy(Arc<Open>);

impl Busy {
    fn new(open: &Arc<Open>) -> Self {
        *open.idle.lock() = None;
        Self(Arc::clone(open))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.idle.lock() = Some(Instant::now());
    }
}

/// An answer's body, and what ends with it.
struct Held {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A place for a connection, which one without a request gives up where there is none.
async fn place(places: &Arc<Semaphore>, opened: &Opened) -> Option<OwnedSemaphorePermit> {
    loop {
        let free = tokio::time::timeout(LOOK, Arc::clone(places).acquire_owned());
        match free.await {
            Ok(place) => return place.ok(),
            Err(_) => opened.cut_one(),
        }
    }
}

/// Serves until `stop`, then until every answer is out, or for `drain_timeout`. `/health` is answered here, all else by
/// `handlers`.
pub(crate) async fn serve(
    app: Arc<App>,
    handlers: Handlers,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) {
    let service = Service::new(Arc::clone(&app));
    let places = Arc::new(Semaphore::new(app.options.max_connections.min(Semaphore::MAX_PERMITS)));
    let opened = Arc::new(Opened::default());
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(app.options.header_timeout).max_buf_size(WRITE_BUFFER);
    tokio::pin!(stop);
    // Refusals come ten times a second while they last: the first tells it.
    let mut refused = 0_u64;
    for number in 0.. {
        let accepted = async {
            // More connections than one without a place wait in the kernel.
            let accepted = listener.accept().await?;
            Ok::<_, io::Error>((place(&places, &opened).await, accepted))
        };
        let (place, stream, peer) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => match accepted {
                Ok((place, (stream, peer))) => {
                    if refused > 0 {
                        tracing::warn!(refused, "connections are accepted again");
                    }
                    refused = 0;
                    (place, stream, peer)
                }
                Err(error) => {
                    if refused == 0 {
                        tracing::warn!(%error, "no connection is accepted until this is over");
                    }
                    refused += 1;
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            },
        };
        prepare(&stream);
        let stream = Stalling::new(stream, app.options.stall_timeout);
        let open =
            Arc::new(Open { peer: peer.ip(), idle: Mutex::new(Some(Instant::now())), cut: Notify::new() });
        opened.0.lock().insert(number, Arc::clone(&open));
        let (service, handle, asked) = (service.clone(), handlers.handle().clone(), Arc::clone(&open));
        let answer = service_fn(move |request: Request<Incoming>| {
            let (service, handle, busy) = (service.clone(), handle.clone(), Busy::new(&asked));
            async move {
                let answer = match is_health(request.uri()) {
                    true => service.answer(request).await,
                    false => handlers::answer(&handle, service, request).await?,
                };
                Ok::<Response<Held>, io::Error>(answer.map(|body| Held { body, _busy: busy }))
            }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), answer));
        let (app, opened) = (Arc::clone(&app), Arc::clone(&opened));
        app.metrics.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            match unless_cut(connection, &open).await {
                Some(Err(error)) => tracing::debug!(%error, "a connection ended"),
                Some(Ok(())) => {}
                None => tracing::debug!("a connection without a request gave up its place"),
            }
            opened.0.lock().remove(&number);
            app.metrics.connections.fetch_sub(1, Ordering::Relaxed);
            drop(place);
        });
    }
    drop(listener);
    app.draining.store(true, Ordering::Relaxed);
    let open = graceful.count();
    tracing::info!(connections = open, "ending");
    let mut ended = std::pin::pin!(graceful.shutdown());
    if tokio::time::timeout(app.options.drain_timeout, &mut ended).await.is_err() {
        tracing::warn!("answers were cut off: they took longer than --drain-timeout");
        app.cut.send_replace(true);
        let _ = tokio::time::timeout(REFUSALS, ended).await;
    }
    handlers.end().await;
}

fn prepare(stream: &TcpStream) {
    // Tokens are not to wait for more of them.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(stream).set_send_buffer_size(SEND_BUFFER);
}

/// A stream whose writes fail once they have stalled for a time: its reader has stopped reading.
struct Stalling {
    stream: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Stalling {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, patience, timer: Box::pin(sleep(Duration::ZERO)), waiting: false }
    }

    /// What a write came to, or the end of patience with it.
    fn judge<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = false;
            return result;
        }
        if !std::mem::replace(&mut self.waiting, true) {
            self.timer.as_mut().reset(Instant::now() + self.patience);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl AsyncRead for Stalling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stalling {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.judge(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chosen while it is idle, a connection is cut when its task runs: by then a request may have come.
    #[test]
    fn a_connection_whose_request_has_come_keeps_its_place() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let cut = |request_comes: bool| {
            let idle = Mutex::new(Some(Instant::now()));
            let open = Open { peer: IpAddr::from([127, 0, 0, 1]), idle, cut: Notify::new() };
            open.cut.notify_one();
            let mut looks = 0;
            let connection = std::future::poll_fn(|cx| {
                looks += 1;
                if request_comes {
                    *open.idle.lock() = None;
                }
                cx.waker().wake_by_ref();
                if looks < 3 { Poll::Pending } else { Poll::Ready("its answer") }
            });
            runtime.block_on(unless_cut(connection, &open))
        };
        assert_eq!((cut(true), cut(false)), (Some("its answer"), None));
    }
}
