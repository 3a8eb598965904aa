//! Who may ask: the `Host` and `Origin` of a request, where a browser says that it comes from, and its key.

use std::net::IpAddr;

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::app::App;
use super::failure::Failure;
use super::store::Caller;

/// Whether pages of other sites may show an answer.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Refuses a request that is framed in a way of its own, for another host, from another web site, or without the key. `open`
/// routes need no key. Whose key it was.
pub(crate) fn check(app: &App, method: &Method, headers: &HeaderMap, open: bool) -> Result<Caller, Failure> {
    check_framing(headers)?;
    let host = host(headers)?;
    check_host(app, &host)?;
    check_origin(app, headers, &host)?;
    check_site(app, method, headers)?;
    if open { Ok(Caller::default()) } else { check_key(app, headers) }
}

/// What is sent in another way than it says would be read in another way by whoever stands between.
fn check_framing(headers: &HeaderMap) -> Result<(), Failure> {
    let is = |value: &HeaderValue, wanted: &str| value.as_bytes().eq_ignore_ascii_case(wanted.as_bytes());
    let encodings: Vec<&HeaderValue> = headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    if encodings.len() > 1 || encodings.iter().any(|encoding| !is(encoding, "chunked")) {
        return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "the only Transfer-Encoding known is chunked"));
    }
    if headers.get_all(header::EXPECT).iter().any(|expected| !is(expected, "100-continue")) {
        return Err(Failure::new(StatusCode::EXPECTATION_FAILED, "the only Expect known is 100-continue"));
    }
    Ok(())
}

/// Refuses what a page of another site asks without saying which; that a person follows a link to here is no such thing.
fn check_site(app: &App, method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
    let is = |name: &str, wanted: &str| headers.get(name).is_some_and(|value| value == wanted);
    let followed = *method == Method::GET && is("sec-fetch-mode", "navigate");
    let named = headers
        .get(header::ORIGIN)
        .map_or_else(|| app.options.cors.iter().any(|cors| cors == "*"), |origin| allowed(app, origin));
    if !is("sec-fetch-site", "cross-site") || followed || named {
        return Ok(());
    }
    Err(Failure::new(StatusCode::FORBIDDEN, "a page of another site may not ask here (--cors allows it)"))
}

/// The one `Host` of a request.
fn host(headers: &HeaderMap) -> Result<Authority, Failure> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Failure::bad("expected one Host header"));
    };
    let parsed = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    parsed
        .filter(|host| !host.as_str().contains('@'))
        .ok_or_else(|| Failure::bad("the Host header is malformed"))
}

/// A page of another site can make a browser ask this machine under the site's own name; such a name is no name of ours.
fn check_host(app: &App, host: &Authority) -> Result<(), Failure> {
    let options = &app.options;
    if !app.loopback && options.allowed_hosts.is_empty() {
        return Ok(());
    }
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    let ours = name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || name.eq_ignore_ascii_case(&options.host)
        || options.allowed_hosts.iter().any(|allowed| name.eq_ignore_ascii_case(allowed));
    if ours {
        return Ok(());
    }
    let what =
        format!("the Host {} is not served here (--allowed-host adds it)", crate::json::quote(host.as_str()));
    Err(Failure::new(StatusCode::FORBIDDEN, what))
}

fn check_origin(app: &App, headers: &HeaderMap, host: &Authority) -> Result<(), Failure> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else { return Ok(()) };
    if origins.next().is_some() {
        return Err(Failure::bad("expected one Origin header"));
    }
    let text = origin.to_str().unwrap_or_default();
    let own = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    if own.is_some_and(|own| own.eq_ignore_ascii_case(host.as_str())) || allowed(app, origin) {
        return Ok(());
    }
    let what = format!("the Origin {} may not ask here (--cors allows it)", crate::json::quote(text));
    Err(Failure::new(StatusCode::FORBIDDEN, what))
}

/// Whether `--cors` names an origin.
fn allowed(app: &App, origin: &HeaderValue) -> bool {
    app.options.cors.iter().any(|cors| cors == "*" || cors.as_bytes() == origin.as_bytes())
}

fn check_key(app: &App, headers: &HeaderMap) -> Result<Caller, Failure> {
    let keys = &app.options.api_keys;
    if keys.is_empty() {
        return Ok(Caller::default());
    }
    let given = given_key(headers);
    if let Some(given) = &given {
        // All of them, whichever it is.
        let whose = keys.iter().fold(None, |whose, key| match equal(given, key.key.as_bytes()) {
            true => Some(key),
            false => whose,
        });
        if let Some(key) = whose {
            return Ok(Caller::of_key(&key.key));
        }
    }
    let what = match given {
        Some(_) => "the API key is wrong",
        None => "no API key: send Authorization: Bearer KEY, or x-api-key: KEY",
    };
    Err(Failure::new(StatusCode::UNAUTHORIZED, what).with_code("invalid_api_key"))
}

/// The key of a request: a bearer's, Anthropic's header, or the password that a browser asks for.
fn given_key(headers: &HeaderMap) -> Option<Vec<u8>> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes().to_vec());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let at = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = (&value[..at], value[at..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = STANDARD.decode(rest).ok()?;
    let colon = pair.iter().position(|&byte| byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Whether `given` is `key`, in a time that depends on the length of `given` alone.
fn equal(given: &[u8], key: &[u8]) -> bool {
    let mut different = given.len() ^ key.len();
    for (i, byte) in given.iter().enumerate() {
        let of_key = if key.is_empty() { 0 } else { key[i % key.len()] };
        different |= usize::from(std::hint::black_box(byte ^ of_key));
    }
    std::hint::black_box(different) == 0
}

/// Whether this asks what a page of another origin may do.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Lets a page of an allowed origin read the answer; to a preflight, what it may send.
pub(crate) fn add_cors(app: &App, asked: &HeaderMap, answer: &mut HeaderMap, preflight: bool) {
    let Some(origin) = asked.get(header::ORIGIN).filter(|origin| allowed(app, origin)) else { return };
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    answer.insert(header::VARY, HeaderValue::from_static("origin"));
    answer.insert(RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    let exposed = HeaderValue::from_static("x-request-id, request-id, retry-after, x-backstop-ignored");
    answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    if !preflight {
        return;
    }
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(headers) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
    }
}

/// What every answer has.
pub(crate) fn add_headers(answer: &mut HeaderMap, id: &str) {
    answer.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    if let Ok(id) = HeaderValue::from_str(id) {
        answer.insert(HeaderName::from_static("request-id"), id.clone());
        answer.insert(HeaderName::from_static("x-request-id"), id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_whole() {
        assert!(equal(b"secret", b"secret"));
        for wrong in [&b""[..], b"s", b"secre", b"secrets", b"secretsecret", b"Secret"] {
            assert!(!equal(wrong, b"secret"), "{wrong:?}");
        }
        assert!(!equal(b"x", b""));
    }

    #[test]
    fn a_key_comes_in_three_ways() {
        let of = |name: HeaderName, value: &'static str| {
            given_key(&HeaderMap::from_iter([(name, HeaderValue::from_static(value))]))
        };
        let key = Some(b"k:1".to_vec());
        assert_eq!(of(header::AUTHORIZATION, "Bearer k:1"), key);
        assert_eq!(of(header::AUTHORIZATION, "bearer  k:1"), key);
        // `user:k:1`
        assert_eq!(of(header::AUTHORIZATION, "Basic dXNlcjprOjE="), key);
        assert_eq!(of(HeaderName::from_static("x-api-key"), "k:1"), key);
        assert_eq!(of(header::AUTHORIZATION, "Digest k:1"), None);
        assert_eq!(of(header::AUTHORIZATION, "Basic !"), None);
    }
}
