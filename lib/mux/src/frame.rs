//! The 12-byte header of the yamux wire (docs: hashicorp/yamux `spec.md`; contract W-1).

use crate::Violation;

/// Length of a header.
pub const HEADER_BYTES: usize = 12;

/// First frame of a stream.
pub const SYN: u16 = 1;
/// Answer to SYN, or to a ping.
pub const ACK: u16 = 2;
/// The sender writes no more.
pub const FIN: u16 = 4;
/// The stream is aborted.
pub const RST: u16 = 8;

/// GoAway code: no new streams, live ones go on.
pub const GO_AWAY_NORMAL: u32 = 0;
/// GoAway code: the peer broke the protocol or a limit.
pub const GO_AWAY_PROTOCOL: u32 = 1;
/// GoAway code: the sender failed.
pub const GO_AWAY_INTERNAL: u32 = 2;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Payload of `length` bytes follows.
    Data = 0,
    /// `length` bytes of new credit.
    WindowUpdate = 1,
    /// `length` is an opaque value.
    Ping = 2,
    /// `length` is a code.
    GoAway = 3,
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame carries.
    pub kind: Kind,
    /// [`SYN`], [`ACK`], [`FIN`], [`RST`]; other bits are ignored.
    pub flags: u16,
    /// Stream id, 0 for Ping and GoAway.
    pub id: u32,
    /// See [`Kind`].
    pub length: u32,
}

impl Header {
    /// Whether `flag` is set.
    #[must_use]
    pub const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The bytes on the wire.
    #[must_use]
    pub const fn encode(self) -> [u8; HEADER_BYTES] {
        let [f0, f1] = self.flags.to_be_bytes();
        let [i0, i1, i2, i3] = self.id.to_be_bytes();
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [0, self.kind as u8, f0, f1, i0, i1, i2, i3, l0, l1, l2, l3]
    }

    /// Reads a header; refuses another version, an unknown kind, and an id that does not belong
    /// to the kind.
    pub const fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Header, Violation> {
        let [version, kind, f0, f1, i0, i1, i2, i3, l0, l1, l2, l3] = bytes;
        if version != 0 {
            return Err(Violation::Version(version));
        }
        let id = u32::from_be_bytes([i0, i1, i2, i3]);
        let decoded = match kind {
            0 => Kind::Data,
            1 => Kind::WindowUpdate,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            other => return Err(Violation::FrameType(other)),
        };
        let of_session = matches!(decoded, Kind::Ping | Kind::GoAway);
        if of_session != (id == 0) {
            return Err(Violation::FrameId { kind, id });
        }
        Ok(Header {
            kind: decoded,
            flags: u16::from_be_bytes([f0, f1]),
            id,
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }
}

/// A count of bytes as the wire writes it. Callers bound it; saturation is never reached.
pub(crate) fn wire_length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
