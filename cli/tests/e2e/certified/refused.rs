//! Everybody who is not let in: at the listener, and at the registration.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use culvert_enrol::{Authority, BACKDATE_S, Key, Request, base64, certificates};
use culvert_perf::testbed::{HUB_FOR_CLIENT, Testbed};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::{CERTIFIED, Rig};
use crate::client;
use crate::hub::{PUBLIC, ready};

/// A CA whose key the test holds, in the form of `--agent-ca-dir`.
struct Ca(CertifiedIssuer<'static, KeyPair>);

/// What a client shows: certificate and key, PEM.
type Pair = (String, String);

impl Ca {
    fn new(name: &str) -> Result<Ca> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        Ok(Ca(CertifiedIssuer::self_signed(params, key)?))
    }

    fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("ca.crt"), self.0.pem())?;
        fs::write(dir.join("ca.key"), self.0.key().serialize_pem())?;
        fs::set_permissions(dir.join("ca.key"), fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    fn client(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // As control does it: not older than the cluster.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let backdated = now.saturating_sub(Duration::from_secs(BACKDATE_S));
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + backdated;
        change(&mut params);
        let cert = params.signed_by(&key, &self.0)?;
        Ok((cert.pem(), key.serialize_pem()))
    }
}

/// The status of a hello of `pair` at `path`, as curl sees it; `None` when TLS already refused.
fn knock(bed: &Testbed, pair: Option<&Pair>, path: &str) -> Option<u16> {
    let url = format!("https://{HUB_FOR_CLIENT}:{CERTIFIED}{path}");
    let (cert, key) = (bed.path("knock.pem"), bed.path("knock.key"));
    let (cert_path, key_path) = (cert.to_string_lossy(), key.to_string_lossy());
    let mut arguments = vec!["-sk", "--http1.1", "--max-time", "4", "-o", "/dev/null"];
    arguments.extend(["-w", "%{http_code}", "-H", "Connection: Upgrade"]);
    arguments.extend(["-H", "Upgrade: culvert/1", "-H", "Culvert-Version: 0.1.0"]);
    arguments.extend([
        "-H",
        "Culvert-Instance: 01890a5d-ac96-774b-bcce-b302099a8057",
    ]);
    if let Some((certificate, secret)) = pair {
        fs::write(&cert, certificate).ok()?;
        fs::write(&key, secret).ok()?;
        arguments.extend(["--cert", &cert_path, "--key", &key_path]);
    }
    arguments.push(&url);
    // After a 101 curl waits for its time to end, and fails with the status on its lips.
    let output = bed.client.command("curl").args(&arguments).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .ok()?;
    (said != 0).then_some(said)
}

#[test]
fn who_shows_no_certificate_of_a_cluster_here_is_not_let_in() -> Result<()> {
    if !ready(
        "who_shows_no_certificate_of_a_cluster_here_is_not_let_in",
        &["curl"],
    ) {
        return Ok(());
    }
    let path = "/api/agents/connect";
    let ca = Ca::new("agent CA of a secret")?;
    // A place of its own: the rig makes its testbed by itself.
    let dir = tempfile::tempdir()?;
    ca.write(dir.path())?;
    let rig = Rig::start(&["--agent-ca-dir", &dir.path().to_string_lossy()])?;
    let bed = &rig.bed;
    let good = ca.client("dev", |_| {})?;
    assert_eq!(knock(bed, Some(&good), path), Some(101), "the rig itself");

    assert_eq!(knock(bed, None, path), None, "without a certificate");
    let foreign = Ca::new("agent CA of a secret")?.client("dev", |_| {})?;
    assert_eq!(knock(bed, Some(&foreign), path), None, "of another CA");
    let expired = ca.client("dev", |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    })?;
    assert_eq!(knock(bed, Some(&expired), path), None, "expired");
    let server = ca.client("dev", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    })?;
    assert_eq!(knock(bed, Some(&server), path), None, "serverAuth alone");
    for (what, usages) in [
        ("no usage", vec![]),
        (
            "both usages",
            vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
        ),
    ] {
        let pair = ca.client("dev", |params| params.extended_key_usages = usages)?;
        assert_eq!(knock(bed, Some(&pair), path), Some(401), "{what}");
    }
    for name in ["stranger", "DEV", "dev "] {
        let pair = ca.client(name, |_| {})?;
        assert_eq!(knock(bed, Some(&pair), path), Some(401), "{name:?}");
    }
    let old = ca.client("dev", |params| {
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    })?;
    assert_eq!(
        knock(bed, Some(&old), path),
        Some(401),
        "before the cluster"
    );
    for other in [
        "/agent",
        "/connect",
        "/healthz",
        "/",
        "/tunnel/dev/id/x",
        "/api/clusters",
    ] {
        assert_eq!(knock(bed, Some(&good), other), Some(404), "{other}");
    }
    // And the path is on no other listener.
    let plain = client::get(&bed.client, (HUB_FOR_CLIENT, PUBLIC).into(), path)?;
    assert_eq!(plain.status, 404);
    Ok(())
}

fn register(rig: &Rig, body: &Value) -> Result<(u16, String)> {
    let front = (HUB_FOR_CLIENT, PUBLIC).into();
    let lines = ["Content-Type: application/json"];
    let body = body.to_string();
    let path = "/api/agents/register";
    let answer = client::ask(
        &rig.bed.client,
        front,
        "POST",
        path,
        &lines,
        body.as_bytes(),
    )?;
    Ok((answer.status, answer.text()))
}

#[test]
fn by_the_public_listener_a_registration_is_judged_by_its_token() -> Result<()> {
    if !ready(
        "by_the_public_listener_a_registration_is_judged_by_its_token",
        &[],
    ) {
        return Ok(());
    }
    let mut rig = Rig::start(&[])?;
    rig.control
        .process
        .expect(&["registration of an agent rejected"]);
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let minted = rig.control.ok(
        "POST",
        "/api/agents/tokens",
        Some(json!({"cluster": "dev"})),
    )?;
    let key = Key::generate()?;
    let csr = base64(&key.request()?);
    let body = json!({"token": minted["token"], "cluster": "dev", "csr": csr});
    let (status, answer) = register(&rig, &body)?;
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer)?;
    let pair = (
        answer["cert"].as_str().unwrap_or_default().to_owned(),
        key.to_pem().to_string(),
    );
    assert_eq!(
        knock(&rig.bed, Some(&pair), "/api/agents/connect"),
        Some(101)
    );
    let (status, second) = register(&rig, &body)?;
    assert_eq!(status, 401, "{second}");
    assert!(second.contains("registration rejected"), "{second}");
    // A CA of somebody's own making opens nothing, whatever it writes.
    let own = Authority::generate(now_s)?;
    let request = Request::read(&key.request()?)?;
    let forged = own.sign_agent(&request, &"dev".parse()?, now_s, 3600)?;
    let pair = (certificates([&forged.der[..]]), key.to_pem().to_string());
    assert_eq!(knock(&rig.bed, Some(&pair), "/api/agents/connect"), None);
    // The eleventh try of a minute is told to wait; a new minute may begin meanwhile.
    let statuses: Vec<u16> = (0..24)
        .map(|_| register(&rig, &body).map(|(status, _)| status))
        .collect::<Result<_>>()?;
    assert!(statuses.contains(&429), "{statuses:?}");
    assert!(
        statuses.iter().all(|it| [401, 429].contains(it)),
        "{statuses:?}"
    );
    Ok(())
}
