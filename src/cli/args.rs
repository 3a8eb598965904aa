//! The arguments as typed: parsed, not yet resolved against the model and its defaults.

mod measured;
mod names;
mod serving;
mod tools;
mod value;
mod written;

use std::path::PathBuf;
use std::time::Duration;

use backstop::AdapterSource;
use backstop::backend::cpu::Activations;
use backstop::backend::kv::KvType;
use backstop::backend::ops::OpKind;
use backstop::backend::select::BackendRequest;
use backstop::engine::Drafts;
use backstop::tensor::DType;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand};
use clap_complete::ArgValueCompleter;

pub use measured::TasksArgs;
pub use names::{FetchArgs, ListArgs, PullArgs, ReadArgs, RmArgs};
pub use serving::ServeArgs;
pub use tools::{CompletionsArgs, DoctorArgs, ManArgs, PsArgs, ServerArgs, StopArgs};
use value::{adapter, bias, kv_type, size, threads};
pub use value::{at_least_one, seed};
pub use written::{BundleArgs, FuseArgs, ImatrixArgs, QuantizeArgs};

use super::here::models;
use super::think::think;
use super::times::seconds;

/// The port that `serve` listens on where nobody says another.
pub const DEFAULT_PORT: u16 = 8080;

/// Run language models on this machine: on MLX where it is, on CPU kernels everywhere.
///
/// A MODEL is a directory or GGUF file, a repository of the Hugging Face hub (org/name[@revision][:VARIANT]), or a short name
/// such as qwen3:8b.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Exit codes: 0 success, 1 error, 2 wrong usage, 130 interrupted by Ctrl-C.\n\
    RUST_LOG sets the log on stderr more finely than -v.")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Log more to stderr; repeat it for debug and trace.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate text from a prompt.
    Run(RunArgs),
    /// Hold a conversation.
    Chat(ChatArgs),
    /// Serve models over HTTP, by the APIs of OpenAI, Anthropic and Ollama.
    #[command(aliases = ["server", "start"])]
    Serve(ServeArgs),
    /// Show what a model is and needs, without loading it.
    #[command(visible_alias = "show", alias = "info")]
    Inspect(InspectArgs),
    /// Download a model by its name.
    #[command(aliases = ["download", "get"])]
    Pull(PullArgs),
    /// List the models on this machine: of the Hugging Face cache, of LM Studio and of Ollama.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Remove a model from the Hugging Face cache.
    #[command(aliases = ["remove", "delete"])]
    Rm(RmArgs),
    /// Show the models that a running server holds.
    Ps(PsArgs),
    /// Have a running server unload a model.
    #[command(alias = "unload")]
    Stop(StopArgs),
    /// Show the prompt that a conversation becomes, and its tokens.
    Template(TemplateArgs),
    /// Run a command over several ranks, here or on other machines, each with a part of the model.
    Launch(LaunchArgs),
    /// Measure a model's speed and memory beside this machine's limits.
    Bench(BenchArgs),
    /// Compare what runs a model with the reference, layer by layer.
    Parity(ParityArgs),
    /// Say how well a model predicts a text, and how far from it another one is.
    Perplexity(PerplexityArgs),
    /// Ask a model questions of multiple choice, of a file of HellaSwag's or MMLU's form.
    Tasks(TasksArgs),
    /// Measure which columns of a model's matrices matter on a text, for quantize --imatrix.
    Imatrix(ImatrixArgs),
    /// Write a model in fewer bits.
    Quantize(QuantizeArgs),
    /// Write a model with an adapter in its weights.
    Fuse(FuseArgs),
    /// Write one executable that is this program and a model.
    Bundle(BundleArgs),
    /// Tell what this machine can do, and what to do about what it cannot.
    Doctor(DoctorArgs),
    /// Write a script that completes commands, options and names of models in a shell.
    Completions(CompletionsArgs),
    /// Write manual pages.
    Man(ManArgs),
    /// Compile a grammar from stdin within limits: what the server starts for those that may take any time.
    #[command(name = backstop::sample::trial::COMMAND, hide = true)]
    CheckGrammar,
}

/// `backstop run`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The text goes to stdout as it is generated, a summary to stderr. A model with a chat template is\n\
    given the prompt as a user's message, unless --raw. An empty prompt is the beginning-of-sequence\n\
    token alone; a model whose tokenizer adds none refuses it. A MODEL without a prompt on a terminal\n\
    begins a conversation, as `backstop chat MODEL` does."
)]
pub struct RunArgs {
    /// The model, where a prompt follows [default: the built-in story model]. One text alone is the prompt, unless it is the
    /// name of a model.
    #[arg(value_name = "MODEL", add = ArgValueCompleter::new(models))]
    pub first: Option<String>,
    /// The text to begin with; `-`, or none where stdin is not a terminal, reads it from stdin
    /// (one line end at the end of stdin is not part of it). What is piped in beside a text follows it, after an empty line.
    /// Several words are one text.
    #[arg(value_name = "PROMPT")]
    pub second: Vec<String>,
    /// The prompt, as other programs have it typed.
    #[arg(
        short,
        long = "prompt",
        value_name = "PROMPT",
        hide = true,
        conflicts_with = "second",
        allow_hyphen_values = true
    )]
    pub prompt: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub session: SessionArgs,
    /// Instruction that the chat template puts before the prompt.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Whether and how much the model thinks before it answers: on, off, minimal, low, medium or high [default: as its chat template has
    /// it].
    #[arg(long, value_name = "HOW", conflicts_with = "raw", value_parser = think)]
    pub think: Option<String>,
    /// Continue the prompt as it is, without the model's chat template.
    #[arg(long)]
    pub raw: bool,
    /// With --raw: what looks like a special token stays text.
    #[arg(long, requires = "raw")]
    pub no_special: bool,
    /// Do not print the summary that follows the text on stderr.
    #[arg(long)]
    pub no_summary: bool,
    /// Print one JSON object at the end instead of text and summary.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// What the text has to be.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Form of the text")]
#[group(multiple = false)]
pub struct FormArgs {
    /// JSON that a schema allows: the schema, or a file with it. What cannot be enforced is refused.
    #[arg(long, value_name = "JSON|FILE")]
    pub schema: Option<String>,
    /// What a regular expression matches as a whole.
    #[arg(long, value_name = "REGEX")]
    pub regex: Option<String>,
    /// What a Lark grammar derives from its rule `start`.
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
}

/// `backstop chat`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Ctrl-C stops an answer; at an empty prompt, Ctrl-D or a second Ctrl-C ends. /help lists the commands.\n\
    Where stdin is not a terminal, each of its lines is a turn."
)]
pub struct ChatArgs {
    /// The model's name, directory or GGUF file [default: the built-in story model].
    #[arg(value_name = "MODEL", conflicts_with = "model", add = ArgValueCompleter::new(models))]
    pub path: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub session: SessionArgs,
    /// Instruction that the chat template puts before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Whether and how much the model thinks before it answers: on, off, minimal, low, medium or high [default: as its chat template has
    /// it].
    #[arg(long, value_name = "HOW", value_parser = think)]
    pub think: Option<String>,
    /// Do not print the line of numbers that follows each answer on stderr.
    #[arg(long)]
    pub no_summary: bool,
    /// Show answers as they are, without colours for their Markdown.
    #[arg(long)]
    pub plain: bool,
    /// Neither read nor keep what is typed in conversations.
    #[arg(long)]
    pub no_history: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// `backstop inspect`.
#[derive(Debug, ClapArgs)]
pub struct InspectArgs {
    /// The model's name, directory or GGUF file [default: the built-in story model].
    #[arg(add = ArgValueCompleter::new(models))]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub fetch: FetchArgs,
    /// Tokens of context to look at beside the usual ones.
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one, allow_hyphen_values = true)]
    pub ctx: Option<usize>,
    /// What keys and values would be cached in [default: the weights' type].
    #[arg(long, value_name = "TYPE", value_parser = kv_type())]
    pub kv_type: Option<KvType>,
    /// Tell the memory of each of so many ranks (`backstop launch`).
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub ranks: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `backstop template`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "MESSAGES is a JSON list of messages, or an object as /v1/chat/completions takes it: messages, tools,\n\
    chat_template_kwargs, add_generation_prompt, continue_final_message, documents. Without it, a user says hello."
)]
pub struct TemplateArgs {
    /// The model's name, directory or GGUF file [default: the built-in story model]. No weight is read.
    #[arg(add = ArgValueCompleter::new(models))]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub fetch: FetchArgs,
    /// The conversation: a JSON file, or - for stdin.
    #[arg(long, value_name = "FILE")]
    pub messages: Option<PathBuf>,
    /// Tools: a JSON file with a list, in OpenAI's form.
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,
    /// Another chat template than the model's own: a file, one of its own by name, or chatml.
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Print one JSON object: the prompt, its tokens, and the text of each.
    #[arg(long)]
    pub json: bool,
}

/// `backstop bench`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Prompt and generation both begin after DEPTH cached tokens. Figures are medians over the repetitions, with\n\
    the least and the greatest. The limits (read bandwidth of the memory, multiply-adds of f32 and of bytes) are measured\n\
    before each repetition by a process of its own, so that its memory does not count. What a prompt takes of the peak\n\
    is the time of its products at that peak: of bytes where quantized weights meet rounded activations on the CPU, else f32."
)]
pub struct BenchArgs {
    /// The model's name, directory or GGUF file [default: the built-in story model].
    #[arg(value_name = "MODEL", conflicts_with = "model", add = ArgValueCompleter::new(models))]
    pub path: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of each prompt; 0 leaves prompts out.
    #[arg(short, long, value_name = "N", default_value = "512")]
    pub prompt: usize,
    /// Tokens to generate of each sequence; 0 leaves generation out.
    #[arg(short = 'n', long, value_name = "N", default_value = "128")]
    pub generate: usize,
    /// Tokens that are cached before.
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Sequences side by side.
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1", value_parser = at_least_one)]
    pub batch: Vec<usize>,
    /// Threads of the CPU kernels [default: one per core].
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', value_parser = threads)]
    pub threads: Vec<usize>,
    /// Repetitions of each measurement.
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    pub reps: usize,
    /// Then run each once more and show the time per op; each op is waited for, which takes longer where the backend is
    /// lazy.
    #[arg(long)]
    pub profile: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Measure the limits of N threads, and nothing else: one JSON object.
    #[arg(long, value_name = "N", hide = true, value_parser = threads)]
    pub limits: Option<usize>,
}

/// `backstop parity`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The reference is the CPU with --activations f32; compared is what --backend and --activations say. Both read the same\n\
    tokens and choose none. Errors are those of the hidden state after each layer and of the logits; divergences are\n\
    KL(reference || compared) of the next token's distribution, in nats."
)]
pub struct ParityArgs {
    /// The model [default: the built-in story model]. One argument alone is the text, unless it is the name of a model.
    #[arg(value_name = "MODEL", add = ArgValueCompleter::new(models))]
    pub first: Option<String>,
    /// The text to read [default: a short one; token ids where the model has no tokenizer].
    #[arg(value_name = "TEXT", conflicts_with = "model")]
    pub second: Option<String>,
    /// Read the text from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "second")]
    pub text_file: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of the text to compare at most.
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_one, allow_hyphen_values = true)]
    pub tokens: usize,
    /// Threads of the CPU kernels [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    pub threads: Option<usize>,
    /// End with exit code 1 where the mean divergence is above KL nats.
    #[arg(long, value_name = "KL", allow_hyphen_values = true)]
    pub fail_above: Option<f64>,
    /// Write a report in HTML, too: errors by layer and by token, and the worst tokens in their text.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `backstop perplexity`.
#[derive(Debug, ClapArgs)]
#[command(override_usage = "backstop perplexity [OPTIONS] [MODEL] FILE")]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens that are read together [default: 512, or what the model was trained for where that is less].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub window: Option<usize>,
    /// Tokens between the beginnings of two windows [default: half of a window].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub stride: Option<usize>,
    /// Score the second half of windows that lie one behind the other, as llama-perplexity does.
    #[arg(long, conflicts_with = "stride")]
    pub llama_cpp: bool,
    /// Tokens of the text to read at most [default: all].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub tokens: Option<usize>,
    /// Tell how far this model is from the first: another quantization of it, say. Both are loaded.
    #[arg(long, value_name = "MODEL", add = ArgValueCompleter::new(models))]
    pub compare: Option<PathBuf>,
    /// What runs the model that is compared [default: what runs the first].
    #[arg(long, value_name = "BACKEND", ignore_case = true)]
    #[arg(value_parser = PossibleValuesParser::new(BackendRequest::NAMES).try_map(|name| name.parse::<BackendRequest>()))]
    pub compare_backend: Option<BackendRequest>,
    /// Its activations [default: those of the first].
    #[arg(long, value_name = "TYPE")]
    #[arg(value_parser = PossibleValuesParser::new(Activations::NAMES).try_map(|name| name.parse::<Activations>()))]
    pub compare_activations: Option<Activations>,
    /// What its keys and values are cached in [default: as of the first].
    #[arg(long, value_name = "TYPE", value_parser = kv_type())]
    pub compare_kv_type: Option<KvType>,
    /// Write a line of JSON for each token that is scored.
    #[arg(long, value_name = "FILE")]
    pub positions: Option<PathBuf>,
    /// Threads of the CPU kernels [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    pub threads: Option<usize>,
    /// Write a report in HTML, too: what was scored by token, and the worst tokens in their text.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `backstop launch`.
#[derive(Debug, ClapArgs)]
#[command(
    override_usage = "backstop launch [OPTIONS] -- COMMAND …",
    after_help = "Each rank computes a part of every layer through MLX, and has a part of the weights alone. The first one reads,\n\
    chooses and writes, and what the others say goes to stderr. All need the same version of backstop, and the model\n\
    under the same name. What they say to each other is not encrypted.\n\n\
    backstop launch -- run --backend mlx MODEL PROMPT        two ranks on this machine\n\
    backstop launch --hosts 10.0.0.1,10.0.0.2 -- bench MODEL"
)]
pub struct LaunchArgs {
    /// Ranks on this machine [default: 2].
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    pub ranks: Option<usize>,
    /// Machines that ssh reaches without a password, a rank each, the first of which has the engine; or a host file of mlx.launch.
    #[arg(long, value_name = "HOST,…|FILE")]
    pub hosts: Option<String>,
    /// The first of the ports that ranks reach each other by [default: 32323; on this machine alone, some that are free].
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// How long a rank may keep the others waiting in a step, before it is taken for lost; the first step may take half an hour.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub rank_timeout: Duration,
    /// What backstop is called on other machines.
    #[arg(long, value_name = "PROGRAM", default_value = "backstop")]
    pub program: String,
    /// The command, and all that is typed behind it.
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Which model, and what runs it.
#[derive(Debug, Clone, ClapArgs)]
pub struct ModelArgs {
    /// The model's name, directory (config.json, tokenizer.json, safetensors) or GGUF file, where MODEL by itself is left out.
    #[arg(short, long, value_name = "MODEL", add = ArgValueCompleter::new(models))]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub fetch: FetchArgs,
    /// Read the weights into memory instead of mapping their files, which may then change.
    #[arg(long)]
    pub no_mmap: bool,
    /// What runs it: metal is MLX on Apple's GPU, mlx is MLX on its default device.
    #[arg(long, value_name = "BACKEND", default_value = "auto", ignore_case = true)]
    #[arg(value_parser = PossibleValuesParser::new(BackendRequest::NAMES).try_map(|name| name.parse::<BackendRequest>()))]
    pub backend: BackendRequest,
    /// Ops that the CPU computes where MLX runs the model, such as attention,linear: to find out which one is wrong or slow.
    #[arg(long, value_name = "OP,…", value_delimiter = ',', hide_possible_values = true)]
    #[arg(value_parser = PossibleValuesParser::new(OpKind::ALL.map(OpKind::name)).try_map(|name| name.parse::<OpKind>()))]
    pub cpu_ops: Vec<OpKind>,
    /// The type of activations on MLX; the CPU computes in f32, whatever it says [default: the weights' type].
    #[arg(long, value_name = "TYPE")]
    #[arg(value_parser = PossibleValuesParser::new(DType::ALL.map(DType::name)).try_map(|name| name.parse::<DType>()))]
    pub dtype: Option<DType>,
    /// What the CPU makes of activations before it multiplies them with quantized weights: int8 rounds them in blocks of 32,
    /// f32 keeps them as they are, which is slower.
    #[arg(long, value_name = "TYPE", default_value = "int8")]
    #[arg(value_parser = PossibleValuesParser::new(Activations::NAMES).try_map(|name| name.parse::<Activations>()))]
    pub activations: Activations,
    /// Compute with an adapter (LoRA) beside the weights: a directory of PEFT or mlx-lm, or a GGUF file, and what its sum is multiplied
    /// by. `serve` takes several, and answers with one where a request's model is BASE:NAME.
    #[arg(long, value_name = "NAME=PATH[@SCALE]", value_parser = adapter)]
    pub adapter: Vec<AdapterSource>,
    /// What keys and values are cached in: q8 and q4 are codes of 8 and 4 bits in groups of 32 [default: the weights' type].
    #[arg(long, value_name = "TYPE", value_parser = kv_type())]
    pub kv_type: Option<KvType>,
    /// The instruction set of the CPU kernels [default: the best one here].
    #[arg(long, value_name = "NAME", hide = true)]
    pub isa: Option<String>,
}

/// How much of the machine one conversation gets.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct SessionArgs {
    /// Tokens that prompt and text may have together [default: what the model was trained for, as far as memory allows].
    #[arg(short, long, value_name = "TOKENS", value_parser = at_least_one, allow_hyphen_values = true, alias = "ctx-size")]
    pub ctx: Option<usize>,
    /// What keys and values of all sequences may take, with those that are kept for prompts that begin alike: 512MB, 4GiB
    /// [default: what the model leaves of the memory, at most twice what all sequences take].
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub kv_memory: Option<u64>,
    /// Keep the beginnings of prompts in this directory, too: those that memory has no room for, and for the next start. Nobody
    /// else may write to it. The CPU's alone [default: nowhere].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// What the files there may take: 512MB, 20GiB [default: 8GiB].
    #[arg(long, value_name = "SIZE", requires = "cache_dir", value_parser = size, allow_hyphen_values = true)]
    pub cache_disk: Option<u64>,
    /// Guess tokens that repeat what came before, or by a layer that the model has for it, and check several in one step: auto does on the CPU, where no text depends on it.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    #[arg(value_parser = PossibleValuesParser::new(Drafts::NAMES).try_map(|name| name.parse::<Drafts>()))]
    pub drafts: Drafts,
    /// Have a smaller model of the same vocabulary guess tokens, too: a name or path. It takes memory beside the model.
    #[arg(long, value_name = "NAME")]
    pub draft: Option<PathBuf>,
    /// Threads of the CPU kernels [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    pub threads: Option<usize>,
    /// Another chat template than the model's own: a file, one of its own by name, or chatml.
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
}

/// How the next token is chosen. Absent options are the model's (generation_config.json), else off.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Tokens to generate at most [default: the model's, else what the context leaves].
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least_one, allow_hyphen_values = true)]
    #[arg(aliases = ["n-predict", "predict"])]
    pub max_tokens: Option<usize>,
    /// 0 takes the most likely token; larger is more varied [default: the model's, else 0].
    #[arg(long, value_name = "T", allow_hyphen_values = true, alias = "temp")]
    pub temperature: Option<f32>,
    /// Choose among the K most likely tokens; 0 is all.
    #[arg(long, value_name = "K", allow_hyphen_values = true)]
    pub top_k: Option<usize>,
    /// Choose among the most likely tokens that together have probability P; 1 is all.
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub top_p: Option<f32>,
    /// Choose among tokens at least P times as likely as the most likely one; 0 is all.
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub min_p: Option<f32>,
    /// Make recent tokens less likely; 1 is off.
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    pub repeat_penalty: Option<f32>,
    /// Make tokens that were generated before less likely, by P each (-2 to 2); 0 is off.
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub presence_penalty: Option<f32>,
    /// Make tokens that were generated before less likely, by P for each time (-2 to 2); 0 is off.
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub frequency_penalty: Option<f32>,
    /// Add BIAS (-100 to 100) to the logits of these token ids.
    #[arg(long, value_name = "ID=BIAS,…", value_delimiter = ',', value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Equal seeds give equal texts; -1 is a random one [default: 0].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = seed)]
    pub seed: Option<u64>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn ops_are_listed_and_backends_are_named_in_any_case() {
        let typed = [
            "backstop",
            "run",
            "x",
            "--backend",
            "CPU",
            "--cpu-ops",
            "attention,rms_norm",
            "--dtype",
            "bf16",
        ];
        let Command::Run(run) = Args::try_parse_from(typed).unwrap().command else { panic!("run was typed") };
        assert_eq!(run.model.backend, BackendRequest::Cpu);
        assert_eq!(run.model.cpu_ops, [OpKind::Attention, OpKind::RmsNorm]);
        assert_eq!(run.model.dtype, Some(DType::BF16));
    }

    #[test]
    fn a_prompt_may_begin_with_a_dash() {
        let args = Args::try_parse_from(["backstop", "run", "--max-tokens", "4", "-"]).unwrap();
        let Command::Run(run) = args.command else { panic!("run was typed") };
        assert_eq!((run.first.as_deref(), run.sampling.max_tokens), (Some("-"), Some(4)));
        assert_eq!(run.model.backend, BackendRequest::Auto);
    }
}
