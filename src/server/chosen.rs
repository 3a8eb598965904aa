//! A request's model: chosen by the name that the request gives, and loaded if need be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use serde_json::Value;
use tokio::sync::oneshot;

use super::app::App;
use super::budget::BodyCharge;
use super::failure::{Dialect, Failure};
use super::json::{Fields, Notes, shown};
use super::meant::Meant;
use super::request::{Reply, fields};
use super::served::Served;
use super::sse;
use super::store::Caller;
use crate::error::Result;
use crate::models::{Keep, Lease, Waiter};

/// How long a request for a stream waits for its model before the stream begins without it. What is wrong with the request is
/// told by a status until then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which model a request wants, and for how long it is to stay.
pub(crate) struct Wanted {
    /// The path of the request.
    pub path: String,
    /// The name by which the model is asked for.
    pub called: Option<String>,
    pub keep: Keep,
}

impl Wanted {
    fn take(fields: &mut Fields, path: String) -> Result<Self, Failure> {
        let called = match Dialect::of(&path) {
            Dialect::OpenAi | Dialect::Anthropic => {
                fields.string("model")?.filter(|called| !called.is_empty())
            }
            Dialect::Ollama => {
                let (model, name) = (fields.string("model")?, fields.string("name")?);
                [model, name].into_iter().flatten().find(|called| !called.is_empty())
            }
        };
        let keep = keep(fields)?;
        Ok(Self { path, called, keep })
    }

    /// The model that is meant, and its adapter.
    fn meant(&self, app: &App) -> Result<Meant, Failure> {
        app.meant(self.called.as_deref(), Dialect::of(&self.path))
    }
}

/// How long a model is to stay after the request: `keep_alive`, seconds or a duration as Go writes it; below zero it is forever.
pub(super) fn keep(fields: &mut Fields) -> Result<Keep, Failure> {
    let Some(given) = fields.take("keep_alive") else { return Ok(Keep::Usual) };
    let keep = match &given {
        Value::Number(number) => number.as_f64().map(Keep::seconds),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    keep.ok_or_else(|| {
        let what = format_args!("expected seconds, or a duration such as \"10m\", got {}", shown(&given));
        fields.wrong("keep_alive", what)
    })
}

/// A request that waits for its model.
struct Waiting(oneshot::Sender<Result<Lease>>);

impl Waiter for Waiting {
    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }

    fn give(self: Box<Self>, lease: Result<Lease>) {
        // Whoever asked may have gone.
        let _ = self.0.send(lease);
    }
}

/// Waits until a model is loaded.
pub(super) async fn lease(app: &App, name: &str, keep: Keep, caller: &Caller) -> Result<Lease, Failure> {
    // Whoever goes away gives its place to others at once.
    let _place = app.take(&app.waiting, 1, caller)?;
    let (sender, lease) = oneshot::channel();
    app.models.ask(name, keep, Box::new(Waiting(sender)));
    let ended =
        |_| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the server is about to end").retry_after(1);
    Ok(lease.await.map_err(ended)??)
}

/// Answers for a model that is not loaded, and is not to be for this request.
pub(super) type Unloaded = fn(&App, &Wanted, &Fields) -> Option<Response>;

/// What a route is like while its model is loaded.
#[derive(Clone, Copy)]
enum While {
    /// It waits.
    Waits,
    /// A stream of events begins where one is asked for, so that its client sees that somebody is at work.
    Events,
    /// Likewise a stream of lines, unless none is wanted, or this answers without the model.
    Lines(Unloaded),
}

impl While {
    /// Whether a request is to be answered by a stream.
    fn streams(self, fields: &Fields) -> bool {
        match self {
            Self::Waits => false,
            Self::Events => fields.peek("stream") == Some(&Value::Bool(true)),
            Self::Lines(_) => fields.peek("stream") != Some(&Value::Bool(false)),
        }
    }
}

/// A route that `handler` answers with the model that the request names.
pub(super) fn on_model<H, F>(handler: H) -> MethodRouter<Arc<App>>
where
    H: Fn(Arc<Served>, Fields) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    route(While::Waits, handler)
}

/// As [`on_model`], of a route that answers with server-sent events where it is asked for them.
pub(super) fn on_streaming_model<H, F>(handler: H) -> MethodRouter<Arc<App>>
where
    H: Fn(Arc<Served>, Fields) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    route(While::Events, handler)
}

/// As [`on_model`], of a route that answers with lines of JSON unless it is asked for one answer, and whose model may not be
/// needed.
pub(super) fn on_model_of_lines<H, F>(unloaded: Unloaded, handler: H) -> MethodRouter<Arc<App>>
where
    H: Fn(Arc<Served>, Fields) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    route(While::Lines(unloaded), handler)
}

fn route<H, F>(meanwhile: While, handler: H) -> MethodRouter<Arc<App>>
where
    H: Fn(Arc<Served>, Fields) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    post(async move |State(app): State<Arc<App>>, request: Request| {
        let (asked, path) = (Instant::now(), request.uri().path().to_owned());
        let notes = request.extensions().get::<Notes>().cloned().unwrap_or_default();
        let charge = request.extensions().get::<BodyCharge>().cloned();
        let mut fields = fields(&app, request).await?;
        let body = charge.as_ref().map_or(0, BodyCharge::bytes);
        let wanted = Wanted::take(&mut fields, path)?;
        app.look_for(wanted.called.as_deref(), Dialect::of(&wanted.path)).await;
        let Meant { name, adapter } = wanted.meant(&app)?;
        // How long it stays is said by a request that is answered, and by none that is refused.
        if let Some(lease) = app.models.lease(&name, Keep::AsBefore) {
            let served = Served::new(&app, lease, (wanted.called, adapter), wanted.keep, asked)?
                .of(fields.caller(), body);
            return answered(&handler, served, fields).await;
        }
        if let While::Lines(unloaded) = meanwhile
            && let Some(answer) = unloaded(&app, &wanted, &fields)
        {
            return Ok(answer);
        }
        let streams = meanwhile.streams(&fields);
        let Wanted { path, called, keep } = wanted;
        let (handler, told) = (handler.clone(), Arc::clone(&app));
        let mut answer = Box::pin(async move {
            let lease = lease(&app, &name, Keep::AsBefore, fields.caller()).await?;
            let served =
                Served::new(&app, lease, (called, adapter), keep, asked)?.of(fields.caller(), body).waited();
            answered(&handler, served, fields).await
        });
        if !streams {
            return answer.await;
        }
        match tokio::time::timeout(PATIENCE, &mut answer).await {
            Ok(reply) => reply,
            Err(_) => {
                let cut = told.until_cut();
                let answer = async move {
                    let reply = tokio::select! {
                        biased;
                        reply = answer => reply,
                        failure = cut => Err(failure),
                    };
                    // The body is there until now, and the headers are out: the log alone can tell of what was passed over.
                    drop(charge);
                    told.told(&notes.take(), &mut HeaderMap::new());
                    reply
                };
                Ok(sse::later(answer, &path))
            }
        }
    })
}

/// The answer of `handler`, and then how long the model stays.
async fn answered<H, F>(handler: &H, served: Served, fields: Fields) -> Reply
where
    H: Fn(Arc<Served>, Fields) -> F,
    F: Future<Output = Reply>,
{
    let served = Arc::new(served);
    let reply = handler(Arc::clone(&served), fields).await;
    if reply.as_ref().is_ok_and(|answer| answer.status().is_success()) {
        served.keep_model();
    }
    reply
}
