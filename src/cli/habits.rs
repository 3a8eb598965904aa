//! What other programs have one type: taken where it means the same, else told what says it here.

use std::ffi::OsString;

use super::Usage;

/// Options of llama.cpp that are not taken, and what there is in place of each.
const OTHERS: [(&[&str], &str); 9] = [
    (
        &["-ngl", "--n-gpu-layers", "--gpu-layers"],
        "what runs the model is chosen by itself, and --backend says it: all of its layers, not some",
    ),
    (&["-cnv", "--conversation"], "`backstop chat` holds a conversation"),
    (
        &["-no-cnv", "--no-conversation"],
        "`backstop run` answers one prompt, and --raw goes on from it as it is",
    ),
    (&["-fa", "--flash-attn"], "attention is computed that way, and there is nothing to say"),
    (&["-np"], "--parallel N says how many sequences run side by side"),
    (&["-s"], "--seed N"),
    (&["-f"], "the prompt comes from stdin: `backstop run MODEL < FILE`"),
    (&["--jinja"], "chat templates are always those of the model; --chat-template takes another"),
    (&["--mlock"], "weights are mapped; --no-mmap reads them into memory"),
];

/// Options of Ollama's `run`, as [`OTHERS`].
const OLLAMAS: [(&[&str], &str); 5] = [
    (&["--format"], "--schema '{}' has JSON written, and --schema FILE what a schema allows"),
    (
        &["--keepalive"],
        "`backstop run` ends with its answer; of a server, --idle-unload says how long it keeps models",
    ),
    (&["--hidethinking"], "--think off has the model not think"),
    (&["--nowordwrap"], "text is never wrapped, and there is nothing to say"),
    (&["--insecure"], "the hub is HF_ENDPOINT, which may be an http address"),
];

/// Commands that there are elsewhere, and what there is in place of each.
const COMMANDS: [(&[&str], &str); 6] = [
    (
        &["create"],
        "a model's files are run as they are: --system and --temperature say the rest, and `backstop quantize` writes a model in fewer bits",
    ),
    (&["status"], "`backstop ps` shows what a server holds, and `backstop doctor` what this machine can do"),
    (&["cp", "copy"], "a model goes by its own name, and `backstop serve --alias NAME` gives it another"),
    (
        &["push", "login", "signin", "logout", "signout"],
        "nothing is uploaded; a token for the hub is HF_TOKEN, or what `hf auth login` leaves",
    ),
    (&["load"], "`backstop serve MODEL` loads a model, and `backstop chat MODEL` talks to it"),
    (&["convert"], "`backstop quantize` writes a model in fewer bits, as safetensors or GGUF"),
];

/// The words with a command of other programs replaced by what it is here.
///
/// # Errors
/// A command of another program that is none here.
pub fn command(mut typed: Vec<OsString>) -> Result<Vec<OsString>, Usage> {
    let Some(command) = typed.get(1).and_then(|word| word.to_str()) else { return Ok(typed) };
    if let Some((_, what)) = COMMANDS.iter().find(|(names, _)| names.contains(&command)) {
        return Err(Usage(format!("there is no command {command}: {what}")));
    }
    match command {
        "search" => drop(typed.splice(1..2, ["list".into(), "--names".into()])),
        "version" => typed[1] = "--version".into(),
        _ => {}
    }
    Ok(typed)
}

/// The words with options of other programs replaced by what they are here.
///
/// # Errors
/// An option of another program that has no other here.
pub fn options(mut typed: Vec<OsString>) -> Result<Vec<OsString>, Usage> {
    let mut is_prompt = false;
    for word in typed.iter_mut().skip(1) {
        // What follows is a text, whatever it looks like.
        if std::mem::replace(&mut is_prompt, word == "-p" || word == "--prompt") {
            is_prompt = false;
            continue;
        }
        match word.to_str() {
            Some("--") => break,
            Some("-hf" | "-hfr" | "--hf-repo") => *word = "--model".into(),
            Some(text) => {
                if let Some((_, what)) = OTHERS.iter().find(|(names, _)| names.contains(&text)) {
                    return Err(Usage(format!("{text} is an option of llama.cpp: here, {what}")));
                }
                let name = text.split('=').next().unwrap_or(text);
                if let Some((_, what)) = OLLAMAS.iter().find(|(names, _)| names.contains(&name)) {
                    return Err(Usage(format!("{name} is an option of Ollama: here, {what}")));
                }
                // As Python has options: `--top_k`.
                if name.starts_with("--") && name.contains('_') {
                    *word = format!("{}{}", name.replace('_', "-"), &text[name.len()..]).into();
                }
            }
            None => {}
        }
    }
    Ok(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_llama_cpp_are_taken_or_told_of() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let translated = |line: &str| command(words(line)).and_then(options);
        for (typed, taken) in [
            ("backstop serve -hf org/name", "backstop serve --model org/name"),
            ("backstop run --hf-repo org/name -p x", "backstop run --model org/name -p x"),
            ("backstop run -- -hf", "backstop run -- -hf"),
            ("-hf", "-hf"),
            ("backstop run m --top_k 3 --min_p=0.1 a_b", "backstop run m --top-k 3 --min-p=0.1 a_b"),
            ("backstop search qwen3", "backstop list --names qwen3"),
            ("backstop version", "backstop --version"),
            // Texts, whatever they look like.
            ("backstop run -p --top_k --top_k 3", "backstop run -p --top_k --top-k 3"),
            ("backstop run --prompt -s", "backstop run --prompt -s"),
            ("backstop run -- --top_k", "backstop run -- --top_k"),
        ] {
            assert_eq!(translated(typed).unwrap(), words(taken), "{typed}");
        }
        let refused = |typed: &str| translated(typed).unwrap_err().0;
        assert!(refused("backstop run m -ngl 99 x").starts_with("-ngl is an option of llama.cpp: here, "));
        assert!(refused("backstop serve m -np 4").contains("--parallel N"));
        assert!(
            refused("backstop run m --format json x").starts_with("--format is an option of Ollama: here, ")
        );
        assert!(refused("backstop create m -f Modelfile").starts_with("there is no command create: "));
        // None of them is an option or a command here.
        use clap::CommandFactory;
        let known = crate::cli::Args::command();
        let taken = |name: &str| {
            known.get_subcommands().flat_map(clap::Command::get_arguments).any(|argument| {
                name.strip_prefix("--").is_some_and(|long| argument.get_long() == Some(long))
                    || name.len() == 2 && argument.get_short() == name.chars().nth(1)
            })
        };
        assert!(taken("-m") && taken("--model"));
        for name in OTHERS.iter().chain(&OLLAMAS).flat_map(|(names, _)| *names) {
            assert!(!taken(name), "{name}");
        }
        for name in COMMANDS.iter().flat_map(|(names, _)| *names).chain(&["search", "version"]) {
            assert!(known.find_subcommand(name).is_none(), "{name}");
        }
    }
}
