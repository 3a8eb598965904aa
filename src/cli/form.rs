//! What the text has to be, as typed or as a file says it.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use backstop::sample::Grammar;

use super::Usage;
use super::args::FormArgs;

/// Bytes that a schema or a grammar may have, whatever it is then written as.
const MOST: u64 = 1 << 20;

/// The grammar that was asked for.
///
/// # Errors
/// A file that cannot be read, and what is no JSON.
pub fn grammar(args: &FormArgs) -> anyhow::Result<Option<Grammar>> {
    if let Some(schema) = &args.schema {
        let typed =
            schema.trim_start().starts_with(['{', '[', '"']) || matches!(schema.trim(), "true" | "false");
        let text = if typed { schema.clone() } else { read(Path::new(schema))? };
        let schema =
            backstop::strict_json(&text).map_err(|error| Usage(format!("--schema is no JSON: {error}")))?;
        return Ok(Some(Grammar::JsonSchema(schema)));
    }
    if let Some(regex) = &args.regex {
        return Ok(Some(Grammar::Regex(regex.clone())));
    }
    args.grammar.as_deref().map(|file| Ok(Grammar::Lark(read(file)?))).transpose()
}

fn read(file: &Path) -> anyhow::Result<String> {
    let what = || file.display().to_string();
    let mut text = String::new();
    // It may be a pipe, and `/dev/zero` has no end.
    let bytes = std::fs::File::open(file).with_context(what)?.take(MOST + 1).read_to_string(&mut text);
    if bytes.with_context(what)? as u64 > MOST {
        anyhow::bail!("{}: expected at most {MOST} bytes", what());
    }
    Ok(text)
}
