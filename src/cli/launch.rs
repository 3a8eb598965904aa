//! `backstop launch`: one command over several ranks, on this machine or on others by ssh.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use backstop::backend::ranks::VARIABLES;
use serde_json::Value;

use super::args::LaunchArgs;
use super::{Usage, ranks, term};

/// The first port, as `mlx.launch` has it.
const PORT: u16 = 32_323;
/// How long the others may take to end after the first, and once they are asked to.
const END: Duration = Duration::from_secs(5);
/// How long the first may take, beside `--rank-timeout`, to tell whoever waits that another is lost.
const NOTICE: Duration = Duration::from_secs(5);
/// How long what ranks said last is waited for.
const READ: Duration = Duration::from_secs(1);

/// Where a rank runs.
#[derive(Debug, Clone, PartialEq)]
struct Host {
    /// What ssh is given; this machine without.
    ssh: Option<String>,
    /// Addresses that the others reach it by.
    addresses: Vec<String>,
}

impl Host {
    /// A name as it is typed: `user@host`.
    fn named(name: &str) -> Self {
        let address = name.rsplit_once('@').map_or(name, |(_, host)| host).to_owned();
        let here = ["127.0.0.1", "localhost"].contains(&name);
        Self { ssh: (!here).then(|| name.to_owned()), addresses: vec![address] }
    }

    fn shown(&self) -> &str {
        self.ssh.as_deref().unwrap_or("this machine")
    }
}

pub fn launch(args: &LaunchArgs) -> anyhow::Result<ExitCode> {
    let command = args.command.first().map_or("", String::as_str);
    if !ranks::COMMANDS.contains(&command) {
        let what = format!(
            "launch is for {} over several ranks, and not for {}: other programs ask `backstop serve`, whose address goes into \
             their settings",
            ranks::COMMANDS.join(", "),
            term::one_line(command)
        );
        return Err(Usage(what).into());
    }
    let hosts = hosts(args)?;
    let of = hosts.len();
    ensure!(of > 1, Usage("one rank is no company: --ranks and --hosts are for two or more".to_owned()));
    let ring = ring(&hosts, args.port)?;
    let program = std::env::current_exe().context("this program has no path")?;
    let list = tempfile::Builder::new().prefix("backstop-ranks-").suffix(".json").tempfile()?;
    fs::write(list.path(), &ring)?;
    let signals = Signals::catch()?;
    let (mut ranks, mut readers) = (Vec::new(), Vec::new());
    for (index, host) in hosts.iter().enumerate() {
        let mut command = match &host.ssh {
            None => here(&program, list.path(), args, index),
            Some(to) => there(to, args, &ring, index),
        };
        if index > 0 {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let started = command.spawn().with_context(|| format!("rank {index} ({})", host.shown()));
        match started {
            Ok(mut child) => {
                if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
                    readers.extend([told(index, out), told(index, err)]);
                }
                ranks.push(child);
            }
            Err(error) => {
                end(&mut ranks);
                return Err(error);
            }
        }
    }
    let ended = watch(&mut ranks, &hosts, &signals, args.rank_timeout + NOTICE);
    end(&mut ranks);
    // What they said last, unless somebody else has their pipes.
    let due = Instant::now() + READ;
    while Instant::now() < due && readers.iter().flatten().any(|reader| !reader.is_finished()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    ended
}

/// Waits for the first rank, as long as all others are there.
fn watch(
    ranks: &mut [Child],
    hosts: &[Host],
    signals: &Signals,
    notice: Duration,
) -> anyhow::Result<ExitCode> {
    let mut due: Option<Instant> = None;
    let (mut first, mut failed) = (None, None);
    loop {
        // The first ends as it would alone, and the others with it.
        if signals.came()
            && let Some(leads) = ranks.first_mut()
        {
            ask_to_end(leads);
        }
        let mut running = 0;
        for (index, rank) in ranks.iter_mut().enumerate() {
            match rank.try_wait()? {
                None => running += 1,
                Some(status) if index == 0 => first = Some(status),
                Some(status) if status.success() => {}
                // The first one tells those who wait for it, and ends.
                Some(status) if first.is_none() && failed.is_none() => {
                    let host = hosts[index].shown();
                    let what = format!("rank {index} ({host}) has ended ({status}): so do the others");
                    term::note(format_args!("{} {what}", term::red("error:")));
                    failed = Some(Instant::now() + notice);
                }
                Some(_) => {}
            }
        }
        if let Some(late) = failed {
            match first {
                // All of them may have refused the same.
                Some(status) if !status.success() => return Ok(code(status)),
                None if Instant::now() < late => {}
                _ => return Ok(ExitCode::FAILURE),
            }
        } else if let Some(status) = first {
            let late = due.get_or_insert_with(|| Instant::now() + END);
            if running == 0 || Instant::now() >= *late {
                return Ok(code(status));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As shells have it: of a signal, 128 more than its number.
fn code(status: ExitStatus) -> ExitCode {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal = None;
    let code = status.code().or(signal.map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Ends those that still run: asked first, where they can be.
fn end(ranks: &mut [Child]) {
    let runs = |rank: &mut Child| matches!(rank.try_wait(), Ok(None));
    ranks.iter_mut().for_each(ask_to_end);
    let due = Instant::now() + END;
    while Instant::now() < due && ranks.iter_mut().any(runs) {
        std::thread::sleep(Duration::from_millis(20));
    }
    for rank in ranks.iter_mut() {
        if runs(rank) {
            let _ = rank.kill();
        }
        let _ = rank.wait();
    }
}

/// Has a rank end as it does alone, if it runs.
fn ask_to_end(rank: &mut Child) {
    if matches!(rank.try_wait(), Ok(None)) {
        #[cfg(unix)]
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(rank),
            rustix::process::Signal::TERM,
        );
        #[cfg(not(unix))]
        let _ = rank.kill();
    }
}

/// Ctrl-C, which all programs of a terminal hear, is passed over here: the first rank ends as it does alone. What asks this program
/// alone to end is for the first rank, too.
struct Signals {
    ends: mpsc::Receiver<()>,
}

impl Signals {
    fn catch() -> anyhow::Result<Self> {
        let (send, ends) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let wait = move || {
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let [Ok(mut term), Ok(mut interrupt)] =
                    [SignalKind::terminate(), SignalKind::interrupt()].map(signal)
                else {
                    return;
                };
                // Under nohup it is not heard.
                let mut hangup = match super::ignores_hangups() {
                    true => None,
                    false => signal(SignalKind::hangup()).ok(),
                };
                loop {
                    tokio::select! {
                        _ = term.recv() => {}
                        _ = async {
                            match &mut hangup {
                                Some(hangup) => hangup.recv().await,
                                None => std::future::pending().await,
                            }
                        } => {}
                        _ = interrupt.recv() => continue,
                    }
                    if send.send(()).is_err() {
                        return;
                    }
                }
            });
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait)?;
        Ok(Self { ends })
    }

    /// Whether somebody asked for the end since the last time.
    fn came(&self) -> bool {
        self.ends.try_recv().is_ok()
    }
}

/// What a rank says goes to stderr, with its number.
fn told(index: usize, said: impl Read + Send + 'static) -> Option<JoinHandle<()>> {
    let read = move || {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            term::note(format_args!("rank {index}: {}", term::one_line(&line)));
        }
    };
    // Without it the rank is as well.
    std::thread::Builder::new().name("reads".into()).spawn(read).ok()
}

/// A rank on this machine.
fn here(program: &Path, list: &Path, args: &LaunchArgs, index: usize) -> Command {
    let mut command = Command::new(program);
    let [rank, hosts] = VARIABLES;
    command.args(&args.command).env(rank, index.to_string()).env(hosts, list).env(ranks::LAUNCHED, "1");
    command.env(ranks::TIMEOUT, args.rank_timeout.as_secs_f64().to_string());
    command
}

/// A rank on another machine, whose shell writes the list of hosts to a file that lasts as long.
fn there(to: &str, args: &LaunchArgs, ring: &str, index: usize) -> Command {
    let ([rank, hosts], patience) = (VARIABLES, ranks::TIMEOUT);
    let timeout = args.rank_timeout.as_secs_f64();
    let words: Vec<String> = args.command.iter().map(|word| quoted(word)).collect();
    // Where that folder is there, too, paths mean the same.
    let here = std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default();
    let script = format!(
        "cd {} 2>/dev/null; list=$(mktemp) || exit 1; trap 'rm -f \"$list\"' EXIT; printf %s {} > \"$list\"; \
         {rank}={index} {hosts}=\"$list\" {patience}={timeout} {} {}",
        quoted(&here),
        quoted(ring),
        quoted(&args.program),
        words.join(" ")
    );
    let mut command = Command::new("ssh");
    // With a terminal, what runs there ends when the connection does; but it mixes what goes to stdout and stderr, and changes both.
    let person = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    command.arg(if index > 0 || person { "-tt" } else { "-T" });
    command.args([
        "-o",
        "BatchMode=yes",
        "-o",
        "ServerAliveInterval=5",
        "-o",
        "ServerAliveCountMax=2",
        "--",
        to,
    ]);
    command.arg(format!("sh -c {}", quoted(&script)));
    command
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Where the ranks run.
fn hosts(args: &LaunchArgs) -> anyhow::Result<Vec<Host>> {
    let named = |list: &str| list.split(',').map(|name| Host::named(name.trim())).collect();
    match (&args.hosts, args.ranks) {
        (None, count) => {
            let here = Host { ssh: None, addresses: vec!["127.0.0.1".to_owned()] };
            Ok(vec![here; count.unwrap_or(2)])
        }
        (Some(list), None) if Path::new(list).is_file() => {
            let text = fs::read_to_string(list).with_context(|| list.clone())?;
            from_file(&text).with_context(|| format!("{list}: no host file, as mlx.launch has them"))
        }
        (Some(list), None) => Ok(named(list)),
        (Some(list), Some(count)) => {
            let hosts: Vec<Host> = named(list);
            ensure!(
                hosts.len() == count,
                Usage(format!("--hosts names {} machines, and --ranks {count}", hosts.len()))
            );
            Ok(hosts)
        }
    }
}

/// The hosts of a file of `mlx.launch`: `[{"ssh": "host", "ips": ["10.0.0.1"]}, …]`, or an object that has them as `hosts`.
fn from_file(text: &str) -> anyhow::Result<Vec<Host>> {
    let file: Value = serde_json::from_str(text)?;
    let list = file.get("hosts").unwrap_or(&file).as_array().context("expected a list of hosts")?;
    let host = |entry: &Value| {
        let ssh = entry.get("ssh").and_then(Value::as_str).context("a host has no \"ssh\"")?;
        let ips = entry.get("ips").and_then(Value::as_array).context("a host has no \"ips\"")?;
        let ips: Option<Vec<String>> = ips.iter().map(|ip| ip.as_str().map(str::to_owned)).collect();
        let mut host = Host::named(ssh);
        if let Some(ips) = ips.filter(|ips| !ips.is_empty()) {
            host.addresses = ips;
        }
        Ok(host)
    };
    list.iter().map(host).collect()
}

/// The list that MLX reads: of each rank its addresses with ports, which are counted up from `port`; on this machine alone, free ones
/// where none is said.
fn ring(hosts: &[Host], port: Option<u16>) -> anyhow::Result<String> {
    let all_here = hosts.iter().all(|host| host.ssh.is_none());
    for address in hosts.iter().flat_map(|host| &host.addresses) {
        let local = address.starts_with("127.") || address == "localhost";
        ensure!(
            all_here || !local,
            Usage(format!("{address} is this machine to nobody else: name it as the others reach it"))
        );
        ensure!(
            !address.contains(':'),
            Usage(format!("{address}: MLX's ring takes IPv4 addresses, and names, without a port"))
        );
    }
    let mut ports: Box<dyn Iterator<Item = u16>> = match port {
        None if all_here => {
            // Held together until all are known, so that no two are the same.
            let count: usize = hosts.iter().map(|host| host.addresses.len()).sum();
            let held: Vec<TcpListener> =
                (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
            let ports: Result<Vec<u16>, _> =
                held.iter().map(|of| of.local_addr().map(|of| of.port())).collect();
            Box::new(ports?.into_iter())
        }
        port => Box::new(port.unwrap_or(PORT)..=u16::MAX),
    };
    let mut ring: Vec<Vec<String>> = Vec::new();
    for host in hosts {
        let mut addresses = Vec::new();
        for address in &host.addresses {
            let port = ports.next().context("there are no more ports")?;
            addresses.push(format!("{address}:{port}"));
        }
        ring.push(addresses);
    }
    Ok(serde_json::to_string(&ring)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(ssh: Option<&str>, addresses: &[&str]) -> Host {
        let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        Host { ssh: ssh.map(str::to_owned), addresses }
    }

    #[test]
    fn hosts_are_read_as_mlx_launch_writes_them() {
        let list = r#"[{"ssh": "localhost", "ips": ["127.0.0.1"]}, {"ssh": "me@studio", "ips": ["10.0.0.2", "10.0.1.2"]}]"#;
        let expected = [host(None, &["127.0.0.1"]), host(Some("me@studio"), &["10.0.0.2", "10.0.1.2"])];
        assert_eq!(from_file(list).unwrap(), expected);
        assert_eq!(from_file(&format!(r#"{{"backend": "ring", "hosts": {list}}}"#)).unwrap(), expected);
        assert_eq!(Host::named("me@studio"), host(Some("me@studio"), &["studio"]));
        for wrong in ["{}", "[1]", r#"[{"ips": []}]"#, "no"] {
            assert!(from_file(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_are_counted_up_and_free_ones_are_taken_here() {
        let hosts = [host(Some("a"), &["10.0.0.1", "10.0.1.1"]), host(Some("b"), &["10.0.0.2", "10.0.1.2"])];
        let expected = r#"[["10.0.0.1:7000","10.0.1.1:7001"],["10.0.0.2:7002","10.0.1.2:7003"]]"#;
        assert_eq!(ring(&hosts, Some(7000)).unwrap(), expected);
        assert!(ring(&hosts, Some(65_534)).is_err());
        let here = host(None, &["127.0.0.1"]);
        let list: Vec<Vec<String>> =
            serde_json::from_str(&ring(&[here.clone(), here], None).unwrap()).unwrap();
        assert_ne!(list[0], list[1]);
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_elsewhere_reads_words_as_they_were_typed() {
        let words = [
            "-c".to_owned(),
            "cat \"$MLX_HOSTFILE\"; echo; echo \"$MLX_RANK $BACKSTOP_RANK_TIMEOUT $1\"".to_owned(),
            "sh".to_owned(),
            "it's $HOME".to_owned(),
        ];
        let args = LaunchArgs {
            ranks: None,
            hosts: None,
            port: None,
            rank_timeout: Duration::from_secs(3),
            program: "sh".to_owned(),
            command: words.to_vec(),
        };
        let remote = there("host", &args, r#"[["a:1"],["b:2"]]"#, 1);
        let typed: Vec<_> = remote.get_args().map(|word| word.to_str().unwrap().to_owned()).collect();
        assert_eq!((&*typed[0], typed.len(), &*typed[8]), ("-tt", 10, "host"));
        // What sshd has the user's shell do.
        let said = Command::new("sh").args(["-c", &typed[9]]).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "[[\"a:1\"],[\"b:2\"]]\n1 3 it's $HOME\n");
    }
}
