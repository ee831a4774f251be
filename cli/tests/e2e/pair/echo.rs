//! A service that says everything back, and clients that ask it through the broker.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use culvert_perf::testbed::{Namespace, Process, SITE};

use super::BROKER;

/// What a broker says when its pair goes, and while there is none.
pub const PAIR_GONE: &[&str] = &[
    "the pair is lost; it is made again",
    "\"no pair\"",
    "the bridge did not take the pair",
    "cannot wait for the other side here",
    "a connection was not served",
];

/// What a bridge says while its relay is away.
pub const RELAY_GONE: &[&str] = &["cannot wait for the other side here"];

/// Starts the service; it lives as long as the test.
pub fn start(site: &Namespace) -> Result<SocketAddr> {
    start_at(site, SITE)
}

/// As [`start`], at this address.
pub fn start_at(site: &Namespace, address: IpAddr) -> Result<SocketAddr> {
    let listener = site.run(|| TcpListener::bind((address, 0)))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut piece = vec![0; 32 << 10];
                while let Ok(got @ 1..) = stream.read(&mut piece) {
                    if stream.write_all(&piece[..got]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// One connection through the broker, and a word there and back.
pub fn ask(client: &Namespace, limit: Duration) -> io::Result<TcpStream> {
    client.run(|| {
        let mut stream = TcpStream::connect(BROKER)?;
        stream.set_read_timeout(Some(limit))?;
        again(&mut stream)?;
        Ok(stream)
    })
}

/// A word on a connection that stands.
pub fn again(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"word")?;
    let mut back = [0; 4];
    stream.read_exact(&mut back)
}

/// Asks until there is an answer; the time it took.
pub fn wait_answered(client: &Namespace, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            bail!("no answer through the pair within {limit:?}");
        }
        match ask(client, left) {
            Ok(_) => return Ok(start.elapsed()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Open descriptors of a process.
pub fn descriptors(process: &Process) -> Result<usize> {
    let directory = PathBuf::from(format!("/proc/{}/fd", process.pid()));
    Ok(std::fs::read_dir(directory)?.count())
}
