//! Who listens at the ports that matter: that of `backstop serve`, Ollama's and LM Studio's.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::args::DEFAULT_PORT;
use super::super::term;
use super::Finding;

/// Where the programs listen that people have beside this one.
const OTHERS: [u16; 2] = [11434, 1234];
/// How long all ports together may take.
const WITHIN: Duration = Duration::from_millis(300);
/// Bytes of an answer that are read at most.
const MOST: usize = 1 << 20;
/// Names of models that a line has at most.
const NAMES: usize = 5;
/// What 11434 and 1234 are for.
const OLLAMA: &str = "Ollama";
const LM_STUDIO: &str = "LM Studio";
const OWN: &str = "backstop";

/// Who listens at a port.
#[derive(Debug, PartialEq)]
enum Who {
    Nobody,
    /// It takes connections, and answers nothing that is HTTP in the time that there is.
    Silent,
    /// A server of something else.
    Other,
    Known(Known),
}

/// Why models are not told.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Untold {
    /// It asks for a key.
    Key,
    /// It takes longer, or answers something else.
    Late,
}

#[derive(Debug, PartialEq)]
struct Known {
    program: &'static str,
    version: Option<String>,
    /// What it offers, and how many of it are loaded where it says that; or why it tells none.
    models: Result<(Vec<String>, Option<usize>), Untold>,
}

impl Who {
    fn told(&self) -> String {
        match self {
            Self::Nobody => "nobody listens".to_owned(),
            Self::Silent => "something that does not answer".to_owned(),
            Self::Other => "another program's server".to_owned(),
            Self::Known(known) => known.told(),
        }
    }

    fn json(&self, port: u16) -> Value {
        match self {
            Self::Nobody => json!({ "port": port, "listens": false }),
            Self::Silent => json!({ "port": port, "listens": true, "answers": false }),
            Self::Other => json!({ "port": port, "listens": true, "answers": true, "program": null }),
            Self::Known(Known { program, version, models }) => json!({
                "port": port, "listens": true, "answers": true, "program": program, "version": version,
                "models": models.as_ref().ok().map(|(names, _)| names),
                "loaded": models.as_ref().ok().and_then(|(_, loaded)| *loaded),
            }),
        }
    }
}

impl Known {
    fn told(&self) -> String {
        let version = self.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        let models = match &self.models {
            Err(Untold::Key) => ", which does not tell its models without a key".to_owned(),
            Err(Untold::Late) => ", which did not tell its models in time".to_owned(),
            Ok((names, _)) if names.is_empty() => " without a model".to_owned(),
            Ok((names, loaded)) => {
                let count = plural(names.len(), "model");
                let loaded = loaded.map(|loaded| format!(", {loaded} loaded")).unwrap_or_default();
                let more = names.len().saturating_sub(NAMES);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!(" with {count}{loaded}: {}{more}", names[..names.len().min(NAMES)].join(", "))
            }
        };
        format!("{}{version}{models}", self.program)
    }
}

/// `1 core`, `2 cores`.
pub(super) fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The port that `serve` is to take, and who listens there and at others' ports.
pub(super) fn ports(port: u16) -> Finding {
    found(port, &OTHERS)
}

fn found(port: u16, others: &[u16]) -> Finding {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let free = bound.as_ref().map(|_| ()).map_err(ToString::to_string);
    // Nobody is to be found there who is this process.
    drop(bound);
    let others: Vec<u16> = others.iter().copied().filter(|other| *other != port).collect();
    let deadline = Instant::now() + WITHIN;
    let (own, beside) = std::thread::scope(|scope| {
        // A port that is free has nobody to ask.
        let own = free.is_err().then(|| scope.spawn(|| who(port, deadline)));
        let beside: Vec<_> = others.iter().map(|other| scope.spawn(move || who(*other, deadline))).collect();
        let own = own.map_or(Who::Nobody, |own| own.join().unwrap_or(Who::Silent));
        (own, beside.into_iter().map(|who| who.join().unwrap_or(Who::Silent)).collect::<Vec<_>>())
    });
    let mut lines = vec![match (&free, &own) {
        (Ok(()), _) => format!("{port} is free for backstop serve"),
        (Err(error), Who::Nobody) => format!("{port} cannot be had: {error}"),
        (Err(_), who) => format!("{port} is taken: {}", who.told()),
    }];
    let listen = others.iter().zip(&beside).filter(|(_, who)| **who != Who::Nobody);
    lines.extend(listen.map(|(port, who)| format!("{port}: {}", who.told())));
    let json = json!({
        "port": port, "free": free.is_ok(), "who": own.json(port),
        "beside": others.iter().zip(&beside).map(|(port, who)| who.json(*port)).collect::<Vec<_>>(),
    });
    let serves = matches!(&own, Who::Known(known) if known.program == OWN);
    let finding = Finding::new("port", lines, json);
    match free.is_ok() {
        true => finding,
        false if serves => {
            let url = match port {
                DEFAULT_PORT => String::new(),
                port => format!(" --url http://127.0.0.1:{port}"),
            };
            let what = "and backstop serve --port N runs another beside it";
            finding.advise(true, format!("it serves already: backstop ps{url} shows its models, {what}"))
        }
        false => finding.advise(true, "backstop serve --port N takes another, --port 0 one that is free"),
    }
}

/// Who listens at `port`, as far as can be told until `deadline`.
fn who(port: u16, deadline: Instant) -> Who {
    let ask = |path: &str| get(port, path, deadline).map(|(_, answer)| answer);
    let text = |value: &Value| value.as_str().map(term::one_line);
    // Each is asked for what it alone has.
    let version = match ask("/api/version") {
        Ok(answer) => answer,
        Err(who) => return who,
    };
    let names = |path: &str, list: &str, name: &str| {
        let (status, answer) = get(port, path, deadline).map_err(|_| Untold::Late)?;
        if matches!(status, 401 | 403) {
            return Err(Untold::Key);
        }
        let all = answer[list].as_array().ok_or(Untold::Late)?;
        Ok((all.iter().filter_map(|model| text(&model[name])).collect::<Vec<_>>(), answer))
    };
    let own = |version: Option<String>| {
        let loaded = |answer: &Value| {
            let states = answer["data"].as_array().into_iter().flatten().map(|model| &model["state"]);
            Some(states.filter(|state| **state == "loaded").count())
        };
        let models = names("/v1/models", "data", "id").map(|(names, answer)| (names, loaded(&answer)));
        Who::Known(Known { program: OWN, version, models })
    };
    if let Some(version) = text(&version[OWN]) {
        return own(Some(version));
    }
    if let Some(version) = text(&version["version"]) {
        let models = names("/api/tags", "models", "name").map(|(names, _)| (names, None));
        return Who::Known(Known { program: OLLAMA, version: Some(version), models });
    }
    if ask("/lmstudio-greeting").is_ok_and(|answer| answer["lmstudio"] == true) {
        let models = names("/v1/models", "data", "id").map(|(names, _)| (names, None));
        return Who::Known(Known { program: LM_STUDIO, version: None, models });
    }
    // What asks for a key has one route without.
    match ask("/health") {
        Ok(answer) if answer["seconds_since_step"].is_number() => own(None),
        _ => Who::Other,
    }
}

/// The status and the JSON that `path` answers with, null where it answers with something else; or who it is that does not.
fn get(port: u16, path: &str, deadline: Instant) -> Result<(u16, Value), Who> {
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Who::Silent) } else { Ok(left) }
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, left()?).map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => Who::Nobody,
        _ => Who::Silent,
    })?;
    let silent = |_| Who::Silent;
    // HTTP/1.0: what comes is the body as it is, up to the end.
    let head = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n");
    stream.set_write_timeout(Some(left()?)).map_err(silent)?;
    stream.write_all(head.as_bytes()).map_err(silent)?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while bytes.len() < MOST {
        stream.set_read_timeout(Some(left()?)).map_err(silent)?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Who::Silent),
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    if !text.starts_with("HTTP/1.") {
        return Err(Who::Silent);
    }
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, backstop::strict_json(body).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is answered where a key is asked for.
    const KEY: &str = "key";

    /// A server that answers paths with texts, and others with 404; each connection on a thread of its own.
    fn server(answers: &'static [(&'static str, &'static str)]) -> u16 {
        listens(move |mut stream| {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let found = answers.iter().find(|(asked, _)| *asked == path);
            let (status, body) = match found {
                None => (404, "{\"error\": \"no\"}"),
                Some((_, KEY)) => (401, "{\"error\": \"a key\"}"),
                Some((_, body)) => (200, *body),
            };
            let _ = write!(stream, "HTTP/1.1 {status} x\r\nConnection: close\r\n\r\n{body}");
        })
    }

    /// What is done with each connection to a port.
    fn listens(with: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let with = with.clone();
                std::thread::spawn(move || with(stream));
            }
        });
        port
    }

    /// One that nobody listens at.
    fn free() -> u16 {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    const LISTED: &str =
        r#"{"data": [{"id": "a", "state": "loaded"}, {"id": "b\u001b[2J", "state": "unloaded"}]}"#;

    #[test]
    fn who_answers_is_told_by_what_it_alone_has() {
        let known = |program, version: Option<&str>, models| {
            Who::Known(Known { program, version: version.map(str::to_owned), models })
        };
        let named =
            |names: &[&str], loaded| Ok((names.iter().map(|&name| name.to_owned()).collect(), loaded));
        let own = server(&[
            ("/api/version", r#"{"version": "0.12.6", "backstop": "0.1.0"}"#),
            ("/v1/models", LISTED),
        ]);
        assert_eq!(who(own, soon()), known(OWN, Some("0.1.0"), named(&["a", "b␛[2J"], Some(1))));
        let keyed =
            server(&[("/health", r#"{"status": "ok", "seconds_since_step": 0.5}"#), ("/v1/models", KEY)]);
        assert_eq!(who(keyed, soon()), known(OWN, None, Err(Untold::Key)));
        // What answers something else, or nothing in time.
        let other = server(&[("/api/version", r#"{"version": "0.12.6"}"#)]);
        assert_eq!(who(other, soon()), known(OLLAMA, Some("0.12.6"), Err(Untold::Late)));
        let ollama = server(&[
            ("/api/version", r#"{"version": "0.12.6"}"#),
            ("/api/tags", r#"{"models": [{"name": "m:latest"}]}"#),
        ]);
        assert_eq!(who(ollama, soon()), known(OLLAMA, Some("0.12.6"), named(&["m:latest"], None)));
        // It answers what it has not with an error that has the status 200.
        let studio = server(&[
            ("/api/version", r#"{"error": "Unexpected endpoint or method."}"#),
            ("/lmstudio-greeting", r#"{"lmstudio": true}"#),
            ("/v1/models", r#"{"data": []}"#),
        ]);
        assert_eq!(who(studio, soon()), known(LM_STUDIO, None, named(&[], None)));
        let others: [&[(&str, &str)]; 3] = [
            &[],
            &[("/api/version", "1.0"), ("/health", r#"{"status": "ok"}"#)],
            &[("/api/version", "<html>")],
        ];
        for answers in others {
            assert_eq!(who(server(answers), soon()), Who::Other, "{answers:?}");
        }
        assert_eq!(who(free(), soon()), Who::Nobody);
        let hangs_up = listens(drop);
        let no_http = listens(|mut stream| drop(stream.write_all(b"SSH-2.0-x\r\n")));
        for port in [hangs_up, no_http] {
            assert_eq!(who(port, soon()), Who::Silent);
        }
    }

    #[test]
    fn nobody_is_waited_for_longer_than_all_may_take() {
        let mute = listens(|stream| {
            std::thread::sleep(Duration::from_secs(60));
            drop(stream);
        });
        let drops = listens(|mut stream| {
            while stream.write_all(b"H").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let floods = listens(|mut stream| while stream.write_all(&[b' '; 4096]).is_ok() {});
        let begun = Instant::now();
        let finding = found(mute, &[drops, floods]);
        let took = begun.elapsed();
        // However late a busy machine begins, nobody waits for the minute that the first takes.
        assert!(took >= WITHIN && took < Duration::from_secs(30), "{took:?}");
        let told = "something that does not answer";
        let expected =
            [format!("{mute} is taken: {told}"), format!("{drops}: {told}"), format!("{floods}: {told}")];
        assert_eq!(finding.lines, expected);
        assert_eq!(finding.json["who"], json!({ "port": mute, "listens": true, "answers": false }));
    }

    #[test]
    fn what_is_found_is_said_in_a_line_each() {
        let own =
            server(&[("/api/version", r#"{"version": "1", "backstop": "0.1.0"}"#), ("/v1/models", LISTED)]);
        let (nobody, port) = (free(), free());
        // A port that is asked for twice is told of once.
        let finding = found(own, &[nobody, own]);
        assert_eq!(
            finding.lines,
            [format!("{own} is taken: backstop 0.1.0 with 2 models, 1 loaded: a, b␛[2J")]
        );
        assert!(finding.advice[0].starts_with("it serves already: backstop ps"), "{:?}", finding.advice);
        assert_eq!((&finding.json["free"], &finding.json["who"]["loaded"]), (&json!(false), &json!(1)));
        assert_eq!(finding.json["beside"], json!([{ "port": nobody, "listens": false }]));
        let finding = found(port, &[own]);
        assert_eq!(finding.lines[0], format!("{port} is free for backstop serve"));
        assert!(
            finding.lines[1].starts_with(&format!("{own}: backstop 0.1.0 with 2 models")),
            "{:?}",
            finding.lines
        );
        assert_eq!((finding.advice.len(), &finding.json["free"]), (0, &json!(true)));
        let names = (0..7).map(|i| i.to_string()).collect();
        let many = Known { program: OLLAMA, version: None, models: Ok((names, None)) };
        assert_eq!(many.told(), "Ollama with 7 models: 0, 1, 2, 3, 4 and 2 more");
    }
}
