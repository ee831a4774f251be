//! Options of a TCP socket: what every leg carries (contract section 16, security.md 3.4).

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Keepalive: idle before the first probe.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Keepalive: between two probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Keepalive: unanswered probes before the peer is dead.
pub const KEEPALIVE_PROBES_MAX: u32 = 3;
/// Unacknowledged data ends a carrier, or a leg being set up, after this.
pub const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Unsent bytes the kernel may hold on a carrier, so that a small frame never waits behind megabytes.
pub const CARRIER_UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// NODELAY, keepalive 15/5/3 and `TCP_USER_TIMEOUT` 15 s: every leg while it is set up.
///
/// # Errors
/// When the kernel refuses an option.
pub fn set_leg_options(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES_MAX),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// The options of a leg, and the bound on unsent bytes that a carrier needs.
///
/// # Errors
/// When the kernel refuses an option.
pub fn set_carrier_options(socket: &impl AsFd) -> io::Result<()> {
    set_leg_options(socket)?;
    SockRef::from(socket).set_tcp_notsent_lowat(CARRIER_UNSENT_BYTES_MAX)
}

/// Takes `TCP_USER_TIMEOUT` off: a client that pauses its reader would else be cut (fact 3).
///
/// # Errors
/// When the kernel refuses the option.
pub fn lift_user_timeout(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_user_timeout(None)
}
