//! A relay is drained: who waits goes elsewhere, who talks has the grace.

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{Testbed, wait_for};

use super::echo::{self, PAIR_GONE, RELAY_GONE, again, ask};
use super::{Files, RELAY, bed, wait_ready};
use crate::client;
use crate::hub::ready;
use crate::routed::metric;
use crate::watched::Watched;

const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
const SECOND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9911);
const GRACE: Duration = Duration::from_secs(6);

/// New connections all the time, until two seconds after the end of `first`: how what was held
/// ended, when the relay did, and who was not served.
fn ask_beyond_its_end(
    first: &mut Watched,
    bed: &Testbed,
    held: &mut TcpStream,
    start: Instant,
) -> Result<(Option<Error>, Duration, Vec<String>)> {
    let (mut asked, mut lost, mut longest) = (0, Vec::new(), Duration::ZERO);
    let (mut ended, mut cut) = (None, None);
    while ended.is_none_or(|ended: Instant| ended.elapsed() < Duration::from_secs(2)) {
        let began = Instant::now();
        asked += 1;
        match ask(&bed.client, Duration::from_secs(20)) {
            Ok(_) => longest = longest.max(began.elapsed()),
            Err(why) => lost.push(format!("{:?}: {why}", began - start)),
        }
        match first.status() {
            // It may be cut between the look and the word.
            None => {
                if let Err(why) = again(held) {
                    ensure!(start.elapsed() >= GRACE, "cut within the grace: {why}");
                    cut.get_or_insert(why);
                }
            }
            Some(status) if ended.is_none() => {
                ensure!(status.success(), "{status}");
                ended = Some(Instant::now());
                println!("it ended {:?} after the order", start.elapsed());
            }
            Some(_) => {}
        }
        ensure!(start.elapsed() < Duration::from_secs(30), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{asked} new connections, the slowest took {longest:?}, lost: {lost:?}");
    let ended = ended.map_or(Duration::ZERO, |ended| ended - start);
    Ok((cut, ended, lost))
}

#[test]
fn a_drained_relay_hands_over() -> Result<()> {
    if !ready("a_drained_relay_hands_over", &[]) {
        return Ok(());
    }
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let to = echo::start(&bed.site)?;
    let mut first = files.relay(&bed, "first", &["--drain-grace", "6s"])?;
    let other = RELAY + 1;
    let mut bridge = files.bridge(&bed, to, &[&format!("--relay=10.77.2.1:{other}")])?;
    bridge.expect(RELAY_GONE);
    wait_ready(&mut bridge, &bed.site)?;
    let mut broker = files.broker(&bed, &[&format!("--relay=10.77.1.1:{other}")])?;
    broker.expect(PAIR_GONE);
    wait_ready(&mut broker, &bed.client)?;
    // It comes when the pair stands already, at the first.
    let addr = format!("0.0.0.0:{other}");
    let flags = ["--addr", &addr, "--admin-addr", &SECOND.to_string()];
    let _second = files.relay(&bed, "second", &flags)?;
    let count = |admin, of: &str| metric(&bed.hub, admin, of).ok();
    let wait_count = |what: &str, admin, of: &str, wanted: f64| {
        wait_for(what, Duration::from_secs(20), || {
            (count(admin, of) == Some(wanted)).then_some(())
        })
    };
    wait_count("the bridge at both", SECOND, "culvert_pair_waiting", 2.0)?;
    wait_count("the pair at the first", FIRST, "culvert_pair_live", 1.0)?;
    let mut held = ask(&bed.client, Duration::from_secs(20))?;

    let answer = client::ask(&bed.hub, FIRST, "POST", "/admin/drain", &[], b"")?;
    let start = Instant::now();
    ensure!(answer.status == 202, "{answer:?}");
    ensure!(client::get(&bed.hub, FIRST, "/readyz")?.status == 503);
    wait_count("nobody to wait at it", FIRST, "culvert_pair_waiting", 0.0)?;
    println!("its waiters went within {:?}", start.elapsed());

    let (cut, ended, lost) = ask_beyond_its_end(&mut first, &bed, &mut held, start)?;
    // What lived through the grace is told by a reset that it is over.
    let cut = cut.or_else(|| again(&mut held).err());
    let kind = cut.context("the pair of the drained relay is over")?.kind();
    ensure!(kind != ErrorKind::UnexpectedEof, "a clean end");
    ensure!(
        ended > GRACE - Duration::from_secs(1),
        "the grace was {ended:?}"
    );
    // One may have been in the middle of its word when the pair was cut.
    ensure!(lost.len() <= 1, "{lost:?}");
    wait_count("the pair at the second", SECOND, "culvert_pair_live", 1.0)
}
