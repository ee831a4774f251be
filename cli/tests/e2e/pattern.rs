//! Position-dependent bytes over many connections of random lives: whatever is lost, changed,
//! moved or cut and told as a clean end is found.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use culvert_perf::testbed::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, oneshot};

/// The plan travels in front of the pattern.
const PLAN_BYTES: usize = 48;
/// Largest piece written or read at once.
const PIECE_BYTES: usize = 96 << 10;
/// Longest life of one connection.
const LIFE_MAX: Duration = Duration::from_secs(120);

/// How one connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Life {
    /// Both send at once, each ends when it is done.
    Both = 0,
    /// The service answers after the client's FIN.
    ClientFirst = 1,
    /// The client sends after the service's FIN.
    ServiceFirst = 2,
    /// The client resets in the middle of what it sends.
    ClientResets = 3,
    /// The service resets in the middle of what it sends.
    ServiceResets = 4,
}

const LIVES: [Life; 5] = [
    Life::Both,
    Life::ClientFirst,
    Life::ServiceFirst,
    Life::ClientResets,
    Life::ServiceResets,
];

#[derive(Clone, Copy, Debug)]
struct Plan {
    number: u64,
    up: u64,
    down: u64,
    life: Life,
    /// Pauses while reading and while writing.
    slow: bool,
    seed: u64,
}

/// What one end saw of the other.
#[derive(Debug)]
struct Seen {
    bytes: u64,
    end: io::Result<()>,
}

/// What passed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub connections: u64,
    pub bytes: u64,
    pub resets: u64,
}

/// A small generator: the same seed gives the same lives.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// Eight bytes of the pattern.
fn word(seed: u64, index: u64) -> [u8; 8] {
    let mixed = (index ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 32)).to_le_bytes()
}

/// Writes the pattern of `seed` from position `at` on.
fn fill(seed: u64, at: u64, out: &mut [u8]) {
    let mut position = at;
    let mut rest = out;
    while !rest.is_empty() {
        let skip = usize::try_from(position % 8).unwrap_or(0);
        let bytes = &word(seed, position / 8)[skip..];
        let count = bytes.len().min(rest.len());
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&bytes[..count]);
        position += count as u64;
        rest = later;
    }
}

/// The pattern's position is checked byte by byte.
fn check(seed: u64, at: u64, data: &[u8]) -> Result<()> {
    let mut expected = vec![0; data.len()];
    fill(seed, at, &mut expected);
    match data
        .iter()
        .zip(&expected)
        .position(|(got, want)| got != want)
    {
        None => Ok(()),
        Some(wrong) => bail!("a wrong byte at position {}", at + wrong as u64),
    }
}

impl Plan {
    fn random(number: u64, mean_bytes: u64, random: &mut Random) -> Plan {
        // Sizes over three orders of magnitude, the mean as asked.
        let size = |random: &mut Random| {
            let scale = [mean_bytes / 50, mean_bytes, mean_bytes * 4];
            let scale = scale[usize::try_from(random.below(3)).unwrap_or(0)];
            random.below(scale.max(2) * 6 / 5)
        };
        Plan {
            number,
            up: size(random),
            down: size(random),
            life: LIVES[usize::try_from(random.below(5)).unwrap_or(0)],
            slow: random.below(8) == 0,
            seed: random.next(),
        }
    }

    fn encode(&self) -> [u8; PLAN_BYTES] {
        let mut out = [0; PLAN_BYTES];
        let words = [self.number, self.up, self.down, self.seed];
        for (place, value) in out.chunks_mut(8).zip(words) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        out[32] = self.life as u8;
        out[33] = u8::from(self.slow);
        out
    }

    fn decode(bytes: &[u8; PLAN_BYTES]) -> Result<Plan> {
        let word = |at: usize| {
            let bytes = bytes[at * 8..].first_chunk().copied();
            bytes.map(u64::from_le_bytes).context("a word")
        };
        Ok(Plan {
            number: word(0)?,
            up: word(1)?,
            down: word(2)?,
            seed: word(3)?,
            life: *LIVES.get(usize::from(bytes[32])).context("a life")?,
            slow: bytes[33] == 1,
        })
    }

    fn seeds(&self) -> (u64, u64) {
        (self.seed, !self.seed)
    }
}

/// Sends `count` bytes of the pattern; then FIN, or RST when `reset`.
async fn send(
    stream: &mut (impl AsyncWriteExt + Unpin),
    seed: u64,
    count: u64,
    plan: &Plan,
) -> io::Result<()> {
    let mut random = Random(seed ^ 7);
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < count {
        let size = random.below(PIECE_BYTES as u64 - 1) + 1;
        let size = usize::try_from(size.min(count - at)).unwrap_or(PIECE_BYTES);
        fill(seed, at, &mut piece[..size]);
        stream.write_all(&piece[..size]).await?;
        at += size as u64;
        if plan.slow && random.below(8) == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(40))).await;
        }
    }
    Ok(())
}

/// Reads to the end and checks each byte's position.
async fn receive(stream: &mut (impl AsyncReadExt + Unpin), seed: u64, plan: &Plan) -> Result<Seen> {
    let mut random = Random(seed ^ 11);
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        let size = usize::try_from(random.below(PIECE_BYTES as u64 - 1) + 1)?;
        match stream.read(&mut piece[..size]).await {
            Ok(0) => {
                let end = Ok(());
                return Ok(Seen { bytes, end });
            }
            Ok(got) => {
                check(seed, bytes, &piece[..got])?;
                bytes += got as u64;
            }
            Err(why) => {
                let end = Err(why);
                return Ok(Seen { bytes, end });
            }
        }
        if plan.slow && random.below(8) == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        }
    }
}

/// Part of `count` after which a reset comes.
fn cut(count: u64, seed: u64) -> u64 {
    Random(seed).below(count)
}

/// The life of a connection as the end that `starts` sees it: the client in `ClientFirst` and
/// `ClientResets`, the service in the two others.
async fn live(mut stream: TcpStream, plan: Plan, own: Own) -> Result<Seen> {
    stream.set_nodelay(true)?;
    let resets = plan.life == own.resets;
    if resets {
        stream.set_zero_linger()?;
        let count = cut(own.sends, plan.seed);
        let _ = send(&mut stream, own.seed, count, &plan).await;
        // Gone with whatever was not delivered yet.
        drop(stream);
        let end = Ok(());
        return Ok(Seen { bytes: 0, end });
    }
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        let sent = send(&mut writer, own.seed, own.sends, &plan).await;
        sent.and(writer.shutdown().await)
    };
    let receiving = receive(&mut reader, own.hears, &plan);
    if plan.life == own.speaks_first {
        let sent = sending.await;
        let seen = receiving.await?;
        sent.context("sending first")?;
        return Ok(seen);
    }
    if plan.life == own.hears_first {
        let seen = receiving.await?;
        sending.await.context("sending second")?;
        return Ok(seen);
    }
    let (sent, seen) = tokio::join!(sending, receiving);
    let mut seen = seen?;
    if seen.end.is_ok() {
        // The kernel tells of a reset once: if the writer heard it, the reader sees an end.
        seen.end = sent;
    }
    Ok(seen)
}

/// What differs between the two ends.
#[derive(Clone, Copy)]
struct Own {
    sends: u64,
    seed: u64,
    hears: u64,
    resets: Life,
    speaks_first: Life,
    hears_first: Life,
}

impl Own {
    fn client(plan: &Plan) -> Own {
        Own {
            sends: plan.up,
            seed: plan.seeds().0,
            hears: plan.seeds().1,
            resets: Life::ClientResets,
            speaks_first: Life::ClientFirst,
            hears_first: Life::ServiceFirst,
        }
    }

    fn service(plan: &Plan) -> Own {
        Own {
            sends: plan.down,
            seed: plan.seeds().1,
            hears: plan.seeds().0,
            resets: Life::ServiceResets,
            speaks_first: Life::ServiceFirst,
            hears_first: Life::ClientFirst,
        }
    }
}

/// What a client waits for from the service's end.
struct Told {
    /// The plan arrived.
    began: oneshot::Sender<()>,
    seen: oneshot::Sender<Result<Seen>>,
}

type Waiting = Arc<Mutex<HashMap<u64, Told>>>;

async fn serve(mut stream: TcpStream, waiting: Waiting) -> Result<()> {
    let mut head = [0; PLAN_BYTES];
    stream.read_exact(&mut head).await?;
    let plan = Plan::decode(&head)?;
    let told = waiting.lock().await.remove(&plan.number);
    let told = told.with_context(|| format!("a plan nobody sent: {plan:?}"))?;
    let _ = told.began.send(());
    let _ = told
        .seen
        .send(live(stream, plan, Own::service(&plan)).await);
    Ok(())
}

/// One connection from end to end, and the verdict over both.
async fn connection(to: SocketAddr, plan: Plan, waiting: Waiting) -> Result<Tally> {
    let (began, begins) = oneshot::channel();
    let (seen, sees) = oneshot::channel();
    waiting
        .lock()
        .await
        .insert(plan.number, Told { began, seen });
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(&plan.encode()).await?;
    if plan.life == Life::ClientResets {
        // A reset may take along what was not read yet, the plan too.
        begins.await.context("the plan did not arrive")?;
    }
    let client = live(stream, plan, Own::client(&plan)).await?;
    let service = sees.await.context("the service heard nothing of it")??;
    let clean = |seen: &Seen, planned: u64, who: &str| -> Result<()> {
        match &seen.end {
            Ok(()) if seen.bytes == planned => Ok(()),
            Ok(()) => bail!("{who} was told a clean end at {} of {planned}", seen.bytes),
            Err(why) => bail!("{who} got {} of {planned}, then: {why}", seen.bytes),
        }
    };
    let broken = |seen: &Seen, planned: u64, who: &str| -> Result<()> {
        let told_clean = seen.end.is_ok() && seen.bytes < planned;
        ensure!(
            !told_clean,
            "{who}: a cut at {} of {planned} told as a clean end",
            seen.bytes
        );
        ensure!(seen.end.is_err(), "{who}: a reset was told as a clean end");
        Ok(())
    };
    let (up, down) = (plan.up, plan.down);
    match plan.life {
        Life::ClientResets => broken(&service, up, "the service")?,
        Life::ServiceResets => broken(&client, down, "the client")?,
        _ => {
            clean(&client, down, "the client")?;
            clean(&service, up, "the service")?;
        }
    }
    Ok(Tally {
        connections: 1,
        bytes: client.bytes + service.bytes,
        resets: u64::from(matches!(
            plan.life,
            Life::ClientResets | Life::ServiceResets
        )),
    })
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    pub connections: u64,
    /// Of all connections and both ways together, about.
    pub bytes: u64,
    pub at_once: usize,
    pub seed: u64,
}

/// Runs the lives from `client` through `to` to a service at `listen` in `site`.
///
/// # Errors
/// The first life that went wrong, with its plan.
pub fn run(
    client: &Namespace,
    to: SocketAddr,
    site: &Namespace,
    listen: SocketAddr,
    amount: Amount,
) -> Result<Tally> {
    let waiting = Waiting::default();
    let (services, clients) = (site.runtime()?, client.runtime()?);
    let listener = services.run(TcpListener::bind(listen))?;
    let known = waiting.clone();
    services.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, known.clone()));
        }
    });
    let mut random = Random(amount.seed);
    let mean = amount.bytes / amount.connections / 2;
    let places = Arc::new(Semaphore::new(amount.at_once));
    clients.run(async move {
        let mut lives = tokio::task::JoinSet::new();
        for number in 0..amount.connections {
            let plan = Plan::random(number, mean, &mut random);
            let place = places.clone().acquire_owned().await?;
            let waiting = waiting.clone();
            lives.spawn(async move {
                let life = tokio::time::timeout(LIFE_MAX, connection(to, plan, waiting)).await;
                drop(place);
                life.context("it did not end")
                    .flatten()
                    .with_context(|| format!("{plan:?}"))
            });
        }
        let mut all = Tally::default();
        while let Some(one) = lives.join_next().await {
            let one = one.context("a life panicked")??;
            all.connections += one.connections;
            all.bytes += one.bytes;
            all.resets += one.resets;
        }
        Ok(all)
    })
}
