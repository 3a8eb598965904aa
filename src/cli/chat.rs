//! `backstop chat`: a conversation, turn by turn. The engine keeps what it computed of the turns, so that each is read once.

mod commands;
mod files;
mod lines;
mod session;
mod settings;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use backstop::Model;

use super::args::{ChatArgs, ModelArgs};
use super::interrupt::{self, Interruptible};
use super::{Closed, INTERRUPTED, Loaded, names, term};
use lines::Lines;
use session::{Next, Session};

/// What can be done where there is no model.
const NO_MODEL: &str = "What was said is kept: /load NAME goes on with another model, Ctrl-D ends";

pub fn chat(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    super::check_sampling(&args.sampling)?;
    let mut from = names::replace(&args.model, args.path.as_deref());
    let Loaded { model, .. } = super::load(&from, &args.session, args.no_summary)?;
    let config = &model.info().config;
    if config.bidirectional || config.headless {
        let name = &model.info().name;
        bail!(
            "{name} makes vectors of texts, and generates none: `backstop serve` answers /v1/embeddings with it"
        );
    }
    let interactive = super::is_interactive();
    let mut session = Session::new(args, &model, interactive)?;
    if interactive {
        terminal::keep()?;
    }
    let mut lines = if interactive { Lines::editor(!args.no_history)? } else { Lines::pipe() };
    if interactive {
        greet(&model);
    }
    let mut model = Some(model);
    // One before a line is read, and one behind it.
    let rest = || if interactive { interrupt::pass_one_over() } else { Ok(()) };
    loop {
        rest()?;
        let Some(line) = lines.next()? else { break };
        rest()?;
        let quoted = if interactive { lines::unquoted(&line) } else { None };
        let next = match (&model, quoted) {
            (Some(model), Some(text)) => session.say(model, text),
            (Some(model), None) => session.take(model, &line),
            (None, _) => session.without_model(&line),
        };
        let next = match next {
            Ok(Next::Load(name)) => {
                let result;
                (model, result) = exchange(model, &mut from, &name, args)?;
                match (&model, result) {
                    (Some(model), Ok(())) => {
                        if interactive {
                            greet(model);
                        }
                        session.adopt(model).map(|()| Next::Line)
                    }
                    (_, result) => result.map(|()| Next::Line),
                }
            }
            other => other,
        };
        match next {
            Ok(Next::Line | Next::Load(_)) => {}
            Ok(Next::Interrupted) if interactive => {}
            Ok(Next::Interrupted) => return Ok(ExitCode::from(INTERRUPTED)),
            Ok(Next::End) => break,
            Err(error) if interactive && !error.is::<Closed>() => {
                super::report(&error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Loads another model in place of `old`, which goes first: there may not be memory for both. The model that there is then, and
/// why it is not the other one; none where neither can be loaded.
fn exchange(
    old: Option<Model>,
    from: &mut ModelArgs,
    name: &Path,
    args: &ChatArgs,
) -> anyhow::Result<(Option<Model>, anyhow::Result<()>)> {
    // An adapter is of the model that it was typed with.
    let other = ModelArgs { adapter: Vec::new(), ..names::replace(from, Some(name)) };
    // What can be refused is, while the old one is there.
    if let Err(error) = super::open_as(&other).and_then(|files| Ok(files.tokenizer()?)) {
        return Ok((old, Err(error)));
    }
    drop(old);
    // What was said is not lost by one Ctrl-C.
    let _first = Interruptible::new(|| {
        term::note("the model is being loaded; Ctrl-C once more ends the conversation")
    })?;
    match super::load(&other, &args.session, args.no_summary) {
        Ok(Loaded { model, .. }) => {
            *from = other;
            Ok((Some(model), Ok(())))
        }
        Err(error) => Ok(match super::load(from, &args.session, args.no_summary) {
            Ok(Loaded { model, .. }) => (Some(model), Err(error)),
            Err(again) => {
                let what = "the model before it cannot be loaded any more, either";
                (None, Err(anyhow!("{error:#}; {what}: {again:#}. {NO_MODEL}")))
            }
        }),
    }
}

fn greet(model: &Model) {
    let info = model.info();
    let line = format!(
        "{} on {}: {}. /help lists the commands, Ctrl-D ends.",
        info.name,
        model.engine().backend(),
        info.selection.reason
    );
    term::note(term::dim(&line));
}

/// A path as it was typed after a command, with `~/` for the home directory.
fn expanded(typed: &str) -> PathBuf {
    let home = || std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    match typed.strip_prefix("~/").and_then(|rest| Some(home()?.join(rest))) {
        Some(path) => path,
        None => PathBuf::from(typed),
    }
}
