//! A server as a process: started, asked what it takes, ended.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Backstop;
use crate::clients::target;
use crate::util::{cargo, root, shown};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server; killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// What it asks for on its routes.
    pub key: Option<String>,
}

/// What a process takes of the system.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    pub memory: u64,
    /// Of that, what is no file's: pages of a mapped model come as they are read.
    pub own: u64,
    /// The most that `memory` has been.
    pub peak: u64,
    pub descriptors: usize,
    pub threads: usize,
}

impl Server {
    /// `backstop serve ARGS` on a port of its own.
    pub fn backstop(program: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["serve", "--port", "0"]).args(args).stderr(Stdio::piped()).stdin(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shown(&command)))?;
        let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let mut said = String::new();
        let address = loop {
            let line = lines.next().with_context(|| format!("it ended: {said}"))??;
            match line.strip_prefix("listening on http://") {
                Some(address) => break address.parse()?,
                None => said += &line,
            }
        };
        thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, address, key: None })
    }

    /// `llama-server ARGS` on a port of its own; its page and its log are left out.
    pub fn llama(program: &Path, args: &[&str]) -> Result<Self> {
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(program);
        command.args(args).args(["--host", "127.0.0.1", "--port", &free.port().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start `{}`", shown(&command)))?;
        let mut server = Self { child, address: free, key: None };
        let start = Instant::now();
        while !server.get("/health").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if let Some(status) = server.child.try_wait()? {
                bail!("`{}` ended with {status}", shown(&command));
            }
            ensure!(start.elapsed() < PATIENCE, "`{}` does not answer", shown(&command));
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The answer to a GET, head and all.
    pub fn get(&self, path: &str) -> Result<String> {
        use std::io::{Read, Write};
        let mut connection = TcpStream::connect(self.address)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let key = self.key.as_ref().map_or_else(String::new, |key| format!("x-api-key: {key}\r\n"));
        write!(
            connection,
            "GET {path} HTTP/1.1\r\nhost: {}\r\n{key}connection: close\r\n\r\n",
            self.address
        )?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// A value of `/metrics`.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {name} in /metrics"))?.trim().parse()?)
    }

    /// What it takes now, as Linux says.
    pub fn taken(&self) -> Result<Taken> {
        let home = format!("/proc/{}", self.child.id());
        let status = fs::read_to_string(format!("{home}/status")).context("/proc is needed")?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse().ok());
            number.with_context(|| format!("no {name} in /proc"))
        };
        Ok(Taken {
            memory: field("VmRSS:")? * 1024,
            own: field("RssAnon:")? * 1024,
            peak: field("VmHWM:")? * 1024,
            descriptors: fs::read_dir(format!("{home}/fd"))?.count(),
            threads: field("Threads:")? as usize,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// backstop as `--backstop` names it, else built for release.
pub fn program(backstop: &Backstop) -> Result<PathBuf> {
    if let Some(program) = &backstop.program {
        return Ok(program.clone());
    }
    let mut build = cargo();
    build.args(["build", "--release", "--bin", "backstop"]).stdout(Stdio::null());
    let status = build.status().with_context(|| format!("cannot start `{}`", shown(&build)))?;
    ensure!(status.success(), "`{}` failed", shown(&build));
    Ok(target(&root()?).join("release").join(format!("backstop{}", std::env::consts::EXE_SUFFIX)))
}
