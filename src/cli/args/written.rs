//! The arguments of what writes models.

use std::path::PathBuf;

use backstop::quantize::Size;
use clap::Args as ClapArgs;
use clap::builder::PossibleValuesParser;
use clap_complete::ArgValueCompleter;

use super::value::{at_least_one, threads};
use super::{FetchArgs, ModelArgs, ReadArgs};
use crate::cli::here::models;

/// `backstop quantize`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The output is a directory that mlx-lm loads, or a GGUF file that llama.cpp loads. It appears when it is whole: until then it is made\n\
    beside its place, as .NAME.backstop-partial, which the next run takes over should this one be killed.\n\
    Matrices whose rows are not whole groups keep their type."
)]
pub struct QuantizeArgs {
    /// The model's name or directory (config.json, safetensors), or for --to gguf a GGUF file.
    #[arg(add = ArgValueCompleter::new(models))]
    pub model: PathBuf,
    #[command(flatten)]
    pub fetch: FetchArgs,
    /// The directory or GGUF file to write; it must not exist.
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// What to write.
    #[arg(long, value_name = "FORMAT", default_value = "mlx")]
    #[arg(value_parser = PossibleValuesParser::new(["mlx", "gguf"]))]
    pub to: String,
    /// MLX: what codes stand for, affine or mxfp4 [default: affine].
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
    /// MLX: bits of a code, 2, 3, 4, 5, 6 or 8 [default: 4].
    #[arg(long, value_name = "BITS", allow_hyphen_values = true)]
    pub bits: Option<u8>,
    /// MLX: elements that share a scale, 32, 64 or 128 [default: 64, mxfp4 32].
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub group: Option<u16>,
    /// GGUF: the type of matrices, F16, Q8_0, Q6_K, Q5_K_M, Q5_1, Q5_0, Q4_K_M, Q4_1, Q4_0, IQ4_NL, IQ4_XS, Q3_K_M or Q2_K [default: Q4_0].
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// What columns are worth, by which the errors of GGUF's types and of affine groups are weighed: a file of `backstop imatrix` or llama-imatrix.
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// How large the tensors may be, as 4.5bpw, 900MB or 3.2GB: each matrix gets the type or the bits that cost least there, by what
    /// they cost on --text.
    #[arg(long, value_name = "SIZE", requires = "text")]
    pub target: Option<Size>,
    /// A text of what the model is for, with --target.
    #[arg(long, value_name = "FILE", requires = "target")]
    pub text: Option<PathBuf>,
    /// Tokens of the text that are computed for each matrix, at least 16 [default: 128].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true, requires = "target")]
    pub tokens: Option<usize>,
    /// Threads of the CPU that compute them [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = threads, allow_hyphen_values = true, requires = "target")]
    pub threads: Option<usize>,
}

/// `backstop imatrix`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The file is llama.cpp's: sums of squares of what each column of each matrix is multiplied with, in GGUF. The text is read in\n\
    windows that lie one behind the other; what is left at its end is not read. Take some tens of windows, of what the model is for.",
    override_usage = "backstop imatrix [OPTIONS] --output <OUT> [MODEL] FILE"
)]
pub struct ImatrixArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    /// The GGUF file to write; it must not exist.
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Tokens that are read together [default: 512, or what the model was trained for where that is less].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub window: Option<usize>,
    /// Tokens of the text to read at most [default: all].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub tokens: Option<usize>,
    /// Measure the output head, too: it is mostly better quantized without.
    #[arg(long)]
    pub process_output: bool,
    /// Threads of the CPU kernels [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    pub threads: Option<usize>,
}

/// `backstop fuse`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The output is a directory of safetensors that every program loads. A model that is quantized is decoded first.\n\
    `run`, `chat` and `serve` compute with an adapter beside the weights as well: --adapter NAME=PATH."
)]
pub struct FuseArgs {
    /// The model's name or directory (config.json, safetensors).
    #[arg(add = ArgValueCompleter::new(models))]
    pub model: PathBuf,
    #[command(flatten)]
    pub fetch: FetchArgs,
    /// The adapter: a directory of PEFT or mlx-lm, or a GGUF file.
    #[arg(long, value_name = "PATH")]
    pub adapter: PathBuf,
    /// What the adapter's sum is multiplied by, beside its own scale.
    #[arg(long, value_name = "SCALE", default_value = "1", allow_hyphen_values = true)]
    pub scale: f32,
    /// The directory to write; it must not exist.
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
}

/// `backstop bundle`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "FILE by itself holds a conversation, FILE PROMPT answers, and FILE COMMAND is every other command, with its own\n\
    model where none is named. The weights are read in place. FILE doctor checks them by their hashes."
)]
pub struct BundleArgs {
    /// The model's name, directory, GGUF file, or another bundle.
    #[arg(add = ArgValueCompleter::new(models), required_unless_present = "verify")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub fetch: FetchArgs,
    /// The executable to write; it must not exist.
    #[arg(short, long, value_name = "FILE", required_unless_present = "verify")]
    pub output: Option<PathBuf>,
    /// Check the files in a bundle by their hashes, and write nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "output"])]
    pub verify: Option<PathBuf>,
}
