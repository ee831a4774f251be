//! Frames, and two muxes in memory: what the state machine costs without a carrier.
#![allow(
    missing_docs,
    reason = "criterion's macros generate undocumented items"
)]

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use culvert_mux::frame::{Header, Kind};
use culvert_mux::{Budget, Config, Mux, Read, Role, StreamId};

fn pair() -> [Mux; 2] {
    [Role::Client, Role::Server]
        .map(|role| Mux::new(Config::new(role), Arc::new(Budget::new(1 << 30))))
}

/// Hands over what `from` has to say in one buffer, as a socket would.
fn carry(pair: &mut [Mux; 2], from: usize, out: &mut Vec<Bytes>, wire: &mut bytes::BytesMut) {
    while pair[from].wants_transmit() {
        pair[from].transmit(0, out, 64 << 10);
        wire.reserve(64 << 10);
        for part in out.drain(..) {
            wire.extend_from_slice(&part);
        }
        let heard = wire.split().freeze();
        assert!(pair[1 - from].receive(0, heard).is_ok());
        while pair[1 - from].next_event().is_some() {}
    }
}

fn frames(c: &mut Criterion) {
    let header = Header {
        kind: Kind::Data,
        flags: 0,
        id: 77,
        length: 16_384,
    };
    c.bench_function("frame/encode", |b| b.iter(|| black_box(header).encode()));
    let bytes = header.encode();
    c.bench_function("frame/decode", |b| {
        b.iter(|| Header::decode(black_box(bytes)));
    });
}

fn round_trips(c: &mut Criterion) {
    let mut pair = pair();
    let (mut out, mut wire) = (Vec::new(), bytes::BytesMut::new());
    let ids: Vec<StreamId> = (0..64).filter_map(|_| pair[0].open(0).ok()).collect();
    let mut buf = [0; 64];
    let mut n = 0;
    c.bench_function("mux/round trip 64 B", |b| {
        b.iter(|| {
            n = (n + 1) % ids.len();
            for side in [0, 1] {
                let written = pair[side].write_slice(ids[n], &[7; 64]);
                assert_eq!(written, Ok(64));
                carry(&mut pair, side, &mut out, &mut wire);
                assert_eq!(
                    pair[1 - side].read_buf(ids[n], &mut &mut buf[..]),
                    Ok(Some(64))
                );
            }
        });
    });
}

fn bulk(c: &mut Criterion) {
    const BLOCK: usize = 32 << 10;
    let mut group = c.benchmark_group("mux");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    for streams in [1_usize, 16] {
        let mut pair = pair();
        let (mut out, mut wire) = (Vec::new(), bytes::BytesMut::new());
        let ids: Vec<StreamId> = (0..streams).filter_map(|_| pair[0].open(0).ok()).collect();
        let block = Bytes::from(vec![7; BLOCK]);
        let mut n = 0;
        group.bench_function(format!("bulk, {streams} streams"), |b| {
            b.iter(|| {
                n = (n + 1) % ids.len();
                let written = pair[0].write(ids[n], block.clone());
                assert!(written.is_ok());
                carry(&mut pair, 0, &mut out, &mut wire);
                while let Ok(Read::Data(data)) = pair[1].read(ids[n], BLOCK) {
                    black_box(data);
                }
                carry(&mut pair, 1, &mut out, &mut wire);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, frames, round_trips, bulk);
criterion_main!(benches);
