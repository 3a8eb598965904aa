//! Adapters of the models that are served: `model: "BASE:ADAPTER"` asks for one, and routes load and unload them.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::app::App;
use super::chosen;
use super::failure::{Dialect, Failure, json_body, thread_failed};
use super::json::Fields;
use super::request::{Reply, fields};
use crate::error::{Error, Result};
use crate::model::{AdapterInfo, AdapterSource, Model};
use crate::models::{Keep, Lease};

/// What a request's `model` means.
pub(super) struct Meant {
    /// The model's name.
    pub name: String,
    /// The adapter's, where the name may be of one.
    pub adapter: Option<String>,
}

impl App {
    /// The model that is called so, and its adapter: a name that is a model's own is nothing else, and one that ends with a colon and a
    /// name behind a model's is an adapter's.
    ///
    /// # Errors
    /// As [`App::find`].
    pub(super) fn meant(&self, called: Option<&str>, dialect: Dialect) -> Result<Meant, Failure> {
        let (base, adapter) = called.and_then(|called| called.rsplit_once(':')).unwrap_or_default();
        match called.map(|called| self.named(called, dialect)) {
            Some(None) if let Some(name) = self.named(base, dialect) => {
                Ok(Meant { name, adapter: Some(adapter.to_owned()) })
            }
            _ => Ok(Meant { name: self.find(called, dialect)?, adapter: None }),
        }
    }

    /// A model with the adapter that was meant.
    ///
    /// # Errors
    /// 404 where it has none of that name, and no model takes any name.
    pub(super) fn adapted(
        &self,
        model: &Model,
        adapter: Option<&str>,
        called: Option<&str>,
    ) -> Result<Model, Failure> {
        let Some(adapter) = adapter else { return Ok(model.clone()) };
        match model.with_adapter(adapter) {
            Ok(model) => Ok(model),
            Err(_) if self.models.find(called).is_some() => Ok(model.clone()),
            Err(error) => {
                let failure = Failure::new(StatusCode::NOT_FOUND, error.to_string());
                Err(Failure { param: Some("model".into()), ..failure.with_code("model_not_found") })
            }
        }
    }
}

/// What there is to say of an adapter, beside its model.
pub(super) fn entry(info: &AdapterInfo) -> Value {
    json!({
        "name": info.name,
        "path": info.path.display().to_string(),
        "scale": info.scale,
        "kind": info.kind,
        "modules": info.modules,
        "size": info.bytes,
    })
}

/// The model of a request that loads or unloads an adapter: the first where it names none.
async fn model(app: &App, fields: &mut Fields) -> Result<Lease, Failure> {
    let called = fields.string("model")?;
    let name = app.find(called.as_deref(), Dialect::OpenAi)?;
    match app.models.lease(&name, Keep::AsBefore) {
        Some(lease) => Ok(lease),
        None => chosen::lease(app, &name, Keep::AsBefore).await,
    }
}

/// What the adapters of a model are.
fn listed(lease: &Lease) -> Response {
    let adapters: Vec<Value> = lease.model().adapters().iter().map(entry).collect();
    json_body(&json!({ "object": "list", "model": lease.name(), "data": adapters }))
}

/// `POST /v1/adapters/load`: `{"model": BASE, "name": NAME, "path": PATH, "scale": SCALE}`; the answer comes when it is loaded.
pub(crate) async fn load(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    let (name, path) = (fields.string("name")?, fields.string("path")?);
    let (name, path) = (fields.required("name", name)?, fields.required("path", path)?);
    let scale = fields.number("scale")?.unwrap_or(1.0);
    let lease = model(&app, &mut fields).await?;
    fields.finish()?;
    let (model, source) = (lease.model().clone(), AdapterSource { name, path: PathBuf::from(path), scale });
    let loaded = tokio::task::spawn_blocking(move || model.load_adapter(&source));
    match loaded.await.map_err(|_| thread_failed())? {
        Ok(_) => Ok(listed(&lease)),
        // The request named the files.
        Err(
            error @ (Error::Io { .. } | Error::Format { .. } | Error::Config { .. } | Error::Weight { .. }),
        ) => Err(Failure::field("path", error)),
        Err(error) => Err(error.into()),
    }
}

/// `POST /v1/adapters/unload`: `{"model": BASE, "name": NAME}`; answers that are being written with it are written to their end.
pub(crate) async fn unload(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    let name = fields.string("name")?;
    let name = fields.required("name", name)?;
    let lease = model(&app, &mut fields).await?;
    fields.finish()?;
    match lease.model().unload_adapter(&name) {
        Ok(()) => Ok(listed(&lease)),
        Err(error @ Error::Task { .. }) => {
            let failure = Failure::new(StatusCode::NOT_FOUND, error.to_string());
            Err(Failure { param: Some("name".into()), ..failure })
        }
        Err(error) => Err(error.into()),
    }
}
