//! What a mux may do and how much of everything it may hold.

/// Credit that both ends of the yamux wire assume for a new stream, in each direction.
pub const WIRE_WINDOW_BYTES: u32 = 262_144;

/// Which end of the carrier this mux is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens odd ids. The hub is the client, although the agent dialled.
    Client,
    /// Opens even ids. The agent.
    Server,
}

/// Limits and behaviour of one [`Mux`](crate::Mux).
#[derive(Debug, Clone)]
pub struct Config {
    /// Which ids are ours.
    pub role: Role,
    /// `false`: every SYN of the peer is answered with RST of that stream.
    pub accept_streams: bool,
    /// Live streams of both ends together, 1..=16,384.
    pub streams_max: u32,
    /// Credit of a new stream in both directions, in bytes, at most [`WIRE_WINDOW_BYTES`].
    /// Anything smaller must have been agreed out of band, because the sender starts with it too.
    pub window_initial: u32,
    /// Ceiling for an auto-tuned receive window, in bytes.
    pub window_max: u32,
    /// Bytes of one stream that may wait for the carrier before `write` blocks.
    pub send_gate_bytes: usize,
    /// Payload of one of our own Data frames, in bytes.
    pub frame_bytes_max: usize,
    /// SYN frames of the peer per second; above it [`Violation`](crate::Violation).
    pub opens_per_second_max: u32,
    /// RST frames of the peer per second; above it [`Violation`](crate::Violation).
    pub resets_per_second_max: u32,
    /// Ping requests of the peer per second; above it [`Violation`](crate::Violation).
    pub pings_per_second_max: u32,
    /// A stream whose peer gives no credit for our queued bytes is reset after this many
    /// milliseconds; 0 = never.
    pub stall_ms_max: u64,
    /// Seed of the id map. An end that accepts streams sets a random one, so that a peer cannot
    /// choose ids that collide.
    pub hash_seed: u64,
    /// The ACK of an accepted stream leaves at once. `false` lets it ride on the stream's first
    /// frame, where both ends are known to wait for none: a frame and a wake-up less per stream.
    pub ack_at_once: bool,
    /// This stream's data goes before that of all others (culvert/1: the control stream).
    pub first_stream: Option<crate::StreamId>,
}

impl Config {
    /// The defaults of contract section 16: 1,024 streams, 256 KiB windows tuned up to 32 MiB,
    /// 32 KiB send gate, 16 KiB frames, 1,000 opens and resets and 20 pings per second.
    /// A server accepts streams, a client refuses them.
    #[must_use]
    pub fn new(role: Role) -> Config {
        Config {
            role,
            accept_streams: role == Role::Server,
            streams_max: 1_024,
            window_initial: WIRE_WINDOW_BYTES,
            window_max: 32 << 20,
            send_gate_bytes: 32 << 10,
            frame_bytes_max: 16 << 10,
            opens_per_second_max: 1_000,
            resets_per_second_max: 1_000,
            pings_per_second_max: 20,
            stall_ms_max: 3_600_000,
            hash_seed: 0,
            ack_at_once: true,
            first_stream: None,
        }
    }
}
