//! Adapters of the models that are served: `model: "BASE:ADAPTER"` asks for one, and routes load and unload them.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::app::App;
use super::chosen;
use super::failure::{Dialect, Failure, json_body, thread_failed};
use super::request::{Reply, fields};
use super::store::Caller;
use crate::error::{Error, Result};
use crate::model::{AdapterInfo, AdapterSource};
use crate::models::{Keep, Lease};

/// What there is to say of an adapter, beside its model.
pub(super) fn entry(info: &AdapterInfo) -> Value {
    json!({
        "name": info.name,
        "scale": info.scale,
        "kind": info.kind,
        "modules": info.modules,
        "size": info.bytes,
    })
}

/// The model that a request names for loading or unloading an adapter: the first where it names none.
async fn model(app: &Arc<App>, called: Option<String>, caller: &Caller) -> Result<Lease, Failure> {
    app.look_for(called.as_deref(), Dialect::OpenAi).await;
    let name = app.find(called.as_deref(), Dialect::OpenAi)?;
    match app.models.lease(&name, Keep::AsBefore) {
        Some(lease) => Ok(lease),
        None => chosen::lease(app, &name, Keep::AsBefore, caller).await,
    }
}

/// Where the adapter `typed` lies: no request says where on this machine anything is, but for a name in the directory that the server
/// was given.
fn place(app: &App, typed: &str) -> Result<PathBuf, Failure> {
    let Some(dir) = &app.options.adapters_dir else {
        let what =
            "no adapter is loaded over the network: start the server with --adapters-dir, or --adapter";
        return Err(Failure::new(StatusCode::FORBIDDEN, what.to_owned()));
    };
    let mut parts = Path::new(typed).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Ok(dir.join(name)),
        _ => Err(Failure::field(
            "path",
            "expected the name of a file or folder in the server's --adapters-dir",
        )),
    }
}

/// What the adapters of a model are.
fn listed(lease: &Lease) -> Response {
    let adapters: Vec<Value> = lease.model().adapters().iter().map(entry).collect();
    json_body(&json!({ "object": "list", "model": lease.name(), "data": adapters }))
}

/// `POST /v1/adapters/load`: `{"model": BASE, "name": NAME, "path": ENTRY, "scale": SCALE}`, of the server's directory of adapters; the answer comes when it is loaded.
pub(crate) async fn load(State(app): State<Arc<App>>, request: Request) -> Reply {
    let mut fields = fields(&app, request).await?;
    let (name, path) = (fields.string("name")?, fields.string("path")?);
    let name = fields.required("name", name)?;
    let path = place(&app, path.as_deref().unwrap_or(&name))?;
    let (scale, called) = (fields.number("scale")?.unwrap_or(1.0), fields.string("model")?);
    let caller = fields.caller().clone();
    fields.finish()?;
    let lease = model(&app, called, &caller).await?;
    let (model, source) = (lease.model().clone(), AdapterSource { name, path, scale });
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
    let called = fields.string("model")?;
    let caller = fields.caller().clone();
    fields.finish()?;
    let lease = model(&app, called, &caller).await?;
    match lease.model().unload_adapter(&name) {
        Ok(()) => Ok(listed(&lease)),
        Err(error @ Error::Task { .. }) => {
            let failure = Failure::new(StatusCode::NOT_FOUND, error.to_string());
            Err(Failure { param: Some("name".into()), ..failure })
        }
        Err(error) => Err(error.into()),
    }
}
