//! Signals to processes of the tests.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Has SIGHUP and SIGINT end the program, also where `nohup` started the tests, or a shell in the background.
pub fn hangs_up(command: &mut Command) {
    let default = || {
        // SAFETY: it may be called between fork and exec, and takes no function of ours.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            libc::signal(libc::SIGINT, libc::SIG_DFL);
        }
        Ok(())
    };
    // SAFETY: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(default) };
}

/// Lets the program find no models of the person whose machine this is.
pub fn without_models(command: &mut Command) {
    for name in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HOME", "/nonexistent").env("OLLAMA_MODELS", "/nonexistent");
}

/// The binary, to which SIGHUP is what it is after `nohup`: nothing.
pub fn under_nohup(args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_backstop")]).args(args);
    command
}

pub fn send(child: &Child, signal: i32) {
    // SAFETY: the process is our child and not yet waited for, so that the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}
