//! A plain HTTP/1.1 client that shows exactly what came back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culvert_perf::testbed::Namespace;

/// Longest wait for any byte of an answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// One answer, taken apart.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The framing came to its own end: a cut answer is not `whole`.
    pub whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Takes an answer apart that may be cut anywhere behind its head.
    pub fn parse(raw: &[u8]) -> Result<Answer> {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut head = httparse::Response::new(&mut fields);
        let length = match head.parse(raw).context("an answer's head")? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => bail!("half a head: {:?}", String::from_utf8_lossy(raw)),
        };
        let headers: Vec<_> = head
            .headers
            .iter()
            .map(|field| {
                (
                    field.name.to_owned(),
                    String::from_utf8_lossy(field.value).into_owned(),
                )
            })
            .collect();
        let mut answer = Answer {
            status: head.code.context("a status")?,
            headers,
            body: Vec::new(),
            whole: false,
        };
        let rest = &raw[length..];
        if answer
            .header("transfer-encoding")
            .is_some_and(|value| value.contains("chunked"))
        {
            (answer.body, answer.whole) = unchunk(rest);
        } else if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse()?;
            answer.body = rest[..length.min(rest.len())].to_vec();
            answer.whole = rest.len() >= length;
        } else {
            answer.body = rest.to_vec();
            answer.whole = true;
        }
        Ok(answer)
    }
}

fn unchunk(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(raw) {
        if size == 0 {
            return (body, true);
        }
        let Ok(size) = usize::try_from(size) else {
            break;
        };
        let end = (start + size).min(raw.len());
        body.extend_from_slice(&raw[start..end]);
        raw = raw.get(end + 2..).unwrap_or_default();
    }
    (body, false)
}

/// Sends `raw` as it is and reads until the other side closes.
pub fn exchange(from: &Namespace, to: SocketAddr, raw: &[u8]) -> io::Result<Vec<u8>> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, ANSWER_MAX)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.write_all(raw)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if answer.is_empty() => Err(error),
            _ => Ok(answer),
        }
    })
}

/// A request with `Connection: close` and these further lines.
pub fn ask(
    from: &Namespace,
    to: SocketAddr,
    method: &str,
    target: &str,
    lines: &[&str],
    body: &[u8],
) -> Result<Answer> {
    let mut raw = format!("{method} {target} HTTP/1.1\r\nHost: hub.test\r\nConnection: close\r\n");
    if !body.is_empty() {
        raw.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for line in lines {
        raw.push_str(line);
        raw.push_str("\r\n");
    }
    raw.push_str("\r\n");
    let mut raw = raw.into_bytes();
    raw.extend_from_slice(body);
    let answer = exchange(from, to, &raw).with_context(|| format!("{method} {target} at {to}"))?;
    Answer::parse(&answer).with_context(|| format!("{method} {target} at {to}"))
}

/// GET without further lines.
pub fn get(from: &Namespace, to: SocketAddr, target: &str) -> Result<Answer> {
    ask(from, to, "GET", target, &[], b"")
}

/// A connection on which a test reads step by step.
pub struct Live {
    stream: TcpStream,
    /// All that came so far.
    pub received: Vec<u8>,
}

/// How a connection ended, as its reader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Clean,
    /// RST.
    Reset,
}

impl Live {
    /// Connects and sends `raw`.
    pub fn open(from: &Namespace, to: SocketAddr, raw: &[u8]) -> io::Result<Live> {
        from.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, ANSWER_MAX)?;
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(ANSWER_MAX))?;
            stream.write_all(raw)?;
            Ok(Live {
                stream,
                received: Vec::new(),
            })
        })
    }

    /// Opens a GET without `Connection: close`.
    pub fn get(from: &Namespace, to: SocketAddr, target: &str) -> io::Result<Live> {
        let raw = format!("GET {target} HTTP/1.1\r\nHost: hub.test\r\n\r\n");
        Live::open(from, to, raw.as_bytes())
    }

    pub fn send(&mut self, raw: &[u8]) -> io::Result<()> {
        self.stream.write_all(raw)
    }

    /// No more will be sent.
    pub fn half_close(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// Reads until `enough` says so about all that was received; gives the time it took.
    pub fn read_until(
        &mut self,
        limit: Duration,
        enough: impl Fn(&[u8]) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        while !enough(&self.received) {
            if let Some(end) = self.read_once(start + limit)? {
                bail!("ended ({end:?}) after {}", self.shown());
            }
        }
        Ok(start.elapsed())
    }

    /// Reads until `text` has come.
    pub fn read_text(&mut self, text: &str, limit: Duration) -> Result<Duration> {
        self.read_until(limit, |all| contains(all, text.as_bytes()))
            .with_context(|| format!("waiting for {text:?}"))
    }

    /// Reads to the end.
    pub fn read_end(&mut self, limit: Duration) -> Result<End> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.read_once(deadline)? {
                return Ok(end);
            }
        }
    }

    fn read_once(&mut self, deadline: Instant) -> Result<Option<End>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("nothing more in time, after {}", self.shown());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut piece = [0; 64 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => Ok(Some(End::Clean)),
            Ok(count) => {
                self.received.extend_from_slice(&piece[..count]);
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(End::Reset)),
            Err(error) => Err(error).with_context(|| format!("after {}", self.shown())),
        }
    }

    fn shown(&self) -> String {
        let head = &self.received[..self.received.len().min(300)];
        format!(
            "{} bytes: {:?}",
            self.received.len(),
            String::from_utf8_lossy(head)
        )
    }
}

pub fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

/// The value of a metric without or with labels (`name` or `name{label="x"}`), 0 when absent.
pub fn metric(text: &str, name: &str) -> f64 {
    text.lines()
        .filter_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(' ')?
                .trim()
                .parse::<f64>()
                .ok()
        })
        .sum()
}
