//! Conversations in files: JSON that goes on, Markdown to be read.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use backstop::Message;
use serde_json::{Value, json};

use super::super::Usage;
use super::super::template::read;
use super::super::whole::Whole;

/// The role of an instruction.
pub const SYSTEM: &str = "system";

/// Whether `/load` takes it for a conversation.
pub fn is_conversation(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// The messages of a file, a list, or an object whose `messages` is one; and whether they are all that it holds.
///
/// # Errors
/// A file that cannot be read or holds none, by its name.
pub fn load(path: &Path) -> anyhow::Result<(Vec<Message>, bool)> {
    let name = path.display();
    let mut value = read(path)?;
    let alone = value.is_array();
    if let Value::Object(members) = &mut value {
        value = members.remove("messages").unwrap_or_default();
    }
    let messages: Vec<Message> = serde_json::from_value(value).map_err(|error| {
        Usage(format!("{name} holds no conversation, a list of objects with role and content: {error}"))
    })?;
    if messages.iter().all(|message| message.role == SYSTEM) {
        return Err(Usage(format!("{name} holds no conversation: nothing is said in it")).into());
    }
    Ok((messages, alone))
}

/// Writes the messages, which appear when they are whole.
///
/// # Errors
/// A name with another ending, and a file that cannot be written.
pub fn save(path: &Path, model: &str, messages: &[Message]) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => format!("{}\n", serde_json::to_string_pretty(&json!(messages))?),
        Some("md") => markdown(model, messages),
        _ => {
            let what =
                format!("{} says no form: name a file .json, which /load takes, or .md, to be read", name());
            return Err(Usage(what).into());
        }
    };
    let mut file = Whole::private(path)?;
    file.write_all(text.as_bytes()).with_context(name)?;
    file.finish()
}

fn markdown(model: &str, messages: &[Message]) -> String {
    let mut text = format!("# A conversation with {model}\n");
    for message in messages {
        let who = match &*message.role {
            "user" => "You",
            "assistant" => model,
            SYSTEM => "Instruction",
            other => other,
        };
        text += &format!("\n## {who}\n\n{}\n", said(message).trim_matches('\n'));
    }
    text
}

/// A message's text; what is none, as JSON.
pub fn said(message: &Message) -> String {
    match message.clone().with_joined_text().content {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_loads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let mut answer = Message::new("assistant", "Yes:\n\n\"a\"");
        answer.extra.insert("reasoning_content".into(), "Hm".into());
        let messages = [Message::new(SYSTEM, "Be brief."), Message::new("user", "č?"), answer];
        for _ in 0..2 {
            save(&path, "m", &messages).unwrap();
            assert_eq!(load(&path).unwrap(), (messages.to_vec(), true));
        }
        std::fs::write(
            &path,
            r#"{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}"#,
        )
        .unwrap();
        let (loaded, alone) = load(&path).unwrap();
        assert_eq!((loaded.len(), said(&loaded[0]), alone), (1, "a".to_owned(), false));

        let path = dir.path().join("a.md");
        save(&path, "m", &messages).unwrap();
        let expected = "# A conversation with m\n\n## Instruction\n\nBe brief.\n\n## You\n\nč?\n\n## m\n\nYes:\n\n\"a\"\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(dir.path().read_dir().unwrap().count(), 2, "nothing is left beside them");
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for (text, expected) in [
            ("[", " is no JSON: "),
            ("{}", " holds no conversation, a list of objects with role and content: "),
            ("[{\"content\": \"a\"}]", "missing field `role`"),
            ("[]", " holds no conversation: nothing is said in it"),
            ("[{\"role\": \"system\", \"content\": \"a\"}]", " holds no conversation: nothing is said in it"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.starts_with(&path.display().to_string()) && error.contains(expected), "{error}");
        }
        let error = save(&dir.path().join("a.txt"), "m", &[]).unwrap_err().to_string();
        assert!(
            error.ends_with("a.txt says no form: name a file .json, which /load takes, or .md, to be read"),
            "{error}"
        );
    }
}
