//! Which addresses may be dialled (contract A-12, security.md T17).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::target::Target;

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// 127/8, `::1`, or the unspecified addresses, which Linux treats alike.
    Loopback,
    /// 169.254/16 or fe80::/10.
    LinkLocal,
    /// A cloud's metadata service.
    Metadata,
    /// Multicast, broadcast or reserved.
    NotUnicast,
}

impl Forbidden {
    /// The word for messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a metadata service",
            Self::NotUnicast => "not a unicast address",
        }
    }
}

/// Metadata services outside the link-local ranges.
const METADATA: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Addresses that the operator listed although their kind is refused.
#[derive(Clone, Debug, Default)]
pub struct AllowList {
    nets: Vec<IpNet>,
    loopback: bool,
}

impl AllowList {
    /// The list for `target`: `listed`, the target's own address when it is
    /// one, and loopback when the target is `localhost`.
    #[must_use]
    pub fn new(target: &Target, listed: Vec<IpNet>) -> Self {
        let mut nets = listed;
        nets.extend(target.literal().map(|ip| IpNet::from(ip.to_canonical())));
        let host = target.host.trim_end_matches('.').to_ascii_lowercase();
        Self {
            nets,
            loopback: host == "localhost" || host.ends_with(".localhost"),
        }
    }

    /// Whether `ip` may be dialled.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, ip: IpAddr) -> Result<(), Forbidden> {
        let ip = ip.to_canonical();
        match forbidden(ip) {
            None => Ok(()),
            Some(_) if self.nets.iter().any(|net| net.contains(&ip)) => Ok(()),
            Some(Forbidden::Loopback) if self.loopback && ip.is_loopback() => Ok(()),
            Some(why) => Err(why),
        }
    }
}

fn forbidden(ip: IpAddr) -> Option<Forbidden> {
    if METADATA.contains(&ip) {
        return Some(Forbidden::Metadata);
    }
    match ip {
        IpAddr::V4(v4) if v4.is_loopback() || v4.octets()[0] == 0 => Some(Forbidden::Loopback),
        IpAddr::V4(v4) if v4.is_link_local() => Some(Forbidden::LinkLocal),
        IpAddr::V4(v4) => (v4.octets()[0] >= 224).then_some(Forbidden::NotUnicast),
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() => Some(Forbidden::Loopback),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(Forbidden::LinkLocal),
        IpAddr::V6(v6) if v6.is_multicast() => Some(Forbidden::NotUnicast),
        IpAddr::V6(v6) => embedded(v6).and_then(|v4| forbidden(IpAddr::V4(v4))),
    }
}

/// The IPv4 address inside a NAT64, 6to4 or IPv4-compatible one: a gateway on
/// the way would dial that.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => {
            Some(v4(high, low))
        }
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(target: &str, listed: &[&str]) -> AllowList {
        let target = Target::parse(target, None, false).unwrap();
        AllowList::new(
            &target,
            listed.iter().map(|net| net.parse().unwrap()).collect(),
        )
    }

    fn check(list: &AllowList, ip: &str) -> Result<(), Forbidden> {
        list.check(ip.parse().unwrap())
    }

    #[test]
    fn special_addresses_are_refused_in_every_spelling() {
        let list = list("svc.example:443", &[]);
        let cases = [
            ("127.0.0.1", Forbidden::Loopback),
            ("127.255.0.9", Forbidden::Loopback),
            ("0.0.0.0", Forbidden::Loopback),
            ("::", Forbidden::Loopback),
            ("::1", Forbidden::Loopback),
            ("::ffff:127.0.0.1", Forbidden::Loopback),
            ("64:ff9b::7f00:1", Forbidden::Loopback),
            ("169.254.169.254", Forbidden::LinkLocal),
            ("::ffff:169.254.169.254", Forbidden::LinkLocal),
            ("2002:a9fe:a9fe::1", Forbidden::LinkLocal),
            ("fe80::1", Forbidden::LinkLocal),
            ("fd00:ec2::254", Forbidden::Metadata),
            ("168.63.129.16", Forbidden::Metadata),
            ("100.100.100.200", Forbidden::Metadata),
            ("64:ff9b::a83f:8110", Forbidden::Metadata),
            ("224.0.0.1", Forbidden::NotUnicast),
            ("255.255.255.255", Forbidden::NotUnicast),
            ("ff02::1", Forbidden::NotUnicast),
        ];
        for (ip, why) in cases {
            assert_eq!(check(&list, ip), Err(why), "{ip}");
        }
        for ip in [
            "10.0.0.1",
            "192.168.1.1",
            "172.20.0.1",
            "8.8.8.8",
            "fd00::1",
            "2001:db8::1",
        ] {
            assert_eq!(check(&list, ip), Ok(()), "{ip}");
        }
    }

    #[test]
    fn what_the_operator_named_is_allowed_and_nothing_beside_it() {
        let own = list("127.0.0.1:6443", &[]);
        assert_eq!(check(&own, "127.0.0.1"), Ok(()));
        assert_eq!(check(&own, "127.0.0.2"), Err(Forbidden::Loopback));
        let name = list("http://localhost:3000", &[]);
        assert_eq!(check(&name, "::1"), Ok(()));
        assert_eq!(check(&name, "0.0.0.0"), Err(Forbidden::Loopback));
        assert_eq!(check(&name, "169.254.169.254"), Err(Forbidden::LinkLocal));
        let metadata = list("http://meta.internal", &["169.254.169.254/32"]);
        assert_eq!(check(&metadata, "169.254.169.254"), Ok(()));
        assert_eq!(
            check(&metadata, "169.254.169.253"),
            Err(Forbidden::LinkLocal)
        );
    }
}
