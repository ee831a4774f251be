//! kill -9 of control, the data plane and PostgreSQL while audited writes run: every
//! request that the service saw has its attempted row, every attempt its end, and no
//! row is there twice.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{Layout, Testbed, wait_for};

use super::writes::Writes;
use super::{events, switch_on};
use crate::control::{Control, Fleet};
use crate::hub::{START_MAX, internal, ready, wait_served};
use crate::upstream::field;
use crate::watched::{CONTROL_GONE, HUB_GONE};

/// What processes say while others die.
const AUDIT_WAITS: &[&str] = &[
    "control takes no audit records; they stay in the spool",
    "audit records of a data plane wait for the store",
];
/// What control says while its store is away.
const STORE_GONE: &[&str] = &[
    "what other control processes recorded cannot be read",
    "audit rows wait for the store",
    "expiry, delivery or audit cannot be recorded",
    "last uses cannot be recorded",
    "request failed",
    "time to acquire exceeded slow threshold",
    "error occurred while testing the connection on-release",
];

/// Which process dies, round by round.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Control,
    Dataplane,
    Store,
}

struct Size {
    rounds: usize,
    /// Writes answered between two kills, at least.
    between: u64,
}

#[test]
fn kills_lose_and_double_no_audit_row() -> Result<()> {
    let name = "kills_lose_and_double_no_audit_row";
    if !ready(name, &[]) {
        return Ok(());
    }
    let size = Size {
        rounds: 6,
        between: 60,
    };
    proof(&size, None)
}

#[test]
fn kills_lose_and_double_no_audit_row_on_postgresql() -> Result<()> {
    let name = "kills_lose_and_double_no_audit_row_on_postgresql";
    if !ready(name, &["setpriv"]) {
        return Ok(());
    }
    let size = Size {
        rounds: 6,
        between: 60,
    };
    proof(&size, Some(Postgres::start()?))
}

#[test]
#[ignore = "soak"]
fn soak_kills_lose_and_double_no_audit_row() -> Result<()> {
    let name = "soak_kills_lose_and_double_no_audit_row";
    if !ready(name, &["setpriv"]) {
        return Ok(());
    }
    let size = Size {
        rounds: 60,
        between: 200,
    };
    proof(&size, Some(Postgres::start()?))
}

fn proof(size: &Size, mut postgres: Option<Postgres>) -> Result<()> {
    let bed = Testbed::new(Layout {
        second_site: true,
        ..Layout::default()
    })?;
    let dsn = match &postgres {
        Some(postgres) => postgres.dsn(),
        None => format!("sqlite:{}", bed.path("control.db").display()),
    };
    let control = Control::spawn_on(&bed, "control", "state.sock", &dsn, &[])?.answering()?;
    let mut fleet = Fleet::with(bed, control)?;
    expect(&mut fleet);
    switch_on(&fleet.control)?;
    let mut writes = Writes::start(&fleet.bed.client, internal(), 4)?;
    let seed = u64::from(std::process::id()) | 1;
    println!("seed {seed}");
    let mut random = seed;
    for round in 0..size.rounds {
        writes.wait_more(size.between, Duration::from_secs(60))?;
        // xorshift: any point between two answers.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(random % 50));
        let victims = [Victim::Control, Victim::Dataplane, Victim::Store];
        let victim = victims[round % victims.len()];
        kill(&mut fleet, postgres.as_mut(), victim, round, &dsn)?;
    }
    writes.wait_more(size.between, Duration::from_secs(60))?;
    // One more with requests under way, and nobody to end them.
    fleet.dataplane.kill_9()?;
    let (asked, answered) = finish(&mut writes, &fleet)?;
    let last = format!("dataplane-{}", size.rounds);
    fleet.dataplane = Fleet::dataplane(&fleet.bed, &last, &fleet.control.link)?;
    expect(&mut fleet);
    check(&fleet, asked, answered)
}

fn finish(writes: &mut Writes, fleet: &Fleet) -> Result<(u64, u64)> {
    let fresh = Writes::start(&fleet.bed.client, internal(), 0)?;
    Ok(std::mem::replace(writes, fresh).finish())
}

fn expect(fleet: &mut Fleet) {
    for process in [&mut fleet.dataplane, &mut fleet.control.process] {
        process.expect(CONTROL_GONE);
        process.expect(AUDIT_WAITS);
        process.expect(STORE_GONE);
    }
    fleet.dev_agent.expect(HUB_GONE);
    fleet.neighbour_agent.expect(HUB_GONE);
}

fn kill(
    fleet: &mut Fleet,
    postgres: Option<&mut Postgres>,
    victim: Victim,
    round: usize,
    dsn: &str,
) -> Result<()> {
    match (victim, postgres) {
        (Victim::Dataplane, _) => {
            fleet.dataplane.kill_9()?;
            let name = format!("dataplane-{round}");
            fleet.dataplane = Fleet::dataplane(&fleet.bed, &name, &fleet.control.link)?;
            expect(fleet);
            wait_served(&fleet.bed, "dev", Duration::from_secs(30))?;
        }
        (Victim::Store, Some(postgres)) => postgres.crash()?,
        (Victim::Control | Victim::Store, _) => {
            fleet.control.process.kill_9()?;
            let name = format!("control-{round}");
            let control = Control::spawn_on(&fleet.bed, &name, "state.sock", dsn, &[])?;
            fleet.control = control.answering()?;
            expect(fleet);
        }
    }
    Ok(())
}

/// Every request that the service saw, against the log.
fn check(fleet: &Fleet, asked: u64, answered: u64) -> Result<()> {
    let heads = fleet.dev.heads();
    let forwarded: BTreeSet<_> = heads
        .iter()
        .filter(|head| head.starts_with("POST "))
        .filter_map(|head| field(head, "x-request-id"))
        .map(str::to_owned)
        .collect();
    let mut seen = BTreeMap::new();
    // Records arrive in batches: that all which are there are complete does not mean that none
    // is on its way.
    let settled = wait_for("every attempt to be ended", Duration::from_secs(60), || {
        seen = events(&fleet.control).ok()?;
        let requests: BTreeSet<_> = seen
            .values()
            .filter_map(|rows| rows[0]["request_id"].as_str())
            .collect();
        let is_whole = forwarded.iter().all(|id| requests.contains(id.as_str()));
        (is_whole && seen.values().all(|rows| rows.len() == 2)).then_some(())
    });
    let open: Vec<_> = seen.values().filter(|rows| rows.len() != 2).collect();
    settled.with_context(|| {
        let (seen, saw) = (seen.len(), forwarded.len());
        format!("{seen} events, {saw} forwarded; not of two rows: {open:#?}")
    })?;
    let mut attempted = BTreeSet::new();
    let mut unknown = 0;
    for rows in seen.values() {
        ensure!(rows[0]["outcome"] == "attempted", "{rows:#?}");
        ensure!(rows[1]["outcome"] != "attempted", "{rows:#?}");
        unknown += usize::from(rows[1]["reason"] == "unknown_end");
        let request = rows[0]["request_id"].as_str().unwrap_or_default();
        ensure!(attempted.insert(request.to_owned()), "{request} twice");
    }
    let missing: Vec<_> = forwarded.difference(&attempted).collect();
    println!(
        "{asked} writes asked, {answered} answered, {} forwarded, {} attempted, {unknown} of \
         unknown end",
        forwarded.len(),
        attempted.len()
    );
    ensure!(
        missing.is_empty(),
        "forwarded without a row: {} of them",
        missing.len()
    );
    ensure!(
        forwarded.len() as u64 >= answered,
        "the service saw all of them"
    );
    Ok(())
}

/// A server of the test's own, with fsync, on a Unix socket.
struct Postgres {
    process: Child,
    files: tempfile::TempDir,
}

const USER: &str = "postgres";

impl Postgres {
    fn start() -> Result<Postgres> {
        let files = tempfile::Builder::new().prefix("culvert-pg-").tempdir()?;
        let chown = Command::new("chown").arg(USER).arg(files.path()).status()?;
        ensure!(chown.success(), "chown: {chown}");
        let init = as_user("initdb")?
            .arg("-D")
            .arg(files.path().join("data"))
            .args(["-A", "trust", "-U", USER])
            .stdout(Stdio::null())
            .status()?;
        ensure!(init.success(), "initdb: {init}");
        let process = serve(&files)?;
        let mut server = Postgres { process, files };
        server.wait()?;
        Ok(server)
    }

    fn dsn(&self) -> String {
        format!(
            "host={} user={USER} dbname={USER}",
            self.files.path().display()
        )
    }

    /// Kill -9, and a start on the same files.
    fn crash(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = serve(&self.files)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let ready = as_user("pg_isready")?
                .args(["-q", "-h"])
                .arg(self.files.path())
                .status()?;
            if ready.success() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "PostgreSQL does not start");
            // After a crash the old backends may hold the files for a moment.
            if self.process.try_wait()?.is_some() {
                self.process = serve(&self.files)?;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(files: &tempfile::TempDir) -> Result<Child> {
    let sockets = format!("unix_socket_directories={}", files.path().display());
    let child = as_user("postgres")?
        .arg("-D")
        .arg(files.path().join("data"))
        .args(["-c", "listen_addresses=", "-c", &sockets])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child)
}

fn as_user(name: &str) -> Result<Command> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")?;
    let paths = versions.filter_map(|version| Some(version.ok()?.path().join("bin").join(name)));
    let newest = paths.filter(|path| path.exists()).max();
    let newest = newest.with_context(|| format!("{name} of PostgreSQL"))?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups"]);
    command.arg(newest);
    Ok(command)
}
