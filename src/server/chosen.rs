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
            Dialect::OpenAi | Dialect::Anthropic => fields.string("model")?,
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
    let seconds = match &given {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => go_seconds(text),
        _ => None,
    };
    match seconds {
        Some(seconds) if seconds < 0.0 => Ok(Keep::Forever),
        // Longer than any process runs.
        Some(seconds) => Ok(Duration::try_from_secs_f64(seconds).map_or(Keep::Forever, Keep::For)),
        None => {
            let what = format_args!("expected seconds, or a duration such as \"10m\", got {}", shown(&given));
            Err(fields.wrong("keep_alive", what))
        }
    }
}

/// Seconds of a duration as Go writes it: `1h30m`, `1.5s`, `-1`.
fn go_seconds(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if plain { text.parse::<f64>().ok() } else { None }
    };
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if let Some(seconds) = number(rest) {
        return Some(sign * seconds);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (amount, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == &unit[..end])?;
        sum += number(amount)? * scale;
        rest = &unit[end..];
    }
    Some(sign * sum)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, seconds) in [
            ("10m", 600.0),
            ("1h30m", 5400.0),
            ("1.5s", 1.5),
            ("-1", -1.0),
            ("-1s", -1.0),
            ("0", 0.0),
            ("300", 300.0),
            ("250ms", 0.25),
            ("+2h0.5m", 7230.0),
        ] {
            assert_eq!(go_seconds(text), Some(seconds), "{text}");
        }
        for text in ["", "m", "1x", "1h2", "-", "1..2s", "1e3s", "inf", "NaN", "5 m"] {
            assert_eq!(go_seconds(text), None, "{text}");
        }
    }
}
