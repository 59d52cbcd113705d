//! What goes wrong between here and a hub: refusals, broken connections, wrong bytes, silence.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tbshard::cluster::hub::Hub;

use super::{Bench, NEW, TINY, Tally, WEIGHTS, assert_says, bounded, names, tiny, weights};
use crate::fake_hub::{Entry, Fault, Repo, Seen};

#[test]
fn a_repository_that_is_not_there_is_named() {
    bounded(|| {
        let bench = Bench::new(tiny());
        let spelling = "hint: check the spelling of `acme/nope`; a private repository needs HF_TOKEN";
        assert_says(&bench.error("acme/nope"), &["`acme/nope`", "401", "Invalid username or password", spelling]);
        let hub = bench.hub(Some("hf_any"), false);
        let error = format!("{:?}", hub.snapshot("acme/nope", None, &Tally::default()).unwrap_err());
        assert_says(&error, &["`acme/nope`", "404", "RepoNotFound", spelling]);
    });
}

#[test]
fn a_gated_repository_wants_a_licence_and_a_token_which_stays_at_the_hub() {
    bounded(|| {
        let bench = Bench::new(Repo { gate: Some("hf_good"), ..tiny() });
        let hint = format!("hint: accept the licence at {}/{TINY} and set HF_TOKEN", bench.fake.url());
        assert_says(&bench.error(TINY), &["` of `acme/tiny`", "401: GatedRepo: Access to model", &hint]);
        let refused = bench.hub(Some("hf_bad"), false).snapshot(TINY, None, &Tally::default()).unwrap_err();
        assert_says(&format!("{refused:?}"), &["403: GatedRepo", &hint]);
        assert!(!format!("{refused:?}").contains("hf_bad"), "a token is not for logs");
        bench.fake.take_seen();
        bench.hub(Some(" hf_good\n"), false).snapshot(TINY, None, &Tally::default()).unwrap();
        let (cdn, hub): (Vec<Seen>, Vec<Seen>) = bench.fake.take_seen().into_iter().partition(|seen| seen.cdn);
        assert!(hub.iter().all(|seen| seen.authorization.as_deref() == Some("Bearer hf_good")), "{hub:?}");
        assert!(cdn.len() == 1 && cdn[0].authorization.is_none(), "{cdn:?}");
    });
}

#[test]
fn a_busy_hub_is_asked_again() {
    bounded(|| {
        let bench = Bench::new(tiny());
        bench.fake.fail("/api/models/", Fault::Status(503, ""), 1);
        bench.fake.fail("/resolve/", Fault::Status(429, "Retry-After: 1\r\n"), 1);
        bench.fake.fail("@cdn/cdn/", Fault::Status(500, ""), 1);
        let start = Instant::now();
        let directory = bench.ok(TINY);
        assert!(start.elapsed() >= Duration::from_secs(1), "Retry-After is kept");
        assert!(fs::read(directory.join("model.safetensors")).unwrap() == weights().bytes);
    });
}

#[test]
fn a_hub_that_stays_busy_is_an_error_with_its_status() {
    bounded(|| {
        let bench = Bench::new(tiny());
        bench.fake.fail("@cdn/cdn/", Fault::Status(503, ""), 8);
        assert_says(&bench.error(TINY), &["`model.safetensors` of `acme/tiny`", "503", "try later, or give a local"]);
        assert_eq!(bench.seen_cdn().len(), 8);
        bench.fake.fail("/api/models/", Fault::Status(429, "Retry-After: 3600\r\n"), 9);
        assert_says(&bench.error(TINY), &["429", "hint: wait some minutes"]);
        assert_eq!(bench.fake.take_seen().len(), 1, "nobody waits an hour");
    });
}

#[test]
fn a_connection_cut_or_stuck_goes_on_where_it_broke() {
    bounded(|| {
        let bench = Bench::new(tiny());
        bench.fake.fail("@cdn/cdn/", Fault::Cut(100_000), 1);
        bench.fake.fail("@cdn/cdn/", Fault::Stall(100_000), 1);
        let start = Instant::now();
        let (directory, tally) = bench.get(TINY, None);
        assert!(fs::read(directory.unwrap().join("model.safetensors")).unwrap() == weights().bytes);
        assert!(start.elapsed() < Duration::from_secs(5), "silence is not waited out");
        let ranges: Vec<Option<String>> = bench.seen_cdn().into_iter().map(|seen| seen.range).collect();
        assert_eq!(ranges, [None, Some("bytes=100000-".to_owned()), Some("bytes=200000-".to_owned())]);
        let bytes = WEIGHTS as u64 + 9;
        assert_eq!(tally.sums(), [bytes, bytes, bytes, 1]);
    });
}

#[test]
fn a_later_call_resumes_what_an_earlier_one_left() {
    bounded(|| {
        let bench = Bench::new(tiny());
        bench.fake.fail("@cdn/cdn/", Fault::Cut(123_456), 1);
        bench.fake.fail("@cdn/cdn/", Fault::Status(403, ""), 1);
        assert_says(&bench.error(TINY), &["`model.safetensors` of `acme/tiny`", "the hub answered 403"]);
        assert!(!bench.blob(&weights()).exists());
        bench.fake.take_seen();
        let (directory, tally) = bench.get(TINY, None);
        assert!(fs::read(directory.unwrap().join("model.safetensors")).unwrap() == weights().bytes);
        assert_eq!(bench.seen_cdn()[0].range.as_deref(), Some("bytes=123456-"));
        let [total, _, arrived, done] = tally.sums();
        assert_eq!((arrived, done), (total, 1), "the kept bytes count too");
        assert_eq!(names(bench.blob(&weights()).parent().unwrap()).len(), 2, "nothing half is left");
    });
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    bounded(|| {
        let bench = Bench::new(tiny());
        bench.fake.fail("@cdn/cdn/", Fault::Cut(100_000), 1);
        bench.fake.fail("@cdn/cdn/", Fault::NoRanges, 1);
        let (directory, tally) = bench.get(TINY, None);
        assert!(fs::read(directory.unwrap().join("model.safetensors")).unwrap() == weights().bytes);
        let [total, _, arrived, _] = tally.sums();
        assert_eq!(arrived, total, "bytes that come twice count once");
        let bench = Bench::new(tiny());
        bench.fake.fail("@cdn/cdn/", Fault::CutWhole(100_000), 99);
        let parts = ["`model.safetensors` of `acme/tiny`", "no answer from", "it ended after 100000 of 300000 bytes"];
        assert_says(&bench.error(TINY), &parts);
        assert_eq!(bench.seen_cdn().len(), 8, "coming just as far again is no progress");
    });
}

#[test]
fn a_body_of_another_size_or_content_never_becomes_a_blob() {
    bounded(|| {
        let bench = Bench::new(tiny());
        bench.fake.fail("@cdn/cdn/", Fault::Short, 1);
        let sizes = "the server has 299999 bytes of it where 300000 are listed";
        assert_says(&bench.error(TINY), &["`model.safetensors` of `acme/tiny`", sizes]);
        assert!(!bench.blob(&weights()).exists());
        bench.fake.fail("@cdn/cdn/", Fault::Flipped, 1);
        assert_says(&bench.error(TINY), &["`model.safetensors` of `acme/tiny`", "sha256", &weights().etag()]);
        assert!(!bench.blob(&weights()).exists());
        bench.fake.fail("@cdn/cdn/", Fault::Cut(100_000), 1);
        bench.fake.fail("@cdn/cdn/", Fault::Shifted, 1);
        let sent = "asked for the bytes from 100000 on, the server sent `bytes 0-299999/300000`";
        assert_says(&bench.error(TINY), &["`model.safetensors` of `acme/tiny`", sent]);
        assert!(fs::read(bench.ok(TINY).join("model.safetensors")).unwrap() == weights().bytes);
    });
}

#[test]
fn the_first_failure_stops_the_rest() {
    bounded(|| {
        let names: Vec<&'static str> = (0..40).map(|i| &*format!("model-{i}.safetensors").leak()).collect();
        let files = names.iter().map(|name| Entry::large(name, 10, 1)).collect();
        let bench = Bench::new(Repo { commits: [(NEW, files)].into(), ..tiny() });
        bench.fake.fail("/resolve/", Fault::Status(410, "X-Error-Message: Gone away.\r\n"), 40);
        assert_says(&bench.error(TINY), &["` of `acme/tiny`", "the hub answered 410: Gone away"]);
        assert!(bench.fake.take_seen().len() <= 9, "the listing and one file a worker");
    });
}

#[test]
fn a_hub_that_is_gone_or_silent_is_an_error_unless_the_cache_is_whole() {
    bounded(|| {
        let bench = Bench::new(tiny());
        bench.fake.fail("/api/models/", Fault::Silent, 4);
        let parts = ["`acme/tiny` at revision `main`", "no answer from `http://127.0.0.1:", "--model DIR"];
        let error = bench.error(TINY);
        assert_says(&error, &parts);
        assert_says(&error, &["timed out"]);
        let directory = bench.ok(TINY);
        let Bench { fake, cache } = bench;
        let url = fake.url();
        drop(fake);
        let hub = |cache: &Path| {
            Hub::new(&url, cache.to_owned(), None, false).unwrap().with_timeout(Duration::from_millis(400))
        };
        assert_eq!(hub(cache.path()).snapshot(TINY, None, &Tally::default()).unwrap(), directory);
        fs::remove_file(directory.join("config.json")).unwrap();
        let error = hub(cache.path()).snapshot(TINY, None, &Tally::default()).unwrap_err();
        assert_says(&format!("{error:?}"), &parts);
    });
}

#[test]
fn a_listing_that_makes_no_sense_is_refused() {
    bounded(|| {
        let bench = Bench::new(tiny());
        let path = r#"{"sha":"../../../../etc","siblings":[]}"#;
        let id = r#"{"sha":"1111111111111111111111111111111111111111","siblings":[{"rfilename":"config.json","size":1,"blobId":"../x"}]}"#;
        let bare = r#"{"sha":"1111111111111111111111111111111111111111","siblings":[{"rfilename":"config.json"}]}"#;
        let listed = "`config.json` is listed without";
        for (text, part) in [("<html>", "file list"), (path, "is not a commit"), (bare, listed), (id, listed)] {
            bench.fake.fail("/api/models/", Fault::Says(text), 1);
            assert_says(&bench.error(TINY), &["unusable answer from `http://127.0.0.1:", part, "HF_ENDPOINT"]);
        }
    });
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    bounded(|| {
        let bench = Bench::new(tiny());
        fs::write(bench.cache.path().join("models--acme--tiny"), "a file").unwrap();
        assert_says(&bench.error(TINY), &["` of `acme/tiny`", "model cache", "models--acme--tiny/blobs`"]);
    });
}
