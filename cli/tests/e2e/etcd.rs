//! A real API behind the tunnel: etcd's HTTP gateway and its streaming watch.

use std::time::Duration;

use anyhow::Result;
use culvert_perf::testbed::{Layout, Process, SITE, Spawn, Testbed};

use crate::client::{self, Live};
use crate::hub::{Agent, DEV_TOKEN, START_MAX, dataplane, internal, ready, write_clusters};
use crate::upstream::base64;

/// etcd on the private site.
pub fn start(bed: &Testbed) -> Result<Process> {
    let url = format!("http://{SITE}:2379");
    let mut etcd = Spawn::new("etcd")
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
        .args(["--data-dir", &bed.path("etcd").to_string_lossy()])
        .start(bed, &bed.site, "etcd")?;
    etcd.wait_port(&bed.site, (SITE, 2379).into(), START_MAX)?;
    Ok(etcd)
}

#[test]
fn put_range_and_a_watch_that_streams() -> Result<()> {
    if !ready("put_range_and_a_watch_that_streams", &["etcd"]) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    let _etcd = start(&bed)?;
    let clusters = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
    let _dataplane = dataplane(&bed, "dataplane", &["--clusters", &clusters])?;
    let _agent = Agent::plain(&bed.site, "agent", DEV_TOKEN, (SITE, 2379).into()).start(&bed)?;
    let call = |path: &str, body: serde_json::Value| {
        let target = format!("/tunnel/dev/v3/{path}");
        let body = body.to_string();
        client::ask(
            &bed.client,
            internal(),
            "POST",
            &target,
            &[],
            body.as_bytes(),
        )
    };
    let key = base64(b"city");

    let put = call(
        "kv/put",
        serde_json::json!({"key": key, "value": base64(b"Gent")}),
    )?;
    assert_eq!(put.status, 200, "{}", put.text());
    let range = call("kv/range", serde_json::json!({"key": key}))?;
    assert!(range.text().contains(&base64(b"Gent")), "{}", range.text());

    let create = serde_json::json!({"create_request": {"key": key}}).to_string();
    let head = format!(
        "POST /tunnel/dev/v3/watch HTTP/1.1\r\nHost: hub.test\r\nContent-Length: {}\r\n\r\n{create}",
        create.len()
    );
    let mut watch = Live::open(&bed.client, internal(), head.as_bytes())?;
    watch.read_text("\"created\":true", Duration::from_secs(5))?;
    for number in 0..20 {
        let value = base64(format!("value {number}").as_bytes());
        call("kv/put", serde_json::json!({"key": key, "value": value}))?;
        let took = watch.read_text(&value, Duration::from_secs(3))?;
        assert!(
            took < Duration::from_secs(1),
            "event {number} took {took:?}"
        );
    }
    Ok(())
}
