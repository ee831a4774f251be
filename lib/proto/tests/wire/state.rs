use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use culvert_proto::id::*;
use culvert_proto::token::{Digest, TokenText};
use culvert_proto::update::*;
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use zeroize::Zeroizing;

fn text() -> impl Strategy<Value = Arc<str>> {
    "\\PC{0,12}".prop_map(Into::into)
}

fn some_text() -> impl Strategy<Value = Option<Arc<str>>> {
    of("\\PC{1,12}".prop_map(Into::into))
}

fn cluster_id() -> impl Strategy<Value = ClusterId> {
    "[a-z0-9]([a-z0-9-]{0,4}[a-z0-9])?".prop_map(|id| id.parse().unwrap())
}

fn token() -> impl Strategy<Value = TokenHash> {
    (any::<[u8; 32]>(), text(), of(1u64..)).prop_map(|(digest, id, not_after_unix_ms)| TokenHash {
        digest: Digest(digest),
        id,
        not_after_unix_ms,
    })
}

fn route() -> impl Strategy<Value = Route> {
    let addr = "[0-9.]{7,12}:[0-9]{1,5}";
    let tcp = addr.prop_map(|addr| RouteKind::Tcp { addr: addr.into() });
    let sni = "(\\*\\.)?[a-z0-9]{1,9}\\.[a-z]{2,5}";
    let sealed = (sni, of(addr)).prop_map(|(sni, addr)| RouteKind::Sealed {
        sni: SniPattern::new(&sni).unwrap(),
        addr: addr.map(Into::into),
    });
    ("[a-z0-9]{1,63}", prop_oneof![tcp, sealed]).prop_map(|(service, kind)| Route {
        service: ServiceName::new(&service).unwrap(),
        kind,
    })
}

fn personal_token() -> impl Strategy<Value = PersonalToken> {
    let services = vec("[a-z*]{1,9}", 0..4);
    (token(), "[ -~]{1,30}", services).prop_map(|(token, principal, services)| PersonalToken {
        digest: token.digest,
        id: token.id,
        principal: principal.into(),
        not_after_unix_ms: token.not_after_unix_ms,
        services: services.into_iter().map(Into::into).collect(),
    })
}

fn access() -> impl Strategy<Value = Access> {
    let mode = prop_oneof![Just(Mode::Tier), Just(Mode::Shared), Just(Mode::Raw)];
    let claim = prop_oneof![Just(UserClaim::Subject), Just(UserClaim::Email)];
    let tier = (0usize..5).prop_map(|n| Tier::ALL[n]);
    let grant = ("\\PC{1,12}", tier, of(1u64..)).prop_map(|(group, tier, end)| Grant {
        group: group.into(),
        tier,
        not_after_unix_ms: end,
    });
    let groups = vec("\\PC{1,12}", 0..4);
    (
        mode,
        vec(grant, 0..4),
        some_text(),
        groups,
        any::<bool>(),
        claim,
    )
        .prop_map(
            |(mode, grants, prefix, groups, read_only, user_claim)| Access {
                mode,
                grants,
                prefix,
                allowed_groups: groups.into_iter().map(Into::into).collect(),
                read_only,
                user_claim,
            },
        )
}

fn cluster(id: ClusterId) -> impl Strategy<Value = Arc<ClusterState>> {
    let policy = prop_oneof![
        Just(Policy::Spread),
        Just(Policy::Replace),
        Just(Policy::Refuse)
    ];
    let kind = prop_oneof![Just(TargetKind::Http), Just(TargetKind::Kube)];
    let plain = any::<(bool, bool, bool, u64, u32, u32, u32)>();
    let lists = (
        vec(token(), 0..4),
        vec((text(), text()), 0..4),
        vec(route(), 0..4),
        vec(personal_token(), 0..4),
        access(),
    );
    (plain, policy, kind, some_text(), some_text(), lists).prop_map(
        move |(plain, policy, kind, addr, name, lists)| {
            let (tokens, labels, routes, personal_tokens, access) = lists;
            let (
                enabled,
                allow_impersonation,
                audit_tunnel,
                floor,
                streams_max,
                requests_max,
                rate,
            ) = plain;
            Arc::new(ClusterState {
                id: id.clone(),
                enabled,
                policy,
                tokens,
                epoch_floor: Epoch(floor),
                streams_max,
                requests_max,
                rate_per_second: rate,
                allow_impersonation,
                target: Target { kind, addr },
                name,
                labels,
                routes,
                personal_tokens,
                access,
                audit_tunnel,
                certificates_from_unix_s: floor / 1_000,
            })
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let cas = vec(
        vec(any::<u8>(), 1..40),
        0..=culvert_proto::limits::AGENT_CAS_MAX,
    );
    (any::<(u32, u32)>(), of(sign_in()), cas).prop_map(|(numbers, sign_in, cas)| Settings {
        rate_per_second: numbers.0,
        snapshot_age_max_s: numbers.1,
        sign_in: sign_in.map(Arc::new),
        agent_cas: cas.into_iter().map(Into::into).collect(),
    })
}

fn sign_in() -> impl Strategy<Value = SignIn> {
    let key = any::<([u8; 8], [u8; 32])>().prop_map(|(id, secret)| CookieKey {
        id,
        secret: Zeroizing::new(secret),
    });
    let origins = vec("https://[a-z]{1,9}", 0..3);
    (vec(key, 1..3), any::<(u32, u32)>(), origins).prop_map(|(keys, life, origins)| SignIn {
        keys,
        idle_s: life.0,
        life_s: life.1,
        origins: origins.into_iter().map(Into::into).collect(),
    })
}

fn ended() -> impl Strategy<Value = Ended> {
    (any::<u64>(), btree_map("\\PC{1,12}", 1u64.., 0..4)).prop_map(|(floor, subjects)| Ended {
        floor_unix_ms: floor,
        subjects: subjects.into_iter().map(|(s, at)| (s.into(), at)).collect(),
    })
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let clusters = btree_map(cluster_id(), Just(()), 0..5)
        .prop_flat_map(|ids| ids.into_keys().map(cluster).collect::<Vec<_>>());
    (any::<(u64, u64)>(), text(), settings(), clusters, ended()).prop_map(
        |((generation, issued_unix_ms), hub_id, settings, clusters, ended)| Snapshot {
            generation: Generation(generation),
            hub_id,
            issued_unix_ms,
            settings,
            clusters,
            ended: Arc::new(ended),
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        cluster_id().prop_flat_map(cluster).prop_map(Change::Upsert),
        cluster_id().prop_map(Change::Remove),
        settings().prop_map(Change::Settings),
        ("\\PC{1,12}", 1u64..).prop_map(|(subject, epoch)| Change::End {
            subject: subject.into(),
            epoch,
        }),
    ]
}

fn update() -> impl Strategy<Value = Update> {
    (any::<(u64, u64)>(), vec(change(), 0..6)).prop_map(
        |((generation, issued_unix_ms), changes)| Update {
            generation: Generation(generation),
            issued_unix_ms,
            changes,
        },
    )
}

fn session() -> impl Strategy<Value = SessionFact> {
    let plain = any::<([u8; 16], u64, u64, u64, u32, u32, bool)>();
    let texts = (
        text(),
        text(),
        text(),
        text(),
        text(),
        vec((text(), text()), 0..3),
    );
    (cluster_id(), plain, texts).prop_map(|(cluster, plain, texts)| {
        let (instance, epoch, connected, seen, rtt_ms, streams, draining) = plain;
        let (protocol, version, region, address, token_id, labels) = texts;
        SessionFact {
            connected_unix_ms: connected,
            last_seen_unix_ms: seen,
            rtt_ms,
            streams,
            protocol,
            version,
            region,
            address,
            token_id,
            labels,
            draining,
            ..SessionFact::new(cluster, InstanceId(instance), Epoch(epoch))
        }
    })
}

fn report() -> impl Strategy<Value = Report> {
    let used = (cluster_id(), text(), any::<u64>()).prop_map(|(cluster, token_id, at)| TokenUse {
        cluster,
        token_id,
        last_used_unix_ms: at,
    });
    let rotated =
        (cluster_id(), any::<([u8; 16], [u8; 32])>()).prop_map(|(cluster, (instance, digest))| {
            RotatedFact {
                cluster,
                instance: InstanceId(instance),
                digest: Digest(digest),
            }
        });
    let plain = any::<(u64, u64, bool)>();
    (
        plain,
        text(),
        text(),
        vec(session(), 0..4),
        vec(used, 0..4),
        vec(rotated, 0..4),
    )
        .prop_map(
            |(
                (generation, started, draining),
                dataplane_id,
                version,
                sessions,
                token_uses,
                rotated,
            )| {
                Report {
                    generation: Generation(generation),
                    dataplane_id,
                    version,
                    started_unix_ms: started,
                    draining,
                    sessions,
                    token_uses,
                    rotated,
                }
            },
        )
}

proptest! {
    #[test]
    fn snapshot_round_trip(snapshot in snapshot()) {
        let bytes = snapshot.encode();
        prop_assert_eq!(Snapshot::decode(&bytes), Ok(snapshot));
    }

    #[test]
    fn update_round_trip(update in update()) {
        let bytes = update.encode();
        prop_assert_eq!(Update::decode(&bytes), Ok(update));
    }

    #[test]
    fn report_round_trip(report in report()) {
        let bytes = report.encode();
        prop_assert_eq!(Report::decode(&bytes), Ok(report));
    }

    #[test]
    fn ack_round_trip(generation: u64) {
        let ack = Ack { generation: Generation(generation) };
        prop_assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
    }

    /// Canonical: what is read and written again is what was read, unless a field was changed
    /// into one of a later version, which is skipped.
    #[test]
    fn one_changed_byte_never_gives_a_second_form(
        snapshot in snapshot(), place: usize, byte: u8,
    ) {
        let mut bytes = snapshot.encode().to_vec();
        let place = place % bytes.len();
        bytes[place] = byte;
        if let Ok(read) = Snapshot::decode(&bytes) {
            let again = read.encode();
            prop_assert!(again.len() <= bytes.len());
            if again.len() == bytes.len() {
                prop_assert_eq!(&again[..], &bytes[..]);
            }
        }
    }

    /// Every cut is refused or loses whole fields at the end; nothing is invented.
    #[test]
    fn every_cut_is_a_prefix(snapshot in snapshot(), cut: usize) {
        let bytes = snapshot.encode();
        let cut = cut % bytes.len();
        if let Ok(read) = Snapshot::decode(&bytes[..cut]) {
            prop_assert_eq!(&read.encode()[..], &bytes[..cut]);
        }
    }

    #[test]
    fn decoders_never_panic(tail: Vec<u8>, domain in 0usize..6) {
        let domains: [&[u8]; 6] = [
            b"culvert-snapshot/1\0", b"culvert-update/1\0", b"culvert-rotation/1\0",
            b"culvert-report/1\0", b"culvert-ack/1\0", b"",
        ];
        let mut bytes = domains[domain].to_vec();
        bytes.extend_from_slice(&tail);
        let mut bytes = Bytes::from(bytes);
        let _ = StateMessage::decode(&bytes);
        let _ = Report::decode(&bytes);
        let _ = Ack::decode(&bytes);
        while let Ok(Some(_)) = SignedFrame::take(&mut bytes) {}
    }

    #[test]
    fn hostile_tlvs(fields in vec((0u8..16, any::<u32>(), vec(any::<u8>(), 0..30)), 0..8)) {
        let mut bytes = b"culvert-snapshot/1\0".to_vec();
        for (field, length, value) in fields {
            bytes.push(field);
            let honest = u32::try_from(value.len()).unwrap();
            let length = if length % 5 == 0 { length } else { honest };
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&value);
        }
        let _ = Snapshot::decode(&bytes);
    }

    #[test]
    fn frames_stand_one_behind_the_other(
        bodies in vec(vec(any::<u8>(), 0..50), 1..5), key_id: [u8; 8], cut: usize
    ) {
        let frames = bodies.into_iter().map(|body| SignedFrame {
            key_id,
            signature: [7; 64],
            body: Bytes::from(body),
        });
        let frames: Vec<_> = frames.collect();
        let file: Bytes = frames.iter().flat_map(SignedFrame::encode).collect();
        let mut rest = file.clone();
        for frame in &frames {
            prop_assert_eq!(SignedFrame::take(&mut rest), Ok(Some(frame.clone())));
        }
        prop_assert_eq!(SignedFrame::take(&mut rest), Ok(None));
        // Cut anywhere, the whole ones before it count and nothing else does.
        let mut rest = file.slice(..cut % file.len());
        let mut whole = 0;
        while let Ok(Some(frame)) = SignedFrame::take(&mut rest) {
            prop_assert_eq!(&frame, &frames[whole]);
            whole += 1;
        }
        prop_assert!(whole < frames.len());
        let left = rest.clone();
        if SignedFrame::take(&mut rest).is_err() {
            prop_assert_eq!(rest, left);
        }
    }

    /// The state follows a plain map, and a snapshot of it is the same state.
    #[test]
    fn state_follows_updates(first in snapshot(), steps in vec((vec(change(), 0..4), 0u64..3), 0..8)) {
        let first = Snapshot { generation: Generation(100), ..first };
        let mut model: BTreeMap<ClusterId, Arc<ClusterState>> =
            first.clusters.iter().map(|c| (c.id.clone(), c.clone())).collect();
        let mut settings = first.settings.clone();
        let mut state = State::from_snapshot(first);
        for (changes, ahead) in steps {
            let have = state.generation;
            let got = Generation(have.0 + ahead);
            let update = Update { generation: got, issued_unix_ms: got.0, changes };
            let before = state.clone();
            match ahead {
                0 => {
                    prop_assert_eq!(state.apply(&update), Err(ApplyError::Older { have, got }));
                    prop_assert_eq!(&state, &before);
                }
                1 => {
                    prop_assert_eq!(state.apply(&update), Ok(got));
                    for change in &update.changes {
                        match change {
                            Change::Upsert(c) => drop(model.insert(c.id.clone(), c.clone())),
                            Change::Remove(id) => drop(model.remove(id)),
                            Change::Settings(to) => settings = to.clone(),
                            Change::End { .. } => {}
                        }
                    }
                }
                _ => {
                    let error = state.apply(&update).unwrap_err();
                    prop_assert!(error.needs_snapshot());
                    prop_assert_eq!(&state, &before);
                }
            }
            prop_assert_eq!(&state.clusters, &model);
            prop_assert_eq!(&state.settings, &settings);
            let read = Snapshot::decode(&state.to_snapshot().encode());
            prop_assert_eq!(read, Ok(state.to_snapshot()));
            prop_assert_eq!(State::from_snapshot(state.to_snapshot()), state.clone());
        }
    }
}

#[test]
fn unknown_fields_of_later_versions_are_skipped() {
    let snapshot = Snapshot {
        generation: Generation(3),
        ..Snapshot::default()
    };
    let mut bytes = snapshot.encode().to_vec();
    for _ in 0..2 {
        bytes.extend_from_slice(&[200, 0, 0, 0, 1, 42]);
    }
    assert_eq!(Snapshot::decode(&bytes), Ok(snapshot));
}

#[test]
fn an_unknown_change_is_an_error_because_the_table_would_be_wrong() {
    let mut bytes = b"culvert-update/1\0".to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend_from_slice(&[3, 0, 0, 0, 6, 9, 0, 0, 0, 1, 0]);
    assert!(Update::decode(&bytes).is_err());
}

#[test]
fn refusals() {
    let later = Snapshot::decode(b"culvert-snapshot/2\0").unwrap_err();
    assert!(later.to_string().contains("culvert-snapshot/2"), "{later}");
    let base = || b"culvert-snapshot/1\0".to_vec();
    let with = |tail: &[u8]| Snapshot::decode(&[base(), tail.to_vec()].concat());
    assert_eq!(
        with(&[1, 0, 0]).unwrap_err(),
        DecodeError::Short("snapshot")
    );
    assert_eq!(
        with(&[1, 0xff, 0xff, 0xff, 0xff]).unwrap_err(),
        DecodeError::Short("snapshot")
    );
    let zero = with(&[1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap_err();
    assert_eq!(
        zero,
        DecodeError::Field {
            part: "snapshot",
            field: 1
        },
        "defaults are left out"
    );
    let one = [1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1];
    assert!(with(&one).is_ok());
    let twice = with(&[one, one].concat()).unwrap_err();
    assert_eq!(
        twice,
        DecodeError::Field {
            part: "snapshot",
            field: 1
        }
    );
    let a: Arc<_> = ClusterState::new("a".parse().unwrap()).into();
    let b: Arc<_> = ClusterState::new("b".parse().unwrap()).into();
    for clusters in [vec![b, a.clone()], vec![a.clone(), a]] {
        let disorder = Snapshot {
            clusters,
            ..Snapshot::default()
        };
        assert!(Snapshot::decode(&disorder.encode()).is_err());
    }
}

#[test]
fn older_and_foreign_snapshots_are_refused() {
    let of = |generation, hub: &str| Snapshot {
        generation: Generation(generation),
        hub_id: hub.into(),
        ..Snapshot::default()
    };
    let mut state = State::default();
    assert_eq!(state.replace(of(5, "a")), Ok(Generation(5)));
    assert!(matches!(
        state.replace(of(4, "a")),
        Err(ApplyError::Older { .. })
    ));
    assert!(matches!(
        state.replace(of(9, "b")),
        Err(ApplyError::OtherHub { .. })
    ));
    assert_eq!(state.replace(of(5, "a")), Ok(Generation(5)));
    let last = Update {
        generation: Generation(u64::MAX),
        ..Update::default()
    };
    assert!(state.apply(&last).unwrap_err().needs_snapshot());
}

#[test]
fn token_and_label_counts_are_bounded() {
    let hash = |n: u8| TokenHash {
        digest: Digest([n; 32]),
        id: "".into(),
        not_after_unix_ms: None,
    };
    for (count, fits) in [(15, true), (16, true), (17, false)] {
        let tokens = (0..count).map(hash).collect();
        let cluster = ClusterState {
            tokens,
            ..ClusterState::new("a".parse().unwrap())
        };
        assert_eq!(cluster.check().is_ok(), fits, "{count} tokens");
    }
    for (count, fits) in [(31, true), (32, true), (33, false)] {
        let labels = vec![("k".into(), "v".into()); count];
        let cluster = ClusterState {
            labels,
            ..ClusterState::new("a".parse().unwrap())
        };
        assert_eq!(cluster.check().is_ok(), fits, "{count} labels");
    }
    let unnamed = ClusterState {
        name: Some("".into()),
        ..ClusterState::new("a".parse().unwrap())
    };
    assert!(unnamed.check().is_err());
}

#[test]
fn access_policies_are_bounded_and_nothing_odd_is_read() {
    let grant = |group: &str| Grant {
        group: group.into(),
        tier: Tier::Read,
        not_after_unix_ms: None,
    };
    let of = |access| ClusterState {
        access,
        ..ClusterState::new("a".parse().unwrap())
    };
    for (count, length, fits) in [
        (512, 3, true),
        (513, 3, false),
        (1, 256, true),
        (1, 257, false),
    ] {
        let group = "g".repeat(length);
        let grants = of(Access {
            grants: vec![grant(&group); count],
            ..Access::default()
        });
        let allowed = of(Access {
            allowed_groups: vec![group.as_str().into(); count],
            ..Access::default()
        });
        assert_eq!(grants.check().is_ok(), fits, "{count} grants of {length}");
        assert_eq!(allowed.check().is_ok(), fits, "{count} groups of {length}");
    }
    let empty = of(Access {
        prefix: Some("".into()),
        ..Access::default()
    });
    assert!(empty.check().is_err());
}

/// A sign-in without a key would open nothing; three keys are more than a ring.
#[test]
fn a_ring_has_one_or_two_keys() {
    for (count, fits) in [(0, false), (1, true), (2, true), (3, false)] {
        let key = CookieKey {
            id: [1; 8],
            secret: Zeroizing::new([2; 32]),
        };
        let snapshot = Snapshot {
            settings: Settings {
                sign_in: Some(Arc::new(SignIn {
                    keys: vec![key; count],
                    idle_s: 1,
                    life_s: 2,
                    origins: Vec::new(),
                })),
                ..Settings::default()
            },
            ..Snapshot::default()
        };
        assert_eq!(
            Snapshot::decode(&snapshot.encode()).is_ok(),
            fits,
            "{count}"
        );
    }
}

#[test]
fn who_signed_out_is_forgotten_once_no_session_can_be_that_old() {
    let mut state = State {
        generation: Generation(1),
        settings: Settings {
            sign_in: Some(Arc::new(SignIn {
                keys: Vec::new(),
                idle_s: 10,
                life_s: 100,
                origins: Vec::new(),
            })),
            ..Settings::default()
        },
        ..State::default()
    };
    let end = |subject: &str, epoch| Change::End {
        subject: subject.into(),
        epoch,
    };
    let mut step = |issued_unix_ms, changes| {
        let update = Update {
            generation: Generation(state.generation.0 + 1),
            issued_unix_ms,
            changes,
        };
        state.apply(&update).unwrap();
        state.ended.clone()
    };
    let held = step(500_000, vec![end("ana", 500_000), end("ben", 450_000)]);
    assert!(!held.allows("ana", 0, 499_000) && held.allows("ana", 500_000, 500_001));
    assert!(!held.allows("ben", 449_999, 449_000));
    let held = step(550_000, vec![]);
    assert_eq!(
        held.subjects.keys().map(|it| &**it).collect::<Vec<_>>(),
        ["ana"]
    );
    assert_eq!(*step(600_000, vec![]), Ended::default());
}

#[test]
fn rotation_round_trip_and_dispatch() {
    let rotation = Rotation {
        cluster: "a".parse().unwrap(),
        token_id: "t".into(),
        not_before_unix_s: 5,
        token: TokenText::new("a-shared-secret-of-a-file").unwrap(),
    };
    let bytes = Bytes::copy_from_slice(&rotation.encode());
    let Ok(StateMessage::Rotation(read)) = StateMessage::decode(&bytes) else {
        panic!("no rotation")
    };
    assert_eq!(read.encode(), rotation.encode());
    let update = Update::default().encode();
    assert!(matches!(
        StateMessage::decode(&update),
        Ok(StateMessage::Update(_))
    ));
    let snapshot = Snapshot::default().encode();
    assert!(matches!(
        StateMessage::decode(&snapshot),
        Ok(StateMessage::Snapshot(_))
    ));
}
