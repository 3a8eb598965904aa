//! The first minute of somebody who has the binary and knows a model's name: how many keys it takes, and how long.

use std::path::Path;
use std::time::Instant;

use super::models;
use super::served::{Hub, tree};
use super::terminal::Terminal;

#[test]
fn from_a_name_to_a_conversation_in_thirty_one_keys() {
    let (noise, home, hub) = (models::Noise::new(), tempfile::tempdir().unwrap(), Hub::new());
    let files = tree(Path::new(noise.path()));
    let files: Vec<(String, Vec<u8>)> =
        files.into_iter().map(|(path, bytes)| (path.to_str().unwrap().to_owned(), bytes)).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (&**path, &**bytes)).collect();
    hub.put("org/model", &files);
    let started = Instant::now();
    // What a shell takes.
    let mut keys = "backstop chat org/model\r".len();
    let mut command = hub.command(home.path(), &["chat", "org/model"]);
    command.env("XDG_STATE_HOME", home.path());
    let mut terminal = Terminal::start(command);
    let mut types = |terminal: &mut Terminal, text: &str| {
        keys += text.len();
        terminal.keys(text);
    };
    terminal.shows("org/model is not on this machine. Download org/model (");
    terminal.shows("[Y/n] ");
    types(&mut terminal, "\r");
    terminal.shows("/help lists the commands");
    terminal.shows("> ");
    types(&mut terminal, "Hello\r");
    // The answer begins behind what was typed.
    terminal.shows("Hello");
    terminal.shows("\r\n");
    let answer = loop {
        let more = terminal.shows("\n");
        if more.chars().any(char::is_alphanumeric) {
            break more;
        }
    };
    println!(
        "{keys} keys and {:.1} s to the first line of an answer: {answer:?}",
        started.elapsed().as_secs_f64()
    );
    assert_eq!(keys, 31);
    terminal.keys("\x03");
    terminal.shows("interrupted");
    terminal.shows("> ");
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
}
