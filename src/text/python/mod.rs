//! What templates can tell of Python: how values are written, operators, methods, and Jinja2's filters and tests, where
//! minijinja has them otherwise. What they make is bounded as everything is ([`super::bounded`]).

mod filters;
mod format;
mod methods;
mod ops;
mod repr;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Value};

pub(super) use methods::method;
pub(super) use repr::write_str;

use super::budget::{Budget, Limited, refuse};

// Names that no template can write.
pub(super) const ADD: &str = "\u{1}add";
pub(super) const REM: &str = "\u{1}rem";
pub(super) const SLICE: &str = "\u{1}slice of";
pub(super) const ITERABLE: &str = "\u{1}iterable";
pub(super) const LT: &str = "\u{1}lt";
pub(super) const LTE: &str = "\u{1}lte";
pub(super) const GT: &str = "\u{1}gt";
pub(super) const GTE: &str = "\u{1}gte";

/// A text in the making, of at most 8 MiB.
fn written(write: impl FnOnce(&mut Limited) -> fmt::Result) -> Result<String, Error> {
    let mut out = Limited(String::new());
    write(&mut out).map_err(|_| refuse("the template made too large a string"))?;
    Ok(out.0)
}

/// As markupsafe escapes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Adds the functions that stand for instructions, filters and tests. What no check of a value follows looks at the clock
/// itself.
pub(super) fn install(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    env.add_function(ADD, |a: Value, b: Value| ops::add(&a, &b));
    env.add_function(REM, |a: Value, b: Value| match a.kind() {
        ValueKind::String => format::percent(&a, &b),
        _ => ops::remainder(&a, &b),
    });
    env.add_function(SLICE, |value: Value, start: Value, stop: Value, step: Value| {
        ops::slice(&value, &start, &stop, &step)
    });
    let b = budget.clone();
    env.add_function(ITERABLE, move |value: Value| {
        b.time()?;
        ops::iterable(&value)
    });
    let holds: [fn(Ordering) -> bool; 4] =
        [Ordering::is_lt, Ordering::is_le, Ordering::is_gt, Ordering::is_ge];
    for (name, holds) in [LT, LTE, GT, GTE].into_iter().zip(holds) {
        let budget = budget.clone();
        env.add_function(name, move |a: Value, b: Value| {
            budget.time()?;
            ops::ordering(&a, &b).map(holds)
        });
    }
    filters::install(env);
}
