//! What the relay's operator can find: neither in what passes the relay's interfaces nor in the
//! relay's memory nor in a core dump of it is there plaintext, a private key of the pair or its
//! pairing code. The relay is as it runs everywhere: it writes no core itself, so root takes one.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_pair::{BrokerState, Key, PairJoin, Registration};
use culvert_perf::testbed::{HUB_FOR_CLIENT, HUB_FOR_SITE, SITE, Spawn, Testbed};

use super::{BROKER, Files, RELAY, bed, wait_ready};
use crate::client::Live;
use crate::hub::{START_MAX, binary, ready};
use crate::routed::sealed::each_region;
use crate::upstream::base64;
use crate::watched::Watched;

/// Passes through the pair, and stands nowhere else.
const CANARY: &[u8] = b"only the two ends may read this: 91c7e2d4;";
/// Passes the relay's host in the clear: what the search of the capture has to find.
const PLANTED: &[u8] = b"anybody on the way may read that: 5b08fa63;";
const REPEATS: usize = 2_000;
/// What `culvert-relay/1` shows of itself on the wire.
const ALPN: &[u8] = b"culvert-relay/1";

/// Texts that are looked for, all of them in one pass.
#[derive(Default)]
struct Needles {
    texts: Vec<(String, Vec<u8>)>,
    found: BTreeSet<String>,
}

impl Needles {
    fn add(&mut self, what: impl Into<String>, bytes: impl AsRef<[u8]>) {
        self.texts.push((what.into(), bytes.as_ref().to_vec()));
    }

    /// A secret number also backwards: libraries keep them so.
    fn number(&mut self, what: &str, bytes: &[u8]) {
        self.add(what, bytes);
        let backwards: Vec<u8> = bytes.iter().rev().copied().collect();
        self.add(format!("{what}, backwards"), backwards);
    }

    /// A key in every form in which somebody may hold it.
    fn key(&mut self, whose: &str, pkcs8: &[u8]) -> Result<()> {
        self.add(format!("{whose}'s key, DER"), pkcs8);
        let scalar = scalar(pkcs8).with_context(|| format!("{whose}'s key"))?;
        self.number(&format!("{whose}'s key, number"), scalar);
        for (nth, line) in base64(pkcs8).as_bytes().chunks(64).take(2).enumerate() {
            self.add(format!("{whose}'s key, PEM line {nth}"), line);
        }
        Ok(())
    }

    /// Looks through one stretch of bytes.
    fn look(&mut self, bytes: &[u8]) {
        let mut begins = vec![false; 1 << 16];
        let start = |two: &[u8]| usize::from(two[0]) << 8 | usize::from(two[1]);
        for (_, text) in &self.texts {
            begins[start(text)] = true;
        }
        for (at, two) in bytes.windows(2).enumerate() {
            if begins[start(two)] {
                let rest = &bytes[at..];
                let here = self.texts.iter().filter(|(_, text)| rest.starts_with(text));
                self.found.extend(here.map(|(what, _)| what.clone()));
            }
        }
    }

    /// What of it stands in these bytes.
    fn in_bytes(&mut self, bytes: &[u8]) -> BTreeSet<String> {
        self.look(bytes);
        std::mem::take(&mut self.found)
    }

    /// What of it stands in a core dump of a process, of all that it has mapped; and its size.
    fn in_core(&mut self, bed: &Testbed, pid: u32) -> Result<(BTreeSet<String>, usize)> {
        let (pid, prefix) = (pid.to_string(), bed.path("core"));
        let prefix = prefix.to_string_lossy();
        bed.hub.output("gcore", &["-a", "-o", &prefix, &pid])?;
        let path = format!("{prefix}.{pid}");
        let core = std::fs::read(&path)?;
        std::fs::remove_file(path)?;
        Ok((self.in_bytes(&core), core.len()))
    }

    /// What of it stands in the memory of a process.
    fn in_memory(&mut self, pid: u32) -> Result<BTreeSet<String>> {
        each_region(pid, |region| {
            self.look(region);
            false
        })?;
        Ok(std::mem::take(&mut self.found))
    }
}

/// The private number in an EC key's PKCS#8.
fn scalar(pkcs8: &[u8]) -> Result<&[u8]> {
    let mark = [2, 1, 1, 4, 32];
    let at = pkcs8.windows(mark.len()).position(|it| it == mark);
    let start = at.context("no EC private key")? + mark.len();
    pkcs8.get(start..start + 32).context("32 bytes")
}

/// The first file below `directory` that `read` takes.
fn document<T>(directory: &Path, read: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path)?;
            open.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        } else if let Some(document) = read(&std::fs::read(&path)?) {
            return Ok(document);
        }
    }
    anyhow::bail!("no document below {}", directory.display())
}

/// The sides, joined by a pairing code.
struct Joined {
    broker: Watched,
    bridge: Watched,
    word: String,
}

fn join(bed: &Testbed, files: &Files, service: SocketAddr, each: &[&str]) -> Result<Joined> {
    let culvert = binary("culvert")?.to_string_lossy().into_owned();
    let store = format!("file:{}", bed.path("store").display());
    let state = format!("file:{}", bed.path("state").display());
    let relay = format!("{HUB_FOR_SITE}:{RELAY}");
    let init = ["pair", "init", "--name", "blind", "--relay", &relay];
    let word = bed
        .site
        .output(&culvert, &[&init[..], &["--store", &store]].concat())?;
    let file = bed.path("join");
    std::fs::write(&file, &word)?;
    let agent = |role: &str| -> Result<Spawn> {
        Ok(Spawn::new(binary("culvert-agent")?).args([role, "--relay-ca", &files.relay_ca]))
    };
    let bridge = agent("bridge")?
        .args(["--to", &service.to_string()])
        .args(["--relay", &relay, "--store", &store]);
    let mut bridge = Watched::start(bridge, bed, &bed.site, "bridge")?;
    let broker = agent("broker")?
        .args(["--relay", &format!("{HUB_FOR_CLIENT}:{RELAY}")])
        .args(["--join-file", &file.to_string_lossy(), "--state", &state])
        .args(each);
    let mut broker = Watched::start(broker, bed, &bed.client, "broker")?;
    wait_ready(&mut bridge, &bed.site)?;
    wait_ready(&mut broker, &bed.client)?;
    Ok(Joined {
        broker,
        bridge,
        word: word.trim().to_owned(),
    })
}

/// Every secret of the pair, and its info hash.
fn secrets(bed: &Testbed, word: &str) -> Result<(Needles, Vec<u8>)> {
    let mut needles = Needles::default();
    let kept = document(&bed.path("store"), |it| {
        Registration::from_document(it).ok()
    })?;
    let state = document(&bed.path("state"), |it| BrokerState::from_document(it).ok())?;
    let authority = Key::from_pem(&kept.authority().key_pem())?;
    needles.key("the authority", authority.pkcs8_der())?;
    needles.key("the bridge", kept.bridge().key_pkcs8_der())?;
    let broker = state.identity().context("the broker's certificate")?;
    needles.key("the broker", broker.key_pkcs8_der())?;
    needles.key("the bootstrap", state.boot_key().pkcs8_der())?;
    let code = PairJoin::decode(word)?.code;
    needles.number("the pairing code", code.expose());
    needles.number("the seed made of it", &*code.boot_seed());
    needles.number("the proof's key", &*code.proof_key());
    needles.add("the pairing code's word", code.encode().as_bytes());
    needles.add("the join string", word);
    needles.add("plaintext", CANARY);
    Ok((needles, kept.info_hash().0.to_vec()))
}

/// Sends `text` many times to `to` and back; the connection stays.
fn converse(bed: &Testbed, to: SocketAddr, text: &[u8]) -> Result<Live> {
    let sent = text.repeat(REPEATS);
    let mut live = Live::open(&bed.client, to, &sent)?;
    live.read_until(Duration::from_secs(30), |got| got.len() >= sent.len())?;
    ensure!(live.received == sent, "an echo");
    Ok(live)
}

/// Sends back what comes, until the listener's process ends.
fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || copy_back(&mut stream));
        }
    });
}

fn copy_back(stream: &mut TcpStream) {
    let mut piece = vec![0; 32 << 10];
    while let Ok(got @ 1..) = stream.read(&mut piece) {
        if stream.write_all(&piece[..got]).is_err() {
            return;
        }
    }
}

#[test]
fn the_relay_holds_no_plaintext_key_or_code() -> Result<()> {
    blind("the_relay_holds_no_plaintext_key_or_code", &[])
}

#[test]
fn the_relay_holds_none_of_a_connection_with_its_own_pair() -> Result<()> {
    let name = "the_relay_holds_none_of_a_connection_with_its_own_pair";
    blind(name, &["--flow-per-pair"])
}

fn blind(name: &str, each: &[&str]) -> Result<()> {
    if !ready(name, &["tcpdump", "gcore"]) {
        return Ok(());
    }
    let bed = bed()?;
    let files = Files::make(&bed)?;
    let relay = files.relay(&bed, "relay", &[])?;
    let capture = bed.path("relay.pcap");
    let mut tcpdump = Spawn::new("tcpdump")
        .args(["-i", "any", "-s", "0", "-U", "-Z", "root", "-w"])
        .args([&capture])
        .start(&bed, &bed.hub, "tcpdump")?;
    tcpdump.wait_log("listening on", START_MAX)?;
    let service = SocketAddr::from((SITE, 5_000));
    echo(bed.site.run(|| TcpListener::bind(service))?);
    let open = SocketAddr::from((HUB_FOR_CLIENT, 5_001));
    echo(bed.hub.run(|| TcpListener::bind(open))?);

    let joined = join(&bed, &files, service, each)?;
    let (mut needles, info_hash) = secrets(&bed, &joined.word)?;
    let count = needles.texts.len();
    needles.add("info hash", &info_hash);
    needles.add("planted", PLANTED);
    needles.add("alpn", ALPN);
    let sealed = converse(&bed, BROKER, CANARY)?;
    let _open = converse(&bed, open, PLANTED)?;

    // While the conversation stands: the memory of the relay, and of those who may know.
    let at_relay = needles.in_memory(relay.pid())?;
    let (in_core, core_bytes) = needles.in_core(&bed, relay.pid())?;
    let at_bridge = needles.in_memory(joined.bridge.pid())?;
    let at_broker = needles.in_memory(joined.broker.pid())?;
    drop(sealed);
    tcpdump.terminate()?;
    tcpdump.wait_end(START_MAX)?;
    let captured = std::fs::read(&capture)?;
    let on_the_wire = needles.in_bytes(&captured);
    println!(
        "{count} secrets; relay {at_relay:?}; core ({core_bytes} bytes) {in_core:?}; \
         wire ({} bytes) {on_the_wire:?}\n\
         bridge {at_bridge:?}\nbroker {at_broker:?}",
        captured.len()
    );

    // The searches find what is there.
    let holds = |set: &BTreeSet<String>, what: &str| set.iter().any(|it| it.starts_with(what));
    assert!(holds(&in_core, "info hash") && holds(&in_core, "alpn"));
    assert!(core_bytes > 1 << 20);
    for (side, own) in [
        (&at_bridge, "the bridge's key"),
        (&at_broker, "the broker's key"),
    ] {
        assert!(holds(side, own) && holds(side, "plaintext"));
    }
    assert!(holds(&at_bridge, "the pairing code"));
    assert!(holds(&on_the_wire, "planted") && holds(&on_the_wire, "alpn"));
    assert!(captured.len() > 2 * REPEATS * CANARY.len());
    // And nothing else.
    let public = ["info hash", "planted", "alpn"].map(str::to_owned);
    let leaked = |set: &BTreeSet<String>| -> Vec<String> {
        let secret = set.iter().filter(|it| !public.contains(it));
        secret.cloned().collect()
    };
    assert_eq!(leaked(&at_relay), Vec::<String>::new(), "in memory");
    assert_eq!(leaked(&in_core), Vec::<String>::new(), "in a core dump");
    assert_eq!(leaked(&on_the_wire), Vec::<String>::new(), "on the wire");
    Ok(())
}
