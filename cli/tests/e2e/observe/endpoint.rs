//! `GET /connections` and `culvert top` over connections that live.

use super::*;

#[test]
fn connections_are_listed_sorted_and_bounded() -> Result<()> {
    if !observing("connections_are_listed_sorted_and_bounded", &[]) {
        return Ok(());
    }
    let rig = Observed::start(&["--ebpf", "require"])?;
    let _echo = Echo::start(&rig.bed.site)?;
    let mut quiet = Vec::new();
    for _ in 0..5 {
        quiet.push(rig.connect()?);
    }
    let mut busy = rig.connect()?;
    for _ in 0..200 {
        ping(&mut busy)?;
    }
    let list = rig.connections("cluster=dev&sort=bytes&limit=2")?;
    let first = &list["connections"][0];
    println!("{first:#}");
    assert_eq!(
        (list["total"].as_u64(), list["tier"].as_str()),
        (Some(6), Some("skb"))
    );
    assert_eq!(list["connections"].as_array().map(Vec::len), Some(2));
    let near = busy.local_addr()?.to_string();
    let client = &first["legs"][0];
    assert_eq!(client["peer"].as_str(), Some(near.as_str()));
    assert_eq!(client["rx_bytes"], 200 * 200 + 5);
    assert_eq!(first["legs"][1]["leg"], "data");
    assert!(
        client["rtt_samples"].as_u64().is_some_and(|it| it > 0),
        "{client}"
    );
    assert!(
        client["srtt_us"].as_u64().is_some_and(|us| us < 100_000),
        "{client}"
    );
    for direction in ["to_service", "to_client"] {
        let residence = &first["residence"][direction];
        assert!(
            residence["samples"].as_u64().is_some_and(|it| it >= 150),
            "{residence}"
        );
        assert!(
            residence["p99_us"].as_u64() >= residence["p50_us"].as_u64(),
            "{residence}"
        );
    }
    assert_eq!(rig.connections("cluster=other")?["total"], 0);
    let data = rig.connections("leg=data&sort=retrans")?;
    assert_eq!(
        data["connections"][0]["legs"].as_array().map(Vec::len),
        Some(1)
    );
    for absurd in [
        "limit=0",
        "limit=4096",
        "sort=name",
        "peer=x",
        "leg=all",
        "limit=1&limit=2",
    ] {
        let answer = client::get(&rig.bed.hub, ADMIN, &format!("/connections?{absurd}"))?;
        assert_eq!(answer.status, 400, "{absurd}: {}", answer.text());
    }
    let culvert = binary("culvert")?.to_string_lossy().into_owned();
    let top = |form: &str| {
        let arguments = [
            "top",
            "--once",
            "--sort",
            "bytes",
            "--cluster",
            "dev",
            "--output",
            form,
        ];
        rig.bed.hub.output(&culvert, &arguments)
    };
    let told: Value = serde_json::from_str(&top("json")?)?;
    assert_eq!(told["list"]["total"], 6);
    let table = top("table")?;
    println!("{table}");
    assert!(
        table.contains("tier skb") && table.contains(&near),
        "{table}"
    );
    drop((quiet, busy));
    Ok(())
}

#[test]
fn a_scraper_that_reads_a_byte_a_second_costs_nobody() -> Result<()> {
    if !observing("a_scraper_that_reads_a_byte_a_second_costs_nobody", &[]) {
        return Ok(());
    }
    let rig = Observed::start(&["--ebpf", "require"])?;
    let _echo = Echo::start(&rig.bed.site)?;
    let mut stream = rig.connect()?;
    let slow: Vec<_> = (0..8)
        .map(|_| {
            rig.bed.hub.run(|| {
                let mut slow = TcpStream::connect(ADMIN)?;
                slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")?;
                slow.read_exact(&mut [0])?;
                anyhow::Ok(slow)
            })
        })
        .collect::<Result<_>>()?;
    let began = std::time::Instant::now();
    for mut slow in slow.iter().take(3) {
        slow.read_exact(&mut [0])?;
        for _ in 0..20 {
            ping(&mut stream)?;
        }
        assert_eq!(rig.scrape()?.tier(), "skb");
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    Ok(())
}
