//! A hostile peer and a careless application on one mux: no panic, bounded memory, every charge
//! returned. The input is a list of acts, so that mutations keep their meaning; raw bytes are one
//! of them.
#![no_main]

use std::sync::Arc;

use bytes::Bytes;
use culvert_mux::frame::{Header, Kind};
use culvert_mux::{Budget, Config, Mux, Role, StreamId};
use libfuzzer_sys::fuzz_target;

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*first))
    }

    fn some(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }

    /// Mostly small ids, so that frames and acts meet.
    fn id(&mut self) -> Option<u32> {
        Some(match self.byte()? {
            0xff => self.word()?,
            small => u32::from(small % 24),
        })
    }
}

fn frame(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let kind = [Kind::Data, Kind::WindowUpdate, Kind::Ping, Kind::GoAway];
    let kind = kind[usize::from(input.byte()? % 4)];
    let flags = u16::from(input.byte()? & 0x1f);
    let of_session = matches!(kind, Kind::Ping | Kind::GoAway);
    let id = if of_session { 0 } else { input.id()? };
    let length = match input.byte()? {
        0xff => input.word()?,
        0xfe => 262_144,
        small => u32::from(small) * 40,
    };
    let mut bytes = Header { kind, flags, id, length }.encode().to_vec();
    if kind == Kind::Data {
        bytes.resize(bytes.len() + (length as usize).min(262_144), 0x5a);
    }
    Some(bytes)
}

fn act(mux: &mut Mux, input: &mut Input<'_>, now_ms: &mut u64) -> Option<()> {
    match input.byte()? % 16 {
        0..=5 => {
            let bytes = frame(input)?;
            let split = 1 + input.byte()? as usize * 97;
            for part in bytes.chunks(split) {
                let _ = mux.receive(*now_ms, Bytes::copy_from_slice(part));
            }
        }
        6 => {
            let count = input.byte()? as usize;
            let raw = input.some(count);
            let _ = mux.receive(*now_ms, Bytes::copy_from_slice(raw));
        }
        7 => drop(mux.open(*now_ms)),
        8 => {
            let (id, count) = (input.id()?, input.byte()? as usize * 150);
            let _ = mux.write(StreamId(id), Bytes::from(vec![1; count]));
        }
        9 => {
            let (id, count) = (input.id()?, input.byte()? as usize);
            let _ = mux.write_slice(StreamId(id), &vec![2; count]);
        }
        10 => {
            let (id, max) = (input.id()?, input.byte()? as usize * 300);
            let _ = mux.read(StreamId(id), max);
        }
        11 => {
            let (id, max) = (input.id()?, 1 + input.byte()? as usize);
            let _ = mux.read_buf(StreamId(id), &mut &mut vec![0; max][..]);
        }
        12 => mux.finish(StreamId(input.id()?)),
        13 => match input.byte()? % 4 {
            0 => mux.reset(StreamId(input.id()?)),
            1 => mux.go_away(u32::from(input.byte()? % 8 / 7)),
            2 => mux.ping(*now_ms),
            _ => mux.set_rtt_ms(u64::from(input.byte()?)),
        },
        14 => mux.release(StreamId(input.id()?)),
        _ => {
            *now_ms += u64::from(input.byte()?) * 977;
            mux.handle_timeout(*now_ms);
            let mut out = Vec::new();
            let max = 1_024 + input.byte()? as usize * 256;
            let count = mux.transmit(*now_ms, &mut out, max);
            assert!(count <= max && out.iter().map(Bytes::len).sum::<usize>() == count);
        }
    }
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let Some(setup) = input.byte() else { return };
    let budget = Arc::new(Budget::new(if setup & 4 == 0 { 1 << 30 } else { 1 << 20 }));
    let config = Config {
        streams_max: 8,
        accept_streams: setup & 2 != 0,
        window_initial: if setup & 8 == 0 { 262_144 } else { 32 << 10 },
        ack_at_once: setup & 16 == 0,
        ..Config::new(if setup & 1 == 0 { Role::Client } else { Role::Server })
    };
    let mut mux = Mux::new(config, Arc::clone(&budget));
    let mut now_ms = 0;
    while act(&mut mux, &mut input, &mut now_ms).is_some() {
        while mux.next_event().is_some() {}
        let stats = mux.stats();
        assert!(stats.streams_live <= 8);
        assert!(stats.memory_bytes <= 48 << 20, "{} bytes", stats.memory_bytes);
    }
    mux.carrier_lost();
    drop(mux);
    assert_eq!(budget.used(), 0);
});
