//! Whether a relay is there: TCP, TLS, and the first 40 bytes of `culvert-relay/1`.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_net::tls::{ClientTls, ClientTlsOptions, MinVersion, Roots};
use culvert_pair::check_relay;
use culvert_proto::pair::{ALPN_RELAY, HELLO_BYTES, REPLY_BYTES, RelayHello, Reply};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::examine::Check;
use crate::args::pair::Examine;
use crate::error::{CliError, Result};

/// Each step of one attempt.
const STEP_MAX: Duration = Duration::from_secs(5);
/// How long a refusal may come behind the hello.
const REFUSAL_MAX: Duration = Duration::from_millis(300);
/// Addresses behind one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// What lies around a relay's first words.
pub(super) enum Outer {
    Plain,
    Tls(Box<ClientTls>),
}

impl Outer {
    pub(super) fn new(args: &Examine) -> Result<Outer> {
        if args.relay_plain {
            return Ok(Outer::Plain);
        }
        let roots = match (&args.relay_pin, &args.relay_ca) {
            (Some(pin), _) => Roots::Pin(pin.parse().map_err(|why| {
                CliError::usage("this is no pin", why, "write sha256: and 64 hex digits")
            })?),
            (None, Some(file)) => Roots::File(file.clone()),
            (None, None) => Roots::System,
        };
        let tls = ClientTls::load(ClientTlsOptions {
            roots,
            min_version: MinVersion::Tls13,
            ..ClientTlsOptions::default()
        });
        let fix = "give a readable --relay-ca, or --relay-pin";
        let tls = tls.map_err(|why| CliError::usage("the relay's CA cannot be used", why, fix))?;
        Ok(Outer::Tls(Box::new(tls)))
    }
}

/// One check for each address of the relay.
pub(super) async fn reach(relay: &str, outer: &Outer) -> Vec<Check> {
    let what = format!("relay {relay}");
    let Ok((host, port)) = check_relay(relay) else {
        return vec![Check::bad(
            &what,
            "no HOST:PORT",
            "mend the relay's address",
        )];
    };
    let looked_up = timeout(STEP_MAX, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<SocketAddr> = match looked_up {
        Ok(Ok(found)) => found.take(ADDRESSES_MAX).collect(),
        Ok(Err(why)) => {
            return vec![Check::bad(
                &what,
                why.to_string(),
                "mend the name, or the resolver of this host",
            )];
        }
        Err(_) => {
            return vec![Check::bad(
                &what,
                "no address within 5 s",
                "mend the resolver",
            )];
        }
    };
    if addresses.is_empty() {
        return vec![Check::bad(
            &what,
            "no address behind the name",
            "mend the name's record",
        )];
    }
    let mut checks = Vec::with_capacity(addresses.len());
    for address in addresses {
        checks.push(one(&format!("{what} at {address}"), host, address, outer).await);
    }
    checks
}

async fn one(what: &str, host: &str, address: SocketAddr, outer: &Outer) -> Check {
    let tcp = match timeout(STEP_MAX, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(why)) => {
            let fix = "start the relay, or let outbound TCP to it through the firewall";
            return Check::bad(what, why.to_string(), fix);
        }
        Err(_) => {
            let fix = "a firewall drops the connection: let outbound TCP to the relay through";
            return Check::bad(what, "no answer to TCP within 5 s", fix);
        }
    };
    let tls = match outer {
        Outer::Plain => return hello(what, tcp, "plain").await,
        Outer::Tls(tls) => tls,
    };
    let stream = match tls.connect_alpn(host, ALPN_RELAY, tcp).await {
        Ok(stream) => stream,
        Err(why) => {
            let fix = "give --relay-ca or --relay-pin for a private certificate, --relay-plain for \
                       a relay without TLS; a proxy that opens TLS has to leave the relay alone";
            return Check::bad(what, why.to_string(), fix);
        }
    };
    if ClientTls::info(&stream).alpn.as_deref() != Some(ALPN_RELAY) {
        let fix =
            "this is another service, or a load balancer that opens TLS: name the relay itself";
        return Check::bad(what, "TLS, but not culvert-relay/1", fix);
    }
    hello(what, stream, "TLS 1.3").await
}

async fn hello(what: &str, mut io: impl AsyncRead + Unpin, under: &str) -> Check {
    let mut bytes = [0; HELLO_BYTES];
    let refused = match timeout(STEP_MAX, read_up_to(&mut io, &mut bytes)).await {
        Ok(Ok(HELLO_BYTES)) => match RelayHello::decode(&bytes) {
            Ok(hello) => return welcome(what, io, hello, under).await,
            Err(why) => why.to_string(),
        },
        Ok(Ok(count)) => format!("{count} bytes and then the end, where a relay's hello has 40"),
        Ok(Err(why)) => why.to_string(),
        Err(_) => "no hello within 5 s".to_owned(),
    };
    Check::bad(
        what,
        refused,
        "this is no Culvert relay: check name and port",
    )
}

/// Behind its hello a relay that lets nobody in, or not this host, says so at once.
async fn welcome(
    what: &str,
    mut io: impl AsyncRead + Unpin,
    hello: RelayHello,
    under: &str,
) -> Check {
    let mut bytes = [0; REPLY_BYTES];
    if let Ok(Ok(REPLY_BYTES)) = timeout(REFUSAL_MAX, read_up_to(&mut io, &mut bytes)).await
        && let Ok(reply) = Reply::decode(&bytes)
    {
        let seen = format!("the relay refuses this host: {}", reply.code.as_str());
        return Check::bad(
            what,
            seen,
            "wait a minute and try again, or use another relay",
        );
    }
    let open = if hello.accepts_open {
        ", takes open joins"
    } else {
        ""
    };
    Check::good(what, format!("culvert-relay/1 under {under}{open}"))
}

/// As many bytes as come before the end, or fill the buffer.
async fn read_up_to(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match io.read(&mut buffer[filled..]).await? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
