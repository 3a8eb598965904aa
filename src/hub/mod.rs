//! From a name to files: what is here is found, and what is not is downloaded. It knows files and no models.
//!
//! Models lie in the Hugging Face cache, as Python's `huggingface_hub` lays it out: what mlx-lm or transformers have
//! downloaded is found, and nothing is downloaded twice. LM Studio's and Ollama's models are found, too, and not touched.
//!
//! ```no_run
//! use backstop::hub::{self, Cache, Client, Fit, Name, Plan, Settings};
//! use backstop::Model;
//!
//! let settings = Settings::from_env()?;
//! let name = Name::parse("Qwen/Qwen3-0.6B")?;
//! let path = match hub::find(&name, &settings, Fit::default())? {
//!     Some(path) => path,
//!     None => {
//!         let (client, cache) = (Client::new(&settings)?, Cache::new(&settings.cache));
//!         let plan = hub::plan(&client, &name, Fit::default())?.expect("nobody stopped it");
//!         plan.download(&client, &cache, &mut |progress| {
//!             eprintln!("{} of {} bytes", progress.done, progress.total);
//!             true
//!         })?
//!         .expect("nobody stopped it")
//!     }
//! };
//! let model = Model::load(&path)?;
//! # Ok::<(), backstop::Error>(())
//! ```

mod address;
mod cache;
mod choose;
mod client;
mod download;
mod fit;
mod folder;
mod foreign;
mod listing;
mod name;
mod origin;
mod parts;
mod patience;
mod pull;
mod settings;
mod short;

use std::path::{Path, PathBuf};

use crate::error::{Error, HubFault, Result};
pub use address::without_credentials;
pub use cache::{Cache, Cached, Found, Removed};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use choose::{Entry, all as all_choices, choose as choose_files};
pub use choose::{Form, TooLarge};
pub use client::Client;
pub use download::Stage;
pub use fit::Fit;
pub use folder::{InFolder, folder};
pub use foreign::{Foreign, foreign};
pub use listing::{FileHash, Listing, RemoteFile};
pub use name::{Name, RepositoryId};
pub use origin::Origin;
pub use pull::{Plan, Progress, free_space};
pub use settings::Settings;
pub use short::{ShortForm, ShortName, ShortVariant, meant, short_names};

/// What a name stands for on this machine, without asking anybody: a path as it is, else as [`find_model`].
///
/// # Errors
/// [`Error::Hub`] for a short name that is none.
pub fn find(name: &Name, settings: &Settings, fit: Fit) -> Result<Option<PathBuf>> {
    match name {
        Name::Path(path) => Ok(Some(path.clone())),
        _ => Ok(find_model(name, settings, fit)?.map(|found| found.path)),
    }
}

/// The model of the cache, of LM Studio or of Ollama that a name stands for: of several variants one that fits, else the one that needs the
/// least. Nothing for a path, and where it would have to be downloaded.
///
/// # Errors
/// [`Error::Hub`] for a short name that is none.
pub fn find_model(name: &Name, settings: &Settings, fit: Fit) -> Result<Option<Found>> {
    let cache = Cache::new(&settings.cache);
    match name {
        Name::Path(_) => Ok(None),
        Name::Repository { id, revision, variant } => {
            let found = cache.find_fitting(id, revision.as_deref(), variant.as_deref(), fit);
            if found.is_some() || revision.is_some() {
                return Ok(found);
            }
            Ok(of_others(settings, id.as_str(), variant.as_deref()))
        }
        Name::Ollama { name, tag } => Ok(of_others(settings, name, Some(tag))),
        Name::Short { name, variant } => {
            // Who has it in Ollama may have a name that the table does not.
            let others = || of_others(settings, name, variant.as_deref());
            let (short, variant) = match short::meant(name, variant.as_deref()) {
                Ok(meant) => meant,
                Err(error) => return others().map(Some).ok_or(error),
            };
            let all = match short::in_order(short, variant.as_deref(), fit) {
                Ok(all) => all,
                Err(error) => return others().map(Some).ok_or(error),
            };
            for of in all {
                let id = of.id()?;
                let here = cache.find_fitting(&id, None, of.within(), fit);
                if let Some(found) = here.or_else(|| of_others(settings, id.as_str(), of.within())) {
                    return Ok(Some(found));
                }
            }
            Ok(others())
        }
    }
}

/// The files in a model's directory that the model needs, by their paths within, in order: what would be downloaded of it.
pub fn needed(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    cache::walk(folder, "", 2, &mut |path, bytes| files.push((path.to_owned(), bytes)));
    files.sort();
    let entries: Vec<_> = files.iter().map(|(path, bytes)| choose::Entry { path, bytes: *bytes }).collect();
    let choices = choose::all(&entries).into_iter();
    let mut needed =
        choices.filter(|choice| choice.form == Form::Safetensors).flat_map(|choice| choice.files);
    let mut needed: Vec<String> = needed.by_ref().map(|at| files[at].0.clone()).collect();
    needed.sort();
    needed.dedup();
    needed
}

fn of_others(settings: &Settings, name: &str, variant: Option<&str>) -> Option<Found> {
    let all = foreign(settings);
    let of = foreign::find(&all, name, variant)?;
    Some(Found { path: of.path.clone(), bytes: of.bytes, form: of.form.clone(), origin: of.origin })
}

/// The repository and variant that a name stands for on the hub: of a short name what fits and runs best.
///
/// # Errors
/// [`Error::Hub`] for a path, a name of Ollama's, a short name that is none, and where nothing fits.
pub fn on_the_hub(name: &Name, fit: Fit) -> Result<(RepositoryId, Option<String>, Option<String>)> {
    match name {
        Name::Path(path) => {
            let what = format!(
                "{} is a path, and no name that the hub knows: expected org/name, or a short name",
                path.display()
            );
            Err(Error::hub(HubFault::Name, what))
        }
        Name::Ollama { .. } => {
            let what = format!(
                "{name} is not on this machine, and a name of Ollama's: `ollama pull {name}` downloads it"
            );
            Err(Error::hub(HubFault::Absent, what))
        }
        Name::Repository { id, revision, variant } => Ok((id.clone(), revision.clone(), variant.clone())),
        Name::Short { name, variant } => {
            let (short, variant) = short::meant(name, variant.as_deref())?;
            let (best, _) = short::best(short, variant.as_deref(), fit)?;
            Ok((best.id()?, None, best.within().map(str::to_owned)))
        }
    }
}

/// What is to be downloaded for a name; nothing where the client was stopped.
///
/// # Errors
/// As [`on_the_hub`], and [`Plan::make`].
pub fn plan(client: &Client, name: &Name, fit: Fit) -> Result<Option<Plan>> {
    let (id, revision, variant) = on_the_hub(name, fit)?;
    let passed = match name {
        Name::Short { name, variant } => {
            let (short, variant) = short::meant(name, variant.as_deref())?;
            short::best(short, variant.as_deref(), fit)?.1
        }
        _ => None,
    };
    let plan = Plan::make(client, &id, revision.as_deref(), variant.as_deref(), fit)?;
    Ok(plan.map(|mut plan| {
        plan.passed = passed.or(plan.passed);
        plan
    }))
}
