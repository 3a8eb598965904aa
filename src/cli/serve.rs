//! `backstop serve`: models over HTTP.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use backstop::backend::select::Bytes;
use backstop::models::Models;
use backstop::server::{self, ApiKey, Listener, Options, UnknownFields};
use backstop::{Error, Model};

use super::args::ServeArgs;
use super::interrupt::{End, Ends, Interruptible};
use super::offers::{self, Offered};
use super::{INTERRUPTED, Loaded, Usage, names, ranks, term};

/// How long connections that are cut off may take to notice.
const CUT_OFF: Duration = Duration::from_secs(2);

pub fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    follow(args)?;
    let known = offers::Known::default();
    let mut options = options(args, &known)?;
    // An address that cannot be had is known before a model is loaded.
    let listener = Listener::bind(&options).map_err(|error| match error {
        Error::Io { ref source, .. } if source.kind() == ErrorKind::AddrInUse => {
            let what =
                "another program listens there: --port N takes another port, --port 0 one that is free";
            anyhow::Error::from(error).context(what)
        }
        other => super::typed(other),
    })?;
    let Offered { models, first, look } = offers::offer(args, &known)?;
    options.look = Some(look);
    has_descriptors()?;
    // One thread moves the bytes of all connections and hears signals; the server answers on threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the server")?;
    runtime.block_on(async {
        let stop = signalled()?;
        match &first {
            Some((_, loaded)) => {
                super::note_unused(&args.model, &args.session, &loaded.model);
                tell(loaded);
            }
            None => {
                let first = models.find(None).unwrap_or_default();
                let what = "models are loaded when they are asked for; a request that names none is for";
                term::note(format_args!("{what} {}", term::one_line(&first)));
            }
        }
        if models.len() > 1 {
            term::note(format_args!("{} models: backstop ps --all shows them", models.len()));
        }
        let asks = match first {
            Some((_, loaded)) => Some((Asks::loaded(&loaded.model), None)),
            None => Asks::first(&models, args)?.map(|(asks, name)| (asks, Some(name))),
        };
        term::note(format_args!("listening on http://{}", listener.address()));
        if let Some((asks, name)) = asks {
            let line = to_try(asks, name.as_deref(), listener.address(), !options.api_keys.is_empty());
            term::note(format_args!("try: {line}"));
        }
        ranks::serves();
        server::serve_models(listener, models, options, stop).await?;
        anyhow::Ok(())
    })?;
    // What still runs after the drain is cut off.
    runtime.shutdown_timeout(CUT_OFF);
    if ranks::is_lost() {
        super::exit_at_once(1);
    }
    Ok(ExitCode::SUCCESS)
}

/// Of several ranks, any but the first: does what that says.
///
/// # Errors
/// Its end; models that several ranks do not serve.
fn follow(args: &ServeArgs) -> anyhow::Result<()> {
    let Some(ranks) = ranks::ranks_of_server()? else { return Ok(()) };
    let several = &args.several;
    let named = args.paths.len() + usize::from(args.model.model.is_some());
    let others = several.all || several.models_dir.is_some() || args.model.fetch.pull;
    if named != 1 || others || several.idle_unload.0.is_some() || args.adapters_dir.is_some() {
        let what = "several ranks serve one model, which has to be named and stays loaded, without adapters";
        return Err(Usage(what.to_owned()).into());
    }
    if !ranks.rank.leads() {
        // The built-in model has no path.
        let path = args.paths.first().map(PathBuf::as_path).filter(|path| !offers::is_builtin(path));
        super::load(&names::replace(&args.model, path), &args.session, true)?;
    }
    Ok(())
}

/// Says what the model is that answers, and what it answers.
fn tell(Loaded { model, time }: &Loaded) {
    let info = model.info();
    term::note(format_args!(
        "{} on {}, loaded in {:.1} s: {}",
        info.name,
        model.engine().backend(),
        time.as_secs_f64(),
        info.selection.reason
    ));
    let (context, trained) = (info.context, info.config.max_context());
    let most = if context < trained { format!(" of {trained}") } else { String::new() };
    term::note(format_args!("context: {context}{most} tokens; KV cache: up to {}", Bytes(info.kv_memory)));
    if model.tokenizer().is_err() {
        term::note(format_args!(
            "note: {} has no tokenizer: it answers /v1/completions with token ids alone; tokenizer.json beside its \
             config.json is what the other routes need",
            info.name
        ));
    } else if info.config.bidirectional {
        let ranks = if info.config.labels == Some(1) { " and /v1/rerank" } else { "" };
        term::note(format_args!("note: {} generates no text: it answers /v1/embeddings{ranks}", info.name));
    } else if info.config.headless {
        term::note(format_args!("note: {} has no output head: it answers /v1/embeddings", info.name));
    } else if !model.has_template() {
        term::note(format_args!(
            "note: {} has no chat template, so it answers /v1/completions alone: --chat-template FILE gives it one, or \
             --chat-template chatml",
            info.name
        ));
    }
}

/// What a model can be asked for.
#[derive(Clone, Copy)]
enum Asks {
    Chat,
    Text,
    /// Text by token ids, where there is no tokenizer.
    Ids,
    Vectors,
}

impl Asks {
    fn loaded(model: &Model) -> Self {
        let config = &model.info().config;
        let generates = !config.bidirectional && !config.headless;
        Self::of(generates, model.tokenizer().is_ok(), model.has_template())
    }

    fn of(generates: bool, has_tokenizer: bool, has_template: bool) -> Self {
        match (has_tokenizer, generates, has_template) {
            (false, ..) => Self::Ids,
            (_, false, _) => Self::Vectors,
            (.., true) => Self::Chat,
            (.., false) => Self::Text,
        }
    }

    /// The first of several models that generates text, or else answers anything, by its files; none where none can be read.
    ///
    /// # Errors
    /// Options that are none.
    fn first(models: &Models, args: &ServeArgs) -> anyhow::Result<Option<(Self, String)>> {
        let choice = super::load_options(&args.model, &args.session)?.chat_template;
        let of = |name: &str| -> backstop::Result<Self> {
            let files = models.files(name)?;
            let generates = !files.config().bidirectional && !files.config().headless;
            let has_template = generates && files.template_as(choice.as_ref(), None)?.is_some();
            Ok(Self::of(generates, files.tokenizer()?.is_some(), has_template))
        };
        let mut found = None;
        for status in models.list() {
            match of(&status.name) {
                Ok(Self::Vectors) if found.is_some() => {}
                Ok(Self::Vectors) => found = Some((Self::Vectors, status.name)),
                Ok(asks) => return Ok(Some((asks, status.name))),
                Err(error) => tracing::info!(model = status.name, %error, "a model cannot be read"),
            }
        }
        Ok(found)
    }
}

/// A line for a shell that asks this server for what a model does; the model has a name where there are others.
fn to_try(asks: Asks, model: Option<&str>, address: SocketAddr, needs_key: bool) -> String {
    let (route, body) = match asks {
        Asks::Ids => ("completions", r#""prompt": [1], "max_tokens": 16"#),
        Asks::Vectors => ("embeddings", r#""input": "hello""#),
        Asks::Chat => {
            let body = r#""messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 64"#;
            ("chat/completions", body)
        }
        Asks::Text => ("completions", r#""prompt": "Once upon a time", "max_tokens": 64"#),
    };
    // Within the shell's quotes.
    let model = model.map(|name| format!("\"model\": {}, ", serde_json::json!(name)).replace('\'', r"'\''"));
    let body = format!("{{{}{body}}}", model.unwrap_or_default());
    // What listens everywhere is asked here.
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let key = if needs_key { " -H \"Authorization: Bearer $BACKSTOP_API_KEY\"" } else { "" };
    let json = "-H 'Content-Type: application/json'";
    format!("curl http://{}/v1/{route} {json}{key} -d '{body}'", SocketAddr::new(host, address.port()))
}

/// Whether as many files may be opened as the server's own need; tokio takes it for granted.
fn has_descriptors() -> anyhow::Result<()> {
    /// Pairs of descriptors: a poll, its wakers, signals, and a connection or two.
    const PAIRS: usize = 8;
    let pairs: std::io::Result<Vec<_>> = (0..PAIRS).map(|_| std::os::unix::net::UnixStream::pair()).collect();
    let what = "a server opens files of its own, and one for each connection: raise what ulimit -n says";
    pairs.map(drop).context(what)
}

/// The keys of the command line, of the file and, where there are none, of the environment.
fn api_keys(args: &ServeArgs) -> anyhow::Result<Vec<ApiKey>> {
    /// Bytes of the file.
    const MOST: u64 = 1 << 20;
    let mut keys: Vec<ApiKey> = Vec::new();
    let mut add = |name: Option<&str>, key: &str, whence: &str| {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Usage(format!("{whence} takes visible ASCII characters, at least one")));
        }
        let name = name.map_or_else(|| format!("key {}", keys.len() + 1), str::to_owned);
        if keys.iter().any(|other| other.key == key || other.name == name) {
            return Err(Usage(format!("{whence} has the name or the key of {name} twice")));
        }
        keys.push(ApiKey { name, key: key.to_owned() });
        Ok(())
    };
    for key in &args.api_key {
        add(None, key, "--api-key")?;
    }
    if let Some(file) = &args.api_key_file {
        let what = || format!("--api-key-file {}", file.display());
        let mut text = String::new();
        let opened = std::fs::File::open(file).with_context(what)?;
        std::io::Read::read_to_string(&mut std::io::Read::take(opened, MOST), &mut text)
            .with_context(what)?;
        let mut has_key = false;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, key) =
                line.split_once(char::is_whitespace).map_or((None, line), |(name, key)| (Some(name), key));
            add(name, key.trim(), &what())?;
            has_key = true;
        }
        if text.len() as u64 == MOST || !has_key {
            return Err(Usage(format!("{} has no key, or over {MOST} bytes", what())).into());
        }
    }
    let of_environment = std::env::var("BACKSTOP_API_KEY").ok().filter(|key| !key.is_empty());
    if let Some(key) = of_environment.filter(|_| args.api_key.is_empty() && args.api_key_file.is_none()) {
        add(None, &key, "BACKSTOP_API_KEY")?;
    }
    Ok(keys)
}

fn options(args: &ServeArgs, known: &offers::Known) -> anyhow::Result<Options> {
    let api_keys = api_keys(args)?;
    for origin in &args.cors {
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if origin != "*" && rest.is_none_or(|rest| rest.is_empty() || rest.contains('/')) {
            let what = format!("--cors is {origin}, expected an origin such as http://localhost:3000, or *");
            return Err(Usage(what).into());
        }
    }
    Ok(Options {
        host: args.host.clone(),
        port: args.port,
        api_keys,
        adapters_dir: args.adapters_dir.clone(),
        parallel: args.parallel,
        max_queue: args.max_queue,

        cors: args.cors.clone(),
        allowed_hosts: args.allowed_host.clone(),
        body_limit: args.body_limit,
        buffer_memory: usize::try_from(args.buffer_memory).unwrap_or(usize::MAX),
        unknown_fields: match args.unknown_fields.as_str() {
            "refuse" => UnknownFields::Refuse,
            _ => UnknownFields::Warn,
        },
        max_connections: args.max_connections,
        header_timeout: args.header_timeout,
        body_timeout: args.body_timeout,
        stall_timeout: args.stall_timeout,
        drain_timeout: args.drain_timeout,
        fetch: offers::fetch(args, known)?,
        ..Options::default()
    })
}

/// Ends at Ctrl-C, SIGTERM or SIGHUP; the next Ctrl-C or SIGTERM ends the process. A terminal that closes hangs up more than once, and
/// nobody asks for haste by it.
fn signalled() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    // A download's handler stays, and would end the process: it is to leave the first signal to this one.
    // For good, since it may hear of that signal after this one has.
    std::mem::forget(Interruptible::new(|| ())?);
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot catch Ctrl-C")?;
    let mut ends = Ends::new()?;
    let (first, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(first);
        loop {
            let end = tokio::select! {
                _ = interrupts.recv() => None,
                end = ends.next() => Some(end),
            };
            match first.take() {
                Some(first) => {
                    term::note("ending, once the answers are out; Ctrl-C or SIGTERM then ends at once");
                    let _ = first.send(());
                }
                None if end == Some(End::HungUp) => {}
                None => super::exit_at_once(end.map_or(INTERRUPTED, End::code)),
            }
        }
    });
    Ok(async move {
        let _ = told.await;
    })
}
