//! As whom requests arrive, and what a client cannot say about that.

use anyhow::Result;
use serde_json::json;

use super::hub::{OWN, PASSWORD, People, Signed, personal_token, values};
use crate::hub::ready;

/// Everything that could pass for an identity.
const SMUGGLED: &[&str] = &[
    "Authorization",
    "Impersonate-User",
    "Impersonate-Group",
    "Impersonate-Uid",
    "Impersonate-Extra-Scopes",
    "X-Forwarded-User",
    "X-Forwarded-Groups",
    "X-Forwarded-Prefix",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "Forwarded",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Remote-Extra-A",
    "X-Radar-Role",
    "Culvert-Principal",
    "X-Auth-Request-User",
    "Remote-User",
    "X-Real-IP",
];

/// `Name`, `NAME`, `name`, `NAME_WITH_UNDERSCORES` and `Name_With-Both`.
fn spellings(name: &str) -> Vec<String> {
    let half = name.replacen('-', "_", 1);
    let mut all = vec![
        name.to_owned(),
        name.to_uppercase(),
        name.to_lowercase(),
        name.replace('-', "_"),
        name.to_uppercase().replace('-', "_"),
        half,
    ];
    all.sort();
    all.dedup();
    all
}

#[test]
fn people_arrive_as_themselves_whatever_their_heads_say() -> Result<()> {
    if !ready("people_arrive_as_themselves_whatever_their_heads_say", &[]) {
        return Ok(());
    }
    let people = People::start()?;
    let ana = Signed::new("ana").of(&["ops", "dev"]).cookie(PASSWORD)?;
    let mut tried = 0;
    for name in SMUGGLED {
        for spelling in spellings(name) {
            if spelling.eq_ignore_ascii_case("authorization") {
                continue;
            }
            let line = format!("{spelling}: system:masters");
            for cluster in ["kube", "web"] {
                let path = format!("/c/{cluster}/id/{tried}?x=%2F..&y");
                let answer = people.get(&path, &[&ana, &line, &line])?;
                assert_eq!(answer.status, 200, "{line}: {answer:?}");
                tried += 1;
            }
        }
    }
    println!("{tried} requests with smuggled identities");
    assert!(tried > 100);
    let heads = people.kube.heads();
    let seen = heads.iter().filter(|head| head.contains("/id/")).skip(1);
    for head in seen {
        assert!(!head.contains("system:masters"), "{head}");
        assert!(head.starts_with("GET /id/"), "the prefix is gone: {head}");
        assert_eq!(values(head, "impersonate-user"), ["ana"], "{head}");
        assert_eq!(values(head, "impersonate-group"), ["culvert-tier:write"]);
        for name in [
            "x-forwarded-user",
            "x-forwarded-for",
            "cookie",
            "authorization",
        ] {
            assert_eq!(values(head, name), [""; 0], "{name} in {head}");
        }
    }
    for head in people.web.heads() {
        assert!(!head.contains("system:masters"), "{head}");
        assert_eq!(values(&head, "x-forwarded-user"), ["ana"], "{head}");
        assert_eq!(values(&head, "x-forwarded-groups"), ["culvert-tier:write"]);
        assert_eq!(values(&head, "x-forwarded-prefix"), ["/c/web"]);
        for name in [
            "impersonate-user",
            "x-forwarded-for",
            "cookie",
            "authorization",
        ] {
            assert_eq!(values(&head, name), [""; 0], "{name} in {head}");
        }
    }

    // Named in Connection, an identity would be taken out again: an attack, refused.
    let before = people.kube.heads().len();
    for name in [
        "Impersonate-User",
        "impersonate_group",
        "X-Forwarded-User",
        "Cookie",
    ] {
        let line = format!("Connection: close, {name}");
        let answer = people.get("/c/kube/id/x", &[&ana, &line])?;
        assert_eq!(answer.status, 400, "{line}: {answer:?}");
    }
    assert_eq!(people.kube.heads().len(), before);
    Ok(())
}

#[test]
fn each_mode_sends_what_it_says_and_nobody_acts_as_the_cluster() -> Result<()> {
    if !ready(
        "each_mode_sends_what_it_says_and_nobody_acts_as_the_cluster",
        &[],
    ) {
        return Ok(());
    }
    let people = People::start()?;
    let groups = ["ops", "system:masters", "odd,group"];
    let mut ana = Signed::new("ana").of(&groups);
    ana.session.email = "ana@example.test".to_owned();
    let line = ana.cookie(PASSWORD)?;
    let last = |cluster: &str| {
        let answer = people.get(&format!("/c/{cluster}/id/x"), &[&line])?;
        assert_eq!(answer.status, 200, "{answer:?}");
        let upstream = if cluster == "kube" {
            &people.kube
        } else {
            &people.web
        };
        anyhow::Ok(upstream.heads().pop().unwrap_or_default())
    };
    for cluster in ["kube", "web"] {
        people.access(cluster, json!({"mode": "raw", "username_claim": "email"}))?;
    }
    let head = last("kube")?;
    assert_eq!(values(&head, "impersonate-user"), ["ana@example.test"]);
    assert_eq!(
        values(&head, "impersonate-group"),
        ["culvert:odd,group", "culvert:ops"]
    );
    // A list cannot say a group with a comma: it would read as two.
    assert_eq!(values(&last("web")?, "x-forwarded-groups"), ["culvert:ops"]);

    let shared = json!({"mode": "shared", "allowed_groups": ["ops"]});
    people.access("kube", shared)?;
    let head = last("kube")?;
    assert!(!head.to_lowercase().contains("impersonate-"), "{head}");

    people.access(
        "kube",
        json!({"grants": [{"group": "ops", "tier": "admin"}]}),
    )?;
    for (subject, status, word) in [
        ("", 403, "no_identity"),
        (" ", 403, "no_identity"),
        ("system:admin", 403, "forbidden"),
        ("System:serviceaccount:kube-system:x", 403, "forbidden"),
        ("a\r\nImpersonate-User: root", 403, "forbidden"),
    ] {
        let line = Signed::new(subject).of(&["ops"]).cookie(PASSWORD)?;
        let before = people.kube.heads().len();
        let answer = people.get("/c/kube/id/x", &[&line])?;
        assert_eq!(answer.status, status, "{subject:?}: {answer:?}");
        assert_eq!(answer.header("culvert-error"), Some(word), "{subject:?}");
        assert_eq!(people.kube.heads().len(), before, "{subject:?} arrived");
    }
    let mut silent = Signed::new("ana").of(&["ops"]);
    silent.session.email = String::new();
    people.access("kube", json!({"mode": "raw", "username_claim": "email"}))?;
    let answer = people.get("/c/kube/id/x", &[&silent.cookie(PASSWORD)?])?;
    assert_eq!(
        answer.header("culvert-error"),
        Some("no_identity"),
        "{answer:?}"
    );
    Ok(())
}

#[test]
fn a_personal_token_enters_where_it_is_granted_and_is_consumed() -> Result<()> {
    if !ready(
        "a_personal_token_enters_where_it_is_granted_and_is_consumed",
        &[],
    ) {
        return Ok(());
    }
    let people = People::start()?;
    people.access(
        "kube",
        json!({"grants": [{"group": "user:ci", "tier": "maintain"}]}),
    )?;
    let whole = personal_token(&people.control, "ci", "kube/*")?;
    let single = personal_token(&people.control, "ci", "kube/pg")?;
    let other = personal_token(&people.control, "ben", "kube/*")?;
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    // A program with a token has no page, so no Origin.
    let answer = people.ask_with("POST", "/c/kube/id/", &[&bearer(&whole)], b"hi")?;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "hi"),
        "{answer:?}"
    );
    let head = people.kube.heads().pop().unwrap_or_default();
    assert_eq!(values(&head, "impersonate-user"), ["ci"]);
    assert_eq!(
        values(&head, "impersonate-group"),
        ["culvert-tier:maintain"]
    );
    assert!(!head.contains(&whole), "the token is consumed here: {head}");
    let ana = Signed::new("ana").of(&["ops"]).cookie(PASSWORD)?;
    let before = people.kube.heads().len();
    for (token, cluster, status) in [
        (single.as_str(), "kube", 403),
        (&other, "kube", 403),
        (&whole, "web", 401),
        (&whole, "nowhere", 401),
        ("cvp_nonsense", "kube", 401),
        ("", "kube", 401),
    ] {
        // A bad token is not mended by a good cookie.
        let lines = [bearer(token), ana.clone()];
        let lines = [lines[0].as_str(), &lines[1]];
        let answer = people.get(&format!("/c/{cluster}/id/x"), &lines)?;
        assert_eq!(answer.status, status, "{token} {cluster}: {answer:?}");
    }
    assert_eq!(people.kube.heads().len(), before);
    Ok(())
}

#[test]
fn the_agent_holds_its_own_ceiling() -> Result<()> {
    if !ready("the_agent_holds_its_own_ceiling", &[]) {
        return Ok(());
    }
    let users = ["--impersonate-users", "ana,ben-*", "--impersonate-groups"];
    let arguments = [&users[..], &["culvert-tier:*", "--require-identity"]].concat();
    let people = People::with(&[], &arguments)?;
    let ask = |subject: &str| {
        let line = Signed::new(subject).of(&["ops"]).cookie(PASSWORD)?;
        people.ask("POST", "/c/kube/id/x", &[&line, OWN])
    };
    for (subject, word) in [
        ("ana", None),
        ("ben-2", None),
        ("eve", Some("identity_not_allowed")),
        ("anab", Some("identity_not_allowed")),
    ] {
        let answer = ask(subject)?;
        assert_eq!(
            answer.header("culvert-error"),
            word,
            "{subject}: {answer:?}"
        );
        let status = if word.is_some() { 403 } else { 200 };
        assert_eq!(answer.status, status, "{subject}: {answer:?}");
    }
    // What acts as nobody would act with the agent's own rights.
    let machine = crate::client::get(
        &people.bed.client,
        crate::hub::internal(),
        "/tunnel/kube/id/x",
    )?;
    assert_eq!(
        machine.header("culvert-error"),
        Some("no_identity"),
        "{machine:?}"
    );
    people.access("kube", json!({"mode": "shared", "allowed_groups": ["ops"]}))?;
    assert_eq!(ask("ana")?.header("culvert-error"), Some("no_identity"));
    Ok(())
}
