//! `backstop quantize`: a model in fewer bits.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::ensure;
use backstop::ModelFiles;
use backstop::backend::select::Bytes;
use backstop::imatrix::Imatrix;
use backstop::quant::{MlxFormat, MlxMode};
use backstop::quantize::{Allotment, Container, GgufType, Measure, Recipe, allot, to_gguf, to_mlx};

use super::args::QuantizeArgs;
use super::interrupt::Interruptible;
use super::progress::Progress;
use super::{INTERRUPTED, Usage, names, term};

/// Tokens that are computed for each matrix where nothing says how many.
const TOKENS: usize = 128;

pub fn quantize(args: &QuantizeArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let target = target(args)?;
    let imatrix = args.imatrix.as_deref().map(Imatrix::open).transpose().map_err(super::typed)?;
    let text = args.text.as_deref().map(names::read).transpose()?;
    let files = super::open(Some(&args.model), &args.fetch)?;
    let interrupted = || {
        term::note("interrupted: nothing was written");
        Ok(ExitCode::from(INTERRUPTED))
    };
    let allotment = match (args.target, &text) {
        (Some(size), Some(text)) => {
            // A name that is taken is told before the work.
            let shown = args.output.display();
            ensure!(
                args.output.symlink_metadata().is_err(),
                "{shown}: exists; expected a new name (remove it, or name another)"
            );
            let tokens = args.tokens.unwrap_or(TOKENS);
            let measure = Measure { text, tokens, imatrix: imatrix.as_ref(), threads: args.threads };
            let container = match target {
                Target::Mlx(of) => Container::Mlx { group: of.group },
                Target::Gguf(_) => Container::Gguf,
            };
            let matrices = |count: u64| format!("{count} matrices");
            let made = written("measuring", &files, matrices, &mut |progress| {
                allot(&files, container, size, measure, progress)
            })?;
            let Some(made) = made else { return interrupted() };
            tell(&made);
            Some(made)
        }
        _ => None,
    };
    let report = written("quantizing", &files, bytes, &mut |progress| match target {
        Target::Mlx(of) => to_mlx(
            &files,
            Recipe { of, imatrix: imatrix.as_ref(), allotment: allotment.as_ref() },
            &args.output,
            progress,
        ),
        Target::Gguf(of) => {
            let recipe = Recipe { of, imatrix: imatrix.as_ref(), allotment: allotment.as_ref() };
            to_gguf(&files, recipe, &args.output, progress)
        }
    })?;
    let Some(report) = report else { return interrupted() };
    let uneven = match report.uneven {
        0 => String::new(),
        n => {
            let group = if let Target::Mlx(format) = target { format.group } else { 32 };
            format!(", {n} matrices among them whose rows are not whole groups of {group}")
        }
    };
    term::note(format_args!(
        "{}: {} in place of {}, {} matrices quantized, {} tensors kept{uneven}; {:.1} s",
        args.output.display(),
        Bytes(report.bytes_out),
        Bytes(report.bytes_in),
        report.quantized,
        report.kept,
        started.elapsed().as_secs_f64(),
    ));
    Ok(ExitCode::SUCCESS)
}

/// Says which types were chosen.
fn tell(made: &Allotment) {
    let counts: Vec<String> =
        made.counts().into_iter().map(|(name, count)| format!("{count} in {name}")).collect();
    let unmeasured = match made.unmeasured {
        0 => String::new(),
        n => format!("; {n} of them could not be measured and have the type of that size"),
    };
    term::note(format_args!(
        "{:.2} bits a weight, KL of about {:.4}: {} matrices{unmeasured}",
        made.bits,
        made.expected,
        counts.join(", "),
    ));
}

/// What writes a model or reads it, and is told of its progress.
type Work<'a, T> = dyn FnMut(&mut dyn FnMut(u64, u64) -> bool) -> backstop::Result<Option<T>> + 'a;

/// As bytes are shown.
pub fn bytes(count: u64) -> String {
    Bytes(count).to_string()
}

/// Does work on a model, showing how far it is, in words of `unit`; none where it was interrupted.
pub fn written<T>(
    what: &'static str,
    files: &ModelFiles,
    unit: fn(u64) -> String,
    write: &mut Work<'_, T>,
) -> anyhow::Result<Option<T>> {
    // The second Ctrl-C ends the process: what is written has no name yet.
    let stopped = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stopped);
    let _interruptible = Interruptible::new(move || set.store(true, Ordering::Relaxed))?;
    let read = Arc::new((AtomicU64::new(0), AtomicU64::new(1)));
    let shown = Arc::clone(&read);
    let name = files.name();
    let _progress = Progress::start(move || {
        bar(what, &name, unit, shown.0.load(Ordering::Relaxed), shown.1.load(Ordering::Relaxed))
    });
    let mut progress = |done, total| {
        read.0.store(done, Ordering::Relaxed);
        read.1.store(total, Ordering::Relaxed);
        !stopped.load(Ordering::Relaxed)
    };
    write(&mut progress).map_err(super::typed)
}

/// What to write.
#[derive(Clone, Copy)]
enum Target {
    Mlx(MlxFormat),
    Gguf(GgufType),
}

/// What was typed, with mlx-lm's defaults. Ranges are the library's to check.
fn target(args: &QuantizeArgs) -> anyhow::Result<Target> {
    let given =
        [("mode", args.mode.is_some()), ("bits", args.bits.is_some()), ("group", args.group.is_some())];
    if args.to == "gguf" {
        if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(Usage(format!("--{name} is for --to mlx; --type is what --to gguf has")).into());
        }
        if args.target.is_some() && args.kind.is_some() {
            return Err(Usage("--target chooses the types that --type names: one of them".into()).into());
        }
        let name = args.kind.as_deref().unwrap_or("Q4_0");
        let of = GgufType::ALL.into_iter().find(|of| of.name().eq_ignore_ascii_case(name));
        let of = of.ok_or_else(|| {
            let names = GgufType::ALL.map(GgufType::name).join(", ");
            Usage(format!("--type is {name}, expected one of {names}"))
        })?;
        return Ok(Target::Gguf(of));
    }
    if args.target.is_some() && args.bits.is_some() {
        return Err(Usage("--target chooses the bits that --bits names: one of them".into()).into());
    }
    if args.kind.is_some() {
        return Err(Usage(
            "--type is for --to gguf; --mode, --bits and --group are what --to mlx has".into(),
        )
        .into());
    }
    let (mode, group) = match args.mode.as_deref() {
        None | Some("affine") => (MlxMode::Affine, 64),
        Some("mxfp4") => (MlxMode::Mxfp4, 32),
        Some(other) => return Err(Usage(format!("--mode is {other}, expected affine or mxfp4")).into()),
    };
    let given = [("imatrix", args.imatrix.is_some()), ("target", args.target.is_some())];
    if let Some((name, _)) = given.into_iter().find(|(_, given)| *given && mode == MlxMode::Mxfp4) {
        return Err(Usage(format!("--{name} is for affine groups, and for --to gguf")).into());
    }
    let (bits, group) = (args.bits.unwrap_or(4), args.group.unwrap_or(group));
    Ok(Target::Mlx(MlxFormat { mode, bits, group }))
}

/// The share that is done, as a line shows it.
fn bar(what: &str, name: &str, unit: fn(u64) -> String, done: u64, total: u64) -> String {
    const WIDTH: u64 = 24;
    let of = |whole: u64| (done.min(total) as u128 * u128::from(whole) / u128::from(total.max(1))) as usize;
    let (filled, percent) = (of(WIDTH), of(100));
    let bar = "#".repeat(filled) + &".".repeat(WIDTH as usize - filled);
    format!("{what} {name} [{bar}] {percent} %, {} of {}", unit(done), unit(total))
}

#[cfg(test)]
mod tests {
    use super::{bar, bytes};

    #[test]
    fn the_bar_fills_from_end_to_end() {
        assert_eq!(
            bar("quantizing", "m", bytes, 0, 1),
            format!("quantizing m [{}] 0 %, 0 B of 1 B", ".".repeat(24))
        );
        let half = format!("quantizing m [{}{}] 50 %, 5 B of 10 B", "#".repeat(12), ".".repeat(12));
        assert_eq!(bar("quantizing", "m", bytes, 5, 10), half);
        assert_eq!(
            bar("quantizing", "m", bytes, 10, 10),
            format!("quantizing m [{}] 100 %, 10 B of 10 B", "#".repeat(24))
        );
        assert!(bar("quantizing", "m", bytes, 0, 0).contains(" 0 %"));
    }
}
