//! The real Prometheus scrapes the three processes and answers what operators ask.

use crate::control::Control;
use crate::hub::Agent;
use crate::routed::run;

use super::*;

const PROMETHEUS: u16 = 9090;

/// What a query answers: its first value.
fn query(bed: &Testbed, query: &str) -> Option<f64> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let at = (Ipv4Addr::LOCALHOST, PROMETHEUS).into();
    let answer = client::get(&bed.hub, at, &format!("/api/v1/query?query={encoded}")).ok()?;
    let told: Value = serde_json::from_slice(&answer.body).ok()?;
    told["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

fn repository(name: &str) -> String {
    format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn prometheus_scrapes_the_three_processes_and_tells_the_p99_residence_of_a_cluster() -> Result<()> {
    let test = "prometheus_scrapes_the_three_processes_and_tells_the_p99_residence_of_a_cluster";
    if !observing(test, &["prometheus", "promtool"]) {
        return Ok(());
    }
    let bed = bed()?;
    let control = Control::start(&bed, "control")?;
    let token = control.add("eu-1")?;
    let state = bed.path("dataplane-state").to_string_lossy().into_owned();
    let flags = [
        "--control",
        &control.link,
        "--state-dir",
        &state,
        PLAINTEXT,
        "--ebpf",
        "require",
    ];
    let _dataplane = dataplane(&bed, "dataplane", Rights::All, &flags)?;
    control.settled()?;
    // Beside the hub, where one Prometheus reaches all three.
    let service = bed
        .client
        .run(|| TcpListener::bind(("10.77.1.2", SERVICE)))?;
    std::thread::spawn(move || {
        for mut stream in service.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(got @ 1..) = stream.read(&mut piece) {
                    if stream.write_all(&piece[..got]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let reached = format!("echo=10.77.1.2:{SERVICE}");
    let mut agent = Agent::plain(&bed.hub, "agent", &token, (SITE, 1).into());
    agent = agent.with(&["--service", &reached, PLAINTEXT]);
    let _agent = agent.start(&bed)?;
    let api = format!("unix:{}", bed.path("admin.sock").display());
    let culvert = binary("culvert")?.to_string_lossy().into_owned();
    let forward = format!("0.0.0.0:{PORT}");
    let add = [
        "--api", &api, "route", "add", "eu-1", "echo", "--tcp", &forward,
    ];
    run(&bed.hub, &culvert, &add)?;
    wait_listening(&bed, PORT)?;
    let config = format!(
        "global: {{scrape_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n\
         - job_name: control\n  static_configs: [{{targets: ['127.0.0.1:9900']}}]\n\
         - job_name: dataplane\n  static_configs: [{{targets: ['127.0.0.1:9901']}}]\n\
         - job_name: agent\n  static_configs: [{{targets: ['127.0.0.1:8081']}}]\n",
        repository("rules/culvert.rules.yml"),
    );
    let file = bed.path("prometheus.yml").to_string_lossy().into_owned();
    std::fs::write(&file, config)?;
    run(&bed.hub, "promtool", &["check", "config", &file])?;
    let mut prometheus = Spawn::new("prometheus")
        .args(["--config.file", &file])
        .args(["--storage.tsdb.path", &bed.path("tsdb").to_string_lossy()])
        .args(["--web.listen-address", "127.0.0.1:9090"])
        .start(&bed, &bed.hub, "prometheus")?;
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, PROMETHEUS).into();
    prometheus.wait_port(&bed.hub, at, START_MAX)?;
    let mut stream = wait_for("an echo", START_MAX, || {
        bed.client.run(|| {
            let mut stream = TcpStream::connect(at_hub(PORT)).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .ok()?;
            ping(&mut stream).ok().map(|()| stream)
        })
    })?;
    wait_for("all three targets", Duration::from_secs(30), || {
        ping(&mut stream).ok()?;
        (query(&bed, "count(up == 1)") == Some(3.0)).then_some(())
    })?;
    let asked = "histogram_quantile(0.99, sum by (le) (rate(culvert_relay_residence_seconds_bucket{cluster=\"eu-1\"}[1m])))";
    let p99_s = wait_for("the p99 residence of eu-1", Duration::from_secs(40), || {
        for _ in 0..20 {
            ping(&mut stream).ok()?;
        }
        query(&bed, asked).filter(|p99| p99.is_finite() && *p99 > 0.0)
    })?;
    println!("p99 residence of eu-1: {p99_s} s");
    assert!(p99_s < 0.1, "{p99_s}");
    for (job, name) in [
        ("control", "culvert_subscribers"),
        ("dataplane", "culvert_ebpf_tier{tier=\"skb\"}"),
        ("agent", "agent_connected"),
    ] {
        let labelled = match name.split_once('{') {
            Some((name, rest)) => format!("{name}{{job=\"{job}\",{rest}"),
            None => format!("{name}{{job=\"{job}\"}}"),
        };
        assert_eq!(query(&bed, &labelled), Some(1.0), "{labelled}");
    }
    // Names, help and types, as promtool judges them.
    for (job, port) in [("control", 9900), ("dataplane", 9901), ("agent", 8081)] {
        let page = client::get(&bed.hub, (Ipv4Addr::LOCALHOST, port).into(), "/metrics")?;
        let path = bed
            .path(&format!("{job}.prom"))
            .to_string_lossy()
            .into_owned();
        std::fs::write(&path, page.body)?;
        let check = format!("promtool check metrics < {path}");
        let said = run(&bed.hub, "sh", &["-c", &check]);
        assert!(said.is_ok(), "{job}: {said:?}");
    }
    Ok(())
}

#[test]
fn the_rules_pass_promtools_tests_and_the_dashboard_asks_for_what_there_is() -> Result<()> {
    let test = "the_rules_pass_promtools_tests_and_the_dashboard_asks_for_what_there_is";
    if !observing(test, &["promtool"]) {
        return Ok(());
    }
    let bed = bed()?;
    run(
        &bed.hub,
        "promtool",
        &["check", "rules", &repository("rules/culvert.rules.yml")],
    )?;
    run(
        &bed.hub,
        "promtool",
        &["test", "rules", &repository("rules/culvert.tests.yml")],
    )?;
    let known = std::fs::read_to_string(repository("docs/metrics.md"))?;
    let dashboard = std::fs::read_to_string(repository("dashboards/culvert.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let rules = std::fs::read_to_string(repository("rules/culvert.rules.yml"))?;
    let mut asked = vec![rules];
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().context("targets")? {
            asked.push(target["expr"].as_str().context("an expression")?.to_owned());
        }
    }
    let mut names = 0;
    for expression in &asked {
        for word in expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        {
            let is_family = word.starts_with("culvert_");
            if !is_family {
                continue;
            }
            names += 1;
            let family = ["_bucket", "_count", "_sum"]
                .into_iter()
                .find_map(|end| word.strip_suffix(end))
                .unwrap_or(word);
            assert!(
                known.contains(&format!("`{family}`")),
                "{word} is no metric of ours"
            );
        }
    }
    assert!(names > 30, "{names}");
    Ok(())
}
