//! Checked reading and writing of big-endian wire values, and the block every stream starts with.

use alloc::vec::Vec;
use bytes::Bytes;

/// The bytes ended inside a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short;

/// A value does not fit the length field that announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Reads from a slice; a read past the end is [`Short`], never a panic.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Short)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_be_bytes)
    }

    /// `length u16 | bytes`
    pub(crate) fn short_bytes(&mut self) -> Result<&'a [u8], Short> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// `type u8 | length u16 | value`
    pub(crate) fn tlv(&mut self) -> Result<(u8, Reader<'a>), Short> {
        let kind = self.u8()?;
        Ok((kind, Reader::new(self.short_bytes()?)))
    }

    /// `type u8 | length u32 | value`
    pub(crate) fn wide_tlv(&mut self) -> Result<(u8, Reader<'a>), Short> {
        let kind = self.u8()?;
        let length = usize::try_from(self.u32()?).map_err(|_| Short)?;
        Ok((kind, Reader::new(self.take(length)?)))
    }
}

/// `length u16 | bytes`
pub(crate) fn put_short_bytes(out: &mut Vec<u8>, value: &[u8]) -> Result<(), TooLong> {
    let length = u16::try_from(value.len()).map_err(|_| TooLong)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    Ok(())
}

/// `type u8 | length u16 | value`
pub(crate) fn put_tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) -> Result<(), TooLong> {
    out.push(kind);
    put_short_bytes(out, value)
}

/// Writes `first u8 | second u8 | length u16 | body`, refusing a body over `body_max`.
pub(crate) fn block(first: u8, second: u8, body: &[u8], body_max: u16) -> Result<Bytes, TooLong> {
    let length = u16::try_from(body.len()).map_err(|_| TooLong)?;
    if length > body_max {
        return Err(TooLong);
    }
    let mut out = Vec::with_capacity(BLOCK_HEAD + body.len());
    out.extend_from_slice(&[first, second]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
    Ok(Bytes::from(out))
}

/// Bytes before the body of a block.
pub(crate) const BLOCK_HEAD: usize = 4;

/// One complete block: stream header, dial answer or control message.
pub(crate) struct Block {
    pub(crate) first: u8,
    pub(crate) second: u8,
    pub(crate) body: Vec<u8>,
}

/// A block announced more than the limit of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockTooLong {
    pub(crate) announced: u16,
}

/// Collects a block from pieces of any size. Memory grows with the bytes received, never with the
/// length announced.
#[derive(Default)]
pub(crate) struct BlockDecoder {
    held: Vec<u8>,
}

impl BlockDecoder {
    /// Takes the bytes of one block off the front of `input` and leaves what follows it.
    pub(crate) fn next(
        &mut self,
        input: &mut Bytes,
        body_max: u16,
    ) -> Result<Option<Block>, BlockTooLong> {
        if !self.fill(input, BLOCK_HEAD) {
            return Ok(None);
        }
        let [first, second, high, low] = match self.held.first_chunk() {
            Some(head) => *head,
            None => return Ok(None),
        };
        let announced = u16::from_be_bytes([high, low]);
        if announced > body_max {
            return Err(BlockTooLong { announced });
        }
        if !self.fill(input, BLOCK_HEAD + usize::from(announced)) {
            return Ok(None);
        }
        let mut body = core::mem::take(&mut self.held);
        body.drain(..BLOCK_HEAD);
        Ok(Some(Block {
            first,
            second,
            body,
        }))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn fill(&mut self, input: &mut Bytes, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.held.len());
        let piece = input.split_to(missing.min(input.len()));
        self.held.extend_from_slice(&piece);
        self.held.len() >= wanted
    }
}

impl Drop for BlockDecoder {
    fn drop(&mut self) {
        // Half a ROTATE message holds half a token.
        zeroize::Zeroize::zeroize(&mut self.held);
    }
}
