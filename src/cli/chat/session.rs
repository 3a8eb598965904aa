//! What was said, and what a line does to it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use backstop::backend::select::Bytes;
use backstop::{Chat, Message, Model, Options};

use super::super::args::ChatArgs;
use super::super::stream::{Answer, Output, stream};
use super::super::{Usage, interrupt, names, no_template_for_system, ranks, summary, term};
use super::commands::{self, Command};
use super::files::{self, SYSTEM, said};
use super::settings::Settings;
use super::{expanded, lines};

/// What follows a line.
pub enum Next {
    Line,
    Interrupted,
    End,
    /// Another model, by its name or path, takes this one's place.
    Load(PathBuf),
}

pub struct Session {
    settings: Settings,
    options: Options,
    system: Option<String>,
    /// Behind the instruction.
    messages: Vec<Message>,
    /// How often the last message was answered before.
    again: u64,
    /// Where the conversation was saved, or comes from: the last one last.
    files: Vec<PathBuf>,
    out: Output,
    total: Total,
    /// Whether a person types, and can be asked.
    interactive: bool,
    /// Whether a line of numbers follows each answer.
    summary: bool,
}

/// What all turns took.
#[derive(Default)]
struct Total {
    turns: usize,
    read: usize,
    cached: usize,
    generated: usize,
    time: Duration,
    last: Option<String>,
}

impl Session {
    pub fn new(args: &ChatArgs, model: &Model, interactive: bool) -> anyhow::Result<Self> {
        let settings = Settings::new(&args.sampling, args.think.as_deref());
        let mut session = Self {
            options: settings.options(model)?,
            settings,
            system: None,
            messages: Vec::new(),
            again: 0,
            files: Vec::new(),
            out: Output::of_conversation(args.plain),
            total: Total::default(),
            interactive,
            summary: !args.no_summary,
        };
        session.adopt(model)?;
        if let Some(system) = &args.system {
            session.set_system(model, system)?;
        }
        Ok(session)
    }

    /// Goes on with another model.
    pub fn adopt(&mut self, model: &Model) -> anyhow::Result<()> {
        self.options = self.settings.options(model)?;
        if !model.has_template() {
            let name = &model.info().name;
            term::note(format_args!(
                "note: {name} has no chat template: each line is added to one text, which it continues"
            ));
            if self.system.is_some() {
                term::note("note: the instruction is left out for it");
            }
        }
        Ok(())
    }

    fn set_system(&mut self, model: &Model, text: &str) -> anyhow::Result<()> {
        if !model.has_template() {
            return Err(no_template_for_system(model).into());
        }
        self.system = (!text.is_empty()).then(|| text.to_owned());
        Ok(())
    }

    /// Takes a line: a command, or a turn.
    pub fn take(&mut self, model: &Model, line: &str) -> anyhow::Result<Next> {
        let here = commands::of_ollama(line.trim());
        let line = here.as_deref().unwrap_or(line);
        let (command, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        if command.is_empty() {
            return Ok(Next::Line);
        }
        if command.starts_with("//") {
            return self.say(model, line[line.find('/').unwrap_or(0) + 1..].to_owned());
        }
        if !command.starts_with('/') {
            return self.say(model, line.to_owned());
        }
        match commands::command(command, rest)? {
            Command::Help => term::note(commands::help()),
            Command::Exit => return Ok(Next::End),
            Command::Clear => {
                self.messages.clear();
                self.again = 0;
                self.files.clear();
                say("a new conversation");
            }
            Command::System => {
                let text = lines::unquoted(rest).unwrap_or_else(|| rest.to_owned());
                self.set_system(model, &text)?;
                let what = if text.is_empty() { "is taken away" } else { "is set" };
                let more = if self.messages.is_empty() { "" } else { "; /clear begins a new conversation" };
                say(&format!("the instruction {what}{more}"));
            }
            Command::Set => self.set(model, rest)?,
            Command::Load => return self.load(rest),
            Command::Save => self.save(&model.info().name, rest)?,
            Command::Regenerate => return self.regenerate(model),
            Command::Undo => {
                let at = self.last_said().context("nothing was said yet")?;
                self.messages.truncate(at);
                self.again = 0;
                say(&format!("taken back; {} are left", counted(self.messages.len(), "message")));
            }
            Command::Edit => return self.edit(model, rest),
            Command::Show => self.show(model)?,
            Command::History => self.tell(model),
        }
        Ok(Next::Line)
    }

    /// What a line does while there is no model: it loads one, or ends the conversation.
    pub fn without_model(&mut self, line: &str) -> anyhow::Result<Next> {
        let (command, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        match command {
            "" => return Ok(Next::Line),
            _ if !command.starts_with('/') || command.starts_with("//") => {}
            _ => match commands::command(command, rest.trim())? {
                Command::Help => {
                    term::note(commands::help());
                    return Ok(Next::Line);
                }
                Command::Exit => return Ok(Next::End),
                Command::Load => return self.load(rest.trim()),
                Command::Save => {
                    self.save("no model", rest.trim())?;
                    return Ok(Next::Line);
                }
                _ => {}
            },
        }
        bail!("there is no model. {}", super::NO_MODEL)
    }

    /// Says `text` and streams the answer. A turn that brought nothing is as if it had not been.
    pub fn say(&mut self, model: &Model, text: String) -> anyhow::Result<Next> {
        let mut asked = self.messages.clone();
        asked.push(Message::new("user", text));
        self.answer(model, asked, 0)
    }

    /// The same message answered once more, with the next seed.
    fn regenerate(&mut self, model: &Model) -> anyhow::Result<Next> {
        let at = self.last_said().context("nothing was said yet that could be answered")?;
        if self.options.sampling.temperature == 0.0 {
            term::note("note: at temperature 0 every answer is the same: /set temperature 0.8 varies them");
        }
        self.answer(model, self.messages[..=at].to_vec(), self.again + 1)
    }

    fn edit(&mut self, model: &Model, rest: &str) -> anyhow::Result<Next> {
        let at = match rest {
            "" => self.last_said(),
            "new" => None,
            other => return Err(Usage(format!("/edit {other}: expected nothing after it, or new")).into()),
        };
        if !self.interactive {
            return Err(Usage("/edit needs a terminal".to_owned()).into());
        }
        let before = at.map(|at| said(&self.messages[at])).unwrap_or_default();
        let text = edited(&before)?;
        if text.trim().is_empty() || text == before {
            say("nothing was changed");
            return Ok(Next::Line);
        }
        let mut asked = self.messages[..at.unwrap_or(self.messages.len())].to_vec();
        asked.push(Message::new("user", text));
        self.answer(model, asked, 0)
    }

    /// Answers the last of `asked`, which then is the conversation.
    fn answer(&mut self, model: &Model, mut asked: Vec<Message>, again: u64) -> anyhow::Result<Next> {
        let mut options = self.options.clone();
        options.sampling.seed = options.sampling.seed.wrapping_add(again);
        let answer = if model.has_template() {
            let chat = self.chat(asked.clone());
            stream(|| model.chat(&chat, &options), Some(&mut self.out))
        } else {
            let text = joined(&asked);
            stream(|| model.generate(&text, &options), Some(&mut self.out))
        };
        let answer: Answer = answer.map_err(|error| match error.downcast_ref() {
            Some(backstop::Error::ContextFull { .. }) => {
                anyhow!("the conversation no longer fits: /clear begins a new one, /undo takes back the last message ({error})")
            }
            _ => error,
        })?;
        if !answer.reply.content.is_empty() || !answer.interrupted() {
            asked.push(match model.has_template() {
                true => answer.reply.to_message(),
                false => Message::new("assistant", answer.reply.content.as_str()),
            });
            (self.messages, self.again) = (asked, again);
        }
        self.out.end_line()?;
        let line = summary::turn(&answer, model, &options);
        if self.summary {
            term::note(term::dim(&line));
        }
        self.total.add(&answer, line);
        Ok(if answer.interrupted() { Next::Interrupted } else { Next::Line })
    }

    /// The conversation, for the model's chat template.
    fn chat(&self, messages: Vec<Message>) -> Chat {
        Chat { variables: self.settings.variables(), ..Chat::new(self.with_system(messages)) }
    }

    fn with_system(&self, messages: Vec<Message>) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new(SYSTEM, text.as_str()));
        system.chain(messages).collect()
    }

    /// Where the user's last message is.
    fn last_said(&self) -> Option<usize> {
        self.messages.iter().rposition(|message| message.role == "user")
    }

    fn set(&mut self, model: &Model, rest: &str) -> anyhow::Result<()> {
        match rest.split_once(char::is_whitespace) {
            _ if rest.is_empty() => term::note(self.settings.table(model)?.trim_end()),
            None => {
                let what = format!("/set {rest} needs a value, or `default`; /set alone shows all settings");
                return Err(Usage(what).into());
            }
            Some((name, value)) => {
                self.settings = self.settings.with(name, value.trim(), model)?;
                self.options = self.settings.options(model)?;
                self.out.thoughts = self.settings.thoughts;
                say(&format!("{name} is {}", value.trim()));
            }
        }
        Ok(())
    }

    fn load(&mut self, rest: &str) -> anyhow::Result<Next> {
        if rest.is_empty() {
            let what = "/load needs the name or path of a model, or a conversation's FILE.json";
            return Err(Usage(what.to_owned()).into());
        }
        let path = expanded(rest);
        if !files::is_conversation(&path) {
            ranks::one_model("/load")?;
            return Ok(Next::Load(path));
        }
        let (mut messages, alone) = files::load(&path)?;
        let system = (messages[0].role == SYSTEM).then(|| said(&messages.remove(0)));
        say(&format!("{} of {}", counted(messages.len(), "message"), path.display()));
        (self.messages, self.system, self.again) = (messages, system, 0);
        // A request has more than its messages, which would be lost: it is not what /save writes anew.
        self.files = if alone { vec![path] } else { Vec::new() };
        Ok(Next::Line)
    }

    fn save(&mut self, model: &str, rest: &str) -> anyhow::Result<()> {
        let path = match (rest, self.files.last()) {
            ("", Some(file)) => file.clone(),
            ("", None) => return Err(Usage("/save needs a FILE.json or FILE.md".to_owned()).into()),
            (rest, _) => expanded(rest),
        };
        if self.messages.is_empty() {
            bail!("nothing was said yet that could be saved");
        }
        // What this conversation wrote itself is written anew.
        if !self.files.contains(&path) && path.symlink_metadata().is_ok() {
            let question = format!("{} exists. Replace it?", path.display());
            if !self.interactive || !names::agrees(&question, false)? {
                bail!("{} exists, and is left as it is", path.display());
            }
        }
        let messages = self.with_system(self.messages.clone());
        files::save(&path, model, &messages)?;
        say(&format!("{} are in {}", counted(messages.len(), "message"), path.display()));
        self.files.retain(|other| *other != path);
        self.files.push(path);
        Ok(())
    }

    fn show(&self, model: &Model) -> anyhow::Result<()> {
        let info = model.info();
        let messages = self.messages.clone();
        let used = match model.has_template() {
            _ if messages.is_empty() => 0,
            true => model.show(&self.chat(messages))?.tokens.len(),
            false => model.encode_prompt(&joined(&messages), true)?.len(),
        };
        let (config, weights) = (&info.config, Bytes(info.weight_bytes));
        let mut lines = vec![
            ("model", format!("{}: {}, {}, {weights}", info.name, config.model_type, info.dtype)),
            ("backend", format!("{}: {}", model.engine().backend(), info.selection.reason)),
            (
                "context",
                format!("{used} of {} tokens, {}", info.context, counted(self.messages.len(), "message")),
            ),
        ];
        lines.extend(self.system.iter().map(|text| ("instruction", text.clone())));
        if let Some(last) = &self.total.last {
            lines.extend([("last turn", last.clone()), ("all turns", self.total.line())]);
        }
        for (name, what) in lines {
            term::note(format_args!("{}  {what}", term::dim(&format!("{name:<11}"))));
        }
        Ok(())
    }

    /// What was said so far.
    fn tell(&self, model: &Model) {
        if self.messages.is_empty() {
            return say("nothing was said yet");
        }
        for message in self.with_system(self.messages.clone()) {
            let who = match &*message.role {
                "user" => "you",
                "assistant" => &model.info().name,
                other => other,
            };
            term::note(format_args!("{} {}", term::dim(&format!("{who}:")), said(&message).trim_end()));
        }
    }
}

impl Total {
    fn add(&mut self, answer: &Answer, line: String) {
        self.turns += 1;
        self.read += answer.stats.prompt_tokens;
        self.cached += answer.stats.cached_tokens;
        self.generated += answer.tokens.len();
        self.time += answer.total;
        self.last = Some(line);
    }

    fn line(&self) -> String {
        let Self { turns, read, cached, generated, time, .. } = self;
        let turns = counted(*turns, "turn");
        format!(
            "{turns}: {read} tokens read ({cached} cached), {generated} generated, in {}",
            summary::seconds(*time)
        )
    }
}

/// The text that a model without a chat template goes on with: each line of a person's is one of its own.
fn joined(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        if message.role != "assistant" && !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &said(message);
    }
    text
}

/// What a person makes of `text` in an editor.
fn edited(text: &str) -> anyhow::Result<String> {
    let set = |name| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    let file = tempfile::Builder::new().prefix("backstop-").suffix(".md").tempfile()?;
    std::fs::write(file.path(), text)?;
    // Ctrl-C is the editor's.
    let _ours = interrupt::Interruptible::new(|| {})?;
    // It may have options of its own, as `code --wait` has.
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(file.path());
    let status = command.status().with_context(|| format!("{editor} cannot be started"))?;
    if !status.success() {
        bail!("{editor} ended with {status}: nothing was changed ($VISUAL or $EDITOR names another editor)");
    }
    let written = std::fs::read(file.path()).with_context(|| format!("what {editor} wrote"))?;
    let mut written = String::from_utf8(written).with_context(|| format!("what {editor} wrote"))?;
    // Editors end the last line.
    if written.ends_with('\n') && !text.ends_with('\n') {
        written.pop();
    }
    Ok(written)
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn say(what: &str) {
    term::note(term::dim(what));
}
