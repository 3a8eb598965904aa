//! The hub over TLS, as the real one is: certificates are checked before anything is asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::served::{Action, Hub, ended, noise};

/// Who signs certificates.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "backstop's tests");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Its own certificate in a file, for those who trust it.
    fn file(&self, home: &Path) -> PathBuf {
        let file = home.join("authority.pem");
        std::fs::write(&file, self.certificate.pem()).unwrap();
        file
    }
}

/// What a certificate is of.
struct Of {
    name: &'static str,
    /// The last year that it is good for.
    until: i32,
}

const GOOD: Of = Of { name: "localhost", until: 2999 };

/// A door to a hub that speaks TLS; the address.
fn door(hub: &Hub, authority: &Authority, of: Of) -> String {
    let mut params = CertificateParams::new(vec![of.name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(of.until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let (config, plain) = (Arc::new(config), hub.address().trim_start_matches("http://").to_owned());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, plain) = (Arc::clone(&config), plain.clone());
            // A client that does not trust it goes away.
            std::thread::spawn(move || drop(pass(config, stream, &plain)));
        }
    });
    format!("https://localhost:{port}")
}

/// One request and its answer.
fn pass(config: Arc<ServerConfig>, stream: TcpStream, plain: &str) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut client = BufReader::new(StreamOwned::new(connection, stream));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let mut hub = TcpStream::connect(plain)?;
    hub.write_all(head.as_bytes())?;
    let client = client.get_mut();
    let mut bytes = vec![0; 1 << 16];
    loop {
        match hub.read(&mut bytes)? {
            0 => break,
            count => client.write_all(&bytes[..count])?,
        }
    }
    client.conn.send_close_notify();
    client.flush()
}

fn pull(hub: &Hub, home: &Path, endpoint: &str, trusted: Option<&Path>) -> (Option<i32>, String) {
    let mut command: Command = hub.command(home, &["pull", "org/model", "--token", "hf_secret"]);
    command.env("HF_ENDPOINT", endpoint).env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
    if let Some(file) = trusted {
        command.env("SSL_CERT_FILE", file);
    }
    let output = ended(command.spawn().unwrap());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn hub() -> (Hub, Vec<u8>) {
    let weights = noise(300_000, 5);
    let hub =
        Hub::with(&[("config.json", b"{}"), ("tokenizer.json", b"{ }"), ("model.safetensors", &weights)]);
    (hub, weights)
}

#[test]
fn a_model_comes_over_tls() {
    let (authority, home) = (Authority::new(), tempfile::tempdir().unwrap());
    let (hub, weights) = hub();
    let endpoint = door(&hub, &authority, GOOD);
    let (code, said) = pull(&hub, home.path(), &endpoint, Some(&authority.file(home.path())));
    assert_eq!(code, Some(0), "{said}");
    let found: Vec<_> = super::served::tree(home.path())
        .into_iter()
        .filter(|(path, _)| path.components().any(|part| part.as_os_str() == "blobs"))
        .collect();
    assert_eq!(found.len(), 3);
    assert!(found.iter().any(|(_, bytes)| *bytes == weights));
    // Within TLS the hub is told whose request it is.
    assert!(hub.seen().iter().all(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret")));
}

#[test]
fn nobody_is_asked_whose_certificate_is_wrong() {
    let (authority, home) = (Authority::new(), tempfile::tempdir().unwrap());
    let (hub, _) = hub();
    let trusted = authority.file(home.path());
    let cases = [
        (GOOD, None, "UnknownIssuer"),
        (Of { name: "example.org", ..GOOD }, Some(&*trusted), "not valid for name"),
        (Of { until: 2020, ..GOOD }, Some(&*trusted), "expired"),
    ];
    for (of, trusted, wanted) in cases {
        let endpoint = door(&hub, &authority, of);
        let (code, said) = pull(&hub, home.path(), &endpoint, trusted);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("is not trusted, and nothing was asked: ") && said.contains(wanted), "{said}");
        assert!(!said.contains("hf_secret"), "{said}");
    }
    assert_eq!(hub.seen().len(), 0);
}

#[test]
fn the_token_does_not_leave_tls() {
    let (authority, home) = (Authority::new(), tempfile::tempdir().unwrap());
    let (hub, _) = hub();
    let endpoint = door(&hub, &authority, GOOD);
    // Files lie at an address without TLS: who listens there is not to learn the token.
    let plain = hub.address().to_owned();
    hub.rule(move |seen, _| match seen.is_file() && seen.authorization.is_some() {
        true => Action::Status(302, vec![("Location", format!("{plain}{}", seen.path))]),
        false => Action::Serve,
    });
    let (code, said) = pull(&hub, home.path(), &endpoint, Some(&authority.file(home.path())));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("which is not encrypted: refused"), "{said}");
    assert!(hub.seen().iter().all(|seen| seen.authorization.is_some()), "nobody was asked without TLS");
}
