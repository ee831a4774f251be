//! The ideal: accept, connect and move on one thread, edge-triggered, nothing else.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use anyhow::Result;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::mover::{Mover, Turn};

const LISTENER: u64 = u64::MAX;
const BUFFER_BYTES: usize = 64 * 1024;

struct Pair {
    /// Client, service.
    sides: [OwnedFd; 2],
    /// From client, from service.
    movers: [Mover; 2],
}

struct Relay {
    epoll: OwnedFd,
    pairs: Vec<Option<Pair>>,
    vacant: Vec<usize>,
    /// Pair and direction.
    queue: VecDeque<(usize, usize)>,
    buffer: Vec<u8>,
    splices: bool,
}

pub(super) fn relay(listener: &TcpListener, to: SocketAddr, splices: bool) -> Result<()> {
    let mut relay = Relay {
        epoll: epoll::create(CreateFlags::CLOEXEC)?,
        pairs: Vec::new(),
        vacant: Vec::new(),
        queue: VecDeque::new(),
        buffer: vec![0; BUFFER_BYTES],
        splices,
    };
    let tag = EventData::new_u64(LISTENER);
    epoll::add(&relay.epoll, listener, tag, EventFlags::IN)?;
    let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        events.clear();
        let patience = (!relay.queue.is_empty()).then_some(&zero);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&relay.epoll, spare, patience) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => relay.accept(listener, to),
                tag => relay.ready(usize::try_from(tag)?, event.flags),
            }
        }
        for _ in 0..relay.queue.len() {
            if let Some((index, direction)) = relay.queue.pop_front() {
                relay.turn(index, direction);
            }
        }
    }
}

impl Relay {
    fn accept(&mut self, listener: &TcpListener, to: SocketAddr) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok(client) = rustix::net::accept_with(listener, flags) {
            // A connection that cannot be joined is closed by being dropped.
            let _ = self.join(client, to);
        }
    }

    fn join(&mut self, client: OwnedFd, to: SocketAddr) -> Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let service =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&service, true)?;
        match rustix::net::connect(&service, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let pair = Pair {
            sides: [client, service],
            movers: [Mover::new(self.splices)?, Mover::new(self.splices)?],
        };
        let index = self.vacant.pop().unwrap_or(self.pairs.len());
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        for (side, socket) in pair.sides.iter().enumerate() {
            let tag = EventData::new_u64((index * 2 + side) as u64);
            epoll::add(&self.epoll, socket, tag, flags)?;
        }
        if index == self.pairs.len() {
            self.pairs.push(None);
        }
        self.pairs[index] = Some(pair);
        Ok(())
    }

    fn ready(&mut self, tag: usize, flags: EventFlags) {
        let (index, side) = (tag / 2, tag % 2);
        let Some(pair) = self.pairs.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        pair.movers[side].ending |= flags.intersects(ended);
        if flags.intersects(ended | EventFlags::IN) {
            self.turn(index, side);
        }
        if flags.contains(EventFlags::OUT) {
            self.turn(index, 1 - side);
        }
    }

    /// Moves in one direction; closes a pair that broke or is done both ways.
    fn turn(&mut self, index: usize, direction: usize) {
        let Some(pair) = self.pairs.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let (source, sink) = (&pair.sides[direction], &pair.sides[1 - direction]);
        match pair.movers[direction].turn(source, sink, &mut self.buffer) {
            Ok(Turn::More) => self.queue.push_back((index, direction)),
            Ok(Turn::Waits) if pair.movers.iter().all(|mover| mover.done) => self.close(index),
            Ok(Turn::Waits) => {}
            // Not connected yet: the edge of the connection comes later.
            Err(Errno::NOTCONN) => {}
            Err(_) => self.close(index),
        }
    }

    fn close(&mut self, index: usize) {
        self.pairs[index] = None;
        self.vacant.push(index);
    }
}
