//! Asking the hub: redirects, tokens, patience, and what its refusals mean.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector, TcpConnector};
use ureq::{Agent, Body, ProxyProtocol};

use super::address::{Address, without_credentials};
use super::listing::{Listing, MAX_ANSWER};
use super::name::RepositoryId;
use super::patience::Patience;
use super::settings::{Settings, checked_token};
use crate::error::{Error, HubFault, Result};

/// Redirects of one request.
const MOST_REDIRECTS: usize = 8;
/// The longest that `Retry-After` is heeded.
const MOST_WAIT: Duration = Duration::from_secs(120);
/// How often a wait looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Asks a hub.
pub struct Client {
    agent: Agent,
    endpoint: Address,
    token: Option<String>,
    stop: Arc<AtomicBool>,
    /// The longest that a listing may take to come.
    listing: Duration,
    /// How often in a row what fails is tried.
    tries: u32,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint.to_string())
            .field("token", &self.token.as_ref().map(|_| "…"))
            .finish_non_exhaustive()
    }
}

/// Why a request brought nothing.
pub(super) enum Failure {
    /// It may the next time, after a while.
    Again(String, Option<Duration>),
    /// It will not.
    Final(Error),
    /// A person ended it.
    Stopped,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Client {
    /// How often in a row what fails is tried, unless [`Self::with_tries`] says otherwise.
    pub const TRIES: u32 = 6;

    /// A client of the hub that the settings name.
    ///
    /// # Errors
    /// [`Error::Hub`] where it may not be asked, or its address is none.
    pub fn new(settings: &Settings) -> Result<Self> {
        if settings.offline {
            let what = "HF_HUB_OFFLINE is set: nothing is downloaded; unset it, or take a model that is here (backstop list)";
            return Err(Error::hub(HubFault::Network, what));
        }
        Self::with_patience(settings, Duration::from_secs(30))
    }

    /// As [`Self::new`], with another time than 30 s after which a silent connection is given up; it may be asked offline, too.
    /// One on which less than 1 kB/s comes is given up after twice that, and a listing that is not whole after ten times.
    ///
    /// # Errors
    /// [`Error::Hub`] where the address is none.
    pub fn with_patience(settings: &Settings, silence: Duration) -> Result<Self> {
        let endpoint = Address::parse(&settings.endpoint).ok_or_else(|| {
            let shown = without_credentials(&settings.endpoint);
            let more = match shown == settings.endpoint {
                true => "",
                false => ", without a name and password, which are not sent: HF_TOKEN says who asks",
            };
            let what =
                format!("HF_ENDPOINT is {shown:?}, expected an address such as https://huggingface.co{more}");
            Error::hub(HubFault::Name, what)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider);
        // No limit for a response: ureq would hold the body to it, too. `Patience` sees to both.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("backstop/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(silence))
            .timeout_connect(Some(silence))
            .tls_config(tls.build())
            .build();
        let http =
            |proxy: &ureq::Proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
        if !config.proxy().is_none_or(http) {
            let what = "the environment names a SOCKS proxy, which is not spoken here: set HTTPS_PROXY to an HTTP proxy";
            return Err(Error::hub(HubFault::Network, what));
        }
        let listing = 10 * silence;
        let patience = Patience { silence, stop: Arc::clone(&stop) };
        let connector =
            ().chain(ConnectProxyConnector::default())
                .chain(TcpConnector::default())
                .chain(patience)
                .chain(RustlsConnector::default());
        let agent = Agent::with_parts(config, connector, DefaultResolver::default());
        let token = settings.token.as_deref().map(checked_token).transpose()?;
        Ok(Self { agent, endpoint, token, stop, listing, tries: Self::TRIES })
    }

    /// The client, by which what fails is tried so often in a row, at least once.
    pub fn with_tries(self, tries: u32) -> Self {
        Self { tries: tries.max(1), ..self }
    }

    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    /// The flag that ends what this client does: downloads return nothing then.
    pub fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What the hub has of a revision; nothing where it was stopped.
    ///
    /// # Errors
    /// [`Error::Hub`].
    pub fn listing(&self, id: &RepositoryId, revision: &str) -> Result<Option<Listing>> {
        let revision = revision.replace('/', "%2F");
        let address = self.endpoint.join(&format!("/api/models/{id}/revision/{revision}?blobs=true"));
        // Of all tries, without the pauses between.
        let mut left = self.listing;
        let text = self.patiently(id, || {
            let (response, _) = self.get(id, &address, None)?;
            let started = Instant::now();
            let read = self.answer(id, response, left);
            left = left.saturating_sub(started.elapsed());
            let bytes = read?;
            if bytes.len() as u64 > MAX_ANSWER {
                let what =
                    format!("{id}: the hub's answer is longer than a listing may be, {MAX_ANSWER} bytes");
                return Err(Error::hub(HubFault::Answer, what).into());
            }
            String::from_utf8(bytes).map_err(|_| {
                Failure::Final(Error::hub(
                    HubFault::Answer,
                    format!("{id}: the hub's answer is no text (UTF-8)"),
                ))
            })
        })?;
        text.map(|text| Listing::parse(id.as_str(), &text)).transpose()
    }

    /// The bytes of an answer, as far as a listing may be long.
    fn answer(
        &self,
        id: &RepositoryId,
        response: Response<Body>,
        within: Duration,
    ) -> std::result::Result<Vec<u8>, Failure> {
        let started = Instant::now();
        let mut body = response.into_body().into_reader().take(MAX_ANSWER + 1);
        let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match body.read(&mut chunk) {
                Ok(0) => return Ok(bytes),
                Ok(read) => bytes.extend_from_slice(&chunk[..read]),
                Err(error) => return Err(self.broken(format!("the connection broke: {error}"))),
            }
            if started.elapsed() >= within {
                let what = format!(
                    "{id}: the listing of its files did not come whole within {} s: look after the network and {}",
                    self.listing.as_secs(),
                    self.endpoint
                );
                return Err(Error::hub(HubFault::Network, what).into());
            }
        }
    }

    /// Where a file lies.
    pub(super) fn file(&self, id: &RepositoryId, commit: &str, path: &str) -> Address {
        self.endpoint.join(&format!("/{id}/resolve/{commit}/{}", encoded(path)))
    }

    /// Does what may fail for a while, with pauses between; nothing where it was stopped.
    pub(super) fn patiently<T>(
        &self,
        id: &RepositoryId,
        mut what: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> Result<Option<T>> {
        let mut tries = 0;
        loop {
            match what() {
                Ok(done) => return Ok(Some(done)),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Stopped) => return Ok(None),
                Err(Failure::Again(why, wait)) => {
                    tries += 1;
                    if tries >= self.tries {
                        return Err(self.given_up(id, &why));
                    }
                    self.pause(tries, wait, || false);
                }
            }
        }
    }

    /// Waits before the next try: as long as the hub says, else longer each time; not once it is over.
    pub(super) fn pause(&self, tries: u32, wait: Option<Duration>, is_over: impl Fn() -> bool) {
        let wait = wait.unwrap_or_else(|| Duration::from_millis(200 << tries.min(6))).min(MOST_WAIT);
        let started = Instant::now();
        while !self.is_stopped() && !is_over() && started.elapsed() < wait {
            std::thread::sleep(LOOK.min(wait - started.elapsed().min(wait)));
        }
    }

    /// That it does not work.
    pub(super) fn given_up(&self, id: &RepositoryId, why: &str) -> Error {
        let what = format!(
            "{id}: {why}, {} times in a row: look after the network and {}, then pull again, which goes on where it \
             was",
            self.tries, self.endpoint
        );
        Error::hub(HubFault::Network, what)
    }

    /// A connection that did not do what it should.
    pub(super) fn broken(&self, why: String) -> Failure {
        if self.is_stopped() { Failure::Stopped } else { Failure::Again(why, None) }
    }

    /// Asks for an address, or a range of what lies there, and follows redirects. The token goes to the endpoint's own origin and
    /// to nobody else. Comes with the address that answered.
    pub(super) fn get(
        &self,
        id: &RepositoryId,
        address: &Address,
        range: Option<&Range<u64>>,
    ) -> std::result::Result<(Response<Body>, Address), Failure> {
        let mut address = address.clone();
        for _ in 0..=MOST_REDIRECTS {
            if self.is_stopped() {
                return Err(Failure::Stopped);
            }
            let mut request = self.agent.get(address.to_string());
            // A proxy has another loopback, and would hear the token.
            if address.is_loopback() && !address.is_secure() {
                request = request.config().proxy(None).build();
            }
            if let Some(range) = range {
                request = request
                    .header(header::RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            }
            if let Some(token) = self.token.as_ref().filter(|_| self.may_know(&address)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| match untrusted(&error) {
                Some(why) => {
                    let what = format!(
                        "{id}: {} is not trusted, and nothing was asked: {why}. Where a company's proxy stands between, SSL_CERT_FILE names its certificate",
                        address.origin()
                    );
                    Failure::Final(Error::hub(HubFault::Network, what))
                }
                None => self.broken(format!("{}: {error}", address.origin())),
            })?;
            if !response.status().is_redirection() {
                return self.accepted(id, response, address);
            }
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let next = to.and_then(|to| address.follow(to)).ok_or_else(|| {
                let what = format!("{id}: {} redirects to nowhere", address.origin());
                Failure::Final(Error::hub(HubFault::Answer, what))
            })?;
            if address.is_secure() && !next.is_secure() {
                let what = format!(
                    "{id}: {} redirects to {}, which is not encrypted: refused",
                    address.origin(),
                    next.origin()
                );
                return Err(Error::hub(HubFault::Answer, what).into());
            }
            address = next;
        }
        let what = format!("{id}: more than {MOST_REDIRECTS} redirects, the last to {}", address.origin());
        Err(Error::hub(HubFault::Answer, what).into())
    }

    /// Whether the token may go there: to the endpoint, encrypted or within this machine.
    fn may_know(&self, address: &Address) -> bool {
        address.origin() == self.endpoint.origin() && (address.is_secure() || address.is_loopback())
    }

    /// What a status means.
    fn accepted(
        &self,
        id: &RepositoryId,
        response: Response<Body>,
        address: Address,
    ) -> std::result::Result<(Response<Body>, Address), Failure> {
        let status = response.status();
        let own = address.origin() == self.endpoint.origin();
        let fault = |fault, what: String| Err(Failure::Final(Error::hub(fault, what)));
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok((response, address)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if own => {
                // Nobody is told of what is not there, unless he may know of all that is.
                let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
                fault(HubFault::Gated, self.gated(id, status, code))
            }
            StatusCode::NOT_FOUND if own => {
                let what = format!("{id}: {} has no such repository, revision or file", self.endpoint);
                fault(HubFault::NotFound, what)
            }
            StatusCode::RANGE_NOT_SATISFIABLE if own => {
                fault(HubFault::Changed, format!("{id}: a file there is shorter than in the hub's listing"))
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                let header =
                    response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                let wait = header.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
                Err(Failure::Again(format!("{} answers {status}", address.origin()), wait))
            }
            _ if status.is_server_error() || !own => {
                Err(Failure::Again(format!("{} answers {status}", address.origin()), None))
            }
            _ => fault(HubFault::Answer, format!("{id}: {} answers {status}", address.origin())),
        }
    }

    /// Where to ask, and how to say who asks.
    fn gated(&self, id: &RepositoryId, status: StatusCode, code: Option<&str>) -> String {
        let page = self.endpoint.join(&format!("/{id}"));
        if self.token.is_some() && !self.may_know(&self.endpoint) {
            return format!(
                "{id}: {0} wants to know who asks ({status}), and the token was withheld: {0} is not encrypted, and all on the \
                 way would hear it. Set HF_ENDPOINT to an address with https",
                self.endpoint
            );
        }
        if self.token.is_none() || status == StatusCode::UNAUTHORIZED {
            let is_unknown = self.token.is_some();
            let given = if is_unknown { "does not know the token" } else { "wants to know who asks" };
            let tokens = self.endpoint.join("/settings/tokens");
            let then = format!("make a token at {tokens}, and give it by --token or HF_TOKEN");
            return match code {
                Some("RepoNotFound") => format!(
                    "{id}: {} has no such repository, or it is somebody's own ({status}): look at how its name is written; of your own, \
                     {then}",
                    self.endpoint
                ),
                Some("GatedRepo") => {
                    let unknown = if is_unknown { ", and the token is not known there" } else { "" };
                    format!("{id}: the model is gated{unknown} ({status}). Ask for it at {page}, {then}")
                }
                _ => format!(
                    "{id}: {} {given} ({status}): the name may be wrong, or the model is gated. Ask for it at {page}, {then}",
                    self.endpoint
                ),
            };
        }
        format!(
            "{id}: the model is gated, and the token has not been let in ({status}): ask for it at {page}, with the account that the \
             token belongs to"
        )
    }
}

/// Why another side's certificate is not taken, where it is that: another try would find the same one.
fn untrusted(error: &ureq::Error) -> Option<String> {
    let of = |error: &rustls::Error| {
        let is =
            matches!(error, rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented);
        is.then(|| error.to_string())
    };
    match error {
        ureq::Error::Rustls(error) => of(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref::<rustls::Error>().and_then(of),
        _ => None,
    }
}

/// A path as it stands in an address.
fn encoded(path: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
