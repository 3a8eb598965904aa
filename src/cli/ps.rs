//! `backstop ps` and `backstop stop`: what a running server holds, and that it holds a model no longer.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use backstop::backend::select::Bytes;
use serde_json::{Value, json};

use super::args::{PsArgs, ServerArgs, StopArgs};
use super::stream::print;
use super::summary::aligned;
use super::{Usage, term};

/// Bytes of an answer that are read at most.
const MOST: u64 = 16 << 20;

pub fn ps(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let (url, answer) = ask(&args.server, "/v1/models", None)?;
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
            text("backend").or_else(|| text("reason").map(|why| cut(&why))).unwrap_or_default(),
        ]);
    }
    if lines.len() == 1 {
        term::note(format_args!("no model is loaded: --all shows those that may be asked for"));
        return Ok(ExitCode::SUCCESS);
    }
    print(&aligned(&lines, 2))?;
    Ok(ExitCode::SUCCESS)
}

/// As much of a reason as a column has room for; --json has all of it.
fn cut(why: &str) -> String {
    const MOST: usize = 72;
    match why.char_indices().nth(MOST) {
        None => why.to_owned(),
        Some((end, _)) => format!("{}…", &why[..end]),
    }
}

pub fn stop(args: &StopArgs) -> anyhow::Result<ExitCode> {
    let (_, answer) = ask(&args.server, "/v1/models/unload", Some(&json!({ "model": args.name })))?;
    let name = answer["id"].as_str().unwrap_or(&args.name);
    let what = match answer["state"].as_str() {
        Some("unloaded") => "is unloaded",
        Some("loading") => "is being loaded, and is unloaded once nobody waits for it",
        _ => "still answers, and is unloaded when it has",
    };
    term::note(format_args!("{} {what}", term::one_line(name)));
    Ok(ExitCode::SUCCESS)
}

/// What the server answers, and where it was asked.
fn ask(server: &ServerArgs, route: &str, body: Option<&Value>) -> anyhow::Result<(String, Value)> {
    let here = || format!("http://127.0.0.1:{}", server.port);
    let url = server.url.clone().unwrap_or_else(here);
    if !url.starts_with("http://") {
        let what = format!("--url is {url}, expected an address such as http://127.0.0.1:8080");
        return Err(Usage(what).into());
    }
    let url = format!("{}{route}", url.trim_end_matches('/'));
    let of_environment = || std::env::var("BACKSTOP_API_KEY").ok().filter(|key| !key.is_empty());
    let key = server.api_key.clone().or_else(of_environment);
    let config = ureq::Agent::config_builder()
        // An unload waits for the model's memory.
        .timeout_global(Some(Duration::from_secs(if body.is_some() { 60 } else { 10 })))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .build();
    let agent = ureq::Agent::new_with_config(config);
    let key = key.map(|key| format!("Bearer {key}")).into_iter();
    let what = || {
        format!(
            "{url}: is `backstop serve` running there? --port names another port, and --url another machine"
        )
    };
    let response = match body {
        None => key.fold(agent.get(&url), |request, key| request.header("authorization", key)).call(),
        Some(body) => {
            let request = agent.post(&url).header("content-type", "application/json");
            key.fold(request, |request, key| request.header("authorization", key)).send(body.to_string())
        }
    };
    let mut response = response.with_context(what)?;
    let text = response.body_mut().with_config().limit(MOST).read_to_string().with_context(what)?;
    let answer: Value = backstop::strict_json(&text).with_context(|| format!("{url} answers no JSON"))?;
    match (response.status().as_u16(), answer["error"]["message"].as_str()) {
        (200, _) => Ok((url, answer)),
        (401, _) => bail!("{url} asks for a key: --api-key, or BACKSTOP_API_KEY"),
        (status, Some(message)) => bail!("{url} answers {status}: {}", term::one_line(message)),
        (status, None) => bail!("{url} answers {status}"),
    }
}
