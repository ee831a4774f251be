//! One dial from names to an open connection.

use std::io;
use std::net::{IpAddr, SocketAddr};

use culvert_proto::close::CloseReason;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::{DialError, DialFailure, Step};
use super::link::{Link, Linked, Secure};
use super::proxy::Proxy;
use super::race::{Candidate, Failed, Field, Found, Lookup, attempt, interleave, race};
use super::url::HubUrl;
use super::{Conn, Dialer, LOOK_INTERVAL, LOOKUP_PATIENCE, STAGGER, STEP_MAX};
use crate::hangup::{Hangup, Leg};
use crate::look::{Look, Looked};
use crate::socket::{set_carrier_options, set_leg_options};
use crate::tls::{ClientTls, TlsError};
use crate::transport::Transport;

/// One hub, and where its TCP connection goes.
struct Route<'a> {
    url: &'a HubUrl,
    proxy: Option<Proxy>,
    host: String,
    port: u16,
}

impl<'a> Route<'a> {
    fn new(dialer: &Dialer, url: &'a HubUrl) -> Route<'a> {
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
    }
}

/// A carrier's connection: it obeys a [`crate::hangup::Hangup`] and shows itself to a
/// [`crate::look::Look`], whatever lies on it.
pub(super) async fn dial(dialer: &Dialer, urls: &[HubUrl]) -> Result<Conn, DialError> {
    let (mut hangup, mut look) = (Hangup::default(), Look::default());
    let linked = dial_link(dialer, urls, |stream| {
        set_carrier_options(&stream)?;
        let (leg, order) = Leg::new(stream);
        let leg = Looked::new(leg, LOOK_INTERVAL);
        // The last one that was wrapped is the one that won.
        (hangup, look) = (order, leg.look());
        Ok(leg)
    })
    .await?;
    Ok(Conn {
        io: linked.link.boxed(),
        hangup,
        look,
        url_index: linked.url_index,
        peer: linked.peer,
        proxy: linked.proxy,
        tls: linked.tls,
    })
}

/// A connection to the first of `urls` that lets itself be connected to; `wrap` sets options.
pub(super) async fn dial_link<IO: Transport>(
    dialer: &Dialer,
    urls: &[HubUrl],
    mut wrap: impl FnMut(TcpStream) -> io::Result<IO>,
) -> Result<Linked<IO>, DialError> {
    let routes: Vec<Route<'_>> = urls.iter().map(|url| Route::new(dialer, url)).collect();
    let failures = Mutex::new(Vec::new());
    let mut field = Field::default();
    let lookups = routes.iter().enumerate();
    field
        .lookups
        .extend(lookups.map(|(i, r)| look_up(dialer, i, r, &failures)));
    loop {
        let failed = |candidate: &Candidate, problem| {
            let route = &routes[candidate.url_index];
            let failure = failure(route, candidate.addr, Step::Tcp, problem);
            failures.lock().push(failure);
        };
        let Some((candidate, stream)) = race(&mut field, STAGGER, STEP_MAX, failed).await else {
            break;
        };
        let route = &routes[candidate.url_index];
        let secure = Secure::of(route.url);
        match finish(dialer, route, candidate.addr, wrap(stream), secure).await {
            Ok(mut linked) => {
                let key = (route.host.clone(), route.port);
                dialer.last_good.lock().insert(key, candidate.addr);
                linked.url_index = candidate.url_index;
                return Ok(linked);
            }
            Err((step, why)) => {
                let failure = failure(route, candidate.addr, step, why);
                failures.lock().push(failure);
            }
        }
    }
    drop(field);
    Err(DialError {
        failures: failures.into_inner(),
    })
}

/// A further connection to a hub that is connected to already: the same process has to answer, so
/// `peer` is where the first one went, and no name is resolved.
pub(super) async fn dial_again(
    dialer: &Dialer,
    url: &HubUrl,
    peer: SocketAddr,
    secure: Secure<'_>,
) -> Result<Linked<TcpStream>, DialError> {
    let route = Route::new(dialer, url);
    let (_, connected) = attempt(
        Candidate {
            url_index: 0,
            addr: peer,
        },
        STEP_MAX,
    )
    .await;
    let finished = match connected {
        Ok(stream) => {
            let stream = set_leg_options(&stream).map(|()| stream);
            finish(dialer, &route, peer, stream, secure).await
        }
        Err(why) => Err((Step::Tcp, why)),
    };
    finished.map_err(|(step, why)| DialError::one(failure(&route, peer, step, why)))
}

fn failure(route: &Route<'_>, addr: SocketAddr, step: Step, why: Failed) -> DialFailure {
    let through = match &route.proxy {
        Some(proxy) => format!("{} through {} at {addr}", route.url, proxy.name()),
        None => format!("{} at {addr}", route.url),
    };
    let (reason, problem) = why;
    DialFailure {
        target: through,
        step,
        reason,
        problem,
    }
}

/// The addresses of one route, and the address that last worked behind them: it stands in where
/// the name does not resolve, or takes long.
fn look_up<'a>(
    dialer: &Dialer,
    url_index: usize,
    route: &'a Route<'_>,
    failures: &'a Mutex<Vec<DialFailure>>,
) -> Lookup<'a> {
    let key = (route.host.clone(), route.port);
    let last_good = dialer.last_good.lock().get(&key).copied();
    let resolving: Lookup<'a> = Box::pin(async move {
        let found = lookup(&route.host, route.port).await;
        let mut addrs = found.unwrap_or_else(|problem| {
            failures.lock().push(DialFailure {
                target: format!("{} (name {})", route.url, route.host),
                step: Step::Dns,
                reason: CloseReason::HubName,
                problem,
            });
            Vec::new()
        });
        addrs.extend(last_good);
        Found {
            url_index,
            addrs,
            rest: None,
        }
    });
    match last_good {
        None => resolving,
        Some(addr) => Box::pin(impatient(resolving, url_index, addr)),
    }
}

async fn impatient<'a>(mut resolving: Lookup<'a>, url_index: usize, addr: SocketAddr) -> Found<'a> {
    match timeout(LOOKUP_PATIENCE, &mut resolving).await {
        Ok(found) => found,
        Err(_) => Found {
            url_index,
            addrs: vec![addr],
            rest: Some(resolving),
        },
    }
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
async fn finish<IO: Transport>(
    dialer: &Dialer,
    route: &Route<'_>,
    peer: SocketAddr,
    io: io::Result<IO>,
    secure: Secure<'_>,
) -> Result<Linked<IO>, (Step, Failed)> {
    let io = io.map_err(|e| (Step::Tcp, (CloseReason::HubUnreachable, e.to_string())))?;
    let io = match &route.proxy {
        None => Ok(io),
        Some(proxy) => Link::unboxed(pass(dialer, proxy, route.url, io).await?),
    };
    let host = route.url.host();
    // The common paths keep their concrete types: one virtual call per read, not two.
    let (link, tls) = match io {
        Ok(io) if !secure.is_tls() => (Link::Plain(io), None),
        Err(io) if !secure.is_tls() => (Link::Boxed(io), None),
        Ok(io) => {
            let tls = secure.handshake(&dialer.tls, host, io).await;
            let tls = tls.map_err(|e| by_tls(&e))?;
            let info = ClientTls::info(&tls);
            (Link::Tls(Box::new(tls)), Some(info))
        }
        Err(io) => {
            let tls = secure.handshake(&dialer.tls, host, io).await;
            let tls = tls.map_err(|e| by_tls(&e))?;
            let info = ClientTls::info(&tls);
            (Link::Boxed(Box::new(tls)), Some(info))
        }
    };
    Ok(Linked {
        link,
        url_index: 0,
        peer,
        proxy: route.proxy.as_ref().map(Proxy::name),
        tls,
    })
}

async fn pass(
    dialer: &Dialer,
    proxy: &Proxy,
    url: &HubUrl,
    io: impl Transport,
) -> Result<Box<dyn Transport>, (Step, Failed)> {
    match timeout(STEP_MAX, proxy.pass(Box::new(io), url, &dialer.tls)).await {
        Ok(Ok(io)) => Ok(io),
        Ok(Err(why)) => Err((Step::Proxy, why)),
        Err(_) => {
            let problem = format!("the proxy did not answer within {} s", STEP_MAX.as_secs());
            Err((Step::Proxy, (CloseReason::ProxyRefused, problem)))
        }
    }
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

    #[tokio::test(start_paused = true)]
    async fn the_last_good_address_stands_in_for_a_resolver_that_is_slow() {
        let addr: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let late: Lookup<'_> = Box::pin(async move {
            tokio::time::sleep(STEP_MAX).await;
            Found {
                url_index: 3,
                addrs: Vec::new(),
                rest: None,
            }
        });
        let begun = tokio::time::Instant::now();
        let first = impatient(late, 3, addr).await;
        assert_eq!((first.url_index, first.addrs), (3, vec![addr]));
        assert_eq!(begun.elapsed(), LOOKUP_PATIENCE);
        let rest = first.rest.expect("the answer is still awaited").await;
        assert_eq!((rest.url_index, begun.elapsed()), (3, STEP_MAX));
    }

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
