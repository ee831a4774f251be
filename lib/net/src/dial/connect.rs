//! One dial from names to an open connection.

use std::net::{IpAddr, SocketAddr};

use culvert_proto::close::CloseReason;
use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::{DialError, DialFailure, Step};
use super::proxy::Proxy;
use super::race::{Candidate, Failed, interleave, race};
use super::url::HubUrl;
use super::{CANDIDATES_MAX, Conn, Dialer, STAGGER, STEP_MAX};
use crate::hangup::Leg;
use crate::socket::set_carrier_options;
use crate::tls::{ClientTls, TlsError};
use crate::transport::Transport;

/// One hub, and where its TCP connection goes.
struct Route<'a> {
    url: &'a HubUrl,
    proxy: Option<Proxy>,
    host: String,
    port: u16,
}

pub(super) async fn dial(dialer: &Dialer, urls: &[HubUrl]) -> Result<Conn, DialError> {
    let routes: Vec<Route<'_>> = urls
        .iter()
        .map(|url| {
            let proxy = dialer.proxy.for_url(url);
            let (host, port) = match &proxy {
                Some(proxy) => proxy.host_and_port(),
                None => (url.host().to_owned(), url.port()),
            };
            Route {
                url,
                proxy,
                host,
                port,
            }
        })
        .collect();
    let mut failures = Vec::new();
    let mut candidates = resolve(dialer, &routes, &mut failures).await;
    while !candidates.is_empty() {
        let failed = |candidate: &Candidate, problem| {
            failures.push(failure(
                &routes[candidate.url_index],
                candidate,
                Step::Tcp,
                problem,
            ));
        };
        let Some((candidate, stream)) = race(&mut candidates, STAGGER, STEP_MAX, failed).await
        else {
            break;
        };
        let route = &routes[candidate.url_index];
        match finish(dialer, route, &candidate, stream).await {
            Ok(conn) => {
                let key = (route.host.clone(), route.port);
                dialer.last_good.lock().insert(key, candidate.addr);
                return Ok(conn);
            }
            Err((step, why)) => failures.push(failure(route, &candidate, step, why)),
        }
    }
    Err(DialError { failures })
}

fn failure(route: &Route<'_>, candidate: &Candidate, step: Step, why: Failed) -> DialFailure {
    let through = match &route.proxy {
        Some(proxy) => format!(
            "{} through {} at {}",
            route.url,
            proxy.name(),
            candidate.addr
        ),
        None => format!("{} at {}", route.url, candidate.addr),
    };
    let (reason, problem) = why;
    DialFailure {
        target: through,
        step,
        reason,
        problem,
    }
}

/// All addresses of all routes, in the order of the routes; where a name does not resolve, the
/// address that last worked stands in.
async fn resolve(
    dialer: &Dialer,
    routes: &[Route<'_>],
    failures: &mut Vec<DialFailure>,
) -> Vec<Candidate> {
    let lookups = join_all(routes.iter().map(|route| lookup(&route.host, route.port))).await;
    let mut candidates = Vec::new();
    for (url_index, (route, found)) in routes.iter().zip(lookups).enumerate() {
        let last_good = dialer
            .last_good
            .lock()
            .get(&(route.host.clone(), route.port))
            .copied();
        let mut addrs = found.unwrap_or_else(|problem| {
            let target = format!("{} (name {})", route.url, route.host);
            failures.push(DialFailure {
                target,
                step: Step::Dns,
                reason: CloseReason::HubName,
                problem,
            });
            Vec::new()
        });
        addrs.extend(last_good.filter(|addr| !addrs.contains(addr)));
        candidates.extend(addrs.into_iter().map(|addr| Candidate { url_index, addr }));
    }
    candidates.truncate(CANDIDATES_MAX);
    candidates
}

async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    match timeout(STEP_MAX, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addrs)) => match interleave(addrs) {
            addrs if addrs.is_empty() => Err("the name has no address".to_owned()),
            addrs => Ok(addrs),
        },
        Ok(Err(error)) => Err(format!("the name does not resolve: {error}")),
        Err(_) => Err(format!(
            "the resolver did not answer within {} s",
            STEP_MAX.as_secs()
        )),
    }
}

/// Proxy and TLS on a TCP connection that stands.
async fn finish(
    dialer: &Dialer,
    route: &Route<'_>,
    candidate: &Candidate,
    stream: TcpStream,
) -> Result<Conn, (Step, Failed)> {
    set_carrier_options(&stream)
        .map_err(|e| (Step::Tcp, (CloseReason::HubUnreachable, e.to_string())))?;
    let (stream, hangup) = Leg::new(stream);
    let proxy_name = route.proxy.as_ref().map(Proxy::name);
    let conn = |io, tls| Conn {
        io,
        hangup,
        url_index: candidate.url_index,
        peer: candidate.addr,
        proxy: proxy_name,
        tls,
    };
    let host = route.url.host();
    let Some(proxy) = &route.proxy else {
        // The common path keeps its concrete types: one virtual call per read, not two.
        if !route.url.is_tls() {
            return Ok(conn(Box::new(stream), None));
        }
        let tls = dialer
            .tls
            .connect(host, stream)
            .await
            .map_err(|e| by_tls(&e))?;
        let info = ClientTls::info(&tls);
        return Ok(conn(Box::new(tls), Some(info)));
    };
    let passed = timeout(
        STEP_MAX,
        proxy.pass(Box::new(stream), route.url, &dialer.tls),
    )
    .await;
    let io: Box<dyn Transport> = match passed {
        Ok(Ok(io)) => io,
        Ok(Err(why)) => return Err((Step::Proxy, why)),
        Err(_) => {
            let problem = format!("the proxy did not answer within {} s", STEP_MAX.as_secs());
            return Err((Step::Proxy, (CloseReason::ProxyRefused, problem)));
        }
    };
    if !route.url.is_tls() {
        return Ok(conn(io, None));
    }
    let tls = dialer.tls.connect(host, io).await.map_err(|e| by_tls(&e))?;
    let info = ClientTls::info(&tls);
    Ok(conn(Box::new(tls), Some(info)))
}

fn by_tls(error: &TlsError) -> (Step, Failed) {
    (Step::Tls, (error.close_reason(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dial::ProxyConfig;
    use crate::tls::{ClientTlsOptions, Roots};

    #[tokio::test]
    async fn the_last_good_address_stands_in_for_a_resolver_that_fails() {
        let hub = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = hub.local_addr().unwrap();
        let tls = ClientTls::load(ClientTlsOptions {
            roots: Roots::Insecure,
            ..ClientTlsOptions::default()
        });
        let dialer = Dialer::new(Arc::new(tls.unwrap()), ProxyConfig::direct());
        let url: HubUrl = format!("ws://hub.invalid:{}", addr.port()).parse().unwrap();
        let urls = [url];
        assert_eq!(dialer.dial(&urls).await.err().unwrap().step(), Step::Dns);
        let key = ("hub.invalid".to_owned(), addr.port());
        dialer.last_good.lock().insert(key, addr);
        assert_eq!(dialer.dial(&urls).await.unwrap().peer, addr);
    }
}
