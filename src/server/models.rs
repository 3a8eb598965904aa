//! `/v1/models`: what there is, in the shapes of OpenAI's and Anthropic's APIs at once, and what is loaded of it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::adapters;
use super::app::App;
use super::chosen;
use super::failure::{Dialect, Failure, json_body, thread_failed};
use super::meant::Meant;
use super::request::{Reply, fields};
use super::store::Caller;
use crate::error::Error;
use crate::model::{AdapterInfo, Model};
use crate::models::{Keep, ModelStatus};

/// How long an answer waits until a model is gone that nobody uses.
const GONE: Duration = Duration::from_secs(10);

/// A model by one of its names.
fn entry(app: &App, status: &ModelStatus, name: &str) -> Value {
    let described = app.described(status);
    let context = described.as_ref().map(|described| described.context);
    let mut entry = json!({
        "id": name,
        // Of another name of a model, its own.
        "root": status.name,
        "object": "model",
        "created": app.started,
        "owned_by": "backstop",
        "type": "model",
        "display_name": name,
        // Unknown, as Anthropic's API puts it.
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": context,
        "context_length": context,
        "backend": status.model.as_ref().map(|model| model.engine().backend()),
        "state": status.state.name(),
        "size": status.size,
        "memory": status.memory,
        "capabilities": described.as_ref().map(|described| &described.capabilities),
        "defaults": described.as_ref().map(|described| described.defaults()),
        "expires_in": status.expires_in.map(|time| time.as_secs_f64().ceil()),
    });
    if let Some(model) = &status.model
        && let Some(adapter) = adapter_of(status, model, name)
    {
        entry["root"] = name.into();
        entry["parent"] = status.name.as_str().into();
        entry["adapter"] = adapters::entry(&adapter);
    }
    if let Some(reason) = &status.reason {
        entry["reason"] = reason.as_str().into();
    }
    entry
}

/// The adapter of a loaded model that goes by `name`, where that is none of the model's own.
fn adapter_of(status: &ModelStatus, model: &Model, name: &str) -> Option<AdapterInfo> {
    if status.name == name || status.aliases.iter().any(|alias| alias == name) {
        return None;
    }
    let (_, adapter) = name.rsplit_once(':')?;
    model.adapters().into_iter().find(|info| info.name == adapter)
}

/// The state of the model that goes by `name`, which is one of its names, or an adapter's.
fn status(app: &App, name: &str) -> Result<ModelStatus, Failure> {
    let Meant { name: called, adapter } = app.meant(Some(name), Dialect::OpenAi)?;
    let mut all = app.models.list().into_iter();
    let status = all.find(|status| status.name == called).ok_or_else(|| Failure::bad("the model is gone"))?;
    match (&status.model, adapter) {
        (Some(model), Some(adapter)) => _ = app.adapted(model, Some(&adapter), Some(name))?,
        (None, Some(_)) => _ = app.find(Some(name), Dialect::OpenAi)?,
        (_, None) => {}
    }
    Ok(status)
}

/// `GET /v1/models/NAME`
pub(crate) async fn one(State(app): State<Arc<App>>, name: Result<Path<String>, PathRejection>) -> Reply {
    let Path(name) = name.map_err(|error| Failure::bad(error.body_text()))?;
    app.look_for(Some(&name), Dialect::OpenAi).await;
    let status = status(&app, &name)?;
    // Of one that cannot be described, what is known.
    let _ = app.describe(&status).await;
    Ok(json_body(&entry(&app, &status, &name)))
}

/// `GET /v1/models`
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    let mut models = Vec::new();
    for status in app.listed().await {
        let aliases = status.aliases.iter().filter(|name| *name != "*");
        models.extend(std::iter::once(&status.name).chain(aliases).map(|name| entry(&app, &status, name)));
        let adapters = status.model.iter().flat_map(Model::adapters);
        models.extend(
            adapters.map(|adapter| entry(&app, &status, &format!("{}:{}", status.name, adapter.name))),
        );
    }
    let (first, last) = (models.first().map(|m| m["id"].clone()), models.last().map(|m| m["id"].clone()));
    json_body(&json!({
        "object": "list", "data": models, "has_more": false, "first_id": first, "last_id": last,
    }))
}

/// The name in `{"model": NAME}`, the model's own, and how long it is to stay.
async fn named(app: &Arc<App>, request: Request) -> Result<(String, String, Keep), Failure> {
    let mut fields = fields(app, request).await?;
    let keep = chosen::keep(&mut fields)?;
    let name = fields.string("model")?;
    let name = fields.required("model", name)?;
    fields.finish()?;
    app.look_for(Some(&name), Dialect::OpenAi).await;
    let own = app.find(Some(&name), Dialect::OpenAi)?;
    Ok((name, own, keep))
}

/// `POST /v1/models/load`: `{"model": NAME}`; the answer comes when it is loaded.
pub(crate) async fn load(State(app): State<Arc<App>>, request: Request) -> Reply {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    let (name, own, keep) = named(&app, request).await?;
    let lease = match app.models.lease(&own, keep) {
        Some(lease) => lease,
        None => chosen::lease(&app, &own, keep, &caller).await?,
    };
    let reply = json_body(&entry(&app, &status(&app, &name)?, &name));
    drop(lease);
    Ok(reply)
}

/// `POST /v1/models/unload`: `{"model": NAME}`; one that answers somebody is unloaded when it has.
pub(crate) async fn unload(State(app): State<Arc<App>>, request: Request) -> Reply {
    let (name, model, _) = named(&app, request).await?;
    let unloads = Arc::clone(&app);
    let unloaded = tokio::task::spawn_blocking(move || {
        unloads.models.unload(&model)?;
        unloads.models.wait_unloaded(&model, GONE);
        Ok::<_, Error>(())
    });
    unloaded.await.map_err(|_| thread_failed())??;
    Ok(json_body(&entry(&app, &status(&app, &name)?, &name)))
}
