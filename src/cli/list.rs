//! `backstop list` and `backstop rm`: the models on this machine.

use std::collections::HashSet;
use std::fmt;
use std::io::{IsTerminal, stderr, stdin};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{anyhow, bail};
use backstop::backend::select::{BackendRequest, Bytes};
use backstop::hub::{self, Cache, Name, Settings, short_names};
use backstop::{Error, HubFault};
use serde_json::{Value, json};

use super::args::{ListArgs, RmArgs};
use super::here::{Row, rows};
use super::stream::print;
use super::summary::aligned;
use super::times::ago;
use super::{Usage, names, pull, term};

pub fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let word = args.word.as_deref().map(str::to_lowercase);
    let word = word.as_deref();
    if args.names {
        return list_names(word, args.json);
    }
    let settings = Settings::from_env()?;
    let mut rows = rows(&settings)?;
    let all = rows.len();
    rows.retain(|row| [Some(&*row.name), row.short_name()].into_iter().flatten().any(|name| has(name, word)));
    if args.json {
        let row = |row: &Row| {
            json!({
                "name": row.name, "short_name": row.short_name(), "form": row.form, "bytes": row.bytes, "origin": row.origin.name(),
                "path": row.path.display().to_string(), "complete": row.whole,
                "modified": row.modified().and_then(since_epoch),
            })
        };
        let all: Vec<Value> = rows.iter().map(row).collect();
        print(&format!("{}\n", json!({ "cache": settings.cache.display().to_string(), "models": all })))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let (true, Some(word)) = (rows.is_empty() && all > 0, &args.word) {
        term::note(format_args!(
            "none of {all} models on this machine has {word} in its name; `backstop list --names {word}` looks through short names"
        ));
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
    let short: Vec<&str> = rows.iter().map(|row| row.short_name().unwrap_or_default()).collect();
    if short.iter().all(|name| name.is_empty()) {
        print(&aligned(&lines, 3))?;
    } else {
        let short = ["SHORT NAME"].into_iter().chain(short).map(str::to_owned);
        let beside = |(line, short): ([String; 5], String)| {
            let [name, form, origin, size, modified] = line;
            [name, short, form, origin, size, modified]
        };
        print(&aligned(&lines.into_iter().zip(short).map(beside).collect::<Vec<_>>(), 4))?;
    }
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

fn has(name: &str, word: Option<&str>) -> bool {
    word.is_none_or(|word| name.to_lowercase().contains(word))
}

/// The table of short names, and what of it fits this machine.
fn list_names(word: Option<&str>, as_json: bool) -> anyhow::Result<ExitCode> {
    let fit = pull::fit(BackendRequest::Auto, None);
    let is_asked = |short: &&hub::ShortName| {
        has(&short.name, word)
            || short.aliases.iter().any(|alias| has(alias, word))
            || short.variants.iter().any(|of| has(&of.repository, word))
    };
    let asked = || short_names().iter().filter(is_asked);
    if as_json {
        let variant = |of: &hub::ShortVariant| {
            json!({
                "variant": of.variant, "repository": of.repository, "bytes": of.bytes, "fits": of.runs(fit),
            })
        };
        let short = |short: &hub::ShortName| {
            let variants: Vec<Value> = short.variants.iter().map(variant).collect();
            json!({ "name": short.name, "aliases": short.aliases, "variants": variants })
        };
        let all: Vec<Value> = asked().map(short).collect();
        print(&format!("{}\n", json!({ "names": all })))?;
        return Ok(ExitCode::SUCCESS);
    }
    if asked().next().is_none() {
        let all = short_names().len();
        term::note(format_args!(
            "none of {all} short names has {} in it: any repository of the hub is pulled as org/name",
            word.unwrap_or_default()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![["NAME", "VARIANT", "REPOSITORY", "SIZE", "FITS"].map(str::to_owned)];
    for short in asked() {
        for (i, of) in short.variants.iter().enumerate() {
            let name = if i == 0 { short.name.clone() } else { String::new() };
            lines.push([
                name,
                of.variant.clone(),
                of.repository.clone(),
                format!("about {}", Bytes(of.bytes)),
                if of.runs(fit) { "yes" } else { "no" }.to_owned(),
            ]);
        }
    }
    print(&aligned(&lines, 3))?;
    Ok(ExitCode::SUCCESS)
}

pub fn rm(args: &RmArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::from_env()?;
    let cache = Cache::new(&settings.cache);
    // What is not here is known before anything is removed.
    let all = args.names.iter().map(|name| Doomed::find(name, &settings, &cache));
    let mut all: Vec<Doomed> = all.collect::<anyhow::Result<_>>()?;
    let mut told = HashSet::new();
    all.retain(|doomed| told.insert(doomed.to_string()));
    if !args.yes {
        let told = all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !stdin().is_terminal() || !stderr().is_terminal() {
            return Err(Usage(format!("--yes removes {told} where nobody can be asked")).into());
        }
        if !names::agrees(&format!("Remove {told} from {}?", cache.root().display()), false)? {
            bail!("nothing was removed");
        }
    }
    for doomed in all {
        let Doomed { id, revision, variant } = &doomed;
        let removed = cache.remove(id, revision.as_deref(), variant.as_deref())?;
        term::note(format_args!("{doomed} is removed: {} are free", Bytes(removed.bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be removed of the cache.
struct Doomed {
    id: hub::RepositoryId,
    revision: Option<String>,
    variant: Option<String>,
}

impl fmt::Display for Doomed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.variant.iter().try_for_each(|variant| write!(f, ":{variant}"))
    }
}

impl Doomed {
    /// # Errors
    /// What is not in the cache, or another program's.
    fn find(typed: &str, settings: &Settings, cache: &Cache) -> anyhow::Result<Self> {
        let name = Name::parse(typed)?;
        let (id, revision, variant) = match &name {
            Name::Path(path) => {
                return Err(Usage(format!("{}: a path is yours to remove: rm", path.display())).into());
            }
            Name::Repository { id, revision, variant } => (id.clone(), revision.clone(), variant.clone()),
            Name::Short { name: short, variant } => match of_short(short, variant.as_deref(), cache)? {
                Some((id, variant)) => (id, None, variant),
                None => return Err(not_removed(&name, settings)),
            },
            Name::Ollama { .. } => return Err(not_removed(&name, settings)),
        };
        if !cache.holds(&id) {
            return Err(not_removed(&name, settings));
        }
        let doomed = Self { id, revision, variant };
        if !cache.has(&doomed.id, doomed.revision.as_deref(), doomed.variant.as_deref())? {
            let what = format!("{doomed} is not here: `backstop list` shows what is");
            return Err(Error::Hub { fault: HubFault::Absent, what }.into());
        }
        Ok(doomed)
    }
}

/// Why what is not in the cache is not removed.
fn not_removed(name: &Name, settings: &Settings) -> anyhow::Error {
    match hub::find(name, settings, hub::Fit::default()) {
        Ok(Some(other)) => {
            anyhow!("{name} is {}, another program's: remove it there", other.display())
        }
        Ok(None) => {
            // What only Ollama could have says so.
            if let (Name::Ollama { .. }, Err(error)) = (name, hub::on_the_hub(name, hub::Fit::default())) {
                return error.into();
            }
            let what =
                format!("{name} is not in {}: `backstop list` shows what is here", settings.cache.display());
            Error::Hub { fault: HubFault::Absent, what }.into()
        }
        Err(error) => error.into(),
    }
}

/// The repository of a short name's model that is here, and the variant; all of one where a download of it was begun, and nothing else
/// is there.
fn of_short(
    short: &str,
    variant: Option<&str>,
    cache: &Cache,
) -> anyhow::Result<Option<(hub::RepositoryId, Option<String>)>> {
    let Ok((table, variant)) = hub::meant(short, variant) else { return Ok(None) };
    let whole: HashSet<hub::RepositoryId> =
        cache.list()?.into_iter().filter(|cached| cached.whole).map(|cached| cached.id).collect();
    let mut begun = None;
    for of in table.variants.iter().filter(|of| variant.as_deref().is_none_or(|variant| of.is(variant))) {
        let (id, within) = (of.id()?, of.within().map(str::to_owned));
        if cache.find(&id, None, of.within()).is_some() {
            return Ok(Some((id, within)));
        }
        if begun.is_none() && cache.holds(&id) && !whole.contains(&id) {
            begun = Some((id, None));
        }
    }
    Ok(begun)
}
