//! A tool that a model may call.

use serde_json::Value as Json;

use crate::error::{Error, Result};

/// A tool as the grammar of its calls needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments; none where any object will do.
    pub parameters: Option<Json>,
}

impl Tool {
    /// Reads a tool.
    ///
    /// # Errors
    /// [`Error::Option`] for what is no function with a name of 1 to 128 letters, digits, `_`, `-` and `.`.
    pub fn read(tool: &Json) -> Result<Self> {
        let function = &tool["function"];
        let bad = |got: &Json| Error::Option {
            option: "tools",
            got: got.to_string().chars().take(100).collect(),
            expected: "{\"type\": \"function\", \"function\": {\"name\": of 1 to 128 letters, digits, _, - and ., \"parameters\": a JSON schema}}",
        };
        if !function.is_object() || tool.get("type").is_some_and(|kind| kind != "function") {
            return Err(bad(tool));
        }
        let good = |name: &&str| {
            (1..=128).contains(&name.len())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        };
        let Some(name) = function["name"].as_str().filter(good) else { return Err(bad(&function["name"])) };
        let parameters = function.get("parameters").filter(|value| !value.is_null());
        if parameters.is_some_and(|value| !value.is_object()) {
            return Err(bad(&function["parameters"]));
        }
        Ok(Self { name: name.to_owned(), parameters: parameters.cloned() })
    }

    /// The names of arguments.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &str> {
        let properties =
            self.parameters.as_ref().and_then(|parameters| parameters.get("properties")?.as_object());
        properties.into_iter().flatten().map(|(name, _)| name.as_str())
    }

    /// The schema of an argument.
    pub(super) fn argument(&self, key: &str) -> Option<&Json> {
        self.parameters.as_ref()?.get("properties")?.get(key)
    }
}
