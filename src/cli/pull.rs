//! `backstop pull`: a model by its name, and how far it is.

use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backstop::backend::LlmBackendKind;
use backstop::backend::select::{self, BackendRequest, Bytes, MemoryNeed};
use backstop::hub::{self, Cache, Client, Fit, Form, Found, Name, Origin, Plan, Progress, Settings, Stage};
use backstop::{Error, HubFault};

use super::args::PullArgs;
use super::interrupt::Interruptible;
use super::stream::print;
use super::{Interrupted, Usage, progress, term};

pub fn pull(args: &PullArgs) -> anyhow::Result<ExitCode> {
    let name = |typed: &String| match Name::parse(typed)? {
        Name::Path(path) => {
            let what = match path.exists() {
                true => format!("{} is here, there is nothing to download", path.display()),
                false => format!(
                    "{} is a path, and no name: expected org/name[@revision][:VARIANT], or a short name",
                    path.display()
                ),
            };
            Err(Usage(what).into())
        }
        name => Ok(name),
    };
    // What cannot be meant is known before anything is downloaded.
    let names: Vec<Name> = args.names.iter().map(name).collect::<anyhow::Result<_>>()?;
    let settings = settings(args.token.as_deref())?;
    let fit = fit(BackendRequest::Auto, None);
    for name in names.iter().filter(|name| matches!(name, Name::Short { .. })) {
        if hub::find_model(name, &settings, fit)?.is_none() {
            hub::on_the_hub(name, fit)?;
        }
    }
    names.iter().try_for_each(|name| pull_one(name, args.again, &settings, fit))?;
    Ok(ExitCode::SUCCESS)
}

fn pull_one(name: &Name, again: bool, settings: &Settings, fit: Fit) -> anyhow::Result<()> {
    let here = hub::find_model(name, settings, fit)?;
    let done = |path: &Path| print(&format!("{}\n", path.display()));
    if let Some(Found { path, origin, .. }) = &here {
        if *origin != Origin::Hub && !again {
            let whose = origin.name();
            term::note(format_args!("{whose} has {name}: --again downloads it all the same"));
            return done(path);
        }
        if settings.offline {
            term::note(format_args!(
                "{name} is here; HF_HUB_OFFLINE is set, so the hub was not asked for a newer one"
            ));
            return done(path);
        }
    }
    // What is here need not be waited for long.
    let client = Client::new(settings)?.with_tries(if here.is_some() { 2 } else { Client::TRIES });
    let plan = match (plan(&client, name, fit), &here) {
        (Ok(plan), _) => plan,
        (Err(error), Some(Found { path, origin: Origin::Hub, .. })) if is_unreachable(&error) => {
            term::note(format_args!("warning: {error}; what is here of {name} may not be the newest"));
            return done(path);
        }
        (Err(error), _) => return Err(error),
    };
    let client = client.with_tries(Client::TRIES);
    done(&download(&client, settings, &plan, name, fit)?)
}

fn is_unreachable(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Hub { fault: HubFault::Network, .. }))
}

/// What this machine runs a model on, and the memory that it has for one: what stays of `most` beside the reserve, where that is less.
pub fn fit(backend: BackendRequest, most: Option<u64>) -> Fit {
    let nothing = MemoryNeed { weights: 0, kv: 0, activations: 0 };
    // What cannot be had is refused when the model is loaded.
    let kind = select::select(backend, &nothing).map_or(LlmBackendKind::Cpu, |selection| selection.kind);
    let most = most.map(|most| most.saturating_sub(MemoryNeed::RESERVE));
    let memory = |kind| select::memory_for(kind).into_iter().chain(most).min();
    let mlx = kind == LlmBackendKind::Mlx;
    let cpu = if mlx && backend == BackendRequest::Auto { memory(LlmBackendKind::Cpu) } else { None };
    Fit { memory: memory(kind), mlx, cpu }
}

/// What is to be known of a model that does not fit.
pub fn too_large(bytes: u64, form: &Form, fit: Fit) -> Option<String> {
    let memory = fit.memory?;
    let holds = |fit: &Fit| fit.holds(bytes, form.gguf());
    (!holds(&fit) && !fit.on_cpu().is_some_and(|cpu| holds(&cpu))).then(|| {
        let needs = Bytes(fit.needs(bytes, form.gguf()));
        format!("it needs about {needs} of memory to run, and {} are to be had here", Bytes(memory))
    })
}

/// What was passed over for a variant that fits.
pub fn passed(plan: &Plan, fit: Fit) -> Option<String> {
    let (passed, memory) = (plan.passed.as_ref()?, fit.memory?);
    Some(format!(
        "{} ({}) does not fit the {} of memory that are to be had here",
        passed.variant,
        Bytes(passed.bytes),
        Bytes(memory)
    ))
}

/// The settings of the environment, with the token that was typed.
pub fn settings(token: Option<&str>) -> anyhow::Result<Settings> {
    let settings = Settings::from_env()?;
    Ok(match token {
        Some(token) => Settings { token: Some(token.to_owned()), ..settings },
        None => settings,
    })
}

/// What a name stands for on the hub. Ctrl-C ends the asking.
pub fn plan(client: &Client, name: &Name, fit: Fit) -> anyhow::Result<Plan> {
    let _interruptible = stopped_by(client)?;
    let _progress = progress::Progress::start({
        let name = name.to_string();
        move || format!("asking the hub for {name}")
    });
    hub::plan(client, name, fit)?
        .ok_or_else(|| Interrupted("interrupted: nothing was downloaded".to_owned()).into())
}

/// Ctrl-C stops the client.
fn stopped_by(client: &Client) -> anyhow::Result<Interruptible> {
    let stop = client.stop();
    Interruptible::new(move || stop.store(true, Ordering::Relaxed))
}

/// What is to be downloaded, as a person knows it.
pub fn what(plan: &Plan) -> String {
    let of = match &plan.form {
        Form::Gguf { variant, .. } => format!(":{variant}"),
        Form::Safetensors => String::new(),
    };
    format!("{}{of}", plan.id)
}

/// Downloads a model, and shows how far it is.
pub fn download(
    client: &Client,
    settings: &Settings,
    plan: &Plan,
    name: &Name,
    fit: Fit,
) -> anyhow::Result<PathBuf> {
    let _interruptible = stopped_by(client)?;
    let cache = Cache::new(&settings.cache);
    let (total, here) = (plan.bytes(), plan.here(&cache));
    let kept =
        if here > 0 && here < total { format!(", {} of them are here", Bytes(here)) } else { String::new() };
    let files =
        if plan.files.len() == 1 { "1 file".to_owned() } else { format!("{} files", plan.files.len()) };
    term::note(format_args!("{}: {files}, {}{kept}", what(plan), Bytes(total)));
    if let Some(why) = passed(plan, fit) {
        term::note(format_args!("note: {} is taken, since {why}", what(plan)));
    }
    if let Some(what) = too_large(total, &plan.form, fit) {
        term::note(format_args!("warning: {what}: a smaller model, or a variant of fewer bits, would fit"));
    }
    let mut shown = Shown::new();
    let path = plan.download(client, &cache, &mut |progress| {
        shown.show(progress);
        true
    });
    shown.end();
    let Some(path) = path? else {
        let kept = Bytes(plan.here(&cache));
        let what = format!(
            "interrupted: {kept} of {} are kept, and `backstop pull {name}` goes on there",
            Bytes(total)
        );
        return Err(Interrupted(what).into());
    };
    Ok(path)
}

/// How far a download is: a line that changes on a terminal, a line now and then elsewhere.
struct Shown {
    terminal: bool,
    started: Instant,
    last: Option<Instant>,
    /// Bytes that had come, and when: of the last seconds, which the speed is of.
    seen: Vec<(Instant, u64)>,
}

impl Shown {
    /// Between lines where nobody looks on.
    const PAUSE: Duration = Duration::from_secs(10);
    /// The seconds that the speed is of.
    const WINDOW: Duration = Duration::from_secs(8);

    fn new() -> Self {
        Self { terminal: stderr().is_terminal(), started: Instant::now(), last: None, seen: Vec::new() }
    }

    fn show(&mut self, progress: &Progress<'_>) {
        let now = Instant::now();
        self.seen.retain(|(when, _)| now - *when <= Self::WINDOW);
        self.seen.push((now, progress.came));
        let pause = if self.terminal { Duration::from_millis(100) } else { Self::PAUSE };
        // What is over at once needs no line.
        if now - self.last.unwrap_or(self.started) < pause {
            return;
        }
        self.last = Some(now);
        let line = line(progress, self.rate());
        if self.terminal {
            term::show_changing(Some(&line));
        } else {
            term::note(line);
        }
    }

    /// Bytes a second.
    fn rate(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.seen.first()?, self.seen.last()?);
        let seconds = (*to - *from).as_secs_f64();
        (seconds > 0.5 && after > before).then(|| (after - before) as f64 / seconds)
    }

    fn end(&self) {
        if self.terminal {
            term::show_changing(None);
        }
    }
}

fn line(progress: &Progress<'_>, rate: Option<f64>) -> String {
    let Progress { stage, file, done, total, .. } = *progress;
    let percent = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
    let so_far = format!("{percent} %, {} of {}", Bytes(done), Bytes(total));
    match (stage, rate) {
        (Stage::Waiting, _) => format!("another process downloads {file}, which is waited for: {so_far}"),
        (Stage::Checking, _) => format!("checking {file}: {so_far}"),
        (Stage::Downloading, Some(rate)) => {
            let left = total.saturating_sub(done) as f64 / rate;
            format!("{file}: {so_far}, {}/s, {} left", Bytes(rate as u64), time(left))
        }
        (Stage::Downloading, None) => format!("{file}: {so_far}"),
    }
}

/// Seconds as people say them.
fn time(seconds: f64) -> String {
    let seconds = seconds.ceil().min(1e9) as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_and_how_long() {
        let mut progress = Progress {
            stage: Stage::Downloading,
            file: "m.gguf",
            done: 1_250_000_000,
            total: 5_000_000_000,
            came: 0,
        };
        assert_eq!(line(&progress, None), "m.gguf: 25 %, 1.25 GB of 5.00 GB");
        let told = line(&progress, Some(30_000_000.0));
        assert_eq!(told, "m.gguf: 25 %, 1.25 GB of 5.00 GB, 30.0 MB/s, 2 min 5 s left");
        progress.stage = Stage::Checking;
        assert_eq!(line(&progress, None), "checking m.gguf: 25 %, 1.25 GB of 5.00 GB");
        progress = Progress { total: 0, done: 0, ..progress };
        assert!(line(&progress, None).contains("0 %"));
        assert_eq!(
            [0.2, 59.0, 61.0, 7_300.0, f64::INFINITY].map(time),
            ["1 s", "59 s", "1 min 1 s", "2 h 1 min", "277777 h 46 min"]
        );
    }
}
