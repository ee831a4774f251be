//! The hub's side of an upgrade: from hyper's connection to a transport.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_proto::hello::CarrierKind;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{End, Transport, WebSocket, rewound};
use crate::tls::ServerStream;

/// What RFC 6455 appends to the client's key.
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// `Sec-WebSocket-Accept` for the client's `Sec-WebSocket-Key`.
#[must_use]
pub fn websocket_accept(key: &str) -> String {
    let answer = [key.trim(), ACCEPT_SUFFIX].concat();
    STANDARD.encode(crate::crypto::sha1_of_websocket_key(answer.as_bytes()))
}

/// The transport of an agent whose request was answered with 101. `upgraded` comes from
/// `hyper::upgrade::on`; hyper's own layer is taken off a plain or TLS socket.
#[must_use]
pub fn hub_transport(upgraded: Upgraded, kind: CarrierKind) -> Box<dyn Transport> {
    let upgraded = match unwrapped::<TcpStream>(upgraded, kind) {
        Ok(transport) => return transport,
        Err(upgraded) => upgraded,
    };
    match unwrapped::<ServerStream<TcpStream>>(upgraded, kind) {
        Ok(transport) => transport,
        Err(upgraded) => framed(TokioIo::new(upgraded), kind),
    }
}

/// As [`hub_transport`] for a server that gave hyper a `TokioIo<T>`.
///
/// # Errors
/// Gives `upgraded` back when the connection is of another type.
pub fn unwrapped<T: Transport>(
    upgraded: Upgraded,
    kind: CarrierKind,
) -> Result<Box<dyn Transport>, Upgraded> {
    let parts = upgraded.downcast::<TokioIo<T>>()?;
    let io = parts.io.into_inner();
    if parts.read_buf.is_empty() {
        return Ok(framed(io, kind));
    }
    Ok(framed(rewound(parts.read_buf, Box::new(io)), kind))
}

fn framed<T: Transport>(io: T, kind: CarrierKind) -> Box<dyn Transport> {
    match kind {
        CarrierKind::Native => Box::new(io),
        CarrierKind::WebSocket | CarrierKind::Radar => Box::new(WebSocket::new(io, End::Server)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_of_the_rfc() {
        assert_eq!(
            websocket_accept("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }
}
