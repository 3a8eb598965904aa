//! The models that `serve` offers: those that were typed, those of a folder, those on this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use backstop::backend::select::{self, MemoryNeed};
use backstop::hub::{self, Cache, Client, Form, Name, Settings, Stage};
use backstop::models::{Keep, Lease, Models, ModelsOptions, Offer};
use backstop::server::{Fetch, Fetching, Look};
use backstop::weights::Access;
use backstop::{Error, HubFault, LoadOptions, LoadProgress, ModelFiles};

use super::args::ServeArgs;
use super::progress::Progress;
use super::{Loaded, Usage, bundle, here, load_options, names, pull, ranks, term, typed};

/// What the built-in model goes by.
const BUILTIN: &str = "stories";

/// The models of the command line, the first of them loaded where one was named.
pub struct Offered {
    pub models: Models,
    /// The first, and that it was loaded; kept until others may ask.
    pub first: Option<(Lease, Loaded)>,
    /// Who looks for models that others bring, where a folder or all of the machine's are offered, and for other names.
    pub look: Arc<dyn Look>,
}

/// Where a model is, what it goes by, and how large it is.
struct Found {
    name: Option<String>,
    /// What was typed.
    typed: Option<String>,
    path: Option<PathBuf>,
    bytes: Option<u64>,
}

/// Offers what was typed.
///
/// # Errors
/// A model that is not here, two of one name, and a first one that cannot be loaded.
pub fn offer(args: &ServeArgs, known: &Known) -> anyhow::Result<Offered> {
    let models = Models::new(ModelsOptions {
        memory: args.several.memory,
        threads: args.session.threads,
        idle_unload: args.several.idle_unload.0,
    })?;
    let mut found = typed_models(args)?;
    let named = !found.is_empty();
    let bundled = bundle::own()?;
    // What is said of one model is not said of all.
    let of_one = !(args.alias.is_empty() && args.model.adapter.is_empty())
        || args.session.draft.is_some()
        || args.session.chat_template.is_some();
    let nothing = !named && args.several.models_dir.is_none() && !args.several.all;
    let bare = nothing && bundled.is_none() && !of_one;
    if nothing && bundled.is_none() && of_one && here().is_ok_and(|here| !here.is_empty()) {
        let what = "--alias, --adapter, --draft and --chat-template are of one model";
        term::note(format_args!("note: {what}: where none is named, the built-in one alone is served"));
    }
    let shelves = Shelves {
        dir: args.several.models_dir.clone(),
        all: args.several.all || bare,
        access: access(args),
        options: options(args)?,
        known: Arc::clone(known),
        fit: pull::fit(args.model.backend, args.several.memory),
    };
    let mut first = named || nothing;
    match shelves.found() {
        Ok(more) => {
            // The built-in model is loaded where there is no other.
            first &= !bare || more.is_empty();
            found.extend(more);
        }
        Err(error) if bare => {
            term::note(format_args!("warning: models on this machine are not offered: {error:#}"));
        }
        Err(error) => return Err(error),
    }
    match &args.several.models_dir {
        Some(dir) if found.is_empty() => bail!("{}: no model lies in it, nor in its folders", dir.display()),
        None if found.is_empty() && args.several.all => {
            bail!("no models are on this machine: `backstop pull NAME` downloads one");
        }
        None if found.is_empty() || bare => {
            let path = bundled.map(|(program, bundle)| bundle::whole(&program, &bundle)).transpose()?;
            found.push(Found { name: None, typed: None, path, bytes: None });
        }
        _ => {}
    }
    if shelves.options.draft.is_some()
        && (found.len() > 1 || args.several.models_dir.is_some() || args.several.all)
    {
        return Err(Usage("--draft guesses for one model: serve that one alone".to_owned()).into());
    }
    let mut offers = shelves.named_apart(found)?;
    if bare && let Some(at) = offers.iter().position(|offer| converses(offer).unwrap_or(false)) {
        // Who names no model wants to talk. The built-in one always can.
        offers[..=at].rotate_right(1);
    }
    if !first {
        // What no model could run on is known at the start, too.
        select::select(args.model.backend, &MemoryNeed { weights: 0, kv: 0, activations: 0 })?;
    }
    alias(&mut offers, &args.alias)?;
    if !args.model.adapter.is_empty() && !first {
        return Err(Usage("--adapter is for a model that is named".to_owned()).into());
    }
    let progress = LoadProgress::default();
    if let Some(first) = offers.first_mut() {
        first.options.adapters = args.model.adapter.clone();
        first.options.progress = progress.clone();
    }
    offers.into_iter().try_for_each(|offer| models.offer(offer))?;
    let first = if first { Some(load_first(&models, &progress)?) } else { None };
    Ok(Offered { models, first, look: Arc::new(shelves) })
}

/// Files of models that are offered, and the names that they are offered by; none where another has that name.
pub type Known = Arc<parking_lot::Mutex<HashMap<PathBuf, Option<String>>>>;

/// How long the files of a model that came are left alone: somebody may still copy them.
const SETTLED: Duration = Duration::from_secs(2);

/// Where models are that may come and go, and how they are offered.
#[derive(Debug)]
struct Shelves {
    dir: Option<PathBuf>,
    /// Whether those of the machine are offered.
    all: bool,
    access: Access,
    options: LoadOptions,
    known: Known,
    /// What is taken of several variants that a name may mean.
    fit: hub::Fit,
}

impl Shelves {
    /// What is there now.
    fn found(&self) -> anyhow::Result<Vec<Found>> {
        let mut found = Vec::new();
        if let Some(dir) = &self.dir {
            found.extend(hub::folder(dir)?.into_iter().map(|model| Found {
                name: Some(model.name),
                typed: None,
                path: Some(model.path),
                bytes: Some(model.bytes),
            }));
        }
        if self.all {
            found.extend(here()?);
        }
        Ok(found)
    }

    /// The models under names of their own, each once.
    fn named_apart(&self, found: Vec<Found>) -> anyhow::Result<Vec<Offer>> {
        let mut offers: Vec<Offer> = Vec::new();
        let mut known = self.known.lock();
        for Found { name, typed, path, bytes } in found {
            // The same files by another path are one model.
            let canonical = path.as_ref().and_then(|path| path.canonicalize().ok());
            if canonical.as_ref().is_some_and(|canonical| known.contains_key(canonical)) {
                continue;
            }
            let open = open(path, self.access);
            let taken =
                |name: &str| offers.iter().any(|of| of.name == name || of.aliases.iter().any(|a| a == name));
            // What the files call it, and what was typed where another is called so.
            let own = match name {
                Some(name) => name,
                None => open()?.name(),
            };
            let own = if own.starts_with("stories (") { BUILTIN.to_owned() } else { own };
            let name = match &typed {
                _ if !taken(&own) && own != "*" => own,
                Some(typed) if !taken(typed) => typed.clone(),
                Some(typed) => {
                    return Err(Usage(format!("{typed}: another model is called {own}, and so typed")).into());
                }
                None => {
                    term::note(format_args!("note: {own} is not offered: another model is called so"));
                    known.extend(canonical.map(|canonical| (canonical, None)));
                    continue;
                }
            };
            known.extend(canonical.map(|canonical| (canonical, Some(name.clone()))));
            let alias = typed.as_ref().and_then(|typed| names::of(Path::new(typed)));
            let aliases = alias.into_iter().filter(|alias| *alias != name && !taken(alias)).collect();
            offers.push(Offer { name, aliases, size: bytes, open, options: self.options.clone() });
        }
        Ok(offers)
    }
}

/// Whether a model answers messages, by its files.
fn converses(offer: &Offer) -> backstop::Result<bool> {
    let files = (offer.open)()?;
    let config = files.config();
    Ok(!config.bidirectional
        && !config.headless
        && files.tokenizer()?.is_some()
        && files.template_as(None, None)?.is_some())
}

impl Look for Shelves {
    fn stands_for(&self, called: &str) -> Option<String> {
        let known = |path: &Path| self.known.lock().get(&path.canonicalize().ok()?)?.clone();
        let of = |called: &str| {
            let name = Name::parse(called).ok()?;
            let found = hub::find_model(&name, &Settings::from_env().ok()?, self.fit).ok()??;
            known(&found.path)
        };
        // Ollama's names have no case.
        let lower = called.to_lowercase();
        let same = |name: &&String| name.eq_ignore_ascii_case(called);
        of(called).or_else(|| of(&lower)).or_else(|| self.known.lock().values().flatten().find(same).cloned())
    }

    fn is_all(&self) -> bool {
        self.all
    }

    fn look(&self) -> Vec<Offer> {
        // What is downloaded has a file's name once that is whole. Of a directory more files may come, and a folder may be copied to.
        let grows =
            |path: &&Path| path.is_dir() || self.dir.as_ref().is_some_and(|dir| path.starts_with(dir));
        let settled = |found: &Found| found.path.as_deref().filter(grows).is_none_or(is_settled);
        let found = self.found().map(|found| found.into_iter().filter(settled).collect());
        let offers = found.and_then(|found| self.named_apart(found));
        offers.unwrap_or_else(|error| {
            tracing::warn!(%error, "models that came since the start cannot be looked for");
            Vec::new()
        })
    }
}

/// Whether neither a file nor what lies in a directory was written to in the last moment.
fn is_settled(path: &Path) -> bool {
    let within = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let written = within.chain([path.to_owned()]).filter_map(|path| path.metadata().ok()?.modified().ok());
    // A time to come is a clock that was set.
    written.max().and_then(|last| last.elapsed().ok()).is_none_or(|since| since >= SETTLED)
}

/// Gives the first model further names.
fn alias(offers: &mut [Offer], names: &[String]) -> anyhow::Result<()> {
    let Some((first, others)) = offers.split_first_mut() else { return Ok(()) };
    for name in names {
        if others.iter().any(|other| other.name == *name || other.aliases.contains(name)) {
            return Err(Usage(format!("--alias {name} is the name of another model")).into());
        }
        if first.name != *name && !first.aliases.contains(name) {
            first.aliases.push(name.clone());
        }
    }
    Ok(())
}

/// Downloads models for requests.
#[derive(Debug)]
struct Hub {
    settings: Settings,
    fit: hub::Fit,
    access: Access,
    options: LoadOptions,
    known: Known,
    /// One download at a time.
    turn: parking_lot::Mutex<()>,
}

/// Who downloads for requests, where `--pull` lets them.
///
/// # Errors
/// Settings of the environment that are none.
pub fn fetch(args: &ServeArgs, known: &Known) -> anyhow::Result<Option<Arc<dyn Fetch>>> {
    if !args.model.fetch.pull {
        return Ok(None);
    }
    let settings = pull::settings(args.model.fetch.token.as_deref())?;
    let fit = pull::fit(args.model.backend, args.several.memory);
    let turn = parking_lot::Mutex::default();
    Ok(Some(Arc::new(Hub {
        settings,
        fit,
        access: access(args),
        options: options(args)?,
        known: Arc::clone(known),
        turn,
    })))
}

impl Fetch for Hub {
    fn fetch(
        &self,
        called: &str,
        tell: &mut dyn FnMut(&Fetching) -> bool,
    ) -> backstop::Result<Option<Offer>> {
        let name = Name::parse(called)?;
        if let Name::Path(path) = &name {
            let what = format!("{} is a path, and no name of a model", path.display());
            return Err(Error::Hub { fault: HubFault::Name, what });
        }
        let _turn = self.turn.lock();
        // Whoever waited may have gone.
        if !tell(&Fetching { checking: false, done: 0, total: 0 }) {
            return Ok(None);
        }
        let too_large = |bytes, form: &Form| {
            if let Some(what) = pull::too_large(bytes, form, self.fit) {
                tracing::warn!("{name}: {what}");
            }
        };
        let path = match hub::find_model(&name, &self.settings, self.fit)? {
            Some(found) => {
                too_large(found.bytes, &found.form);
                found.path
            }
            None => {
                let (client, cache) = (Client::new(&self.settings)?, Cache::new(&self.settings.cache));
                let Some(plan) = hub::plan(&client, &name, self.fit)? else { return Ok(None) };
                if let Some(why) = pull::passed(&plan, self.fit) {
                    tracing::info!("{} is taken, since {why}", pull::what(&plan));
                }
                too_large(plan.bytes(), &plan.form);
                let path = plan.download(&client, &cache, &mut |progress| {
                    let checking = progress.stage == Stage::Checking;
                    tell(&Fetching { checking, done: progress.done, total: progress.total })
                })?;
                let Some(path) = path else { return Ok(None) };
                path
            }
        };
        // Who looks for what came does not offer it once more.
        self.known.lock().extend(path.canonicalize().ok().map(|path| (path, Some(called.to_owned()))));
        let (bytes, open) = (bytes(&path), open(Some(path), self.access));
        let own = open()?.name();
        let aliases = if own == called { Vec::new() } else { vec![own] };
        Ok(Some(Offer { name: called.to_owned(), aliases, size: bytes, open, options: self.options.clone() }))
    }
}

/// The way to the weights' bytes.
fn access(args: &ServeArgs) -> Access {
    if args.model.no_mmap { Access::Read } else { Access::Map }
}

/// How each model is loaded.
fn options(args: &ServeArgs) -> anyhow::Result<LoadOptions> {
    let options = load_options(&args.model, &args.session)?;
    // Adapters are the first model's.
    let (max_sequences, adapters) = (Some(args.parallel), Vec::new());
    let ranks = ranks::ranks_of_server()?;
    Ok(LoadOptions { max_sequences, pooling: args.pooling, adapters, ranks, ..options })
}

/// Reads what a model is; without a path the built-in one.
fn open(path: Option<PathBuf>, access: Access) -> backstop::models::Open {
    match path {
        None => Arc::new(ModelFiles::builtin),
        Some(path) => Arc::new(move || ModelFiles::open_by(&path, access)),
    }
}

/// Whether what was typed means the built-in model.
pub fn is_builtin(typed: &Path) -> bool {
    typed == Path::new(BUILTIN) && !typed.exists()
}

/// The models that were typed, found or downloaded.
fn typed_models(args: &ServeArgs) -> anyhow::Result<Vec<Found>> {
    let all: Vec<&Path> = match args.model.model.as_deref() {
        Some(one) => vec![one],
        None => args.paths.iter().map(PathBuf::as_path).collect(),
    };
    let one = |text: &Path| {
        let typed = text.display().to_string();
        if is_builtin(text) {
            return Ok(Found { name: None, typed: Some(typed), path: None, bytes: None });
        }
        let path = names::path_within(text, &args.model.fetch, args.model.backend, args.several.memory)?;
        let bytes = bytes(&path);
        anyhow::Ok(Found { name: None, typed: Some(typed), path: Some(path), bytes })
    };
    all.into_iter().map(one).collect()
}

/// The models on this machine, as `backstop list` shows them.
fn here() -> anyhow::Result<Vec<Found>> {
    let found = |row: here::Row| {
        let (name, path, bytes) = (Some(row.name), Some(row.path), Some(row.bytes));
        Found { name, typed: None, path, bytes }
    };
    let rows = here::rows(&Settings::from_env()?)?;
    Ok(rows.into_iter().filter(|row| row.whole).map(found).collect())
}

/// Bytes of a model's weights, where its files are plain.
fn bytes(path: &Path) -> Option<u64> {
    if path.is_file() {
        // Of several parts the first is named.
        let parts = path.parent().and_then(|folder| hub::folder(folder).ok());
        let parts = parts.into_iter().flatten().find(|model| model.path == path);
        return parts.map(|model| model.bytes).or_else(|| Some(std::fs::metadata(path).ok()?.len()));
    }
    Some(hub::folder(path).ok()?.into_iter().map(|model| model.bytes).fold(0, u64::saturating_add))
}

/// Loads the first model, so that what is wrong with it is known at the start.
fn load_first(models: &Models, progress: &LoadProgress) -> anyhow::Result<(Lease, Loaded)> {
    let started = Instant::now();
    let Some(name) = models.find(None) else { bail!("there is no model") };
    let progress = Progress::of_load(name.clone(), progress, false);
    let lease = models.get(&name, Keep::Usual);
    drop(progress);
    let lease = lease.map_err(|error| match error {
        Error::Load { source, .. } => match &*source {
            Error::Option { option, got, expected } => {
                typed(Error::Option { option, got: got.clone(), expected })
            }
            &Error::Context { asked, trained } => typed(Error::Context { asked, trained }),
            // Its name says nothing where it is the only one.
            other => anyhow::anyhow!("{other}"),
        },
        other => other.into(),
    })?;
    let loaded = Loaded { model: lease.model().clone(), time: started.elapsed() };
    Ok((lease, loaded))
}
