//! What a request says of texts that are too long, which are refused where it says nothing: TEI's and Jina's `truncate`, Cohere's words for
//! it, and vLLM's `truncate_prompt_tokens`.

use serde_json::Value;

use super::failure::Failure;
use super::json::{Fields, shown};
use crate::model::Model;

/// The tokens that a text is cut to, where it is.
pub(crate) fn most_tokens(fields: &mut Fields, model: &Model) -> Result<Option<usize>, Failure> {
    const MOST: &str = "truncate_prompt_tokens";
    const ASKED: &str = "truncate";
    let longest = model.cut_length();
    let asked = match fields.take(ASKED) {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(Value::String(word)) if word.eq_ignore_ascii_case("none") => false,
        Some(Value::String(word)) if word.eq_ignore_ascii_case("end") => true,
        Some(other) => {
            let what = format!(
                "expected true, false, NONE or END (a text is cut at its end), got {}",
                shown(&other)
            );
            return Err(fields.wrong(ASKED, what));
        }
    };
    const SIDE: &str = "truncation_direction";
    if let Some(side) = fields.string(SIDE)?.filter(|side| !side.eq_ignore_ascii_case("right")) {
        let what = format!("expected Right (a text is cut at its end), got {}", crate::json::quote(&side));
        return Err(fields.wrong(SIDE, what));
    }
    // As much as the model takes.
    if fields.peek(MOST).is_some_and(|value| value.as_i64() == Some(-1)) {
        fields.take(MOST);
        return Ok(Some(longest));
    }
    let given = fields.whole(MOST, 1, model.info().context as u64)?.map(|most| most as usize);
    Ok(given.or(asked.then_some(longest)))
}
