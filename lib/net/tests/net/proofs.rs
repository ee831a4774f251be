//! What proves a side at a relay, and each thing that does not.

use culvert_net::crypto::sha256;
use culvert_net::introduction::{Credential, CredentialError, ProofError, verify};
use culvert_proto::pair::{Preface, PrefaceReader, ProofKind, RendezvousId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
    date_time_ymd,
};

pub const CHALLENGE: [u8; 32] = [0xC4; 32];
/// 2026-06-01.
const NOW_S: i64 = 1_780_272_000;

/// The certificate authority of a pair.
pub struct PairCa {
    pub der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Leaf {
    der: Vec<u8>,
    key: Vec<u8>,
}

impl PairCa {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        Self { der, issuer }
    }

    fn issue(
        &self,
        algorithm: &'static SignatureAlgorithm,
        edit: impl Fn(&mut CertificateParams),
    ) -> Leaf {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        params.not_before = date_time_ymd(2026, 5, 1);
        params.not_after = date_time_ymd(2099, 7, 1);
        edit(&mut params);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Leaf {
            der,
            key: key.serialize_der(),
        }
    }

    fn leaf(&self, usages: &[ExtendedKeyUsagePurpose]) -> Leaf {
        self.issue(&PKCS_ECDSA_P256_SHA256, |params| {
            params.extended_key_usages = usages.to_vec();
        })
    }

    pub fn credential(&self, role: Role) -> Credential {
        let leaf = self.leaf(&[usage(role)]);
        Credential::certificate(&self.der, &leaf.der, &leaf.key).unwrap()
    }
}

fn usage(role: Role) -> ExtendedKeyUsagePurpose {
    match role {
        Role::Bridge => ExtendedKeyUsagePurpose::ServerAuth,
        Role::Broker => ExtendedKeyUsagePurpose::ClientAuth,
    }
}

fn bridge_preface(ca: &PairCa, leaf: &Leaf) -> Preface {
    let credential = Credential::certificate(&ca.der, &leaf.der, &leaf.key).unwrap();
    credential.preface(Role::Bridge, &CHALLENGE).unwrap()
}

fn check(preface: &Preface) -> Result<(), ProofError> {
    verify(preface, &CHALLENGE, NOW_S)
}

#[test]
fn certificates_of_both_roles_and_both_key_kinds_hold_and_fit_their_preface() {
    let ca = PairCa::new("pair");
    for role in Role::ALL {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            let leaf = ca.issue(algorithm, |params| {
                params.extended_key_usages = vec![usage(role)];
            });
            let credential = Credential::certificate(&ca.der, &leaf.der, &leaf.key).unwrap();
            assert_eq!(credential.id(), RendezvousId(sha256(&ca.der)));
            assert_eq!(credential.kind(), ProofKind::Certificate);
            // The length of an ECDSA signature varies: each preface states its own.
            for _ in 0..20 {
                let preface = credential.preface(role, &CHALLENGE).unwrap();
                let sent = preface.encode();
                let mut reader = PrefaceReader::default();
                let read = reader.feed(&mut &sent[..]).unwrap().unwrap();
                assert_eq!(check(&read), Ok(()), "{role:?}");
            }
        }
    }
}

#[test]
fn a_key_proves_its_own_id_and_no_other() {
    let credential = Credential::key([7; 32]).unwrap();
    let mut preface = credential.preface(Role::Broker, &CHALLENGE).unwrap();
    assert_eq!(preface.id, RendezvousId(sha256(&preface.x)));
    assert_eq!(check(&preface), Ok(()));
    preface.id = RendezvousId([1; 32]);
    assert_eq!(check(&preface), Err(ProofError::Id));
    let mut other = credential.preface(Role::Broker, &CHALLENGE).unwrap();
    other.x = Credential::key([8; 32])
        .unwrap()
        .preface(Role::Broker, &CHALLENGE)
        .unwrap()
        .x;
    assert_eq!(check(&other), Err(ProofError::Id));
    other.id = RendezvousId(sha256(&other.x));
    assert_eq!(check(&other), Err(ProofError::Signature));
}

#[test]
fn an_open_join_has_nothing_to_prove() {
    let credential = Credential::open(RendezvousId([3; 32]));
    let preface = credential.preface(Role::Bridge, &CHALLENGE).unwrap();
    assert_eq!((preface.proof, check(&preface)), (ProofKind::Open, Ok(())));
}

/// A preface seen on the way is worth nothing for another connection.
#[test]
fn a_replayed_preface_and_a_changed_one_do_not_hold() {
    let ca = PairCa::new("pair");
    for credential in [
        ca.credential(Role::Bridge),
        Credential::key([7; 32]).unwrap(),
    ] {
        let preface = credential.preface(Role::Bridge, &[1; 32]).unwrap();
        assert_eq!(verify(&preface, &[1; 32], NOW_S), Ok(()));
        assert_eq!(
            verify(&preface, &[2; 32], NOW_S),
            Err(ProofError::Signature)
        );
        let mut changed = preface.clone();
        changed.nonce[0] ^= 1;
        assert_eq!(
            verify(&changed, &[1; 32], NOW_S),
            Err(ProofError::Signature)
        );
        let mut changed = preface.clone();
        changed.signature[20] ^= 1;
        assert_eq!(
            verify(&changed, &[1; 32], NOW_S),
            Err(ProofError::Signature)
        );
    }
    // The same key for the other role: signed anew, the certificate does not allow it.
    let bridge = ca.credential(Role::Bridge);
    let preface = bridge.preface(Role::Broker, &CHALLENGE).unwrap();
    assert_eq!(check(&preface), Err(ProofError::Usage));
}

#[test]
fn a_certificate_of_another_ca_does_not_hold_even_under_the_same_name() {
    let (ca, other) = (PairCa::new("pair"), PairCa::new("pair"));
    let leaf = other.leaf(&[usage(Role::Bridge)]);
    assert_eq!(check(&bridge_preface(&ca, &leaf)), Err(ProofError::Issuer));
    let stranger = PairCa::new("stranger").leaf(&[usage(Role::Bridge)]);
    assert_eq!(
        check(&bridge_preface(&ca, &stranger)),
        Err(ProofError::Issuer)
    );
    // The CA's certificate is public: shown with a foreign id it proves nothing.
    let mut preface = bridge_preface(&ca, &ca.leaf(&[usage(Role::Bridge)]));
    preface.x.clone_from(&other.der);
    assert_eq!(check(&preface), Err(ProofError::Id));
}

#[test]
fn usage_time_and_key_of_a_certificate_are_checked() {
    let ca = PairCa::new("pair");
    for usages in [
        &[][..],
        &[usage(Role::Broker)],
        &[ExtendedKeyUsagePurpose::Any],
    ] {
        let preface = bridge_preface(&ca, &ca.leaf(usages));
        assert_eq!(check(&preface), Err(ProofError::Usage), "{usages:?}");
    }
    let both = ca.leaf(&[usage(Role::Broker), usage(Role::Bridge)]);
    assert_eq!(check(&bridge_preface(&ca, &both)), Ok(()));
    let times = [((2026, 5, 1), (2026, 5, 31)), ((2026, 6, 2), (2027, 1, 1))];
    for ((y, m, d), (y2, m2, d2)) in times {
        let leaf = ca.issue(&PKCS_ECDSA_P256_SHA256, |params| {
            params.extended_key_usages = vec![usage(Role::Bridge)];
            params.not_before = date_time_ymd(y, m, d);
            params.not_after = date_time_ymd(y2, m2, d2);
        });
        assert_eq!(check(&bridge_preface(&ca, &leaf)), Err(ProofError::Time));
    }
    let p384 = ca.issue(&PKCS_ECDSA_P384_SHA384, |params| {
        params.extended_key_usages = vec![usage(Role::Bridge)];
    });
    let refused = Credential::certificate(&ca.der, &p384.der, &p384.key).err();
    assert_eq!(refused, Some(CredentialError::Key));
    let mut preface = bridge_preface(&ca, &both);
    preface.leaf = p384.der;
    assert_eq!(check(&preface), Err(ProofError::Key));
}

#[test]
fn what_is_no_certificate_is_refused_by_both_ends() {
    let ca = PairCa::new("pair");
    let leaf = ca.leaf(&[usage(Role::Bridge)]);
    let good = bridge_preface(&ca, &leaf);
    for garbage in [vec![0], b"not DER".to_vec(), leaf.der[..100].to_vec()] {
        let mut preface = good.clone();
        preface.leaf = garbage.clone();
        assert_eq!(check(&preface), Err(ProofError::Encoding));
        let refused = Credential::certificate(&ca.der, &garbage, &leaf.key).err();
        assert_eq!(refused, Some(CredentialError::Certificate));
    }
    let mut preface = good.clone();
    preface.leaf.push(0);
    assert_eq!(
        check(&preface),
        Err(ProofError::Encoding),
        "a byte behind it"
    );
    let other = ca.leaf(&[usage(Role::Bridge)]);
    let refused = Credential::certificate(&ca.der, &leaf.der, &other.key).err();
    assert_eq!(refused, Some(CredentialError::Certificate));
    let refused = Credential::certificate(&[0; 2_049], &leaf.der, &leaf.key).err();
    assert!(matches!(
        refused,
        Some(CredentialError::TooLong { bytes: 2_049, .. })
    ));
    let refused = Credential::certificate(&ca.der, &leaf.der, b"no key").err();
    assert_eq!(refused, Some(CredentialError::Key));
}
