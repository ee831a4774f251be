//! What the CA signs, whatever it is asked for.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use culvert_enrol::{
    AgentCertificate, Authority, BACKDATE_S, CA_LIFE_S, CSR_BYTES_MAX, CertificateFault, Key,
    LEAF_LIFE_S_MAX, Request, RequestFault, ca_id, issuer_is, validity,
};
use culvert_proto::id::ClusterId;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const NOW: u64 = 1_763_683_200;

fn cluster() -> ClusterId {
    "prod-eu".parse().unwrap()
}

fn fault(der: &[u8]) -> RequestFault {
    Request::read(der).err().unwrap()
}

/// A request for everything that it must not get.
fn greedy() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["hub.example.com".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "other");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::Any,
    ];
    // Lives cannot be asked for in PKCS#10; the parameters have one all the same.
    params.not_after = rcgen::date_time_ymd(2036, 1, 1);
    let der = params.serialize_request(&key).unwrap().der().to_vec();
    (key, der)
}

#[test]
fn a_request_gives_its_key_and_nothing_else() {
    let ca = Authority::generate(NOW).unwrap();
    let (key, csr) = greedy();
    let request = Request::read(&csr).unwrap();
    let signed = ca
        .sign_agent(&request, &cluster(), NOW, LEAF_LIFE_S_MAX)
        .unwrap();
    let (_, leaf) = X509Certificate::from_der(&signed.der).unwrap();
    assert_eq!(leaf.subject().to_string(), "CN=prod-eu");
    assert_eq!(leaf.public_key().raw, {
        use rcgen::PublicKeyData as _;
        key.subject_public_key_info()
    });
    assert!(!leaf.is_ca());
    assert!(leaf.subject_alternative_name().unwrap().is_none());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(signed.validity.issued_unix_s, NOW);
    assert_eq!(signed.validity.until_unix_s, NOW + LEAF_LIFE_S_MAX);
    assert_eq!(
        leaf.validity().not_before.timestamp(),
        i64::try_from(NOW - BACKDATE_S).unwrap()
    );
    let again = ca
        .sign_agent(&request, &cluster(), NOW, LEAF_LIFE_S_MAX)
        .unwrap();
    let read = |der: &[u8]| AgentCertificate::read(der).unwrap();
    assert_eq!(read(&signed.der).cluster, cluster());
    assert_ne!(read(&signed.der).serial, read(&again.der).serial);
    assert!(issuer_is(&signed.der, ca.certificate_der()));
    let other = Authority::generate(NOW).unwrap();
    assert!(!issuer_is(&signed.der, other.certificate_der()));
    assert_eq!(
        signed.validity.renew_at_unix_s(),
        NOW + LEAF_LIFE_S_MAX * 2 / 3
    );
}

#[test]
fn a_ca_lives_ten_years_and_no_certificate_outlives_it() {
    let ca = Authority::generate(NOW).unwrap();
    let own = validity(ca.certificate_der()).unwrap();
    assert_eq!(own.until_unix_s, NOW + CA_LIFE_S);
    let request = Request::read(&Key::generate().unwrap().request().unwrap()).unwrap();
    let late = NOW + CA_LIFE_S - 100;
    let signed = ca.sign_agent(&request, &cluster(), late, LEAF_LIFE_S_MAX);
    assert_eq!(signed.unwrap().validity.until_unix_s, own.until_unix_s);
}

#[test]
fn a_ca_is_the_same_after_pem_and_der_and_foreign_halves_are_refused() {
    let (ca, other) = (
        Authority::generate(NOW).unwrap(),
        Authority::generate(NOW).unwrap(),
    );
    let pem = culvert_enrol::certificates([ca.certificate_der()]);
    let read = Authority::from_pem(&pem, &ca.key().to_pem()).unwrap();
    assert_eq!(read.id(), ca_id(ca.certificate_der()));
    let der = ca.certificate_der().to_vec();
    assert!(Authority::from_der(der.clone(), ca.key().pkcs8_der()).is_ok());
    assert!(Authority::from_der(der, other.key().pkcs8_der()).is_err());
    assert!(Authority::from_pem("", &ca.key().to_pem()).is_err());
    assert!(Authority::from_pem(&pem, "").is_err());
    assert!(Authority::from_pem(&format!("{pem}{pem}"), &ca.key().to_pem()).is_err());
    // A leaf is no CA, whoever has its key.
    let key = Key::generate().unwrap();
    let request = Request::read(&key.request().unwrap()).unwrap();
    let leaf = ca.sign_agent(&request, &cluster(), NOW, 60).unwrap();
    assert!(Authority::from_der(leaf.der, key.pkcs8_der()).is_err());
}

#[test]
fn a_listener_gets_its_names_and_is_no_agent() {
    let ca = Authority::generate(NOW).unwrap();
    let (_, csr) = greedy();
    let request = Request::read(&csr).unwrap();
    let names = ["tunnel.example.com".to_owned(), "192.0.2.7".to_owned()];
    let signed = ca.sign_listener(&request, &names, NOW, 3600).unwrap();
    let (_, leaf) = X509Certificate::from_der(&signed.der).unwrap();
    let seen = leaf.subject_alternative_name().unwrap().unwrap();
    let seen: Vec<_> = seen.value.general_names.iter().collect();
    assert!(matches!(
        seen[..],
        [
            GeneralName::DNSName("tunnel.example.com"),
            GeneralName::IPAddress([192, 0, 2, 7])
        ]
    ));
    let fault = AgentCertificate::read(&signed.der);
    assert_eq!(fault, Err(CertificateFault::Usage));
    let fault = AgentCertificate::read(ca.certificate_der());
    assert_eq!(fault, Err(CertificateFault::Ca));
}

#[test]
fn certificates_of_other_makers_are_no_agents() {
    let made = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "prod-eu");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        AgentCertificate::read(&der).map(|read| read.cluster)
    };
    assert_eq!(made(&|_| {}), Ok(cluster()));
    let usage = |usages: &[ExtendedKeyUsagePurpose]| {
        let usages = usages.to_vec();
        made(&move |params| params.extended_key_usages.clone_from(&usages))
    };
    let (client, server) = (
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    for wrong in [
        &[][..],
        std::slice::from_ref(&server),
        &[client.clone(), server.clone()],
        &[client, ExtendedKeyUsagePurpose::Any],
    ] {
        assert_eq!(usage(wrong), Err(CertificateFault::Usage), "{wrong:?}");
    }
    for name in ["", "Prod", "a b", &"a".repeat(64)] {
        let named = made(&|params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
        });
        assert_eq!(named, Err(CertificateFault::Name), "{name:?}");
    }
    let fault = AgentCertificate::read(b"nonsense");
    assert_eq!(fault, Err(CertificateFault::Unreadable));
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let good = Key::generate().unwrap().request().unwrap();
    assert!(Request::read(&good).is_ok());
    assert_eq!(fault(b""), RequestFault::Unreadable);
    assert_eq!(fault(&vec![0x30; 1 << 20]), RequestFault::Unreadable);
    let long = [&good[..], &vec![0; CSR_BYTES_MAX]].concat();
    assert_eq!(fault(&long), RequestFault::Unreadable);
    assert_eq!(fault(&[&good[..], &[0]].concat()), RequestFault::Unreadable);
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(Request::read(&forged).is_err());
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        assert_eq!(fault(csr.der()), RequestFault::Key);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn readers_never_panic(bytes: Vec<u8>, place: usize, flip in 1u8..) {
        let _ = Request::read(&bytes);
        let _ = AgentCertificate::read(&bytes);
        let mut csr = Key::generate().unwrap().request().unwrap();
        let place = place % csr.len();
        csr[place] ^= flip;
        let _ = Request::read(&csr);
    }
}
