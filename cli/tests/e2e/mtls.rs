//! Mutual TLS on both ports (contract A-38, D-03), with curl and openssl as clients.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_perf::testbed::{HUB_FOR_CLIENT, HUB_FOR_SITE, Layout, Testbed, wait_for};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::client;
use crate::hub::{Agent, DEV_TOKEN, PUBLIC, dataplane, internal, ready, write_clusters};
use crate::upstream::Upstream;
use crate::watched::{HUB_GONE, Watched};

/// An authority of its own making.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "culvert test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        Ok(Authority(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Writes `<name>-ca.pem`.
    pub fn write(&self, path: &Path) -> Result<String> {
        std::fs::write(path, self.0.pem())?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Writes `<path>.pem` and `<path>.key`.
    pub fn issue(&self, names: &[String], client: bool, path: &Path) -> Result<(String, String)> {
        use std::os::unix::fs::PermissionsExt;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        let name = names.first().context("a name")?;
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
        params.extended_key_usages = vec![if client {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        }];
        let cert = params.signed_by(&key, &self.0)?;
        let (cert_path, key_path) = (path.with_extension("pem"), path.with_extension("key"));
        std::fs::write(&cert_path, cert.pem())?;
        std::fs::write(&key_path, key.serialize_pem())?;
        std::fs::set_permissions(&key_path, std::fs::Permissions::from_mode(0o600))?;
        Ok((
            cert_path.to_string_lossy().into_owned(),
            key_path.to_string_lossy().into_owned(),
        ))
    }
}

/// Every address of the hub, for its certificate.
pub fn hub_names() -> Vec<String> {
    [
        HUB_FOR_CLIENT,
        HUB_FOR_SITE,
        culvert_perf::testbed::HUB_FOR_PROXY,
    ]
    .iter()
    .map(ToString::to_string)
    .chain(["localhost".to_owned()])
    .collect()
}

#[test]
fn both_ports_demand_a_client_certificate() -> Result<()> {
    if !ready(
        "both_ports_demand_a_client_certificate",
        &["curl", "openssl"],
    ) {
        return Ok(());
    }
    let bed = Testbed::new(Layout::default())?;
    let upstream = Upstream::start(&bed.site)?;
    let (authority, foreign) = (Authority::new()?, Authority::new()?);
    let ca = authority.write(&bed.path("ca.pem"))?;
    let (cert, key) = authority.issue(&hub_names(), false, &bed.path("server"))?;
    let (client_cert, client_key) =
        authority.issue(&["argocd".into()], true, &bed.path("client"))?;
    let (other_cert, other_key) = foreign.issue(&["argocd".into()], true, &bed.path("other"))?;
    let clusters = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
    let _dataplane = dataplane(
        &bed,
        "dataplane",
        &[
            "--clusters",
            &clusters,
            "-tls-cert",
            &cert,
            "-tls-key",
            &key,
            "-tls-client-ca",
            &ca,
        ],
    )?;
    let mut agent = Agent::plain(&bed.site, "agent", DEV_TOKEN, upstream.address);
    agent.server = format!("wss://{HUB_FOR_SITE}:{PUBLIC}/agent");
    agent.arguments = [
        "--plain-target",
        "--target-kind",
        "http",
        "-server-ca-cert",
        &ca,
    ]
    .iter()
    .chain(&["-client-cert", &client_cert, "-client-key", &client_key])
    .map(|argument| (*argument).to_owned())
    .collect();
    let _agent = agent.start(&bed)?;

    let curl = |arguments: &[&str]| {
        let mut all = vec!["-sS", "--fail", "--max-time", "5", "--cacert", &ca];
        all.extend_from_slice(arguments);
        bed.client.output("curl", &all)
    };
    let with = ["--cert", &client_cert, "--key", &client_key];
    let public = format!("https://{HUB_FOR_CLIENT}:{PUBLIC}/healthz");
    let tunnel = format!("https://{}/tunnel/dev/id/over-mtls", internal());
    for url in [&public, &format!("https://{}/readyz", internal())] {
        assert_eq!(curl(&[&with[..], &[url]].concat())?.trim(), "ok", "{url}");
        let error = curl(&[url])
            .expect_err("without a client certificate")
            .to_string();
        assert!(handshake_error(&error), "{error}");
        let foreign = ["--cert", &other_cert, "--key", &other_key, url];
        let error = curl(&foreign)
            .expect_err("with a foreign certificate")
            .to_string();
        assert!(handshake_error(&error), "{error}");
        let plain = url.replace("https", "http");
        let answer = curl(&[&plain]);
        assert!(answer.is_err(), "plain HTTP on a TLS port: {answer:?}");
    }
    assert_eq!(curl(&[&with[..], &[&tunnel]].concat())?, "over-mtls");
    for version in ["--http1.1", "--http2"] {
        assert_eq!(
            curl(&[&with[..], &[version, &tunnel]].concat())?,
            "over-mtls",
            "{version}"
        );
    }
    let error = bed
        .client
        .output(
            "curl",
            &[
                &["-sS", "--tls-max", "1.1", "--cacert", &ca][..],
                &with,
                &[&public],
            ]
            .concat(),
        )
        .expect_err("TLS 1.1 must be refused");
    println!("TLS 1.1: {error}");

    // A second agent without a client certificate never gets a session.
    let mut bare = Agent::plain(&bed.site, "bare", DEV_TOKEN, upstream.address);
    bare.server = agent.server.clone();
    bare.health = 8082;
    bare.arguments = agent.arguments[..5].to_vec();
    let mut bare_process = bare.spawn(&bed)?;
    bare_process.expect(HUB_GONE);
    bare_process.wait_until("it says why", Duration::from_secs(10), |process| {
        let log = process.log().to_ascii_lowercase();
        (log.contains("certificate") && log.contains("tls")).then_some(())
    })?;
    assert!(!bare.is_ready());
    Ok(())
}

/// curl says 35 (connect), 52 or 55 (TLS 1.3: closed after the client's Finished) or 56 (alert).
fn handshake_error(text: &str) -> bool {
    text.contains("alert")
        || text.contains("(35)")
        || text.contains("(56)")
        || text.contains("(52)")
        || text.contains("(55)")
}

/// As [`Rig`](crate::hub::Rig), with TLS on both ports of the hub.
struct TlsRig {
    _agent: Watched,
    dataplane: Watched,
    _upstream: Upstream,
    authority: Authority,
    ca: String,
    bed: Testbed,
}

fn tls_rig() -> Result<TlsRig> {
    let bed = Testbed::new(Layout::default())?;
    let upstream = Upstream::start(&bed.site)?;
    let authority = Authority::new()?;
    let ca = authority.write(&bed.path("ca.pem"))?;
    let (cert, key) = authority.issue(&hub_names(), false, &bed.path("server"))?;
    let clusters = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
    let dataplane = dataplane(
        &bed,
        "dataplane",
        &[
            "--clusters",
            &clusters,
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
        ],
    )?;
    let mut agent = Agent::plain(&bed.site, "agent", DEV_TOKEN, upstream.address);
    agent.server = format!("wss://{HUB_FOR_SITE}:{PUBLIC}/agent");
    agent.arguments = [
        "--plain-target",
        "--target-kind",
        "http",
        "--server-ca-cert",
        &ca,
    ]
    .map(str::to_owned)
    .to_vec();
    let agent = agent.start(&bed)?;
    Ok(TlsRig {
        _agent: agent,
        dataplane,
        _upstream: upstream,
        authority,
        ca,
        bed,
    })
}

#[test]
fn trailers_that_nobody_announced_arrive_on_h2() -> Result<()> {
    if !ready("trailers_that_nobody_announced_arrive_on_h2", &["curl"]) {
        return Ok(());
    }
    let rig = tls_rig()?;
    let url = format!("https://{}/tunnel/dev/trailed", internal());
    // curl writes trailers where it writes the head.
    let head = rig.bed.path("head").to_string_lossy().into_owned();
    let arguments = ["-sS", "--fail", "--cacert", &rig.ca, "--http2"];
    let more = ["-H", "TE: trailers", "-D", &head, &url];
    let body = rig
        .bed
        .client
        .output("curl", &[&arguments[..], &more].concat())?;
    let head = std::fs::read_to_string(&head)?;
    assert!(head.starts_with("HTTP/2 200"), "{head}");
    assert_eq!(body, "body");
    assert!(head.contains("grpc-status: 0"), "{head}");
    assert!(!head.contains("forged"), "{head}");
    Ok(())
}

#[test]
fn a_new_certificate_is_served_without_a_lost_request() -> Result<()> {
    if !ready(
        "a_new_certificate_is_served_without_a_lost_request",
        &["openssl"],
    ) {
        return Ok(());
    }
    let mut rig = tls_rig()?;
    let (bed, ca, authority) = (&rig.bed, &rig.ca, &rig.authority);
    let address = internal().to_string();
    let serial = || {
        let line = format!(
            "openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -serial"
        );
        bed.client.output("sh", &["-c", &line])
    };
    let url = format!("https://{address}/tunnel/dev/id/x");
    let fetch = || {
        bed.client
            .output("curl", &["-sS", "--fail", "--cacert", ca, &url])
    };
    let old = serial()?;
    assert_eq!(fetch()?, "x");
    authority.issue(&hub_names(), false, &bed.path("server"))?;
    let start = std::time::Instant::now();
    wait_for(
        "the new certificate is served",
        Duration::from_secs(70),
        || {
            assert_eq!(fetch().expect("requests go on during the change"), "x");
            (serial().ok()? != old).then_some(())
        },
    )?;
    println!("served {:?} after it was written", start.elapsed());
    let metrics = bed.client.output(
        "curl",
        &["-sS", "--cacert", ca, &format!("https://{address}/metrics")],
    )?;
    assert_eq!(client::metric(&metrics, "agents_connected"), 1.0);
    assert!(!rig.dataplane.log().contains("panicked"));
    // A broken pair changes nothing.
    rig.dataplane
        .expect(&["certificates are refused; the last ones are used"]);
    std::fs::write(bed.path("server.pem"), "no certificate").context("breaking it")?;
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(fetch()?, "x");
    Ok(())
}
