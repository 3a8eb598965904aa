//! A disk that is full in the midst of a download. A plan of refusals is the whole process's, so that these are in tests/refusals.rs.

use std::time::Duration;

use backstop::hub::{Cache, Client, Fit, Plan, RepositoryId};
use backstop::refusals::{Refusals, Site};
use backstop::{Error, HubFault};

use super::served::{Hub, noise, tree};

#[test]
fn a_disk_that_is_full_keeps_what_came_and_says_what_is_missing() {
    let _turn = super::turn();
    let bytes = noise(3_000_001, 11);
    let (hub, home) = (Hub::with(&[("m.gguf", &bytes)]), tempfile::tempdir().unwrap());
    let settings = hub.settings(home.path());
    let client = Client::with_patience(&settings, Duration::from_secs(60)).unwrap();
    let cache = Cache::new(&settings.cache);
    let id = RepositoryId::new("org/model").unwrap();
    let plan = Plan::make(&client, &id, None, None, Fit::default()).unwrap().unwrap();
    // All writes from the n-th on, until some of the file is here by then.
    let full = |n: u64| {
        let refusals = Refusals::of(Site::Download, n, u64::MAX, 0);
        let error = plan.download(&client, &cache, &mut |_| true).unwrap_err();
        assert!(refusals.hits() > 0);
        (error, plan.here(&cache))
    };
    let (error, here) = (8..).step_by(8).map(full).find(|(_, here)| *here > 0).unwrap();
    assert!(here < bytes.len() as u64);
    let Error::Hub { fault: HubFault::Space, what } = &error else { panic!("{error:?}") };
    let missing = bytes.len() as u64 - here;
    let missing = match missing {
        0..1_000_000 => format!("{missing} bytes"),
        _ => format!("{:.1} MB", missing as f64 / 1e6),
    };
    let expected = format!(
        ".backstop-partial: {}: of org/model there are {missing} still to come, and the next pull goes on with what is here; make \
         room (backstop rm NAME), or set HF_HUB_CACHE to a folder elsewhere",
        std::io::Error::from_raw_os_error(libc::ENOSPC)
    );
    assert!(what.ends_with(&expected), "{what}\n{expected}");
    // No file has its name, and the next pull brings what is missing alone.
    let blobs = settings.cache.join("models--org--model/blobs");
    let left = tree(&blobs);
    assert!(left.keys().all(|name| name.to_str().unwrap().contains(".backstop-")), "{:?}", left.keys());
    hub.forget();
    let path = plan.download(&client, &cache, &mut |_| true).unwrap().unwrap();
    assert!(std::fs::read(path).unwrap() == bytes);
    assert_eq!(hub.sent(), bytes.len() as u64 - here);
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 1);
}
