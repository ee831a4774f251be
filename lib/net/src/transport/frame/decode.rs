//! Taking the peer's frames apart.

use super::{
    BINARY, CLOSE, CONTINUATION, CONTROL_BYTES_MAX, Control, End, FrameError, HEADER_BYTES_MAX,
    MESSAGE_BYTES_MAX, PING, PONG, TEXT, apply_mask,
};

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
