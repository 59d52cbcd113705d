//! Ranks that are lost under a server: who waits is told, the model is loaded again, and answers are as before.

use serde_json::{Value, json};

use super::clients::{CHAT, Server, chat, endless, events, generated, soon, with};
use crate::support::program::signal;

const FOX: &str = "Tell me a story about a fox.";

/// Waits until the server has noticed, and answers again.
fn again(server: &Server, relaunches: f64) {
    soon("it is loaded again", || (server.metric("tbshard_relaunches_total") == relaunches).then_some(()));
    server.await_ready();
    assert_eq!(server.post(CHAT, &chat(FOX, 40)).text(), generated(FOX, 40));
}

#[test]
fn a_rank_that_dies_costs_the_answers_under_way() {
    let layouts: [&[&str]; 3] = [
        &["--local", "2"],
        &["--local", "3", "--transport", "tcp"],
        &["--local", "2", "--pp", "2", "--transport", "tcp"],
    ];
    for (kind, layout) in ["kill", "panic", "error"].into_iter().zip(layouts) {
        let fault = format!("1:compute#400:{kind}");
        let server = Server::ready(&[layout, &["--fault", &fault]].concat());
        let (whole, stream) = std::thread::scope(|scope| {
            let whole = scope.spawn(|| server.post(CHAT, &with(endless(), json!({"stream": false}))));
            let stream = server.stream(&endless()).finish();
            (whole.join().unwrap(), stream)
        });
        assert_eq!((whole.status, whole.code().as_str()), (502, "rank_lost"), "{}", whole.body);
        let error = whole.json()["error"].clone();
        assert_eq!(error["type"], "server_error");
        assert!(error["message"].as_str().unwrap().starts_with("rank 1 (127.0.0.1:"), "{error}");
        assert_eq!(stream.status, 200);
        let last: Value = serde_json::from_str(&events(&stream.body).pop().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "rank_lost", "{last}");
        again(&server, 1.0);
    }
}

#[test]
fn while_the_model_is_loaded_again_others_are_told_to_wait() {
    let server = Server::ready(&["--local", "2"]);
    signal(server.ranks()[0], "-KILL");
    // nothing ran, so nobody but the control connection can have noticed
    soon("it notices", || (server.get("/health").status == 503).then_some(()));
    let health = server.get("/health");
    let late = server.post(CHAT, &chat("Hello", 1));
    // the pause before the first relaunch is half a second
    assert_eq!(health.json(), json!({"status": "relaunching"}));
    assert_eq!((late.status, late.code().as_str()), (503, "unavailable"));
    assert_eq!(late.headers["retry-after"], "5");
    again(&server, 1.0);
    // once more, and the machine still has all its processors
    signal(server.ranks()[0], "-KILL");
    again(&server, 2.0);
}

#[test]
fn a_rank_that_freezes_is_found_and_ended() {
    let server = Server::ready(&["--local", "2", "--heartbeat-timeout", "1"]);
    let frozen = server.ranks()[0];
    signal(frozen, "-STOP");
    let answer = server.post(CHAT, &chat(FOX, 40));
    assert_eq!((answer.status, answer.code().as_str()), (502, "rank_lost"), "{}", answer.body);
    assert!(answer.body.contains("sent nothing for 1.0 s"), "{}", answer.body);
    again(&server, 1.0);
    assert!(!server.ranks().contains(&frozen), "the frozen rank is still there");
}

#[test]
fn a_server_that_does_not_get_up_again_gives_up() {
    let mut server = Server::ready(&["--local", "2", "--max-relaunches", "2"]);
    for times in 0..3 {
        soon("there is a rank", || (!server.ranks().is_empty()).then_some(()));
        server.await_ready();
        signal(server.ranks()[0], "-KILL");
        if times < 2 {
            soon("it notices", || server.log().contains(&format!("({} of 2 tries)", times + 1)).then_some(()));
            soon("it tries", || (server.metric("tbshard_relaunches_total") == f64::from(times + 1)).then_some(()));
        }
    }
    assert_eq!(server.end().code(), Some(3), "{}", server.log());
    assert!(server.log().contains("error: 2 relaunches did not help: rank 1 "), "{}", server.log());
}

#[test]
fn a_model_that_cannot_be_loaded_at_first_is_the_end() {
    let mut server = Server::start(&["--local", "2", "--fault", "1:loading:kill"]);
    assert_eq!(server.end().code(), Some(3), "{}", server.log());
    assert!(!server.log().contains("loading again"), "{}", server.log());
}
