//! The routes, and what every request goes through on its way to one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use hyper::body::Incoming;
use serde_json::json;
use tower_service::Service as _;

use super::UnknownFields;
use super::app::App;
use super::budget::{BodyCharge, ChargedBody};
use super::chosen::{on_model, on_model_of_lines, on_streaming_model};
use super::failure::{Dialect, Failure, json_body};
use super::json::Notes;
use super::{
    adapters, anthropic, chat, completions, embeddings, guard, llama, models, ollama, page, rerank,
    responses, texts,
};
use crate::engine::Load;
use crate::error::Error;
use crate::model::Model;

/// The paths that there are, as metrics name them.
pub(crate) const ROUTES: [&str; 35] = [
    "/",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/models/load",
    "/v1/models/unload",
    "/v1/adapters/load",
    "/v1/adapters/unload",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/completion",
    "/infill",
    "/props",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/version",
    "/api/tags",
    "/api/show",
    "/api/ps",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/blobs",
];

/// Those whose paths go on with a name.
const NAMED: [&str; 2] = ["/v1/models", "/api/blobs"];

/// How long an idle engine may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Answers requests.
#[derive(Clone)]
pub(crate) struct Service {
    app: Arc<App>,
    router: Router,
}

impl Service {
    pub fn new(app: Arc<App>) -> Self {
        let router = Router::new()
            .route("/", get(page::root))
            .route("/health", get(health))
            .route("/metrics", get(metrics))
            .route("/v1/models", get(models::list))
            .route("/v1/models/load", post(models::load))
            .route("/v1/models/unload", post(models::unload))
            .route("/v1/models/{*name}", get(models::one))
            .route("/v1/adapters/load", post(adapters::load))
            .route("/v1/adapters/unload", post(adapters::unload))
            .route("/tokenize", on_model(texts::tokenize))
            .route("/detokenize", on_model(texts::detokenize))
            .route("/apply-template", on_model(texts::apply_template))
            .route("/completion", on_streaming_model(llama::completion))
            .route("/infill", on_streaming_model(llama::infill))
            .route("/props", get(llama::props))
            .route("/v1/chat/completions", on_streaming_model(chat::create))
            .route("/v1/completions", on_streaming_model(completions::create))
            .route("/v1/responses", on_streaming_model(responses::create))
            .route("/v1/embeddings", on_model(embeddings::create))
            .route("/v1/rerank", on_model(rerank::create))
            .route("/v1/messages", on_streaming_model(anthropic::create))
            .route("/v1/messages/count_tokens", on_model(anthropic::count))
            .route("/api/version", get(ollama::version))
            .route("/api/tags", get(ollama::tags))
            .route("/api/show", post(ollama::show))
            .route("/api/ps", get(ollama::ps))
            .route("/api/chat", on_model_of_lines(ollama::unload, ollama::chat))
            .route("/api/generate", on_model_of_lines(ollama::unload, ollama::generate))
            .route("/api/embed", on_model(ollama::embed))
            .route("/api/embeddings", on_model(ollama::embed_one))
            .route("/api/pull", post(ollama::pull))
            .route("/api/push", any(ollama::refuse))
            .route("/api/create", any(ollama::refuse))
            .route("/api/copy", any(ollama::refuse))
            .route("/api/delete", any(ollama::refuse))
            .route("/api/blobs/{digest}", any(ollama::refuse))
            .fallback(no_route)
            .method_not_allowed_fallback(async |headers: HeaderMap| {
                match headers.contains_key(header::UPGRADE) {
                    // Codex asks for a WebSocket first; this sends it to POST at once.
                    true => {
                        Failure::new(StatusCode::UPGRADE_REQUIRED, "there is no WebSocket here: use POST")
                    }
                    false => {
                        Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not take this method")
                    }
                }
            })
            .with_state(Arc::clone(&app));
        #[cfg(feature = "fault-injection")]
        let router = router.route("/block", post(block));
        Self { app, router }
    }

    /// Answers one request, whatever it is.
    pub async fn answer(mut self, request: hyper::Request<Incoming>) -> Response {
        let mut request = request.map(Body::new);
        if let Some(uri) = usual(request.uri()) {
            let asked = std::mem::replace(request.uri_mut(), uri);
            request.extensions_mut().insert(asked);
        }
        let notes = Notes::new(self.app.options.unknown_fields == UnknownFields::Refuse);
        request.extensions_mut().insert(notes.clone());
        let charge = BodyCharge::new(&self.app.budget);
        request.extensions_mut().insert(charge.clone());
        let path = request.uri().path().to_owned();
        let path = path.as_str();
        let route = known(path).unwrap_or("other");
        let (dialect, id) = (Dialect::of(path), self.app.id("req_"));
        let started = Instant::now();
        let asked = request.headers().clone();
        let method = request.method().clone();
        let preflight = guard::is_preflight(request.method(), &asked);
        // The page says nothing of the models, and asks a person for the key.
        let open = preflight || matches!(route, "/" | "/health");
        let checked = guard::check(&self.app, request.method(), &asked, open);
        let mut response = match checked {
            Err(failure) => failure.into_response(),
            Ok(_) if preflight => StatusCode::NO_CONTENT.into_response(),
            Ok(_) if self.app.draining.load(Ordering::Relaxed) => {
                let what = "the server is about to end";
                Failure::new(StatusCode::SERVICE_UNAVAILABLE, what).retry_after(1).into_response()
            }
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                tokio::select! {
                    biased;
                    answered = self.router.call(request) => match answered {
                        Ok(response) => response,
                        Err(never) => match never {},
                    },
                    failure = self.app.until_cut() => failure.into_response(),
                }
            }
        };
        drop(charge);
        if let Some(mut failure) = response.extensions_mut().remove::<Failure>() {
            let status = failure.status;
            let allow = response.headers().get(header::ALLOW).and_then(|allow| allow.to_str().ok());
            if let Some(methods) = allow.filter(|_| status == StatusCode::METHOD_NOT_ALLOWED) {
                let methods = methods.replace(',', " or ");
                failure.message =
                    format!("{} does not take {method}: use {methods}", crate::json::quote(path));
            }
            let told = failure.response(dialect);
            let kept = response.headers_mut().remove(header::ALLOW);
            response = told;
            if let Some(methods) = kept {
                response.headers_mut().insert(header::ALLOW, methods);
            }
            if status == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            let (status, reason) = (status.as_u16(), failure.message);
            match status {
                500.. => tracing::error!(route, status, reason, "a request failed"),
                _ => tracing::warn!(route, status, reason, "a request was refused"),
            }
        }
        self.app.told(&notes.take(), response.headers_mut());
        if asked.contains_key(header::TRANSFER_ENCODING) {
            // There may have been a Content-Length beside it, by which another would find another request behind this one.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        guard::add_headers(response.headers_mut(), &id);
        guard::add_cors(&self.app, &asked, response.headers_mut(), preflight);
        self.app.metrics.answered(route, response.status().as_u16());
        tracing::info!(id, route, status = response.status().as_u16(), time = ?started.elapsed(), "answered");
        if route == "/metrics" {
            // Who looks at how much is held is not to change it, nor to keep others out by looking.
            return response;
        }
        let budget = Arc::clone(&self.app.budget);
        response.map(|body| Body::new(ChargedBody { body, budget }))
    }
}

/// Whether a request asks whether the server works.
pub(crate) fn is_health(uri: &Uri) -> bool {
    usual(uri).as_ref().unwrap_or(uri).path() == "/health"
}

/// The path by its usual name, where the asked one is another: with a slash at its end, without `/v1` or with two of them.
/// Clients are given a base URL by hand, and each expects another part of the path in it.
fn usual(uri: &Uri) -> Option<Uri> {
    let asked = uri.path();
    let mut path = asked.trim_end_matches('/');
    while let Some(rest) = path.strip_prefix("/v1").filter(|rest| rest.starts_with("/v1/")) {
        path = rest;
    }
    if path == "/v2/rerank" {
        path = "/v1/rerank"; // Cohere's second version asks and is answered alike.
    }
    let versioned = format!("/v1{path}");
    if known(&versioned).is_some() {
        path = &versioned;
    }
    if path == asked || path.is_empty() {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{path}{query}").parse().ok()
}

/// What is said of a path that is none, with the route that is most like it.
async fn no_route(request: Request) -> Failure {
    let asked = request.extensions().get::<Uri>().unwrap_or_else(|| request.uri());
    missing(asked)
}

fn missing(uri: &Uri) -> Failure {
    /// How many letters may differ, at most.
    const LETTERS: usize = 8;
    let path = uri.path();
    let shown = crate::json::quote(path);
    let word = path.rsplit('/').find(|word| !word.is_empty()).unwrap_or_default();
    let nearest = ROUTES.iter().skip(1).min_by_key(|route| {
        let last = route.rsplit('/').next().unwrap_or_default();
        let whole = distance(path, route);
        distance(word, last) + whole
    });
    let near = nearest.filter(|route| {
        let last = route.rsplit('/').next().unwrap_or_default();
        let apart = distance(word, last).min(distance(path, route));
        apart <= LETTERS.min(last.len() / 2)
    });
    let what = match near {
        Some(near) => format!("there is no route {shown}; did you mean {near}?"),
        None => format!("there is no route {shown}; there are {}", ROUTES.join(", ")),
    };
    Failure::new(StatusCode::NOT_FOUND, what)
}

/// Letters to be put in, taken out or changed to make `a` of `b` (Levenshtein), of their first 64 each.
fn distance(a: &str, b: &str) -> usize {
    const MOST: usize = 64;
    let b: Vec<char> = b.chars().take(MOST).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(MOST).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The route that a path is of: `/v1/models` of `/v1/models/NAME`.
fn known(path: &str) -> Option<&'static str> {
    let of_name = |route: &&&str| {
        NAMED.contains(route) && path.strip_prefix(**route).is_some_and(|rest| rest.starts_with('/'))
    };
    ROUTES.iter().find(|route| **route == path).or_else(|| ROUTES.iter().find(of_name)).copied()
}

/// How an engine is.
struct Pulse {
    load: Load,
    stuck: bool,
    changed: Option<Error>,
    /// Another rank is.
    lost: Option<Error>,
}

/// Whether a model works: its files are what they were, and a step ended not long ago or, where there is nothing to do, its engine
/// answers.
async fn pulse(model: &Model, longest: Duration) -> Pulse {
    let load = model.engine().load();
    let stuck = if load.running + load.queued > 0 {
        load.stalled > longest
    } else {
        let engine = model.engine().clone();
        let answer = tokio::task::spawn_blocking(move || engine.with(|_| ()));
        !matches!(tokio::time::timeout(ANSWER.min(longest), answer).await, Ok(Ok(Ok(()))))
    };
    Pulse { load, stuck, changed: model.check_files().err(), lost: model.engine().check().err() }
}

/// How the models are that are loaded; what is told beside it is the first one's, and of all where there are several.
async fn health(State(app): State<Arc<App>>) -> Response {
    let all = app.models.list();
    let loaded: Vec<_> =
        all.iter().filter_map(|status| Some((&status.name, status.model.as_ref()?))).collect();
    let (mut error, mut stuck, mut lost) = (None, false, false);
    let (mut running, mut queued, mut steps, mut idle) = (0, 0, 0, Duration::MAX);
    for (name, model) in &loaded {
        let pulse = pulse(model, app.options.longest_step).await;
        stuck |= pulse.stuck;
        running += pulse.load.running;
        queued += pulse.load.queued;
        steps += pulse.load.steps;
        idle = idle.min(pulse.load.idle);
        lost |= pulse.lost.is_some();
        error = error.or(pulse.lost.or(pulse.changed).map(|error| match all.len() {
            1 => error.to_string(),
            _ => format!("{name}: {error}"),
        }));
    }
    let (status, text) = match &error {
        Some(_) if lost => (StatusCode::SERVICE_UNAVAILABLE, "lost"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "changed"),
        None if stuck => (StatusCode::SERVICE_UNAVAILABLE, "stuck"),
        None => (StatusCode::OK, "ok"),
    };
    let idle = if loaded.is_empty() { Duration::ZERO } else { idle };
    let mut body = json!({
        "status": text,
        "model": loaded.first().map(|(name, _)| name),
        "backend": loaded.first().map(|(_, model)| model.engine().backend()),
        "running": running,
        "queued": queued,
        "steps": steps,
        "seconds_since_step": idle.as_secs_f64(),
    });
    if all.len() > 1 {
        // Who asks without a key learns how many, and no names but the first.
        body["loaded"] = loaded.len().into();
    }
    if let Some(error) = error {
        body["error"] = error.into();
    }
    (status, json_body(&body)).into_response()
}

/// Keeps a thread that answers requests, for as many milliseconds as the query says.
#[cfg(feature = "fault-injection")]
async fn block(uri: Uri) -> StatusCode {
    let time = uri.query().and_then(|query| query.parse().ok()).unwrap_or(0);
    std::thread::sleep(Duration::from_millis(time));
    StatusCode::NO_CONTENT
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(header::CONTENT_TYPE, kind)], app.metrics.text(&app.models, &app.budget)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_by_other_names_are_the_usual_ones() {
        for (asked, wanted) in [
            ("/v1/chat/completions/", "/v1/chat/completions"),
            ("/chat/completions", "/v1/chat/completions"),
            ("/v1/v1/messages?beta=true", "/v1/messages?beta=true"),
            ("/messages/count_tokens", "/v1/messages/count_tokens"),
            ("/models", "/v1/models"),
            ("/rerank", "/v1/rerank"),
            ("/v2/rerank", "/v1/rerank"),
            ("/models/stories", "/v1/models/stories"),
            ("/models/org/name", "/v1/models/org/name"),
            ("/models/load", "/v1/models/load"),
            ("/tokenize/", "/tokenize"),
        ] {
            assert_eq!(usual(&asked.parse().unwrap()).map(|uri| uri.to_string()).as_deref(), Some(wanted));
        }
        for kept in ["/", "/health", "/v1/chat/completions", "/nothing", "/v1/messages?beta=true"] {
            assert_eq!(usual(&kept.parse().unwrap()), None, "{kept}");
        }
    }

    #[test]
    fn a_path_that_is_none_names_the_nearest() {
        let said = |path: &str| missing(&path.parse().unwrap()).message;
        assert_eq!(
            said("/v1/chat/completion"),
            "there is no route \"/v1/chat/completion\"; did you mean /v1/chat/completions?"
        );
        assert!(said("/v2/embedings").ends_with("did you mean /v1/embeddings?"));
        assert!(said("/api/embedings").ends_with("did you mean /api/embeddings?"));
        assert!(said("/favicon.ico").contains("; there are /, /health, "));
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "ab")), (3, 2, 0));
    }
}
