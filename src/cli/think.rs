//! How much a model is to think, as it is typed, and as chat templates know it.

use backstop::text::{effort, thinking};
use serde_json::{Map, Value};

/// Reads `on`, `off`, or how much.
///
/// # Errors
/// What is expected.
pub fn think(value: &str) -> Result<String, String> {
    match value {
        "true" | "yes" => Ok("on".to_owned()),
        "false" | "no" | "none" => Ok("off".to_owned()),
        "on" | "off" | "minimal" | "low" | "medium" | "high" => Ok(value.to_owned()),
        _ => Err("expected on, off, minimal, low, medium or high".to_owned()),
    }
}

/// The variables of the template that say it; none where nobody does.
pub fn variables(think: Option<&str>) -> Map<String, Value> {
    let mut variables = Map::new();
    match think {
        None => {}
        Some("on") => thinking(true, &mut variables),
        Some("off") => effort("none", &mut variables),
        Some(much) => effort(much, &mut variables),
    }
    variables
}
