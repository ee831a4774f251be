//! Closed sets of small numbers in the records.

/// Which connection of the product a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Leg {
    /// From a client.
    Client = 1,
    /// An agent's session.
    Carrier = 2,
    /// An agent's data channel.
    Data = 3,
    /// To a service.
    Upstream = 4,
    /// Either side of a pair.
    Pair = 5,
    /// Between two data planes.
    Peer = 6,
    /// Anything else.
    Other = 7,
}

impl Leg {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Client,
        Self::Carrier,
        Self::Data,
        Self::Upstream,
        Self::Pair,
        Self::Peer,
        Self::Other,
    ];

    /// Value of the metric label `leg`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Carrier => "carrier",
            Self::Data => "data",
            Self::Upstream => "upstream",
            Self::Pair => "pair",
            Self::Peer => "peer",
            Self::Other => "other",
        }
    }

    /// The leg of this number.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|leg| *leg as u8 == number)
    }
}

/// Which end of a relay a socket leads to; also the direction of the bytes that arrive on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Role {
    /// The side nearer the client: its bytes go to the service.
    Client = 0,
    /// The side nearer the service: its bytes go to the client.
    Service = 1,
}

/// Rows of a cluster in map `HIST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Residence towards the service, nothing queued before.
    ToServiceEmpty = 0,
    /// Residence towards the client, nothing queued before.
    ToClientEmpty = 1,
    /// Residence towards the service, behind earlier bytes.
    ToServiceBehind = 2,
    /// Residence towards the client, behind earlier bytes.
    ToClientBehind = 3,
    /// RTT of the legs `client` and `pair`, and of any leg without a row of its own.
    RttClient = 4,
    /// RTT of the leg `carrier`.
    RttCarrier = 5,
    /// RTT of the legs `data` and `peer`.
    RttData = 6,
    /// Wait in the receive queue.
    RxWait = 7,
}

impl Kind {
    /// Number of the RTT row of leg number `leg`.
    #[inline(always)]
    #[must_use]
    pub const fn rtt(leg: u8) -> u32 {
        if leg == Leg::Carrier as u8 {
            return Self::RttCarrier as u32;
        }
        if leg == Leg::Data as u8 || leg == Leg::Peer as u8 {
            return Self::RttData as u32;
        }
        Self::RttClient as u32
    }

    /// Number of the residence row of a direction.
    #[inline(always)]
    #[must_use]
    pub const fn residence(behind: u32, direction: u32) -> u32 {
        (behind & 1) * 2 + (direction & 1)
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum CloseKind {
    /// This side sent its FIN first.
    LocalFin = 1,
    /// The other side sent its FIN first.
    RemoteFin = 2,
    /// Reset or timed out while established.
    Abort = 3,
    /// The handshake never completed.
    NeverConnected = 4,
}

impl CloseKind {
    /// The kind of this number.
    #[must_use]
    pub const fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::LocalFin),
            2 => Some(Self::RemoteFin),
            3 => Some(Self::Abort),
            4 => Some(Self::NeverConnected),
            _ => None,
        }
    }
}

/// Cells of map `SELF`: the observer about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Own {
    /// [`crate::VERSION`], written by the reader.
    Version = 0,
    /// Close records that the ring had no room for.
    ClosesLost = 1,
    /// Sockets for which no `STAT` could be made.
    StatFailed = 2,
    /// Packets whose header was not understood.
    Unparsed = 3,
    /// Samples skipped because offsets disagreed.
    OffsetSkipped = 4,
    /// Sockets of a slot that others hold now.
    Generation = 5,
    /// Samples skipped while a segment was missing.
    Hole = 6,
    /// Packets of a socket whose first sequence number is unknown.
    NoBase = 7,
}
