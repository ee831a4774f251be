//! The end-to-end TLS before there are certificates, and the bridge's choice between the two.

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{Acceptor, ClientHello};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use super::verify::Trust;
use super::{
    Config, HANDSHAKE_MAX, IdentityError, PairStream, PairTls, PairTlsError, Side, explain,
};
use crate::relay::End;
use crate::tls::Ahead;

impl PairTls {
    /// The side `side` before it has a certificate of the pair: shows `certificate_der`, which its
    /// key (PKCS#8) signed itself, and speaks `alpn` alone. The peer holds the key of what it shows
    /// and nothing more is known of it: judge [`PairStream::peer_spki`], and prove by
    /// [`PairStream::exporter`].
    ///
    /// # Errors
    /// When key and certificate do not belong together.
    pub fn boot(
        side: Side,
        certificate_der: Vec<u8>,
        key_pkcs8_der: &[u8],
        alpn: &[u8],
    ) -> Result<PairTls, IdentityError> {
        let secret = PrivatePkcs8KeyDer::from(key_pkcs8_der.to_vec());
        let shown = (vec![certificate_der.into()], secret.into());
        PairTls::with(side, Trust::Key, shown, &[alpn])
    }

    /// A bridge's handshake with whoever speaks the protocols of this or of `other`; tells which,
    /// `true` for `other`. Where neither fits, the refusal is this one's.
    ///
    /// # Errors
    /// As [`PairTls::handshake`].
    pub async fn handshake_or<IO: End>(
        &self,
        other: &PairTls,
        io: IO,
    ) -> Result<(PairStream<IO>, bool), PairTlsError> {
        let (Config::Server(own), Config::Server(theirs)) = (&self.config, &other.config) else {
            return self.handshake(io).await.map(|stream| (stream, false));
        };
        let accepted = async {
            let start = LazyConfigAcceptor::new(Acceptor::default(), Ahead::new(io)).await?;
            let is_other = speaks(&start.client_hello(), &theirs.alpn_protocols);
            let chosen = if is_other { theirs } else { own };
            let stream = start.into_stream(chosen.clone()).await?;
            Ok::<_, std::io::Error>((PairStream::new(TlsStream::from(stream)), is_other))
        };
        match tokio::time::timeout(HANDSHAKE_MAX, accepted).await {
            Ok(Ok((stream, _))) if stream.alpn().is_none() => Err(PairTlsError::Protocol),
            Ok(Ok(accepted)) => Ok(accepted),
            Ok(Err(why)) => Err(explain(&why)),
            Err(_) => Err(PairTlsError::Silent(HANDSHAKE_MAX)),
        }
    }
}

fn speaks(hello: &ClientHello<'_>, known: &[Vec<u8>]) -> bool {
    let mut offered = hello.alpn().into_iter().flatten();
    offered.any(|alpn| known.iter().any(|known| known == alpn))
}
