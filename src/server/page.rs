//! The page at `/`: one file, nothing from elsewhere, and a policy that lets it do nothing but ask this server.

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::app::random;

const PAGE: &str = include_str!("page.html");

/// What clients of Ollama look for at `/`.
const RUNNING: &str = "Ollama is running";

/// The page for who reads pages, or does not say what; for other clients the line that Ollama has here.
pub(crate) async fn root(headers: HeaderMap) -> Response {
    let reads = |accept: &HeaderValue| accept.to_str().is_ok_and(|accept| accept.contains("text/html"));
    let accept: Vec<&HeaderValue> = headers.get_all(header::ACCEPT).iter().collect();
    let mut response = match accept.is_empty() || accept.into_iter().any(reads) {
        true => show(),
        false => {
            let kind = HeaderValue::from_static("text/plain; charset=utf-8");
            ([(header::CONTENT_TYPE, kind)], RUNNING).into_response()
        }
    };
    let cache = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, cache);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// The page, with a number of its own that its script and style carry: what is not of this file does not run.
fn show() -> Response {
    let nonce = format!("{:016x}{:016x}", random(), random());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    ];
    (headers, PAGE.replace("{{nonce}}", &nonce)).into_response()
}
