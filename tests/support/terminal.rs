//! A process on a pseudo-terminal, as a person has it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long anything may take on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(30);

/// A process on a terminal of its own.
pub struct Terminal {
    pub child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    pub fn start(command: Command) -> Self {
        Self::start_with(command, None)
    }

    /// With another standard error than the terminal.
    pub fn start_with(mut command: Command, stderr: Option<File>) -> Self {
        let (mut ours, mut theirs) = (-1, -1);
        // SAFETY: the call writes two descriptors into places of our own; null means the defaults.
        let result = unsafe { libc::openpty(&mut ours, &mut theirs, null_mut(), null_mut(), null_mut()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both descriptors were just opened, and nobody else has them.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap());
        command.stderr(stderr.map_or_else(|| theirs.into(), Stdio::from));
        command.env_remove("NO_COLOR").env("TERM", "xterm");
        // SAFETY: both calls may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // A session whose terminal is stdin, so that Ctrl-C there is a signal.
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY as _, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        drop(command);
        let keyboard = File::from(ours);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, screen, seen: String::new() }
    }

    pub fn keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` shows, and forgets what came up to it, with which it comes.
    pub fn shows(&mut self, text: &str) -> String {
        self.until(&format!("{text:?}"), |seen| seen.find(text).map(|at| at + text.len()))
    }

    /// The same of a first character that is such a one.
    #[allow(dead_code, reason = "not every program that has this asks")]
    pub fn shows_one(&mut self, such: impl Fn(char) -> bool) -> String {
        let end = |seen: &str| seen.char_indices().find(|(_, c)| such(*c)).map(|(at, c)| at + c.len_utf8());
        self.until("such character", end)
    }

    /// Waits until there is an end in what has come, and forgets what came up to there, with which it comes.
    fn until(&mut self, what: &str, end: impl Fn(&str) -> Option<usize>) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(end) = end(&self.seen) {
                return self.seen.drain(..end).collect();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let bytes =
                self.screen.recv_timeout(left).unwrap_or_else(|_| panic!("no {what} in {:?}", self.seen));
            self.seen += &String::from_utf8_lossy(&bytes);
        }
    }

    /// What came since, up to the end.
    #[allow(dead_code, reason = "not every program that has this asks")]
    pub fn rest(&mut self) -> String {
        while let Ok(bytes) = self.screen.recv_timeout(LONG) {
            self.seen += &String::from_utf8_lossy(&bytes);
        }
        std::mem::take(&mut self.seen)
    }

    /// Whether what is typed shows, and comes a line at a time: so a shell leaves it to a process.
    #[allow(dead_code, reason = "not every program that has this asks")]
    pub fn is_as_before(&self) -> bool {
        // SAFETY: all bytes of it may be zero.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open as long as the file, and the pointer is to a value of our own.
        let result = unsafe { libc::tcgetattr(self.keyboard.as_raw_fd(), &mut modes) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        let both = libc::ECHO | libc::ICANON;
        modes.c_lflag & both == both
    }

    /// The exit code, once it has ended.
    pub fn ends(&mut self) -> Option<i32> {
        self.ends_within(LONG).unwrap_or_else(|| {
            let _ = self.child.kill();
            panic!("it does not end; it shows {:?}", self.seen);
        })
    }

    /// The exit code, where it ends within a time.
    pub fn ends_within(&mut self, time: Duration) -> Option<Option<i32>> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status.code());
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
