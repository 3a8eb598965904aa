//! `backstop ps`: what a running server holds.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use backstop::backend::select::Bytes;
use serde_json::Value;

use super::args::PsArgs;
use super::stream::print;
use super::summary::aligned;
use super::{Usage, term};

/// Bytes of an answer that are read at most.
const MOST: u64 = 16 << 20;

pub fn ps(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let url = format!("{}/v1/models", args.url.trim_end_matches('/'));
    if !args.url.starts_with("http://") {
        let what = format!("--url is {}, expected an address such as http://127.0.0.1:8080", args.url);
        return Err(Usage(what).into());
    }
    let of_environment = || std::env::var("BACKSTOP_API_KEY").ok().filter(|key| !key.is_empty());
    let answer = ask(&url, args.api_key.clone().or_else(of_environment).as_deref())?;
    if args.json {
        // What the server sent may not steer the terminal.
        let escaped = |c: char| match c.is_control() {
            true => format!("\\u{:04x}", u32::from(c)),
            false => c.to_string(),
        };
        print(&format!("{}\n", answer.to_string().chars().map(escaped).collect::<String>()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(models) = answer["data"].as_array() else { bail!("{url} answers something else than models") };
    let mut lines =
        vec![["NAME", "STATE", "SIZE", "MEMORY", "CONTEXT", "UNTIL", "BACKEND"].map(str::to_owned)];
    for model in models.iter().filter(|model| args.all || model["state"] != "unloaded") {
        let text = |field: &str| model[field].as_str().map(term::one_line);
        let bytes =
            |field: &str| model[field].as_u64().map(|bytes| Bytes(bytes).to_string()).unwrap_or_default();
        let until = match (&model["state"], model["expires_in"].as_f64()) {
            (Value::String(state), Some(seconds)) if state == "loaded" => {
                format!("{} s unused", seconds.max(0.0).ceil())
            }
            (Value::String(state), None) if state == "loaded" => "needed".to_owned(),
            _ => String::new(),
        };
        lines.push([
            text("id").unwrap_or_default(),
            text("state").unwrap_or_else(|| "loaded".into()),
            bytes("size"),
            bytes("memory"),
            model["context_length"].as_u64().map(|tokens| tokens.to_string()).unwrap_or_default(),
            until,
            text("backend").or_else(|| text("reason")).unwrap_or_default(),
        ]);
    }
    if lines.len() == 1 {
        term::note(format_args!("no model is loaded: --all shows those that may be asked for"));
        return Ok(ExitCode::SUCCESS);
    }
    print(&aligned(&lines, 2))?;
    Ok(ExitCode::SUCCESS)
}

/// What the server answers.
fn ask(url: &str, key: Option<&str>) -> anyhow::Result<Value> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .build();
    let mut request = ureq::Agent::new_with_config(config).get(url);
    if let Some(key) = key {
        request = request.header("authorization", &format!("Bearer {key}"));
    }
    let what = || format!("{url}: is `backstop serve` running there? --url names another address");
    let mut response = request.call().with_context(what)?;
    let text = response.body_mut().with_config().limit(MOST).read_to_string().with_context(what)?;
    let answer: Value = backstop::strict_json(&text).with_context(|| format!("{url} answers no JSON"))?;
    match (response.status().as_u16(), answer["error"]["message"].as_str()) {
        (200, _) => Ok(answer),
        (401, _) => bail!("{url} asks for a key: --api-key, or BACKSTOP_API_KEY"),
        (status, Some(message)) => bail!("{url} answers {status}: {}", term::one_line(message)),
        (status, None) => bail!("{url} answers {status}"),
    }
}
