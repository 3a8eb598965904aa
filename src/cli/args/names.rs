//! The arguments about models' names.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use clap_complete::ArgValueCompleter;

use crate::cli::here::models;

/// Where a model's files come from that is named, and is not on this machine.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct FetchArgs {
    /// Download a model that is named and not on this machine; without it a terminal asks.
    #[arg(long)]
    pub pull: bool,
    /// What tells the hub who asks [default: HF_TOKEN, which other users of the machine do not see, or what `hf auth login`
    /// left].
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
}

/// A text to read, and before it the model that reads it.
#[derive(Debug, ClapArgs)]
pub struct ReadArgs {
    /// The model, where FILE follows: its name, directory or GGUF file [default: the built-in story model].
    #[arg(value_name = "MODEL", add = ArgValueCompleter::new(models))]
    first: Option<PathBuf>,
    /// What it reads. One argument by itself is FILE.
    #[arg(value_name = "FILE", conflicts_with = "model")]
    second: Option<PathBuf>,
}

impl ReadArgs {
    /// The model that was typed before the file.
    pub fn model(&self) -> Option<&Path> {
        self.second.as_ref().and(self.first.as_deref())
    }

    /// The file, where it was typed.
    pub fn file(&self) -> Option<&Path> {
        self.second.as_deref().or(self.first.as_deref())
    }
}

/// `backstop pull`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "NAME is a repository of the hub, org/name[@revision][:VARIANT], where a variant is a GGUF file's type such as\n\
    Q4_K_M, or a short name such as qwen3:8b, of which what fits this machine is taken. Files go to the Hugging Face cache\n\
    (HF_HOME, HF_HUB_CACHE), where Python finds them, too; the hub is HF_ENDPOINT. What breaks off, or is ended by Ctrl-C, goes on\n\
    with the same command. The model's path goes to stdout."
)]
pub struct PullArgs {
    /// The models' names; several are downloaded one after the other.
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(models))]
    pub names: Vec<String>,
    /// What tells the hub who asks [default: HF_TOKEN, which other users of the machine do not see, or what `hf auth login`
    /// left].
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Download it though LM Studio or Ollama has it.
    #[arg(long)]
    pub again: bool,
}

/// `backstop list`.
#[derive(Debug, ClapArgs)]
pub struct ListArgs {
    /// Only models whose names have this in them.
    #[arg(value_name = "WORD")]
    pub word: Option<String>,
    /// List the short names that there are, instead of what is on this machine.
    #[arg(long)]
    pub names: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `backstop rm`.
#[derive(Debug, ClapArgs)]
pub struct RmArgs {
    /// The models' names, as list shows them; with a variant or a revision, nothing else of its repository.
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(models))]
    pub names: Vec<String>,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
}
