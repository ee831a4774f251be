//! Where people come in: the public listener, one of their own beside required client
//! certificates, nginx in front; and what Radar connectors hear.

use std::time::Duration;

use anyhow::Result;
use culvert_perf::testbed::{HUB_FOR_CLIENT, Layout, Spawn, Testbed};
use serde_json::json;

use super::hub::{CONTROL_API, PASSWORD, People, Signed, front, start_control, start_dataplane};
use crate::client::{self, Live};
use crate::hub::{START_MAX, binary, ready};
use crate::mtls::{Authority, hub_names};
use crate::radar::Connector;

#[test]
fn behind_nginx_each_event_arrives_at_once() -> Result<()> {
    if !ready("behind_nginx_each_event_arrives_at_once", &["nginx"]) {
        return Ok(());
    }
    let people = People::start()?;
    let base = people.bed.directory().display();
    let config = people.bed.path("nginx.conf");
    let text = format!(
        "daemon off; user root; worker_processes 1; pid {base}/nginx.pid;
         events {{ worker_connections 512; }}
         http {{
           access_log off; client_body_temp_path {base}/body; proxy_temp_path {base}/t1;
           fastcgi_temp_path {base}/t2; uwsgi_temp_path {base}/t3; scgi_temp_path {base}/t4;
           server {{
             listen {HUB_FOR_CLIENT}:8000;
             location / {{
               proxy_pass http://{HUB_FOR_CLIENT}:8443;
               proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off;
               proxy_set_header Host $host; proxy_read_timeout 1h;
               proxy_set_header X-Forwarded-For $remote_addr;
             }} }} }}"
    );
    std::fs::write(&config, text)?;
    let mut nginx = Spawn::new("nginx")
        .args(["-e", "stderr", "-c", &config.to_string_lossy()])
        .start(&people.bed, &people.bed.hub, "nginx")?;
    let at = (HUB_FOR_CLIENT, 8000).into();
    nginx.wait_port(&people.bed.client, at, START_MAX)?;
    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    let raw = format!(
        "GET /c/web/step HTTP/1.1\r\nHost: hub.test\r\nAccept: text/event-stream\r\n{ana}\r\n\r\n"
    );
    let mut live = Live::open(&people.bed.client, at, raw.as_bytes())?;
    for number in 0..10 {
        let event = format!("id: {number}\ndata: tick\n\n");
        people.web.step(&event);
        let took = live.read_text(&event, Duration::from_secs(2))?;
        assert!(
            took < Duration::from_millis(500),
            "event {number} took {took:?}"
        );
    }
    let who = client::ask(&people.bed.client, at, "GET", "/api/whoami", &[&ana], b"")?;
    assert_eq!(who.status, 200, "{who:?}");
    Ok(())
}

#[test]
fn beside_client_certificates_people_have_a_listener_of_their_own() -> Result<()> {
    if !ready(
        "beside_client_certificates_people_have_a_listener_of_their_own",
        &["curl"],
    ) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    let authority = Authority::new()?;
    let ca = authority.write(&bed.path("ca.pem"))?;
    let (cert, key) = authority.issue(&hub_names(), false, &bed.path("server"))?;
    let control = start_control(&bed, "control", PASSWORD, None)?;
    control.add("web")?;
    let tls = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-client-ca",
        &ca,
    ];
    // The forbidden mix is a start error that says what to do.
    let mixed = std::process::Command::new(binary("culvert-dataplane")?)
        .args([
            "--control",
            &control.link,
            "--state-dir",
            &bed.path("x").to_string_lossy(),
        ])
        .args(["--control-api", &format!("http://{CONTROL_API}")])
        .args(tls)
        .output()?;
    let said = String::from_utf8_lossy(&mixed.stderr);
    assert!(
        !mixed.status.success() && said.contains("--user-addr"),
        "{said}"
    );
    let own = [&tls[..], &["--user-addr", "0.0.0.0:9443"]].concat();
    let _dataplane = start_dataplane(&bed, "dataplane", &control.link, &own)?;
    control.settled()?;
    let cookie = Signed::new("ana").cookie(PASSWORD)?;
    let ask = |port: u16, path: &str| {
        let url = format!("https://{HUB_FOR_CLIENT}:{port}{path}");
        let arguments = [
            "-sS",
            "--max-time",
            "5",
            "--cacert",
            &ca,
            "-w",
            "%{http_code}",
        ];
        let further = ["-H", &cookie, "-H", "Host: hub.test", &url];
        bed.client
            .output("curl", &[&arguments[..], &further].concat())
    };
    let answer = ask(9443, "/c/web/x")?;
    assert!(
        answer.ends_with("403") && answer.contains("no_identity"),
        "{answer}"
    );
    assert!(ask(9443, "/api/whoami")?.ends_with("200"));
    assert!(
        ask(9443, "/agent")?.ends_with("404"),
        "no agent comes in there"
    );
    assert!(
        ask(8443, "/c/web/x").is_err(),
        "no certificate, no handshake"
    );
    Ok(())
}

#[test]
fn a_radar_connector_hears_roles() -> Result<()> {
    if !ready("a_radar_connector_hears_roles", &[]) {
        return Ok(());
    }
    let people = People::start()?;
    let body = json!({"id": "radar", "target_kind": "http", "access": {
        "grants": [{"group": "ops", "tier": "triage"}],
    }});
    people.control.ok("POST", "/api/clusters", Some(body))?;
    let token = people.control.mint("radar")?;
    people.control.settled()?;
    let _radar = Connector::connect(&people.bed.site, "/agent", &token, "radar")?;
    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    let answer = client::ask(
        &people.bed.client,
        front(),
        "GET",
        "/c/radar/head",
        &[
            &ana,
            "X-Radar-Role: owner",
            "X-Forwarded-Groups: radar:owner",
        ],
        b"",
    )?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let head = answer.text();
    let said = super::hub::values(&head, "x-forwarded-groups").join("|");
    assert!(said.starts_with("radar:member,radar:org:"), "{head}");
    assert!(said.ends_with(",radar:user:ana"), "{head}");
    assert_eq!(
        super::hub::values(&head, "x-forwarded-user"),
        ["ana"],
        "{head}"
    );
    assert!(!head.to_lowercase().contains("x-radar-role"), "{head}");
    Ok(())
}
