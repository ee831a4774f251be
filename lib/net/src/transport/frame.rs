//! RFC 6455 frames as a byte stream, without I/O.
//!
//! Payload is handed on as it arrives, whatever length a frame declares: a message is never
//! assembled, so 16 MiB messages cost no memory and delay nothing.

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

/// Takes frames apart.
pub struct Decoder {
    end: End,
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: u8,
    state: State,
    /// Bytes of the message being received, or `None` between messages.
    message: Option<u64>,
}

enum State {
    Header,
    Data {
        left: u64,
        last: bool,
        mask: [u8; 4],
    },
    Control {
        frame: Control,
        wanted: u8,
        mask: [u8; 4],
    },
}

/// What [`Decoder::decode`] made of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes consumed from the input.
    pub consumed: usize,
    /// Payload bytes, now at the front of the input.
    pub payload: usize,
    /// A control frame, after which decoding paused.
    pub control: Option<Control>,
}

impl Decoder {
    /// A decoder for the frames that `end` receives.
    #[must_use]
    pub fn new(end: End) -> Decoder {
        Decoder {
            end,
            header: [0; HEADER_BYTES_MAX],
            header_bytes: 0,
            state: State::Header,
            message: None,
        }
    }

    /// Decodes in place: payload is unmasked and moved to the front of `data`. Stops after a
    /// control frame; call again with what was not consumed.
    ///
    /// # Errors
    /// When the peer breaks RFC 6455 or the limits.
    pub fn decode(&mut self, data: &mut [u8]) -> Result<Decoded, FrameError> {
        let (mut at, mut payload) = (0, 0);
        while at < data.len() {
            match &mut self.state {
                State::Header => {
                    self.header[usize::from(self.header_bytes)] = data[at];
                    self.header_bytes += 1;
                    at += 1;
                    self.parse_header()?;
                }
                State::Data { left, last, mask } => {
                    let bytes = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(data.len() - at);
                    if self.end == End::Server {
                        apply_mask(&mut data[at..at + bytes], mask);
                    }
                    data.copy_within(at..at + bytes, payload);
                    (at, payload, *left) = (at + bytes, payload + bytes, *left - bytes as u64);
                    if *left == 0 {
                        if *last {
                            self.message = None;
                        }
                        self.state = State::Header;
                    }
                }
                State::Control {
                    frame,
                    wanted,
                    mask,
                } => {
                    let have = usize::from(frame.length);
                    let bytes = (usize::from(*wanted) - have).min(data.len() - at);
                    let part = &mut data[at..at + bytes];
                    apply_mask(part, mask);
                    frame.payload[have..have + bytes].copy_from_slice(part);
                    // At most 125, as the header was checked.
                    frame.length += u8::try_from(bytes).unwrap_or(u8::MAX);
                    at += bytes;
                }
            }
            if let Some(control) = self.finished_control()? {
                return Ok(Decoded {
                    consumed: at,
                    payload,
                    control: Some(control),
                });
            }
        }
        Ok(Decoded {
            consumed: at,
            payload,
            control: None,
        })
    }

    fn finished_control(&mut self) -> Result<Option<Control>, FrameError> {
        let State::Control { frame, wanted, .. } = &self.state else {
            return Ok(None);
        };
        if frame.length < *wanted {
            return Ok(None);
        }
        let frame = *frame;
        self.state = State::Header;
        if frame.opcode == CLOSE {
            check_close(frame.payload()).map(|()| Some(frame))
        } else {
            Ok(Some(frame))
        }
    }

    /// Enters the frame's state once its header is complete. What can be refused by the first two
    /// bytes is refused there.
    fn parse_header(&mut self) -> Result<(), FrameError> {
        let header = &self.header[..usize::from(self.header_bytes)];
        let &[first, second, ref rest @ ..] = header else {
            return Ok(());
        };
        self.check_start(first, second)?;
        let (length, rest) = match (second & 0x7f, rest) {
            (126, &[a, b, ref rest @ ..]) => (u64::from(u16::from_be_bytes([a, b])), rest),
            (127, &[a, b, c, d, e, f, g, h, ref rest @ ..]) => {
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), rest)
            }
            (126 | 127, _) => return Ok(()),
            (short, rest) => (u64::from(short), rest),
        };
        let mask = match (self.end, rest) {
            (End::Client, _) => [0; 4],
            (End::Server, &[a, b, c, d]) => [a, b, c, d],
            (End::Server, _) => return Ok(()),
        };
        let shortest = match second & 0x7f {
            126 => length >= 126,
            127 => length > u64::from(u16::MAX),
            _ => true,
        };
        if !shortest {
            return Err(FrameError::Length);
        }
        self.header_bytes = 0;
        self.enter(first, length, mask)
    }

    /// The header is complete: what follows is payload of this kind and length.
    fn enter(&mut self, first: u8, length: u64, mask: [u8; 4]) -> Result<(), FrameError> {
        let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
        if opcode >= CLOSE {
            let wanted = u8::try_from(length).map_err(|_| FrameError::Control)?;
            let frame = Control {
                opcode,
                payload: [0; CONTROL_BYTES_MAX],
                length: 0,
            };
            self.state = State::Control {
                frame,
                wanted,
                mask,
            };
            return Ok(());
        }
        let message = self.message.unwrap_or(0).saturating_add(length);
        if message > MESSAGE_BYTES_MAX {
            return Err(FrameError::TooLong);
        }
        self.message = if last && length == 0 {
            None
        } else {
            Some(message)
        };
        if length > 0 {
            self.state = State::Data {
                left: length,
                last,
                mask,
            };
        }
        Ok(())
    }

    fn check_start(&self, first: u8, second: u8) -> Result<(), FrameError> {
        if first & 0x70 != 0 {
            return Err(FrameError::ReservedBit);
        }
        if (second & 0x80 != 0) != (self.end == End::Server) {
            return Err(FrameError::Masking);
        }
        match (first & 0x0f, self.message) {
            (CONTINUATION, None) | (BINARY, Some(_)) => Err(FrameError::Fragmentation),
            (CONTINUATION, Some(_)) | (BINARY, None) => Ok(()),
            (TEXT, _) => Err(FrameError::Text),
            (CLOSE | PING | PONG, _) if first & 0x80 == 0 || second & 0x7f > 125 => {
                Err(FrameError::Control)
            }
            (CLOSE | PING | PONG, _) => Ok(()),
            (other, _) => Err(FrameError::Opcode(other)),
        }
    }
}

fn check_close(payload: &[u8]) -> Result<(), FrameError> {
    match payload {
        [] => Ok(()),
        &[a, b, ref reason @ ..] => {
            let code = u16::from_be_bytes([a, b]);
            let valid = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            if valid && std::str::from_utf8(reason).is_ok() {
                Ok(())
            } else {
                Err(FrameError::Close)
            }
        }
        [_] => Err(FrameError::Close),
    }
}

/// Header of a whole (unfragmented) frame of ours; returns it and its length.
#[must_use]
pub fn encode_header(
    opcode: u8,
    length: usize,
    mask: Option<[u8; 4]>,
) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut header = [0; HEADER_BYTES_MAX];
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    header[0] = 0x80 | opcode;
    let mut used = match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => {
            header[1] = mask_bit | short;
            2
        }
        (_, Ok(medium)) => {
            header[1] = mask_bit | 126;
            header[2..4].copy_from_slice(&medium.to_be_bytes());
            4
        }
        _ => {
            header[1] = mask_bit | 127;
            header[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    if let Some(mask) = mask {
        header[used..used + 4].copy_from_slice(&mask);
        used += 4;
    }
    (header, used)
}

/// XORs `data` with the mask and turns the mask, so that the next call continues.
pub fn apply_mask(data: &mut [u8], mask: &mut [u8; 4]) {
    let word = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let mut words = data.chunks_exact_mut(8);
    for chunk in &mut words {
        let mut value = [0; 8];
        value.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(value) ^ word).to_ne_bytes());
    }
    let rest = words.into_remainder();
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    let turn = rest.len() % 4;
    mask.rotate_left(turn);
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
