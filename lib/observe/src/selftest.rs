//! Proves that the kernel tells what it should: a relay over loopback inside this process.
//!
//! It finds what no return value tells: a process outside the linked cgroup, sockets that cgroup
//! v1 took out of cgroup2, and programs of others that clear our flags.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use culvert_abi::{Ident, Leg, NO_SLOT, Role, SELF_TEST, Stat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::clusters::ClusterIndex;
use crate::kernel::Kernel;
use crate::observer::{ConnId, Tag, monotonic_ns};
use crate::settings::Tier;
use crate::tier::Proof;

/// What the relay moves each way.
const BYTES: usize = 4_096;
/// The kernel has this long to tell.
const DEADLINE: Duration = Duration::from_millis(200);
/// Each step of the relay has this long: loopback needs microseconds.
const STEP_MAX: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// Runs the relay and says what the kernel told of it.
///
/// # Errors
/// When the relay itself cannot be set up, as without a loopback interface.
pub fn run(kernel: &Kernel, wanted: Tier) -> io::Result<Proof> {
    let addresses: [SocketAddr; 2] = [
        (Ipv4Addr::LOCALHOST, 0).into(),
        (Ipv6Addr::LOCALHOST, 0).into(),
    ];
    let [v4, v6] = addresses;
    relay(kernel, wanted, v4).or_else(|_| relay(kernel, wanted, v6))
}

fn relay(kernel: &Kernel, wanted: Tier, address: SocketAddr) -> io::Result<Proof> {
    let service = TcpListener::bind(address)?;
    let entry = tagged_listener(kernel, address)?;
    let mut client = TcpStream::connect(entry.local_addr()?)?;
    let mut near = accept(&entry)?;
    let clone = stat(kernel, &near).is_some_and(|it| it.flags & Stat::EST != 0);
    let mut far = tagged_dial(kernel, service.local_addr()?)?;
    let mut server = accept(&service)?;
    for stream in [&client, &near, &far, &server] {
        stream.set_read_timeout(Some(STEP_MAX))?;
        stream.set_write_timeout(Some(STEP_MAX))?;
        stream.set_nodelay(true)?;
    }
    let slot = kernel.slots.lock().take(monotonic_ns());
    let slot = slot.ok_or_else(|| io::Error::other("no slot"))?;
    kernel.prepare(slot.slot, [(0, 0), (0, 0)]);
    for (socket, role) in [(&near, Role::Client), (&far, Role::Service)] {
        let ident = tag(role).ident(Some(slot)).to_bytes();
        kernel.ident.update(socket.as_fd(), &ident)?;
    }
    kernel.own_slot(slot.slot, slot.generation);
    let moved = forward(&mut client, &mut near, &mut far, &mut server)
        .and_then(|()| forward(&mut server, &mut far, &mut near, &mut client));
    let seen = moved.map(|()| wait(|| seen(kernel, wanted, [&near, &far])));
    kernel.own_slot(slot.slot, 0);
    kernel.slots.lock().give(slot.slot, monotonic_ns());
    let mut proof = seen?;
    proof.clone = clone;
    drop((client, near, far, server));
    proof.closes = wait_for_closes(kernel);
    Ok(proof)
}

fn tag(role: Role) -> Tag {
    Tag {
        conn: ConnId::of_sequence(0),
        cluster: ClusterIndex(SELF_TEST),
        leg: Leg::Other,
        role,
        flags: 0,
    }
}

fn tagged_listener(kernel: &Kernel, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    rustix::net::bind(&socket, &address)?;
    let ident = Ident {
        pair_slot: NO_SLOT,
        cluster: SELF_TEST,
        leg: Leg::Other as u8,
        flags: Ident::TEMPLATE,
        ..Ident::default()
    };
    kernel.ident.update(socket.as_fd(), &ident.to_bytes())?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket.into())
}

fn tagged_dial(kernel: &Kernel, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(address)?;
    let ident = tag(Role::Service).ident(None);
    kernel.ident.update(socket.as_fd(), &ident.to_bytes())?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> io::Result<std::os::fd::OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC;
    let tcp = Some(ipproto::TCP);
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, tcp)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(STEP_MAX))?;
    Ok(socket)
}

/// Accepts, or gives up.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    let step = Timespec::try_from(STEP_MAX).map_err(io::Error::other)?;
    match poll(&mut ready, Some(&step))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(listener.accept()?.0),
    }
}

/// Sends from `from`, relays, and receives at `to`.
fn forward(
    from: &mut TcpStream,
    side_in: &mut TcpStream,
    side_out: &mut TcpStream,
    to: &mut TcpStream,
) -> io::Result<()> {
    let mut bytes = [0x5a; BYTES];
    from.write_all(&bytes)?;
    side_in.read_exact(&mut bytes)?;
    side_out.write_all(&bytes)?;
    to.read_exact(&mut bytes)
}

fn stat(kernel: &Kernel, socket: &TcpStream) -> Option<Stat> {
    let stat = kernel.stat.lookup(socket.as_fd()).ok()?;
    Some(Stat::from_bytes(&stat))
}

fn seen(kernel: &Kernel, wanted: Tier, sides: [&TcpStream; 2]) -> (Proof, bool) {
    let stats = sides.map(|it| stat(kernel, it).unwrap_or_default());
    let moved = BYTES as u64;
    let proof = Proof {
        rtt: stats.iter().any(|it| it.rtt_n > 0),
        bytes: stats
            .iter()
            .all(|it| (it.rx_end, it.tx_end) == (moved, moved)),
        residence: stats.iter().all(|it| it.res_n > 0),
        ..Proof::default()
    };
    let rest = Proof {
        clone: true,
        closes: true,
        ..proof
    };
    (proof, rest.tier() >= wanted)
}

/// Looks until all is there or the time is up, and gives what was seen last.
fn wait<T>(mut look: impl FnMut() -> (T, bool)) -> T {
    let begun = Instant::now();
    loop {
        let (seen, done) = look();
        if done || begun.elapsed() > DEADLINE {
            return seen;
        }
        std::thread::sleep(LOOK);
    }
}

fn wait_for_closes(kernel: &Kernel) -> bool {
    let mut roles = [false; 2];
    wait(|| {
        let mut ring = kernel.closes.lock();
        while let Some(close) = Kernel::next_close(&mut ring) {
            if close.cluster == SELF_TEST {
                roles[usize::from(close.role & 1)] = true;
            }
        }
        let both = roles == [true; 2];
        (both, both)
    })
}

/// Whether a socket can be tagged as things are now.
///
/// # Errors
/// When it cannot.
pub fn tags(kernel: &Kernel) -> io::Result<()> {
    let socket = socket((Ipv4Addr::LOCALHOST, 0).into())
        .or_else(|_| socket((Ipv6Addr::LOCALHOST, 0).into()))?;
    let ident = tag(Role::Client).ident(None);
    kernel.ident.update(socket.as_fd(), &ident.to_bytes())?;
    kernel.ident.lookup(socket.as_fd())?;
    Ok(())
}
