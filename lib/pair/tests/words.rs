//! Pairing codes and join strings: golden vectors, and words that were damaged or made up.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use culvert_pair::{JOIN_RELAYS_MAX, PairJoin, PairingCode, WordError};
use culvert_proto::pair::{RendezvousId, Role};
use proptest::prelude::*;

/// Made by another program (Python, `hmac`, `zlib`, and OpenSSL for the key) of the bytes 0 to 31.
const CODE: &str = "cvf_AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fxKKBWQ";
const CODE_OF_FORMAT_2: &str = "cvf_AgABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fn7UwTA";
const CODE_OF_31_BYTES: &str = "cvf_AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR7MoZHA";
const SEED: &str = "252c205843bdb02e4c1e41379e391966bb5f0cfe5977daf87a47ac846879412c";
const PROOF_KEY: &str = "b96aee30175ec372e56ed1d7997c5a7e09b696998e3d30c145b6004f8869e74e";
const BRIDGE_PROOF: &str = "76ef8b1bd365f72eb5b7adf682086ca500456cdcc3ccf03f5a787617c1849837";
const CODE_ID: &str = "69af09fff1db55b22a0c4fd59cc4d388d75a661bdc02c58b550c04afbd3d6f4d";
const JOIN: &str = "cvr_AQEAE3JlbGF5LWEuZXhhbXBsZTo0NDMBABJbMjAwMTpkYjg6OjFdOjg0NDMCAAVkYi1ldQMAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fBAAgq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6sFAAgAAAAAa0nSAHIQmA4";
const JOIN_OF_FORMAT_2: &str = "cvr_AgEAE3JlbGF5LWEuZXhhbXBsZTo0NDMBABJbMjAwMTpkYjg6OjFdOjg0NDMCAAVkYi1ldQMAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fBAAgq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6sFAAgAAAAAa0nSAFROByw";
const SHORTEST_JOIN: &str =
    "cvr_AQEAA3I6MQIAAWEDACAAAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eH58iVUU";

fn code() -> PairingCode {
    PairingCode::from_bytes(std::array::from_fn(|at| u8::try_from(at).unwrap()))
}

fn join() -> PairJoin {
    PairJoin {
        name: "db-eu".to_owned(),
        relays: ["relay-a.example:443", "[2001:db8::1]:8443"]
            .map(str::to_owned)
            .into(),
        info_hash: Some(RendezvousId([0xab; 32])),
        code: code(),
        expires_unix_s: 1_800_000_000,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_pairing_code_is_written_and_read_as_another_program_writes_it() {
    assert_eq!(code().encode().as_str(), CODE);
    assert_eq!(PairingCode::decode(CODE).unwrap().expose(), code().expose());
    let spaced = format!("  {CODE}\n");
    assert!(PairingCode::decode(&spaced).unwrap().is_same(&code()));
}

#[test]
fn what_follows_from_a_code_is_what_another_program_derives() {
    let code = code();
    assert_eq!(hex(code.boot_seed().as_slice()), SEED);
    assert_eq!(hex(code.proof_key().as_slice()), PROOF_KEY);
    assert_eq!(code.rendezvous_id().to_string(), CODE_ID);
    assert_eq!(hex(&code.proof(Role::Bridge, &[7; 32])), BRIDGE_PROOF);
}

#[test]
fn a_proof_holds_for_one_side_of_one_connection() {
    let code = code();
    let said = code.proof(Role::Bridge, &[7; 32]);
    assert!(code.proves(Role::Bridge, &[7; 32], &said));
    assert!(!code.proves(Role::Broker, &[7; 32], &said), "reflected");
    assert!(
        !code.proves(Role::Bridge, &[8; 32], &said),
        "another connection"
    );
    assert!(!PairingCode::random().proves(Role::Bridge, &[7; 32], &said));
    assert!(!code.proves(Role::Bridge, &[7; 32], &said[..31]));
    assert!(!code.proves(Role::Bridge, &[7; 32], b""));
}

#[test]
fn a_code_stands_for_one_key() {
    let code = PairingCode::of_key([3; 32]);
    assert!(code.is_of_key(&[3; 32]) && !code.is_of_key(&[4; 32]));
}

#[test]
fn codes_of_other_formats_lengths_and_kinds_are_refused_by_name() {
    let said = |word: &str| PairingCode::decode(word).err().unwrap();
    assert_eq!(
        said(CODE_OF_FORMAT_2).to_string(),
        "pairing code of format 2; this version reads format 1: upgrade"
    );
    assert!(matches!(said(CODE_OF_31_BYTES), WordError::Damaged { .. }));
    assert!(matches!(said(JOIN), WordError::TooLong { .. }));
    assert!(matches!(said(SHORTEST_JOIN), WordError::TooLong { .. }));
    assert_eq!(said("cvj_x").to_string(), "a pairing code starts with cvf_");
    for damaged in [
        "cvf_",
        "cvf_AQ",
        "cvf_====",
        &CODE[..53],
        &CODE.to_lowercase(),
    ] {
        assert!(
            matches!(said(damaged), WordError::Damaged { .. }),
            "{damaged}"
        );
    }
    assert!(matches!(said(""), WordError::Prefix { .. }));
}

#[test]
fn a_join_string_is_written_and_read_as_another_program_writes_it() {
    assert_eq!(join().encode().unwrap().as_str(), JOIN);
    let read = PairJoin::decode(JOIN).unwrap();
    let made = join();
    assert_eq!((&read.name, &read.relays), (&made.name, &made.relays));
    assert_eq!(read.info_hash, made.info_hash);
    assert!(read.code.is_same(&made.code));
    assert!(!read.is_expired(1_799_999_999) && read.is_expired(1_800_000_000));
    let least = PairJoin::decode(SHORTEST_JOIN).unwrap();
    assert_eq!(least.info_hash, None);
    assert!(!least.is_expired(u64::MAX), "it names no time");
}

#[test]
fn join_strings_of_other_formats_and_kinds_are_refused_by_name() {
    let said = |word: &str| PairJoin::decode(word).err().unwrap();
    assert!(matches!(
        said(JOIN_OF_FORMAT_2),
        WordError::Version { seen: 2, .. }
    ));
    assert!(matches!(said(CODE), WordError::Prefix { .. }));
    assert!(matches!(
        said(&JOIN[..JOIN.len() - 1]),
        WordError::Damaged { .. }
    ));
    assert!(matches!(
        said(&"cvr_A".repeat(1_000)),
        WordError::TooLong { .. }
    ));
}

#[test]
fn what_cannot_stand_in_a_join_string_is_named() {
    let refused = |change: fn(&mut PairJoin)| {
        let mut join = join();
        change(&mut join);
        join.encode().err().map(|why| why.to_string())
    };
    let relay = Some("the pair join string lacks a usable relay".to_owned());
    assert_eq!(refused(|join| join.relays.clear()), relay);
    assert_eq!(
        refused(|join| join.relays = vec!["https://x".to_owned()]),
        relay
    );
    assert_eq!(
        refused(|join| join.relays = vec!["r:1".to_owned(); JOIN_RELAYS_MAX + 1]),
        relay
    );
    let name = Some("the pair join string lacks a usable name".to_owned());
    assert_eq!(refused(|join| join.name = "../etc".to_owned()), name);
    let widest = format!("{}:65535", "x".repeat(253));
    let mut full = join();
    full.relays = vec![widest; JOIN_RELAYS_MAX];
    full.name = "n".repeat(63);
    let word = full.encode().unwrap();
    assert_eq!(PairJoin::decode(&word).unwrap().relays, full.relays);
}

proptest! {
    #[test]
    fn one_other_character_anywhere_is_noticed(at in 0..JOIN.len(), to in "[ -~]") {
        let mut word = JOIN.to_owned();
        word.replace_range(at..=at, &to);
        prop_assume!(word != JOIN);
        // The last character may become white space, which is trimmed: then the word is too short.
        prop_assert!(PairJoin::decode(&word).is_err());
    }

    #[test]
    fn no_word_makes_a_reader_panic(text in "(cvr_|cvf_)?[ -~]{0,200}") {
        let _ = PairJoin::decode(&text);
        let _ = PairingCode::decode(&text);
    }

    #[test]
    fn every_code_survives_being_written(bytes: [u8; 32]) {
        let word = PairingCode::from_bytes(bytes).encode();
        let read = PairingCode::decode(&word).unwrap();
        prop_assert_eq!(read.expose(), &bytes);
    }
}
