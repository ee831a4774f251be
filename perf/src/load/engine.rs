//! The busy loop: epoll without waiting, arrivals looked at between any two events.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::client::{Client, Sent};
use super::{Arrivals, Measured, Plan, Schedule, histogram, microseconds};
use crate::service::{self, Asked, PIECE_BYTES};

/// Longest wait for answers behind the end of the window.
const TAIL_MAX: Duration = Duration::from_secs(5);
/// Bytes read from a socket at once.
const READ_BYTES: usize = 256 * 1024;

enum Role {
    Client(Client),
    /// Position and length of a big body under way.
    Service(Option<(u64, u64)>),
}

struct Connection {
    stream: TcpStream,
    role: Role,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    wants_out: bool,
}

/// The loop with its service; sockets live in the namespace of the thread that made it.
pub struct Engine {
    epoll: OwnedFd,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
}

const LISTENER: u64 = u64::MAX;

impl Engine {
    /// Listens for the service at `address`.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn new(address: SocketAddr) -> Result<Engine> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        Ok(Engine {
            epoll,
            listener,
            connections: Vec::new(),
            events: Vec::with_capacity(64),
            scratch: vec![0; READ_BYTES],
        })
    }

    /// Where the service listens.
    ///
    /// # Errors
    /// Never on a bound socket.
    pub fn service(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves, without asking anything, until `ready` says so (looked at every 10 ms).
    ///
    /// # Errors
    /// After `limit`.
    pub fn serve_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + limit;
        let mut look = Instant::now();
        let mut idle = Run::idle();
        while Instant::now() < end {
            self.turn(&mut idle)?;
            if look.elapsed() > Duration::from_millis(10) {
                if ready() {
                    return Ok(());
                }
                look = Instant::now();
            }
        }
        bail!("not ready within {limit:?}")
    }

    /// Carries out a plan.
    ///
    /// # Errors
    /// When the entry cannot be connected to. Failed requests are counted, not errors.
    pub fn measure(&mut self, plan: &Plan) -> Result<Measured> {
        self.drop_clients();
        let mut run = Run::new(plan.clone());
        for _ in 0..plan.connections {
            let index = self.connect(plan.entry)?;
            run.free.push(index);
        }
        run.begin();
        while !run.over() {
            self.send_due(&mut run)?;
            self.turn(&mut run)?;
        }
        self.drop_clients();
        Ok(run.finish())
    }

    fn drop_clients(&mut self) {
        for place in &mut self.connections {
            if matches!(
                place,
                Some(Connection {
                    role: Role::Client(_),
                    ..
                })
            ) {
                *place = None;
            }
        }
    }

    fn connect(&mut self, to: SocketAddr) -> Result<usize> {
        let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
        self.insert(stream, Role::Client(Client::default()))
    }

    fn insert(&mut self, stream: TcpStream, role: Role) -> Result<usize> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let index = match self.connections.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.connections.push(None);
                self.connections.len() - 1
            }
        };
        epoll::add(
            &self.epoll,
            &stream,
            EventData::new_u64(index as u64),
            EventFlags::IN,
        )?;
        self.connections[index] = Some(Connection {
            stream,
            role,
            inbox: Vec::new(),
            outbox: Vec::new(),
            wants_out: false,
        });
        Ok(index)
    }

    /// Sends what is due on connections that are free.
    fn send_due(&mut self, run: &mut Run) -> Result<()> {
        while let Some((index, due)) = run.next_request()? {
            let Some(connection) = self.connections[index].as_mut() else {
                continue;
            };
            let Role::Client(client) = &mut connection.role else {
                continue;
            };
            client.ask(
                (&run.plan.prefix, &run.plan.fields),
                run.plan.body,
                run.asked,
                due,
                &mut connection.outbox,
            );
            run.asked += 1;
            if let Err(error) = flush(&self.epoll, index, connection) {
                self.fail(index, run, &error)?;
            }
        }
        Ok(())
    }

    /// Handles what is ready now.
    fn turn(&mut self, run: &mut Run) -> Result<()> {
        self.events.clear();
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        epoll::wait(&self.epoll, spare, Some(&zero))?;
        let events = std::mem::take(&mut self.events);
        for event in &events {
            if event.data.u64() == LISTENER {
                self.accept()?;
            } else {
                let index = usize::try_from(event.data.u64())?;
                if let Err(error) = self.handle(index, event.flags, run) {
                    self.fail(index, run, &error)?;
                }
            }
            if run.is_timed() {
                self.send_due(run)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        while let Ok((stream, _)) = self.listener.accept() {
            self.insert(stream, Role::Service(None))?;
        }
        Ok(())
    }

    fn handle(&mut self, index: usize, flags: EventFlags, run: &mut Run) -> Result<()> {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            match connection.stream.read(&mut self.scratch) {
                Ok(0) => bail!("closed"),
                Ok(count) => connection.inbox.extend_from_slice(&self.scratch[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        match &mut connection.role {
            Role::Client(client) => {
                if !connection.inbox.is_empty()
                    && let Some(sent) = client.take(&mut connection.inbox, &mut run.bytes)?
                {
                    run.answered(index, sent);
                }
            }
            Role::Service(big) => {
                while big.is_none()
                    && let Some(asked) = service::take_request(&mut connection.inbox)
                {
                    service::answer(asked, &mut connection.outbox);
                    if let Asked::Big(bytes) = asked {
                        *big = Some((0, bytes));
                    }
                }
            }
        }
        flush(&self.epoll, index, connection)
    }

    /// Gives a connection up; a client's is replaced.
    fn fail(&mut self, index: usize, run: &mut Run, error: &anyhow::Error) -> Result<()> {
        let Some(connection) = self.connections[index].take() else {
            return Ok(());
        };
        if let Role::Client(client) = connection.role {
            if client.sent.is_some() {
                run.failed(format!("{error:#}"));
            } else {
                run.free.retain(|free| *free != index);
            }
            drop(connection.stream);
            if run.errors < 1000 {
                let fresh = self.connect(run.plan.entry)?;
                run.free.push(fresh);
            }
        }
        Ok(())
    }
}

/// Writes what waits, and what a big body still owes, until the socket is full.
fn flush(epoll: &OwnedFd, index: usize, connection: &mut Connection) -> Result<()> {
    let mut full = false;
    while !full && !connection.outbox.is_empty() {
        match connection.stream.write(&connection.outbox) {
            Ok(count) => drop(connection.outbox.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => full = true,
            Err(error) => return Err(error.into()),
        }
    }
    if let Role::Service(big) = &mut connection.role {
        while !full && let Some((position, length)) = big {
            let left = usize::try_from(*length - *position).unwrap_or(usize::MAX);
            match connection
                .stream
                .write(service::pattern(*position, left.min(PIECE_BYTES)))
            {
                Ok(count) => *position += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => full = true,
                Err(error) => return Err(error.into()),
            }
            if *position == *length {
                *big = None;
            }
        }
    }
    if full != connection.wants_out {
        connection.wants_out = full;
        let flags = if full {
            EventFlags::IN | EventFlags::OUT
        } else {
            EventFlags::IN
        };
        epoll::modify(
            epoll,
            &connection.stream,
            EventData::new_u64(index as u64),
            flags,
        )?;
    }
    Ok(())
}

/// The books of one measurement.
struct Run {
    plan: Plan,
    start: Instant,
    schedule: Option<Schedule>,
    free: Vec<usize>,
    asked: u64,
    answers: u64,
    errors: u64,
    bytes: u64,
    first_error: Option<String>,
    last_answer: Instant,
    latency: hdrhistogram::Histogram<u64>,
}

impl Run {
    fn new(plan: Plan) -> Run {
        let now = Instant::now();
        Run {
            plan,
            start: now,
            schedule: None,
            free: Vec::new(),
            asked: 0,
            answers: 0,
            errors: 0,
            bytes: 0,
            first_error: None,
            last_answer: now,
            latency: histogram(),
        }
    }

    /// Asks for nothing: for turns that only serve.
    fn idle() -> Run {
        Run::new(Plan {
            entry: ([127, 0, 0, 1], 1).into(),
            prefix: String::new(),
            fields: String::new(),
            connections: 0,
            arrivals: Arrivals::Closed,
            body: super::Body::Small,
            window: Duration::ZERO,
            answers_max: 0,
        })
    }

    fn begin(&mut self) {
        self.start = Instant::now();
        self.last_answer = self.start;
        self.schedule = (self.plan.arrivals != Arrivals::Closed)
            .then(|| Schedule::new(self.plan.arrivals, self.start, self.plan.window));
    }

    fn is_timed(&self) -> bool {
        self.schedule.is_some()
    }

    fn waiting(&self) -> u64 {
        self.schedule.as_ref().map_or(0, Schedule::waiting)
    }

    fn sending(&self) -> bool {
        match &self.schedule {
            Some(schedule) => schedule.lasts(),
            None => self.start.elapsed() < self.plan.window && self.asked < self.plan.answers_max,
        }
    }

    fn over(&self) -> bool {
        let outstanding = self.asked - self.answers - self.errors;
        !self.sending()
            && (outstanding == 0 && (self.waiting() == 0 || self.free.is_empty())
                || self.start.elapsed() > self.plan.window + TAIL_MAX)
    }

    /// A free connection and the time its request was due.
    fn next_request(&mut self) -> Result<Option<(usize, Instant)>> {
        let due = match &mut self.schedule {
            Some(schedule) => {
                schedule.note()?;
                schedule.front()
            }
            None => self.sending().then(Instant::now),
        };
        let (Some(due), false) = (due, self.free.is_empty()) else {
            return Ok(None);
        };
        if let Some(schedule) = &mut self.schedule {
            schedule.pop();
        }
        Ok(self.free.pop().map(|index| (index, due)))
    }

    fn answered(&mut self, index: usize, sent: Sent) {
        let now = Instant::now();
        let took = microseconds(now.duration_since(sent.intended));
        self.latency.saturating_record(took);
        self.answers += 1;
        self.last_answer = now;
        self.free.push(index);
    }

    fn failed(&mut self, text: String) {
        self.errors += 1;
        self.first_error.get_or_insert(text);
    }

    fn finish(self) -> Measured {
        let lost = self.asked - self.answers - self.errors + self.waiting();
        Measured {
            seconds: self.last_answer.duration_since(self.start).as_secs_f64(),
            answers: self.answers,
            bytes: self.bytes,
            errors: self.errors + lost,
            first_error: self
                .first_error
                .or_else(|| (lost > 0).then(|| format!("{lost} without an answer"))),
            latency: self.latency,
            lateness: self.schedule.map_or_else(histogram, Schedule::lateness),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Body;

    fn plan(engine: &Engine, arrivals: Arrivals, body: Body) -> Plan {
        Plan {
            entry: engine.service().unwrap(),
            prefix: String::new(),
            fields: String::new(),
            connections: 8,
            arrivals,
            body,
            window: Duration::from_millis(200),
            answers_max: u64::MAX,
        }
    }

    #[test]
    fn an_open_loop_keeps_its_schedule_and_loses_nothing() {
        let mut engine = Engine::new(([127, 0, 0, 1], 0).into()).unwrap();
        let plan = plan(&engine, Arrivals::Constant(1000.0), Body::Small);
        let measured = engine.measure(&plan).unwrap();
        assert_eq!((measured.errors, measured.answers), (0, 200));
        assert_eq!(measured.bytes, 200 * 1024);
        assert_eq!(measured.latency.len(), 200);
    }

    #[test]
    fn a_closed_loop_and_a_big_body_are_counted_where_they_arrive() {
        let mut engine = Engine::new(([127, 0, 0, 1], 0).into()).unwrap();
        let small = plan(&engine, Arrivals::Closed, Body::Small);
        let measured = engine.measure(&small).unwrap();
        assert_eq!(measured.errors, 0);
        assert!(measured.answers > 100);
        let mut big = plan(&engine, Arrivals::Closed, Body::Big(10 << 20));
        (big.connections, big.answers_max) = (1, 3);
        big.window = Duration::from_secs(20);
        let measured = engine.measure(&big).unwrap();
        assert_eq!(
            (measured.errors, measured.answers, measured.bytes),
            (0, 3, 30 << 20)
        );
    }

    #[test]
    fn a_service_that_stalls_is_charged_for_every_request_meanwhile() {
        // Accepts and never answers: all requests are lost, none is forgotten.
        let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut engine = Engine::new(([127, 0, 0, 1], 0).into()).unwrap();
        let mut plan = plan(&engine, Arrivals::Constant(500.0), Body::Small);
        plan.entry = silent.local_addr().unwrap();
        let measured = engine.measure(&plan).unwrap();
        assert_eq!((measured.answers, measured.errors), (0, 100));
    }
}
