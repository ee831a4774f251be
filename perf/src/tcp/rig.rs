//! The loop: level-triggered epoll over both ends of all connections.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::books::Books;
use super::serve::{Connection, End, Message, Step, message};
use super::{DISCARD, EXCHANGE, Plan, SEND, Way, Work};
use crate::load::{Arrivals, Measured};

mod fill;

/// Bytes discarded by one call.
const DISCARD_BYTES: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Longest time until all connections stand.
const SET_UP_MAX: Duration = Duration::from_secs(20);
/// Connections that are made at once while pairs are gathered.
const GATHER_MAX: usize = 64;
/// Longest wait for the other ends to close behind a measurement.
const CLEAR_MAX: Duration = Duration::from_secs(3);
const LISTENER: u64 = u64::MAX;
/// Stands for a connection that is still to be made.
const TOKEN: usize = usize::MAX;

/// Generator and service; its sockets live in the namespaces of those who made them.
pub struct Rig {
    epoll: OwnedFd,
    listener: TcpListener,
    places: Vec<Option<Connection>>,
    vacant: Vec<usize>,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
    preface: Vec<u8>,
    bytes: usize,
    number: u64,
}

impl Rig {
    /// Serves on `listener`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(listener: TcpListener) -> Result<Rig> {
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        sockopt::set_tcp_nodelay(&listener, true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let tag = EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, tag, EventFlags::IN)?;
        Ok(Rig {
            epoll,
            listener,
            places: Vec::new(),
            vacant: Vec::new(),
            events: Vec::with_capacity(256),
            scratch: vec![0; DISCARD_BYTES],
            preface: Vec::new(),
            bytes: 64,
            number: 0,
        })
    }

    /// The service's listener, for those who serve themselves for a while.
    pub fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Carries a plan out; `edge` is called right before and right after the window.
    ///
    /// # Errors
    /// When connections cannot be made or `edge` fails. What breaks later is counted.
    pub fn measure(
        &mut self,
        plan: &Plan,
        edge: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Measured> {
        self.preface.clone_from(&plan.preface);
        self.bytes = match plan.work {
            Work::Bulk(_) => 64,
            Work::Messages { bytes, .. } | Work::Short { bytes } | Work::Burst { bytes } => bytes,
        };
        let standing = self.set_up(plan)?;
        let standing = self.phase(plan, plan.warm_up, standing)?.1;
        edge()?;
        let (measured, _) = self.phase(plan, plan.window, standing)?;
        edge()?;
        self.clear()?;
        Ok(measured)
    }

    /// Makes idle pairs until `pairs` stand, each proven by a message, and keeps them.
    ///
    /// # Errors
    /// When one is refused or not proven within its time.
    pub fn gather(&mut self, entry: SocketAddr, preface: &[u8], pairs: usize) -> Result<()> {
        self.preface = preface.to_vec();
        self.bytes = 64;
        let mut plan = Plan {
            entry,
            preface: preface.to_vec(),
            connections: 1,
            work: Work::Messages {
                bytes: 64,
                arrivals: Arrivals::Closed,
            },
            warm_up: Duration::ZERO,
            window: Duration::ZERO,
            bulk_beside: 0,
            stalled_beside: 0,
        };
        loop {
            let have = self.clients();
            if have >= pairs {
                return Ok(());
            }
            plan.connections = GATHER_MAX.min(pairs - have);
            let standing = self.set_up(&plan)?;
            let mut books = Books::new(&plan, Duration::ZERO, Vec::new());
            for index in standing {
                books.asked += 1;
                self.send(index, Instant::now(), &plan, &mut books)?;
            }
            while !books.over() {
                self.turn(&plan, &mut books)?;
            }
            let measured = books.finish();
            let text = measured.first_error.unwrap_or_default();
            ensure!(measured.errors == 0, "idle pair {have} of {pairs}: {text}");
        }
    }

    /// Cuts all connections and waits until the service's ends are gone too.
    ///
    /// # Errors
    /// The operating system's.
    pub fn clear(&mut self) -> Result<()> {
        for index in 0..self.places.len() {
            if self.places[index]
                .as_ref()
                .is_some_and(|place| place.client)
            {
                self.drop_at(index, true);
            }
        }
        let start = Instant::now();
        let plan = idle_plan();
        let mut books = Books::new(&plan, Duration::ZERO, Vec::new());
        while self.places.iter().any(Option::is_some) && start.elapsed() < CLEAR_MAX {
            self.turn(&plan, &mut books)?;
        }
        for index in 0..self.places.len() {
            self.drop_at(index, true);
        }
        Ok(())
    }

    fn clients(&self) -> usize {
        let all = self.places.iter().flatten();
        all.filter(|place| place.client).count()
    }

    /// Connects what a plan keeps; the callers among it, once all of it stands.
    fn set_up(&mut self, plan: &Plan) -> Result<Vec<usize>> {
        let (end, command) = match plan.work {
            Work::Bulk(Way::Up) => (source(false), Some(DISCARD)),
            Work::Bulk(Way::Down) => (End::Sink, Some(SEND)),
            Work::Bulk(Way::Both) => (source(true), Some(EXCHANGE)),
            Work::Messages { .. } => (End::Caller(None), None),
            Work::Short { .. } => return Ok(vec![TOKEN; plan.connections]),
            Work::Burst { .. } => return Ok(Vec::new()),
        };
        let mut indices = Vec::new();
        for _ in 0..plan.connections {
            let end = match &end {
                End::Source { discards, .. } => source(*discards),
                End::Sink => End::Sink,
                _ => End::Caller(None),
            };
            indices.push(self.open(plan.entry, end, command)?);
        }
        let callers = indices.clone();
        for _ in 0..plan.bulk_beside {
            indices.push(self.open(plan.entry, End::Sink, Some(SEND))?);
        }
        for _ in 0..plan.stalled_beside {
            indices.push(self.open(plan.entry, End::Stalled, Some(SEND))?);
        }
        let start = Instant::now();
        let mut books = Books::new(&idle_plan(), Duration::ZERO, Vec::new());
        while indices.iter().any(|index| self.is_connecting(*index)) {
            self.turn(plan, &mut books)?;
            let text = books.first_error.clone().unwrap_or_default();
            ensure!(books.errors == 0, "connecting to {}: {text}", plan.entry);
            ensure!(
                start.elapsed() < SET_UP_MAX,
                "connecting to {}: too slow",
                plan.entry
            );
        }
        if plan.stalled_beside > 0 && plan.bulk_beside == 0 {
            self.fill(plan)?;
        }
        match plan.work {
            Work::Messages { .. } => Ok(callers),
            _ => Ok(Vec::new()),
        }
    }

    fn is_connecting(&self, index: usize) -> bool {
        let place = self.places[index].as_ref();
        place.is_some_and(|place| matches!(place.end, End::Connecting(_)))
    }

    /// One phase of load; gives the callers that are free behind it.
    fn phase(
        &mut self,
        plan: &Plan,
        window: Duration,
        free: Vec<usize>,
    ) -> Result<(Measured, Vec<usize>)> {
        if window.is_zero() {
            let books = Books::new(plan, window, Vec::new());
            return Ok((books.finish(), free));
        }
        let mut books = Books::new(plan, window, free);
        if let Work::Burst { .. } = plan.work {
            books.free = vec![TOKEN; plan.connections];
        }
        while !books.over() {
            self.send_due(plan, &mut books)?;
            self.turn(plan, &mut books)?;
        }
        let free = std::mem::take(&mut books.free);
        Ok((books.finish(), free))
    }

    fn send_due(&mut self, plan: &Plan, books: &mut Books) -> Result<()> {
        while let Some((index, due)) = books.next()? {
            match plan.work {
                Work::Short { .. } => self.open_with_message(plan.entry, due)?,
                Work::Burst { .. } => self.open_with_message(plan.entry, books.start)?,
                _ => self.send(index, due, plan, books)?,
            }
        }
        Ok(())
    }

    fn send(&mut self, index: usize, due: Instant, plan: &Plan, books: &mut Books) -> Result<()> {
        self.number += 1;
        let Some(place) = self.places[index].as_mut() else {
            books.failed("the connection is gone".to_owned());
            return Ok(());
        };
        message(self.number, self.bytes, &mut place.unsent);
        place.end = End::Caller(Some(Message {
            number: self.number,
            due,
            back: 0,
        }));
        if let Err(error) = place.flush() {
            self.fail(index, plan, books, &error);
            return Ok(());
        }
        self.rearm(index)
    }

    fn open_with_message(&mut self, entry: SocketAddr, due: Instant) -> Result<()> {
        self.number += 1;
        let under_way = Message {
            number: self.number,
            due,
            back: 0,
        };
        let index = self.open(entry, End::Caller(Some(under_way)), None)?;
        if let Some(place) = self.places[index].as_mut() {
            message(self.number, self.bytes, &mut place.unsent);
        }
        Ok(())
    }

    /// Starts a connection; the preface and the command wait until it stands.
    fn open(&mut self, entry: SocketAddr, end: End, command: Option<u8>) -> Result<usize> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match rustix::net::connect(&socket, &entry) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error).with_context(|| format!("connecting to {entry}")),
        }
        let mut unsent = self.preface.clone();
        unsent.extend(command);
        self.insert(Connection {
            stream: TcpStream::from(socket),
            end: End::Connecting(Box::new(end)),
            client: true,
            unsent,
            interest: EventFlags::OUT,
        })
    }

    fn insert(&mut self, connection: Connection) -> Result<usize> {
        let index = self.vacant.pop().unwrap_or(self.places.len());
        let tag = EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &connection.stream, tag, connection.interest)?;
        if index == self.places.len() {
            self.places.push(None);
        }
        self.places[index] = Some(connection);
        Ok(index)
    }

    /// Handles what is ready.
    fn turn(&mut self, plan: &Plan, books: &mut Books) -> Result<()> {
        let patience = Timespec::try_from(books.patience())?;
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, Some(&patience)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            if event.data.u64() == LISTENER {
                self.accept()?;
            } else {
                let index = usize::try_from(event.data.u64())?;
                self.handle(index, event.flags, plan, books)?;
            }
            if books.schedule.is_some() {
                self.send_due(plan, books)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            self.insert(Connection {
                stream: TcpStream::from(socket),
                end: End::New {
                    skip: self.preface.len(),
                },
                client: false,
                unsent: Vec::new(),
                interest: EventFlags::IN,
            })?;
        }
        Ok(())
    }

    fn handle(
        &mut self,
        index: usize,
        flags: EventFlags,
        plan: &Plan,
        books: &mut Books,
    ) -> Result<()> {
        let Some(place) = self.places.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let step = match place.ready(flags, &mut self.scratch, self.bytes) {
            Ok(step) => step,
            Err(error) => {
                self.fail(index, plan, books, &error);
                return Ok(());
            }
        };
        match step {
            Step::Nothing | Step::Ready => {}
            Step::Discarded(count) => books.bytes += count as u64,
            Step::Answered(since, bytes) => {
                books.answered(since, bytes);
                if is_one_shot(plan) {
                    self.drop_at(index, false);
                    books.free.push(TOKEN);
                    return Ok(());
                }
                books.free.push(index);
                if books.schedule.is_none()
                    && let Some((index, due)) = books.next()?
                {
                    return self.send(index, due, plan, books);
                }
            }
            Step::End if place.client => {
                let error = anyhow::anyhow!("closed by the other side");
                self.fail(index, plan, books, &error);
                return Ok(());
            }
            Step::End => {
                self.drop_at(index, false);
                return Ok(());
            }
        }
        self.rearm(index)
    }

    /// A client's failure is an error; the service's end only follows what happened elsewhere.
    fn fail(&mut self, index: usize, plan: &Plan, books: &mut Books, error: &anyhow::Error) {
        if self.places[index]
            .as_ref()
            .is_some_and(|place| place.client)
        {
            books.failed(format!("{error:#}"));
            if is_one_shot(plan) {
                books.free.push(TOKEN);
            }
            books.free.retain(|free| *free != index);
        }
        self.drop_at(index, true);
    }

    fn rearm(&mut self, index: usize) -> Result<()> {
        let Some(place) = self.places[index].as_mut() else {
            return Ok(());
        };
        let wants = place.wants();
        if wants != place.interest {
            place.interest = wants;
            let tag = EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &place.stream, tag, wants)?;
        }
        Ok(())
    }

    /// Closes; by reset where bytes under way are of no more use.
    fn drop_at(&mut self, index: usize, by_reset: bool) {
        let Some(place) = self.places[index].take() else {
            return;
        };
        if by_reset {
            let _ = sockopt::set_socket_linger(&place.stream, Some(Duration::ZERO));
        }
        self.vacant.push(index);
    }
}

/// Whether each message has a connection of its own.
fn is_one_shot(plan: &Plan) -> bool {
    matches!(plan.work, Work::Short { .. } | Work::Burst { .. })
}

fn source(discards: bool) -> End {
    End::Source {
        position: 0,
        discards,
    }
}

/// Asks for nothing.
fn idle_plan() -> Plan {
    Plan {
        entry: ([127, 0, 0, 1], 1).into(),
        preface: Vec::new(),
        connections: 0,
        work: Work::Bulk(Way::Down),
        warm_up: Duration::ZERO,
        window: Duration::ZERO,
        bulk_beside: 0,
        stalled_beside: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rig() -> (Rig, Plan) {
        let rig = Rig::new(TcpListener::bind(("127.0.0.1", 0)).unwrap()).unwrap();
        let plan = Plan {
            entry: rig.listener().local_addr().unwrap(),
            connections: 4,
            warm_up: Duration::from_millis(20),
            window: Duration::from_millis(100),
            ..idle_plan()
        };
        (rig, plan)
    }

    #[test]
    fn bulk_is_counted_at_the_receiver_all_three_ways() {
        let (mut rig, mut plan) = rig();
        for way in [Way::Up, Way::Down, Way::Both] {
            plan.work = Work::Bulk(way);
            plan.preface = super::super::client_hello("perf.test");
            let mut edges = 0;
            let mut edge = || {
                edges += 1;
                Ok(())
            };
            let measured = rig.measure(&plan, &mut edge).unwrap();
            assert_eq!(
                (edges, measured.errors),
                (2, 0),
                "{:?}",
                measured.first_error
            );
            assert!(measured.bytes > 1 << 20, "{way:?}: {}", measured.bytes);
        }
    }

    #[test]
    fn messages_come_back_whole_in_closed_and_open_loops() {
        let (mut rig, mut plan) = rig();
        for (bytes, arrivals, expected) in [
            (64, Arrivals::Closed, None),
            (1024, Arrivals::Constant(1000.0), Some(100)),
        ] {
            plan.work = Work::Messages { bytes, arrivals };
            let measured = rig.measure(&plan, &mut || Ok(())).unwrap();
            assert_eq!(measured.errors, 0, "{:?}", measured.first_error);
            assert_eq!(measured.bytes, measured.answers * bytes as u64);
            assert_eq!(measured.latency.len(), measured.answers);
            assert!(expected.is_none_or(|count| count == measured.answers));
        }
    }

    #[test]
    fn short_connections_and_a_burst_leave_nothing_behind() {
        let (mut rig, mut plan) = rig();
        plan.work = Work::Short { bytes: 1024 };
        let measured = rig.measure(&plan, &mut || Ok(())).unwrap();
        assert!(measured.errors == 0 && measured.answers > 10);
        plan.work = Work::Burst { bytes: 64 };
        (plan.connections, plan.warm_up) = (100, Duration::ZERO);
        let measured = rig.measure(&plan, &mut || Ok(())).unwrap();
        assert_eq!((measured.errors, measured.answers), (0, 100));
        rig.gather(plan.entry, &[], 100).unwrap();
        assert_eq!(rig.clients(), 100);
        rig.clear().unwrap();
        assert_eq!(rig.places.iter().flatten().count(), 0);
    }

    #[test]
    fn a_service_that_changes_a_byte_is_an_error() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (mut rig, mut plan) = rig();
        plan.entry = listener.local_addr().unwrap();
        plan.connections = 1;
        plan.work = Work::Messages {
            bytes: 64,
            arrivals: Arrivals::Constant(50.0),
        };
        let liar = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 64];
            stream.read_exact(&mut bytes).unwrap();
            bytes[40] ^= 1;
            stream.write_all(&bytes).unwrap();
        });
        plan.warm_up = Duration::ZERO;
        let measured = rig.measure(&plan, &mut || Ok(())).unwrap();
        liar.join().unwrap();
        assert_eq!(measured.answers, 0);
        assert!(measured.errors > 0);
        assert!(measured.first_error.unwrap().contains("wrong bytes"));
    }
}
