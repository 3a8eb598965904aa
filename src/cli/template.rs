//! `backstop template`: the prompt that a conversation becomes, without loading a weight.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use backstop::text::PromptEnd;
use backstop::{Chat, Message, TemplateChoice};
use serde_json::{Map, Value, json};

use super::args::TemplateArgs;
use super::stream::print;
use super::{Usage, input};

/// A template by its file, where there is one of this name, or by its name.
pub fn choice(typed: &str) -> TemplateChoice {
    match Path::new(typed).exists() {
        true => TemplateChoice::File(PathBuf::from(typed)),
        false => TemplateChoice::Named(typed.to_owned()),
    }
}

pub fn template(args: &TemplateArgs) -> anyhow::Result<ExitCode> {
    let chat = conversation(args)?;
    let files = super::open(args.model.as_deref(), &args.fetch)?;
    let tokenizer = files.tokenizer()?;
    let choice = args.chat_template.as_deref().map(choice);
    let template = files.template_as(choice.as_ref(), tokenizer.as_ref()).map_err(super::typed)?;
    let template = template.with_context(|| {
        format!("{} has no chat template: --chat-template FILE gives it one, or chatml", files.name())
    })?;
    chat.callable().map_err(super::typed)?;
    let rendered = chat.render(&template)?;
    let tokens = tokenizer.as_ref().map(|tokenizer| tokenizer.encode_rendered(&rendered)).transpose()?;
    if args.json {
        let piece = |id: &u32| tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_text(*id));
        let pieces: Option<Vec<_>> = tokens.as_ref().map(|ids| ids.iter().map(piece).collect());
        let shown = json!({ "prompt": rendered.text(), "tokens": tokens, "pieces": pieces });
        print(&format!("{shown}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = rendered.text().to_owned();
    if !out.ends_with('\n') {
        out.push('\n');
    }
    print(&out)?;
    if let Some(tokens) = tokens {
        let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
        print(&format!("\n{} tokens: {}\n", tokens.len(), ids.join(" ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--messages` and `--tools` say.
fn conversation(args: &TemplateArgs) -> anyhow::Result<Chat> {
    let given = args.messages.as_deref().map(read).transpose()?;
    let given = given.unwrap_or_else(|| json!([{ "role": "user", "content": "Hello" }]));
    let mut members = match given {
        Value::Object(members) => members,
        list => Map::from_iter([("messages".to_owned(), list)]),
    };
    let bad = |name: &str, error: serde_json::Error| Usage(format!("--messages: {name}: {error}"));
    let messages = members.remove("messages").unwrap_or_default();
    let messages: Vec<Message> = serde_json::from_value(messages).map_err(|e| bad("messages", e))?;
    let mut chat = Chat::new(messages);
    let mut list = |name: &str| -> anyhow::Result<Vec<Value>> {
        let value = members.remove(name).filter(|value| !value.is_null()).unwrap_or_else(|| json!([]));
        Ok(serde_json::from_value(value).map_err(|e| bad(name, e))?)
    };
    (chat.tools, chat.documents) = (list("tools")?, list("documents")?);
    if let Some(file) = &args.tools {
        let tools = read(file)?;
        chat.tools = serde_json::from_value(tools).map_err(|e| Usage(format!("--tools: {e}")))?;
    }
    match members.remove("chat_template_kwargs") {
        None | Some(Value::Null) => {}
        Some(Value::Object(variables)) => chat.variables = variables,
        Some(_) => return Err(Usage("--messages: chat_template_kwargs is no object".into()).into()),
    }
    if let Some(effort) = members.remove("reasoning_effort").filter(Value::is_string) {
        chat.variables.entry("reasoning_effort").or_insert(effort);
    }
    let flag = |name: &str| members.get(name).and_then(Value::as_bool);
    chat.prompt_end = match (flag("continue_final_message"), flag("add_generation_prompt")) {
        (Some(true), _) => PromptEnd::Within,
        (_, Some(false)) => PromptEnd::Message,
        _ => PromptEnd::Turn,
    };
    Ok(chat)
}

/// A JSON file, or stdin.
pub fn read(path: &Path) -> anyhow::Result<Value> {
    let name = || path.display().to_string();
    let bytes = match path == Path::new("-") {
        true => input::read_stdin().context("stdin")?,
        false => input::read_all(&mut std::fs::File::open(path).with_context(name)?).with_context(name)?,
    };
    let text =
        std::str::from_utf8(&bytes).map_err(|error| Usage(format!("{} is not UTF-8: {error}", name())))?;
    Ok(backstop::strict_json(text).map_err(|error| Usage(format!("{} is no JSON: {error}", name())))?)
}
