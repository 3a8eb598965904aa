//! `backstop list` and `backstop rm`: the models on this machine.

use std::io::{IsTerminal, stderr, stdin};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::bail;
use backstop::backend::select::Bytes;
use backstop::hub::{self, Cache, Name, Settings, short_names};
use serde_json::{Value, json};

use super::args::{ListArgs, RmArgs};
use super::here::{Row, rows};
use super::stream::print;
use super::summary::aligned;
use super::times::ago;
use super::{Usage, names, term};

pub fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    if args.names {
        return list_names(args.json);
    }
    let settings = Settings::from_env()?;
    let rows = rows(&settings)?;
    if args.json {
        let row = |row: &Row| {
            json!({
                "name": row.name, "form": row.form, "bytes": row.bytes, "origin": row.origin.name(),
                "path": row.path.display().to_string(), "complete": row.whole,
                "modified": row.modified().and_then(since_epoch),
            })
        };
        let all: Vec<Value> = rows.iter().map(row).collect();
        print(&format!("{}\n", json!({ "cache": settings.cache.display().to_string(), "models": all })))?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        term::note(format_args!(
            "no models are in {}, nor in LM Studio's or Ollama's folders: `backstop pull NAME` downloads one, and `backstop list \
             --names` lists short names",
            settings.cache.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![["NAME", "FORM", "ORIGIN", "SIZE", "MODIFIED"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            term::one_line(&row.name),
            row.form.to_owned(),
            row.origin.name().to_owned(),
            Bytes(row.bytes).to_string() + if row.whole { "" } else { ", incomplete" },
            row.modified().and_then(|then| then.elapsed().ok()).map(ago).unwrap_or_default(),
        ]
    }));
    print(&aligned(&lines, 3))?;
    if let Some(row) = rows.iter().find(|row| !row.whole) {
        term::note(format_args!(
            "note: files of what is incomplete are missing: `backstop pull {}` completes it",
            row.name
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds since 1970.
fn since_epoch(time: SystemTime) -> Option<u64> {
    Some(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
}

/// The table of short names.
fn list_names(as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        let variant = |of: &hub::ShortVariant| json!({ "variant": of.variant, "repository": of.repository, "bytes": of.bytes });
        let short = |short: &hub::ShortName| {
            let variants: Vec<Value> = short.variants.iter().map(variant).collect();
            json!({ "name": short.name, "aliases": short.aliases, "variants": variants })
        };
        let all: Vec<Value> = short_names().iter().map(short).collect();
        print(&format!("{}\n", json!({ "names": all })))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![["NAME", "VARIANT", "REPOSITORY", "SIZE"].map(str::to_owned)];
    for short in short_names() {
        for (i, of) in short.variants.iter().enumerate() {
            let name = if i == 0 { short.name.clone() } else { String::new() };
            lines.push([
                name,
                of.variant.clone(),
                of.repository.clone(),
                format!("about {}", Bytes(of.bytes)),
            ]);
        }
    }
    print(&aligned(&lines, 3))?;
    Ok(ExitCode::SUCCESS)
}

pub fn rm(args: &RmArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::from_env()?;
    let name = Name::parse(&args.name)?;
    let cache = Cache::new(&settings.cache);
    let (id, revision, variant) = match &name {
        Name::Path(path) => {
            return Err(Usage(format!("{}: a path is yours to remove: rm", path.display())).into());
        }
        Name::Repository { id, revision, variant } => (id.clone(), revision.clone(), variant.clone()),
        Name::Short { .. } => of_short(&name, &settings, &cache)?,
        Name::Ollama { .. } => match hub::find(&name, &settings, hub::Fit::default())? {
            Some(other) => bail!("{name} is {}, another program's: remove it there", other.display()),
            None => hub::on_the_hub(&name, hub::Fit::default())?,
        },
    };
    if !cache.holds(&id)
        && let Some(other) = hub::find(&name, &settings, hub::Fit::default())?
    {
        bail!("{name} is {}, another program's: remove it there", other.display());
    }
    let of = |mark: &str, text: &Option<String>| {
        text.as_ref().map(|text| format!("{mark}{text}")).unwrap_or_default()
    };
    let what = format!("{id}{}{}", of("@", &revision), of(":", &variant));
    if !args.yes {
        if !stdin().is_terminal() || !stderr().is_terminal() {
            return Err(Usage(format!("--yes removes {what} where nobody can be asked")).into());
        }
        if cache.holds(&id)
            && !names::agrees(&format!("Remove {what} from {}?", cache.root().display()), false)?
        {
            bail!("nothing was removed");
        }
    }
    let removed = cache.remove(&id, revision.as_deref(), variant.as_deref())?;
    term::note(format_args!("{what} is removed: {} are free", Bytes(removed.bytes)));
    Ok(ExitCode::SUCCESS)
}

/// The repository that a short name's model lies in here, or would.
fn of_short(
    name: &Name,
    settings: &Settings,
    cache: &Cache,
) -> anyhow::Result<(hub::RepositoryId, Option<String>, Option<String>)> {
    let Name::Short { name: short, variant } = name else { bail!("{name} is no short name") };
    let of = |table: &&hub::ShortName| table.name == *short || table.aliases.contains(short);
    for of in short_names().iter().filter(of).flat_map(|table| &table.variants) {
        let id = hub::RepositoryId::new(&of.repository)?;
        let asked = variant.as_ref().is_none_or(|variant| of.variant.eq_ignore_ascii_case(variant));
        let within = (of.form == hub::ShortForm::Gguf).then(|| of.variant.clone());
        if asked && cache.find(&id, None, within.as_deref()).is_some() {
            return Ok((id, None, within));
        }
    }
    if let Some(other) = hub::find(name, settings, hub::Fit::default())? {
        bail!("{name} is {}, another program's: remove it there", other.display());
    }
    Ok(hub::on_the_hub(name, hub::Fit::default())?)
}
