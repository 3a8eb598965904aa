//! `backstop completions` and `backstop man`.

use std::path::Path;
use std::process::Command;

use crate::support::*;
use crate::terminal::process::Terminal;

fn there(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !found {
        println!("skipped: there is no {program}");
    }
    found
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = ok(&["completions", shell]).out;
        assert!(script.contains("BACKSTOP_COMPLETE") && script.contains("backstop"), "{shell}: {script}");
    }
    let ran = backstop(&["completions", "csh"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
}

/// The script for a shell, of this program in a folder that is yet to be made.
fn script_of(folder: &Path, shell: &str) -> String {
    std::fs::create_dir(folder).unwrap();
    let (built, program) = (env!("CARGO_BIN_EXE_backstop"), folder.join("backstop"));
    if std::fs::hard_link(built, &program).is_err() {
        std::fs::copy(built, &program).unwrap();
    }
    let script = Command::new(&program).args(["completions", shell]).output().unwrap();
    assert!(script.status.success(), "{script:?}");
    String::from_utf8(script.stdout).unwrap()
}

/// There is no PowerShell to try it with: how its script asks, that nothing typed is run on the way, and what it is told.
#[test]
fn powershell_is_told_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("it's $here");
    let script = script_of(&folder, "powershell");
    let program = folder.join("backstop").to_str().unwrap().replace('\'', "''").replace('$', "`$");
    assert!(script.contains(&format!("\n& '{program}' -- $args\n")), "{script}");
    assert!(script.contains("-Native -CommandName 'backstop' "), "{script}");
    let guard = script.find("if ($commandAst.Extent.Text -match '[$`({]') { return }\n").unwrap();
    assert!(guard < script.find("Invoke-Expression").unwrap(), "{script}");
    // Without what stands in quotes, all that opens is closed.
    let plain = script.replace(&program, "").replace("'[$`({]'", "");
    let mut open = Vec::new();
    for bracket in plain.chars().filter(|c| "(){}[]".contains(*c)) {
        match bracket {
            '(' => open.push(')'),
            '{' => open.push('}'),
            '[' => open.push(']'),
            closes => assert_eq!(open.pop(), Some(closes), "{script}"),
        }
    }
    assert_eq!(open, [], "{script}");
    // As the script asks, with the words up to where the cursor is.
    let told = |words: &[&str]| -> Vec<String> {
        let mut command = command(&[&["--", "backstop"], words].concat());
        let ran = command.env("BACKSTOP_COMPLETE", "powershell").output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        let lines = String::from_utf8(ran.stdout).unwrap();
        lines.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    };
    let all = told(&[""]);
    let help = ok(&["--help"]).out;
    let listed = help.split_once("\nCommands:\n").unwrap().1.split("\n\n").next().unwrap();
    let names = listed
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 15 && names.contains(&"serve"), "{names:?}");
    for name in names {
        assert!(all.iter().any(|word| word == name), "{name}: {all:?}");
    }
    assert_eq!(told(&["serve", "--idle"]), ["--idle-unload"]);
    assert_eq!(told(&["run", "--model", "qwen3:0"]), ["qwen3:0.6b"]);
}

/// Shells, how they begin without a person's settings, and what has them read the script, with a command of theirs that says
/// what it was given.
const SHELLS: [(&str, &[&str], &str); 4] = [
    ("bash", &["--norc", "--noprofile"], "backstop() { printf '<%s>' \"$@\"; }; . ../script"),
    (
        "zsh",
        &["-f"],
        "autoload -U compinit; compinit -u -D; backstop() { printf '<%s>' \"$@\"; }; . ../script",
    ),
    (
        "fish",
        &["--no-config"],
        "set -g fish_autosuggestion_enabled 0; function backstop; printf '<%s>' $argv; end; . ../script",
    ),
    // A word that it shows in a list is taken by one Enter more.
    (
        "elvish",
        &["-norc"],
        "fn backstop {|@all| for word $all { print '<'$word'>' } }; eval (slurp < ../script); \
         set edit:completion:binding[Enter] = { edit:completion:accept; edit:smart-enter }",
    ),
];

/// What is typed with a quote or a backslash in the way of most shells.
const ESCAPED: [&str; 2] = ["my\\ fi", "st\\*"];

#[test]
fn what_a_tab_puts_in_is_one_word() {
    for (shell, args, before) in SHELLS {
        if !there(shell) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        // The program lies where a shell would part its path.
        let script = script_of(&dir.path().join("it's here"), shell);
        std::fs::write(dir.path().join("script"), script).unwrap();
        let files = dir.path().join("files");
        std::fs::create_dir(&files).unwrap();
        for name in ["my file.gguf", "a;b.gguf", "it's.gguf", "g$(touch x).gguf", "st*r.gguf", "stxr.gguf"] {
            std::fs::write(files.join(name), "").unwrap();
        }
        let mut command = Command::new(shell);
        command.args(args).current_dir(&files).env("HOME", dir.path()).env_remove("RUST_LOG");
        command.env("HF_HUB_CACHE", dir.path().join("hub"));
        let mut terminal = Terminal::start(command);
        terminal.keys(&format!("{before}; echo read''y\r"));
        terminal.shows("ready\r\n");
        for (before, begun, word) in [
            ("quantize x -o", "my", "my file.gguf"),
            ("quantize x -o", "my\\ fi", "my file.gguf"),
            ("quantize x -o", "\"my f", "my file.gguf"),
            ("quantize x -o", "a", "a;b.gguf"),
            ("quantize x -o", "it", "it's.gguf"),
            ("quantize x -o", "g", "g$(touch x).gguf"),
            ("quantize x -o", "st\\*", "st*r.gguf"),
            ("run --model", "my", "my file.gguf"),
            ("run --model", "qwen3:0", "qwen3:0.6b"),
        ] {
            // A star that is meant as it is fish completes as if it were a pattern: to nothing.
            if shell == "fish" && begun.contains('*') || shell == "elvish" && ESCAPED.contains(&begun) {
                continue;
            }
            terminal.keys(&format!("backstop {before} {begun}\t"));
            terminal.shows(&word[word.len() - 2..]);
            terminal.keys("\r");
            terminal.shows(&format!("<{}><{word}>", before.replace(' ', "><")));
        }
        terminal.keys("exit\r");
        assert_eq!(terminal.ends(), Some(0), "{shell}");
        assert_eq!(std::fs::read_dir(&files).unwrap().count(), 6);
    }
}

#[test]
fn bash_completes_commands_options_and_names() {
    if !there("bash") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, ok(&["completions", "bash"]).out).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&script).output().unwrap();
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
    cached(&dir.path().join("hub"), "models--org--stories");
    std::fs::write(dir.path().join("file.gguf"), "").unwrap();
    // As bash calls the function at Tab, with the words so far.
    let words = |typed: &[&str]| -> Vec<String> {
        let quoted: Vec<String> = typed.iter().map(|word| format!("'{word}'")).collect();
        let last = typed[typed.len() - 1];
        let line = format!(
            ". {}\nCOMP_WORDS=({})\nCOMP_CWORD={}\nCOMP_TYPE=9\n_clap_complete_backstop backstop '{last}' ''\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            quoted.join(" "),
            typed.len() - 1
        );
        let ran = Command::new("bash")
            .args(["--norc", "--noprofile", "-c", &line])
            .current_dir(dir.path())
            .env("HF_HUB_CACHE", dir.path().join("hub"))
            .env("HOME", dir.path())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
        let words = String::from_utf8(ran.stdout).unwrap();
        words.lines().map(|word| word.trim_end().to_owned()).collect()
    };
    assert_eq!(words(&["backstop", "doc"]), ["doctor"]);
    assert_eq!(words(&["backstop", "serve", "--unknown"]), ["--unknown-fields"]);
    assert_eq!(words(&["backstop", "chat", "org/s"]), ["org/stories"]);
    assert_eq!(words(&["backstop", "run", "--model", "qwen3:0"]), ["qwen3:0.6b"]);
    assert_eq!(words(&["backstop", "inspect", "fi"]), ["file.gguf"]);
    assert_eq!(words(&["backstop", "completions", "z"]), ["zsh"]);
}

#[test]
fn every_command_has_a_page_that_renders() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("pages");
    let ran = ok(&["man", "--out", pages.to_str().unwrap()]);
    let mut names: Vec<String> = std::fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(
        names.contains(&"backstop.1".to_owned()) && names.contains(&"backstop-serve.1".to_owned()),
        "{names:?}"
    );
    assert!(ran.err.starts_with(&format!("{} pages are in ", names.len())), "{}", ran.err);
    let shown = ok(&["--help"]).out;
    for name in names.iter().filter_map(|name| name.strip_prefix("backstop-")?.strip_suffix(".1")) {
        assert!(shown.contains(&format!("  {name} ")), "{name}: {shown}");
    }
    let own = std::fs::read_to_string(pages.join("backstop.1")).unwrap();
    assert_eq!(ok(&["man"]).out, own);
    if there("groff") {
        for name in &names {
            let ran = Command::new("groff")
                .args(["-Kutf8", "-man", "-Tutf8", "-ww", "-z"])
                .arg(pages.join(name))
                .output()
                .unwrap();
            assert!(
                ran.status.success() && ran.stderr.is_empty(),
                "{name}: {}",
                String::from_utf8_lossy(&ran.stderr)
            );
        }
    }
}
