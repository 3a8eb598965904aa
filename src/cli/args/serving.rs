//! The arguments of the server.

use std::path::PathBuf;
use std::time::Duration;

use backstop::forward::Pool;
use clap::Args as ClapArgs;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::ArgValueCompleter;

use super::super::here::models;
use super::super::times::{Idle, seconds};
use super::value::{at_least_one, connections, size};
use super::{DEFAULT_PORT, ModelArgs, SessionArgs};

/// `backstop serve`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Ctrl-C, SIGTERM or SIGHUP ends it once its answers are out, a second Ctrl-C or SIGTERM at once; after `nohup`,\n\
    SIGHUP does not.\n\
    The key may also be in BACKSTOP_API_KEY, where other users of the machine do not see it."
)]
pub struct ServeArgs {
    /// Models by name, directory or GGUF file: the first is loaded at once, and answers requests that name none; others are
    /// loaded when they are asked for [default: all models on this machine, and the built-in story model as stories].
    #[arg(value_name = "MODEL", conflicts_with = "model", add = ArgValueCompleter::new(models))]
    pub paths: Vec<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub session: SessionArgs,
    #[command(flatten)]
    pub several: SeveralArgs,
    /// The address to listen on; one beyond this machine needs --api-key.
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// The port to listen on; 0 takes one that is free.
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    pub port: u16,
    /// What clients must send, on every route but /health; given several times, each client sends its own, and has its own
    /// cache of prompts.
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// Let requests load adapters of this directory, by their names in it (POST /v1/adapters/load) [default: none].
    #[arg(long, value_name = "DIR")]
    pub adapters_dir: Option<PathBuf>,
    /// A file with a key in each line, or a name, a space and a key.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Which hidden states make the vector of a text: of all tokens their mean, or the first's, or the last's [default: as the
    /// model's files say, else mean].
    #[arg(long, value_name = "WHICH")]
    #[arg(value_parser = PossibleValuesParser::new(Pool::NAMES).try_map(|name| name.parse::<Pool>()))]
    pub pooling: Option<Pool>,
    /// A further name that the first model goes by, and where none is named the built-in one, which is served alone then; '*' is any.
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// Sequences at a time.
    #[arg(long, value_name = "N", default_value = "16", value_parser = at_least_one)]
    pub parallel: usize,
    /// Sequences that may wait beside those; more get 429.
    #[arg(long, value_name = "N", default_value = "64")]
    pub max_queue: usize,
    /// An origin whose pages may ask, such as http://localhost:3000; * is all.
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Vec<String>,
    /// A further name that this machine is asked by.
    #[arg(long, value_name = "NAME")]
    pub allowed_host: Vec<String>,
    /// Bytes of the largest request.
    #[arg(long, value_name = "BYTES", default_value = "8388608", value_parser = at_least_one)]
    pub body_limit: usize,
    /// What bodies of requests and answers that are not written yet may take together, never less than --body-limit.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub buffer_memory: u64,
    /// What becomes of fields of a request that are not known: warn passes them over, and says so in the log and in a header
    /// of the answer; refuse answers with 400.
    #[arg(long, value_name = "WHAT", default_value = "warn")]
    #[arg(value_parser = PossibleValuesParser::new(["warn", "refuse"]))]
    pub unknown_fields: String,
    /// Open connections; more wait.
    #[arg(long, value_name = "N", default_value = "512", value_parser = connections)]
    pub max_connections: usize,
    /// For the head of a request, and how long an open connection may be idle.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    pub header_timeout: Duration,
    /// For the body of a request.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub body_timeout: Duration,
    /// How long a client may leave its answer unread.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    pub stall_timeout: Duration,
    /// How long answers go on after Ctrl-C, SIGTERM or SIGHUP.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub drain_timeout: Duration,
}

/// Several models in one server.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Several models")]
pub struct SeveralArgs {
    /// Offer the models in a folder and its folders, too, by their paths below it.
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
    /// Offer all models on this machine, too, as `backstop list` shows them. Where nothing is named, that is what is done.
    #[arg(long)]
    pub all: bool,
    /// What all loaded models may take together: 12GB, 8GiB. One that does not fit beside the others takes the place of those that
    /// were not used the longest [default: what the machine has].
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub memory: Option<u64>,
    /// Unload a model that nobody has used for as long: 600 (seconds), 10m, 1h30m; off: never. A request's keep_alive says otherwise.
    #[arg(long, value_name = "TIME", default_value = "off", allow_hyphen_values = true)]
    pub idle_unload: Idle,
}
