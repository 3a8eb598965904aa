//! A thread of another process, held where it is.

use std::fs;
use std::process::Child;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// How long anything may take on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(30);

/// A thread that stands still until it is let go, or its process ends. For the thread that made it alone.
pub struct Held {
    thread: libc::pid_t,
}

impl Held {
    /// Holds the thread of a child that has this name, once `when` holds for the child.
    pub fn hold(child: &Child, name: &str, when: impl Fn(&Child) -> bool) -> Self {
        let start = Instant::now();
        let thread = loop {
            if let Some(thread) = named(child, name)
                && when(child)
            {
                break thread;
            }
            assert!(start.elapsed() < LONG, "there is no thread {name}");
            std::thread::sleep(Duration::from_millis(1));
        };
        // SAFETY: neither request reads or writes memory of ours.
        let results = unsafe {
            [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT]
                .map(|request| libc::ptrace(request, thread, null_mut::<u8>(), null_mut::<u8>()))
        };
        assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
        let held = Self { thread };
        assert!(libc::WIFSTOPPED(held.wait()));
        held
    }

    /// Lets it go on.
    pub fn release(self) {
        // SAFETY: the request reads and writes no memory of ours.
        let result =
            unsafe { libc::ptrace(libc::PTRACE_DETACH, self.thread, null_mut::<u8>(), null_mut::<u8>()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Waits until its process has ended: until somebody knows of its end, that of the process is not told.
    pub fn ends(self) {
        let status = self.wait();
        assert!(libc::WIFEXITED(status) || libc::WIFSIGNALED(status), "{status:#x}");
    }

    /// What has become of it.
    fn wait(&self) -> i32 {
        let mut status = 0;
        // SAFETY: the call writes to a value of our own.
        let of = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
        assert_eq!(of, self.thread, "{}", std::io::Error::last_os_error());
        status
    }
}

/// The id of a child's thread.
fn named(child: &Child, name: &str) -> Option<libc::pid_t> {
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).ok()?;
    let is =
        |path: &std::path::Path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let task = tasks.flatten().map(|task| task.path()).find(|path| is(path))?;
    task.file_name()?.to_str()?.parse().ok()
}
