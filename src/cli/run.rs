//! `backstop run`: one prompt, one text.

use std::io::{IsTerminal, stdin};
use std::process::ExitCode;

use anyhow::{Context, bail};
use backstop::sample::Grammar;
use backstop::{Chat, Message, Model, Options, Turn};

use super::args::RunArgs;
use super::stream::{Output, print, stream};
use super::summary::Summary;
use super::{INTERRUPTED, Loaded, Usage, form, input, names};

pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    super::check_sampling(&args.sampling)?;
    let grammar = form::grammar(&args.form)?;
    let (named, text) = typed(args);
    let prompt = prompt(text, named)?;
    let from = names::replace(&args.model, named);
    let Loaded { model, time } = super::load(&from, &args.session, args.json || args.no_summary)?;
    let mut sampling = super::resolve_sampling(&args.sampling, &model)?;
    sampling.logprobs = args.json.then_some(0);
    let options = Options { max_tokens: args.sampling.max_tokens, sampling, ..Options::default() };
    let mut out = Output::new();
    let shown = (!args.json).then_some(&mut out);
    let answer = match turn(&model, args, &prompt, grammar.as_ref())? {
        Some(turn) => stream(|| model.generate_turn(&turn, &options), shown)?,
        None => {
            let constraint = grammar.map(|grammar| model.constraint(&grammar)).transpose()?;
            let tokens = model.encode_prompt(&prompt, !args.no_special)?;
            let options = Options { constraint, ..options.clone() };
            stream(|| model.generate_tokens(tokens, &options), shown)?
        }
    };
    let interrupted = answer.interrupted();
    let summary = Summary { model: &model, options: &options, loading: time, answer: &answer };
    if args.json {
        print(&format!("{}\n", summary.json()))?;
    } else {
        out.end_line_on_terminal()?;
        if !args.no_summary {
            summary.show();
        }
    }
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The turn that answers the prompt, by the chat template where there is one and `--raw` does not forbid it.
fn turn(
    model: &Model,
    args: &RunArgs,
    prompt: &str,
    grammar: Option<&Grammar>,
) -> anyhow::Result<Option<Turn>> {
    if args.raw || !model.has_template() {
        if args.system.is_some() {
            bail!(super::no_template_for_system(model));
        }
        return Ok(None);
    }
    let system = args.system.iter().map(|text| Message::new("system", text.as_str()));
    let messages = system.chain([Message::new("user", prompt)]).collect();
    Ok(Some(model.prepare(&Chat::new(messages), grammar)?))
}

/// The model and the prompt that were typed: one text alone is the prompt, unless it names a model, of which a bundle has one.
fn typed(args: &RunArgs) -> (Option<&str>, Option<&str>) {
    match (args.first.as_deref(), args.second.as_deref()) {
        (named, Some(prompt)) => (named, Some(prompt)),
        (Some(one), None)
            if args.model.model.is_none() && !super::bundle::is_one() && names::is_model(one) =>
        {
            (Some(one), None)
        }
        (prompt, None) => (None, prompt),
    }
}

/// The prompt, from the arguments or from stdin.
fn prompt(typed: Option<&str>, named: Option<&str>) -> anyhow::Result<String> {
    let typed = typed.filter(|text| *text != "-");
    match typed {
        Some(text) if !input::is_piped() => return Ok(text.to_owned()),
        None if stdin().is_terminal() => {
            let name = named.map(|name| format!(" {name}")).unwrap_or_default();
            let what = format!(
                "no PROMPT: give one, or `-` to type it here (Ctrl-D ends it); `backstop chat{name}` holds a conversation"
            );
            return Err(Usage(what).into());
        }
        _ => {}
    }
    let mut bytes = input::read_stdin().context("stdin")?;
    input::trim_line_end(&mut bytes);
    let piped = input::utf8(bytes, 0).context("stdin")?;
    Ok(match typed {
        Some(text) if piped.is_empty() => text.to_owned(),
        Some(text) => format!("{text}\n\n{piped}"),
        None => piped,
    })
}
