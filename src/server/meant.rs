//! What the `model` of a request means: a model, and an adapter of it.

use axum::http::StatusCode;

use super::app::App;
use super::failure::{Dialect, Failure};
use crate::error::Result;
use crate::model::Model;

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
        match self.meant_exactly(called, dialect) {
            Some(meant) => Ok(meant),
            None => Ok(Meant { name: self.find(called, dialect)?, adapter: None }),
        }
    }

    /// As [`Self::meant`], by a name that is a model's own, or begins with one.
    pub(super) fn meant_exactly(&self, called: Option<&str>, dialect: Dialect) -> Option<Meant> {
        if let Some(name) = self.named(called?, dialect) {
            return Some(Meant { name, adapter: None });
        }
        let (base, adapter) = called?.rsplit_once(':')?;
        Some(Meant { name: self.named(base, dialect)?, adapter: Some(adapter.to_owned()) })
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
