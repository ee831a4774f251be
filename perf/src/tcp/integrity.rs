//! Whether a variant delivers what it was given: a position-dependent pattern both ways, an end
//! of one direction while the other goes on, and readers that pause for a second and a half.
//!
//! A variant that fails is disqualified, not slow.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::service::{PIECE_BYTES, pattern};

/// Bytes each way.
const BYTES: u64 = 12 << 20;
/// What the service sends behind the client's end.
const AFTER_END_BYTES: u64 = 1 << 20;
/// A reader's pause.
const PAUSE: Duration = Duration::from_millis(1500);
/// Longest silence of a socket.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Longest check.
const CHECK_MAX: Duration = Duration::from_secs(30);

/// The three conversations; the byte is what the client sends first.
const BOTH_WAYS: u8 = 1;
const SLOW_CLIENT: u8 = 2;
const SLOW_SERVICE: u8 = 3;

/// Holds the three conversations through `entry`; the service's ends come in at `listener`.
///
/// # Errors
/// What was wrong, in which conversation.
pub fn check(entry: SocketAddr, listener: &TcpListener, preface: &[u8]) -> Result<()> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + CHECK_MAX;
    thread::scope(|scope| {
        let clients: Vec<_> = [BOTH_WAYS, SLOW_CLIENT, SLOW_SERVICE]
            .map(|kind| {
                scope.spawn(move || {
                    client(entry, preface, kind)
                        .with_context(|| format!("conversation {kind}, client"))
                })
            })
            .into_iter()
            .collect();
        let mut served = Vec::new();
        // A relay may open connections that nobody uses: they say nothing and count nothing.
        while clients.iter().any(|client| !client.is_finished()) && Instant::now() < end {
            match listener.accept() {
                Ok((stream, _)) => {
                    let skip = preface.len();
                    served.push(scope.spawn(move || serve(stream, skip)));
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        for client in clients {
            client.join().expect("nothing in it panics")?;
        }
        for service in served.into_iter().filter(|one| one.is_finished()) {
            service.join().expect("nothing in it panics")?;
        }
        Ok(())
    })
}

fn client(entry: SocketAddr, preface: &[u8], kind: u8) -> Result<()> {
    let stream = limited(TcpStream::connect(entry)?)?;
    let mut writer = stream.try_clone()?;
    writer.write_all(preface)?;
    writer.write_all(&[kind])?;
    match kind {
        BOTH_WAYS => thread::scope(|scope| {
            let sent = scope.spawn(|| -> Result<()> {
                send(&mut writer, BYTES)?;
                Ok(writer.shutdown(Shutdown::Write)?)
            });
            expect(&stream, BYTES + AFTER_END_BYTES, Duration::ZERO)?;
            sent.join().expect("nothing in it panics")
        }),
        SLOW_CLIENT => expect(&stream, BYTES, PAUSE),
        _ => {
            send(&mut writer, BYTES)?;
            writer.shutdown(Shutdown::Write)?;
            let mut count = [0; 8];
            (&stream).read_exact(&mut count)?;
            let count = u64::from_be_bytes(count);
            ensure!(count == BYTES, "{count} of {BYTES} bytes arrived");
            Ok(())
        }
    }
}

fn serve(stream: TcpStream, skip: usize) -> Result<()> {
    stream.set_nonblocking(false)?;
    let mut stream = limited(stream)?;
    let mut first = vec![0; skip + 1];
    if stream.read_exact(&mut first).is_err() {
        return Ok(());
    }
    match first[skip] {
        BOTH_WAYS => {
            let mut writer = stream.try_clone()?;
            thread::scope(|scope| {
                let sent = scope.spawn(move || send(&mut writer, BYTES));
                expect(&stream, BYTES, Duration::ZERO).context("conversation 1, service")?;
                sent.join().expect("nothing in it panics")
            })?;
            send_from(&mut stream, BYTES, AFTER_END_BYTES)?;
        }
        SLOW_CLIENT => send(&mut stream, BYTES)?,
        SLOW_SERVICE => {
            expect(&stream, BYTES, PAUSE).context("conversation 3, service")?;
            stream.write_all(&BYTES.to_be_bytes())?;
        }
        other => bail!("a conversation that begins with {other}"),
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn limited(stream: TcpStream) -> Result<TcpStream> {
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    Ok(stream)
}

fn send(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    send_from(stream, 0, bytes)
}

fn send_from(stream: &mut TcpStream, start: u64, bytes: u64) -> Result<()> {
    let mut position = start;
    while position < start + bytes {
        let left = usize::try_from(start + bytes - position)?;
        let piece = pattern(position, left.min(PIECE_BYTES));
        stream
            .write_all(piece)
            .with_context(|| format!("writing at {position}"))?;
        position += piece.len() as u64;
    }
    Ok(())
}

/// Reads the pattern to its clean end, with a pause behind the first piece.
fn expect(mut stream: &TcpStream, bytes: u64, pause: Duration) -> Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut position = 0;
    loop {
        let count = stream
            .read(&mut buffer)
            .with_context(|| format!("reading at {position}"))?;
        if count == 0 {
            break;
        }
        ensure!(
            buffer[..count] == *pattern(position, count),
            "wrong bytes near {position}"
        );
        if position == 0 {
            thread::sleep(pause);
        }
        position += count as u64;
    }
    ensure!(
        position == bytes,
        "an end behind {position} of {bytes} bytes"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_passes_and_a_cut_one_does_not() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let entry = listener.local_addr().unwrap();
        check(entry, &listener, b"preface").unwrap();

        // A relay that ends both ways when one ends: it loses what comes behind the half-close.
        let relay = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let through = relay.local_addr().unwrap();
        thread::spawn(move || {
            for client in relay.incoming().map_while(Result::ok) {
                let service = TcpStream::connect(entry).unwrap();
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), service.try_clone().unwrap()),
                    (service, client),
                ] {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        assert!(check(through, &listener, b"").is_err());
    }
}
