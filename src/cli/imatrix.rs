//! `backstop imatrix`: how large the inputs of a model's matrices are on a text.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::ensure;
use backstop::LoadOptions;
use backstop::imatrix::{Collect, collect};
use backstop::text::Specials;

use super::args::{ImatrixArgs, SessionArgs};
use super::interrupt::Interruptible;
use super::progress::Progress;
use super::{INTERRUPTED, Usage, names, term};

/// Tokens of a window where nothing says it, as in llama.cpp.
const WINDOW: usize = 512;

pub fn imatrix(args: &ImatrixArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let from = names::replace(&args.model, args.read.model());
    let (read, text) = names::text(&args.read)?;
    // A name that is taken is told before the work.
    let (out, shown) = (&args.output, args.output.display());
    ensure!(
        out.symlink_metadata().is_err(),
        "{shown}: exists; expected a new name (remove it, or name another)"
    );
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(dir.is_dir(), "{}: is no directory", dir.display());
    let files = super::open_as(&from)?;
    let longest = files.config().max_context();
    let window = args.window.unwrap_or(WINDOW.min(longest));
    if window > longest {
        let what = format!("--window is {window}, and the model was trained for {longest} tokens");
        return Err(Usage(what).into());
    }
    let session = SessionArgs { ctx: Some(window), threads: args.threads, ..SessionArgs::default() };
    let one = |options| LoadOptions { max_sequences: Some(1), ..options };
    let model = super::load_as(&from, &session, false, one)?.model;
    let tokenizer = model.tokenizer()?;
    let mut tokens = tokenizer.encode(&text)?;
    tokens.truncate(args.tokens.unwrap_or(tokens.len()));
    // What a text begins with that has nothing in it.
    let begin = tokenizer.encode_with("", Specials { add: true, parse: true })?.first().copied();

    let stopped = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stopped);
    let _interruptible = Interruptible::new(move || set.store(true, Ordering::Relaxed))?;
    let (done, count) = (Arc::new(AtomicUsize::new(0)), tokens.len() / window.max(1));
    let shown = Arc::clone(&done);
    let progress = Progress::start(move || {
        format!("window {} of {count}", (shown.load(Ordering::Relaxed) + 1).min(count))
    });
    let how = Collect { window, begin, head: args.process_output };
    let collected = collect(&files, &model, &tokens, how, &mut |at, _| {
        done.store(at, Ordering::Relaxed);
        !stopped.load(Ordering::Relaxed)
    })?;
    drop(progress);
    let Some(mut matrix) = collected else {
        term::note("interrupted: nothing was written");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    matrix.datasets = vec![read.display().to_string()];
    matrix.write(&args.output)?;
    let partial = matrix.entries.values().filter(|entry| entry.counts.contains(&0.0)).count();
    let partial = match partial {
        0 => String::new(),
        n => format!(", {n} of them with experts that no token went to"),
    };
    term::note(format_args!(
        "{}: {} matrices{partial}, {} windows of {window} tokens; {:.1} s",
        args.output.display(),
        matrix.entries.len(),
        matrix.chunk_count,
        started.elapsed().as_secs_f64(),
    ));
    Ok(ExitCode::SUCCESS)
}
