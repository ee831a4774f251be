//! Who enters, how far, and until when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use culvert_perf::testbed::wait_for;
use serde_json::json;

use super::hub::{OWN, PASSWORD, People, Signed, front, personal_token};
use crate::client::{Answer, End, Live};
use crate::hub::ready;

#[test]
fn without_a_grant_nobody_enters_and_readers_only_read() -> Result<()> {
    if !ready("without_a_grant_nobody_enters_and_readers_only_read", &[]) {
        return Ok(());
    }
    let people = People::start()?;
    let (ana, dev) = (
        Signed::new("ana").of(&["ops"]),
        Signed::new("dev").of(&["dev"]),
    );
    let (ana, dev) = (ana.cookie(PASSWORD)?, dev.cookie(PASSWORD)?);
    let eve = Signed::new("eve")
        .of(&["user:ana", "Ops", "ops "])
        .cookie(PASSWORD)?;
    let answer = people.get("/c/kube/id/x", &[&eve])?;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.header("culvert-error"), Some("no_identity"));
    assert!(answer.text().contains("\"kind\":\"Status\""), "{answer:?}");

    let upgrade = [
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        "X-Stream-Protocol-Version: v4.channel.k8s.io",
    ];
    let ask = |cookie: &str, method: &str, lines: &[&str]| {
        let lines = [&[cookie, OWN][..], lines].concat();
        let raw = format!(
            "{method} /c/kube/spdy HTTP/1.1\r\nHost: hub.test\r\n{}\r\n\r\n",
            lines.join("\r\n")
        );
        let mut live = Live::open(&people.bed.client, front(), raw.as_bytes())?;
        live.read_until(Duration::from_secs(5), |all| {
            all.windows(4).any(|it| it == b"\r\n\r\n")
        })?;
        Answer::parse(&live.received)
    };
    let close = ["Connection: close"];
    for (method, lines, reader, writer) in [
        ("GET", &close[..], 200, 200),
        ("OPTIONS", &close, 200, 200),
        ("POST", &close, 403, 200),
        ("PUT", &close, 403, 200),
        ("DELETE", &close, 403, 200),
        ("PATCH", &close, 403, 200),
        ("GET", &upgrade, 403, 101),
    ] {
        for (cookie, status) in [(&dev, reader), (&ana, writer)] {
            let target = ask(cookie, method, lines)?;
            let seen = match target.status {
                // The service knows no such page: it arrived all the same.
                404 => 200,
                status => status,
            };
            assert_eq!(seen, status, "{method} {lines:?}: {target:?}");
        }
    }
    // A cluster that is read-only is so for everybody.
    let read_only = json!({"read_only": true, "grants": [{"group": "ops", "tier": "admin"}]});
    people.access("kube", read_only)?;
    assert_eq!(
        people.ask("POST", "/c/kube/id/x", &[&ana, OWN])?.status,
        403
    );
    people.access("kube", json!({"mode": "raw", "read_only": true}))?;
    assert_eq!(
        people.ask("POST", "/c/kube/id/x", &[&ana, OWN])?.status,
        403
    );
    assert_eq!(people.get("/c/kube/id/x", &[&ana])?.status, 200);
    people.access("kube", json!({}))?;
    assert_eq!(people.get("/c/kube/id/x", &[&ana])?.status, 403);
    Ok(())
}

#[test]
fn a_grant_ends_and_what_runs_under_it_and_policies_are_checked() -> Result<()> {
    if !ready(
        "a_grant_ends_and_what_runs_under_it_and_policies_are_checked",
        &[],
    ) {
        return Ok(());
    }
    let people = People::start()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let at = now + 4;
    let output = people
        .bed
        .hub
        .output("date", &["-u", "-d", &format!("@{at}"), "+%FT%TZ"])?;
    let grant = json!({"group": "ops", "tier": "admin", "expires_at": output.trim()});
    people.access("web", json!({"grants": [grant]}))?;
    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    let raw = format!("GET /c/web/step HTTP/1.1\r\nHost: hub.test\r\n{ana}\r\n\r\n");
    let mut live = Live::open(&people.bed.client, front(), raw.as_bytes())?;
    people.web.step("before\n");
    live.read_text("before\n", Duration::from_secs(3))?;
    wait_for("the grant to end", Duration::from_secs(10), || {
        let answer = people.get("/c/web/id/x", &[&ana]).ok()?;
        (answer.header("culvert-error") == Some("no_identity")).then_some(())
    })?;
    let over = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    assert!(over >= at, "ended {} s early", at - over);
    assert_eq!(live.read_end(Duration::from_secs(5))?, End::Reset);

    for (access, part) in [
        (json!({"mode": "shared"}), "allowed groups"),
        (json!({"mode": "raw", "prefix": ""}), "prefix"),
        (json!({"prefix": "system:"}), "system:"),
        (json!({"mode": "everybody"}), "tier, shared, raw"),
    ] {
        let body = Some(json!({"access": access}));
        let (status, said) = people.control.call("PATCH", "/api/clusters/web", body)?;
        assert!((400..500).contains(&status), "{access}: {status} {said}");
        assert!(said.to_string().contains(part), "{access}: {said}");
    }
    Ok(())
}

#[test]
fn sixty_watches_a_person_and_machines_have_no_cap() -> Result<()> {
    if !ready("sixty_watches_a_person_and_machines_have_no_cap", &[]) {
        return Ok(());
    }
    let people = People::start()?;
    let ana = Signed::new("ana").of(&["dev"]).cookie(PASSWORD)?;
    let watch = |line: &str| {
        let raw = format!(
            "GET /c/web/endless HTTP/1.1\r\nHost: hub.test\r\nAccept: text/event-stream\r\n\
                 {line}\r\n\r\n"
        );
        let mut live = Live::open(&people.bed.client, front(), raw.as_bytes())?;
        live.read_until(Duration::from_secs(5), |all| {
            all.windows(4).any(|it| it == b"\r\n\r\n")
        })?;
        let status = Answer::parse(&live.received)?.status;
        anyhow::Ok((status, live))
    };
    let mut held = Vec::new();
    for number in 0..60 {
        let (status, live) = watch(&ana)?;
        assert_eq!(status, 200, "watch {number}");
        held.push(live);
    }
    let answer = people.get("/c/web/id/x?watch=1", &[&ana])?;
    assert_eq!(answer.status, 429, "{answer:?}");
    assert_eq!(answer.header("culvert-error"), Some("E_CAP_USER"));
    assert_eq!(people.get("/c/web/id/x", &[&ana])?.status, 200, "no watch");
    let ben = Signed::new("ben").of(&["dev"]).cookie(PASSWORD)?;
    assert_eq!(people.get("/c/web/id/x?watch=1", &[&ben])?.status, 200);
    let grants = json!({"grants": [{"group": "user:ana", "tier": "read"}]});
    people.access("web", grants)?;
    let token = personal_token(&people.control, "ana", "web/*")?;
    let bearer = format!("Authorization: Bearer {token}");
    assert_eq!(
        people.get("/c/web/id/x?watch=1", &[&bearer])?.status,
        200,
        "no cap"
    );
    held.pop();
    wait_for("a place", Duration::from_secs(5), || {
        let answer = people.get("/c/web/id/x?watch=1", &[&ana]).ok()?;
        (answer.status == 200).then_some(())
    })?;
    Ok(())
}
