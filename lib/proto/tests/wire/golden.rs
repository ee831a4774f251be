//! One committed line of hexadecimal digits for each structure. A changed line is a changed wire:
//! old agents and old snapshots would not be understood any more.
//!
//! `CULVERT_BLESS=1` writes the file anew, for a structure that was added.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use culvert_proto::channel::{ChannelAnswer, ChannelOffer, Form, Preface};
use culvert_proto::control::{Grant, *};
use culvert_proto::hello::*;
use culvert_proto::id::*;
use culvert_proto::join::JoinString;
use culvert_proto::open::*;
use culvert_proto::token::{Digest, TokenText, mint};
use culvert_proto::update::{self, *};
use zeroize::Zeroizing;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/wire.txt");

#[test]
fn bytes_are_as_committed() {
    let mut actual = String::new();
    for (name, bytes) in structures() {
        write!(actual, "{name} ").unwrap();
        for byte in bytes {
            write!(actual, "{byte:02x}").unwrap();
        }
        actual.push('\n');
    }
    if std::env::var_os("CULVERT_BLESS").is_some() {
        std::fs::write(FILE, &actual).unwrap();
    }
    let committed = std::fs::read_to_string(FILE).unwrap();
    for (actual, committed) in actual.lines().zip(committed.lines()) {
        assert_eq!(actual, committed);
    }
    assert_eq!(actual.lines().count(), committed.lines().count());
}

/// The examples of docs/protocol.md, written out by hand from its tables.
#[test]
fn bytes_are_as_documented() {
    let beat = ControlMessage::Beat { nonce: 7 }.encode().unwrap();
    assert_eq!(&beat[..], [1, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7]);

    let bye = Bye {
        reason: ByeReason::Replaced,
        text: "newer".into(),
    };
    let bye = ControlMessage::Bye(bye).encode().unwrap();
    assert_eq!(&bye[..], b"\x0c\x00\x00\x06\x01newer");

    let mut header = StreamHeader::new(StreamKind::Tcp);
    header.payload_follows = true;
    header.target = Some("db".into());
    header.dial_deadline_ms = Some(30_000);
    let bytes = header.encode().unwrap();
    assert_eq!(
        &bytes[..],
        b"\x02\x01\x00\x0c\x01\x00\x02db\x04\x00\x04\x00\x00\x75\x30"
    );

    let answer = DialAnswer {
        code: DialCode::Refused,
        reason: "no".into(),
    };
    assert_eq!(&answer.encode()[..], b"\x02\x00\x00\x02no");

    let snapshot = Snapshot {
        generation: Generation(1),
        ..Snapshot::default()
    };
    let mut expected = b"culvert-snapshot/1\0".to_vec();
    expected.extend_from_slice(&[1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(snapshot.encode()[..], expected[..]);
}

fn structures() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = streams();
    all.extend(hellos());
    all.extend(messages());
    all.extend(states());
    all.extend(channels());
    all.extend(people());
    all
}

fn streams() -> Vec<(&'static str, Vec<u8>)> {
    let header = StreamHeader {
        kind: StreamKind::Http,
        payload_follows: true,
        target: Some("web".into()),
        request_id: Some(RequestId([0x11; 16])),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        dial_deadline_ms: Some(30_000),
        client_addr: Some("192.0.2.7:4711".into()),
        principal: Some("alice".into()),
        offer: None,
        early_bytes: None,
    };
    let control = StreamHeader::new(StreamKind::Control);
    let answer = DialAnswer {
        code: DialCode::UnknownTarget,
        reason: "no target db".into(),
    };
    let join = JoinString {
        hubs: vec![
            "wss://hub.example/agent".into(),
            "wss://hub2.example/agent".into(),
        ],
        cluster: cluster(),
        token: mint([1; 8], [2; 32]),
        spki_pin: Some([0xab; 32]),
        expires_unix_s: 1_900_000_000,
        register: None,
    };
    let enrol = JoinString {
        hubs: vec!["wss://hub.example:9444/api/agents/connect".into()],
        cluster: cluster(),
        token: TokenText::new(&format!("cve_{}", "A".repeat(43))).unwrap(),
        spki_pin: None,
        expires_unix_s: 1_900_000_000,
        register: Some("https://hub.example/api/agents/register".into()),
    };
    vec![
        ("stream_header_control", control.encode().unwrap().to_vec()),
        ("stream_header_http", header.encode().unwrap().to_vec()),
        (
            "dial_answer_connected",
            DialAnswer::connected().encode().to_vec(),
        ),
        ("dial_answer_unknown_target", answer.encode().to_vec()),
        (
            "join_string_text",
            join.encode().unwrap().as_bytes().to_vec(),
        ),
        (
            "join_string_enrol_text",
            enrol.encode().unwrap().as_bytes().to_vec(),
        ),
    ]
}

/// What data channels and routes added.
fn channels() -> Vec<(&'static str, Vec<u8>)> {
    let mut offering = StreamHeader::new(StreamKind::Tcp);
    offering.payload_follows = true;
    offering.early_bytes = Some(517);
    offering.offer = Some(ChannelOffer {
        form: Form::Tls,
        ticket: Ticket {
            id: [0x22; 16],
            key: [0x33; 32],
        },
    });
    let preface = Preface {
        form: Form::Plain,
        ticket: [0x22; 16],
        epoch: Epoch(9),
    };
    let tickets = ControlMessage::Tickets(Tickets {
        ttl_s: 30,
        form: Form::Plain,
        tickets: vec![Ticket {
            id: [3; 16],
            key: [4; 32],
        }],
    });
    let routed = Update {
        generation: Generation(14),
        issued_unix_ms: 1_800_000_000_002,
        changes: vec![Change::Upsert(Arc::new(ClusterState {
            routes: routes(),
            personal_tokens: vec![PersonalToken {
                digest: Digest([8; 32]),
                id: "p1".into(),
                principal: "alice".into(),
                not_after_unix_ms: Some(77),
                services: vec!["pg".into(), "*".into()],
            }],
            ..ClusterState::new(cluster())
        }))],
    };
    vec![
        ("stream_header_offer", offering.encode().unwrap().to_vec()),
        ("channel_preface", preface.encode(&[0x44; 32]).to_vec()),
        ("channel_answer", ChannelAnswer::PoolFull.encode().to_vec()),
        ("tickets_plain", tickets.encode().unwrap().to_vec()),
        ("update_routes", routed.encode().to_vec()),
    ]
}

/// Header fields as lines of text, in the order in which they are written.
fn hellos() -> Vec<(&'static str, Vec<u8>)> {
    let caps = Caps::parse("channel,status,drain,rotate,renew,window-32k");
    let hello = AgentHello {
        instance: Some(InstanceId([0x22; 16])),
        version: "0.1.0".into(),
        caps,
        cluster: Some(cluster()),
    };
    let native = HelloAnswer::new(CarrierKind::Native, Epoch(77), caps);
    let older = Caps::parse("status,drain,rotate");
    let websocket = HelloAnswer::new(CarrierKind::WebSocket, Epoch(77), older);
    let lines = |fields: Vec<(&'static str, String)>| {
        let lines = fields
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"));
        lines.collect::<String>().into_bytes()
    };
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    vec![
        ("hello_request", lines(request_headers(&hello, key, false))),
        (
            "hello_request_websocket",
            lines(request_headers(&hello, key, true)),
        ),
        ("hello_answer", lines(native.headers())),
        ("hello_answer_websocket", lines(websocket.headers())),
    ]
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let all = [
        ControlMessage::Beat { nonce: 1 },
        ControlMessage::Echo { nonce: u64::MAX },
        ControlMessage::Hello(AgentFacts {
            version: "0.1.0".into(),
            targets: vec!["web".into(), "db".into()],
            streams_max: Some(1_024),
            region: "eu-1".into(),
            labels: vec![("env".into(), "prod".into())],
            platform: "linux/x86_64".into(),
        }),
        ControlMessage::Grant(Grant {
            epoch: Epoch(9),
            targets: vec!["web".into()],
        }),
        ControlMessage::Tickets(Tickets {
            ttl_s: 30,
            form: Form::Tls,
            tickets: vec![Ticket {
                id: [3; 16],
                key: [4; 32],
            }],
        }),
        ControlMessage::ChannelFail(ChannelFail {
            id: [3; 16],
            code: DialCode::Timeout,
            reason: "10 s".into(),
        }),
        ControlMessage::Drain(Drain {
            reconnect_within_ms: 5_000,
            deadline_ms: 30_000,
            addresses: vec!["hub2.example:8443".into()],
        }),
        ControlMessage::Rotate(Rotate {
            not_before_unix_s: 1_800_000_000,
            token: mint([1; 8], [2; 32]),
        }),
        ControlMessage::Rotated {
            digest: Digest([5; 32]),
        },
        ControlMessage::Renew {
            csr: vec![0x30, 0x00],
        },
        ControlMessage::Cert {
            chain: "CHAIN".into(),
            ca_bundle: "CA".into(),
        },
        ControlMessage::Bye(Bye {
            reason: ByeReason::Overload,
            text: "full".into(),
        }),
        ControlMessage::Stats(AgentStats {
            dial_p50_us: Some(400),
            dial_p99_us: Some(9_000),
            target_errors: Some(2),
            pool_idle: Some(2),
            pool_wanted: Some(4),
            streams: Some(17),
            kernel_features: "io_uring,splice".into(),
        }),
    ];
    all.into_iter()
        .map(|message| (message.name(), message.encode().unwrap().to_vec()))
        .collect()
}

fn routes() -> Vec<Route> {
    let sni = |pattern| SniPattern::new(pattern).unwrap();
    let kinds = [
        RouteKind::Tcp {
            addr: "127.0.0.1:5432".into(),
        },
        RouteKind::Sealed {
            sni: sni("db.example.com"),
            addr: None,
        },
        RouteKind::Sealed {
            sni: sni("*.example.com"),
            addr: Some("[::]:9443".into()),
        },
    ];
    let service = ServiceName::new("pg").unwrap();
    let route = |kind| Route {
        service: service.clone(),
        kind,
    };
    kinds.into_iter().map(route).collect()
}

fn states() -> Vec<(&'static str, Vec<u8>)> {
    let state = ClusterState {
        enabled: false,
        policy: Policy::Refuse,
        tokens: vec![
            TokenHash {
                digest: Digest([6; 32]),
                id: "t1".into(),
                not_after_unix_ms: None,
            },
            TokenHash {
                digest: Digest([7; 32]),
                id: "t2".into(),
                not_after_unix_ms: Some(99),
            },
        ],
        epoch_floor: Epoch(41),
        streams_max: 2_048,
        requests_max: 100,
        rate_per_second: 50,
        allow_impersonation: true,
        target: Target {
            kind: TargetKind::Kube,
            addr: Some("kubernetes.default.svc:443".into()),
        },
        name: Some("Europe".into()),
        labels: vec![("env".into(), "prod".into()), ("empty".into(), "".into())],
        ..ClusterState::new(cluster())
    };
    state.check().unwrap();
    let settings = Settings {
        rate_per_second: 1_000,
        snapshot_age_max_s: 3_600,
        ..Settings::default()
    };
    let snapshot = Snapshot {
        generation: Generation(12),
        hub_id: "hub-a".into(),
        issued_unix_ms: 1_800_000_000_000,
        settings: settings.clone(),
        clusters: vec![
            Arc::new(ClusterState::new("a".parse().unwrap())),
            Arc::new(state.clone()),
        ],
        ..Snapshot::default()
    };
    let update = Update {
        generation: Generation(13),
        issued_unix_ms: 1_800_000_000_001,
        changes: vec![
            Change::Upsert(Arc::new(state)),
            Change::Remove("a".parse().unwrap()),
            Change::Settings(settings),
        ],
    };
    let rotation = Rotation {
        cluster: cluster(),
        token_id: "t3".into(),
        not_before_unix_s: 1_800_000_000,
        token: TokenText::new("a-shared-secret-of-a-file").unwrap(),
    };
    let body = snapshot.encode();
    let frame = SignedFrame {
        key_id: [8; 8],
        signature: [9; 64],
        body: Bytes::from_static(b"body"),
    };
    vec![
        ("snapshot", body.to_vec()),
        ("update", update.encode().to_vec()),
        ("rotation", rotation.encode().to_vec()),
        ("signed_frame", frame.encode()),
        ("report", report().encode().to_vec()),
        (
            "ack",
            Ack {
                generation: Generation(13),
            }
            .encode()
            .to_vec(),
        ),
    ]
}

/// People: who may enter, how they are known, who signed out everywhere.
fn people() -> Vec<(&'static str, Vec<u8>)> {
    let access = Access {
        mode: Mode::Raw,
        grants: vec![
            update::Grant {
                group: "ops".into(),
                tier: Tier::Admin,
                not_after_unix_ms: Some(1_800_000_000_000),
            },
            update::Grant {
                group: "user:ana".into(),
                tier: Tier::Read,
                not_after_unix_ms: None,
            },
        ],
        prefix: Some("corp:".into()),
        allowed_groups: vec!["ops".into(), "dev".into()],
        read_only: true,
        user_claim: UserClaim::Email,
    };
    let cluster = Arc::new(ClusterState {
        access,
        ..ClusterState::new(cluster())
    });
    let key = |n: u8| CookieKey {
        id: [n; 8],
        secret: Zeroizing::new([n + 1; 32]),
    };
    let settings = Settings {
        sign_in: Some(Arc::new(SignIn {
            keys: vec![key(0x10), key(0x20)],
            idle_s: 1_800,
            life_s: 28_800,
            origins: vec!["https://hub.example.com".into()],
        })),
        ..Settings::default()
    };
    let ended = Ended {
        floor_unix_ms: 1_799_999_999_000,
        subjects: [("ana".into(), 1_800_000_000_000)].into(),
    };
    let snapshot = Snapshot {
        generation: Generation(15),
        hub_id: "hub-a".into(),
        issued_unix_ms: 1_800_000_000_003,
        settings: settings.clone(),
        clusters: vec![cluster.clone()],
        ended: Arc::new(ended),
    };
    let update = Update {
        generation: Generation(16),
        issued_unix_ms: 1_800_000_000_004,
        changes: vec![
            Change::Upsert(cluster),
            Change::Settings(settings),
            Change::End {
                subject: "ana".into(),
                epoch: 1_800_000_000_001,
            },
        ],
    };
    vec![
        ("snapshot_people", snapshot.encode().to_vec()),
        ("update_people", update.encode().to_vec()),
    ]
}

fn report() -> Report {
    let mut session = SessionFact::new(cluster(), InstanceId([0x22; 16]), Epoch(42));
    session.connected_unix_ms = 1_800_000_000_000;
    session.last_seen_unix_ms = 1_800_000_000_500;
    session.rtt_ms = 12;
    session.streams = 3;
    session.protocol = "culvert/1".into();
    session.version = "0.1.0".into();
    session.region = "eu-1".into();
    session.address = "192.0.2.9:50000".into();
    session.token_id = "t1".into();
    session.labels = vec![("env".into(), "prod".into())];
    session.draining = true;
    Report {
        generation: Generation(13),
        dataplane_id: "dp-0".into(),
        version: "0.1.0".into(),
        started_unix_ms: 1_800_000_000_000,
        draining: true,
        sessions: vec![session],
        token_uses: vec![TokenUse {
            cluster: cluster(),
            token_id: "t1".into(),
            last_used_unix_ms: 1_800_000_000_000,
        }],
        rotated: vec![RotatedFact {
            cluster: cluster(),
            instance: InstanceId([0x22; 16]),
            digest: Digest([7; 32]),
        }],
    }
}

fn cluster() -> ClusterId {
    "prod-eu".parse().unwrap()
}
