//! Two muxes over a virtual link with seeded delays, splits and cuts, driven by two random
//! applications that wait for events only. Every byte, its order and every end is checked.
//!
//! `CULVERT_MODEL_SEEDS=100000` runs more seeds, `CULVERT_MODEL_FIRST=n` starts at seed n.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test may stop where it stands; the rig is shared"
)]

#[path = "rig/random.rs"]
mod random;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use culvert_mux::{
    Budget, Config, End, Event, Mux, OpenError, Read, Role, StreamError, StreamId, Write,
};
use random::Random;

/// The byte that `side` sends at `offset` of stream `id`.
fn pattern(id: u32, side: usize, offset: usize) -> u8 {
    let mixed = offset.wrapping_mul(31) ^ (offset >> 8) ^ (id as usize * 7 + side * 13);
    mixed.to_le_bytes()[0]
}

/// What one application knows of one stream, and what it did to it.
#[derive(Default, Debug)]
struct Handle {
    to_write: usize,
    written: usize,
    finished: bool,
    read: usize,
    eof: bool,
    /// The last read was pending: no further one before an event.
    waits_to_read: bool,
    waits_to_write: bool,
    /// Reset, or released before the end.
    aborted: bool,
    error: Option<StreamError>,
    released: bool,
    reset_at: Option<usize>,
    stalls: bool,
}

struct Side {
    mux: Mux,
    handles: BTreeMap<u32, Handle>,
    /// On its way to the other side: when it arrives, what.
    link: VecDeque<(u64, Bytes)>,
    in_flight: usize,
}

struct World {
    sides: [Side; 2],
    random: Random,
    budgets: [Arc<Budget>; 2],
    now_ms: u64,
    latest_arrival_ms: [u64; 2],
    delay_ms: usize,
    flight_max: usize,
    streams_max: u32,
    cut: bool,
    opened: usize,
    completed: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let window = random.pick(&[1_024, 5_000, 32 << 10, 256 << 10]);
        let streams_max = random.pick(&[2, 8, 64]);
        let budget = random.pick(&[200_000, 4 << 20, 1 << 30]);
        let budgets = [Arc::new(Budget::new(budget)), Arc::new(Budget::new(budget))];
        let both_open = random.chance(40);
        let mut side = |role, budget: &Arc<Budget>| {
            let config = Config {
                accept_streams: role == Role::Server || both_open,
                streams_max,
                window_initial: window,
                window_max: random.pick(&[64 << 10, 1 << 20, 32 << 20]),
                send_gate_bytes: random.pick(&[1_024, 3_000, 32 << 10]),
                frame_bytes_max: random.pick(&[1_024, 16 << 10, 100_000]),
                opens_per_second_max: 1 << 20,
                resets_per_second_max: 1 << 20,
                pings_per_second_max: 1 << 20,
                stall_ms_max: 0,
                hash_seed: random.next(),
                ack_at_once: random.chance(50),
                first_stream: random.pick(&[None, Some(StreamId(1))]),
                ..Config::new(role)
            };
            Side {
                mux: Mux::new(config, Arc::clone(budget)),
                handles: BTreeMap::new(),
                link: VecDeque::new(),
                in_flight: 0,
            }
        };
        let sides = [
            side(Role::Client, &budgets[0]),
            side(Role::Server, &budgets[1]),
        ];
        World {
            sides,
            budgets,
            now_ms: 0,
            latest_arrival_ms: [0; 2],
            delay_ms: random.pick(&[0, 1, 20, 150]),
            flight_max: random.pick(&[2_000, 70_000, 4 << 20]),
            streams_max,
            cut: false,
            opened: 0,
            completed: 0,
            random,
        }
    }

    fn plan(&mut self) -> Handle {
        let most = self.random.pick(&[0, 1, 100, 5_000, 60_000, 600_000]);
        let to_write = self.random.below(most + 1);
        let reset_at = self
            .random
            .chance(10)
            .then(|| self.random.below(to_write + 1));
        Handle {
            to_write,
            reset_at,
            stalls: self.random.chance(10),
            ..Handle::default()
        }
    }

    fn open(&mut self, side: usize) {
        let live = self.sides[side].mux.stats().streams_live;
        match self.sides[side].mux.open(self.now_ms) {
            Ok(id) => {
                assert!(live < self.streams_max);
                self.opened += 1;
                let plan = self.plan();
                assert!(
                    self.sides[side].handles.insert(id.0, plan).is_none(),
                    "id used twice"
                );
            }
            Err(OpenError::TooMany(_)) => {
                let places = self.sides[side]
                    .handles
                    .values()
                    .filter(|h| !h.released)
                    .count();
                assert!(live >= self.streams_max || places >= self.streams_max as usize);
            }
            Err(OpenError::GoneAway) => assert!(self.cut),
            Err(OpenError::Budget { used, limit }) => assert!(used * 10 >= limit * 8),
            Err(other) => panic!("{other}"),
        }
    }

    fn events(&mut self, side: usize) {
        while let Some(event) = self.sides[side].mux.next_event() {
            match event {
                Event::Opened(id) => {
                    assert!(self.sides[1 - side].handles.contains_key(&id.0));
                    let plan = self.plan();
                    let before = self.sides[side].handles.insert(id.0, plan);
                    assert!(before.is_none(), "stream {id} opened twice");
                }
                Event::Readable(id) => self.handle(side, id.0).waits_to_read = false,
                Event::Writable(id) => self.handle(side, id.0).waits_to_write = false,
                Event::Ended(id, end) => {
                    assert_eq!(end == End::CarrierLost, self.cut, "{end:?}");
                    let handle = self.handle(side, id.0);
                    handle.waits_to_read = false;
                    handle.waits_to_write = false;
                }
                Event::Pong { .. } | Event::Heard => {}
                Event::GoAway(code) => panic!("GoAway {code}"),
            }
        }
    }

    fn handle(&mut self, side: usize, id: u32) -> &mut Handle {
        let handle = self.sides[side]
            .handles
            .get_mut(&id)
            .expect("event for an unknown stream");
        assert!(!handle.released, "event after release");
        handle
    }

    fn act(&mut self, side: usize, patient: bool) {
        let open: Vec<u32> = self.sides[side]
            .handles
            .iter()
            .filter(|(_, h)| !h.released)
            .map(|(id, _)| *id)
            .collect();
        if open.is_empty() {
            return;
        }
        let id = self.random.pick(&open);
        self.write(side, id);
        let stalls = self.sides[side].handles[&id].stalls && !patient;
        if !stalls {
            self.read(side, id);
        }
        self.leave(side, id, patient);
    }

    fn write(&mut self, side: usize, id: u32) {
        let handle = &self.sides[side].handles[&id];
        if handle.waits_to_write || handle.finished || handle.error.is_some() {
            return;
        }
        let most = self.random.pick(&[1, 64, 2_000, 40_000]);
        let length = (handle.to_write - handle.written).min(1 + self.random.below(most));
        let bytes: Vec<u8> = (handle.written..handle.written + length)
            .map(|at| pattern(id, side, at))
            .collect();
        let by_slice = self.random.chance(50);
        let Side { mux, handles, .. } = &mut self.sides[side];
        let handle = handles.get_mut(&id).unwrap();
        let written = if by_slice {
            mux.write_slice(StreamId(id), &bytes).inspect(|taken| {
                handle.waits_to_write = *taken == 0 && length > 0;
            })
        } else {
            mux.write(StreamId(id), Bytes::from(bytes))
                .map(|result| match result {
                    Write::Accepted => length,
                    Write::Blocked(rest) => {
                        handle.waits_to_write = true;
                        length - rest.len()
                    }
                })
        };
        match written {
            Ok(taken) => handle.written += taken,
            Err(error) => handle.error = Some(error),
        }
        if handle.error.is_none() && handle.written == handle.to_write {
            handle.finished = true;
            mux.finish(StreamId(id));
        }
        self.check_error(side, id);
    }

    fn read(&mut self, side: usize, id: u32) {
        let max = self.random.pick(&[1, 100, 5_000, 1 << 20]);
        let by_slice = self.random.chance(50);
        let Side { mux, handles, .. } = &mut self.sides[side];
        let handle = handles.get_mut(&id).unwrap();
        if handle.waits_to_read || handle.eof {
            return;
        }
        let result = if by_slice {
            let mut buf = vec![0; max.min(10_000)];
            mux.read_buf(StreamId(id), &mut &mut buf[..])
                .map(|filled| match filled {
                    None => Read::Pending,
                    Some(0) => Read::Eof,
                    Some(n) => Read::Data(Bytes::copy_from_slice(&buf[..n])),
                })
        } else {
            mux.read(StreamId(id), max)
        };
        match result {
            Ok(Read::Data(data)) => {
                assert!(!data.is_empty() && data.len() <= max);
                for byte in data {
                    assert_eq!(byte, pattern(id, 1 - side, handle.read), "stream {id}");
                    handle.read += 1;
                }
            }
            Ok(Read::Pending) => handle.waits_to_read = true,
            Ok(Read::Eof) => {
                handle.eof = true;
                let read = handle.read;
                let peer = &self.sides[1 - side].handles[&id];
                assert!(peer.finished, "EOF without FIN");
                assert_eq!(read, peer.written, "EOF before the last byte");
            }
            Err(error) => handle.error = Some(error),
        }
        self.check_error(side, id);
    }

    fn check_error(&self, side: usize, id: u32) {
        let peer = self.sides[1 - side].handles.get(&id);
        match self.sides[side].handles[&id].error {
            None => {}
            // A peer that never told its application has refused the stream.
            Some(StreamError::Reset) => assert!(peer.is_none_or(|peer| peer.aborted)),
            Some(StreamError::CarrierLost) => assert!(self.cut),
            Some(other) => panic!("stream {id}: {other}"),
        }
    }

    fn leave(&mut self, side: usize, id: u32, patient: bool) {
        let abandon = !patient && self.random.below(2_000) == 0;
        let Side { mux, handles, .. } = &mut self.sides[side];
        let handle = handles.get_mut(&id).unwrap();
        let reset = handle.reset_at.is_some_and(|at| handle.written >= at);
        if handle.error.is_none() && reset && !(handle.eof && handle.finished) {
            mux.reset(StreamId(id));
            assert_eq!(mux.read(StreamId(id), 1), Err(StreamError::Unknown(id)));
            handle.aborted = true;
            handle.released = true;
        } else if handle.error.is_some() || (handle.eof && handle.finished) || abandon {
            mux.release(StreamId(id));
            handle.aborted = handle.error.is_none() && !(handle.eof && handle.finished);
            handle.released = true;
            self.completed += usize::from(handle.eof && handle.finished);
        }
    }

    fn carry(&mut self, side: usize) {
        if self.cut {
            return;
        }
        let now_ms = self.now_ms;
        while self.sides[side].mux.wants_transmit() && self.sides[side].in_flight < self.flight_max
        {
            let mut out = Vec::new();
            let most = self.random.pick(&[1_024, 20_000, 1 << 20]);
            let count = self.sides[side].mux.transmit(now_ms, &mut out, most);
            let bytes = out.concat();
            assert!(bytes.len() == count && count <= most, "{count} of {most}");
            if count == 0 {
                assert!(
                    !self.sides[side].mux.wants_transmit(),
                    "nothing to say, yet it wants to"
                );
            }
            let mut bytes = Bytes::from(bytes);
            self.sides[side].in_flight += bytes.len();
            let delay_ms = self.random.below(self.delay_ms + 1) as u64;
            let at = (now_ms + delay_ms).max(self.latest_arrival_ms[side]);
            self.latest_arrival_ms[side] = at;
            while !bytes.is_empty() {
                let most = self.random.pick(&[1, 13, 3_000, 65_536]);
                let part = bytes.split_to((1 + self.random.below(most)).min(bytes.len()));
                self.sides[side].link.push_back((at, part));
            }
        }
        while self.sides[side]
            .link
            .front()
            .is_some_and(|(at, _)| *at <= now_ms)
        {
            let (_, part) = self.sides[side].link.pop_front().unwrap();
            self.sides[side].in_flight -= part.len();
            self.sides[1 - side]
                .mux
                .receive(now_ms, part)
                .expect("peers keep the rules");
        }
    }

    fn step(&mut self, patient: bool) {
        self.now_ms += self.random.pick(&[0, 0, 1, 5]);
        for side in [0, 1] {
            for _ in 0..self.random.below(6) {
                self.act(side, patient);
            }
            self.carry(side);
            self.events(side);
            self.events(1 - side);
            if self.random.chance(1) {
                self.sides[side].mux.ping(self.now_ms);
            }
        }
    }

    fn cut(&mut self) {
        self.cut = true;
        for side in [0, 1] {
            self.sides[side].link.clear();
            self.sides[side].mux.carrier_lost();
            assert!(!self.sides[side].mux.wants_transmit());
            self.events(side);
        }
    }

    fn run(mut self) -> usize {
        let opens = self.random.below(60);
        let cut_at = self.random.chance(30).then(|| self.random.below(3_000));
        for step in 0..usize::MAX {
            if self.opened < opens && self.random.chance(20) {
                let side = usize::from(self.random.chance(30));
                // The client refuses streams of the server in half of the worlds.
                self.open(side);
            }
            self.step(step > 3_000);
            if cut_at == Some(step) {
                self.cut();
            }
            let idle = self
                .sides
                .iter()
                .all(|s| s.handles.values().all(|h| h.released));
            let told = self
                .sides
                .iter()
                .all(|s| s.link.is_empty() && !s.mux.wants_transmit());
            if idle && (self.cut || (told && self.opened == opens)) {
                break;
            }
            assert!(
                step < 400_000,
                "{} opened, hanging: {:#?}",
                self.opened,
                self.hanging()
            );
        }
        for (side, budget) in self.sides.iter().zip(&self.budgets) {
            let stats = side.mux.stats();
            assert_eq!(
                (stats.streams_live, stats.unread_bytes, stats.queued_bytes),
                (0, 0, 0)
            );
            assert!(budget.used() <= 4 << 10, "{} still charged", budget.used());
        }
        drop(self.sides);
        assert!(self.budgets.iter().all(|budget| budget.used() == 0));
        self.completed
    }

    fn hanging(&self) -> Vec<(usize, u32, &Handle)> {
        let of = |side: usize| {
            self.sides[side]
                .handles
                .iter()
                .map(move |(id, h)| (side, *id, h))
        };
        of(0).chain(of(1)).filter(|(_, _, h)| !h.released).collect()
    }
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn every_byte_order_and_end_is_right() {
    let first = env("CULVERT_MODEL_FIRST", 0);
    let mut completed = 0;
    for seed in first..first + env("CULVERT_MODEL_SEEDS", 60) {
        if std::env::var("CULVERT_MODEL_TRACE").is_ok() {
            println!("seed {seed}");
        }
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        completed += run.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    println!("{completed} streams went to both ends");
    assert!(completed > 0);
}
