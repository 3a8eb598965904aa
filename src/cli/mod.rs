//! The commands: what was typed is resolved against the model and its defaults, called, and reported.

mod args;
mod bench;
mod bundle;
mod chat;
mod child;
mod complete;
mod doctor;
mod form;
mod fuse;
mod grammar;
mod habits;
mod here;
mod html;
mod imatrix;
mod input;
mod inspect;
mod interrupt;
mod launch;
mod list;
mod markdown;
mod names;
mod offers;
mod parity;
mod perplexity;
mod progress;
mod ps;
mod pull;
mod quantize;
mod ranks;
mod run;
mod serve;
mod state;
mod stream;
mod summary;
mod tasks;
mod template;
mod term;
mod think;
mod times;
mod typed;
mod whole;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use backstop::backend::LlmBackendKind;
use backstop::backend::cpu::Isa;
use backstop::backend::select::BackendRequest;
use backstop::weights::Access;
use backstop::{CacheOptions, Error, LoadOptions, Model, ModelFiles, SamplingOptions};
use tracing_subscriber::EnvFilter;

pub use args::{Args, Command};
use args::{FetchArgs, ModelArgs, SamplingArgs, SessionArgs};
pub use complete::answer as complete;

/// The words as they are meant: what other programs have one type is taken, and a bundle's command may be left out.
///
/// # Errors
/// A word of another program that has no other here.
pub fn arguments(typed: Vec<OsString>) -> Result<Vec<OsString>, Usage> {
    // What a bundle is given first may be a prompt.
    let typed = if bundle::is_one() { bundle::with_command(typed) } else { habits::command(typed)? };
    habits::options(typed)
}

/// Exit code of wrong usage, clap's own.
const USAGE: u8 = 2;
/// Exit code after Ctrl-C: 128 and SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// What was typed cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Nobody reads stdout any more, as after `| head`: the end, but no error.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub struct Closed;

/// Ctrl-C ended it before it was done; what is kept of it, or nothing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

/// Calls the command.
///
/// # Errors
/// Whatever ends it, for [`report`].
pub fn call(command: Command) -> anyhow::Result<ExitCode> {
    // A bundle that was cut or damaged is no other program.
    bundle::own()?;
    ranks::check(&command)?;
    match command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Pull(args) => pull::pull(&args),
        Command::List(args) => list::list(&args),
        Command::Rm(args) => list::rm(&args),
        Command::Ps(args) => ps::ps(&args),
        Command::Stop(args) => ps::stop(&args),
        Command::Template(args) => template::template(&args),
        Command::Launch(args) => launch::launch(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Parity(args) => parity::parity(&args),
        Command::Perplexity(args) => perplexity::perplexity(&args),
        Command::Tasks(args) => tasks::tasks(&args),
        Command::Imatrix(args) => imatrix::imatrix(&args),
        Command::Quantize(args) => quantize::quantize(&args),
        Command::Fuse(args) => fuse::fuse(&args),
        Command::Bundle(args) => bundle::bundle(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completions(args) => complete::completions(&args),
        Command::Man(args) => complete::man(&args),
        Command::CheckGrammar => grammar::check(),
    }
}

/// Writes an error to stderr and gives its exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Closed>() || error.is::<ranks::Followed>() {
        return ExitCode::SUCCESS;
    }
    if let Some(Interrupted(what)) = error.downcast_ref() {
        term::note(what);
        return ExitCode::from(INTERRUPTED);
    }
    let more = match error.downcast_ref() {
        Some(Error::ContextFull { context, trained, .. }) if context < trained => " (--ctx)",
        _ => "",
    };
    term::note(format_args!("{} {}{more}", term::red("error:"), chain(error)));
    if error.is::<Usage>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}

/// The error and its causes in one line, without those that the line before already tells.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Sends the log to stderr: warnings, or more with `-v`, or what `RUST_LOG` says.
pub fn start_logging(verbose: u8) {
    let level = ["warn", "backstop=info,warn", "backstop=debug,info", "trace"][usize::from(verbose.min(3))];
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() && verbose == 0 => EnvFilter::new(filter),
        _ => EnvFilter::new(level),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| term::Log)
        .with_ansi(term::colours())
        .log_internal_errors(false)
        .init();
}

/// A model that is ready.
struct Loaded {
    model: Model,
    /// What opening and loading it took.
    time: Duration,
}

/// Reads what a model is, by its name or path.
fn open(model: Option<&Path>, fetch: &FetchArgs) -> anyhow::Result<ModelFiles> {
    open_by(model, fetch, BackendRequest::Auto, Access::Map)
}

/// The weights' bytes as was typed.
fn open_as(args: &ModelArgs) -> anyhow::Result<ModelFiles> {
    let access = if args.no_mmap { Access::Read } else { Access::Map };
    open_by(args.model.as_deref(), &args.fetch, args.backend, access)
}

fn open_by(
    model: Option<&Path>,
    fetch: &FetchArgs,
    backend: BackendRequest,
    access: Access,
) -> anyhow::Result<ModelFiles> {
    let Some(typed) = model else { return bundle::default_model(access) };
    Ok(ModelFiles::open_by(&names::path(typed, fetch, backend)?, access)?)
}

/// Loads a model for one sequence, which may have all the memory that there is. A person sees how far that is who does not want it
/// `quiet`.
fn load(args: &ModelArgs, session: &SessionArgs, quiet: bool) -> anyhow::Result<Loaded> {
    load_as(args, session, quiet, |options| LoadOptions { max_sequences: Some(1), ..options })
}

/// As [`load`], with other options than were typed.
fn load_as(
    args: &ModelArgs,
    session: &SessionArgs,
    quiet: bool,
    change: impl FnOnce(LoadOptions) -> LoadOptions,
) -> anyhow::Result<Loaded> {
    let started = Instant::now();
    let adapter = match args.adapter.as_slice() {
        [] => None,
        [one] => Some(one),
        [..] => {
            let what = "--adapter is given twice: a model alone has one, and `backstop serve` takes several";
            return Err(Usage(what.to_owned()).into());
        }
    };
    let ranks = ranks::ranks()?;
    let options = LoadOptions { ranks, ..change(load_options(args, session)?) };
    let quiet = quiet || ranks.is_some_and(|ranks| !ranks.rank.leads());
    let files = open_as(args)?;
    let progress = progress::Progress::of_load(files.name(), &options.progress, quiet);
    let model = Model::load_with(files, options).map_err(typed)?;
    if !model.own_rank().leads() {
        drop(progress);
        // The first rank hears it, too, and says what comes of it.
        pass_over_interrupts();
        model.follow()?;
        return Err(ranks::Followed.into());
    }
    let model = match adapter {
        Some(adapter) => model.with_adapter(&adapter.name)?,
        None => model,
    };
    drop(progress);
    note_unused(args, session, &model);
    Ok(Loaded { model, time: started.elapsed() })
}

/// How a model is loaded, as typed.
fn load_options(args: &ModelArgs, session: &SessionArgs) -> anyhow::Result<LoadOptions> {
    let isa = args.isa.as_deref().map(isa).transpose()?;
    Ok(LoadOptions {
        backend: args.backend,
        threads: session.threads,
        context: session.ctx,
        kv_memory: session.kv_memory,
        cache: session
            .cache_dir
            .clone()
            .map(|dir| CacheOptions { dir, bytes: session.cache_disk.unwrap_or(CacheOptions::BYTES) }),
        drafts: session.drafts,
        draft: session
            .draft
            .as_deref()
            .map(|draft| names::path(draft, &args.fetch, args.backend))
            .transpose()?,
        chat_template: session.chat_template.as_deref().map(template::choice),
        isa,
        activations: args.activations,
        kv_type: args.kv_type,
        dtype: args.dtype,
        cpu_ops: args.cpu_ops.clone(),
        adapters: args.adapter.clone(),
        checker: grammar::checker(),
        ..LoadOptions::default()
    })
}

/// Says what was typed and changes nothing.
fn note_unused(args: &ModelArgs, session: &SessionArgs, model: &Model) {
    let (cpu_ops, dtype) = (!args.cpu_ops.is_empty(), args.dtype.is_some());
    if model.info().selection.kind == LlmBackendKind::Cpu && (cpu_ops || dtype) {
        let what = ["--cpu-ops", "--dtype"].into_iter().zip([cpu_ops, dtype]);
        let what: Vec<&str> = what.filter_map(|(name, typed)| typed.then_some(name)).collect();
        term::note(format_args!(
            "note: {} changes nothing where the CPU runs the model: it computes every op in f32",
            what.join(" with ")
        ));
    }
    if model.info().selection.kind != LlmBackendKind::Cpu && session.cache_dir.is_some() {
        term::note(
            "note: --cache-dir changes nothing where MLX runs the model: the cache on disk is the CPU's",
        );
    }
}

fn isa(name: &str) -> anyhow::Result<Isa> {
    Isa::by_name(name).ok_or_else(|| {
        let here: Vec<&str> = Isa::variants().into_iter().map(Isa::name).collect();
        Usage(format!("--isa is {name}, expected one of {}", here.join(", "))).into()
    })
}

/// What the command line says, over `base`.
fn overlay(args: &SamplingArgs, base: SamplingOptions) -> SamplingOptions {
    SamplingOptions {
        temperature: args.temperature.unwrap_or(base.temperature),
        top_k: args.top_k.unwrap_or(base.top_k),
        top_p: args.top_p.unwrap_or(base.top_p),
        min_p: args.min_p.unwrap_or(base.min_p),
        repeat_penalty: args.repeat_penalty.unwrap_or(base.repeat_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(base.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(base.frequency_penalty),
        logit_bias: if args.logit_bias.is_empty() { base.logit_bias } else { args.logit_bias.clone() },
        seed: args.seed.unwrap_or(base.seed),
        ..base
    }
}

/// Refuses options that no model would take, before one is loaded.
fn check_sampling(args: &SamplingArgs) -> anyhow::Result<()> {
    overlay(args, SamplingOptions::default()).validate(usize::MAX).map_err(typed)
}

/// The command line beats `generation_config.json`, which beats the defaults.
fn resolve_sampling(args: &SamplingArgs, model: &Model) -> anyhow::Result<SamplingOptions> {
    let sampling = overlay(args, model.default_sampling());
    let vocab = model.info().config.vocab_size;
    overlay(args, SamplingOptions::default()).validate(vocab).map_err(typed)?;
    // What was typed has been checked: what is wrong now is the file's.
    sampling.validate(vocab).map_err(|error| match error {
        Error::Option { option, .. } => {
            anyhow!("generation_config.json: {error}; {} replaces it", flag(option))
        }
        other => other.into(),
    })?;
    let filters = [args.top_k.is_some(), args.top_p.is_some(), args.min_p.is_some(), args.seed.is_some()];
    if sampling.temperature == 0.0 && args.temperature.is_none() && filters.contains(&true) {
        term::note(
            "note: without --temperature this model takes the most likely token, whatever the other options",
        );
    }
    Ok(sampling)
}

/// An option out of range, by the name that it has on the command line.
fn typed(error: Error) -> anyhow::Error {
    match error {
        Error::Option { option, got, expected } => {
            Usage(format!("{} is {got}, expected {expected}", flag(option))).into()
        }
        error @ Error::Context { .. } => Usage(format!("--{error}")).into(),
        other => other.into(),
    }
}

fn flag(option: &str) -> String {
    format!("--{}", option.replace('_', "-"))
}

fn no_template_for_system(model: &Model) -> Usage {
    Usage(format!(
        "--system needs a chat template, and {} has none: put the instruction into the prompt",
        model.info().name
    ))
}

/// Ends the process without what C++ libraries do at its end: MLX would free what the engine's thread still uses.
fn exit_at_once(code: u8) -> ! {
    // SAFETY: `_exit` takes any code and touches no memory of ours; it may be called from any thread.
    unsafe { libc::_exit(code.into()) }
}

/// Has Ctrl-C do nothing.
fn pass_over_interrupts() {
    // SAFETY: no handler is set: the signal is passed over from here on. Nothing else in this process sets it.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
}

/// Lets a write past the limit on the size of files fail, as one to a full disk does, where it would end the process.
pub fn let_large_writes_fail() {
    // SAFETY: no handler is set: the signal is passed over from here on. Nothing else in this process sets it.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Has the allocator give what is freed back to the system: all blocks of 1 MiB and more, and of what lies free at the end of a
/// heap all but 512 KiB. By itself it keeps up to 64 MiB of each thread's heap once large blocks have been freed, as of a model that is
/// unloaded, and `malloc_trim` takes nothing of that.
pub fn keep_little_that_is_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: both are numbers of the allocator, which are set before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 10);
    }
}

/// Whether SIGHUP is ignored, as it came from `nohup`.
fn ignores_hangups() -> bool {
    // SAFETY: all bytes of it may be zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call changes nothing, and writes to `action` alone, which lives on this stack.
    let failed = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut action) };
    failed == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Whether a person types.
fn is_interactive() -> bool {
    std::io::stdin().is_terminal()
}
