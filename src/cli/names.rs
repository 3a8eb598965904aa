//! Names of models in place of paths: found on this machine, or downloaded where a person agrees.

use std::fs::File;
use std::io::{IsTerminal, Write, stderr, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use backstop::backend::select::{BackendRequest, Bytes};
use backstop::bundle::{self, Bundle};
use backstop::hub::{self, Client, Fit, Form, Found, Name, Settings};
use backstop::{Error, HubFault};

use super::args::{FetchArgs, ModelArgs, ReadArgs};
use super::here::{Row, rows};
use super::{Usage, input, pull, term};

/// The arguments with the model that was typed by itself, where one was.
pub fn replace(args: &ModelArgs, typed: Option<impl AsRef<Path>>) -> ModelArgs {
    let model = typed.map(|typed| typed.as_ref().to_owned()).or_else(|| args.model.clone());
    ModelArgs { model, ..args.clone() }
}

/// The file that is to be read, and what is in it.
///
/// # Errors
/// None that was typed or can be read, and one that is not UTF-8.
pub fn text(args: &ReadArgs) -> anyhow::Result<(&Path, String)> {
    let Some(path) = args.file() else {
        return Err(Usage("the FILE to read is left out: [MODEL] FILE is expected".to_owned()).into());
    };
    let may_be_model = |name: &&str| path.exists() || !matches!(Name::parse(name), Ok(Name::Path(_)));
    if let Some(name) =
        path.to_str().filter(may_be_model).filter(|name| args.model().is_none() && is_model(name))
    {
        let what = format!("{name} is a model, and the FILE to read is left out: {name} FILE is expected");
        return Err(Usage(what).into());
    }
    Ok((path, read(path)?))
}

/// A text file.
///
/// # Errors
/// One that cannot be read, and one that is not UTF-8.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let read = || input::utf8(input::read_all(&mut File::open(path)?)?, 0);
    read().with_context(|| path.display().to_string())
}

/// What a model goes by where it was named, and not given by its path.
pub fn of(typed: &Path) -> Option<String> {
    let text = typed.to_str()?;
    let name = Name::parse(text).ok()?;
    (!matches!(name, Name::Path(_))).then(|| text.to_owned())
}

/// Whether a text by itself is the name of a model, and no prompt: a model directory, a GGUF file, a repository, a short name
/// of the table, and what looks like one that is not in it.
pub fn is_model(text: &str) -> bool {
    match Name::parse(text) {
        _ if text.is_empty() => false,
        Ok(Name::Path(path)) => {
            // A bundle, and what is in one, is a model as a file beside it is.
            let is_gguf = text.ends_with(".gguf") && (path.is_file() || bundle::reader(&path).is_ok());
            let config = path.join("config.json");
            let is_directory = config.is_file() || bundle::reader(&config).is_ok();
            // What is written as a path of a model is one, also where it is not there.
            let is_meant = !path.exists()
                && !text.contains(char::is_whitespace)
                && (text.ends_with(".gguf")
                    || ["/", "./", "../", "~/"].iter().any(|begin| text.starts_with(begin)));
            is_meant
                || is_gguf
                || is_directory
                || path.is_file() && Bundle::open(&path).is_ok_and(|of| of.is_some())
        }
        Ok(name @ Name::Short { .. }) => {
            hub::on_the_hub(&name, Fit::default()).is_ok() || looks_like_a_name(text)
        }
        Ok(Name::Repository { .. } | Name::Ollama { .. }) => true,
        Err(_) => false,
    }
}

/// `mixtral:8x7b`, `e5-large-v2`, `llama4`: nobody begins a text so.
fn looks_like_a_name(text: &str) -> bool {
    let has = |of: fn(char) -> bool| text.chars().any(of);
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
    let has_tag = text.split_once(':').is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty());
    let letters = |text: &str| text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
    let begins = text[..letters(text)].to_lowercase();
    let of_family = || hub::short_names().iter().any(|short| short.name[..letters(&short.name)] == begins);
    let is_typed = has_tag || has(|c| c.is_ascii_digit()) && (has(|c| c == '-' || c == '.') || of_family());
    is_plain && is_typed && has(|c| c.is_ascii_alphabetic())
}

/// The files of a model that was typed: a path as it is, a name where its files are, which are downloaded first if need be.
pub fn path(typed: &Path, fetch: &FetchArgs, backend: BackendRequest) -> anyhow::Result<PathBuf> {
    path_within(typed, fetch, backend, None)
}

/// As [`path`], of a model that may take no more than `memory`.
pub fn path_within(
    typed: &Path,
    fetch: &FetchArgs,
    backend: BackendRequest,
    memory: Option<u64>,
) -> anyhow::Result<PathBuf> {
    let Some(text) = typed.to_str() else { return Ok(typed.to_owned()) };
    let name = match Name::parse(text)? {
        Name::Path(path) => return Ok(path),
        name => name,
    };
    let settings = pull::settings(fetch.token.as_deref())?;
    let fit = pull::fit(backend, memory);
    if let Some(Found { path, bytes, form, .. }) = hub::find_model(&name, &settings, fit)? {
        tracing::info!(%name, path = %path.display(), "found");
        if let Some(what) = pull::too_large(bytes, &form, fit) {
            let other = match &name {
                _ if settings.offline => "a smaller model, or a variant of fewer bits, would fit".to_owned(),
                _ => format!("`backstop pull {name}` takes a variant that fits, where there is one"),
            };
            term::note(format_args!("warning: {name} is here as {}, and {what}: {other}", of_form(&form)));
        }
        return Ok(path);
    }
    if matches!(name, Name::Ollama { .. }) {
        hub::on_the_hub(&name, fit)?;
    }
    let asks = stdin().is_terminal() && stderr().is_terminal();
    if settings.offline || !(fetch.pull || asks) {
        let what = match settings.offline {
            true => format!(
                "{name} is not on this machine, and HF_HUB_OFFLINE is set: backstop list shows what is here"
            ),
            false => {
                format!("{name} is not on this machine: --pull downloads it, as `backstop pull {name}` does")
            }
        };
        let what = match others(&name, &settings) {
            others if others.is_empty() => what,
            others => format!("{what}; here are {}", others.join(", ")),
        };
        return Err(Error::Hub { fault: HubFault::Absent, what }.into());
    }
    let client = Client::new(&settings)?;
    let plan = pull::plan(&client, &name, fit)?;
    if !fetch.pull {
        let bytes = Bytes(plan.bytes());
        let what = pull::what(&plan);
        let large = pull::too_large(plan.bytes(), &plan.form, fit);
        let question = match &large {
            None => format!("{name} is not on this machine. Download {what} ({bytes})?"),
            Some(large) => {
                format!("{name} is not on this machine, and {large}. Download {what} ({bytes}) all the same?")
            }
        };
        if !agrees(&question, large.is_none())? {
            bail!("nothing was downloaded; `backstop pull {name}` does it");
        }
    }
    pull::download(&client, &settings, &plan, &name, fit)
}

/// What is here of a model of which another variant was asked for.
fn others(name: &Name, settings: &Settings) -> Vec<String> {
    let is_it = |row: &Row| match name {
        Name::Repository { id, .. } => {
            row.name.split([':', '@']).next().is_some_and(|of| of.eq_ignore_ascii_case(id.as_str()))
        }
        Name::Short { name, variant } => hub::meant(name, variant.as_deref())
            .is_ok_and(|(short, _)| row.short_name() == Some(short.name.as_str())),
        Name::Path(_) | Name::Ollama { .. } => false,
    };
    let rows = rows(settings).unwrap_or_default().into_iter();
    rows.filter(|row| row.whole && is_it(row)).map(|row| row.name).collect()
}

/// What a model's files are, as a person knows it.
fn of_form(form: &Form) -> &str {
    form.gguf().unwrap_or("safetensors")
}

/// Whether a person agrees; `enter` is what Enter by itself means.
pub fn agrees(question: &str, enter: bool) -> anyhow::Result<bool> {
    let choice = if enter { "Y/n" } else { "y/N" };
    let _ = write!(stderr().lock(), "{} [{choice}] ", term::one_line(question));
    let mut line = String::new();
    let read = stdin().read_line(&mut line).context("stdin")?;
    // The end of the input is no answer.
    Ok(read > 0
        && match &*line.trim().to_lowercase() {
            "" => enter,
            answer => matches!(answer, "y" | "yes"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_name_is_no_prompt() {
        for name in [
            "qwen3:8b",
            "qwq",
            "mixtral:8x7b",
            "e5-large-v2",
            "llama9.2",
            "llama4",
            "gpt2",
            "./nosuch.gguf",
            "/models/x",
            "nosuch.gguf",
            "org/name",
            "hf.co/org/name:Q4_K_M",
        ] {
            assert!(is_model(name), "{name}");
        }
        for prompt in [
            "Once",
            "Once upon a time",
            "3.14",
            "Q:",
            ":x",
            "well-known",
            "x86",
            "vicuna",
            "why?",
            "a:b c",
            "",
        ] {
            assert!(!is_model(prompt), "{prompt}");
        }
    }
}
