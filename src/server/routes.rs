//! The routes, and what every request goes through on its way to one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tower_service::Service as _;

use super::UnknownFields;
use super::app::App;
use super::budget::{BodyCharge, ChargedBody};
use super::failure::{Dialect, Failure, json_body};
use super::json::Notes;
use super::request::Reply;
use super::{anthropic, chat, completions, embeddings, guard, ollama, page, rerank, responses, texts};

/// The paths that there are, as metrics name them.
const ROUTES: [&str; 28] = [
    "/",
    "/health",
    "/metrics",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/apply-template",
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
            .route("/v1/models", get(models))
            .route("/v1/models/{name}", get(model))
            .route("/tokenize", post(texts::tokenize))
            .route("/detokenize", post(texts::detokenize))
            .route("/apply-template", post(texts::apply_template))
            .route("/v1/chat/completions", post(chat::create))
            .route("/v1/completions", post(completions::create))
            .route("/v1/responses", post(responses::create))
            .route("/v1/embeddings", post(embeddings::create))
            .route("/v1/rerank", post(rerank::create))
            .route("/v1/messages", post(anthropic::create))
            .route("/v1/messages/count_tokens", post(anthropic::count))
            .route("/api/version", get(ollama::version))
            .route("/api/tags", get(ollama::tags))
            .route("/api/show", post(ollama::show))
            .route("/api/ps", get(ollama::ps))
            .route("/api/chat", post(ollama::chat))
            .route("/api/generate", post(ollama::generate))
            .route("/api/embed", post(ollama::embed))
            .route("/api/embeddings", post(ollama::embed_one))
            .route("/api/pull", any(ollama::refuse))
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
        let known = |wanted: &str| ROUTES.iter().find(|route| **route == wanted).copied();
        let route = known(path).or_else(|| known(parent(path))).unwrap_or("other");
        let (dialect, id) = (Dialect::of(path), self.app.id("req_"));
        let started = Instant::now();
        let asked = request.headers().clone();
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
                match self.router.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        };
        drop(charge);
        if let Some(failure) = response.extensions_mut().remove::<Failure>() {
            let status = failure.status;
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
    if ROUTES.iter().any(|route| *route == versioned || *route == parent(&versioned)) {
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
        (distance(word, last).min(whole), whole)
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

/// `/v1/models` of `/v1/models/NAME`.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(parent, _)| parent)
}

/// Whether the engine works: its files are what they were, and a step ended not long ago or, where there is nothing to do, it answers.
async fn health(State(app): State<Arc<App>>) -> Response {
    let (load, longest) = (app.model.engine().load(), app.options.longest_step);
    let stuck = if load.running + load.queued > 0 {
        load.stalled > longest
    } else {
        let engine = app.model.engine().clone();
        let answer = tokio::task::spawn_blocking(move || engine.with(|_| ()));
        !matches!(tokio::time::timeout(ANSWER.min(longest), answer).await, Ok(Ok(Ok(()))))
    };
    let changed = app.model.check_files().err();
    let (status, text) = match &changed {
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "changed"),
        None if stuck => (StatusCode::SERVICE_UNAVAILABLE, "stuck"),
        None => (StatusCode::OK, "ok"),
    };
    let mut body = json!({
        "status": text,
        "model": app.name,
        "backend": app.model.engine().backend(),
        "running": load.running,
        "queued": load.queued,
        "steps": load.steps,
        "seconds_since_step": load.idle.as_secs_f64(),
    });
    if let Some(error) = changed {
        body["error"] = error.to_string().into();
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
    let engine = app.model.engine();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(header::CONTENT_TYPE, kind)], app.metrics.text(engine.load(), engine.report(), &app.budget))
        .into_response()
}

/// The model by one of its names, in the shapes of both APIs at once.
fn model_json(app: &App, name: &str) -> Value {
    let info = app.model.info();
    json!({
        "id": name,
        "object": "model",
        "created": app.started,
        "owned_by": "backstop",
        "type": "model",
        "display_name": name,
        // Unknown, as Anthropic's API puts it.
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": info.context,
        "context_length": info.context,
        "backend": app.model.engine().backend(),
    })
}

async fn model(State(app): State<Arc<App>>, name: Result<Path<String>, PathRejection>) -> Reply {
    let Path(name) = name.map_err(|error| Failure::bad(error.body_text()))?;
    app.check_model(Some(&name))?;
    Ok(json_body(&model_json(&app, &name)))
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let names = std::iter::once(&app.name).chain(app.options.aliases.iter().filter(|name| *name != "*"));
    let models: Vec<_> = names.map(|name| model_json(&app, name)).collect();
    let (first, last) = (models.first().map(|m| m["id"].clone()), models.last().map(|m| m["id"].clone()));
    json_body(&json!({
        "object": "list", "data": models, "has_more": false, "first_id": first, "last_id": last,
    }))
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
