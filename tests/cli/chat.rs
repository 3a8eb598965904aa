//! `backstop chat` with lines from a pipe.

use std::path::Path;

use backstop::{Chat, Message, Model};

use crate::support::*;

#[test]
fn chat_takes_lines_as_turns_and_reuses_the_cache() {
    let noise = Noise::new();
    let args = ["chat", "--model", noise.path(), "--max-tokens", "8", "--backend", "cpu"];
    let ran = backstop_with("Hello\n\nAnd then?\n/reset\nHello\n/exit\nnever\n", &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);

    let model = noise.load();
    let mut messages = vec![Message::new("user", "Hello")];
    let answer =
        |messages: &[Message]| model.chat(&Chat::new(messages.to_vec()), &greedy(8)).unwrap().text().unwrap();
    let first = answer(&messages);
    messages.extend([Message::new("assistant", first.as_str()), Message::new("user", "And then?")]);
    let second = answer(&messages);
    let line = |text: &str| {
        if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
    };
    assert_eq!(ran.out, [&first, &second, &first].map(|text| line(text)).concat());

    let turns: Vec<&str> = ran.err.lines().filter(|line| line.contains("first token after")).collect();
    assert_eq!(turns.len(), 3, "{}", ran.err);
    assert!(!turns[0].contains("cached"), "{}", ran.err);
    assert!(turns[1].contains(" cached), first token after "), "{}", ran.err);
    assert!(!ran.err.contains("> "), "no prompt where nobody types");
}

#[test]
fn chat_has_commands() {
    let noise = Noise::new();
    let args = ["chat", "--model", noise.path(), "--max-tokens", "8"];
    let model = noise.load();
    let chat = Chat::new(vec![Message::new("system", "Be brief."), Message::new("user", "/Hello")]);
    let answer = model.chat(&chat, &greedy(8)).unwrap().text().unwrap();
    let ran = backstop_with("/system Be brief.\n/help\n//Hello", &args);
    assert_eq!(ran.out.trim_end_matches('\n'), answer.trim_end_matches('\n'), "{}", ran.err);
    assert!(ran.err.contains("/reset        begin a new conversation"), "{}", ran.err);

    let ran = backstop_with("/quiet\nHello\n", &args);
    let expected = "error: there is no command /quiet: /help lists them, and //… says a text with a slash\n";
    assert_eq!((ran.err.as_str(), ran.out.as_str(), ran.code), (expected, "", Some(2)));
    let ran = backstop_with(b"/reset\nab\xc3\n", &args);
    assert!(ran.err.contains("error: stdin: byte 9 (0xc3) is not UTF-8"), "{}", ran.err);
    assert_eq!(ran.code, Some(1));
}

#[test]
fn chat_continues_the_text_where_there_is_no_template() {
    let noise = Noise::plain();
    let args = ["chat", "--model", noise.path(), "--max-tokens", "8", "--backend", "cpu"];
    let ran = backstop_with("Once upon a time\nThe dog\n", &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let model = noise.load();
    let continued = |text: &str| model.generate(text, &greedy(8)).unwrap().text().unwrap();
    let first = continued("Once upon a time");
    let second = continued(&format!("Once upon a time{first}\nThe dog"));
    let line = |text: &str| if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    assert_eq!(ran.out, line(&first) + &line(&second));
    assert_eq!(ran.err.matches("has no chat template").count(), 1, "{}", ran.err);
    assert!(ran.err.lines().last().unwrap().contains("cached"), "{}", ran.err);

    let ran = backstop_with("/system Be brief.\n", &args);
    assert!(ran.err.contains("error: --system needs a chat template"), "{}", ran.err);
    assert_eq!(ran.code, Some(2));
}

#[test]
fn the_built_in_model_tells_a_story_for_each_turn() {
    let args = ["chat", "--max-tokens", "40", "--temperature", "0", "--backend", "cpu"];
    let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    let model = Model::builtin().unwrap();
    let told = ["Once upon a time", "The little dog"].map(|text| {
        format!("{}\n", model.generate(text, &greedy(40)).unwrap().text().unwrap().trim_end_matches('\n'))
    });
    for more in [&[][..], &["--model", stories.to_str().unwrap()]] {
        let ran = backstop_with("Once upon a time\nThe little dog\n", &[&args, more].concat());
        assert_eq!((ran.out, ran.code), (told.concat(), Some(0)), "{}", ran.err);
        // An instruction is taken, and changes nothing.
        let ran = backstop_with("/system Be brief.\nThe little dog\n", &[&args, more].concat());
        assert_eq!((ran.out, ran.code), (told[1].clone(), Some(0)), "{}", ran.err);
    }
}

#[test]
fn chat_says_when_the_conversation_no_longer_fits() {
    let noise = Noise::new();
    let args = ["chat", "--model", noise.path(), "--ctx", "80", "--max-tokens", "8"];
    let ran = backstop_with("Hello\nAnd then?\nAnd then?\nAnd then?\n", &args);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let error = ran.err.lines().last().unwrap();
    assert!(
        error.starts_with("error: the conversation no longer fits: /reset begins a new one (the prompt has "),
        "{error}"
    );
}
