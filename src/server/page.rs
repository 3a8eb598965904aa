//! The page at `/`: one file, nothing from elsewhere, and a policy that lets it do nothing but ask this server. Its sources are
//! in `web/`, and `cargo xtask page` makes it of them.

use std::sync::LazyLock;

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

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

/// The page, with the hashes of its own script and style: what is not of this file does not run, and no text becomes markup.
fn show() -> Response {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            hash("script"),
            hash("style")
        );
        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    ];
    (headers, PAGE).into_response()
}

/// What a policy calls the text of the page's one element of this name; without one, nothing.
fn hash(tag: &str) -> String {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let text = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map(|(text, _)| text);
    text.map_or("'none'".to_owned(), |text| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text))))
}
