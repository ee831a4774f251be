//! Mutual TLS end to end through `sealed` routes, and what a wrong server name gets.

use std::process::Stdio;

use anyhow::{Context, Result};
use culvert_perf::testbed::{HUB_FOR_CLIENT, Namespace, SITE, Spawn};

use super::{Routed, bed, sealed_at};
use crate::hub::{START_MAX, ready};
use crate::mtls::Authority;

const PORT: u16 = 9_443;

/// `openssl s_client` with `input`: what it printed on both outputs.
fn s_client(from: &Namespace, arguments: &[&str], input: &str) -> Result<String> {
    use std::io::Write;
    let connect = format!("{HUB_FOR_CLIENT}:{PORT}");
    let mut child = from
        .command("timeout")
        .args(["20", "openssl", "s_client", "-connect", &connect])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its input")?;
    let _ = stdin.write_all(input.as_bytes());
    let reader = std::thread::spawn(move || child.wait_with_output());
    // `-quiet` keeps it open after the end of its input: the answer comes first.
    std::thread::sleep(std::time::Duration::from_secs(1));
    drop(stdin);
    let output = reader.join().expect("waiting does not panic")?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn mutual_tls_end_to_end_and_refusals_by_alert() -> Result<()> {
    if !ready(
        "mutual_tls_end_to_end_and_refusals_by_alert",
        &["openssl", "timeout"],
    ) {
        return Ok(());
    }
    let bed = bed()?;
    let authority = Authority::new()?;
    let ca = authority.write(&bed.path("ca.pem"))?;
    let names = ["db.example.com".to_owned()];
    let (cert, key) = authority.issue(&names, false, &bed.path("db"))?;
    let alice = ["alice".to_owned()];
    let (client_cert, client_key) = authority.issue(&alice, true, &bed.path("alice"))?;
    let mut server = Spawn::new("openssl")
        .args(["s_server", "-accept", &format!("{SITE}:443"), "-rev"])
        .args(["-cert", &cert, "-key", &key, "-CAfile", &ca])
        .args(["-Verify", "1", "-verify_return_error"])
        .start(&bed, &bed.site, "s_server")?;
    server.wait_port(&bed.site, (SITE, 443).into(), START_MAX)?;
    let service = format!("db={SITE}:443");
    let rig = Routed::start(
        bed,
        &[sealed_at("db", "*.example.com", PORT)],
        &[],
        &["--sealed-service", &service],
    )?;
    super::wait_listening(&rig.bed, PORT)?;
    let trust = ["-CAfile", &ca, "-verify_return_error", "-quiet"];
    let own = ["-cert", &client_cert, "-key", &client_key];
    let named = ["-servername", "db.example.com"];
    for protocol in ["-tls1_3", "-tls1_2"] {
        let arguments = [&trust[..], &own, &named, &[protocol]].concat();
        let said = s_client(&rig.bed.client, &arguments, "culvert\n")?;
        assert!(said.contains("trevluc"), "{protocol}: {said}");
    }
    // The service's own refusal comes through as its own: no certificate.
    let bare = [&trust[..], &named, &["-tls1_2"]].concat();
    let said = s_client(&rig.bed.client, &bare, "culvert\n")?;
    assert!(said.contains("handshake failure"), "{said}");
    for wrong in [
        &["-servername", "db.example.org"][..],
        &["-servername", "a.b.example.com"],
        &["-noservername"],
    ] {
        let said = s_client(&rig.bed.client, &[&own[..], wrong].concat(), "")?;
        assert!(said.contains("unrecognized name"), "{wrong:?}: {said}");
    }
    Ok(())
}
