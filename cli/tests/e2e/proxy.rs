//! An agent that reaches the hub only through a CONNECT proxy with Basic authentication.

use std::time::Duration;

use anyhow::{Context, Result};
use culvert_perf::testbed::{HUB_FOR_PROXY, Layout, PROXY_FOR_SITE, Process, Spawn, Testbed};

use crate::client;
use crate::hub::{Agent, DEV_TOKEN, PUBLIC, START_MAX, dataplane, internal, ready, write_clusters};
use crate::mtls::{Authority, hub_names};
use crate::upstream::Upstream;
use crate::watched::{HUB_GONE, Watched};

fn tinyproxy(bed: &Testbed) -> Result<Process> {
    let config = bed.path("tinyproxy.conf");
    std::fs::write(
        &config,
        format!(
            "User root\nGroup root\nPort 3128\nListen {PROXY_FOR_SITE}\nTimeout 600\n\
             MaxClients 50\nLogLevel Connect\nBasicAuth agent s3cret\nConnectPort {PUBLIC}\n"
        ),
    )?;
    let namespace = bed.proxy.as_ref().context("a proxied layout")?;
    let mut proxy = Spawn::new("tinyproxy")
        .args(["-d", "-c", &config.to_string_lossy()])
        .start(bed, namespace, "tinyproxy")?;
    proxy.wait_port(namespace, (PROXY_FOR_SITE, 3128).into(), START_MAX)?;
    Ok(proxy)
}

#[test]
fn through_a_connect_proxy_with_basic_authentication() -> Result<()> {
    if !ready(
        "through_a_connect_proxy_with_basic_authentication",
        &["tinyproxy"],
    ) {
        return Ok(());
    }
    let bed = Testbed::new(Layout {
        proxied: true,
        ..Layout::default()
    })?;
    let upstream = Upstream::start(&bed.site)?;
    let proxy = tinyproxy(&bed)?;
    let authority = Authority::new()?;
    let ca = authority.write(&bed.path("ca.pem"))?;
    let (cert, key) = authority.issue(&hub_names(), false, &bed.path("server"))?;
    let clusters = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
    let tls = [
        "--clusters",
        &clusters,
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let _dataplane = dataplane(&bed, "dataplane", &tls)?;
    let server = format!("wss://{HUB_FOR_PROXY}:{PUBLIC}/agent");
    let agent = |name: &'static str, health: u16| {
        let mut agent = Agent::plain(&bed.site, name, DEV_TOKEN, upstream.address);
        agent.server = server.clone();
        agent.health = health;
        agent.arguments = [
            "--plain-target",
            "--target-kind",
            "http",
            "--server-ca-cert",
            &ca,
        ]
        .map(str::to_owned)
        .to_vec();
        agent
    };

    // Straight out: the site has no way.
    let direct = agent("direct", 8082);
    let mut process = direct.spawn(&bed)?;
    process.expect(HUB_GONE);
    process.wait_until(
        "it says that the dial failed",
        Duration::from_secs(15),
        |process| {
            process
                .log()
                .to_ascii_lowercase()
                .contains("warn")
                .then_some(())
        },
    )?;
    assert!(!direct.is_ready());
    drop(process);

    // A wrong password blames the proxy, not the token.
    let wrong = agent("wrong", 8083).with(&["--proxy", "http://agent:wrong@10.77.5.1:3128"]);
    let mut process = wrong.spawn(&bed)?;
    process.expect(HUB_GONE);
    process.wait_until("it names the proxy", Duration::from_secs(10), |process| {
        let log = process.log().to_ascii_lowercase();
        // tinyproxy says 401 where RFC 9110 wants 407.
        (log.contains("proxy") && (log.contains("407") || log.contains("401"))).then_some(())
    })?;
    assert!(
        process.log().contains(r#""side":"path""#),
        "{}",
        process.log()
    );
    assert!(
        !process.log().contains("wrong@"),
        "the password is in the log"
    );
    assert!(
        !process.log().contains("agent:wrong"),
        "the password is in the log"
    );
    drop(process);

    // By flag, and by the environment that everybody else reads.
    let flag = agent("flag", 8084).with(&["--proxy", "http://agent:s3cret@10.77.5.1:3128"]);
    let by_flag = flag.start(&bed)?;
    let fetch = |id: &str| {
        let url = format!("https://{}/tunnel/dev/id/{id}", internal());
        bed.client
            .output("curl", &["-sS", "--fail", "--cacert", &ca, &url])
    };
    assert_eq!(fetch("flag")?, "flag");
    drop(by_flag);
    let env = agent("env", 8085);
    let spawn = Spawn::new(crate::hub::binary("culvert-agent")?)
        .env("TOKEN", DEV_TOKEN)
        .env("HTTPS_PROXY", "http://agent:s3cret@10.77.5.1:3128")
        .args(["--server", &env.server, "--target", &env.target])
        .args(["--health-addr", "127.0.0.1:8085"])
        .args(["--state-dir", &bed.path("env-state").to_string_lossy()])
        .args(&env.arguments);
    let mut by_env = Watched::start(spawn, &bed, &bed.site, "env")?;
    by_env.wait_until("session up", START_MAX, |_| env.is_ready().then_some(()))?;
    assert_eq!(fetch("env")?, "env");
    assert!(proxy.log().contains("CONNECT"), "the proxy saw it");
    let health = ([127, 0, 0, 1], 8085).into();
    assert_eq!(client::get(&bed.site, health, "/readyz")?.status, 200);
    Ok(())
}
