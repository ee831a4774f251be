//! Verdicts on header fields (threats T1, T2, T4; decision D-18).
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use culvert_proto::close::CloseReason;
use culvert_proto::head::*;
use proptest::prelude::*;

/// One name of each protected family, as security rule 3.5 lists them.
const PROTECTED: [&str; 35] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "proxy-connection",
    "proxy-anything",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-user",
    "x-forwarded-groups",
    "x-forwarded-prefix",
    "x-real-ip",
    "x-original-url",
    "x-rewrite-url",
    "x-remote-user",
    "x-remote-group",
    "x-remote-extra-scopes",
    "impersonate-user",
    "impersonate-group",
    "impersonate-uid",
    "impersonate-extra-scopes",
    "x-auth-request-user",
    "x-webauth-user",
    "remote-user",
    "x-client-cert",
    "x-client-certificate",
    "x-ssl-client-cn",
    "x-radar-version",
    "culvert-error",
    "x-http-method-override",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "transfer-encoding",
    "http2-settings",
];

/// `Connection` exists to name these.
const OPTIONS: [&str; 5] = ["keep-alive", "te", "trailer", "upgrade", "http2-settings"];

const KUBE_PASSES: [&str; 19] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "content-type",
    "content-encoding",
    "user-agent",
    "if-match",
    "if-none-match",
    "range",
    "cache-control",
    "kubectl-command",
    "kubectl-session",
    "x-stream-protocol-version",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "traceparent",
    "tracestate",
    "if-modified-since",
];

fn rules(kind: RouteKind, allow_impersonation: bool) -> RequestRules {
    RequestRules {
        kind,
        allow_impersonation,
        pass_cookies: false,
    }
}

fn connection(lines: &[&str]) -> Result<ConnectionTokens, HeadError> {
    ConnectionTokens::parse(lines.iter().map(|line| line.as_bytes()))
}

/// `bits` chooses the case of each letter and `_` or `-` at each hyphen.
fn spell(name: &str, bits: u64) -> String {
    let spelt = name.chars().enumerate().map(|(place, letter)| {
        let changed = bits >> (place % 64) & 1 == 1;
        match letter {
            '-' if changed => '_',
            letter if changed => letter.to_ascii_uppercase(),
            letter => letter,
        }
    });
    spelt.collect()
}

#[test]
fn client_copies_of_protected_names_never_pass() {
    for name in PROTECTED {
        assert!(is_protected(name), "{name}");
        for kind in [RouteKind::Kube, RouteKind::Http] {
            let verdict = request_field(name, &rules(kind, false), &ConnectionTokens::default());
            assert_eq!(verdict, Verdict::Drop, "{name} to {kind:?}");
        }
    }
}

#[test]
fn the_closed_list_is_closed() {
    let kube = rules(RouteKind::Kube, false);
    for name in KUBE_PASSES {
        assert_eq!(
            request_field(name, &kube, &ConnectionTokens::default()),
            Verdict::Pass,
            "{name}"
        );
        assert!(!is_protected(name));
    }
    let dropped = [
        "x-custom",
        "accept-charset",
        "origin",
        "referer",
        "audit-id",
        "x-request-id",
        "expect",
        "sec-websocket-extensions",
        "host",
        "content-length",
        "connection",
        "from",
        "via",
        "content_type",
        "if_match",
        "sec-fetch-site",
    ];
    for name in dropped {
        assert_eq!(
            request_field(name, &kube, &ConnectionTokens::default()),
            Verdict::Drop,
            "{name}"
        );
    }
}

#[test]
fn http_services_get_what_is_not_protected() {
    let http = rules(RouteKind::Http, true);
    let none = ConnectionTokens::default();
    for name in [
        "x-custom",
        "origin",
        "referer",
        "x-api-key",
        "accept",
        "content-type",
        "grpc-timeout",
    ] {
        assert_eq!(request_field(name, &http, &none), Verdict::Pass, "{name}");
    }
    for name in [
        "x_custom",
        "host",
        "content-length",
        "expect",
        "connection",
        "impersonate-user",
    ] {
        assert_eq!(request_field(name, &http, &none), Verdict::Drop, "{name}");
    }
    let cookies = RequestRules {
        pass_cookies: true,
        ..http
    };
    assert_eq!(request_field("cookie", &cookies, &none), Verdict::Pass);
    assert_eq!(request_field("cookie", &http, &none), Verdict::Drop);
}

/// 40 spellings of each `Impersonate-*` field: none passes with the switch off; with it on only
/// those spelt with hyphens do.
#[test]
fn impersonation_in_forty_spellings() {
    let none = ConnectionTokens::default();
    for name in [
        "Impersonate-User",
        "Impersonate-Group",
        "Impersonate-Uid",
        "Impersonate-Extra-Scopes",
    ] {
        for seed in 0..40u64 {
            let spelt = spell(name, seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let off = request_field(&spelt, &rules(RouteKind::Kube, false), &none);
            assert_eq!(off, Verdict::Drop, "{spelt}");
            let on = request_field(&spelt, &rules(RouteKind::Kube, true), &none);
            let expected = if spelt.contains('_') {
                Verdict::Drop
            } else {
                Verdict::Pass
            };
            assert_eq!(on, expected, "{spelt}");
        }
    }
    let unknown = request_field("impersonate-other", &rules(RouteKind::Kube, true), &none);
    assert_eq!(unknown, Verdict::Drop);
}

#[test]
fn nobody_becomes_the_system() {
    let refused = [
        ("Impersonate-User", "system:admin"),
        ("impersonate-user", "SYSTEM:masters"),
        ("Impersonate-User", " system:kube-controller-manager"),
        (
            "Impersonate-User",
            "system:serviceaccount:kube-system:admin",
        ),
        ("Impersonate-User", "system:serviceaccount:a:b:c"),
        ("Impersonate-User", "system:serviceaccount::b"),
        ("Impersonate-User", "system:serviceaccount:a:"),
        ("Impersonate-User", "system:serviceaccounts:a"),
        ("Impersonate-Group", "system:masters"),
        ("Impersonate-Group", "system:serviceaccount:a:b"),
        ("Impersonate-Extra-Scopes", "system:x"),
    ];
    for (name, value) in refused {
        let error = impersonation_value(name, value.as_bytes()).unwrap_err();
        assert_eq!(
            error.close_reason(),
            CloseReason::Forbidden,
            "{name}: {value}"
        );
    }
    for (name, value) in [
        ("Impersonate-User", "alice@example.org"),
        ("Impersonate-User", "system:serviceaccount:argocd:deployer"),
        ("Impersonate-Group", "systems:x"),
        ("X-Other", "system:masters"),
        ("Impersonate-User", ""),
    ] {
        assert_eq!(
            impersonation_value(name, value.as_bytes()),
            Ok(()),
            "{name}: {value}"
        );
    }
}

#[test]
fn connection_is_obeyed_where_it_may_be() {
    let tokens = connection(&["close, X-Private", "\tUPGRADE ,,", "TE, http2-settings"]).unwrap();
    assert!(tokens.close && tokens.upgrade);
    assert!(tokens.names("x-private") && tokens.names("X-PRIVATE") && !tokens.names("x-other"));
    let http = rules(RouteKind::Http, false);
    assert_eq!(request_field("x-private", &http, &tokens), Verdict::Drop);
    assert_eq!(request_field("x-public", &http, &tokens), Verdict::Pass);
    assert!(connection(&[]).unwrap() == ConnectionTokens::default());
}

#[test]
fn connection_must_not_frame_or_route() {
    for token in [
        "content-length",
        "Transfer-Encoding",
        "HOST",
        "content_length",
        "Connection",
    ] {
        let error = connection(&[token]).unwrap_err();
        assert_eq!(
            error,
            HeadError::ConnectionNames(token.to_ascii_lowercase().replace('_', "-"))
        );
        assert_eq!(error.close_reason(), CloseReason::BadHead);
    }
    for line in ["a b", "x;y", "a\0", "caf\u{e9}", "\"close\"", "a:b"] {
        assert_eq!(connection(&[line]), Err(HeadError::Connection), "{line}");
    }
    for (count, fits) in [(31, true), (32, true), (33, false)] {
        assert_eq!(
            connection(&[&"a,".repeat(count)]).is_ok(),
            fits,
            "{count} tokens"
        );
    }
}

#[test]
fn responses_lose_hops_identities_and_hub_origin_policy() {
    let none = ConnectionTokens::default();
    let machine = ResponseRules {
        hub_origin: false,
        from_agent: true,
    };
    let browser = ResponseRules {
        hub_origin: true,
        from_agent: true,
    };
    let at_agent = ResponseRules {
        hub_origin: false,
        from_agent: false,
    };
    for name in [
        "content-type",
        "etag",
        "location",
        "www-authenticate",
        "warning",
        "retry-after",
    ] {
        assert_eq!(
            response_field(name, &machine, &none),
            Verdict::Pass,
            "{name}"
        );
        assert_eq!(
            response_field(name, &browser, &none),
            Verdict::Pass,
            "{name}"
        );
    }
    for name in [
        "set-cookie",
        "clear-site-data",
        "service-worker-allowed",
        "strict-transport-security",
        "alt-svc",
        "access-control-allow-origin",
        "access-control-allow-credentials",
        "x-accel-redirect",
        "x-sendfile",
    ] {
        assert_eq!(
            response_field(name, &machine, &none),
            Verdict::Pass,
            "{name}"
        );
        assert_eq!(
            response_field(name, &browser, &none),
            Verdict::Drop,
            "{name}"
        );
    }
    let fits_anywhere = |name: &str| name == "culvert-error";
    for name in PROTECTED.into_iter().filter(|name| !fits_anywhere(name)) {
        assert_eq!(
            response_field(name, &machine, &none),
            Verdict::Drop,
            "{name}"
        );
    }
    assert_eq!(
        response_field("culvert-error", &machine, &none),
        Verdict::Pass
    );
    assert_eq!(
        response_field("culvert-error", &at_agent, &none),
        Verdict::Drop,
        "a forgery"
    );
    assert_eq!(
        response_field("content-length", &machine, &none),
        Verdict::Drop
    );
    let named = connection(&["x-hop"]).unwrap();
    assert_eq!(response_field("x-hop", &machine, &named), Verdict::Drop);
}

#[test]
fn trailers_carry_neither_identity_nor_framing() {
    let http = rules(RouteKind::Http, true);
    let machine = ResponseRules {
        hub_origin: false,
        from_agent: true,
    };
    for name in PROTECTED
        .into_iter()
        .chain(["content-length", "host", "content-type", "x_y"])
    {
        assert_eq!(request_trailer(name, &http), Verdict::Drop, "{name}");
        assert_eq!(response_trailer(name, &machine), Verdict::Drop, "{name}");
    }
    for name in ["grpc-status", "grpc-message", "x-checksum"] {
        assert_eq!(request_trailer(name, &http), Verdict::Pass, "{name}");
        assert_eq!(response_trailer(name, &machine), Verdict::Pass, "{name}");
    }
}

#[test]
fn heads_that_parsers_read_in_two_ways_are_refused() {
    let host: &[&[u8]] = &[b"hub.example"];
    let good = HeadFacts {
        method: "GET",
        target: "/tunnel/a/",
        hosts: host,
        ..Default::default()
    };
    assert_eq!(check_request(&good), Ok(()));
    let upgrade = connection(&["Upgrade"]).unwrap();
    let websocket = HeadFacts {
        upgrades: &[b"websocket"],
        connection: Some(&upgrade),
        ..good.clone()
    };
    assert_eq!(check_request(&websocket), Ok(()));
    let table: Vec<(HeadFacts<'_>, HeadError)> = vec![
        (
            HeadFacts {
                method: "CONNECT",
                ..good.clone()
            },
            HeadError::Method,
        ),
        (
            HeadFacts {
                target: "/a b",
                ..good.clone()
            },
            HeadError::Target,
        ),
        (
            HeadFacts {
                target: "/caf\u{e9}",
                ..good.clone()
            },
            HeadError::Target,
        ),
        (
            HeadFacts {
                hosts: &[],
                ..good.clone()
            },
            HeadError::Host,
        ),
        (
            HeadFacts {
                hosts: &[b""],
                ..good.clone()
            },
            HeadError::Host,
        ),
        (
            HeadFacts {
                hosts: &[b"a", b"a"],
                ..good.clone()
            },
            HeadError::Host,
        ),
        (
            HeadFacts {
                authority: Some("other"),
                ..good.clone()
            },
            HeadError::Host,
        ),
        (
            HeadFacts {
                hosts: &[],
                authority: Some(""),
                ..good.clone()
            },
            HeadError::Host,
        ),
        (
            HeadFacts {
                transfer_encodings: &[b"gzip, chunked"],
                ..good.clone()
            },
            HeadError::TransferEncoding,
        ),
        (
            HeadFacts {
                transfer_encodings: &[b"chunked", b"chunked"],
                ..good.clone()
            },
            HeadError::TransferEncoding,
        ),
        (
            HeadFacts {
                transfer_encodings: &[b""],
                ..good.clone()
            },
            HeadError::TransferEncoding,
        ),
        (
            HeadFacts {
                content_lengths: &[b"1", b"1"],
                ..good.clone()
            },
            HeadError::ContentLength,
        ),
        (
            HeadFacts {
                content_lengths: &[b"+1"],
                ..good.clone()
            },
            HeadError::ContentLength,
        ),
        (
            HeadFacts {
                content_lengths: &[b"1, 1"],
                ..good.clone()
            },
            HeadError::ContentLength,
        ),
        (
            HeadFacts {
                has_body: true,
                ..good.clone()
            },
            HeadError::Body,
        ),
        (
            HeadFacts {
                has_body: true,
                body_on_get: true,
                ..websocket.clone()
            },
            HeadError::Upgrade,
        ),
        (
            HeadFacts {
                upgrades: &[],
                ..websocket.clone()
            },
            HeadError::Upgrade,
        ),
        (
            HeadFacts {
                upgrades: &[b"websocket, h2c"],
                ..websocket.clone()
            },
            HeadError::Upgrade,
        ),
        (
            HeadFacts {
                upgrades: &[b"a", b"b"],
                ..websocket.clone()
            },
            HeadError::Upgrade,
        ),
    ];
    for (facts, error) in table {
        assert_eq!(check_request(&facts), Err(error), "{facts:?}");
    }
    let fine = [
        HeadFacts {
            method: "DELETE",
            has_body: true,
            ..good.clone()
        },
        HeadFacts {
            authority: Some("HUB.example"),
            ..good.clone()
        },
        HeadFacts {
            hosts: &[],
            authority: Some("hub.example"),
            ..good.clone()
        },
        HeadFacts {
            transfer_encodings: &[b" Chunked"],
            ..good.clone()
        },
        HeadFacts {
            upgrades: &[b"h2c"],
            ..websocket.clone()
        },
        HeadFacts {
            upgrades: &[b"SPDY/3.1"],
            method: "POST",
            ..websocket
        },
        HeadFacts {
            upgrades: &[b"websocket"],
            ..good
        },
    ];
    for facts in fine {
        assert_eq!(check_request(&facts), Ok(()), "{facts:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(2_000)))]

    /// T1 and T2: every protected name, in any case, with `_` or `-`, as a field and as a token of
    /// `Connection` between other tokens, blanks and commas, on one line or several.
    #[test]
    fn no_spelling_of_a_protected_name_passes(
        which in 0..PROTECTED.len(),
        bits: u64,
        blank in "[ \t]{0,2}",
        before in prop_oneof![Just(""), Just("close,"), Just("x-a , "), Just(",,")],
        after in prop_oneof![Just(""), Just(",close"), Just(" , x-b"), Just(",")],
        own_line: bool,
        kube: bool,
    ) {
        let name = PROTECTED[which];
        let spelt = spell(name, bits);
        let kind = if kube { RouteKind::Kube } else { RouteKind::Http };
        let none = ConnectionTokens::default();
        prop_assert!(is_protected(&spelt));
        prop_assert_eq!(request_field(&spelt, &rules(kind, false), &none), Verdict::Drop);
        prop_assert_eq!(request_trailer(&spelt, &rules(kind, true)), Verdict::Drop);
        let line = format!("{before}{blank}{spelt}{blank}{after}");
        let parsed = if own_line { connection(&["close", &line]) } else { connection(&[&line]) };
        if OPTIONS.contains(&name) {
            prop_assert!(parsed.is_ok());
        } else {
            prop_assert_eq!(parsed, Err(HeadError::ConnectionNames(name.into())));
        }
    }

    /// A name with `_` never passes, whatever it is.
    #[test]
    fn underscores_never_pass(before in "[a-z-]{0,8}", after in "[a-z-]{0,8}", kube: bool) {
        let name = format!("{before}_{after}");
        let kind = if kube { RouteKind::Kube } else { RouteKind::Http };
        let all = RequestRules { kind, allow_impersonation: true, pass_cookies: true };
        prop_assert_eq!(request_field(&name, &all, &ConnectionTokens::default()), Verdict::Drop);
    }

    #[test]
    fn connection_parser_never_panics(lines: Vec<Vec<u8>>) {
        let _ = ConnectionTokens::parse(lines.iter().map(|line| &line[..]));
    }
}

/// As many cases as `PROPTEST_CASES` says (`cargo xtask soak`), else `few`.
fn cases(few: u32) -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(few)
}
