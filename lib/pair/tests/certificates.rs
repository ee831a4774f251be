//! The certificates of a pair before OpenSSL's eyes, and hostile requests for them.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

use culvert_net::crypto::sha256;
use culvert_pair::{
    Authority, BACKDATE_S, CA_LIFE_S, CSR_BYTES_MAX, Chain, Fault, Identity, Key, LEAF_LIFE_S,
    MakeError, RequestError, RequestFault, self_signed,
};
use culvert_proto::pair::Role;
use proptest::prelude::*;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

fn now() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn authority() -> Authority {
    Authority::generate("db-eu", now()).unwrap()
}

/// Runs openssl in `dir`: whether it was content, and all that it said.
fn openssl(dir: &Path, argv: &[&str]) -> (bool, String) {
    let done = Command::new("openssl").args(argv).current_dir(dir).output();
    let done = done.expect("openssl is installed where the tests run");
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&said).into())
}

#[test]
fn openssl_takes_each_certificate_for_its_purpose_and_for_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let authority = authority();
    let csr = Key::generate().unwrap().request().unwrap();
    let asked = authority.sign_broker(&csr, now()).unwrap();
    std::fs::write(dir.join("ca.crt"), authority.certificate_pem()).unwrap();
    std::fs::write(dir.join("other.crt"), self::authority().certificate_pem()).unwrap();
    for (file, role, pem) in [
        (
            "bridge.crt",
            Role::Bridge,
            authority.bridge(now()).unwrap().chain_pem(),
        ),
        (
            "broker.crt",
            Role::Broker,
            authority.broker(now()).unwrap().chain_pem(),
        ),
        ("asked.crt", Role::Broker, asked.to_pem()),
    ] {
        std::fs::write(dir.join(file), pem).unwrap();
        let verify = |ca, purpose| {
            let strict = [
                "verify",
                "-x509_strict",
                "-CAfile",
                ca,
                "-purpose",
                purpose,
                file,
            ];
            openssl(dir, &strict).0
        };
        let (ours, others) = match role {
            Role::Bridge => ("sslserver", "sslclient"),
            Role::Broker => ("sslclient", "sslserver"),
        };
        assert!(verify("ca.crt", ours), "{file}");
        assert!(!verify("ca.crt", others), "{file}");
        assert!(!verify("other.crt", ours), "{file}");
    }
}

#[test]
fn a_ca_lives_ten_years_and_a_side_ninety_days() {
    let authority = authority();
    let made = now();
    let identity = authority.bridge(made).unwrap();
    let validity = identity.check(Role::Bridge, made).unwrap();
    let life = validity.until_unix_s - validity.from_unix_s;
    assert_eq!(life, LEAF_LIFE_S + BACKDATE_S);
    let (_, ca) = X509Certificate::from_der(identity.ca_der()).unwrap();
    let life = ca.validity().not_after.timestamp() - ca.validity().not_before.timestamp();
    assert_eq!(life.unsigned_abs(), CA_LIFE_S + BACKDATE_S);
    assert!(ca.is_ca());
    assert_eq!(
        ca.basic_constraints()
            .unwrap()
            .unwrap()
            .value
            .path_len_constraint,
        Some(0)
    );
    assert_eq!(authority.info_hash().0, sha256(identity.ca_der()));
    let key = Key::from_pkcs8(identity.key_pkcs8_der()).unwrap();
    assert!(self_signed(&key, made).is_ok());
}

#[test]
fn of_a_request_only_the_key_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (made, said) = openssl(
        dir,
        &[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "evil.key",
            "-outform",
            "DER",
            "-out",
            "evil.csr",
            "-days",
            "3650",
            "-subj",
            "/CN=db-eu bridge/O=evil",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "subjectAltName=DNS:evil.example",
            "-addext",
            "extendedKeyUsage=serverAuth,clientAuth,codeSigning",
            "-addext",
            "keyUsage=keyCertSign,digitalSignature",
        ],
    );
    assert!(made, "{said}");
    let csr = std::fs::read(dir.join("evil.csr")).unwrap();
    let chain = authority().sign_broker(&csr, now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain.leaf_der).unwrap();
    assert_eq!(leaf.subject().to_string(), "CN=db-eu broker");
    assert!(!leaf.is_ca());
    assert!(leaf.subject_alternative_name().unwrap().is_none());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.code_signing);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(life.unsigned_abs(), LEAF_LIFE_S + BACKDATE_S);
    let key = Key::from_pem(&std::fs::read_to_string(dir.join("evil.key")).unwrap()).unwrap();
    assert_eq!(leaf.public_key().raw, key.spki_der());
}

#[test]
fn requests_with_keys_of_other_kinds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let authority = authority();
    let kinds: [&[&str]; 4] = [
        &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
        &["ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
        &["rsa:2048"],
        &["ed25519"],
    ];
    for kind in kinds {
        let rest = [
            "-nodes", "-keyout", "k", "-outform", "DER", "-out", "csr", "-subj", "/CN=x",
        ];
        let argv = [&["req", "-new", "-newkey"], kind, &rest].concat();
        let (made, said) = openssl(dir, &argv);
        assert!(made, "{said}");
        let csr = std::fs::read(dir.join("csr")).unwrap();
        let refused = authority.sign_broker(&csr, now()).unwrap_err();
        let is_key = matches!(refused, RequestError::Request(RequestFault::Key));
        assert!(is_key, "{kind:?}: {refused}");
    }
}

#[test]
fn a_request_that_was_touched_is_refused() {
    let authority = authority();
    let key = Key::generate().unwrap();
    let csr = key.request().unwrap();
    let (_, parsed) = X509CertificationRequest::from_der(&csr).unwrap();
    let signed = parsed.certification_request_info.raw.as_ptr_range();
    for at in 0..csr.len() {
        let mut touched = csr.clone();
        touched[at] ^= 1 << (at % 8);
        let inside = signed.contains(&csr[at..].as_ptr());
        match authority.sign_broker(&touched, now()) {
            Err(_) => {}
            // The frame around what is signed may be odd: the key is still the asker's.
            Ok(chain) if !inside => {
                let (_, leaf) = X509Certificate::from_der(&chain.leaf_der).unwrap();
                assert_eq!(leaf.public_key().raw, key.spki_der(), "byte {at}");
            }
            Ok(_) => panic!("byte {at} of what is signed was changed"),
        }
    }
    let longer = [csr.as_slice(), &[0]].concat();
    let refused = authority.sign_broker(&longer, now()).unwrap_err();
    let unreadable = RequestFault::Unreadable;
    assert!(matches!(refused, RequestError::Request(why) if why == unreadable));
    for length in [0, 1, csr.len() - 1] {
        assert!(authority.sign_broker(&csr[..length], now()).is_err());
    }
    let endless = vec![0x30; CSR_BYTES_MAX + 1];
    assert!(authority.sign_broker(&endless, now()).is_err());
}

#[test]
fn the_cas_own_key_gets_no_certificate_as_a_side() {
    let authority = authority();
    let key = Key::from_pem(&authority.key_pem()).unwrap();
    let refused = authority
        .sign_broker(&key.request().unwrap(), now())
        .unwrap_err();
    assert!(matches!(refused, RequestError::OwnKey));
}

#[test]
fn each_thing_that_is_wrong_with_a_chain_is_named() {
    let (ours, theirs) = (authority(), authority());
    let bridge = ours.bridge(now()).unwrap();
    let chain = |leaf: &[u8], ca: &[u8]| Chain {
        leaf_der: leaf.to_vec(),
        ca_der: ca.to_vec(),
    };
    let good = bridge.chain();
    assert!(good.check(Role::Bridge, now()).is_ok());
    let other_ca = chain(bridge.leaf_der(), theirs.certificate_der());
    assert!(matches!(
        other_ca.check(Role::Bridge, now()),
        Err(Fault::Signer { .. })
    ));
    assert!(matches!(
        good.check(Role::Broker, now()),
        Err(Fault::Usage { role: "broker", .. })
    ));
    let early = now() - 2 * BACKDATE_S;
    assert!(matches!(
        good.check(Role::Bridge, early),
        Err(Fault::Early { .. })
    ));
    let late = now() + LEAF_LIFE_S + 60;
    assert!(matches!(
        good.check(Role::Bridge, late),
        Err(Fault::Expired { .. })
    ));
    let ca_as_leaf = chain(ours.certificate_der(), ours.certificate_der());
    assert_eq!(ca_as_leaf.check(Role::Bridge, now()), Err(Fault::LeafIsCa));
    let leaf_as_ca = chain(bridge.leaf_der(), bridge.leaf_der());
    assert_eq!(leaf_as_ca.check(Role::Bridge, now()), Err(Fault::NotACa));
    let long = chain(&[0x30; 2_049], ours.certificate_der());
    assert_eq!(
        long.check(Role::Bridge, now()),
        Err(Fault::TooLong { bytes: 2_049 })
    );
    let self_made = self_signed(&Key::generate().unwrap(), now()).unwrap();
    let self_made = chain(&self_made, ours.certificate_der());
    assert!(matches!(
        self_made.check(Role::Bridge, now()),
        Err(Fault::Signer { .. })
    ));
}

#[test]
fn what_is_written_as_pem_is_read_again_and_strangers_are_not_mixed_in() {
    let ours = authority();
    let again = Authority::from_pem("db-eu", &ours.certificate_pem(), &ours.key_pem()).unwrap();
    assert_eq!(again.info_hash(), ours.info_hash());
    let broker = again.broker(now()).unwrap();
    assert!(broker.check(Role::Broker, now()).is_ok());
    let read =
        Identity::from_pem(&broker.chain_pem(), &broker.key_pem(), &broker.ca_pem()).unwrap();
    assert_eq!(read.chain(), broker.chain());
    assert_eq!(
        Chain::from_pem(&broker.chain_pem()).unwrap(),
        *broker.chain()
    );
    let other = authority();
    let mixed = Authority::from_pem("db-eu", &ours.certificate_pem(), &other.key_pem());
    assert!(matches!(mixed, Err(MakeError::Ca(Fault::Key))));
    let stranger = other.broker(now()).unwrap();
    assert!(
        Identity::from_pem(&broker.chain_pem(), &stranger.key_pem(), &broker.ca_pem()).is_err()
    );
    let two = [ours.certificate_pem(), other.certificate_pem()].concat();
    assert!(Authority::from_pem("db-eu", &two, &ours.key_pem()).is_err());
    let no_ca = broker.chain_pem();
    let no_ca = no_ca
        .split_inclusive("-----END CERTIFICATE-----\n")
        .next()
        .unwrap();
    assert_eq!(Chain::from_pem(no_ca), Err(Fault::ChainLength));
    let key = Key::from_pem(&broker.key_pem()).unwrap();
    let joined = Identity::new(stranger.chain().clone(), key, Role::Broker, now());
    assert!(joined.is_err(), "a certificate for another key");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let chain = Chain { leaf_der: bytes.clone(), ca_der: bytes.clone() };
        prop_assert!(chain.check(Role::Bridge, 0).is_err());
        prop_assert!(Key::from_pkcs8(&bytes).is_err());
        let text = String::from_utf8_lossy(&bytes);
        let text = format!("-----BEGIN CERTIFICATE-----\n{text}");
        prop_assert!(Chain::from_pem(&text).is_err());
    }
}
