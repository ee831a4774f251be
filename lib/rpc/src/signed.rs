//! What is signed, and under which domain, so that one kind of message never
//! passes for another.

use culvert_net::crypto::{SigningKey, VerifyingKey};

const SNAPSHOT_DOMAIN: &[u8] = b"culvert-snapshot/1\0";
const UPDATE_DOMAIN: &[u8] = b"culvert-update/1\0";

/// Signs the encoding of a snapshot. The same signature stands on the link and
/// in the copy on a data plane's disk.
#[must_use]
pub fn sign_snapshot(key: &SigningKey, body: &[u8]) -> [u8; 64] {
    key.sign(&[SNAPSHOT_DOMAIN, body].concat())
}

/// Whether `signature` is `key`'s signature of a snapshot's encoding.
#[must_use]
pub fn verify_snapshot(key: VerifyingKey, body: &[u8], signature: &[u8]) -> bool {
    key.verify(&[SNAPSHOT_DOMAIN, body].concat(), signature)
}

pub(crate) fn sign_update(key: &SigningKey, body: &[u8]) -> [u8; 64] {
    key.sign(&[UPDATE_DOMAIN, body].concat())
}

pub(crate) fn verify_update(key: VerifyingKey, body: &[u8], signature: &[u8]) -> bool {
    key.verify(&[UPDATE_DOMAIN, body].concat(), signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_kind_and_body_only() {
        let key = SigningKey::generate().unwrap();
        let public = key.verifying_key();
        let signature = sign_snapshot(&key, b"body");
        assert!(verify_snapshot(public, b"body", &signature));
        assert!(!verify_snapshot(public, b"bodY", &signature));
        assert!(!verify_update(public, b"body", &signature));
        assert!(verify_update(public, b"body", &sign_update(&key, b"body")));
    }
}
