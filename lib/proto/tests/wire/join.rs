use culvert_proto::join::*;
use culvert_proto::token::TokenText;
use proptest::prelude::*;

fn join(hubs: Vec<String>, token: &str, spki_pin: Option<[u8; 32]>, expires: u64) -> JoinString {
    JoinString {
        hubs,
        cluster: "prod-eu".parse().unwrap(),
        token: TokenText::new(token).unwrap(),
        spki_pin,
        expires_unix_s: expires,
        register: None,
    }
}

proptest! {
    #[test]
    fn round_trip(
        hubs in proptest::collection::vec("[!-~]{1,60}", 1..=8),
        token in "[!-~]{16,80}",
        pin: Option<[u8; 32]>,
        expires: u64,
        register in proptest::option::of("[!-~]{1,60}"),
    ) {
        let mut join = join(hubs.clone(), &token, pin, expires);
        join.register.clone_from(&register);
        let word = join.encode().unwrap();
        prop_assert!(word.starts_with(JOIN_PREFIX));
        let read = JoinString::decode(&format!("  {}\n", word.as_str())).unwrap();
        prop_assert_eq!(read.hubs, hubs);
        prop_assert_eq!(read.cluster.as_str(), "prod-eu");
        prop_assert_eq!(read.token.expose(), token);
        prop_assert_eq!(read.spki_pin, pin);
        prop_assert_eq!(read.expires_unix_s, expires);
        prop_assert_eq!(read.register, register);
    }

    #[test]
    fn every_single_mistake_is_seen(place: usize, replacement in "[A-Za-z0-9_-]") {
        let word = join(vec!["wss://h/agent".into()], &"t".repeat(16), None, 9).encode().unwrap();
        let place = JOIN_PREFIX.len() + place % (word.len() - JOIN_PREFIX.len());
        let mut wrong = String::from(word.as_str());
        wrong.replace_range(place..=place, &replacement);
        if wrong != *word {
            prop_assert!(matches!(JoinString::decode(&wrong), Err(JoinError::Damaged)));
        }
        prop_assert!(JoinString::decode(&word[..place]).is_err(), "cut");
    }

    #[test]
    fn never_panics(text: String, tail in "[A-Za-z0-9_-]{0,200}") {
        let _ = JoinString::decode(&text);
        let _ = JoinString::decode(&format!("cvj_{tail}"));
    }
}

#[test]
fn refusals_say_what_to_do() {
    let decode = |word: &str| JoinString::decode(word).map(|_| ()).unwrap_err();
    assert_eq!(decode("rhc_abc"), JoinError::Prefix);
    assert_eq!(decode("cvj_"), JoinError::Damaged);
    assert_eq!(
        decode(&format!("cvj_{}", "A".repeat(JOIN_BYTES_MAX))),
        JoinError::TooLong
    );
    assert!(join(vec![], &"t".repeat(16), None, 0).encode().is_err());
    assert!(
        join(vec!["a b".into()], &"t".repeat(16), None, 0)
            .encode()
            .is_err()
    );
    assert!(
        join(vec!["h".into(); 9], &"t".repeat(16), None, 0)
            .encode()
            .is_err()
    );
    // Format 2 with its checksum, made by another program.
    assert_eq!(decode("cvj_AjwMjqE"), JoinError::Version { seen: 2 });
    let fresh = join(vec!["h".into()], &"t".repeat(16), None, 100);
    assert!(!fresh.is_expired(99) && fresh.is_expired(100));
    assert!(!join(vec!["h".into()], &"t".repeat(16), None, 0).is_expired(u64::MAX));
}
