//! Encoding of updates.

use alloc::sync::Arc;
use bytes::Bytes;

use super::cluster::{read_cluster, write_cluster};
use super::codec::{DecodeError, Fields, Writer, push};
use super::sign_in::{read_end, write_end};
use super::snapshot::{read_settings, write_settings};
use super::{Change, Update};
use crate::id::Generation;
use crate::limits::CHANGES_MAX;
use crate::wire::Reader;

pub(super) const UPDATE_DOMAIN: &[u8] = b"culvert-update/1\0";

mod update {
    pub(super) const GENERATION: u8 = 1;
    pub(super) const ISSUED: u8 = 2;
    pub(super) const CHANGE: u8 = 3;
}

mod change {
    pub(super) const UPSERT: u8 = 1;
    pub(super) const REMOVE: u8 = 2;
    pub(super) const SETTINGS: u8 = 3;
    pub(super) const END: u8 = 4;
}

impl Update {
    /// The bytes to sign and to send.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(UPDATE_DOMAIN);
        out.u64(update::GENERATION, self.generation.0);
        out.u64(update::ISSUED, self.issued_unix_ms);
        for change in &self.changes {
            let mut nested = Writer::nested();
            match change {
                Change::Upsert(state) => nested.bytes(change::UPSERT, &write_cluster(state)),
                Change::Remove(id) => nested.bytes(change::REMOVE, id.as_str().as_bytes()),
                Change::Settings(to) => nested.bytes(change::SETTINGS, &write_settings(to)),
                Change::End { subject, epoch } => {
                    nested.bytes(change::END, &write_end(subject, *epoch));
                }
            }
            out.bytes(update::CHANGE, &nested.finish());
        }
        Bytes::from(out.finish())
    }

    /// Reads an update. Verify the signature over `body` first.
    pub fn decode(body: &[u8]) -> Result<Update, DecodeError> {
        let mut fields = Fields::open("update", update::CHANGE, UPDATE_DOMAIN, body)?;
        let mut read = Update::default();
        while let Some((field, value)) = fields.next(&[update::CHANGE])? {
            match field {
                update::GENERATION => read.generation = Generation(fields.u64(field, value)?),
                update::ISSUED => read.issued_unix_ms = fields.u64(field, value)?,
                update::CHANGE => {
                    push(
                        &mut read.changes,
                        read_change(value)?,
                        "changes",
                        CHANGES_MAX,
                    )?;
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

fn read_change(value: Reader<'_>) -> Result<Change, DecodeError> {
    let mut fields = Fields::nested("change", change::END, value);
    let mut read = None;
    while let Some((field, value)) = fields.next(&[])? {
        let change = match field {
            change::UPSERT => Change::Upsert(Arc::new(read_cluster(value)?)),
            change::REMOVE => Change::Remove(fields.cluster_id(field, value)?),
            change::SETTINGS => Change::Settings(read_settings(value)?),
            change::END => {
                let (subject, epoch) = read_end(value)?;
                Change::End { subject, epoch }
            }
            _ => continue,
        };
        fields.check(field, read.replace(change).is_none())?;
    }
    // A change of a kind this version does not know cannot be skipped: the table would be wrong.
    read.ok_or(fields.error(0))
}
