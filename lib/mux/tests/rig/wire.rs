//! Frames by hand, and what a mux says, as frames.

use std::sync::Arc;

use bytes::Bytes;
use culvert_mux::frame::{HEADER_BYTES, Header, Kind};
use culvert_mux::{Budget, Config, Event, Mux, Role};

pub const T0: u64 = 1_000;

pub fn frame(kind: Kind, flags: u16, id: u32, length: u32) -> Vec<u8> {
    Header {
        kind,
        flags,
        id,
        length,
    }
    .encode()
    .to_vec()
}

pub fn data(flags: u16, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small");
    let mut bytes = frame(Kind::Data, flags, id, length);
    bytes.extend_from_slice(payload);
    bytes
}

pub fn credit(flags: u16, id: u32, delta: u32) -> Vec<u8> {
    frame(Kind::WindowUpdate, flags, id, delta)
}

pub fn budget() -> Arc<Budget> {
    Arc::new(Budget::new(1 << 30))
}

pub fn client() -> Mux {
    Mux::new(Config::new(Role::Client), budget())
}

pub fn server() -> Mux {
    Mux::new(Config::new(Role::Server), budget())
}

/// All that the mux wants to say, in one piece.
pub fn said(mux: &mut Mux, now_ms: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while mux.wants_transmit() {
        mux.transmit(now_ms, &mut out, 1 << 20);
    }
    out.concat()
}

/// The same as frames.
pub fn frames(mut bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let header = Header::decode(*head).expect("we write valid frames");
        let length = if header.kind == Kind::Data {
            header.length as usize
        } else {
            0
        };
        let (body, rest) = rest.split_at(length);
        frames.push((header, body.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    frames
}

pub fn headers(mux: &mut Mux) -> Vec<Header> {
    frames(&said(mux, T0))
        .into_iter()
        .map(|(header, _)| header)
        .collect()
}

pub fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.next_event()).collect()
}

pub fn hear(mux: &mut Mux, bytes: &[u8]) {
    mux.receive(T0, Bytes::copy_from_slice(bytes))
        .expect("no violation");
}

/// Carries everything both have to say, until they are silent.
pub fn settle(a: &mut Mux, b: &mut Mux, now_ms: u64) {
    loop {
        let (from_a, from_b) = (said(a, now_ms), said(b, now_ms));
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        b.receive(now_ms, from_a.into()).expect("no violation");
        a.receive(now_ms, from_b.into()).expect("no violation");
    }
}
