//! Chat templates through minijinja, set up as transformers sets up jinja2.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::machinery::{CodeGenerator, ast::Stmt, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

use super::bounded;
use super::budget::{self, Budget};
use super::json as python;
use super::message::{self, Message, RenderOptions, Rendered};
use super::reply::ReplyFormat;
use super::sentinel::Guarded;
use super::special::SpecialTokens;
use super::{screen, sentinel};
use crate::apart::{self, Lost};
use crate::error::{Error, Result};
use crate::{files, json};

/// Instructions of one rendering, the inserted checks included.
const FUEL: u64 = 4_000_000;
/// When its thread is given up on, by the clock: 120 times its own time, since a machine that is busy with other things takes
/// dozens of times as long for that work, which others go before.
pub(super) const NET: Duration = Duration::from_secs(600);
/// The depth of macro calls and recursive loops.
const RECURSION: usize = 200;
/// The stack of the rendering thread: reserved, not touched.
const STACK: usize = 64 << 20;

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    special: BTreeMap<String, String>,
    named: BTreeMap<String, String>,
    protected: Guarded,
    /// Whether the caller picked it by name.
    selected: bool,
    /// Nanoseconds that renderings have worked.
    worked: Arc<AtomicU64>,
    /// How its model answers, without tools and with them.
    pub(super) reply_formats: Arc<[OnceLock<ReplyFormat>; 2]>,
}

impl ChatTemplate {
    /// The template of a model's directory: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, a
    /// string or a list of named ones; none where there is neither.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], and what [`Self::from_source`] refuses.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let (config_path, jinja_path) = (dir.join("tokenizer_config.json"), dir.join("chat_template.jinja"));
        let special = SpecialTokens::load(dir)?.named;
        if files::is_there(&jinja_path) {
            let bytes = files::read_beside(&jinja_path, screen::MAX_SOURCE as u64)?;
            return Self::of_bytes(&jinja_path, bytes, special).map(Some);
        }
        if !files::is_there(&config_path) {
            return Ok(None);
        }
        let config = json::parse_members(&config_path, &files::read_json(&config_path)?)?;
        Self::of_config(&config_path, &config, special)
    }

    /// The template in a file of its own.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for what is not UTF-8 or too large, and what [`Self::from_source`] refuses.
    pub fn read(path: &Path, special: BTreeMap<String, String>) -> Result<Self> {
        Self::of_bytes(path, files::read(path, screen::MAX_SOURCE as u64)?, special)
    }

    fn of_bytes(path: &Path, bytes: Vec<u8>, special: BTreeMap<String, String>) -> Result<Self> {
        let source = String::from_utf8(bytes).map_err(|e| Error::format(path, format!("not UTF-8: {e}")))?;
        Self::from_source(path, &source, special)
    }

    /// The template in the bytes of a `tokenizer_config.json`, where it has one; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Format`], and what [`Self::from_source`] refuses.
    pub fn from_config(path: &Path, bytes: &[u8]) -> Result<Option<Self>> {
        let config = json::parse_members(path, bytes)?;
        let special = SpecialTokens::of(path, config.clone(), Map::new())?.named;
        Self::of_config(path, &config, special)
    }

    fn of_config(
        path: &Path,
        config: &Map<String, Json>,
        special: BTreeMap<String, String>,
    ) -> Result<Option<Self>> {
        let Some(template) = config.get("chat_template") else { return Ok(None) };
        if let Some(source) = template.as_str() {
            return Self::from_source(path, source, special).map(Some);
        }
        if template.is_null() {
            return Ok(None);
        }
        let mut named = BTreeMap::new();
        for entry in template.as_array().into_iter().flatten() {
            if let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str()) {
                named.insert(name.to_owned(), source.to_owned());
            }
        }
        match Self::from_named(path, named, special)? {
            None => {
                let what = "chat_template is neither a string nor a list of {name, template}";
                Err(Error::format(path, what))
            }
            made => Ok(made),
        }
    }

    /// One of several templates, each with its name: that called `default`, or the first by name. None where there are
    /// none.
    ///
    /// # Errors
    /// What [`Self::from_source`] refuses.
    pub fn from_named(
        path: &Path,
        named: impl IntoIterator<Item = (String, impl Into<String>)>,
        special: BTreeMap<String, String>,
    ) -> Result<Option<Self>> {
        let named: BTreeMap<String, String> =
            named.into_iter().map(|(name, source)| (name, source.into())).collect();
        let Some(first) = named.get("default").or_else(|| named.values().next()) else { return Ok(None) };
        let mut made = Self::from_source(path, first, special)?;
        made.named = named;
        Ok(Some(made))
    }

    /// A template from its source; `special` holds `bos_token`, `eos_token`, …, and `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Template`] for a syntax error, another template included, a constant that would be huge, or a source
    /// over 256 KiB.
    pub fn from_source(path: &Path, source: &str, special: BTreeMap<String, String>) -> Result<Self> {
        let source = drop_generation_tags(source);
        let protected = Guarded::new(special.values().cloned())?;
        let made = Self {
            path: path.to_owned(),
            source,
            special,
            named: BTreeMap::new(),
            protected,
            selected: false,
            worked: Arc::default(),
            reply_formats: Arc::default(),
        };
        let this = made.clone();
        made.on_thread(move |_| this.compile(|_| Ok(())))?;
        Ok(made)
    }

    /// ChatML, for models that were trained on it and come without a template.
    pub(crate) fn chatml(special: BTreeMap<String, String>) -> Result<Self> {
        const SOURCE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
            '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
        Self::from_source(Path::new("chatml"), SOURCE, special)
    }

    /// The names of the list's templates; empty where there is just one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// Another template of the list.
    ///
    /// # Errors
    /// [`Error::Template`] for an unknown name, and what [`Self::from_source`] refuses.
    pub fn select(&self, name: &str) -> Result<Self> {
        let source = self.named.get(name).ok_or_else(|| self.error(self.no_such(name)))?;
        let made = Self::from_source(&self.path, source, self.special.clone())?;
        Ok(Self { named: self.named.clone(), protected: self.protected.clone(), selected: true, ..made })
    }

    fn no_such(&self, name: &str) -> String {
        let names: Vec<&str> = self.names().collect();
        let there =
            if names.is_empty() { "the model has one, without a name".to_owned() } else { names.join(", ") };
        format!(
            "there is no template {}, nor such a file: there is chatml, and {there}",
            crate::json::quote(name)
        )
    }

    /// Names the special tokens whose texts stay text where a message holds them
    /// (see [`super::Tokenizer::special_texts`]).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for more of them than can be looked for.
    pub fn protect<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>) -> Result<()> {
        self.protected = self.protected.and(texts.into_iter().map(str::to_owned))?;
        Ok(())
    }

    /// Whether it is given a special token of this name, such as `eos_token`.
    pub(super) fn has_special(&self, name: &str) -> bool {
        self.special.contains_key(name)
    }

    /// Whether the model has a special token of this text ([`Self::protect`]).
    pub(super) fn has_token(&self, text: &str) -> bool {
        self.protected.holds(text)
    }

    /// What it is written as.
    pub(crate) fn source(&self) -> &str {
        self.source_for(false)
    }

    /// The same, for conversations with tools or without.
    pub(crate) fn source_for(&self, tools: bool) -> &str {
        match self.named.get("tool_use") {
            Some(source) if tools && !self.selected => source,
            _ => &self.source,
        }
    }

    /// Renders a conversation. Arguments of tool calls may be objects, as templates expect them, or the text of one, as
    /// OpenAI's API has them. Where there are tools, a list's `tool_use` is taken unless another was selected.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own complaint (`raise_exception`), its error and line, a last message without
    /// text to continue, or the limit at which it was stopped: 5 s of work, 4 million instructions, 8 MiB of output, the size and depth of values, recursion.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<Rendered> {
        if messages.is_empty() {
            return Err(self.error("the conversation has no message"));
        }
        let mut context = options.extra.clone();
        for (key, token) in &self.special {
            context.entry(key.clone()).or_insert_with(|| token.clone().into());
        }
        let guard = |value: &Json| self.protected.protect(value, 0);
        let guard = |value: &Json| guard(value).map_err(|e| self.error(e));
        let lists = [("tools", &options.tools), ("documents", &options.documents)];
        for (name, list) in lists {
            let value = list.as_ref().map_or(Json::Null, |l| Json::Array(l.clone()));
            context.insert(name.into(), guard(&value)?);
        }
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        let now = options.now.unwrap_or_else(SystemTime::now);
        let mut this = self.clone();
        this.source = drop_generation_tags(self.source_for(options.tools.is_some()));
        let (messages, within) = (messages.to_vec(), options.continue_final_message);
        let mut text =
            self.on_thread(move |until| this.evaluate_first(&context, &messages, within, now, until))?;
        if options.continue_final_message {
            let what = "it leaves out the message that is to be continued";
            text = sentinel::up_to_end(text).ok_or_else(|| self.error(what))?;
        }
        let (text, literal) = self.protected.split(&text);
        Ok(Rendered { text, literal })
    }

    /// The rendering of the first form of the messages that the template takes; the error of the first where it takes none.
    /// `within`: the last message is to be continued.
    fn evaluate_first(
        &self,
        context: &Map<String, Json>,
        messages: &[Message],
        within: bool,
        now: SystemTime,
        until: Duration,
    ) -> Result<String> {
        let mut refused = None;
        for form in message::forms(messages) {
            let mut form = self.protected.protect(&form, 0).map_err(|e| self.error(e))?;
            if within {
                let last = form.as_array_mut().and_then(|messages| messages.last_mut());
                match last.and_then(|last| last.get_mut("content")).and_then(last_text) {
                    Some(text) if !text.trim().is_empty() => sentinel::mark_end(text),
                    _ => return Err(self.error("the last message has no text to continue")),
                }
            }
            let mut context = context.clone();
            context.insert("messages".into(), form);
            match self.evaluate(context, now, until) {
                Ok(text) => return Ok(text),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| self.error("there is no form of the messages")))
    }

    /// The tokens, by their texts, that an assistant's turn ends with: what stands right behind its text. A token that also
    /// stands between its thoughts and its text ends a part of a turn, and is left out. None where the template writes no
    /// token there, or refuses the conversation that it is asked with.
    pub(crate) fn turn_ends<'a>(&self, tokens: &'a [String]) -> Vec<&'a str> {
        const THOUGHT: &str = "backstop thinks";
        const SAID: &str = "backstop speaks";
        let mut said = Message::new("assistant", SAID);
        let asked = Message::new("user", "backstop asks");
        let render = |messages: &[Message]| {
            self.render(messages, &RenderOptions::default()).map(|rendered| rendered.text).unwrap_or_default()
        };
        let between = render(&[asked.clone(), said.clone(), asked.clone()]);
        said.extra.insert("reasoning_content".into(), THOUGHT.into());
        let last = render(&[asked, said]);
        let inner = match (last.find(THOUGHT), last.rfind(SAID)) {
            (Some(thought), Some(said)) if thought < said => &last[thought..said],
            _ => "",
        };
        let mut ends = Vec::new();
        for text in [&between, &last] {
            let Some(at) = text.rfind(SAID) else { continue };
            let behind = text[at + SAID.len()..].trim_start();
            let found =
                tokens.iter().filter(|token| behind.starts_with(token.as_str())).max_by_key(|t| t.len());
            ends.extend(found.map(String::as_str).filter(|token| !inner.contains(token)));
        }
        ends.dedup();
        ends
    }

    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::Template(format!("{}: {what}", self.path.display()))
    }

    /// How long renderings have worked in all, those of clones too.
    pub(super) fn worked(&self) -> Duration {
        Duration::from_nanos(self.worked.load(Relaxed))
    }

    /// Runs on a thread of its own, whose stack is large enough for every depth allowed.
    fn on_thread<T: Send + 'static>(
        &self,
        f: impl FnOnce(Duration) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let worked = self.worked.clone();
        let work = move || {
            let result = f(apart::worked() + budget::TIME);
            worked.fetch_add(u64::try_from(apart::worked().as_nanos()).unwrap_or(u64::MAX), Relaxed);
            result
        };
        apart::run("template", STACK, NET, work).unwrap_or_else(|lost| match lost {
            Lost::NoThread(source) => Err(Error::Thread { what: "a chat template", source }),
            // It ends by itself at its next instruction, once it is given a processor for it.
            Lost::Late(_) => Err(self.error(format!("the template took longer than {} s", NET.as_secs()))),
            Lost::Panicked => Err(self.error("the template engine panicked")),
        })
    }

    fn syntax() -> Result<SyntaxConfig> {
        let built = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        built.map_err(|e| Error::Template(e.to_string()))
    }

    fn compile<T>(&self, then: impl FnOnce(&Stmt) -> Result<T>) -> Result<T> {
        let syntax = Self::syntax()?;
        screen::tokens(&self.source, &syntax).map_err(|e| self.error(e))?;
        let tree = parse(&self.source, "chat_template", syntax).map_err(|e| self.error(describe(&e)))?;
        screen::Screen::default().stmt(&tree).map_err(|e| self.error(e))?;
        then(&tree)
    }

    fn evaluate(&self, context: Map<String, Json>, now: SystemTime, until: Duration) -> Result<String> {
        self.compile(|tree| {
            let mut generator = CodeGenerator::new("chat_template", &self.source);
            generator.compile_stmt(tree);
            let (instructions, _) = generator.finish();
            let instructions = bounded::rewrite(&instructions);
            let env = environment(&Budget::new(until), now);
            let mut text = String::new();
            let blocks = BTreeMap::new();
            let mut out = make_string_output(&mut text);
            let root = python::value(&Json::Object(context));
            eval(&env, &instructions, root, &blocks, &mut out, AutoEscape::None)
                .map_err(|e| self.error(describe(&e)))?;
            drop(out);
            if text.len() > budget::MAX_BYTES {
                return Err(self.error(format!("it wrote {} bytes, at most 8 MiB are allowed", text.len())));
            }
            Ok(text)
        })
    }
}

/// The text of a content, or that of the last of its parts that has one.
fn last_text(content: &mut Json) -> Option<&mut String> {
    match content {
        Json::String(text) => Some(text),
        Json::Array(parts) => {
            let text = parts.iter_mut().rev().find_map(|part| part.get_mut("text"));
            text.and_then(|text| if let Json::String(text) = text { Some(text) } else { None })
        }
        _ => None,
    }
}

fn describe(error: &minijinja::Error) -> String {
    let mut what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "the template ran too many instructions".to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    if let Some(line) = error.line() {
        what += &format!(" (line {line})");
    }
    what
}

fn environment<'a>(budget: &Arc<Budget>, now: SystemTime) -> Environment<'a> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    bounded::install(&mut env, budget);
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", move |format: String| {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        python::strftime(&format, seconds).map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e))
    });
    env.add_filter("tojson", |value: Value, positional: Rest<Value>, kwargs: Kwargs| {
        python::tojson(&value, &positional, &kwargs)
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e))
    });
    env
}

/// `{% generation %}` marks the assistant's text for training: its body is rendered as it is.
fn drop_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        // Behind the mark: in `{%}` the end does not begin within it.
        let Some(end) = tag[2..].find("%}").map(|at| at + 2) else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&format!("{{%{}%}}", inner.replace(word, "if true"))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", inner.replace(word, "endif"))),
            _ => out.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}
