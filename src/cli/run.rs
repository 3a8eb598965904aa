//! `backstop run`: one prompt, one text.

use std::io::{IsTerminal, stdin};
use std::process::ExitCode;

use anyhow::{Context, bail};
use backstop::sample::Grammar;
use backstop::{Chat, Message, Model, Options, Turn};

use super::args::{ChatArgs, FormArgs, ModelArgs, RunArgs};
use super::stream::{Output, print, stream};
use super::summary::Summary;
use super::{INTERRUPTED, Loaded, Usage, bundle, form, input, names, think, typed};

pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    super::check_sampling(&args.sampling)?;
    let grammar = form::grammar(&args.form)?;
    // Where there is a model, none is needed before a text.
    let has_model = args.model.model.is_some() || bundle::is_one();
    let is_named = args.first.as_deref().is_some_and(names::is_model);
    let is_one_text = !is_named && args.second.len() > usize::from(!has_model);
    if let (Some(first), true, false) = (args.first.as_deref(), is_one_text, has_model) {
        let what = format!(
            "{first:?} is no model, and several words follow: quote the whole text, or name a model before it"
        );
        return Err(Usage(what).into());
    }
    let words = (!args.second.is_empty()).then(|| args.second.join(" "));
    let (first, words) = match (args.first.as_deref(), words) {
        (Some(first), Some(words)) if is_one_text => (None, Some(format!("{first} {words}"))),
        typed => typed,
    };
    let is_followed = args.prompt.is_some() || words.is_some() && !bundle::is_one();
    if first.is_some() && has_model && is_followed {
        let what = match bundle::is_one() {
            true => "the prompt is there twice: by itself, and by --prompt",
            false => "the model is named twice: by itself, and by --model",
        };
        return Err(Usage(what.to_owned()).into());
    }
    let (named, text) = match args.prompt.as_deref() {
        Some(prompt) => (first, Some(prompt)),
        None => typed::model_and_text(&args.model, first, words.as_deref()),
    };
    let from = names::replace(&args.model, named);
    if text.is_none() && stdin().is_terminal() {
        return converse(args, from);
    }
    let prompt = prompt(text)?;
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
        if args.think.is_some() {
            let what = format!("--think needs a chat template, and {} has none", model.info().name);
            return Err(Usage(what).into());
        }
        return Ok(None);
    }
    let system = args.system.iter().map(|text| Message::new("system", text.as_str()));
    let messages = system.chain([Message::new("user", prompt)]).collect();
    let variables = think::variables(args.think.as_deref());
    Ok(Some(model.prepare(&Chat { variables, ..Chat::new(messages) }, grammar)?))
}

/// A conversation, where a model was named and nothing to say to it: what Ollama's `run` does, too.
fn converse(args: &RunArgs, model: ModelArgs) -> anyhow::Result<ExitCode> {
    let FormArgs { schema, regex, grammar } = &args.form;
    let shaped = schema.is_some() || regex.is_some() || grammar.is_some();
    if model.model.is_none() || args.raw || args.json || shaped {
        let what = "no PROMPT: give one, or `-` to type it here (Ctrl-D ends it); `backstop chat` holds a conversation";
        return Err(Usage(what.to_owned()).into());
    }
    super::chat::chat(&ChatArgs {
        path: None,
        model,
        session: args.session.clone(),
        system: args.system.clone(),
        think: args.think.clone(),
        no_summary: args.no_summary,
        plain: false,
        no_history: false,
        sampling: args.sampling.clone(),
    })
}

/// The prompt, from the arguments or from stdin.
fn prompt(typed: Option<&str>) -> anyhow::Result<String> {
    let typed = typed.filter(|text| *text != "-");
    if let Some(text) = typed
        && !input::is_piped()
    {
        return Ok(text.to_owned());
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
