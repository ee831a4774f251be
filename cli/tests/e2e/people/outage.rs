//! Signing out, changing the key, and everybody whom people do not wait for.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_perf::testbed::wait_for;
use serde_json::json;

use super::hub::{
    ADMIN, LOGINS, NEXT_PASSWORD, OWN, PASSWORD, People, Signed, start_control, start_dataplane,
    wait_ready,
};
use crate::hub::{START_MAX, ready};
use crate::watched::{CONTROL_GONE, HUB_GONE};

#[test]
fn who_signs_out_everywhere_is_out_within_five_seconds_also_without_control() -> Result<()> {
    if !ready(
        "who_signs_out_everywhere_is_out_within_five_seconds_also_without_control",
        &[],
    ) {
        return Ok(());
    }
    let mut people = People::start()?;
    people.dataplane.expect(CONTROL_GONE);
    people.control.process.expect(LOGINS);
    let root = people.break_glass()?;
    // The administrator has no group: nobody's grant is theirs, and no cluster opens by itself.
    assert_eq!(people.get("/c/web/id/x", &[&root])?.status, 403);
    let grants = json!({"grants": [
        {"group": format!("user:break-glass:{ADMIN}"), "tier": "admin"},
        {"group": "ops", "tier": "write"},
    ]});
    people.access("web", grants)?;
    assert_eq!(
        people.ask("POST", "/c/web/id/x", &[&root, OWN])?.status,
        200
    );
    let who = people.get("/api/whoami", &[&root])?;
    assert!(who.text().contains(ADMIN), "{who:?}");

    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    let began = Instant::now();
    let out = people.ask("POST", "/api/auth/logout/everywhere", &[&root, OWN])?;
    assert_eq!(out.status, 204, "{out:?}");
    wait_for(
        "the kept cookie to be worth nothing",
        Duration::from_secs(5),
        || {
            let answer = people.get("/c/web/id/x", &[&root]).ok()?;
            (answer.status == 401).then_some(())
        },
    )?;
    println!("signed out everywhere after {:?}", began.elapsed());
    assert_eq!(
        people.get("/c/web/id/x", &[&ana])?.status,
        200,
        "others go on"
    );
    let again = people.break_glass()?;
    assert_eq!(
        people.get("/c/web/id/x", &[&again])?.status,
        200,
        "signed in again"
    );

    // Control is gone: its pages say so at once, clusters go on.
    people.control.process.kill_9()?;
    let asked = Instant::now();
    let answer = people.get("/api/whoami", &[&ana])?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("culvert-error"), Some("control_absent"));
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );
    for (line, status) in [(&ana, 200), (&again, 200), (&root, 401)] {
        assert_eq!(people.get("/c/web/id/x", &[line])?.status, status);
    }

    // And a data plane that starts without control knows the same.
    for agent in [&mut people.kube_agent, &mut people.web_agent] {
        agent.expect(HUB_GONE);
    }
    people.dataplane.kill_9()?;
    people.dataplane = start_dataplane(&people.bed, "dataplane-2", &people.control.link, &[])?;
    wait_ready(&people, "/c/web/id/x", &ana)?;
    for (line, status) in [(&ana, 200), (&again, 200), (&root, 401)] {
        assert_eq!(people.get("/c/web/id/x", &[line])?.status, status);
    }
    let copy = people.bed.path("dataplane-state");
    for name in ["snapshot.a", "snapshot.b"] {
        use std::os::unix::fs::PermissionsExt;
        let Ok(meta) = std::fs::metadata(copy.join(name)) else {
            continue;
        };
        assert_eq!(
            meta.permissions().mode() & 0o777,
            0o600,
            "{name} holds keys"
        );
    }
    Ok(())
}

#[test]
fn a_changed_password_refuses_nobody_under_load_while_the_old_one_is_kept() -> Result<()> {
    if !ready(
        "a_changed_password_refuses_nobody_under_load_while_the_old_one_is_kept",
        &[],
    ) {
        return Ok(());
    }
    let mut people = People::start()?;
    people.dataplane.expect(CONTROL_GONE);
    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let (namespace, front) = (&people.bed.client, super::hub::front());
    let refused = std::thread::scope(|scope| {
        let load: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut refused = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let path = "/c/web/id/x";
                        let answer =
                            crate::client::ask(namespace, front, "GET", path, &[&ana], b"");
                        asked.fetch_add(1, Ordering::Relaxed);
                        match answer {
                            Ok(answer) if answer.status == 200 => {}
                            other => refused.push(format!("{other:?}")),
                        }
                    }
                    refused
                })
            })
            .collect();
        let changed = (|| {
            people.control.process.terminate()?;
            people.control.process.wait_end(START_MAX)?;
            let next = start_control(&people.bed, "control-2", NEXT_PASSWORD, Some(PASSWORD))?;
            next.settled()?;
            wait_for("sessions sealed with the new key", START_MAX, || {
                let answer =
                    crate::client::ask(namespace, front, "GET", "/c/web/id/x", &[&ana], b"")
                        .ok()?;
                answer.header("set-cookie").map(str::to_owned)
            })?;
            std::thread::sleep(Duration::from_millis(500));
            anyhow::Ok(next)
        })();
        stop.store(true, Ordering::Relaxed);
        let refused: Vec<String> = load
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_default())
            .collect();
        changed.map(|next| (next, refused))
    });
    let (mut next, refused) = refused?;
    println!(
        "{} requests, {} refused",
        asked.load(Ordering::Relaxed),
        refused.len()
    );
    assert_eq!(refused, [""; 0]);
    assert!(asked.load(Ordering::Relaxed) > 100);

    let renewed = people.get("/c/web/id/x", &[&ana])?;
    let pair = renewed.header("set-cookie").unwrap_or_default();
    let renewed = format!("Cookie: {}", pair.split(';').next().unwrap_or_default());
    // Without the old key everybody else signs in again.
    next.process.terminate()?;
    next.process.wait_end(START_MAX)?;
    let last = start_control(&people.bed, "control-3", NEXT_PASSWORD, None)?;
    last.settled()?;
    assert_eq!(people.get("/c/web/id/x", &[&ana])?.status, 401);
    assert_eq!(people.get("/c/web/id/x", &[&renewed])?.status, 200);
    assert_eq!(
        people.get("/api/whoami", &[&renewed])?.status,
        200,
        "control opens it too"
    );
    Ok(())
}
