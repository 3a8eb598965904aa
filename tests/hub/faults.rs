//! What goes wrong on the way: each with its exact end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backstop::hub::{Cache, Client, Fit, Plan, RepositoryId, Settings};
use backstop::{Error, HubFault};

use super::served::{Action, COMMIT, Hub, etag, noise, tree};

/// Bytes of four units, which are one range.
fn small() -> Vec<u8> {
    noise(900_001, 7)
}

/// Bytes of twelve units, which are three.
fn large() -> Vec<u8> {
    noise(3_000_001, 7)
}

fn id() -> RepositoryId {
    RepositoryId::new("org/model").unwrap()
}

fn pulled(settings: &Settings) -> backstop::Result<Option<PathBuf>> {
    let client = Client::with_patience(settings, Duration::from_millis(600))?;
    let Some(plan) = Plan::make(&client, &id(), None, None, Fit::default())? else { return Ok(None) };
    plan.download(&client, &Cache::new(&settings.cache), &mut |_| true)
}

/// What the error is, and what it says.
#[track_caller]
fn refused(hub: &Hub, home: &Path, fault: HubFault, what: &str) {
    match pulled(&hub.settings(home)) {
        Err(Error::Hub { fault: is, what: said }) => {
            assert_eq!(is, fault, "{said}");
            assert!(said.contains(what), "{said}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(finals(home), Vec::<PathBuf>::new());
}

/// The blobs that are there under their own names.
fn finals(home: &Path) -> Vec<PathBuf> {
    let blobs = home.join("hub/models--org--model/blobs");
    tree(&blobs).into_keys().filter(|name| !name.to_str().unwrap().contains('.')).collect()
}

#[track_caller]
fn whole(hub: &Hub, home: &Path, bytes: &[u8]) {
    let path = pulled(&hub.settings(home)).unwrap().unwrap();
    assert!(std::fs::read(path).unwrap() == bytes);
    assert_eq!(finals(home), [PathBuf::from(etag("m.gguf", bytes))]);
    let left = std::fs::read_dir(home.join("hub/models--org--model/blobs")).unwrap().count();
    assert_eq!(left, 1);
}

fn hub_of(bytes: &[u8]) -> (Hub, tempfile::TempDir) {
    (Hub::with(&[("m.gguf", bytes)]), tempfile::tempdir().unwrap())
}

#[test]
fn connections_that_are_cut_go_on_where_they_were() {
    let (hub, home) = hub_of(&large());
    hub.rule(|seen, _| if seen.is_file() { Action::Cut(700_000) } else { Action::Serve });
    whole(&hub, home.path(), &large());
    // No byte came twice.
    assert_eq!(hub.sent(), large().len() as u64);
    let mut starts: Vec<u64> = hub.files_seen().iter().map(|seen| seen.range.unwrap().0).collect();
    starts.sort_unstable();
    let unit = 256 << 10;
    assert_eq!(starts, [0, 700_000, 4 * unit, 4 * unit + 700_000, 8 * unit, 8 * unit + 700_000]);
}

#[test]
fn a_server_without_ranges_sends_all_at_once() {
    let (hub, home) = hub_of(&large());
    let mut asked = 0;
    hub.rule(move |seen, _| {
        asked += usize::from(seen.is_file() && seen.range.is_none());
        match seen.is_file() {
            false => Action::Serve,
            // The first that asks for all is cut.
            true if seen.range.is_none() && asked == 1 => Action::Cut(1_000_000),
            true => Action::NoRanges,
        }
    });
    whole(&hub, home.path(), &large());
    assert!(hub.files_seen().iter().filter(|seen| seen.range.is_none()).count() >= 2);
}

#[test]
fn slow_bytes_are_waited_for_and_silence_is_not() {
    let (hub, home) = hub_of(&small());
    hub.rule(
        |seen, _| {
            if seen.is_file() { Action::Slow(200_000, Duration::from_millis(100)) } else { Action::Serve }
        },
    );
    let started = Instant::now();
    whole(&hub, home.path(), &small());
    assert!(started.elapsed() > Duration::from_millis(300));
    let (hub, home) = hub_of(&small());
    hub.rule(|seen, before| match seen.is_file() && before == 0 {
        true => Action::Hang(Duration::from_secs(5)),
        false => Action::Serve,
    });
    let started = Instant::now();
    whole(&hub, home.path(), &small());
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn bytes_that_drip_are_given_up() {
    let (hub, home) = hub_of(&small());
    hub.rule(|seen, _| match seen.is_file() {
        true => Action::Slow(1, Duration::from_millis(20)),
        false => Action::Serve,
    });
    let started = Instant::now();
    refused(&hub, home.path(), HubFault::Network, "6 times in a row: look after the network");
    assert!(started.elapsed() < Duration::from_secs(300), "{:?}", started.elapsed());
    assert_eq!(hub.files_seen().len(), 6);
    // A listing that comes fast enough, and does not end.
    let (hub, home) = hub_of(&small());
    let listing = hub.listing("org/model").to_string();
    hub.lists("org/model", listing + &" ".repeat(1 << 20));
    hub.rule(|_, _| Action::Slow(1000, Duration::from_millis(50)));
    let started = Instant::now();
    refused(&hub, home.path(), HubFault::Network, "the listing of its files did not come whole within 6 s");
    assert!(started.elapsed() < Duration::from_secs(300), "{:?}", started.elapsed());
    assert_eq!(hub.seen().len(), 1);
}

#[test]
fn an_error_ends_the_pauses_of_others() {
    let (hub, home) = hub_of(&large());
    hub.rule(|seen, _| match seen.range {
        Some((0, _)) => Action::Status(429, vec![("Retry-After", "60".to_owned())]),
        Some(_) => Action::ContentRange("nonsense".to_owned()),
        None => Action::Serve,
    });
    let started = Instant::now();
    refused(&hub, home.path(), HubFault::Answer, "got Content-Range \"nonsense\"");
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
}

#[test]
fn too_many_requests_are_waited_for_as_long_as_the_hub_says() {
    let (hub, home) = hub_of(&small());
    hub.rule(|_, before| match before {
        0 => Action::Status(429, vec![("Retry-After", "1".to_owned())]),
        1 => Action::Status(503, Vec::new()),
        _ => Action::Serve,
    });
    let started = Instant::now();
    whole(&hub, home.path(), &small());
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(hub.seen().len() >= 6);
}

#[test]
fn a_hub_that_never_answers_is_given_up() {
    let (hub, home) = hub_of(&small());
    hub.rule(|_, _| Action::Status(500, Vec::new()));
    refused(
        &hub,
        home.path(),
        HubFault::Network,
        "answers 500 Internal Server Error, 6 times in a row: look after the network",
    );
    assert_eq!(hub.seen().len(), 6);
}

#[test]
fn wrong_bytes_are_not_kept() {
    let (hub, home) = hub_of(&small());
    hub.rule(|seen, _| if seen.is_file() { Action::Wrong } else { Action::Serve });
    refused(&hub, home.path(), HubFault::Changed, "m.gguf is not what the hub lists: its hash is another");
    assert_eq!(tree(&home.path().join("hub/models--org--model/blobs")).len(), 0);
    hub.rule(|_, _| Action::Serve);
    whole(&hub, home.path(), &small());
}

#[test]
fn what_an_earlier_run_left_wrong_is_begun_anew_once() {
    let (hub, home) = hub_of(&small());
    // As a disk that lost power may: all units are said to be here, and are not.
    let blobs = home.path().join("hub/models--org--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let name = etag("m.gguf", &small());
    std::fs::write(blobs.join(format!("{name}.backstop-partial")), noise(small().len(), 8)).unwrap();
    std::fs::write(blobs.join(format!("{name}.backstop-parts")), "1111").unwrap();
    whole(&hub, home.path(), &small());
    assert_eq!(hub.sent(), small().len() as u64);
}

#[test]
fn sizes_that_are_others_are_refused() {
    let (hub, home) = hub_of(&small());
    hub.rule(|seen, _| if seen.is_file() { Action::NoRangesOf(5) } else { Action::Serve });
    refused(
        &hub,
        home.path(),
        HubFault::Changed,
        "m.gguf has 5 bytes where it lies, and 900001 in the hub's listing",
    );
    let wrong = HubFault::Answer;
    for (text, fault, what) in [
        ("bytes 0-99/100", HubFault::Changed, "m.gguf has 100 bytes where it lies"),
        ("bytes 5-99/900001", wrong, "asked for the bytes 0-900000, got Content-Range \"bytes 5-99/900001\""),
        ("bytes 0-99999999/*", wrong, "got Content-Range \"bytes 0-99999999/*\""),
        ("nonsense", wrong, "got Content-Range \"nonsense\""),
    ] {
        hub.rule(
            move |seen, _| if seen.is_file() { Action::ContentRange(text.to_owned()) } else { Action::Serve },
        );
        refused(&hub, home.path(), fault, what);
    }
    // What changed at the hub, which lists what was there before.
    hub.rule(|_, _| Action::Serve);
    let listing = hub.listing("org/model").to_string();
    hub.put("org/model", &[("m.gguf", &small()[1..])]);
    hub.lists("org/model", listing);
    refused(
        &hub,
        home.path(),
        HubFault::Changed,
        "has 900000 bytes where it lies, and 900001 in the hub's listing",
    );
}

#[test]
fn a_redirect_never_gets_the_token() {
    let (hub, home) = hub_of(&small());
    let other = Hub::with(&[("m.gguf", &small())]);
    let to = format!("{}/org/model/resolve/{COMMIT}/m.gguf", other.address());
    hub.rule(move |seen, _| match seen.is_file() {
        true => Action::Status(302, vec![("Location", to.clone())]),
        false => Action::Serve,
    });
    let settings = Settings { token: Some("hf_secret".to_owned()), ..hub.settings(home.path()) };
    let path = pulled(&settings).unwrap().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), small());
    assert!(hub.seen().iter().all(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret")));
    assert!(!other.seen().is_empty());
    assert!(other.seen().iter().all(|seen| seen.authorization.is_none()), "{:?}", other.seen());
    // Within the hub it goes along.
    let (hub, home) = hub_of(&small());
    hub.rule(|seen, _| match seen.is_file() && !seen.path.contains("?again") {
        true => Action::Status(307, vec![("Location", format!("{}?again", seen.path))]),
        false => Action::Serve,
    });
    let settings = Settings { token: Some("hf_secret".to_owned()), ..hub.settings(home.path()) };
    pulled(&settings).unwrap().unwrap();
    assert!(hub.seen().iter().all(|seen| seen.authorization.is_some()));
}

#[test]
fn redirects_to_nowhere_and_in_circles_are_refused() {
    for (to, what) in [
        ("file:///etc/passwd", "redirects to nowhere"),
        ("", "more than 8 redirects"),
        ("https://user@127.0.0.1/", "redirects to nowhere"),
    ] {
        let (hub, home) = hub_of(&small());
        hub.rule(move |seen, _| {
            let to = if to.is_empty() { seen.path.clone() } else { to.to_owned() };
            Action::Status(302, vec![("Location", to)])
        });
        refused(&hub, home.path(), HubFault::Answer, what);
    }
    let (hub, home) = hub_of(&small());
    hub.rule(|_, _| Action::Status(302, Vec::new()));
    refused(&hub, home.path(), HubFault::Answer, "redirects to nowhere");
}

#[test]
fn a_gated_model_says_where_to_ask() {
    for status in [401, 403] {
        let (hub, home) = hub_of(&small());
        hub.rule(move |_, _| Action::Status(status, Vec::new()));
        let page = format!(
            "Ask for it at {}/org/model, make a token at {}/settings/tokens",
            hub.address(),
            hub.address()
        );
        refused(&hub, home.path(), HubFault::Gated, &page);
        let settings = Settings { token: Some("hf_x".to_owned()), ..hub.settings(home.path()) };
        let error = pulled(&settings).unwrap_err().to_string();
        let what = if status == 401 {
            "does not know the token (401 Unauthorized)"
        } else {
            "the token has not been let in (403"
        };
        assert!(error.contains(what), "{error}");
        assert_eq!(hub.seen().len(), 2);
    }
}

#[test]
fn what_is_not_there_is_told_from_what_is_gated() {
    let (hub, home) = hub_of(&small());
    for (code, what) in [
        (
            "RepoNotFound",
            "has no such repository, or it is somebody's own (401 Unauthorized): look at how its name is written; ",
        ),
        ("GatedRepo", "org/model: the model is gated (401 Unauthorized). Ask for it at "),
    ] {
        hub.rule(move |_, _| Action::Status(401, vec![("X-Error-Code", code.to_owned())]));
        refused(&hub, home.path(), HubFault::Gated, what);
    }
    // The last rule holds: gated, for a token that is none.
    let settings = Settings { token: Some("hf_x".to_owned()), ..hub.settings(home.path()) };
    let error = pulled(&settings).unwrap_err().to_string();
    let what =
        "org/model: the model is gated, and the token is not known there (401 Unauthorized). Ask for it at ";
    assert!(error.starts_with(what), "{error}");
}

#[test]
fn a_token_is_not_sent_in_clear_and_the_error_says_so() {
    let (hub, home) = hub_of(&small());
    for status in [401, 403] {
        hub.rule(move |_, _| Action::Status(status, Vec::new()));
        // The same server, by an address that is not known to be this machine's.
        let endpoint = hub.address().replace("127.0.0.1", "0.0.0.0");
        let token = Some("hf_secret".to_owned());
        let settings = Settings { token, endpoint: endpoint.clone(), ..hub.settings(home.path()) };
        let Err(Error::Hub { fault: HubFault::Gated, what }) = pulled(&settings) else { panic!() };
        let start = format!("org/model: {endpoint} wants to know who asks ({status} ");
        let end = format!(
            "), and the token was withheld: {endpoint} is not encrypted, and all on the way would hear it. Set HF_ENDPOINT to \
             an address with https"
        );
        assert!(what.starts_with(&start) && what.ends_with(&end), "{what}");
    }
    assert_eq!(hub.seen().len(), 2);
    assert!(hub.seen().iter().all(|seen| seen.authorization.is_none()), "{:?}", hub.seen());
}

#[test]
fn a_proxy_does_not_hear_the_token_of_this_machine() {
    let (hub, home) = hub_of(&small());
    let proxy = Hub::new();
    let mut command = hub.command(home.path(), &["pull", "org/model"]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env(name, proxy.address());
    }
    let output = command.env("HF_TOKEN", "hf_secret").env_remove("NO_PROXY").env_remove("no_proxy").output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(proxy.seen().len(), 0);
    assert!(hub.seen().iter().all(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret")));
    assert_eq!(hub.sent(), small().len() as u64);
    // What is elsewhere goes through the proxy, and without the token.
    let mut command = hub.command(home.path(), &["pull", "org/other"]);
    command.env("HF_ENDPOINT", "http://hub.invalid").env_remove("NO_PROXY").env_remove("no_proxy");
    let output = command.env("HF_TOKEN", "hf_secret").env("ALL_PROXY", proxy.address()).output().unwrap();
    assert!(!output.status.success());
    assert!(!proxy.seen().is_empty());
    assert!(proxy.seen().iter().all(|seen| seen.authorization.is_none() && seen.method == "CONNECT"));
}

#[test]
fn a_client_is_shown_without_its_token() {
    let (hub, home) = hub_of(&small());
    let settings = Settings { token: Some("hf_secret".to_owned()), ..hub.settings(home.path()) };
    let shown = format!("{:?}", Client::new(&settings).unwrap());
    assert_eq!(shown, format!("Client {{ endpoint: {:?}, token: Some(\"…\"), .. }}", hub.address()));
}

#[test]
fn an_expired_address_is_asked_for_anew() {
    let (hub, home) = hub_of(&small());
    let other = Hub::with(&[("m.gguf", &small())]);
    let to = format!("{}/org/model/resolve/{COMMIT}/m.gguf", other.address());
    hub.rule(move |seen, _| match seen.is_file() {
        true => Action::Status(302, vec![("Location", to.clone())]),
        false => Action::Serve,
    });
    other.rule(|_, before| match before {
        0 => Action::Cut(500_000),
        1 => Action::Status(403, Vec::new()),
        _ => Action::Serve,
    });
    whole(&hub, home.path(), &small());
    // The place that the first redirect led to was asked directly, and the hub again once that was over.
    assert_eq!(hub.files_seen().len(), 2);
    assert_eq!(other.files_seen().len(), 3);
}

#[test]
fn a_stop_is_at_once_and_keeps_what_came() {
    let (hub, home) = hub_of(&small());
    hub.rule(
        |seen, _| {
            if seen.is_file() { Action::Slow(20_000, Duration::from_millis(20)) } else { Action::Serve }
        },
    );
    let settings = hub.settings(home.path());
    let client = Client::new(&settings).unwrap();
    let cache = Cache::new(&settings.cache);
    let plan = Plan::make(&client, &id(), None, None, Fit::default()).unwrap().unwrap();
    let stopped = plan.download(&client, &cache, &mut |progress| progress.done < 600_000);
    assert!(stopped.unwrap().is_none());
    let kept = plan.here(&cache);
    assert!([512 << 10, 768 << 10].contains(&kept), "{kept}");
    // The next one asks for the rest alone.
    hub.forget();
    hub.rule(|_, _| Action::Serve);
    whole(&hub, home.path(), &small());
    assert_eq!(hub.files_seen()[0].range, Some((kept, small().len() as u64 - 1)));
    // While a server says nothing, a stop is heard, too.
    let (hub, home) = hub_of(&small());
    hub.rule(|seen, _| if seen.is_file() { Action::Hang(Duration::from_secs(20)) } else { Action::Serve });
    let settings = hub.settings(home.path());
    let client = Client::new(&settings).unwrap();
    let plan = Plan::make(&client, &id(), None, None, Fit::default()).unwrap().unwrap();
    let started = Instant::now();
    let stopped = plan.download(&client, &Cache::new(&settings.cache), &mut |_| {
        started.elapsed() < Duration::from_millis(300)
    });
    assert!(stopped.unwrap().is_none());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn ranges_are_asked_for_at_once() {
    // Of five ranges, four are open at any time.
    let bytes = noise(4_500_000, 7);
    let (hub, home) = hub_of(&bytes);
    hub.rule(|seen, _| if seen.is_file() { Action::Together(4) } else { Action::Serve });
    let client = Client::new(&hub.settings(home.path())).unwrap();
    let plan = Plan::make(&client, &id(), None, None, Fit::default()).unwrap().unwrap();
    let path = plan.download(&client, &Cache::new(&hub.settings(home.path()).cache), &mut |_| true).unwrap();
    assert!(std::fs::read(path.unwrap()).unwrap() == bytes);
    assert_eq!((hub.together(), hub.files_seen().len(), hub.sent()), (4, 5, bytes.len() as u64));
    let mut ranges: Vec<(u64, u64)> = hub.files_seen().iter().map(|seen| seen.range.unwrap()).collect();
    ranges.sort_unstable();
    let ends: Vec<u64> = ranges.iter().map(|(_, last)| last + 1).collect();
    assert_eq!(ranges.iter().map(|(first, _)| *first).collect::<Vec<_>>(), [&[0][..], &ends[..4]].concat());
}

/// Has a file changed at the hub once its first range was sent, and the others are not; then what is there now is what comes.
#[track_caller]
fn changes(now: &[u8]) {
    let (hub, home) = hub_of(&large());
    let changed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&changed);
    hub.rule(move |seen, _| match seen.range {
        Some((0, _)) | None => Action::Serve,
        Some(_) => Action::After(Arc::clone(&flag)),
    });
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| {
            let client = Client::new(&hub.settings(home.path())).unwrap();
            let plan = Plan::make(&client, &id(), None, None, Fit::default()).unwrap().unwrap();
            plan.download(&client, &Cache::new(&hub.settings(home.path()).cache), &mut |_| true)
        });
        let begun = Instant::now();
        while hub.files_seen().len() < 3 || hub.sent() < 1 << 20 {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", hub.seen());
            std::thread::sleep(Duration::from_millis(5));
        }
        hub.put("org/model", &[("m.gguf", now)]);
        changed.store(true, Ordering::Relaxed);
        let path = pull.join().unwrap().unwrap().unwrap();
        assert!(std::fs::read(path).unwrap() == now);
    });
    // The hub was asked once more what there is, and nothing is left of what was there before.
    assert_eq!(hub.seen().len() - hub.files_seen().len(), 2);
    assert_eq!(finals(home.path()), [PathBuf::from(etag("m.gguf", now))]);
    assert_eq!(tree(&home.path().join("hub/models--org--model/blobs")).len(), 1);
}

#[test]
fn a_file_that_changes_between_its_ranges_is_begun_anew() {
    // Of the same length, which another name tells; longer; and shorter.
    changes(&noise(large().len(), 8));
    changes(&noise(large().len() + 300_000, 9));
    changes(&noise(large().len() - 300_000, 10));
}

/// Servers behind one address may call the same bytes by names of their own.
#[test]
fn a_file_with_several_names_is_the_same() {
    let (hub, home) = hub_of(&large());
    hub.rule(|seen, _| match seen.range {
        Some((first, _)) => Action::Called(format!("\"{first}\"")),
        None => Action::Serve,
    });
    whole(&hub, home.path(), &large());
    assert_eq!(hub.seen().len() - hub.files_seen().len(), 2);
}
