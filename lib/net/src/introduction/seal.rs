//! The sending half of a TLS 1.3 connection that waits: a key and a counter.
//!
//! A waiter hears a record of 30 bytes every 15 s and says nothing; a whole rustls connection would
//! cost some 10 KiB for that. What is written here is what rustls would have written.

use std::io;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce,
    UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ServerConnection};

const APPLICATION_DATA: u8 = 0x17;
const TAG_BYTES: usize = 16;

/// Writes records where a rustls connection left off. The key is forgotten when it is dropped.
pub(super) struct Sealer {
    sequence: u64,
    secrets: ConnectionTrafficSecrets,
}

impl Sealer {
    /// Takes over from a connection that has nothing to send.
    pub(super) fn take(connection: ServerConnection) -> io::Result<Self> {
        let secrets = connection.dangerous_extract_secrets();
        let (sequence, secrets) = secrets.map_err(io::Error::other)?.tx;
        Ok(Self { sequence, secrets })
    }

    /// One record with `text` as application data.
    pub(super) fn record(&mut self, text: &[u8]) -> io::Result<Vec<u8>> {
        let refused = |_| io::Error::other("a record cannot be sealed");
        let (algorithm, key, iv) = self.parts()?;
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).map_err(refused)?);
        let mut nonce = <[u8; NONCE_LEN]>::try_from(iv).map_err(io::Error::other)?;
        for (byte, number) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.sequence.to_be_bytes())
        {
            *byte ^= number;
        }
        self.sequence += 1;
        let length = u16::try_from(text.len() + 1 + TAG_BYTES).map_err(io::Error::other)?;
        let [high, low] = length.to_be_bytes();
        let head = [APPLICATION_DATA, 3, 3, high, low];
        let mut body = [text, &[APPLICATION_DATA]].concat();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(head),
            &mut body,
        )
        .map_err(refused)?;
        Ok([&head[..], &body].concat())
    }

    fn parts(&self) -> io::Result<(&'static Algorithm, &[u8], &[u8])> {
        use ConnectionTrafficSecrets as Secrets;
        Ok(match &self.secrets {
            Secrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key.as_ref(), iv.as_ref()),
            Secrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key.as_ref(), iv.as_ref()),
            Secrets::Chacha20Poly1305 { key, iv } => {
                (&CHACHA20_POLY1305, key.as_ref(), iv.as_ref())
            }
            _ => return Err(io::Error::other("a cipher that is not known here")),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedCipherSuite,
    };

    use super::*;

    /// Both ends after a handshake, with nothing left to send.
    fn ends(suite: SupportedCipherSuite) -> (ClientConnection, ServerConnection) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut provider = default_provider();
        provider.cipher_suites = vec![suite];
        let provider = Arc::new(provider);
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let tls13 = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(tls13)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(tls13)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        (client, server)
    }

    #[test]
    fn records_go_on_where_rustls_left_off_with_every_cipher() {
        use std::io::Write as _;
        for suite in [
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ] {
            let (mut client, mut server) = ends(suite);
            server.writer().write_all(b"hello").unwrap();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            let mut sealer = Sealer::take(server).unwrap();
            for word in [&b"wait"[..], b"", b"matched"] {
                let record = sealer.record(word).unwrap();
                assert_eq!(record.len(), 5 + word.len() + 1 + TAG_BYTES);
                wire.extend_from_slice(&record);
            }
            let mut heard = Vec::new();
            let mut rest = &wire[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
            let _ = client.reader().read_to_end(&mut heard);
            assert_eq!(heard, b"hellowaitmatched", "{suite:?}");
        }
    }

    #[test]
    fn a_connection_with_something_to_send_is_not_taken_over() {
        use std::io::Write as _;
        let (_client, mut server) = ends(cipher_suite::TLS13_AES_128_GCM_SHA256);
        server.writer().write_all(b"unsent").unwrap();
        assert!(Sealer::take(server).is_err());
    }
}
