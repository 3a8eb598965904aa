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

/// The words with those of llama.cpp in place of which there are others.
///
/// # Errors
/// A word of llama.cpp that has no other here.
pub fn translated(mut typed: Vec<OsString>) -> Result<Vec<OsString>, Usage> {
    for word in typed.iter_mut().skip(1) {
        match word.to_str() {
            Some("--") => break,
            Some("-hf" | "-hfr" | "--hf-repo") => *word = "--model".into(),
            Some(text) => {
                if let Some((_, what)) = OTHERS.iter().find(|(names, _)| names.contains(&text)) {
                    return Err(Usage(format!("{text} is an option of llama.cpp: here, {what}")));
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
        for (typed, taken) in [
            ("backstop serve -hf org/name", "backstop serve --model org/name"),
            ("backstop run --hf-repo org/name -p x", "backstop run --model org/name -p x"),
            ("backstop run -- -hf", "backstop run -- -hf"),
            ("-hf", "-hf"),
        ] {
            assert_eq!(translated(words(typed)).unwrap(), words(taken), "{typed}");
        }
        let refused = |typed: &str| translated(words(typed)).unwrap_err().0;
        assert!(refused("backstop run m -ngl 99 x").starts_with("-ngl is an option of llama.cpp: here, "));
        assert!(refused("backstop serve m -np 4").contains("--parallel N"));
        // None of them is an option here.
        use clap::CommandFactory;
        let command = crate::cli::Args::command();
        let taken = |name: &str| {
            command.get_subcommands().flat_map(clap::Command::get_arguments).any(|argument| {
                name.strip_prefix("--").is_some_and(|long| argument.get_long() == Some(long))
                    || name.len() == 2 && argument.get_short() == name.chars().nth(1)
            })
        };
        assert!(taken("-m") && taken("--model"));
        for name in OTHERS.iter().flat_map(|(names, _)| *names) {
            assert!(!taken(name), "{name}");
        }
    }
}
