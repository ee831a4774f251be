use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use zeroize::Zeroizing;

use super::*;

const ALPN: &[u8] = b"culvert-pair/1";
const RAW: &[u8] = b"culvert-pair-raw/1";
const LABEL: &[u8] = b"EXPORTER-culvert-boot";

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Ca {
    fn with(algorithm: &'static rcgen::SignatureAlgorithm) -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(algorithm).unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        Ca { issuer, der }
    }

    fn new() -> Ca {
        Ca::with(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> PairIdentity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let secret = Zeroizing::new(key.serialize_der());
        PairIdentity::new(self.der.clone(), vec![leaf.der().to_vec()], secret).unwrap()
    }

    fn leaf(&self, usages: &[Usage]) -> PairIdentity {
        self.issue(|params| params.extended_key_usages = usages.to_vec())
    }

    fn bridge(&self) -> PairIdentity {
        self.leaf(&[Usage::ServerAuth])
    }

    fn broker(&self) -> PairIdentity {
        self.leaf(&[Usage::ClientAuth])
    }
}

type Met = Result<PairStream<TcpStream>, PairTlsError>;

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(dialled, listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

async fn meet(bridge: &PairTls, broker: &PairTls) -> (Met, Met) {
    let (near, far) = sockets().await;
    tokio::join!(bridge.handshake(near), broker.handshake(far))
}

async fn meet_as(bridge: &PairIdentity, broker: &PairIdentity) -> (Met, Met) {
    let bridge = PairTls::bridge(bridge, &[ALPN, RAW]).unwrap();
    let broker = PairTls::broker(broker, &[ALPN]).unwrap();
    meet(&bridge, &broker).await
}

fn refusal(met: Met) -> Refused {
    match met {
        Err(PairTlsError::Refused(why)) => why,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("let in"),
    }
}

/// The bridge refuses; the broker, done already, hears of it at its first read.
async fn refused_by_bridge((bridge, broker): (Met, Met)) -> Refused {
    let why = refusal(bridge);
    let mut broker = broker.expect("its own part is done");
    let seen = broker.read(&mut [0]).await.unwrap_err();
    assert!(
        matches!(explain(&seen), PairTlsError::RefusedByPeer(_)),
        "{seen}"
    );
    why
}

#[tokio::test]
async fn both_sides_of_one_ca_talk_and_derive_the_same_secret() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let ca = Ca::with(algorithm);
        let (bridge, broker) = meet_as(&ca.bridge(), &ca.broker()).await;
        let (mut bridge, mut broker) = (bridge.unwrap(), broker.unwrap());
        assert_eq!((bridge.alpn(), broker.alpn()), (Some(ALPN), Some(ALPN)));
        assert!(bridge.info().is_tls13);
        let (here, there) = (
            bridge.exporter(LABEL).unwrap(),
            broker.exporter(LABEL).unwrap(),
        );
        assert_eq!(*here, *there);
        assert_ne!(*here, *bridge.exporter(b"another label").unwrap());
        broker.write_all(b"ping").await.unwrap();
        broker.shutdown().await.unwrap();
        let mut got = String::new();
        bridge.read_to_string(&mut got).await.unwrap();
        bridge.write_all(b"pong").await.unwrap();
        bridge.shutdown().await.unwrap();
        broker.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "pingpong", "half-close travels");
    }
}

#[tokio::test]
async fn certificates_of_another_ca_are_refused_on_both_sides() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let met = meet_as(&ours.bridge(), &theirs.broker()).await;
    // The broker looks first.
    assert_eq!(refusal(met.1), Refused::OtherCa);
    assert!(matches!(met.0, Err(PairTlsError::RefusedByPeer(_))));
    // One that trusts us and is not ours.
    let stranger = theirs.broker();
    let stranger = PairIdentity::new(
        ours.der.clone(),
        vec![stranger.leaf_der().to_vec()],
        Zeroizing::new(stranger.key_pkcs8_der().to_vec()),
    );
    let met = meet_as(&ours.bridge(), &stranger.unwrap()).await;
    assert_eq!(refused_by_bridge(met).await, Refused::OtherCa);
}

#[tokio::test]
async fn a_certificate_serves_its_own_role_only() {
    let ca = Ca::new();
    for usages in [&[][..], &[Usage::ServerAuth], &[Usage::Any]] {
        let met = meet_as(&ca.bridge(), &ca.leaf(usages)).await;
        let why = refused_by_bridge(met).await;
        assert!(
            why.to_string().contains("usage") || why.to_string().contains("Usage"),
            "{why}"
        );
    }
    for usages in [&[][..], &[Usage::ClientAuth]] {
        let met = meet_as(&ca.leaf(usages), &ca.broker()).await;
        let why = refusal(met.1).to_string();
        assert!(why.contains("usage") || why.contains("Usage"), "{why}");
    }
}

#[tokio::test]
async fn expired_and_future_certificates_are_refused() {
    let ca = Ca::new();
    let expired = ca.issue(|params| {
        params.extended_key_usages = vec![Usage::ClientAuth];
        params.not_after = date_time_ymd(2020, 1, 1);
        params.not_before = date_time_ymd(2019, 1, 1);
    });
    let met = meet_as(&ca.bridge(), &expired).await;
    assert_eq!(refused_by_bridge(met).await, Refused::Time);
    let future = ca.issue(|params| {
        params.extended_key_usages = vec![Usage::ServerAuth];
        params.not_before = date_time_ymd(2090, 1, 1);
        params.not_after = date_time_ymd(2091, 1, 1);
    });
    assert_eq!(
        refusal(meet_as(&future, &ca.broker()).await.1),
        Refused::Time
    );
}

#[tokio::test]
async fn a_broker_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let bridge = PairTls::bridge(&ca.bridge(), &[ALPN]).unwrap();
    let verifier = Arc::new(PeerVerifier::new(Trust::Key, provider()));
    let mut bare = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(MinVersion::Tls13))
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    bare.alpn_protocols = vec![ALPN.to_vec()];
    let bare = PairTls {
        side: Side::Broker,
        config: Config::Client(Arc::new(bare)),
    };
    let met = meet(&bridge, &bare).await;
    assert_eq!(refused_by_bridge(met).await, Refused::Absent);
}

#[tokio::test]
async fn sides_without_a_common_protocol_do_not_meet() {
    let ca = Ca::new();
    for offered in [&[b"culvert-boot/1".as_slice()][..], &[]] {
        let bridge = PairTls::bridge(&ca.bridge(), &[ALPN, RAW]).unwrap();
        let broker = PairTls::broker(&ca.broker(), offered).unwrap();
        let (bridge, broker) = meet(&bridge, &broker).await;
        assert!(matches!(bridge, Err(PairTlsError::Protocol)));
        assert!(matches!(broker, Err(PairTlsError::Protocol)));
    }
}

#[tokio::test]
async fn a_long_chain_and_a_foreign_kind_of_key_are_refused() {
    let ca = Ca::new();
    let own = ca.broker();
    let long = vec![own.leaf_der().to_vec(); CHAIN_MAX + 1];
    let secret = || Zeroizing::new(own.key_pkcs8_der().to_vec());
    let why = PairIdentity::new(ca.der.clone(), long, secret())
        .err()
        .unwrap();
    assert!(matches!(why, IdentityError::Chain(6)), "{why}");
    // As a peer would show it.
    let verifier = PeerVerifier::new(
        Trust::Authority {
            roots: own.roots().unwrap(),
            peer: Side::Broker,
        },
        provider(),
    );
    let leaf = CertificateDer::from(own.leaf_der().to_vec());
    let judged = |above: usize| {
        verifier.verify_client_cert(&leaf, &vec![leaf.clone(); above], UnixTime::now())
    };
    assert!(judged(CHAIN_MAX - 1).is_ok());
    assert_eq!(
        Refused::of(&judged(CHAIN_MAX).unwrap_err()),
        Refused::Length(6)
    );
    let wide = Ca::with(&rcgen::PKCS_ECDSA_P521_SHA512);
    let why = PairIdentity::new(wide.der, vec![own.leaf_der().to_vec()], secret());
    assert!(why.err().unwrap().to_string().contains("P-256"));
    let why = PairIdentity::new(
        own.leaf_der().to_vec(),
        vec![own.leaf_der().to_vec()],
        secret(),
    );
    assert!(matches!(why, Err(IdentityError::NoCa(_))));
}

#[tokio::test]
async fn key_and_certificate_have_to_belong_together() {
    let ca = Ca::new();
    let (one, other) = (ca.bridge(), ca.bridge());
    let secret = Zeroizing::new(other.key_pkcs8_der().to_vec());
    let mixed = PairIdentity::new(ca.der.clone(), vec![one.leaf_der().to_vec()], secret).unwrap();
    let why = PairTls::bridge(&mixed, &[ALPN]).err().unwrap();
    assert!(matches!(why, IdentityError::Unusable(_)), "{why}");
}

const BOOT: &[u8] = b"culvert-boot/1";

/// A key, and what it shows of itself.
fn bare(side: Side, alpn: &[u8]) -> (PairTls, [u8; 32]) {
    let key = KeyPair::generate().unwrap();
    let shown = CertificateParams::new(Vec::new()).unwrap();
    let shown = shown.self_signed(&key).unwrap().der().to_vec();
    let hash = crate::tls::spki_sha256(&shown.clone().into()).unwrap();
    let tls = PairTls::boot(side, shown, &key.serialize_der(), alpn).unwrap();
    (tls, hash)
}

#[tokio::test]
async fn boot_keys_are_shown_and_left_to_the_caller() {
    let (bridge, of_bridge) = bare(Side::Bridge, BOOT);
    let (broker, of_broker) = bare(Side::Broker, BOOT);
    let (here, there) = meet(&bridge, &broker).await;
    let (here, there) = (here.unwrap(), there.unwrap());
    assert_eq!(here.peer_spki(), Some(of_broker));
    assert_eq!(there.peer_spki(), Some(of_bridge));
    assert_eq!(
        *here.exporter(LABEL).unwrap(),
        *there.exporter(LABEL).unwrap()
    );
    // It is no way around a certificate.
    let strict = PairTls::bridge(&Ca::new().bridge(), &[ALPN]).unwrap();
    let (strict, _) = meet(&strict, &bare(Side::Broker, ALPN).0).await;
    refusal(strict);
}

#[tokio::test]
async fn a_bridge_tells_brokers_with_and_without_a_certificate_apart() {
    let ca = Ca::new();
    let strict = PairTls::bridge(&ca.bridge(), &[ALPN, RAW]).unwrap();
    let open = bare(Side::Bridge, BOOT).0;
    let both = [
        (PairTls::broker(&ca.broker(), &[ALPN]).unwrap(), false),
        (bare(Side::Broker, BOOT).0, true),
    ];
    for (broker, is_boot) in both {
        let (near, far) = sockets().await;
        let met = tokio::join!(strict.handshake_or(&open, near), broker.handshake(far));
        let (bridge, broker) = (met.0.unwrap(), met.1.unwrap());
        assert_eq!((bridge.1, bridge.0.alpn()), (is_boot, broker.alpn()));
    }
    // A key without a certificate that asks for the pair itself, and one that asks for nothing.
    for alpn in [ALPN, b"else"] {
        let (near, far) = sockets().await;
        let broker = bare(Side::Broker, alpn).0;
        let met = tokio::join!(strict.handshake_or(&open, near), broker.handshake(far));
        assert!(met.0.is_err(), "{alpn:?}");
    }
}

#[tokio::test]
async fn a_cut_connection_is_an_error_and_a_demanded_hangup_a_reset() {
    let ca = Ca::new();
    let (bridge, broker) = meet_as(&ca.bridge(), &ca.broker()).await;
    let (bridge, mut broker) = (bridge.unwrap(), broker.unwrap());
    drop(bridge);
    let seen = broker.read(&mut [0]).await.unwrap_err();
    assert_eq!(
        seen.kind(),
        io::ErrorKind::UnexpectedEof,
        "FIN alone is no end"
    );
    let (bridge, broker) = meet_as(&ca.bridge(), &ca.broker()).await;
    let (bridge, mut broker) = (bridge.unwrap(), broker.unwrap());
    bridge.hangup().demand();
    drop(bridge);
    let seen = broker.read(&mut [0]).await.unwrap_err();
    assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
}
