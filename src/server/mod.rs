//! The HTTP server: OpenAI's, Anthropic's and Ollama's APIs over one engine. Routes, wire types, limits; no model code.

mod adapters;
mod answers;
mod anthropic;
mod app;
mod beside;
mod budget;
mod chat;
mod chosen;
mod completions;
mod connection;
mod cut;
mod described;
mod embeddings;
mod failure;
mod fetch;
mod forms;
mod guard;
mod handlers;
mod json;
mod llama;
mod meant;
mod metrics;
mod models;
mod ollama;
mod openai;
mod page;
mod params;
mod places;
mod request;
mod rerank;
mod responses;
mod routes;
mod served;
mod sse;
mod store;
mod texts;
mod until;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::models::{Models, ModelsOptions};
use app::App;
pub use fetch::{Fetch, Fetching, Look};
use handlers::Handlers;
#[cfg(test)]
pub(crate) use routes::ROUTES;

/// What becomes of fields of a request that are not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// They are passed over; the log and a header of the answer name them.
    #[default]
    Warn,
    /// The request is refused.
    Refuse,
}

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Whose it is.
    pub name: String,
    /// What they send.
    pub key: String,
}

/// How a model is served.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address to listen on, by name or number. Beyond this machine, there must be `api_keys`.
    pub host: String,
    /// The port to listen on; 0 lets the system choose.
    pub port: u16,
    /// What clients must send, one of them; none where there are none. What is kept of the requests of one, beginnings of prompts
    /// and answers of `/v1/responses`, is of no use to another.
    pub api_keys: Vec<ApiKey>,
    /// Where adapters lie that requests may have loaded; none are without it.
    pub adapters_dir: Option<PathBuf>,
    /// Sequences in flight; the engine must have been given the same.
    pub parallel: usize,
    /// Sequences that may wait beside those in flight; more are refused.
    pub max_queue: usize,
    /// Names that the model goes by beside its own; `*` is any.
    pub aliases: Vec<String>,
    /// Origins whose pages may ask; `*` is all.
    pub cors: Vec<String>,
    /// Names that this machine goes by, beside `localhost` and `host`.
    pub allowed_hosts: Vec<String>,
    /// Bytes of the largest request body.
    pub body_limit: usize,
    /// Bytes that bodies of requests and answers not yet written may take, of all connections together; never less than
    /// `body_limit`.
    pub buffer_memory: usize,
    /// What becomes of fields that are not known.
    pub unknown_fields: UnknownFields,
    /// Open connections; more wait.
    pub max_connections: usize,
    /// For a request's head, the wait for it on an open connection included.
    pub header_timeout: Duration,
    /// For a request's body.
    pub body_timeout: Duration,
    /// How long a client may not read what is written to it.
    pub stall_timeout: Duration,
    /// How long a step may take before `/health` says that the engine is stuck.
    pub longest_step: Duration,
    /// How long answers go on after the server was told to end.
    pub drain_timeout: Duration,
    /// Who downloads models for requests; nobody where absent.
    pub fetch: Option<Arc<dyn Fetch>>,
    /// Who looks for models that others have brought since the start; nobody where absent.
    pub look: Option<Arc<dyn Look>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            adapters_dir: None,
            host: "127.0.0.1".into(),
            port: 8080,
            api_keys: Vec::new(),
            parallel: 16,
            max_queue: 64,
            aliases: Vec::new(),
            cors: Vec::new(),
            allowed_hosts: Vec::new(),
            body_limit: 8 << 20,
            // The largest body for each sequence in flight, and as much for answers and for those that wait.
            buffer_memory: 256 << 20,
            unknown_fields: UnknownFields::default(),
            max_connections: 512,
            header_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(20),
            // A long prompt of a large model on few cores.
            longest_step: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(60),
            fetch: None,
            look: None,
        }
    }
}

/// An address that is listened on; clients wait until [`serve`] answers them.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on the address that `options` name.
    ///
    /// # Errors
    /// A name that is not known, an address in use, and one beyond this machine without a key; keys that no header can hold, and
    /// two of one name or with one key.
    pub fn bind(options: &Options) -> Result<Self> {
        check_keys(&options.api_keys)?;
        let shown = format!("{}:{}", options.host, options.port);
        let io = |source| Error::io(Path::new(&shown), source);
        let addresses: Vec<SocketAddr> =
            (options.host.as_str(), options.port).to_socket_addrs().map_err(io)?.collect();
        if options.api_keys.is_empty() && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(Error::Option {
                option: "host",
                got: options.host.clone(),
                expected: "an address of this machine alone, such as 127.0.0.1, where there is no --api-key",
            });
        }
        let socket = TcpListener::bind(&addresses[..]).map_err(io)?;
        socket.set_nonblocking(true).map_err(io)?;
        let address = socket.local_addr().map_err(io)?;
        Ok(Self { socket, address })
    }

    /// The address, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Refuses keys that cannot be sent, and names that would not keep what belongs to one key from another's clients.
fn check_keys(keys: &[ApiKey]) -> Result<()> {
    let plain = |key: &ApiKey| {
        let graphic = !key.key.is_empty() && key.key.bytes().all(|byte| byte.is_ascii_graphic());
        graphic && !key.name.is_empty() && !key.name.chars().any(char::is_control)
    };
    for (i, key) in keys.iter().enumerate() {
        let again = keys[..i].iter().any(|other| other.name == key.name || other.key == key.key);
        if again || !plain(key) {
            return Err(Error::Option {
                option: "api_keys",
                got: crate::json::quote(&key.name).to_string(),
                expected: "keys of visible ASCII characters, with names of their own without control characters",
            });
        }
    }
    Ok(())
}

/// Serves `model` until `stop`; then accepts nothing new, and returns when all answers are out or `drain_timeout` is over.
/// To be called within a tokio runtime: it moves bytes there, and answers on two threads of its own.
///
/// # Errors
/// A listener that tokio cannot take over, and a system that gives no threads.
pub async fn serve(
    listener: Listener,
    model: Model,
    options: Options,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let models = Models::new(ModelsOptions::default())?;
    let name = if model.info().is_builtin() { "stories".to_owned() } else { model.info().name.clone() };
    models.add(name, options.aliases.clone(), model)?;
    serve_models(listener, models, options, stop).await
}

/// As [`serve`], with several models: the `model` of a request says which, and one that is not loaded is, before it answers.
/// The first is what a request without a name means. `options.aliases` are not looked at: each model has its own.
///
/// # Errors
/// As [`serve`].
pub async fn serve_models(
    listener: Listener,
    models: Models,
    options: Options,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let Listener { socket, address } = listener;
    let shown = address.to_string();
    let socket =
        tokio::net::TcpListener::from_std(socket).map_err(|source| Error::io(Path::new(&shown), source))?;
    let app = Arc::new(App::new(models, options, address.ip().is_loopback()));
    connection::serve(Arc::clone(&app), Handlers::start()?, socket, stop).await;
    // A load comes to its end first, and a second signal is heard meanwhile.
    let _ = tokio::task::spawn_blocking(move || drop(app)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_of_one_name_each() {
        let bind = |keys: &[(&str, &str)]| {
            let api_keys = keys.iter().map(|(name, key)| ApiKey { name: (*name).into(), key: (*key).into() });
            Listener::bind(&Options { port: 0, api_keys: api_keys.collect(), ..Options::default() })
        };
        assert!(bind(&[("a", "x"), ("b", "y")]).is_ok());
        for keys in [
            &[("a", "x"), ("a", "y")][..],
            &[("a", "x"), ("b", "x")],
            // What is kept of a key's clients with a salt is kept by both, in two lines.
            &[("a\nsalt", "x")],
            &[("", "x")],
            &[("a", "")],
            &[("a", "x y")],
        ] {
            let error = bind(keys).unwrap_err().to_string();
            assert!(error.contains("keys of visible ASCII characters"), "{error}");
        }
    }
}
