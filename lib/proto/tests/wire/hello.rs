use culvert_proto::close::CloseReason;
use culvert_proto::hello::*;
use culvert_proto::id::{Epoch, InstanceId};
use proptest::prelude::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn hello() -> AgentHello {
    AgentHello {
        instance: Some(InstanceId::v7(1_800_000_000_000, [7; 10])),
        version: "0.1.0".into(),
        caps: Caps::DRAIN.with(Caps::ROTATE),
        cluster: Some("prod-eu".parse().unwrap()),
    }
}

type Fields = Vec<(String, Vec<u8>)>;

fn fields(websocket_only: bool) -> Fields {
    let mut fields: Fields = request_headers(&hello(), KEY, websocket_only)
        .into_iter()
        .map(|(name, value)| (name.into(), value.into_bytes()))
        .collect();
    fields.push((
        "Authorization".into(),
        b"Bearer rhc_0123456789abcdef".to_vec(),
    ));
    fields.push(("host".into(), b"hub.example".to_vec()));
    fields
}

fn radar() -> Fields {
    [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
        ("Authorization", "Bearer rhc_0123456789abcdef"),
        ("X-Radar-Version", "1.4.2"),
        ("X-Radar-Self-Upgrade-Available", "true"),
        ("X-Radar-Namespace", "radar"),
    ]
    .map(|(name, value)| (name.into(), value.as_bytes().to_vec()))
    .to_vec()
}

fn parse(query: Option<&str>, fields: &Fields) -> Result<HelloRequest, HelloError> {
    HelloRequest::parse(
        query,
        fields
            .iter()
            .map(|(name, value)| (name.as_str(), &value[..])),
    )
}

fn set(fields: &mut Fields, name: &str, value: &str) {
    fields.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    fields.push((name.into(), value.into()));
}

fn refusal(fields: &Fields) -> HelloError {
    parse(None, fields).map(|_| ()).unwrap_err()
}

#[test]
fn what_the_agent_writes_the_hub_reads() {
    for (websocket_only, kind) in [(false, CarrierKind::Native), (true, CarrierKind::WebSocket)] {
        let read = parse(None, &fields(websocket_only)).unwrap();
        assert_eq!(read.kind, kind);
        assert_eq!(read.hello, hello());
        assert_eq!(read.token.unwrap().expose(), "rhc_0123456789abcdef");
        assert_eq!(read.websocket_key.as_deref(), Some(KEY));
        assert!(read.radar.is_none());
    }
}

#[test]
fn radar_connectors_are_told_apart() {
    let query = "cluster_id=prod-eu&cluster_name=Prod%20Europe+1";
    let read = parse(Some(query), &radar()).unwrap();
    assert_eq!(read.kind, CarrierKind::Radar);
    assert_eq!(read.hello.instance, None);
    assert_eq!(read.hello.version, "1.4.2");
    assert_eq!(read.hello.cluster.as_ref().unwrap().as_str(), "prod-eu");
    let facts = read.radar.as_ref().unwrap();
    assert_eq!(facts.cluster_name, "Prod Europe 1");
    assert_eq!(facts.namespace, "radar");
    assert!(facts.self_upgrade);
    assert_eq!(facts.release, None);
    assert!(read.check_cluster(&"prod-eu".parse().unwrap()).is_ok());
    let other = read.check_cluster(&"other".parse().unwrap()).unwrap_err();
    assert_eq!(
        other.close_reason().for_stranger(),
        CloseReason::Unauthenticated
    );
    // A name that can be no cluster of ours is a mismatch too, so Radar sees its 401.
    let foreign = parse(Some("cluster_id=Prod_EU"), &radar())
        .map(|_| ())
        .unwrap_err();
    assert_eq!(foreign.close_reason(), CloseReason::ClusterMismatch);
    assert!(
        parse(Some("cluster_id=&x"), &radar())
            .unwrap()
            .hello
            .cluster
            .is_none()
    );
}

#[test]
fn radar_sees_401_and_500_only() {
    for reason in CloseReason::ALL {
        let status = refusal_status(Some(CarrierKind::Radar), *reason);
        assert!(matches!(status, 401 | 500), "{reason} {status}");
    }
    assert_eq!(
        refusal_status(Some(CarrierKind::Native), CloseReason::Duplicate),
        409
    );
    assert_eq!(refusal_status(None, CloseReason::NoCommonVersion), 426);
}

#[test]
fn versions_are_named_on_both_sides() {
    let mut offer = fields(false);
    set(&mut offer, "upgrade", "culvert/9");
    let error = refusal(&offer);
    assert_eq!(error.close_reason(), CloseReason::NoCommonVersion);
    let text = error.to_string();
    assert!(
        text.contains("culvert/9") && text.contains("culvert/1"),
        "{text}"
    );
    // A later agent that still offers the WebSocket form of version 1 gets it.
    set(&mut offer, "upgrade", "culvert/9, websocket");
    assert_eq!(parse(None, &offer).unwrap().kind, CarrierKind::WebSocket);
    set(&mut offer, "sec-websocket-protocol", "culvert.v9");
    assert!(refusal(&offer).to_string().contains("culvert.v9"));
    // A 7-type agent: WebSocket, no sub-protocol, no Radar field.
    let mut seven = radar();
    seven.retain(|(name, _)| !name.starts_with("X-Radar"));
    assert_eq!(refusal(&seven).close_reason(), CloseReason::NoCommonVersion);
}

#[test]
fn browsers_and_malformed_requests_are_refused() {
    for name in ["Origin", "cookie"] {
        let mut with = fields(false);
        with.push((name.into(), b"x".to_vec()));
        assert_eq!(refusal(&with).close_reason(), CloseReason::Forbidden);
    }
    let cases = [
        ("connection", "close", CloseReason::NoCommonVersion),
        ("upgrade", "", CloseReason::NoCommonVersion),
        (
            "authorization",
            "Basic dXNlcjpwYXNz",
            CloseReason::Unauthenticated,
        ),
        ("authorization", "Bearer", CloseReason::Unauthenticated),
        (
            "authorization",
            "Bearer short",
            CloseReason::Unauthenticated,
        ),
        (
            "authorization",
            "Bearer with a space inside it",
            CloseReason::Unauthenticated,
        ),
        ("culvert-instance", "nonsense", CloseReason::BadHead),
        (
            "culvert-instance",
            "00000000-0000-0000-0000-000000000000",
            CloseReason::BadHead,
        ),
        ("culvert-cluster", "No/Such", CloseReason::BadHead),
        ("culvert-version", &"9".repeat(65), CloseReason::BadHead),
        ("sec-websocket-key", "short", CloseReason::BadHead),
        ("culvert-caps", "a\u{7f}", CloseReason::BadHead),
    ];
    for (name, value, reason) in cases {
        let mut with = fields(false);
        set(&mut with, name, value);
        assert_eq!(refusal(&with).close_reason(), reason, "{name}: {value}");
    }
    for name in [
        "authorization",
        "culvert-instance",
        "culvert-cluster",
        "sec-websocket-key",
    ] {
        let mut twice = fields(false);
        let first = twice
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .cloned();
        twice.push(first.unwrap());
        assert!(matches!(refusal(&twice), HelloError::Repeated(_)), "{name}");
    }
    let mut without = fields(false);
    without.retain(|(name, _)| name != "culvert-instance");
    assert!(matches!(refusal(&without), HelloError::Field { .. }));
    let mut without = fields(true);
    without.retain(|(name, _)| name != "sec-websocket-key");
    assert!(matches!(refusal(&without), HelloError::Field { .. }));
    let mut without = fields(false);
    without.retain(|(name, _)| name != "Authorization");
    assert!(
        parse(None, &without).unwrap().token.is_none(),
        "a certificate may be the identity"
    );
}

#[test]
fn caps_are_a_set_of_known_words() {
    let caps = Caps::parse(" drain,frobnicate, ROTATE ,rotate,");
    assert_eq!(caps.to_string(), "drain,rotate");
    assert_eq!((caps & Caps::DRAIN).to_string(), "drain");
    assert!(caps.has(Caps::ROTATE) && !caps.has(Caps::CHANNEL));
}

/// N-2..N: an end without the smaller window is never told of it, and never uses it.
#[test]
fn the_small_window_takes_both_ends() {
    let older = Caps::DRAIN.with(Caps::ROTATE).with(Caps::STATUS);
    let newer = older.with(Caps::SMALL_WINDOW);
    for (agent, hub, both) in [
        (newer, newer, true),
        (newer, older, false),
        (older, newer, false),
        (older, older, false),
    ] {
        let mut sent = fields(false);
        set(&mut sent, "culvert-caps", &agent.to_string());
        let heard = parse(None, &sent).unwrap().hello.caps;
        let answer = HelloAnswer::new(CarrierKind::Native, Epoch(1), heard & hub);
        let fields = answer.headers();
        let raw = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
        let agreed = HelloAnswer::parse(agent, raw).unwrap().caps;
        assert_eq!(agreed, answer.caps, "one view at both ends");
        assert_eq!(agreed.has(Caps::SMALL_WINDOW), both);
        assert_eq!(agreed & older, older, "the rest is as ever");
    }
}

#[test]
fn answers_round_trip() {
    for kind in [CarrierKind::Native, CarrierKind::WebSocket] {
        let answer = HelloAnswer::new(kind, Epoch(77), Caps::DRAIN);
        let fields = answer.headers();
        let raw = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
        assert_eq!(HelloAnswer::parse(Caps::DRAIN, raw.clone()), Ok(answer));
        let less = HelloAnswer::parse(Caps::ROTATE, raw).unwrap();
        assert_eq!(
            less.caps,
            Caps::default(),
            "what was not offered is not used"
        );
    }
    let radar = HelloAnswer::new(CarrierKind::Radar, Epoch(77), Caps::default()).headers();
    assert!(
        radar
            .iter()
            .all(|(name, _)| matches!(*name, "connection" | "upgrade"))
    );
}

#[test]
fn mangled_answers_are_named() {
    let parse = |fields: &[(&str, &str)]| {
        HelloAnswer::parse(
            Caps::default(),
            fields.iter().map(|(n, v)| (*n, v.as_bytes())),
        )
    };
    assert!(matches!(parse(&[]), Err(AnswerError::Upgrade { .. })));
    assert!(matches!(
        parse(&[("Upgrade", "h2c")]),
        Err(AnswerError::Upgrade { .. })
    ));
    let plain = parse(&[("Upgrade", "WebSocket")]);
    assert_eq!(plain, Err(AnswerError::Field("Sec-WebSocket-Protocol")));
    let no_epoch = parse(&[("upgrade", "culvert/1")]);
    assert_eq!(no_epoch, Err(AnswerError::Field("Culvert-Epoch")));
    let no_caps = parse(&[("upgrade", "culvert/1"), ("culvert-epoch", "7")]);
    assert_eq!(no_caps, Err(AnswerError::Field("Culvert-Caps")));
    for beat in [
        "0,15",
        "5",
        "5,9",
        "5,301",
        "61,200",
        "+5,15",
        "x,y",
        "5,18446744073709551616",
    ] {
        let fields = [
            ("upgrade", "culvert/1"),
            ("culvert-epoch", "7"),
            ("culvert-beat", beat),
        ];
        assert_eq!(
            parse(&fields),
            Err(AnswerError::Field("Culvert-Beat")),
            "{beat}"
        );
    }
    for epoch in ["", "-1", "+1", "1 2", "18446744073709551616"] {
        let fields = [("upgrade", "culvert/1"), ("culvert-epoch", epoch)];
        assert_eq!(
            parse(&fields),
            Err(AnswerError::Field("Culvert-Epoch")),
            "{epoch}"
        );
    }
}

proptest! {
    #[test]
    fn request_parser_never_panics(
        query: Option<String>,
        fields in proptest::collection::vec(
            ("(?i)(connection|upgrade|sec-websocket-(key|version|protocol)|authorization|culvert-(instance|version|caps|cluster)|x-radar-[a-z-]{1,12}|[a-z]{1,6})",
             proptest::collection::vec(any::<u8>(), 0..40)), 0..12),
    ) {
        let _ = parse(query.as_deref(), &fields);
    }

    #[test]
    fn mutated_requests_never_panic(which: usize, place: usize, byte: u8, ws: bool) {
        let mut fields = fields(ws);
        let which = which % fields.len();
        let value = &mut fields[which].1;
        if !value.is_empty() {
            let place = place % value.len();
            value[place] = byte;
        }
        let _ = parse(None, &fields);
        let _ = HelloAnswer::parse(Caps::default(), fields.iter().map(|(n, v)| (n.as_str(), &v[..])));
    }

    #[test]
    fn radar_query_never_panics(query in "(cluster_(id|name)=|[&%+=a-z0-9]){0,30}") {
        let _ = parse(Some(&query), &radar());
    }
}
