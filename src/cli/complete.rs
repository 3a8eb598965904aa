//! `backstop completions` and `backstop man`; and the words that a shell asks for while a person types.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, anyhow};
use clap::CommandFactory;
use clap_complete::env::{CompleteEnv, Shells};

use super::args::{Args, CompletionsArgs, ManArgs};
use super::stream::print;
use super::{here, term};

/// What a shell sets when it asks for words.
const VARIABLE: &str = "BACKSTOP_COMPLETE";
const NAME: &str = "backstop";

/// Shells that quote a word which is put in, where it is more than a word to them.
const QUOTE: [&str; 4] = ["bash", "elvish", "fish", "zsh"];

/// Has bash quote what it would take for more than a word, and take no name for a pattern; older ones than 4 are given no such
/// word. Names of models have colons, at which bash would part them.
const BASH: &str = r#"
_backstop_words() {
    local - 2> /dev/null
    local word globs=${-//[^f]/}
    set -f
    _clap_complete_backstop "$1" "${2//\\/}" "$3"
    [[ $globs ]] || set +f
    for word in "${COMPREPLY[@]}"; do
        if [[ $word == *[^[:alnum:]._/:@=+,~-]* ]]; then
            compopt -o filenames 2> /dev/null || COMPREPLY=()
            break
        fi
    done
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//:}
"#;

/// What a script of PowerShell begins with.
const PARAMETERS: &str = "param($wordToComplete, $commandAst, $cursorPosition)";
/// PowerShell's script has what was typed evaluated: nothing is completed where that would run something.
const RUNS_NOTHING: &str = r"if ($commandAst.Extent.Text -match '[$`({]') { return }";

/// Answers a shell that asks for words, and ends; returns where none does.
pub fn answer() {
    let quotes = std::env::var(VARIABLE).is_ok_and(|shell| QUOTE.contains(&&*shell));
    here::QUOTED.store(quotes, Ordering::Relaxed);
    CompleteEnv::with_factory(Args::command).var(VARIABLE).complete();
}

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let shell = Shells::builtins().completer(&args.shell).map(|shell| shell.name().to_owned());
    let shell = shell.with_context(|| format!("there are no completions for {}", args.shell))?;
    let typed = std::env::args_os().next().unwrap_or_else(|| NAME.into());
    let command = Path::new(&typed).file_name().unwrap_or(OsStr::new(NAME)).to_string_lossy().into_owned();
    // What was typed as a path may not be found without it.
    let completer = match typed.to_string_lossy().contains('/') {
        true => std::env::current_exe().context("cannot find this program")?.to_string_lossy().into_owned(),
        false => command.clone(),
    };
    let all = Shells::builtins();
    let writer = all.completer(&shell).ok_or_else(|| anyhow!("there are no completions for {shell}"))?;
    let written = |command: &str, completer: &str| {
        let mut script = Vec::new();
        writer.write_registration(VARIABLE, NAME, command, completer, &mut script)?;
        anyhow::Ok(String::from_utf8(script)?)
    };
    let script = match &*shell {
        "bash" => {
            // Its script has the program in quotes, whatever the program's name has.
            let script = written("COMMAND", "PROGRAM")?.replace("\"PROGRAM\"", &quoted(&completer));
            let of = format!("-F _backstop_words {}", quoted(&command));
            script.replace("-F _clap_complete_backstop COMMAND", &of) + BASH
        }
        // What was typed before is told as it is meant, and not as it was quoted.
        "zsh" => {
            let meant = r#""${(@Q)words[1,CURRENT-1]}" "${(Q)words[CURRENT]#[\"\']}""#;
            written(&command, &completer)?.replace("\"${words[@]}\"", meant)
        }
        "fish" => {
            let token = "commandline --current-token";
            let meant = format!("{token} | string unescape; or {token}");
            written(&command, &completer)?.replace(token, &meant)
        }
        "elvish" => {
            let script = written("COMMAND", "PROGRAM")?.replace("PROGRAM", &doubled(&completer));
            script.replace("[COMMAND]", &format!("[{}]", doubled(&command)))
        }
        "powershell" => {
            // It stands in a text in which variables are put in.
            let program = doubled(&completer).replace('`', "``").replace('$', "`$");
            let script = written("COMMAND", "PROGRAM")?.replace("& PROGRAM", &format!("& {program}"));
            let script =
                script.replace("-CommandName COMMAND", &format!("-CommandName {}", doubled(&command)));
            script.replace(PARAMETERS, &format!("{PARAMETERS}\n    {RUNS_NOTHING}"))
        }
        _ => written(&command, &completer)?,
    };
    print(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// A word of a shell's language that means `text`.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The same, of those in whose quotes a quote is doubled.
fn doubled(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let pages = pages()?;
    let Some(dir) = &args.out else {
        let (_, page) = pages.first().context("there is no page")?;
        print(&String::from_utf8_lossy(page))?;
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
    for (name, page) in &pages {
        let path = dir.join(name);
        std::fs::write(&path, page).with_context(|| format!("{}", path.display()))?;
    }
    let first = &pages.first().context("there is no page")?.0;
    term::note(format_args!(
        "{} pages are in {}; try man {}",
        pages.len(),
        dir.display(),
        dir.join(first).display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// A page for the program, and one for each command: their files' names and text.
fn pages() -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let shown: Vec<clap::Command> =
        command.get_subcommands().filter(|of| !of.is_hide_set()).cloned().collect();
    let source = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    let mut pages = Vec::new();
    for of in std::iter::once(command).chain(shown) {
        let name = of.get_display_name().unwrap_or(of.get_name()).to_owned();
        let mut page = Vec::new();
        clap_mangen::Man::new(of).title(name.to_uppercase()).source(source.clone()).render(&mut page)?;
        pages.push((format!("{name}.1"), page));
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names[..3], ["backstop.1", "backstop-run.1", "backstop-chat.1"]);
        assert!(!names.iter().any(|name| name.contains("grammar")), "{names:?}");
        for (name, page) in &pages {
            let page = String::from_utf8(page.clone()).unwrap();
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
        }
    }
}
