//! `POST /api/pull`: a model is downloaded and offered, where the server may.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::app::App;
use super::super::failure::{Dialect, Failure, json_body, thread_failed};
use super::super::fetch::{Fetch, Fetching};
use super::super::request::{Reply, fields};
use super::super::sse;
use crate::error::{Error, HubFault};

/// Lines that wait for a client who does not read them: then the download waits, too.
const LINES: usize = 16;

/// `POST /api/pull`
pub(crate) async fn pull(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    let (model, name) = (fields.string("model")?, fields.string("name")?);
    let name = [model, name].into_iter().flatten().find(|name| !name.is_empty());
    let name = fields.required("model", name)?;
    let streams = fields.flag("stream")?.unwrap_or(true);
    // What Ollama passes over, too; its Go client always sends the last two.
    fields.hints(&["insecure"]);
    fields.ignore(&["username", "password"]);
    let caller = fields.caller().clone();
    fields.finish()?;
    app.look_for(Some(&name), Dialect::Ollama).await;
    if app.named(&name, Dialect::Ollama).is_some() {
        // Who pulls before each question need not be allowed to, where it is here.
        let lines = [json!({ "status": "pulling manifest" }), json!({ "status": "success" })];
        if !streams {
            return Ok(json_body(&lines[1]));
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        return Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(sse::LINES))], text).into_response());
    }
    let Some(fetch) = app.options.fetch.clone() else {
        let what = "pull is not allowed here: backstop serve --pull allows it, and `backstop pull NAME` downloads, too";
        return Err(Failure::new(StatusCode::FORBIDDEN, what));
    };
    let place = app.take(&app.pulling, 1, &caller)?;
    let cut = Box::pin(app.until_cut());
    let (sender, mut lines) = mpsc::channel::<Value>(LINES);
    let work = tokio::task::spawn_blocking(move || {
        let _place = place;
        let mut tell = |line: Value| sender.blocking_send(line).is_ok();
        let fetched = pulled(&app, &*fetch, &name, &mut tell);
        if let Err(failure) = &fetched {
            tracing::warn!(model = name, error = failure.message, "a model was not downloaded");
            tell(failure.json(Dialect::Ollama));
        }
        fetched
    });
    if streams {
        let kind = HeaderValue::from_static(sse::LINES);
        return Ok(
            ([(header::CONTENT_TYPE, kind)], Body::new(Lines { lines, cut: Some(cut) })).into_response()
        );
    }
    while lines.recv().await.is_some() {}
    work.await.map_err(|_| thread_failed())??;
    Ok(json_body(&json!({ "status": "success" })))
}

/// Downloads a model and offers it; `tell` writes a line, and says whether anybody reads it.
fn pulled(
    app: &App,
    fetch: &dyn Fetch,
    called: &str,
    tell: &mut dyn FnMut(Value) -> bool,
) -> Result<(), Failure> {
    tell(json!({ "status": "pulling manifest" }));
    if app.named(called, Dialect::Ollama).is_none() {
        // Ollama's names of models of the hub, and its tag of what has none.
        let plain = ["hf.co/", "huggingface.co/"].iter().find_map(|host| called.strip_prefix(host));
        let plain = plain.unwrap_or(called);
        let plain = plain.strip_suffix(":latest").unwrap_or(plain);
        let mut told = |of: &Fetching| {
            if of.total == 0 {
                return tell(json!({ "status": "pulling manifest" }));
            }
            let status = if of.checking { "verifying sha256 digest" } else { "pulling model" };
            tell(json!({ "status": status, "digest": plain, "total": of.total, "completed": of.done }))
        };
        let fetched = fetch.fetch(plain, &mut told).map_err(|error| match &error {
            Error::Hub { fault: HubFault::Name, .. } => Failure::bad(error.to_string()),
            Error::Hub { fault: HubFault::NotFound | HubFault::Absent, .. } => {
                Failure::new(StatusCode::NOT_FOUND, error.to_string())
            }
            _ => error.into(),
        });
        let Some(mut offer) = fetched? else { return Ok(()) };
        // Whoever asks with Ollama's tag means the name without it.
        offer.aliases.push(called.strip_suffix(":latest").unwrap_or(called).to_owned());
        let free = |name: &String| app.models.named(name).is_none();
        offer.aliases.retain(|alias| *alias != offer.name && free(alias));
        // Another may have had it pulled meanwhile.
        if free(&offer.name) {
            app.models.offer(offer)?;
        }
    }
    tell(json!({ "status": "success" }));
    Ok(())
}

/// Lines of JSON as they come.
struct Lines {
    lines: mpsc::Receiver<Value>,
    /// See [`App::until_cut`]; none once it has come.
    cut: Option<Pin<Box<dyn Future<Output = Failure> + Send>>>,
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(cut) = &mut self.cut else { return Poll::Ready(None) };
        let line = match cut.as_mut().poll(cx) {
            Poll::Ready(failure) => {
                self.cut = None;
                Poll::Ready(Some(failure.json(Dialect::Ollama)))
            }
            Poll::Pending => self.lines.poll_recv(cx),
        };
        line.map(|line| Some(Ok(Frame::data(format!("{}\n", line?).into()))))
    }
}

/// What else is done with models: pushed, created, copied, deleted.
pub(crate) async fn refuse(request: Request) -> Response {
    let path = request.uri().path();
    let what = path.split('/').nth(2).unwrap_or_default();
    let what = format!("{what} is not supported: backstop pull and backstop rm keep what is on this machine");
    Failure::new(StatusCode::BAD_REQUEST, what).into_response()
}
