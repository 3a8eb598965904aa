//! Who may ask.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::support::{Server, chat};

/// Every route that the server's source makes, and how it is asked; and one that is none.
fn routes() -> Vec<(&'static str, String)> {
    let source = include_str!("../../src/server/routes.rs");
    let route = |text: &'static str| {
        let (path, handler) = text.split_once("\", ")?;
        let method = if handler.starts_with("get(") { "GET" } else { "POST" };
        Some((method, path.replace("{*name}", "stories").replace("{digest}", "sha256:00")))
    };
    let mut routes: Vec<_> = source.split(".route(\"").skip(1).filter_map(route).collect();
    for known in ["/v1/models/load", "/v1/models/unload", "/v1/models", "/api/chat", "/api/pull", "/api/tags"]
    {
        assert!(routes.iter().any(|(_, path)| path == known), "{known}");
    }
    routes.retain(|(_, path)| !matches!(&**path, "/" | "/health"));
    routes.push(("GET", "/nowhere".to_owned()));
    routes
}

#[test]
fn a_key_is_asked_for_on_every_route_but_health_and_the_page() {
    let server = Server::start(&["--api-key", "sesame"]);
    assert_eq!(server.address.ip().to_string(), "127.0.0.1");
    server.get("/health").ok();
    for (method, path) in &routes() {
        let answer = server.request(method, path, &[], b"{}");
        assert_eq!(answer.status, 401, "{path}");
        let wanted = "no API key: send Authorization: Bearer KEY, or x-api-key: KEY";
        let error = &answer.json()["error"];
        assert_eq!(error["message"].as_str().or(error.as_str()), Some(wanted), "{path}");
        // By another name it is no other route.
        for path in [format!("{path}/"), format!("/v1{path}")] {
            assert_eq!(server.request(method, &path, &[], b"{}").status, 401, "{path}");
        }
        for wrong in ["Bearer sesam", "Bearer sesames", "Bearer", "Basic c2VzYW1l", "sesame"] {
            let answer = server.request(method, path, &[("authorization", wrong)], b"{}");
            assert_eq!(answer.status, 401, "{path} {wrong}");
        }
    }
    let wrong = server.request("GET", "/v1/models", &[("x-api-key", "open")], b"");
    assert_eq!(wrong.refusal(401), "the API key is wrong");
    assert_eq!(wrong.json()["error"]["code"], "invalid_api_key");
    for right in
        [("authorization", "Bearer sesame"), ("x-api-key", "sesame"), ("authorization", "Basic OnNlc2FtZQ==")]
    {
        server.request("GET", "/v1/models", &[right], b"").ok();
    }
}

/// The hashes that its policy names are those of what is in it: a browser runs nothing else.
#[test]
fn the_page_has_one_script_and_one_style_and_a_policy_of_these() {
    let server = Server::start(&["--api-key", "sesame"]);
    let page = server.request("GET", "/", &[("accept", "text/html")], b"");
    assert_eq!(page.status, 200);
    let text = page.text();
    let part = |tag: &str| {
        let parts: Vec<&str> = text.split(&format!("<{tag}>")).collect();
        assert_eq!(parts.len(), 2, "one {tag} without attributes");
        parts[1].split(&format!("</{tag}>")).next().unwrap().to_owned()
    };
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    let wanted = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
        hash(&part("script")),
        hash(&part("style"))
    );
    assert_eq!(page.header("content-security-policy"), Some(wanted.as_str()));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert!(text.len() < 700 << 10, "{} bytes", text.len());
}

#[test]
fn a_public_address_needs_a_key() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    let ran =
        command.args(["serve", "--host", "0.0.0.0", "--port", "0"]).env_remove("BACKSTOP_API_KEY").output();
    let ran = ran.unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{said}");
    let wanted = "error: --host is 0.0.0.0, expected an address of this machine alone, such as 127.0.0.1, where there \
        is no --api-key\n";
    assert_eq!(said, wanted);
    // With one, any name of this machine will do.
    let server = Server::start(&["--host", "0.0.0.0", "--api-key", "k"]);
    let headers = [("host", "example.com"), ("x-api-key", "k")];
    server.request("GET", "/v1/models", &headers, b"").ok();
}

#[test]
fn an_address_in_use_is_said_before_a_model_is_loaded() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    let ran = command.args(["serve", "/nowhere", "--port", &port]).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let wanted = format!(
        "error: another program listens there: --port N takes another port, --port 0 one that is free: 127.0.0.1:{port}: \
         Address already in use"
    );
    assert!(said.starts_with(&wanted), "{said}");
}

#[test]
fn another_hosts_name_is_refused() {
    let server = Server::start(&["--allowed-host", "box.lan"]);
    let port = server.address.port();
    let get = |host: &str| server.request("GET", "/v1/models", &[("host", host)], b"");
    for ours in ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "127.9.9.9", "box.lan"] {
        get(ours).ok();
        get(&format!("{ours}:{port}")).ok();
    }
    for other in
        ["example.com", "localhost.example.com", "127.0.0.1.nip.io", "0.0.0.0", "192.168.1.1", "10.0.0.1:80"]
    {
        let wanted = format!("the Host {other:?} is not served here (--allowed-host adds it)");
        assert_eq!(get(other).refusal(403), wanted);
    }
    for broken in ["", "a b", "me@localhost", "localhost, localhost"] {
        assert_eq!(get(broken).status, 400, "{broken:?}");
    }
    // Also where no key would be asked for.
    assert_eq!(server.request("GET", "/health", &[("host", "example.com")], b"").status, 403);
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
    assert_eq!(crate::support::Answer::read(&mut stream).refusal(400), "expected one Host header");
}

#[test]
fn pages_of_other_sites_may_not_ask_unless_they_are_named() {
    let server = Server::start(&["--cors", "http://app.test:3000"]);
    let body = chat(json!({ "max_tokens": 1 })).to_string();
    let ask =
        |origin: &str| server.request("POST", "/v1/chat/completions", &[("origin", origin)], body.as_bytes());
    let own = ask(&format!("http://{}", server.address));
    own.ok();
    assert_eq!(own.header("access-control-allow-origin"), None);
    let named = ask("http://app.test:3000");
    named.ok();
    assert_eq!(named.header("access-control-allow-origin"), Some("http://app.test:3000"));
    for other in
        ["http://evil.test", "null", "http://app.test", "https://app.test:3000", "http://localhost:1"]
    {
        let answer = ask(other);
        let wanted = format!("the Origin {other:?} may not ask here (--cors allows it)");
        assert_eq!(answer.refusal(403), wanted);
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let preflight = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, content-type"),
        ];
        server.request("OPTIONS", "/v1/chat/completions", &headers, b"")
    };
    let allowed = preflight("http://app.test:3000");
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.header("access-control-allow-methods"), Some("GET, POST"));
    assert_eq!(allowed.header("access-control-allow-headers"), Some("authorization, content-type"));
    assert_eq!(preflight("http://evil.test").status, 403);
}

#[test]
fn what_a_browser_says_of_another_site_is_believed() {
    let server = Server::start(&["--cors", "http://app.test"]);
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let body =
            if method == "POST" { chat(json!({ "max_tokens": 1 })).to_string() } else { String::new() };
        server.request(method, path, headers, body.as_bytes())
    };
    let cross = ("sec-fetch-site", "cross-site");
    let wanted = "a page of another site may not ask here (--cors allows it)";
    assert_eq!(ask("GET", "/metrics", &[cross, ("sec-fetch-mode", "no-cors")]).refusal(403), wanted);
    assert_eq!(ask("POST", "/v1/chat/completions", &[cross]).refusal(403), wanted);
    assert_eq!(
        ask("POST", "/v1/chat/completions", &[cross, ("sec-fetch-mode", "navigate")]).refusal(403),
        wanted
    );
    // A link that a person follows, a page of ours, one that is named.
    assert_eq!(ask("GET", "/", &[cross, ("sec-fetch-mode", "navigate")]).status, 200);
    let own = ask("POST", "/v1/chat/completions", &[("sec-fetch-site", "same-origin")]);
    own.ok();
    assert_eq!(own.header("cross-origin-resource-policy"), Some("same-origin"));
    let named = ask("POST", "/v1/chat/completions", &[cross, ("origin", "http://app.test")]);
    named.ok();
    assert_eq!(named.header("cross-origin-resource-policy"), Some("cross-origin"));
    let twice = ask("GET", "/v1/models", &[("origin", "http://app.test"), ("origin", "http://evil.test")]);
    assert_eq!(twice.refusal(400), "expected one Origin header");
}

#[test]
fn a_body_is_json_and_says_so() {
    let server = Server::start(&[]);
    let body = chat(json!({ "max_tokens": 1 })).to_string();
    let ask =
        |headers: &[(&str, &str)]| server.request("POST", "/v1/chat/completions", headers, body.as_bytes());
    for kind in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
        ask(&[("content-type", kind)]).ok();
    }
    ask(&[]).ok();
    // What curl says of any body; a browser that says it says where the form is from.
    let form = "application/x-www-form-urlencoded";
    ask(&[("content-type", form)]).ok();
    for browser in
        [("origin", "http://127.0.0.1"), ("referer", "http://a.test/"), ("sec-fetch-mode", "navigate")]
    {
        let status = ask(&[("content-type", form), browser]).status;
        assert!(matches!(status, 403 | 415), "{browser:?}: {status}");
    }
    for kind in [
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded; charset=utf-8",
        "json",
        "",
    ] {
        let wanted = format!("the body is {kind:?}, expected Content-Type: application/json");
        assert_eq!(ask(&[("content-type", kind)]).refusal(415), wanted);
    }
}

#[test]
fn a_request_is_framed_in_one_way() {
    let server = Server::start(&[]);
    let ask = |headers: &[(&str, &str)], body: &[u8]| server.request("POST", "/tokenize", headers, body);
    let chunked = b"f\r\n{\"content\": \"a\"\r\n1\r\n}\r\n0\r\n\r\n";
    ask(&[("transfer-encoding", "chunked")], chunked).ok();
    let wanted = "the only Transfer-Encoding known is chunked";
    assert_eq!(ask(&[("transfer-encoding", "gzip, chunked")], chunked).refusal(501), wanted);
    assert_eq!(
        ask(&[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], chunked).refusal(501),
        wanted
    );
    assert_eq!(ask(&[("expect", "a-reply")], b"{}").refusal(417), "the only Expect known is 100-continue");
    // Whatever a Content-Length beside it says, nothing behind this request is read as another.
    let mut stream = server.connect();
    let smuggled = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
        0\r\n\r\nGET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    std::io::Write::write_all(&mut stream, smuggled.as_bytes()).unwrap();
    let answer = crate::support::Answer::read(&mut stream);
    assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
    assert!(!answer.text().contains("HTTP/1.1 200"), "{}", answer.text());
}

#[test]
fn a_path_that_is_no_text_is_answered_in_the_apis_shape() {
    let server = Server::start(&[]);
    for path in ["/v1/models/%FF", "/%FF", "/v1/messages/%FF"] {
        let answer = server.get(path);
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
        assert!(answer.json()["error"]["message"].is_string(), "{path}: {}", answer.text());
    }
}
