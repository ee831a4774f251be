//! A client that writes what it is told, byte for byte.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hub::soon;

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    /// As on the wire, framing included.
    pub body: Vec<u8>,
}

impl Answer {
    pub fn parse(wire: &[u8]) -> Answer {
        let end = wire.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(wire)));
        let head = String::from_utf8(wire[..end].to_vec()).unwrap();
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_ascii_lowercase(),
            body: wire[end + 4..].to_vec(),
        }
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.strip_prefix(':')?.trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn reason(&self) -> &str {
        self.field("culvert-error").unwrap_or("")
    }
}

pub async fn connect(at: SocketAddr) -> TcpStream {
    TcpStream::connect(at).await.unwrap()
}

/// Sends `request` and reads until the connection ends.
pub async fn exchange(at: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = connect(at).await;
    stream.write_all(request).await.unwrap();
    Answer::parse(&rest(&mut stream).await)
}

pub async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut wire = Vec::new();
    soon("the connection ends", stream.read_to_end(&mut wire))
        .await
        .unwrap();
    wire
}

pub fn request(method: &str, target: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n{fields}\r\n")
}

pub async fn get(at: SocketAddr, target: &str) -> Answer {
    exchange(at, request("GET", target, "").as_bytes()).await
}

/// Reads up to and with `end`.
pub async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    let read =
        async {
            while !wire.ends_with(end) {
                let byte = stream.read_u8().await;
                wire.push(byte.unwrap_or_else(|why| {
                    panic!("{why} after {:?}", String::from_utf8_lossy(&wire))
                }));
            }
        };
    soon("the expected bytes", read).await;
    wire
}

/// Body of a chunked answer; panics when it is cut.
pub fn dechunk(mut wire: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = wire
            .windows(2)
            .position(|w| w == b"\r\n")
            .expect("a chunk line");
        let size = usize::from_str_radix(std::str::from_utf8(&wire[..line]).unwrap(), 16).unwrap();
        wire = &wire[line + 2..];
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&wire[..size]);
        wire = &wire[size + 2..];
    }
}
