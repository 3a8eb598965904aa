//! What every route reads of a request, and what its handler gives.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::app::App;
use super::budget::BodyCharge;
use super::failure::Failure;
use super::json::{Fields, Notes, parse};
use super::store::Caller;
use crate::alloc;
use crate::error::Error;

/// What a handler gives.
pub(crate) type Reply = Result<Response, Failure>;

/// Seconds after which there may be room for another body.
const RETRY: u64 = 1;
/// How much of a body that is refused is read, so that a client that sends first and reads later learns why.
const DISCARD: (usize, Duration) = (64 << 20, Duration::from_secs(2));

/// The fields of a request's body.
///
/// # Errors
/// 415 for one that is said to be something else than JSON, 413 for one that is too large, before it is held; 503 while there is
/// no room for it; 408 for one that does not come; 400 for what is no strict JSON.
pub(crate) async fn fields(app: &App, request: Request) -> Result<Fields, Failure> {
    let headers = request.headers();
    if let Some(kind) =
        headers.get(header::CONTENT_TYPE).filter(|kind| !is_json(kind) && !is_of_curl(headers, kind))
    {
        let kind = crate::json::quote(&String::from_utf8_lossy(kind.as_bytes())).to_string();
        let what = format!("the body is {kind}, expected Content-Type: application/json");
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    let notes = request.extensions().get::<Notes>().cloned().unwrap_or_default();
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    let charge = request.extensions().get::<BodyCharge>().cloned();
    let charge = charge.unwrap_or_else(|| BodyCharge::new(&app.budget));
    parse(&body(app, request.into_body(), &charge).await?, &notes, caller)
}

/// Whether a type is what `curl -d` says of any body. A browser says so of a form, and then also where that comes from.
fn is_of_curl(headers: &HeaderMap, kind: &HeaderValue) -> bool {
    let of_browser = [header::ORIGIN, header::REFERER].iter().any(|name| headers.contains_key(name))
        || headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"));
    kind == "application/x-www-form-urlencoded" && !of_browser
}

/// Whether a type is JSON's: forms and plain text are what a page of any site may send.
fn is_json(kind: &HeaderValue) -> bool {
    let kind = kind.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    let kind = kind.to_ascii_lowercase();
    kind == b"application/json" || kind.starts_with(b"application/") && kind.ends_with(b"+json")
}

/// Why a body is not read.
enum Unread {
    TooLarge,
    /// All that bodies may hold is held.
    NoRoom,
    Failed(Failure),
}

async fn body(app: &App, mut body: Body, charge: &BodyCharge) -> Result<Bytes, Failure> {
    let read = tokio::time::timeout(app.options.body_timeout, whole(app, &mut body, charge));
    let unread = match read.await {
        Ok(Ok(bytes)) => return Ok(bytes.into()),
        Ok(Err(unread)) => unread,
        Err(_) => Unread::Failed(Failure::new(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    };
    let failure = match unread {
        Unread::Failed(failure) => return Err(failure),
        Unread::TooLarge => {
            let limit = app.options.body_limit;
            let what = format!("the body is over {limit} bytes (--body-limit)");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, what)
        }
        Unread::NoRoom => {
            let most = app.budget.most();
            let what = format!(
                "the {most} bytes for bodies and answers are taken (--buffer-memory): try again later"
            );
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, what).retry_after(RETRY)
        }
    };
    discard(body).await;
    Err(failure)
}

/// The bytes of a body. Room is made for what is read of it, not for what it declares: who sends nothing keeps nobody out.
async fn whole(app: &App, body: &mut Body, charge: &BodyCharge) -> Result<Vec<u8>, Unread> {
    let limit = app.options.body_limit;
    let declared = body.size_hint().exact().unwrap_or(0);
    let declared = usize::try_from(declared).ok().filter(|&bytes| bytes <= limit).ok_or(Unread::TooLarge)?;
    let none = |error: Error| Unread::Failed(error.into());
    let mut bytes = Vec::new();
    alloc::reserve(&mut bytes, declared, "a body").map_err(none)?;
    while let Some(frame) = body.frame().await {
        let broken = |error| Unread::Failed(Failure::bad(format!("the body broke off: {error}")));
        let data = frame.map_err(broken)?.into_data().unwrap_or_default();
        if data.len() > limit - bytes.len() {
            return Err(Unread::TooLarge);
        }
        if !charge.0.lock().reserve(data.len()) {
            return Err(Unread::NoRoom);
        }
        alloc::reserve_more(&mut bytes, data.len(), "a body").map_err(none)?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Reads what is left of a body that nobody wants.
async fn discard(mut body: Body) {
    let read = async {
        let mut left = DISCARD.0;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.into_data().map_or(0, |data| data.len()));
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD.1, read).await;
}
