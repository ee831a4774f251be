//! What a licence must not be, and which of several counts.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_licence::{
    Boot, Candidate, Invalid, KeySet, Severity, Source, Standing, TOKEN_BYTES_MAX, Terms, boot,
    issue, vendor, verify,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const NOW: u64 = 1_763_683_200;
const YEAR: u64 = 365 * 86_400;

struct Vendor {
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

impl Vendor {
    fn new() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = pair.public_key().as_ref().try_into().unwrap();
        Self { pair, public }
    }

    fn hex(&self) -> String {
        self.public
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn keys(&self) -> KeySet {
        KeySet::parse(&self.hex()).unwrap()
    }

    /// Signs any header and payload, sound or not.
    fn sign(&self, header: &str, payload: &str) -> String {
        let parts = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
        let message = parts.join(".");
        let signature = self.pair.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(r#"{"alg":"EdDSA","typ":"JWT"}"#, &claims.to_string())
    }
}

fn claims() -> Value {
    json!({
        "iss": "skyhook", "aud": "radar-hub", "sub": "lic-1", "org": "Acme",
        "exp": NOW + YEAR, "tier": "team", "max_clusters": 25, "license_id": "L-9",
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[test]
fn a_good_one_says_what_it_says() {
    let vendor = Vendor::new();
    let license = verify(&vendor.token(&claims()), &vendor.keys(), NOW).unwrap();
    assert_eq!((&*license.id, &*license.org), ("L-9", "Acme"));
    assert_eq!(license.tier.as_deref(), Some("team"));
    assert_eq!(license.max_clusters, Some(25));
    assert_eq!(license.expiry(), "2026-11-21T00:00:00Z");
    let text = format!(
        "  {}\n",
        vendor.token(&with("aud", json!(["x", "radar-hub"])))
    );
    assert!(verify(&text, &vendor.keys(), NOW).is_ok());
}

#[test]
fn algorithms_other_than_eddsa_are_refused() {
    let vendor = Vendor::new();
    let payload = claims().to_string();
    for alg in [
        "none", "None", "NONE", "", "HS256", "HS512", "RS256", "PS256", "ES256", "eddsa",
    ] {
        let header = json!({"alg": alg, "typ": "JWT"}).to_string();
        let refused = verify(&vendor.sign(&header, &payload), &vendor.keys(), NOW);
        assert_eq!(refused, Err(Invalid::Algorithm), "{alg:?}");
        // Unsigned, as `none` is meant.
        let parts = [&*header, &*payload].map(|part| URL_SAFE_NO_PAD.encode(part));
        let bare = format!("{}.", parts.join("."));
        assert_eq!(
            verify(&bare, &vendor.keys(), NOW),
            Err(Invalid::Algorithm),
            "{alg:?}"
        );
    }
    // The public key as the secret of an HMAC, in the three forms that libraries have taken.
    for secret in [
        vendor.public.to_vec(),
        vendor.hex().into_bytes(),
        vendor.hex().to_uppercase().into_bytes(),
    ] {
        let parts = [r#"{"alg":"HS256"}"#, &*payload].map(|part| URL_SAFE_NO_PAD.encode(part));
        let message = parts.join(".");
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, &secret),
            message.as_bytes(),
        );
        let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert_eq!(
            verify(&forged, &vendor.keys(), NOW),
            Err(Invalid::Algorithm)
        );
    }
}

#[test]
fn every_claim_is_held_to_its_type() {
    let vendor = Vendor::new();
    let refused = |claims: &Value| verify(&vendor.token(claims), &vendor.keys(), NOW).unwrap_err();
    for (claims, why) in [
        (with("iss", json!("skyhook ")), Invalid::Issuer),
        (with("iss", json!(["skyhook"])), Invalid::Issuer),
        (without("iss"), Invalid::Issuer),
        (with("aud", json!("radar-hub2")), Invalid::Audience),
        (with("aud", json!({"radar-hub": 1})), Invalid::Audience),
        (with("aud", json!([["radar-hub"]])), Invalid::Audience),
        (without("aud"), Invalid::Audience),
        (without("sub"), Invalid::Missing("sub")),
        (with("sub", json!("")), Invalid::Missing("sub")),
        (with("sub", json!(7)), Invalid::Missing("sub")),
        (without("org"), Invalid::Missing("org")),
        (with("org", Value::Null), Invalid::Missing("org")),
        (without("exp"), Invalid::Missing("exp")),
        (with("exp", json!("9999999999")), Invalid::Missing("exp")),
        (with("exp", json!(-1)), Invalid::Missing("exp")),
        (with("exp", json!(u64::MAX)), Invalid::Missing("exp")),
        (with("exp", json!(1e300)), Invalid::Missing("exp")),
        (with("nbf", json!(NOW + 1)), Invalid::Early),
        (with("nbf", json!("soon")), Invalid::Early),
    ] {
        assert_eq!(refused(&claims), why, "{claims}");
    }
    // Optional ones of a wrong type count as missing.
    let odd = with("tier", json!(1));
    let odd = json!({"max_clusters": "many", "license_id": [], "jti": "J-1"})
        .as_object()
        .unwrap()
        .iter()
        .fold(odd, |mut all, (name, value)| {
            all[name] = value.clone();
            all
        });
    let license = verify(&vendor.token(&odd), &vendor.keys(), NOW).unwrap();
    assert_eq!(
        (license.tier, license.max_clusters, &*license.id),
        (None, None, "J-1")
    );
}

#[test]
fn twisted_texts_are_refused() {
    let vendor = Vendor::new();
    let (header, payload) = (r#"{"alg":"EdDSA"}"#, claims().to_string());
    let twice = payload.replacen('{', r#"{"exp":1,"#, 1);
    let org_twice = payload.replacen('{', r#"{"org":"Evil","#, 1);
    let alg_twice = r#"{"alg":"none","alg":"EdDSA"}"#;
    let good = vendor.sign(header, &payload);
    let padded = format!(
        "{}{}",
        " ".repeat(TOKEN_BYTES_MAX),
        "x".repeat(TOKEN_BYTES_MAX)
    );
    for (text, why) in [
        (vendor.sign(header, &twice), Invalid::Malformed),
        (vendor.sign(header, &org_twice), Invalid::Malformed),
        (vendor.sign(alg_twice, &payload), Invalid::Malformed),
        (
            vendor.sign(r#"{"alg":"EdDSA","crit":["b64"]}"#, &payload),
            Invalid::Critical,
        ),
        (
            vendor.sign(r#"{"alg":"EdDSA","kid":"other"}"#, &payload),
            Invalid::UnknownKey,
        ),
        (vendor.sign(header, "[]"), Invalid::Malformed),
        (vendor.sign(header, "{"), Invalid::Malformed),
        (format!("{good}.x"), Invalid::Malformed),
        (format!("{good}="), Invalid::Malformed),
        (good.replace('.', ""), Invalid::Malformed),
        (String::new(), Invalid::Malformed),
        (good.repeat(200), Invalid::TooLong),
        (format!("{padded}xx"), Invalid::TooLong),
    ] {
        let seen: String = text.chars().take(60).collect();
        let refused = verify(&text, &vendor.keys(), NOW).unwrap_err();
        let is_so = refused == why || (why == Invalid::Malformed && refused == Invalid::Signature);
        assert!(is_so, "{seen}: {refused:?}, wanted {why:?}");
    }
    let huge = with("filler", json!("x".repeat(TOKEN_BYTES_MAX)));
    assert_eq!(
        verify(&vendor.token(&huge), &vendor.keys(), NOW),
        Err(Invalid::TooLong)
    );
}

#[test]
fn each_byte_of_a_licence_counts() {
    let vendor = Vendor::new();
    let good = vendor.token(&claims());
    for at in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let text = String::from_utf8(bytes).unwrap();
        assert!(verify(&text, &vendor.keys(), NOW).is_err(), "byte {at}");
    }
}

#[test]
fn the_key_list_grows_and_kid_selects() {
    let (old, new, stranger) = (Vendor::new(), Vendor::new(), Vendor::new());
    let list = format!("2025={},2026={}", old.hex(), new.hex());
    let keys = KeySet::parse(&list).unwrap();
    let payload = claims().to_string();
    let named = |vendor: &Vendor, kid: &str| {
        vendor.sign(&json!({"alg": "EdDSA", "kid": kid}).to_string(), &payload)
    };
    assert_eq!(
        verify(&named(&old, "2025"), &keys, NOW).unwrap().kid,
        "2025"
    );
    assert_eq!(
        verify(&named(&new, "2026"), &keys, NOW).unwrap().kid,
        "2026"
    );
    assert_eq!(
        verify(&named(&new, "2025"), &keys, NOW),
        Err(Invalid::Signature)
    );
    assert_eq!(
        verify(&new.token(&claims()), &keys, NOW).unwrap().kid,
        "2026"
    );
    assert_eq!(
        verify(&stranger.token(&claims()), &keys, NOW),
        Err(Invalid::Signature)
    );
    // A placeholder among them believes nothing, not even what a zero key might.
    let zero = KeySet::parse(&"0".repeat(64)).unwrap();
    assert_eq!(
        verify(&new.token(&claims()), &zero, NOW),
        Err(Invalid::UnknownKey)
    );
}

fn lines(boot: &Boot) -> Vec<&'static str> {
    boot.lines.iter().map(|line| line.text).collect()
}

#[test]
fn five_boot_states_have_exactly_their_lines() {
    let vendor = Vendor::new();
    let keys = vendor.keys();
    let one = |text: String| {
        vec![Candidate {
            source: Source::Env,
            text,
        }]
    };
    let good = boot(&one(vendor.token(&claims())), &keys, "self-hosted", NOW);
    assert_eq!(
        (good.standing, lines(&good)),
        (Standing::Valid, vec!["radar-hub: license verified"])
    );
    assert_eq!(good.lines[0].severity, Severity::Info);
    let late = boot(
        &one(vendor.token(&with("exp", json!(NOW)))),
        &keys,
        "self-hosted",
        NOW,
    );
    assert_eq!(
        (late.standing, lines(&late)),
        (
            Standing::Expired,
            vec!["radar-hub: license is expired (warn-only - hub keeps serving)"]
        )
    );
    let forged = boot(
        &one(Vendor::new().token(&claims())),
        &keys,
        "self-hosted",
        NOW,
    );
    assert_eq!(
        (forged.standing, lines(&forged)),
        (
            Standing::Invalid,
            vec!["radar-hub: license verification failed"]
        )
    );
    assert_eq!(
        (forged.license.is_none(), &*forged.claimed_id),
        (true, "L-9")
    );
    let none = boot(&[], &keys, "self-hosted", NOW);
    assert_eq!(
        (none.standing, lines(&none)),
        (
            Standing::Unlicensed,
            vec![
                "radar-hub: self-hosted mode but no RADAR_HUB_LICENSE_KEY (or /etc/radar-hub/license) - running in unlicensed mode (warn-only banner)"
            ]
        )
    );
    assert!(lines(&boot(&[], &keys, "managed", NOW)).is_empty());
    let placeholder = boot(&[], &KeySet::embedded(), "managed", NOW);
    if KeySet::embedded().has_placeholder() {
        assert_eq!(
            lines(&placeholder),
            vec![
                "radar-hub: embedded license public key is the all-zero placeholder; rebuild with the real key before shipping to a customer"
            ]
        );
    }
    for line in [&good, &late, &forged, &none]
        .iter()
        .flat_map(|boot| lines(boot))
    {
        assert!(line.contains("radar-hub:"));
    }
    assert_eq!(good.standing_at(NOW + YEAR - 1), Standing::Valid);
    assert_eq!(good.standing_at(NOW + YEAR), Standing::Expired);
}

#[test]
fn of_several_the_latest_end_counts_then_the_source() {
    let vendor = Vendor::new();
    let (keys, day) = (vendor.keys(), 86_400);
    let until = |days: u64| vendor.token(&with("exp", json!(NOW + days * day)));
    let forged = || Vendor::new().token(&claims());
    for (env, file, stored, source, standing) in [
        (
            until(1),
            until(2),
            until(3),
            Source::Stored,
            Standing::Valid,
        ),
        (until(3), until(2), until(1), Source::Env, Standing::Valid),
        (until(2), until(2), until(2), Source::Env, Standing::Valid),
        (
            String::new(),
            until(2),
            until(2),
            Source::File,
            Standing::Valid,
        ),
        (
            forged(),
            until(1),
            String::new(),
            Source::File,
            Standing::Valid,
        ),
        (until(0), until(1), forged(), Source::File, Standing::Valid),
        (
            until(0),
            String::new(),
            forged(),
            Source::Env,
            Standing::Expired,
        ),
        (
            String::new(),
            forged(),
            forged(),
            Source::File,
            Standing::Invalid,
        ),
    ] {
        let candidates: Vec<_> = [
            (Source::Stored, stored),
            (Source::File, file),
            (Source::Env, env),
        ]
        .into_iter()
        .map(|(source, text)| Candidate { source, text })
        .collect();
        let boot = boot(&candidates, &keys, "self-hosted", NOW);
        assert_eq!((boot.source, boot.standing), (Some(source), standing));
    }
}

#[test]
fn a_test_key_issues_what_its_own_list_believes() {
    let vendor = Vendor::new();
    let pkcs8 = vendor.pair.to_pkcs8().unwrap();
    let terms = Terms {
        id: "T-1",
        org: "Test",
        tier: Some("team"),
        max_clusters: Some(3),
        issued_unix_s: NOW,
        expires_unix_s: NOW + YEAR,
        kid: None,
    };
    let text = issue(&terms, pkcs8.as_ref(), &vendor.public).unwrap();
    let license = verify(&text, &vendor.keys(), NOW).unwrap();
    assert_eq!((&*license.id, license.max_clusters), ("T-1", Some(3)));
    assert_eq!(
        verify(&text, &KeySet::embedded(), NOW),
        Err(Invalid::UnknownKey)
    );
    assert!(issue(&terms, &[1, 2, 3], &vendor.public).is_err());
    if KeySet::embedded().has_placeholder() {
        assert!(
            issue(&terms, pkcs8.as_ref(), &[0; 32]).is_err(),
            "an embedded key never issues"
        );
    }
    assert_eq!(vendor::FILES[0], "/etc/radar-hub/license");
}

proptest! {
    #[test]
    fn no_text_panics_or_is_believed(text in "[A-Za-z0-9_.=-]{0,300}") {
        let keys = KeySet::parse(&"11".repeat(32)).unwrap();
        prop_assert!(verify(&text, &keys, NOW).is_err());
        let candidates = [Candidate { source: Source::Env, text }];
        let _ = boot(&candidates, &keys, "self-hosted", NOW);
    }
}
