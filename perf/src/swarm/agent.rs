//! One idle agent: hello, then the session on stream 1 until the hub ends it.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use culvert_proto::control::AgentFacts;
use culvert_proto::hello::{AgentHello, Caps, HelloAnswer, request_headers};
use culvert_proto::id::InstanceId;
use culvert_proto::open::StreamHeaderDecoder;
use culvert_proto::session::{Config, Output, Role, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The yamux header: version, type, flags, stream, length.
const FRAME_BYTES: usize = 12;
const DATA: u8 = 0;
const WINDOW: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;
const SYN: u16 = 1;
const ACK: u16 = 2;
const RST: u16 = 8;
/// The hub opens it right after its 101.
const CONTROL_STREAM: u32 = 1;

/// Connects as `cluster` and stays until the hub ends the session.
pub(super) async fn live(hub: SocketAddr, cluster: &str) -> Result<()> {
    let mut stream = TcpStream::connect(hub).await?;
    stream.set_nodelay(true)?;
    let mut inbox = BytesMut::with_capacity(1024);
    let answer = hello(&mut stream, &mut inbox, cluster).await?;
    let clock = Instant::now();
    let facts = AgentFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..AgentFacts::default()
    };
    let mut idle = Idle {
        session: Session::new(Role::Agent(facts), Config::from(&answer), 0),
        header: Some(StreamHeaderDecoder::new()),
        opened: false,
        acked: false,
        out: Vec::new(),
    };
    loop {
        let now_ms = u64::try_from(clock.elapsed().as_millis())?;
        idle.session.handle_timeout(now_ms);
        idle.take_frames(&mut inbox, now_ms)?;
        idle.send()?;
        if !idle.out.is_empty() {
            stream.write_all(&idle.out).await?;
            idle.out.clear();
        }
        let next = idle
            .session
            .next_timeout_ms()
            .context("the session is over")?;
        let wait = Duration::from_millis(next.saturating_sub(now_ms).max(1));
        match tokio::time::timeout(wait, stream.read_buf(&mut inbox)).await {
            Ok(Ok(0)) => bail!("the hub closed"),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => return Err(error.into()),
        }
    }
}

/// Sends the hello and reads the hub's 101; what follows it stays in `inbox`.
async fn hello(stream: &mut TcpStream, inbox: &mut BytesMut, cluster: &str) -> Result<HelloAnswer> {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let random = crate::statistics::Random::new(u64::from(unix.subsec_nanos())).next();
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&random.to_be_bytes());
    let offered = Caps::default().with(Caps::DRAIN);
    let hello = AgentHello {
        instance: Some(InstanceId::v7(u64::try_from(unix.as_millis())?, bytes)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        caps: offered,
        cluster: None,
    };
    let mut request = format!(
        "GET /agent HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}{cluster}\r\n",
        crate::lab::TOKEN
    );
    for (name, value) in request_headers(&hello, "AAAAAAAAAAAAAAAAAAAAAA==", false) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    loop {
        ensure!(stream.read_buf(inbox).await? > 0, "closed before an answer");
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(end) = head.parse(inbox)? else {
            continue;
        };
        ensure!(head.code == Some(101), "status {:?}", head.code);
        let fields = head.headers.iter().map(|field| (field.name, field.value));
        let answer = HelloAnswer::parse(offered, fields)?;
        inbox.advance(end);
        return Ok(answer);
    }
}

/// A session with nothing but its control stream.
struct Idle {
    session: Session,
    /// Until the header of the control stream has come.
    header: Option<StreamHeaderDecoder>,
    opened: bool,
    acked: bool,
    out: Vec<u8>,
}

impl Idle {
    fn take_frames(&mut self, inbox: &mut BytesMut, now_ms: u64) -> Result<()> {
        while let Some((head, _)) = inbox.split_first_chunk::<FRAME_BYTES>() {
            let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *head;
            let flags = u16::from_be_bytes([f0, f1]);
            let stream = u32::from_be_bytes([s0, s1, s2, s3]);
            let length = u32::from_be_bytes([l0, l1, l2, l3]);
            ensure!(version == 0, "yamux version {version}");
            let body = if kind == DATA {
                usize::try_from(length)?
            } else {
                0
            };
            if inbox.len() < FRAME_BYTES + body {
                return Ok(());
            }
            inbox.advance(FRAME_BYTES);
            let body = inbox.split_to(body).freeze();
            self.session.on_bytes_received(now_ms);
            match kind {
                DATA | WINDOW if stream == CONTROL_STREAM => {
                    self.opened |= flags & SYN != 0;
                    self.control(body, now_ms)?;
                }
                DATA | WINDOW if flags & SYN != 0 => self.frame(WINDOW, RST, stream, 0),
                PING if flags & SYN != 0 => self.frame(PING, ACK, 0, length),
                DATA | WINDOW | PING => {}
                GO_AWAY => bail!("GoAway {length}"),
                other => bail!("yamux type {other}"),
            }
        }
        Ok(())
    }

    fn control(&mut self, mut body: Bytes, now_ms: u64) -> Result<()> {
        if let Some(decoder) = &mut self.header {
            if decoder.push(&mut body)?.is_none() {
                return Ok(());
            }
            self.header = None;
        }
        self.session.on_data(now_ms, body);
        Ok(())
    }

    /// Queues what the session wants to say, once its stream is open.
    fn send(&mut self) -> Result<()> {
        if !self.opened {
            return Ok(());
        }
        while let Some(output) = self.session.poll() {
            match output {
                Output::Send(message) => {
                    let bytes = message.encode()?;
                    let flags = if self.acked { 0 } else { ACK };
                    self.acked = true;
                    self.frame(DATA, flags, CONTROL_STREAM, u32::try_from(bytes.len())?);
                    self.out.extend_from_slice(&bytes);
                }
                Output::Bye(_) | Output::Dead { .. } | Output::Violation(_) => {
                    bail!("the session ended: {:?}", self.session.close_reason())
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn frame(&mut self, kind: u8, flags: u16, stream: u32, length: u32) {
        self.out.extend_from_slice(&[0, kind]);
        self.out.extend_from_slice(&flags.to_be_bytes());
        self.out.extend_from_slice(&stream.to_be_bytes());
        self.out.extend_from_slice(&length.to_be_bytes());
    }
}
