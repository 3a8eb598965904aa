//! A model and a text, of which either may be left out.

use super::args::ModelArgs;
use super::{bundle, names};

/// The model and the text that were typed: one by itself is the text, unless it names a model, of which a bundle has one.
pub fn model_and_text<'a>(
    args: &ModelArgs,
    first: Option<&'a str>,
    second: Option<&'a str>,
) -> (Option<&'a str>, Option<&'a str>) {
    match (first, second) {
        (named, Some(text)) => (named, Some(text)),
        (Some(one), None) if args.model.is_none() && !bundle::is_one() && names::is_model(one) => {
            (Some(one), None)
        }
        (text, None) => (None, text),
    }
}
