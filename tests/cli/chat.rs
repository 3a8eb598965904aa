//! `backstop chat` with lines from a pipe.

use std::path::Path;

use backstop::{Chat, Message, Model, Options, SamplingOptions};

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
    assert!(ran.err.contains("/clear        begin a new conversation"), "{}", ran.err);

    let ran = backstop_with("/quiet\nHello\n", &args);
    let expected = "error: there is no command /quiet; did you mean /quit? //… says a text with a slash\n";
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
        error.starts_with("error: the conversation no longer fits: /clear begins a new one, /undo takes back the last message (the prompt has "),
        "{error}"
    );
}

/// What the model answers to `messages`, each a role and a text.
fn answered(model: &Model, messages: &[(&str, &str)], options: &Options) -> String {
    let messages = messages.iter().map(|(role, text)| Message::new(*role, *text)).collect();
    model.chat(&Chat::new(messages), options).unwrap().text().unwrap()
}

/// An answer as it stands in the output.
fn line(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

#[test]
fn turns_are_taken_back_and_answered_again() {
    let noise = Noise::new();
    let args =
        ["chat", noise.path(), "--max-tokens", "8", "--temperature", "1", "--seed", "3", "--backend", "cpu"];
    let ran = backstop_with("/undo\n", &args);
    assert_eq!((ran.err.as_str(), ran.code), ("error: nothing was said yet\n", Some(1)));

    let said = "Hello\n/retry\n/regenerate\nBye\n/undo\nAnd\n/history\n/undo\n/undo\nHello\n";
    let ran = backstop_with(said, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let model = noise.load();
    let with = |seed| {
        let sampling = SamplingOptions { temperature: 1.0, seed, ..SamplingOptions::default() };
        Options { max_tokens: Some(8), sampling, ..Options::default() }
    };
    let hello = |seed| answered(&model, &[("user", "Hello")], &with(seed));
    let [first, second, third] = [3, 4, 5].map(hello);
    assert!(first != second && second != third && first != third, "seeds change the answer");
    let behind =
        |text| answered(&model, &[("user", "Hello"), ("assistant", &third), ("user", text)], &with(3));
    let (bye, and) = (behind("Bye"), behind("And"));
    assert_eq!(ran.out, [&first, &second, &third, &bye, &and, &first].map(|text| line(text)).concat());
    for told in [
        "you: Hello\n",
        "you: And\n",
        "taken back; 2 messages are left\n",
        "taken back; 0 messages are left\n",
    ] {
        assert!(ran.err.contains(told), "{told}: {}", ran.err);
    }
    assert!(!ran.err.contains("you: Bye"), "{}", ran.err);
}

#[test]
fn settings_are_shown_and_changed() {
    let noise = Noise::new();
    let args = ["chat", noise.path(), "--max-tokens", "4", "--backend", "cpu"];
    let said = "/set\n/set temperature 1\n/set seed 9\n/set max_tokens 8\nHello\n\
                /set temperature default\n/set think off\n/set\n";
    let ran = backstop_with(said, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let sampling = SamplingOptions { temperature: 1.0, seed: 9, ..SamplingOptions::default() };
    let options = Options { max_tokens: Some(8), sampling, ..Options::default() };
    assert_eq!(ran.out, line(&answered(&noise.load(), &[("user", "Hello")], &options)));
    let rows: Vec<String> =
        ran.err.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for (row, times) in [
        ("temperature 0 (default)", 2),
        ("seed 0 (default)", 1),
        ("seed 9 (default: 0)", 1),
        ("max-tokens 4 (default: what the context leaves)", 1),
        ("max-tokens 8 (default: what the context leaves)", 1),
        ("think as the chat template has it (default)", 1),
        ("think off (default: as the chat template has it)", 1),
        ("thoughts show (default)", 2),
    ] {
        assert_eq!(rows.iter().filter(|line| *line == row).count(), times, "{row}: {}", ran.err);
    }

    for (said, expected) in [
        (
            "/set temprature 1",
            "there is no setting temprature; did you mean temperature? /set alone shows all",
        ),
        ("/set top-p 2", "top-p is 2, expected "),
        ("/set top-k x", "top-k is x: expected a number, or default"),
        (
            "/set seed -2",
            "seed is -2: expected a whole number from 0 to 18446744073709551615, or -1 for a random one, or default",
        ),
        ("/set think maybe", "think is maybe: expected on, off, minimal, low, medium or high, or default"),
        ("/set seed", "/set seed needs a value, or `default`; /set alone shows all settings"),
    ] {
        let ran = backstop_with(format!("{said}\n"), &args);
        assert!(ran.err.starts_with(&format!("error: {expected}")), "{said}: {}", ran.err);
        assert_eq!(ran.code, Some(2), "{said}");
    }
}

#[test]
fn a_conversation_is_saved_and_goes_on() {
    let noise = Noise::new();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let args = ["chat", noise.path(), "--max-tokens", "8", "--backend", "cpu"];
    let (json, md) = (path("a.json"), path("a.md"));
    let said = format!("/system Be brief.\nHello\n/save {json}\n/save {md}\n/save {json}\n");
    let ran = backstop_with(said, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let ran = backstop_with(format!("Bye\n/save {json}\n"), &args);
    assert_eq!(ran.err.lines().last(), Some(&*format!("error: {json} exists, and is left as it is")));
    assert_eq!(ran.code, Some(1));
    let model = noise.load();
    let asked = [("system", "Be brief."), ("user", "Hello")];
    let first = answered(&model, &asked, &greedy(8));
    let saved: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(
        saved,
        serde_json::json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "Hello" },
            { "role": "assistant", "content": first },
        ])
    );
    let read = std::fs::read_to_string(&md).unwrap();
    assert!(read.contains("\n## Instruction\n\nBe brief.\n\n## You\n\nHello\n\n## "), "{read}");

    // What was loaded may be written again.
    let ran = backstop_with(format!("/load {json}\nBye\n/save {json}\n/show\n"), &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let behind = [asked[0], asked[1], ("assistant", &*first), ("user", "Bye")];
    assert_eq!(ran.out, line(&answered(&model, &behind, &greedy(8))));
    let saved: Vec<serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(saved.len(), 5);
    let context = ran.err.lines().find(|line| line.starts_with("context ")).unwrap();
    assert!(context.ends_with(" tokens, 4 messages"), "{context}");

    // A request has more than its messages: it is not written over.
    let request = path("request.json");
    let text = r#"{"model": "m", "messages": [{"role": "user", "content": "Hello"}]}"#;
    std::fs::write(&request, text).unwrap();
    let ran = backstop_with(format!("/load {request}\n/save\n"), &args);
    assert!(ran.err.contains("/save needs a FILE.json or FILE.md"), "{}", ran.err);
    let ran = backstop_with(format!("/load {request}\n/save {request}\n"), &args);
    assert!(ran.err.contains("exists, and is left as it is"), "{}", ran.err);
    assert_eq!(std::fs::read_to_string(&request).unwrap(), text);

    let ran = backstop_with(format!("/load {}\n", path("none.json")), &args);
    assert!(ran.err.starts_with(&format!("error: {}: ", path("none.json"))), "{}", ran.err);
    assert_eq!(ran.code, Some(1));
}

#[test]
fn another_model_goes_on_with_the_conversation() {
    let (noise, plain) = (Noise::new(), Noise::plain());
    let args = ["chat", noise.path(), "--max-tokens", "8", "--backend", "cpu"];
    let ran =
        backstop_with(format!("Hello\n/load {}\nBye\n/load {}\nBye\n", plain.path(), noise.path()), &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let (model, other) = (noise.load(), plain.load());
    let first = answered(&model, &[("user", "Hello")], &greedy(8));
    let glue = if first.ends_with('\n') { "" } else { "\n" };
    let second = other.generate(&format!("Hello{first}{glue}Bye"), &greedy(8)).unwrap().text().unwrap();
    let (said, heard) = (&*first, &*second);
    let all =
        [("user", "Hello"), ("assistant", said), ("user", "Bye"), ("assistant", heard), ("user", "Bye")];
    let third = answered(&model, &all, &greedy(8));
    assert_eq!(ran.out, [&first, &second, &third].map(|text| line(text)).concat());
    assert_eq!(ran.err.matches("has no chat template").count(), 1, "{}", ran.err);

    let ran = backstop_with("Hello\n/load /nowhere/model\n", &args);
    let error = ran.err.lines().last().unwrap();
    assert!(error.starts_with("error: ") && error.contains("/nowhere/model"), "{error}");
    assert_eq!((ran.code, ran.out), (Some(1), line(&first)));
}

#[test]
fn lines_of_a_pipe_are_messages_as_they_are() {
    let noise = Noise::new();
    let args = ["chat", noise.path(), "--max-tokens", "4", "--backend", "cpu"];
    let ran = backstop_with("\"\"\"a\n/clear\nb\\\n/edit\n", &args);
    let model = noise.load();
    let texts = ["\"\"\"a", "b\\"].map(|text| line(&answered(&model, &[("user", text)], &greedy(4))));
    assert_eq!(ran.out, texts.concat(), "{}", ran.err);
    assert_eq!((ran.err.lines().last(), ran.code), (Some("error: /edit needs a terminal"), Some(2)));
    assert!(!ran.out.contains('\x1b') && !ran.err.contains('\x1b'), "{}", ran.err);
}
