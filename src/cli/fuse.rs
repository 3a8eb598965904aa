//! `backstop fuse`: a model with an adapter in its weights.

use std::process::ExitCode;
use std::time::Instant;

use backstop::backend::select::Bytes;
use backstop::{adapters, quantize};

use super::args::FuseArgs;
use super::quantize::{bytes, written};
use super::term;
use super::{INTERRUPTED, Usage};

pub fn fuse(args: &FuseArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    if !args.scale.is_finite() {
        return Err(Usage(format!("--scale is {}, expected a number", args.scale)).into());
    }
    let files = super::open(Some(&args.model), &args.fetch)?;
    let adapter = adapters::read(&args.adapter, args.scale, &files.architecture)?;
    let report = written("fusing", &files, bytes, &mut |progress| {
        quantize::fuse(&files, &adapter, &args.output, progress)
    })?;
    let Some(report) = report else {
        term::note("interrupted: nothing was written");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    term::note(format_args!(
        "{}: {} in place of {}, {} matrices with {} in them, {} tensors kept; {:.1} s",
        args.output.display(),
        Bytes(report.bytes_out),
        Bytes(report.bytes_in),
        report.quantized,
        adapter.kind,
        report.kept,
        started.elapsed().as_secs_f64(),
    ));
    Ok(ExitCode::SUCCESS)
}
