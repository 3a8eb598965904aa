//! Requests of bytes that no client's package would send.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::plan::{Outcome, Scene, refused};
use super::question::Api;
use crate::load::client;

/// The server's `--body-limit`.
pub const LIMIT: usize = 8 << 20;
/// Connections that are left open at a time.
const HELD: usize = 300;

/// A request that cannot be meant: it is refused with 4xx, or its connection ends.
pub fn senseless(scene: &Scene<'_>, random: u64) -> Result<Outcome> {
    let long = format!("{{\"prompt\": {}", "[".repeat(20_000));
    let bodies: [&str; 6] = [
        "{\"prompt\": \"x\", \"prompt\": \"y\"}",
        "{\"prompt\": 1e999}",
        &long,
        "{\"prompt\": \"x\", \"max_tokens\": -2}",
        "{\"prompt\": [4000000000]}",
        "\u{0}",
    ];
    let body = bodies[(random % 6) as usize];
    let mut request = client::post(scene.address, Api::Completions.path(), scene.key, body.as_bytes());
    // Some break off in the middle.
    if random.is_multiple_of(4) {
        request.truncate(request.len() - body.len().div_ceil(2));
        client::connect(scene.address)?.write_all(&request)?;
        return Ok(Outcome::Refused);
    }
    scene.refused(&request, &[400])
}

/// A format that cannot be enforced, or is none.
pub fn unenforceable(scene: &Scene<'_>, random: u64) -> Result<Outcome> {
    let schema =
        |schema: Value| json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let formats = [
        schema(json!({ "type": "string", "not": { "const": "x" } })),
        schema(json!({ "type": "string", "pattern": "(?=x)y" })),
        schema(json!({ "$ref": "#/$defs/none" })),
        schema(json!({ "type": "integer", "minimum": 5, "maximum": 4 })),
        json!({ "type": "regex", "regex": "(" }),
        json!({ "type": "lark", "grammar": "start: missing" }),
        json!({ "type": "lark", "grammar": "start: start" }),
    ];
    let format = &formats[(random % formats.len() as u64) as usize];
    let body = json!({ "prompt": "x", "max_tokens": 8, "response_format": format }).to_string();
    let request = client::post(scene.address, Api::Completions.path(), scene.key, body.as_bytes());
    scene.refused(&request, &[400])
}

/// A body over the limit: declared and sent, declared and not sent, in chunks, and on any route.
pub fn oversize(address: SocketAddr, key: Option<&str>, random: u64) -> Result<Outcome> {
    let path = match (random >> 8) % 6 {
        4 => "/tokenize",
        5 => "/v1/embeddings",
        api => Api::ALL[api as usize].path(),
    };
    let request = match random % 4 {
        0 => client::post(address, path, key, &vec![b' '; LIMIT + 1]),
        1 => {
            let head = client::head(address, path, key, "content-length: 1000000000000\r\n");
            [head.as_bytes(), b"{"].concat()
        }
        2 => {
            let head = client::head(address, path, key, "transfer-encoding: chunked\r\n");
            let chunk = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
            [head.as_bytes(), &chunk.repeat(9), b"0\r\n\r\n"].concat()
        }
        // One chunk that says that it is larger than memory.
        _ => {
            let head = client::head(address, path, key, "transfer-encoding: chunked\r\n");
            [head.as_bytes(), b"7fffffffffff\r\n", &vec![b'['; LIMIT + (1 << 16)]].concat()
        }
    };
    refused(&client::raw(address, &request)?, &[413])
}

/// A connection of its own, which half of the clients close at an odd point.
pub fn odd_connection(scene: &Scene<'_>, random: u64) -> Result<Outcome> {
    let question = scene.pick(random >> 8);
    let (api, body) = (scene.questions[question].api, scene.questions[question].body.to_string());
    let request = client::post(scene.address, api.path(), scene.key, body.as_bytes());
    let head = request.len() - body.len();
    let part = |range: usize| (random >> 32) as usize % range.max(1);
    let sent = match random % 16 {
        // One after the other on a connection that stays.
        8 => return kept_alive(scene),
        0..8 => return scene.answered(question),
        // Nothing at all; some of the head; some of the body; all of it.
        9 => 0,
        10 | 11 => part(head),
        12 | 13 => head + part(body.len()),
        14 => request.len(),
        // Bytes that are no HTTP.
        _ => {
            return scene.refused(&[&[0x16, 3, 1, 2, 0][..], &request[..40]].concat(), &[400]);
        }
    };
    let mut connection = client::connect(scene.address)?;
    // The server may have given its place to another.
    let _ = connection.write_all(&request[..sent]);
    match (random >> 48) % 4 {
        // Left half-sent, to be closed much later.
        0 if sent < request.len() => scene.hold(connection, HELD),
        1 => drop(connection.shutdown(Shutdown::Write)),
        2 => thread::sleep(Duration::from_millis(part(50) as u64)),
        _ => {}
    }
    Ok(Outcome::Cancelled)
}

/// Three requests on one connection, sent at once.
fn kept_alive(scene: &Scene<'_>) -> Result<Outcome> {
    let one = |more: &str| format!("GET /health HTTP/1.1\r\nhost: {}\r\n{more}\r\n", scene.address);
    let mut connection = client::connect(scene.address)?;
    connection.write_all([one(""), one(""), one("connection: close\r\n")].concat().as_bytes())?;
    let mut answers = String::new();
    connection.read_to_string(&mut answers)?;
    ensure!(answers.matches("HTTP/1.1 200").count() == 3, "not three answers: {answers}");
    Ok(Outcome::Answered)
}
