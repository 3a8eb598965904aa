//! What `doctor` looks at, part by part.

use std::collections::HashSet;
use std::env::consts::{ARCH, OS};
use std::io::{IsTerminal, stderr, stdin, stdout};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::available_parallelism;
use std::time::Duration;

use backstop::backend::cpu::Isa;
use backstop::backend::select::MachineMemory;
use backstop::backend::select::{self, BackendRequest, Bytes, MemoryNeed};
use backstop::hub::{self, Cache, Fit, Origin, Settings, short_names};
use backstop::{LoadOptions, Model, ModelFiles, Options, backends};
use serde_json::{Value, json};

use super::super::bench::Limits;
use super::super::summary::digits;
use super::super::{bundle, pull, term};
use super::Finding;
use super::ports::{plural, ports};

/// How long measuring may take, which takes a second or two; the process that measures is ended while somebody still waits for it.
const MEASURED: Duration = Duration::from_secs(20);
const MEASURES: Duration = Duration::from_secs(15);
/// How long the built-in model may take to say five tokens.
const TRIED: Duration = Duration::from_secs(60);
/// How long looking at folders of models may take.
const LOOKED: Duration = Duration::from_secs(10);

/// What `look` finds, unless it takes longer than that: whoever looks at a mount that does not answer is kept by it.
fn within(name: &'static str, most: Duration, look: impl FnOnce() -> Finding + Send + 'static) -> Finding {
    let (found, told) = mpsc::channel();
    let looks = std::thread::Builder::new().name(format!("doctor-{name}"));
    let started = looks.spawn(move || {
        // Nobody may wait any more.
        let _ = found.send(look());
    });
    let what = match started.map(|_| told.recv_timeout(most)) {
        Ok(Ok(finding)) => return finding,
        Ok(Err(RecvTimeoutError::Timeout)) => format!("no answer within {} s", most.as_secs_f64()),
        Ok(Err(RecvTimeoutError::Disconnected)) => "looking at it failed".to_owned(),
        Err(error) => format!("not looked at: {error}"),
    };
    Finding::new(name, [what], Value::Null).advise(
        true,
        "what it looks at may lie on a disk or a mount that does not answer, or the machine may be busy: try again",
    )
}

/// What `look` finds with the environment's settings, and what `else_` makes of it that there are none: reading them looks at
/// files, too.
fn with_settings(look: fn(&Settings) -> Finding, else_: fn(String) -> Finding) -> Finding {
    match Settings::from_env() {
        Ok(settings) => look(&settings),
        Err(error) => else_(format!("where models lie is not known: {error}")),
    }
}

/// Everything, in the order in which it is told.
pub fn all(port: u16) -> Vec<Finding> {
    let mut all = vec![version()];
    all.extend(own_model());
    all.extend([cpu(), memory(), within("speed", MEASURED, speed), within("mlx", MEASURED, mlx)]);
    let of_models =
        |what| Finding::new("models", [what], Value::Null).broken("set HOME or HF_HOME, and check HF_TOKEN");
    let of_hub = |what| Finding::new("hub", [what], Value::Null);
    all.push(within("models", LOOKED, move || with_settings(models, of_models)));
    all.push(within("hub", LOOKED, move || with_settings(hub, of_hub)));
    all.extend([ports(port), terminal(), within("trial", TRIED, try_out)]);
    all
}

fn version() -> Finding {
    let (version, debug) = (env!("CARGO_PKG_VERSION"), cfg!(debug_assertions));
    let features = [("mlx", cfg!(has_mlx)), ("fault-injection", cfg!(feature = "fault-injection"))];
    let features: Vec<&str> = features.iter().filter_map(|(name, is)| is.then_some(*name)).collect();
    let beside = match &features[..] {
        [] => "without MLX".to_owned(),
        names => format!("with {}", names.join(", ")),
    };
    let build = if debug { "debug" } else { "release" };
    let line = format!("backstop {version} for {OS} on {ARCH}, a {build} build {beside}");
    let json = json!({ "version": version, "os": OS, "arch": ARCH, "build": build, "features": features });
    Finding::new("version", [line], json)
        .advise(debug, "it was built to be debugged, and is slower: cargo build --release")
}

/// The model behind this program, where there is one.
fn own_model() -> Option<Finding> {
    // One that cannot be read was refused before.
    let (path, bundle) = bundle::own().ok().flatten()?;
    let (files, bytes) = (bundle.files.len(), bundle.bytes());
    let line = format!("{}: {}, {} behind this program", bundle.model, plural(files, "file"), Bytes(bytes));
    let json = json!({ "model": bundle.model, "files": files, "bytes": bytes });
    let finding = Finding::new("bundle", [line], json);
    Some(match bundle::verify(&path, &bundle) {
        Ok(()) => finding,
        Err(error) => finding.broken(format!("{error:#}")),
    })
}

fn cpu() -> Finding {
    let (isa, all) = (Isa::detect(), Isa::variants());
    let names: Vec<&str> = all.iter().map(|isa| isa.name()).collect();
    let threads = available_parallelism().map_or(1, |n| n.get());
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (model, cores) = (cpu_model(&info), physical_cores(&info));
    let name = model.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
    let of = cores.map(|cores| format!(" on {}", plural(cores, "core"))).unwrap_or_default();
    let lines = [
        format!("{name}{}{of}", plural(threads, "thread")),
        format!("kernels: {}, the best of {}", isa.name(), names.join(", ")),
    ];
    let json = json!({
        "model": model, "threads": threads, "physical_cores": cores, "isa": isa.name(), "isas": names,
    });
    let portable = names.len() == 1;
    Finding::new("cpu", lines, json).advise(
        portable && ARCH == "x86_64",
        "without AVX2 models run, and slowly: if this is a virtual machine, let it have the host's CPU",
    )
}

fn cpu_model(info: &str) -> Option<String> {
    let line = info.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// How many cores the threads of `/proc/cpuinfo` are on, where it says so.
fn physical_cores(info: &str) -> Option<usize> {
    let cores: HashSet<(&str, &str)> = info
        .split("\n\n")
        .filter_map(|thread| {
            let of = |name: &str| {
                let line = thread.lines().find(|line| line.starts_with(name))?;
                Some(line.split_once(':')?.1.trim())
            };
            Some((of("physical id")?, of("core id")?))
        })
        .collect();
    (!cores.is_empty()).then_some(cores.len())
}

fn memory() -> Finding {
    let memory = MachineMemory::query();
    let told = |what: &str, bytes: Option<u64>| bytes.map(|bytes| format!("{} {what}", Bytes(bytes)));
    let parts = [
        told("in this machine", memory.physical),
        told("at most for this process (its control group's limit)", memory.limit),
        told("available now", memory.available),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let fit = pull::fit(BackendRequest::Auto, None);
    let (fits, biggest) = fitting(fit);
    let mut lines = match parts.is_empty() {
        true => vec!["the system does not say how much it has".to_owned()],
        false => vec![parts.join(", ")],
    };
    if let Some(most) = fit.most() {
        lines.push(format!("fits: models of up to about {}", Bytes(most)));
    }
    if let Some((name, variant, bytes)) = &biggest {
        let all = short_names().len();
        lines.push(format!(
            "      {} of {all} short names, the largest {name}:{variant} ({})",
            fits.len(),
            Bytes(*bytes)
        ));
    }
    let json = json!({
        "physical": memory.physical, "limit": memory.limit, "available": memory.available,
        "largest_model": fit.most(), "fitting_short_names": fits,
    });
    let finding = Finding::new("memory", lines, json);
    match memory.available {
        Some(bytes) if bytes < MemoryNeed::RESERVE / 8 => {
            finding.broken("there is no room for any model: end other programs, or raise the limit")
        }
        Some(_) => finding.advise(
            biggest.is_none(),
            "no model of the table of short names fits: end other programs, or raise the control group's limit",
        ),
        None => finding,
    }
}

/// The short names of which something fits, and the largest that does.
fn fitting(fit: Fit) -> (Vec<&'static str>, Option<(&'static str, &'static str, u64)>) {
    let mut biggest: Option<(&str, &str, u64)> = None;
    let mut names = Vec::new();
    for short in short_names() {
        let mut fits = short.variants.iter().filter(|of| of.runs(fit)).peekable();
        if fits.peek().is_some() {
            names.push(&*short.name);
        }
        for of in fits {
            if biggest.is_none_or(|(_, _, bytes)| bytes < of.bytes) {
                biggest = Some((&short.name, &of.variant, of.bytes));
            }
        }
    }
    (names, biggest)
}

fn speed() -> Finding {
    /// What is measured takes half of it.
    const ENOUGH: u64 = 1 << 30;
    let threads = available_parallelism().map_or(1, |n| n.get());
    let available = MachineMemory::query().available;
    if let Some(bytes) = available.filter(|&bytes| bytes < ENOUGH) {
        let line = format!("not measured: that takes {}, and {} are available", Bytes(ENOUGH), Bytes(bytes));
        return Finding::new("speed", [line], Value::Null);
    }
    match Limits::elsewhere(threads, Isa::detect(), MEASURES) {
        Ok(limits) => {
            let giga = |value: f64| digits(value / 1e9);
            let lines = [
                format!(
                    "memory: {} GB/s read; arithmetic: {} GFLOP/s of f32, {} GOP/s of bytes",
                    giga(limits.read_bandwidth),
                    giga(limits.fma_peak),
                    giga(limits.int8_peak)
                ),
                format!(
                    "so that on the CPU weights of 1 GB generate at most {} tok/s, of 5 GB {}",
                    digits(limits.read_bandwidth / 1e9),
                    digits(limits.read_bandwidth / 5e9)
                ),
            ];
            Finding::new("speed", lines, limits.json())
        }
        Err(error) => Finding::new("speed", [format!("not measured: {error:#}")], Value::Null),
    }
}

fn mlx() -> Finding {
    let all = backends();
    let of = |name: &str| all.iter().find(|backend| backend.name == name).map(|of| of.there.clone());
    let apple = OS == "macos" && ARCH == "aarch64";
    match of("mlx").unwrap_or_else(|| Err("this build has none".to_owned())) {
        Ok(device) => {
            let nothing = MemoryNeed { weights: 0, kv: 0, activations: 0 };
            let selected = select::select(BackendRequest::Auto, &nothing);
            let memory = select::memory_for(backstop::LlmBackendKind::Mlx);
            let room = memory.map(|bytes| format!(", {} for models", Bytes(bytes))).unwrap_or_default();
            let reason = selected.map(|of| of.reason).unwrap_or_default();
            let lines = [format!("MLX on {device}{room}"), format!("--backend auto: {reason}")];
            Finding::new("mlx", lines, json!({ "there": true, "device": device, "memory": memory })).advise(
                apple && of("metal").is_none_or(|metal| metal.is_err()),
                "Apple's GPU is not used: update macOS",
            )
        }
        Err(why) => {
            let advice = match (apple, OS) {
                (true, _) => {
                    "MLX is part of builds on Apple Silicon: build again there, with Xcode's Metal toolchain"
                }
                (false, "linux") => {
                    "nothing to do: on Linux MLX is there to compare with (cargo xtask with-mlx …), and the CPU's kernels \
                     are faster"
                }
                _ => "nothing to do: MLX is for Apple Silicon, and the CPU's kernels run everywhere",
            };
            let json = json!({ "there": false, "why": why });
            let finding = Finding::new("mlx", [format!("no: {why}")], json);
            if apple {
                finding.advise(true, advice)
            } else {
                Finding { lines: vec![format!("no: {why}"), advice.to_owned()], ..finding }
            }
        }
    }
}

fn models(settings: &Settings) -> Finding {
    let cache = Cache::new(&settings.cache);
    let free = settings.cache.ancestors().find(|path| path.is_dir()).and_then(hub::free_space);
    let (cached, failed) = match cache.list() {
        Ok(all) => (all, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let others = hub::foreign(settings);
    let row = |name: &str, place: &Path, count: usize, bytes: u64| {
        let there = if place.is_dir() { "" } else { " (not made yet)" };
        let line =
            format!("{name}: {}, {} in {}{there}", plural(count, "model"), Bytes(bytes), place.display());
        (
            line,
            json!({ "origin": name, "path": place.display().to_string(), "models": count, "bytes": bytes }),
        )
    };
    let bytes = cached.iter().map(|of| of.bytes).fold(0, u64::saturating_add);
    let mut rows = vec![row(Origin::Hub.name(), &settings.cache, cached.len(), bytes)];
    for (origin, places) in [(Origin::LmStudio, &settings.lm_studio), (Origin::Ollama, &settings.ollama)] {
        for place in places {
            let of = || others.iter().filter(|of| of.origin == origin && of.path.starts_with(place));
            let bytes = of().map(|of| of.bytes).fold(0, u64::saturating_add);
            rows.push(row(origin.name(), place, of().count(), bytes));
        }
    }
    let (mut lines, json): (Vec<String>, Vec<Value>) = rows.into_iter().unzip();
    if let Some(free) = free {
        lines.push(format!("free on the disk of the cache: {}", Bytes(free)));
    }
    let json = json!({ "folders": json, "free_disk": free });
    let none = cached.is_empty() && others.is_empty();
    let finding = Finding::new("models", lines, json)
        .advise(none && failed.is_none(), "backstop pull qwen3:0.6b downloads a first one")
        .advise(
            free.is_some_and(|free| free < 1_000_000_000),
            "less than 1 GB is free for models: backstop rm NAME makes room, HF_HOME names another disk",
        );
    match failed {
        Some(error) => {
            finding.broken(format!("{error}: HF_HUB_CACHE or HF_HOME name a folder that can be read"))
        }
        None => finding,
    }
}

fn hub(settings: &Settings) -> Finding {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let from = match (&settings.token, set("HF_TOKEN") || set("HUGGING_FACE_HUB_TOKEN")) {
        (None, _) => "none, which gated models alone need",
        (Some(_), true) => "from HF_TOKEN",
        (Some(_), false) => "from the file that `hf auth login` wrote",
    };
    let asked = if settings.offline { ", not asked: HF_HUB_OFFLINE is set" } else { "" };
    // What is pasted into an issue is to have no password.
    let endpoint = hub::without_credentials(&settings.endpoint);
    let lines = [format!("{endpoint}{asked}; token: {from}")];
    let json = json!({
        "endpoint": endpoint, "offline": settings.offline, "token": settings.token.is_some(),
    });
    let insecure = settings.token.is_some()
        && settings.endpoint.strip_prefix("http://").is_some_and(|host| !is_here(host));
    Finding::new("hub", lines, json)
        .advise(
            settings.offline,
            "nothing can be downloaded while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set",
        )
        .advise(
            endpoint != settings.endpoint,
            "HF_ENDPOINT has a name and password, which are not sent: an address without them is expected",
        )
        .advise(
            insecure,
            "the token is not sent to an address without TLS: HF_ENDPOINT should begin with https://",
        )
}

/// Whether an address without its scheme is this machine's.
fn is_here(host: &str) -> bool {
    let host = host.split('/').next().unwrap_or(host);
    let name = if host.starts_with('[') { host } else { host.split(':').next().unwrap_or(host) };
    name == "localhost" || name.starts_with("127.") || name.starts_with("[::1]")
}

fn terminal() -> Finding {
    let is = [stdin().is_terminal(), stdout().is_terminal(), stderr().is_terminal()];
    let colours = term::shows_colours(&stdout());
    let kind = std::env::var("TERM").ok();
    let names = ["stdin", "stdout", "stderr"].into_iter().zip(is).filter_map(|(name, is)| is.then_some(name));
    let names: Vec<&str> = names.collect();
    let line = match &names[..] {
        [] => "none: stdin, stdout and stderr are files or pipes".to_owned(),
        all => {
            let kind = kind.as_deref().unwrap_or("unnamed");
            let colours = if colours { "with colours" } else { "without colours" };
            format!("{kind} at {}, {colours}", all.join(", "))
        }
    };
    let json = json!({ "stdin": is[0], "stdout": is[1], "stderr": is[2], "term": kind, "colours": colours });
    Finding::new("terminal", [line], json)
}

/// What the built-in model says on every backend that there is here, to tokens of the highest probability.
fn try_out() -> Finding {
    const PROMPT: &str = "Once upon a time";
    /// Five tokens, none of which another is near to.
    const EXPECTED: &str = ", there was a little";
    let told = |backend: BackendRequest| -> backstop::Result<String> {
        let load =
            LoadOptions { backend, context: Some(64), max_sequences: Some(1), ..LoadOptions::default() };
        let model = Model::load_with(ModelFiles::builtin()?, load)?;
        let options = Options { max_tokens: Some(5), ..Options::default() };
        model.generate(PROMPT, &options)?.text()
    };
    let mut tried = Vec::new();
    for backend in backends().iter().filter(|backend| backend.there.is_ok()) {
        let Ok(request) = backend.name.parse::<BackendRequest>() else { continue };
        let result = match told(request) {
            Ok(text) if text == EXPECTED => Ok(()),
            Ok(text) => Err(format!("the built-in model says {text:?}, expected {EXPECTED:?}")),
            Err(error) => Err(error.to_string()),
        };
        tried.push((backend.name, result));
    }
    let good: Vec<&str> = tried.iter().filter(|(_, result)| result.is_ok()).map(|(name, _)| *name).collect();
    let json: Vec<Value> = tried
        .iter()
        .map(|(name, result)| json!({ "backend": name, "ok": result.is_ok(), "why": result.as_ref().err() }))
        .collect();
    let line = match &good[..] {
        [] => "the built-in model does not run".to_owned(),
        names => format!("the built-in model runs, on {}", names.join(" and ")),
    };
    let mut finding = Finding::new("trial", [line], json.into());
    for (name, result) in &tried {
        if let Err(why) = result {
            finding = finding.broken(format!("{name}: {why}; --backend takes another"));
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_cores() {
        let thread = |package: u8, core: u8| {
            format!(
                "processor : 0\nmodel name\t: A CPU @ 1 GHz\nphysical id\t: {package}\ncore id\t\t: {core}\n\n"
            )
        };
        let info = [thread(0, 0), thread(0, 0), thread(0, 1), thread(1, 0)].concat();
        assert_eq!((physical_cores(&info), cpu_model(&info)), (Some(3), Some("A CPU @ 1 GHz".to_owned())));
        assert_eq!((physical_cores("processor : 0\n"), cpu_model("")), (None, None));
    }

    #[test]
    fn what_does_not_answer_is_told() {
        let good = within("x", Duration::from_secs(60), || Finding::new("x", ["fine".to_owned()], json!(1)));
        assert_eq!((&good.lines[..], good.advice.len(), good.json), (&["fine".to_owned()][..], 0, json!(1)));
        let slow = within("x", Duration::from_millis(50), || {
            loop {
                std::thread::park();
            }
        });
        assert_eq!((&slow.lines[..], slow.advice.len()), (&["no answer within 0.05 s".to_owned()][..], 1));
        let broken = within("x", Duration::from_secs(60), || panic!("it is broken"));
        assert_eq!(broken.lines, ["looking at it failed"]);
    }

    #[test]
    fn addresses_of_this_machine_are_known() {
        for (host, here) in [
            ("localhost:80/x", true),
            ("127.0.0.1", true),
            ("[::1]:80", true),
            ("localhost.example.org", false),
            ("hub.example.org", false),
        ] {
            assert_eq!(is_here(host), here, "{host}");
        }
    }

    #[test]
    fn what_fits_is_what_the_memory_holds() {
        assert_eq!(fitting(Fit { memory: Some(0), ..Fit::default() }), (Vec::new(), None));
        let all = fitting(Fit::default());
        assert_eq!(all.0.len(), short_names().len());
        let most = short_names().iter().flat_map(|short| &short.variants).map(|of| of.bytes).max();
        assert_eq!(all.1.map(|(_, _, bytes)| bytes), most);
        let (names, biggest) = fitting(Fit { memory: Some(4_000_000_000), ..Fit::default() });
        assert!((1..all.0.len()).contains(&names.len()) && biggest.unwrap().2 < 4_000_000_000);
    }
}
