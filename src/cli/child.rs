//! What another process says, and how long it may take.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Runs a process to its end, at most for as long: then it is killed. Its stderr is this one's.
pub fn output(mut command: Command, most: Duration) -> anyhow::Result<Output> {
    /// How long a process that has ended may keep what it said.
    const READ: Duration = Duration::from_secs(5);
    let due = Instant::now() + most;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let (said, heard) = mpsc::channel();
    if let Some(mut out) = child.stdout.take() {
        // What fills the pipe would never end.
        let reads = move || {
            let mut bytes = Vec::new();
            // Nobody may wait any more.
            let _ = said.send(out.read_to_end(&mut bytes).map(|_| bytes));
        };
        std::thread::Builder::new().name("reads".into()).spawn(reads).inspect_err(|_| _ = child.kill())?;
    }
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= due {
            child.kill().and_then(|()| child.wait()).context("it cannot be ended")?;
            bail!("it took longer than {} s, and was ended", most.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let stdout = heard.recv_timeout(READ).context("what it said cannot be read")??;
    Ok(Output { status, stdout, stderr: Vec::new() })
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn script(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[test]
    fn one_that_takes_too_long_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("id");
        let mut slow = script("echo $$ > \"$FILE.new\"; mv \"$FILE.new\" \"$FILE\"; exec sleep 600");
        slow.env("FILE", &file);
        let started = Instant::now();
        let error = output(slow, Duration::from_secs(5)).unwrap_err().to_string();
        assert_eq!(error, "it took longer than 5 s, and was ended");
        assert!(started.elapsed() < Duration::from_secs(60));
        let id = std::fs::read_to_string(file).unwrap();
        let alive = Command::new("kill").args(["-0", id.trim()]).stderr(Stdio::null()).status().unwrap();
        assert!(!alive.success(), "{id}");
    }

    #[test]
    fn one_that_says_much_is_heard_to_its_end() {
        let much = script("head -c 1000000 /dev/zero; exit 3");
        let output = output(much, Duration::from_secs(60)).unwrap();
        assert_eq!((output.stdout.len(), output.status.code()), (1_000_000, Some(3)));
    }
}
