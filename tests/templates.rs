//! Chat templates of real models against transformers: `target/templates/expected.json`, which
//! `tools/templates/make.py` writes. `BACKSTOP_TEMPLATES_REPORT=FILE` writes every difference as a line of JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use backstop::text::{ChatTemplate, Message, RenderOptions};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Expected {
    /// What `strftime_now` shows, in seconds since 1970.
    now: u64,
    conversations: Value,
    templates: Vec<Template>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Conversation {
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    documents: Option<Vec<Value>>,
    variables: Map<String, Value>,
    add_generation_prompt: bool,
    continue_final_message: bool,
}

#[derive(Deserialize)]
struct Template {
    name: String,
    template: String,
    specials: BTreeMap<String, String>,
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    conversation: String,
    /// What transformers was asked, in the order in which backstop tries it.
    attempts: Vec<Attempt>,
}

#[derive(Deserialize)]
struct Attempt {
    /// An index of the template's `texts`.
    text: Option<usize>,
    error: Option<String>,
}

/// Differences that are meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    template: String,
    conversations: Vec<String>,
    reason: String,
}

struct Difference {
    template: String,
    conversation: String,
    expected: Result<String, String>,
    got: Result<String, String>,
}

impl Template {
    /// The first attempt that is a text, or what is wrong with the first.
    fn expected(&self, case: &Case) -> Result<String, String> {
        match case.attempts.iter().find_map(|attempt| attempt.text) {
            Some(index) => Ok(self.texts[index].clone()),
            None => Err(case.attempts[0].error.clone().unwrap()),
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn render(
    template: &backstop::Result<ChatTemplate>,
    conversation: &Conversation,
    now: u64,
) -> Result<String, String> {
    let template = template.as_ref().map_err(ToString::to_string)?;
    let options = RenderOptions {
        add_generation_prompt: conversation.add_generation_prompt,
        continue_final_message: conversation.continue_final_message,
        tools: conversation.tools.clone(),
        documents: conversation.documents.clone(),
        extra: conversation.variables.clone(),
        now: Some(UNIX_EPOCH + Duration::from_secs(now)),
    };
    let rendered = template.render(&conversation.messages, &options).map_err(|e| e.to_string())?;
    Ok(rendered.text().to_owned())
}

fn as_json(outcome: &Result<String, String>) -> Value {
    match outcome {
        Ok(text) => json!({"text": text}),
        Err(error) => json!({"error": error}),
    }
}

/// Both outcomes from the first line that differs.
fn shown(difference: &Difference) -> String {
    let Difference { template, conversation, expected, got } = difference;
    let (Ok(want), Ok(have)) = (expected, got) else {
        return format!("{template}, {conversation}:\n  expected {expected:?}\n  got      {got:?}");
    };
    let (mut want, mut have) = (want.split('\n'), have.split('\n'));
    let mut number = 1;
    loop {
        let lines = (want.next(), have.next());
        if lines.0 != lines.1 {
            let line = |line: Option<&str>| line.map_or("the end".to_owned(), |line| format!("{line:?}"));
            let (want, have) = (line(lines.0), line(lines.1));
            return format!(
                "{template}, {conversation}, line {number}:\n  expected {want}\n  got      {have}"
            );
        }
        number += 1;
    }
}

#[test]
fn renders_real_templates_as_transformers() {
    let path = target().join("templates/expected.json");
    if !path.exists() {
        println!("skipped: {} is absent; `python3 tools/templates/make.py` writes it", path.display());
        return;
    }
    let expected: Expected = read(&path);
    let tools = root().join("tools/templates");
    let own: Value = read(&tools.join("conversations.json"));
    assert!(
        own["conversations"] == expected.conversations,
        "{} is of other conversations: run tools/templates/make.py again",
        path.display()
    );
    let conversations: BTreeMap<String, Conversation> =
        serde_json::from_value(expected.conversations).unwrap();
    let known: Vec<Known> = read(&tools.join("known.json"));
    let mut known: BTreeMap<(String, String), String> = known
        .into_iter()
        .flat_map(|known| {
            let Known { template, conversations, reason } = known;
            conversations.into_iter().map(move |name| ((template.clone(), name), reason.clone()))
        })
        .collect();

    let (mut all, mut new) = (Vec::new(), Vec::new());
    println!("{:>5} {:>7} {:>7}", "equal", "refused", "differs");
    for template in &expected.templates {
        let name = template.name.clone();
        let source = Path::new(&name);
        let made = ChatTemplate::from_source(source, &template.template, template.specials.clone());
        let (mut equal, mut refused, mut differs) = (0, 0, 0);
        for case in &template.cases {
            let (want, got) =
                (template.expected(case), render(&made, &conversations[&case.conversation], expected.now));
            match (&want, &got) {
                (Ok(want), Ok(got)) if want == got => equal += 1,
                (Err(_), Err(_)) => refused += 1,
                _ => {
                    differs += 1;
                    let conversation = case.conversation.clone();
                    if known.remove(&(name.clone(), conversation.clone())).is_none() {
                        new.push(all.len());
                    }
                    all.push(Difference { template: name.clone(), conversation, expected: want, got });
                }
            }
        }
        println!("{equal:>5} {refused:>7} {differs:>7} {name}");
    }
    if let Some(report) = std::env::var_os("BACKSTOP_TEMPLATES_REPORT") {
        let line = |d: &Difference| {
            let (expected, got) = (as_json(&d.expected), as_json(&d.got));
            let (template, conversation) = (&d.template, &d.conversation);
            json!({"template": template, "conversation": conversation, "expected": expected, "got": got})
                .to_string()
                + "\n"
        };
        std::fs::write(report, all.iter().map(line).collect::<String>()).unwrap();
    }
    for &index in new.iter().take(3) {
        println!("{}", shown(&all[index]));
    }
    for ((template, conversation), reason) in &known {
        println!("{template}, {conversation}: differs no longer, or is no case; known.json says: {reason}");
    }
    assert!(
        new.is_empty() && known.is_empty(),
        "{} differ and are not in known.json, {} of known.json do not differ",
        new.len(),
        known.len()
    );
}
