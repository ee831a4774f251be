//! Ways to services beside HTTP, of one generation: who listens where, and whom
//! a server name leads to.

pub mod follow;
pub mod serve;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_config::clusters::listen_addr;
use culvert_proto::id::ClusterId;
use culvert_proto::update::{ClusterState, Route, RouteKind};

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name for the service.
    pub service: Arc<str>,
}

/// What listens on an address of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Whoever connects is led to one service.
    Tcp,
    /// By the server name of the client's TLS.
    Sealed,
}

/// The routes of all clusters. Where two contradict each other the first one
/// counts, by cluster and place.
#[derive(Default)]
pub struct Routes {
    tcp: HashMap<SocketAddr, Way>,
    /// By listener (`None` is the public one), then by name or pattern.
    sealed: HashMap<Option<SocketAddr>, HashMap<Box<str>, Way>>,
    /// What is wrong with some of them.
    problems: Vec<String>,
}

impl Routes {
    /// The routes of `clusters`.
    pub fn build<'a>(clusters: impl IntoIterator<Item = &'a Arc<ClusterState>>) -> Self {
        let mut routes = Self::default();
        let mut clusters: Vec<_> = clusters
            .into_iter()
            .filter(|cluster| !cluster.routes.is_empty())
            .collect();
        clusters.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        for cluster in clusters {
            for route in &cluster.routes {
                if let Err(why) = routes.add(&cluster.id, route) {
                    let service = &route.service;
                    let problem = format!("cluster {}, service {service}: {why}", cluster.id);
                    routes.problems.push(problem);
                }
            }
        }
        routes
    }

    fn add(&mut self, cluster: &ClusterId, route: &Route) -> Result<(), String> {
        let way = Way {
            cluster: cluster.clone(),
            service: route.service.shared(),
        };
        match &route.kind {
            RouteKind::Tcp { addr } => {
                let at = listen_addr(addr)?;
                if self.sealed.contains_key(&Some(at)) {
                    return Err(format!("{addr} is a sealed route's already"));
                }
                match self.tcp.entry(at) {
                    std::collections::hash_map::Entry::Vacant(free) => drop(free.insert(way)),
                    std::collections::hash_map::Entry::Occupied(taken) => {
                        return Err(format!("{addr} leads to cluster {}", taken.get().cluster));
                    }
                }
            }
            RouteKind::Sealed { sni, addr } => {
                let at = addr.as_deref().map(listen_addr).transpose()?;
                if at.is_some_and(|at| self.tcp.contains_key(&at)) {
                    return Err("its address is a tcp route's already".to_owned());
                }
                let names = self.sealed.entry(at).or_default();
                if let Some(taken) = names.get(sni.as_str()) {
                    return Err(format!("{sni} leads to cluster {}", taken.cluster));
                }
                names.insert(sni.as_str().into(), way);
            }
        }
        Ok(())
    }

    /// What is wrong with some of them, one sentence each.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Addresses that are to be listened on.
    pub fn listeners(&self) -> HashMap<SocketAddr, Mode> {
        let tcp = self.tcp.keys().map(|at| (*at, Mode::Tcp));
        let sealed = self.sealed.keys().flatten();
        tcp.chain(sealed.map(|at| (*at, Mode::Sealed))).collect()
    }

    /// Where a client of this address is led.
    pub fn tcp(&self, at: SocketAddr) -> Option<&Way> {
        self.tcp.get(&at)
    }

    /// Whether a listener (`None` is the public one) leads anybody by name.
    pub fn has_sealed(&self, at: Option<SocketAddr>) -> bool {
        self.sealed.contains_key(&at)
    }

    /// Where a client that asks for `name`, in lower case, is led: by the name
    /// itself, else by a pattern for its first label.
    pub fn sealed(&self, at: Option<SocketAddr>, name: &str) -> Option<&Way> {
        let names = self.sealed.get(&at)?;
        if let Some(way) = names.get(name) {
            return Some(way);
        }
        let (label, suffix) = name.split_once('.')?;
        let pattern = format!("*.{suffix}");
        names.get(&*pattern).filter(|_| !label.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::update::{ServiceName, SniPattern};

    fn tcp(service: &str, addr: &str) -> Route {
        Route {
            service: ServiceName::new(service).unwrap(),
            kind: RouteKind::Tcp { addr: addr.into() },
        }
    }

    fn sealed(service: &str, sni: &str, addr: Option<&str>) -> Route {
        Route {
            service: ServiceName::new(service).unwrap(),
            kind: RouteKind::Sealed {
                sni: SniPattern::new(sni).unwrap(),
                addr: addr.map(Arc::from),
            },
        }
    }

    fn cluster(id: &str, routes: Vec<Route>) -> Arc<ClusterState> {
        let mut state = ClusterState::new(ClusterId::new(id).unwrap());
        state.routes = routes;
        Arc::new(state)
    }

    #[test]
    fn names_go_before_patterns_and_a_star_is_one_label() {
        let own = "127.0.0.1:9443";
        let routes = Routes::build(&[cluster(
            "a",
            vec![
                sealed("star", "*.example.com", None),
                sealed("db", "db.example.com", None),
                sealed("own", "db.example.com", Some(own)),
            ],
        )]);
        assert_eq!(routes.problems(), [] as [String; 0]);
        let to = |at, name| routes.sealed(at, name).map(|way| &*way.service);
        assert_eq!(to(None, "db.example.com"), Some("db"));
        assert_eq!(to(None, "x.example.com"), Some("star"));
        assert_eq!(
            to(Some(own.parse().unwrap()), "db.example.com"),
            Some("own")
        );
        for nobody in ["example.com", "a.b.example.com", ".example.com", "", "x"] {
            assert_eq!(to(None, nobody), None, "{nobody}");
        }
        assert!(routes.has_sealed(None));
        assert_eq!(routes.listeners().len(), 1);
    }

    #[test]
    fn the_first_of_two_that_contradict_counts_and_the_other_is_said() {
        let clusters = [
            cluster("b", vec![tcp("late", "127.0.0.1:1"), tcp("ok", "[::]:2")]),
            cluster(
                "a",
                vec![
                    tcp("first", "127.0.0.1:1"),
                    sealed("mixed", "x.example.com", Some("127.0.0.1:1")),
                    tcp("named", "localhost:5432"),
                ],
            ),
        ];
        let routes = Routes::build(&clusters);
        let way = routes.tcp("127.0.0.1:1".parse().unwrap()).unwrap();
        assert_eq!((way.cluster.as_str(), &*way.service), ("a", "first"));
        assert_eq!(routes.listeners().len(), 2);
        let said = routes.problems();
        assert_eq!(said.len(), 3, "{said:?}");
        for (problem, part) in said.iter().zip(["mixed", "localhost", "late"]) {
            assert!(problem.contains(part), "{problem}");
        }
    }
}
