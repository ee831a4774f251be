//! What each set of capabilities gives.

use std::os::fd::AsFd as _;

use culvert_observe::{Caps, Kind, Mode, Reason, Report, Settings, Tier, Trace};
use rustix::thread::CapabilitySet;

use crate::rig::{
    GRANTED, GRANTED_TRACE, Rows, alone, has_traces_and_accounts, in_a_child, is_root, keeps_bpf,
    limit, role, small, started, until,
};

const ROWS: [(&str, CapabilitySet, &str, &str); 6] = [
    (
        "none",
        CapabilitySet::empty(),
        "tcp_info",
        "cap_bpf,cap_net_admin",
    ),
    ("net_admin", CapabilitySet::NET_ADMIN, "tcp_info", "cap_bpf"),
    ("bpf", CapabilitySet::BPF, "tcp_info", "cap_net_admin"),
    (
        "bpf+perfmon",
        CapabilitySet::BPF.union(CapabilitySet::PERFMON),
        "tcp_info",
        "cap_net_admin",
    ),
    ("bpf+net_admin", GRANTED, "skb", ""),
    ("bpf+net_admin+perfmon", GRANTED_TRACE, "skb", ""),
];

#[test]
#[ignore = "run by the tests below"]
fn as_granted() {
    alone(as_granted_alone);
}

fn as_granted_alone() {
    let role = role();
    let (_, granted, tier, missing) = *ROWS.iter().find(|row| row.0 == role).unwrap();
    limit(granted);
    let observer = started(&Settings {
        trace: true,
        ..small()
    });
    let report = observer.report();
    assert_eq!(report.tier.name(), tier, "{:#?}", report.checks);
    assert_eq!(culvert_observe::capability_names(report.missing), missing);
    if tier == "tcp_info" {
        assert_eq!(report.reason, Some(Reason::MissingCapability));
        assert!(!report.is_warning(), "nothing was granted");
        assert!(
            report
                .to_string()
                .contains("fix=\"set ebpf.capabilities=true\"")
        );
    } else {
        whole(report);
    }
    match (&report.trace, granted.contains(CapabilitySet::PERFMON)) {
        (Trace::Ready(ready), true) => assert_eq!(ready.len(), 2, "{ready:?}"),
        (Trace::Unavailable(_), true) if !has_traces_and_accounts() => {}
        (Trace::Unavailable(why), false) if tier == "skb" => assert_eq!(why, "missing cap_perfmon"),
        (trace, _) => assert_eq!(tier, "tcp_info", "{trace:?}"),
    }
}

/// As it was asked for; the capabilities are gone where the kernel lets them go.
fn whole(report: &Report) {
    let (reason, caps) = match keeps_bpf() {
        true => (Some(Reason::CapsKept), Caps::Kept(CapabilitySet::BPF)),
        false => (None, Caps::Dropped),
    };
    assert_eq!((report.reason, report.caps), (reason, caps), "{report}");
    assert_eq!(report.is_warning(), reason.is_some());
}

#[test]
fn each_set_gives_its_tier_and_names_what_is_missing() {
    if !is_root("each_set_gives_its_tier_and_names_what_is_missing") {
        return;
    }
    for (role, ..) in ROWS {
        in_a_child("matrix::as_granted", role);
    }
}

#[test]
#[ignore = "run by the test below"]
fn required_without_a_grant() {
    alone(required_without_a_grant_alone);
}

fn required_without_a_grant_alone() {
    limit(CapabilitySet::NET_ADMIN);
    let required = Settings {
        mode: Mode::Require,
        ..small()
    };
    let refused = culvert_observe::start(&required).unwrap_err();
    assert_eq!(refused.report.tier, Tier::TcpInfo);
    let text = refused.to_string();
    for part in [
        "require",
        "tcp_info",
        "missing_capability",
        "without cap_bpf",
        "ebpf.capabilities=true",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn what_is_required_and_not_granted_names_cause_and_fix() {
    if is_root("what_is_required_and_not_granted_names_cause_and_fix") {
        in_a_child("matrix::required_without_a_grant", "");
    }
}

#[test]
#[ignore = "run by the test below"]
fn as_nobody_with_a_grant() {
    alone(as_nobody_with_a_grant_alone);
}

fn as_nobody_with_a_grant_alone() {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_keep_capabilities, set_thread_res_gid, set_thread_res_uid};
    set_keep_capabilities(true).unwrap();
    let (user, group) = (Uid::from_raw(65_532), Gid::from_raw(65_532));
    rustix::thread::set_thread_groups(&[]).unwrap();
    set_thread_res_gid(group, group, group).unwrap();
    set_thread_res_uid(user, user, user).unwrap();
    // As with file capabilities `=p`: permitted, and not yet in effect.
    let sets = rustix::thread::CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: GRANTED,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).unwrap();
    let required = Settings {
        mode: Mode::Require,
        ..small()
    };
    assert_eq!(started(&required).tier(), Tier::Skb);
}

#[test]
fn an_ordinary_user_with_file_capabilities_gets_everything() {
    if is_root("an_ordinary_user_with_file_capabilities_gets_everything") {
        in_a_child("matrix::as_nobody_with_a_grant", "");
    }
}

#[test]
#[ignore = "run by the test below"]
fn no_packets() {
    alone(no_packets_alone);
}

fn no_packets_alone() {
    limit(GRANTED);
    let observer = started(&Settings {
        mode: Mode::Require,
        tier_max: Tier::Sockops,
        ..small()
    });
    let report = observer.report();
    assert_eq!(report.tier, Tier::Sockops);
    whole(report);
    assert_eq!(report.programs, ["cv_sockops"]);
    let cluster = observer.cluster("some");
    let mut rows = Rows::v4(&observer);
    let mut row = rows.row(cluster);
    assert!(rows.join(&row, cluster, Default::default()).is_none());
    row.pass_to_service(b"there", Default::default());
    row.pass_to_client(b"and back", Default::default());
    let far = observer.stat(row.far.as_fd()).unwrap();
    assert!(far.t_conn <= far.t_est && far.rtt_n > 0, "{far:?}");
    assert_eq!(
        (far.rx_end, far.t_first_tx),
        (0, 0),
        "nobody looks at packets"
    );
    drop(row);
    let mut kinds = Vec::new();
    until(|| {
        kinds.extend(observer.closes().map(|close| close.kind));
        (kinds.len() == 2).then_some(())
    });
    let reading = observer.read();
    assert_eq!(
        reading.unsampled()[0].1,
        0,
        "a tier without slots lacks none"
    );
    let some = reading.clusters().find(|it| it.name == "some").unwrap();
    assert!(some.histogram(Kind::RttClient).is_some());
    assert!(
        some.legs()
            .all(|(_, cnt)| cnt.closes == 1 && cnt.rx_bytes == 0)
    );
}

#[test]
fn a_tier_that_was_asked_for_is_whole_without_the_next() {
    if is_root("a_tier_that_was_asked_for_is_whole_without_the_next") {
        in_a_child("matrix::no_packets", "");
    }
}
