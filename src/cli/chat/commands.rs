//! The commands of a conversation, as they are typed and told of.

use std::fmt::Write;

use super::super::Usage;

/// What a line that begins with a slash asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Help,
    Exit,
    Clear,
    System,
    Set,
    Load,
    Save,
    Regenerate,
    Undo,
    Edit,
    Show,
    History,
}

/// How a command is written.
pub struct Spelling {
    pub command: Command,
    /// The first is the one that is told of.
    pub names: &'static [&'static str],
    /// What follows it; empty where nothing may.
    pub arguments: &'static str,
    what: &'static str,
}

pub const COMMANDS: [Spelling; 12] = [
    spelled(Command::Help, &["/help", "/?"], "", "this list"),
    spelled(Command::Exit, &["/exit", "/bye", "/quit"], "", "end, as Ctrl-D does at an empty prompt"),
    spelled(
        Command::Clear,
        &["/clear", "/reset"],
        "",
        "begin a new conversation; instruction and settings stay",
    ),
    spelled(
        Command::System,
        &["/system"],
        "[TEXT]",
        "set the instruction before the conversation; without TEXT, take it away",
    ),
    spelled(
        Command::Set,
        &["/set"],
        "[NAME VALUE]",
        "change a setting; VALUE `default` takes it back; alone, show all",
    ),
    spelled(
        Command::Load,
        &["/load"],
        "NAME|FILE",
        "FILE.json: go on with a saved conversation; anything else is a model, by its name or path, that goes on with this one",
    ),
    spelled(
        Command::Save,
        &["/save"],
        "FILE",
        "write the conversation: .json as /load and OpenAI's API take it, .md to be read",
    ),
    spelled(Command::Regenerate, &["/regenerate", "/retry"], "", "answer once more, with the next seed"),
    spelled(Command::Undo, &["/undo"], "", "take back the last message and its answer"),
    spelled(
        Command::Edit,
        &["/edit"],
        "[new]",
        "change the last message in $VISUAL or $EDITOR, and answer it; new: write one there",
    ),
    spelled(Command::Show, &["/show"], "", "the model, how full the context is, tokens and speed"),
    spelled(Command::History, &["/history"], "", "what was said so far"),
];

const KEYS: &str = "\
//TEXT        say TEXT with one slash in front
\"\"\"           begins a text of several lines, which \"\"\" ends; what is pasted is one text
\\             at a line's end goes on in the next
Tab           completes commands, settings, models and paths; the arrow keys edit, and go through what was said before
Ctrl-C        stops an answer; at an empty prompt, twice ends";

const fn spelled(
    command: Command,
    names: &'static [&'static str],
    arguments: &'static str,
    what: &'static str,
) -> Spelling {
    Spelling { command, names, arguments, what }
}

/// All of them.
pub fn help() -> String {
    let mut text = String::new();
    for Spelling { names, arguments, what, .. } in &COMMANDS {
        let shown = format!("{} {arguments}", names[0]);
        let _ = write!(text, "{:<13} {what}", shown.trim_end());
        if let [_, others @ ..] = names
            && !others.is_empty()
        {
            let _ = write!(text, " (also {})", others.join(", "));
        }
        text.push('\n');
    }
    text + KEYS
}

/// What a line that Ollama's `run` takes is here, where that is another one.
pub fn of_ollama(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (command, what) = (words.next()?, words.next()?);
    let rest = || line.split_once(what).map_or("", |(_, rest)| rest.trim_start());
    Some(match (command, what) {
        ("/set", "parameter") => format!("/set {}", rest()),
        ("/set", "system") => format!("/system {}", rest()),
        ("/set", "think") if words.next().is_none() => "/set think on".to_owned(),
        ("/set", "nothink") => "/set think off".to_owned(),
        ("/show", "info" | "parameters" | "model") => "/show".to_owned(),
        _ => return None,
    })
}

/// The command that `typed` is.
///
/// # Errors
/// None that there is, with the one that is most like it, and arguments that it does not take.
pub fn command(typed: &str, arguments: &str) -> Result<Command, Usage> {
    let Some(found) = COMMANDS.iter().find(|spelling| spelling.names.contains(&typed)) else {
        let near = match nearest(typed) {
            Some(near) => format!("; did you mean {near}? //… says a text with a slash"),
            None => ": /help lists them, and //… says a text with a slash".to_owned(),
        };
        return Err(Usage(format!("there is no command {typed}{near}")));
    };
    if found.arguments.is_empty() && !arguments.trim().is_empty() {
        return Err(Usage(format!("{typed} takes nothing after it; //… says a text with a slash")));
    }
    Ok(found.command)
}

/// What was begun with `typed`, or differs from it by few letters.
fn nearest(typed: &str) -> Option<&'static str> {
    let names = || COMMANDS.iter().flat_map(|spelling| spelling.names).copied();
    let begun = || names().find(|name| typed.len() > 2 && name.starts_with(typed));
    let near = names().map(|name| (strsim::osa_distance(typed, name), name)).min();
    let near = near.filter(|(apart, name)| *apart <= 1 + name.len() / 4).map(|(_, name)| name);
    begun().or(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ollama_takes_is_known() {
        for (line, here) in [
            ("/set parameter temperature 0.7", "/set temperature 0.7"),
            ("/set  parameter  num_predict  5", "/set num_predict  5"),
            ("/set system You are  short", "/system You are  short"),
            ("/set think", "/set think on"),
            ("/set nothink", "/set think off"),
            ("/show info", "/show"),
        ] {
            assert_eq!(of_ollama(line).as_deref(), Some(here), "{line}");
        }
        for line in ["/set think high", "/set temperature 1", "/show", "/set", "hello there", ""] {
            assert_eq!(of_ollama(line), None, "{line}");
        }
    }

    #[test]
    fn commands_are_found_and_near_ones_named() {
        assert_eq!(command("/bye", " ").unwrap(), Command::Exit);
        let error = |typed: &str, rest: &str| command(typed, rest).unwrap_err().to_string();
        for (typed, near) in
            [("/sytsem", "/system"), ("/reg", "/regenerate"), ("/quti", "/quit"), ("/Show", "/show")]
        {
            let expected =
                format!("there is no command {typed}; did you mean {near}? //… says a text with a slash");
            assert_eq!(error(typed, ""), expected);
        }
        let expected = "there is no command /home/me: /help lists them, and //… says a text with a slash";
        assert_eq!(error("/home/me", ""), expected);
        assert_eq!(error("/undo", " it"), "/undo takes nothing after it; //… says a text with a slash");
    }

    #[test]
    fn every_name_is_one_commands() {
        let mut names: Vec<&str> = COMMANDS.iter().flat_map(|spelling| spelling.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), count), (17, 17));
        let help = help();
        assert!(names.iter().all(|name| help.contains(name)), "{help}");
    }
}
