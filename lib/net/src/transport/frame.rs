//! RFC 6455 frames as a byte stream, without I/O.
//!
//! Payload is handed on as it arrives, whatever length a frame declares: a message is never
//! assembled, so 16 MiB messages cost no memory and delay nothing.

mod decode;
mod encode;

pub use decode::Decoder;
pub use encode::{apply_mask, encode_header};

/// Longest message accepted, all its fragments together.
pub const MESSAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest message sent.
pub const SENT_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Longest payload of a control frame.
pub const CONTROL_BYTES_MAX: usize = 125;
/// Longest frame header.
pub const HEADER_BYTES_MAX: usize = 14;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
/// Opcode of all data we send.
pub const BINARY: u8 = 2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 8;
/// Opcode of a ping.
pub const PING: u8 = 9;
/// Opcode of a pong.
pub const PONG: u8 = 10;

/// Which end this is: a client masks, a server does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The agent.
    Client,
    /// The hub.
    Server,
}

/// What the peer did against RFC 6455, or against what we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A reserved bit is set although no extension was agreed.
    #[error("WebSocket peer set a reserved bit; no extension was agreed")]
    ReservedBit,
    /// An opcode that RFC 6455 does not define.
    #[error("WebSocket peer sent opcode {0}, which does not exist")]
    Opcode(u8),
    /// Text, where only binary messages carry the stream.
    #[error("WebSocket peer sent text; this path takes binary messages only")]
    Text,
    /// A client frame without mask, or a server frame with one.
    #[error("WebSocket peer sent a frame with the wrong masking")]
    Masking,
    /// A continuation that continues nothing, or a new message inside another.
    #[error("WebSocket peer broke the order of fragments")]
    Fragmentation,
    /// A control frame that is fragmented or longer than 125 bytes.
    #[error("WebSocket peer sent a malformed control frame")]
    Control,
    /// A length that is not written in the shortest form.
    #[error("WebSocket peer sent a malformed length")]
    Length,
    /// A message over 16 MiB.
    #[error("WebSocket peer sent a message of more than 16 MiB")]
    TooLong,
    /// A close frame whose code or text is malformed.
    #[error("WebSocket peer sent a malformed close frame")]
    Close,
}

impl FrameError {
    /// Status code of the close frame that answers it.
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            FrameError::Text => 1003,
            FrameError::TooLong => 1009,
            _ => 1002,
        }
    }
}

/// A complete control frame of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// [`CLOSE`], [`PING`] or [`PONG`].
    pub opcode: u8,
    payload: [u8; CONTROL_BYTES_MAX],
    length: u8,
}

impl Control {
    /// Its payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload[..usize::from(self.length)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything a decoder makes of `wire`, fed in pieces of `step` bytes.
    fn decode_all(
        end: End,
        wire: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, Vec<Control>), FrameError> {
        let mut decoder = Decoder::new(end);
        let (mut bytes, mut controls) = (Vec::new(), Vec::new());
        for piece in wire.chunks(step) {
            let mut piece = piece.to_vec();
            let mut rest = &mut piece[..];
            while !rest.is_empty() {
                let decoded = decoder.decode(rest)?;
                bytes.extend_from_slice(&rest[..decoded.payload]);
                controls.extend(decoded.control);
                rest = &mut rest[decoded.consumed..];
            }
        }
        Ok((bytes, controls))
    }

    fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let (header, used) = encode_header(opcode, payload.len(), mask);
        let mut body = payload.to_vec();
        if let Some(mut mask) = mask {
            apply_mask(&mut body, &mut mask);
        }
        [&header[..used], &body].concat()
    }

    #[test]
    fn examples_of_the_rfc() {
        // Section 5.7, with opcode 2 in place of 1: masked "Hello", then the same in two fragments.
        let masked = [
            0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        assert_eq!(decode_all(End::Server, &masked, 1).unwrap().0, b"Hello");
        let fragments = [0x02, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f];
        assert_eq!(decode_all(End::Client, &fragments, 4).unwrap().0, b"Hello");
        let ping = [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        let (bytes, controls) = decode_all(End::Client, &ping, 3).unwrap();
        assert!(bytes.is_empty());
        assert_eq!(
            (controls[0].opcode, controls[0].payload()),
            (PING, &b"Hello"[..])
        );
        assert_eq!(
            frame(BINARY, &[0; 256], None)[..4],
            [0x82, 0x7e, 0x01, 0x00]
        );
        assert_eq!(
            frame(BINARY, &[0; 65_536], None)[..10],
            [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]
        );
    }

    #[test]
    fn a_control_frame_between_fragments_is_seen() {
        let wire = [
            &[0x02, 0x01, b'a'][..],
            &frame(PING, b"x", None),
            &[0x00, 0x00],
            &[0x80, 0x01, b'b'],
        ]
        .concat();
        for step in 1..=wire.len() {
            let (bytes, controls) = decode_all(End::Client, &wire, step).unwrap();
            assert_eq!((&bytes[..], controls.len()), (&b"ab"[..], 1));
        }
    }

    #[test]
    fn what_is_refused_and_how() {
        let refused = |wire: &[u8]| decode_all(End::Client, wire, 1).unwrap_err();
        for bit in [0x10, 0x20, 0x40] {
            assert_eq!(refused(&[0x82 | bit, 0]), FrameError::ReservedBit);
            assert_eq!(FrameError::ReservedBit.close_code(), 1002);
        }
        assert_eq!(refused(&[0x81, 0x01, b'x']), FrameError::Text);
        assert_eq!(FrameError::Text.close_code(), 1003);
        assert_eq!(refused(&[0x82, 0x80, 0, 0, 0, 0]), FrameError::Masking);
        assert_eq!(
            decode_all(End::Server, &[0x82, 0x00], 1).unwrap_err(),
            FrameError::Masking
        );
        assert_eq!(refused(&[0x80, 0x00]), FrameError::Fragmentation);
        assert_eq!(
            refused(&[0x02, 0x01, b'a', 0x82, 0x00]),
            FrameError::Fragmentation
        );
        assert_eq!(refused(&[0x83, 0x00]), FrameError::Opcode(3));
        assert_eq!(refused(&[0x09, 0x00]), FrameError::Control);
        assert_eq!(refused(&[0x89, 126, 0, 126]), FrameError::Control);
        assert_eq!(refused(&[0x82, 126, 0, 125]), FrameError::Length);
        assert_eq!(
            refused(&[0x82, 127, 0, 0, 0, 0, 0, 0, 255, 255]),
            FrameError::Length
        );
        assert_eq!(refused(&[0x88, 0x01, 0]), FrameError::Close);
        assert_eq!(refused(&[0x88, 0x02, 0x03, 0xed]), FrameError::Close);
        assert_eq!(
            refused(&[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]),
            FrameError::TooLong
        );
    }

    #[test]
    fn a_message_may_be_sixteen_mebibytes_and_not_a_byte_more() {
        let length = MESSAGE_BYTES_MAX.to_be_bytes();
        let exact = [&[0x02, 127][..], &length].concat();
        assert!(decode_all(End::Client, &exact, 10).is_ok());
        let mut decoder = Decoder::new(End::Client);
        let half = (MESSAGE_BYTES_MAX / 2).to_be_bytes();
        decoder
            .decode(&mut [&[0x02, 127][..], &half].concat())
            .unwrap();
        for _ in 0..MESSAGE_BYTES_MAX / 2 / 65_536 {
            decoder.decode(&mut [7; 65_536]).unwrap();
        }
        let more = (MESSAGE_BYTES_MAX / 2 + 1).to_be_bytes();
        let refused = decoder.decode(&mut [&[0x80, 127][..], &more].concat());
        assert_eq!(refused.unwrap_err(), FrameError::TooLong);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_bytes(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
            mask: [u8; 4],
            step in 1usize..400,
        ) {
            let wire: Vec<u8> = parts.iter().flat_map(|p| frame(BINARY, p, Some(mask))).collect();
            let (bytes, _) = decode_all(End::Server, &wire, step).unwrap();
            prop_assert_eq!(bytes, parts.concat());
        }

        #[test]
        fn any_bytes_never_panic(wire in prop::collection::vec(any::<u8>(), 0..200), step in 1usize..50) {
            let _ = decode_all(End::Server, &wire, step);
            let _ = decode_all(End::Client, &wire, step);
        }
    }
}
