//! What a person sees of work that takes long: a line that changes, and goes without a trace.

use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstop::LoadProgress;
use backstop::backend::select::Bytes;

use super::{interrupt, term};

/// A line on a terminal that says what takes so long, until it is dropped, or Ctrl-C ends the process. Nothing where stderr is
/// not a terminal, or for what is done before a person would wonder.
pub struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// What is over by then needs no line.
    const PATIENCE: Duration = Duration::from_millis(300);
    const TICK: Duration = Duration::from_millis(100);
    const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

    /// Shows what `what` says then, and the seconds since now.
    pub fn start(what: impl Fn() -> String + Send + 'static) -> Self {
        // One that obeys nothing would show what moves its cursor.
        if !stderr().is_terminal() || std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
            return Self(None);
        }
        // Where Ctrl-C cannot be caught, the line stays with what it says.
        let _ = interrupt::catch();
        let (stop, stopped) = channel();
        let started = Instant::now();
        let line = move || {
            let mut wait = Self::PATIENCE;
            let mut frames = Self::FRAMES.iter().cycle();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
                let seconds = started.elapsed().as_secs_f64();
                let frame = frames.next().unwrap_or(&' ');
                term::show_changing(Some(&format!("{frame} {} … {seconds:.0} s", what())));
                wait = Self::TICK;
            }
            term::show_changing(None);
        };
        let thread = std::thread::Builder::new().name("progress".into()).spawn(line);
        Self(thread.ok().map(|thread| (stop, thread)))
    }

    /// Shows that the model `name` is loaded, and how far that is; nothing for who is `quiet`.
    pub fn of_load(name: String, load: &LoadProgress, quiet: bool) -> Self {
        if quiet {
            return Self(None);
        }
        let load = load.clone();
        Self::start(move || match load.bytes() {
            Some((done, total)) => format!("loading {name}: {} of {}", Bytes(done), Bytes(total)),
            None => format!("loading {name}"),
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}
