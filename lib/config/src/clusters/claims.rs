//! Which routes can stand beside each other: one process listens on an address
//! once, and a server name leads to one service.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use culvert_proto::update::RouteKind;

/// What is listened for, and for whom: `O` names the holder of a claim.
///
/// ```
/// use culvert_config::clusters::Claims;
/// use culvert_proto::update::RouteKind;
///
/// let tcp = |addr: &str| RouteKind::Tcp { addr: addr.into() };
/// let mut claims = Claims::default();
/// assert_eq!(claims.claim(&tcp("127.0.0.1:5432"), "first"), Ok(()));
/// assert_eq!(claims.claim(&tcp("0.0.0.0:5432"), "second"), Err("first"));
/// ```
pub struct Claims<O> {
    /// Server names on the public listener.
    public: BTreeMap<String, O>,
    ports: HashMap<u16, BTreeMap<IpAddr, Use<O>>>,
}

/// What an address of its own is for.
enum Use<O> {
    Tcp(O),
    /// By server name; never empty.
    Sealed(BTreeMap<String, O>),
}

impl<O> Default for Claims<O> {
    fn default() -> Self {
        Self {
            public: BTreeMap::new(),
            ports: HashMap::new(),
        }
    }
}

impl<O: Clone> Claims<O> {
    /// Claims what a route listens for. An address that is none claims nothing.
    ///
    /// # Errors
    /// Who holds it already.
    pub fn claim(&mut self, route: &RouteKind, owner: O) -> Result<(), O> {
        match route {
            RouteKind::Tcp { addr } => self.tcp(addr, owner),
            RouteKind::Sealed { sni, addr: None } => name(&mut self.public, sni.as_str(), owner),
            RouteKind::Sealed {
                sni,
                addr: Some(addr),
            } => self.sealed(addr, sni.as_str(), owner),
        }
    }

    fn tcp(&mut self, addr: &str, owner: O) -> Result<(), O> {
        let Ok(addr) = addr.parse::<SocketAddr>() else {
            return Ok(());
        };
        let port = self.ports.entry(addr.port()).or_default();
        let taken = port.iter().find(|(ip, _)| overlap(**ip, addr.ip()));
        match taken {
            Some((_, held)) => Err(held.owner()),
            None => {
                port.insert(addr.ip(), Use::Tcp(owner));
                Ok(())
            }
        }
    }

    fn sealed(&mut self, addr: &str, sni: &str, owner: O) -> Result<(), O> {
        let Ok(addr) = addr.parse::<SocketAddr>() else {
            return Ok(());
        };
        let port = self.ports.entry(addr.port()).or_default();
        // Many names may share an address, so that it is looked up and not searched.
        if !port.contains_key(&addr.ip())
            && let Some((_, held)) = port.iter().find(|(ip, _)| overlap(**ip, addr.ip()))
        {
            return Err(held.owner());
        }
        let held = port
            .entry(addr.ip())
            .or_insert_with(|| Use::Sealed(BTreeMap::new()));
        match held {
            Use::Tcp(holder) => Err(holder.clone()),
            Use::Sealed(names) => name(names, sni, owner),
        }
    }
}

impl<O: Clone> Use<O> {
    fn owner(&self) -> O {
        match self {
            Self::Tcp(owner) => owner.clone(),
            Self::Sealed(names) => names.values().next().expect("never empty").clone(),
        }
    }
}

fn name<O: Clone>(names: &mut BTreeMap<String, O>, sni: &str, owner: O) -> Result<(), O> {
    match names.get(sni) {
        Some(holder) => Err(holder.clone()),
        None => {
            names.insert(sni.to_owned(), owner);
            Ok(())
        }
    }
}

/// Whether the same port of both cannot be listened on at once: the unspecified
/// address takes all others, of IPv6 those of IPv4 too.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::update::SniPattern;

    fn tcp(addr: &str) -> RouteKind {
        RouteKind::Tcp { addr: addr.into() }
    }

    fn sealed(sni: &str, addr: Option<&str>) -> RouteKind {
        RouteKind::Sealed {
            sni: SniPattern::new(sni).unwrap(),
            addr: addr.map(Into::into),
        }
    }

    /// Which of the routes are refused, and by whom.
    fn refused(routes: &[RouteKind]) -> Vec<(usize, usize)> {
        let mut claims = Claims::default();
        let claim = |(place, route)| claims.claim(route, place).err().map(|by| (place, by));
        routes.iter().enumerate().filter_map(claim).collect()
    }

    #[test]
    fn one_address_is_for_one_purpose() {
        let own = Some("127.0.0.1:443");
        let routes = [
            tcp("127.0.0.1:1"),
            tcp("127.0.0.1:1"),
            tcp("127.0.0.2:1"),
            tcp("0.0.0.0:1"),
            sealed("a.test", Some("127.0.0.1:1")),
            sealed("a.test", own),
            sealed("b.test", own),
            tcp("127.0.0.1:443"),
            sealed("c.test", Some("[::]:443")),
            tcp("[::]:2"),
            tcp("127.0.0.1:2"),
        ];
        let wanted = [(1, 0), (3, 0), (4, 0), (7, 5), (8, 5), (10, 9)];
        assert_eq!(refused(&routes), wanted);
    }

    #[test]
    fn one_name_on_one_address_leads_to_one_service() {
        let own = Some("127.0.0.1:443");
        let routes = [
            sealed("a.test", None),
            sealed("A.test", None),
            sealed("*.test.org", None),
            sealed("a.test.org", None),
            sealed("a.test", own),
            sealed("a.test", own),
        ];
        assert_eq!(refused(&routes), [(1, 0), (5, 4)]);
    }
}
