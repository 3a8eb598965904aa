//! What every route reads of a request, and what its handler gives.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::app::App;
use super::failure::Failure;
use super::json::{Fields, Notes, parse};
use super::store::Caller;

/// What a handler gives.
pub(crate) type Reply = Result<Response, Failure>;

/// How much of a body that is too large is read, so that a client that sends first and reads later learns why.
const DISCARD: (usize, Duration) = (64 << 20, Duration::from_secs(2));

/// The fields of a request's body.
///
/// # Errors
/// 415 for one that is said to be something else than JSON, 413 for one that is too large, before it is held; 408 for one that
/// does not come; 400 for what is no strict JSON.
pub(crate) async fn fields(app: &App, request: Request) -> Result<Fields, Failure> {
    if let Some(kind) = request.headers().get(header::CONTENT_TYPE).filter(|kind| !is_json(kind)) {
        let kind = crate::json::quote(&String::from_utf8_lossy(kind.as_bytes())).to_string();
        let what = format!("the body is {kind}, expected Content-Type: application/json");
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    let notes = request.extensions().get::<Notes>().cloned().unwrap_or_default();
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    parse(&body(app, request.into_body()).await?, &notes, caller)
}

/// Whether a type is JSON's: forms and plain text are what a page of any site may send.
fn is_json(kind: &HeaderValue) -> bool {
    let kind = kind.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    let kind = kind.to_ascii_lowercase();
    kind == b"application/json" || kind.starts_with(b"application/") && kind.ends_with(b"+json")
}

async fn body(app: &App, mut body: Body) -> Result<Bytes, Failure> {
    let limit = app.options.body_limit;
    let declared = body.size_hint().exact();
    if declared.is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_large(limit, body).await);
    }
    let whole = async {
        let mut bytes = Vec::with_capacity(declared.map_or(0, |bytes| bytes as usize));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failure::bad(format!("the body broke off: {error}")))?;
            let data = frame.into_data().unwrap_or_default();
            if data.len() > limit - bytes.len() {
                return Ok(None);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Some(bytes))
    };
    match tokio::time::timeout(app.options.body_timeout, whole).await {
        Ok(Ok(Some(bytes))) => Ok(bytes.into()),
        Ok(Ok(None)) => Err(too_large(limit, body).await),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    }
}

async fn too_large(limit: usize, mut body: Body) -> Failure {
    let discard = async {
        let mut left = DISCARD.0;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.into_data().map_or(0, |data| data.len()));
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD.1, discard).await;
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is over {limit} bytes (--body-limit)"))
}
