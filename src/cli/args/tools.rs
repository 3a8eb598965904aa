//! The arguments about this program and this machine.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap::builder::PossibleValuesParser;

use super::DEFAULT_PORT;

/// A server that runs.
#[derive(Debug, ClapArgs)]
pub struct ServerArgs {
    /// The server's address [default: this machine, and --port].
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The port of a server on this machine.
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT, conflicts_with = "url")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Its key [default: what BACKSTOP_API_KEY says].
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
}

/// `backstop ps`.
#[derive(Debug, ClapArgs)]
pub struct PsArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Also show models that are not loaded.
    #[arg(long)]
    pub all: bool,
    /// Print what the server answers.
    #[arg(long)]
    pub json: bool,
}

/// `backstop stop`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "A model that answers somebody is unloaded when it has. The next request for it loads it again."
)]
pub struct StopArgs {
    /// The model's name, as `backstop ps` shows it.
    #[arg(value_name = "MODEL")]
    pub name: String,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// `backstop doctor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit code 0 if models run here, 1 with the reasons where something is wrong.")]
pub struct DoctorArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// The port that `serve` is to take: whether it is free, or who listens there.
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
}

/// `backstop completions`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "bash: backstop completions bash > ~/.local/share/bash-completion/completions/backstop\n\
    zsh:  backstop completions zsh > DIR/_backstop, where DIR is in $fpath\n\
    fish: backstop completions fish > ~/.config/fish/completions/backstop.fish\n\
    The script asks this program for words, so it need not be made again for a later version."
)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_parser = PossibleValuesParser::new(["bash", "elvish", "fish", "powershell", "zsh"]))]
    pub shell: String,
}

/// `backstop man`.
#[derive(Debug, ClapArgs)]
pub struct ManArgs {
    /// Write the page of every command to this directory, instead of the program's own page to stdout.
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
