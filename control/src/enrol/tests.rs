use super::*;

const NOW: u64 = 1_763_683_200_000;

fn ca(id: &str, state: CaState, created: u64, last_unix_s: u64) -> AgentCa {
    AgentCa {
        id: id.to_owned(),
        state,
        certificate: id.as_bytes().to_vec(),
        sealed_key: Vec::new(),
        created_unix_ms: created,
        last_unix_s,
    }
}

fn token() -> EnrolToken {
    EnrolToken {
        digest: Digest([1; 32]),
        cluster: "a".to_owned(),
        created_unix_ms: NOW,
        not_after_unix_ms: NOW + ENROL_TOKEN_LIFE_MS,
    }
}

#[test]
fn a_token_is_for_its_cluster_and_its_time() {
    let admit =
        |token: Option<&EnrolToken>, asked: &str, since, now| admit(token, asked, since, now);
    let token = token();
    let good = Some(&token);
    let end = NOW + ENROL_TOKEN_LIFE_MS;
    assert_eq!(admit(good, "a", Some(NOW), end - 1), Ok(()));
    assert_eq!(admit(good, "a", Some(NOW), end), Err(TokenRefused::Expired));
    assert_eq!(admit(None, "a", Some(1), NOW), Err(TokenRefused::Unknown));
    let other = admit(good, "b", Some(1), NOW);
    assert!(matches!(other, Err(TokenRefused::OtherCluster { .. })));
    for since in [None, Some(NOW + 1)] {
        let gone = admit(good, "a", since, NOW);
        assert_eq!(gone, Err(TokenRefused::ClusterGone("a".to_owned())));
    }
}

#[test]
fn minted_tokens_are_32_random_bytes() {
    let (text, digest) = mint([0xff; 32]);
    assert_eq!(text.expose(), format!("cve_{}8", "_".repeat(42)));
    assert_eq!(digest, Digest(crypto::sha256(text.expose().as_bytes())));
}

#[test]
fn a_rotation_goes_from_one_ca_to_the_next() {
    let mut cas = vec![ca("a", CaState::Signing, 1, 0)];
    assert_eq!(promoted(&cas).err(), Some(CaRefused::NothingStaged));
    may_stage(&cas).unwrap();
    cas.push(ca("b", CaState::Staged, 2, 0));
    assert_eq!(may_stage(&cas), Err(CaRefused::Staged("b".to_owned())));
    let ids = |cas: &[AgentCa]| -> Vec<String> {
        in_order(cas).into_iter().map(|ca| ca.id.clone()).collect()
    };
    assert_eq!(ids(&cas), ["a", "b"]);
    cas = promoted(&cas).unwrap();
    assert_eq!(signing(&cas).unwrap().id, "b");
    assert_eq!(
        ids(&cas),
        ["a", "b"],
        "listeners keep the one that all know"
    );
    assert_eq!(
        may_retire(&cas, "b"),
        Err(CaRefused::Signing("b".to_owned()))
    );
    assert_eq!(
        may_retire(&cas, "c"),
        Err(CaRefused::Unknown("c".to_owned()))
    );
    may_retire(&cas, "a").unwrap();
    for (n, name) in ["c", "d"].into_iter().enumerate() {
        cas.push(ca(name, CaState::Trusted, 3 + n as u64, 0));
    }
    assert_eq!(may_stage(&cas), Err(CaRefused::TooMany));
}

#[test]
fn a_ca_is_spent_when_its_last_certificate_has_ended() {
    let now_s = NOW / 1000;
    let cas = [
        ca("signs", CaState::Signing, 1, now_s - 9),
        ca("staged", CaState::Staged, 1, 0),
        ca("lives", CaState::Trusted, 1, now_s),
    ];
    assert!(spent(&cas, NOW).is_none());
    assert_eq!(spent(&cas, NOW + 1000).unwrap().id, "lives");
}

#[test]
fn a_certificate_is_never_older_than_the_revocation_before_it() {
    assert_eq!(issued_at(5_999, 0), 5);
    assert_eq!(issued_at(5_999, 6), 6);
}

#[test]
fn half_a_ca_is_no_start() {
    let dir = tempfile::tempdir().unwrap();
    assert!(import(dir.path()).unwrap().is_none());
    let made = Authority::generate(NOW / 1000).unwrap();
    let pem = culvert_enrol::certificates([made.certificate_der()]);
    std::fs::write(dir.path().join("ca.crt"), &pem).unwrap();
    assert!(matches!(import(dir.path()), Err(CaDirError::Half(_))));
    for broken in ["", "nonsense"] {
        std::fs::write(dir.path().join("ca.key"), broken).unwrap();
        assert!(matches!(import(dir.path()), Err(CaDirError::Ca(..))));
    }
    std::fs::write(dir.path().join("ca.key"), made.key().to_pem().as_bytes()).unwrap();
    assert_eq!(import(dir.path()).unwrap().unwrap().id(), made.id());
    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    assert!(matches!(import(dir.path()), Err(CaDirError::Half(_))));
}
