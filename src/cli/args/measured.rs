//! The arguments of what measures models.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::value::{at_least_one, threads};
use super::{ModelArgs, ReadArgs};

/// `backstop tasks`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Each line is a question in JSON: ctx, endings, label (HellaSwag's) or question, choices, answer (MMLU's). The model takes the choice\n\
    whose tokens have the largest sum of log-probabilities (acc), or the largest by character (acc_norm), as in lm-evaluation-harness.",
    override_usage = "backstop tasks [OPTIONS] [MODEL] FILE"
)]
pub struct TasksArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Questions to ask at most [default: all].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub limit: Option<usize>,
    /// Questions that are asked at a time.
    #[arg(long, value_name = "N", default_value = "8", value_parser = at_least_one, allow_hyphen_values = true)]
    pub at_once: usize,
    /// Write a line of JSON for each question.
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    /// Tokens of context [default: what the model was trained for, as far as memory allows].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub ctx: Option<usize>,
    /// Threads of the CPU kernels [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    pub threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
