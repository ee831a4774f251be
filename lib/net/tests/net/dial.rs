//! Dialling through proxies, past dead addresses, and what errors say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use culvert_net::dial::{Dialer, HubUrl, Link, ProxyConfig, Step};
use culvert_net::tls::ServerTls;
use culvert_proto::close::CloseReason;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{Pki, echo, round_trip, soon, tls_echo};

fn url(text: &str) -> HubUrl {
    text.parse().unwrap()
}

fn through(proxy: &str) -> ProxyConfig {
    ProxyConfig::new(Some(proxy), |_| None).unwrap()
}

/// A CONNECT proxy that wants `credentials` (base64), over TLS if given.
struct ConnectProxy {
    addr: SocketAddr,
    passed: Arc<AtomicU32>,
}

async fn connect_proxy(
    credentials: Option<&'static str>,
    tls: Option<Arc<ServerTls>>,
) -> ConnectProxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let passed = Arc::new(AtomicU32::new(0));
    let count = passed.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (tls, count) = (tls.clone(), count.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(socket).await {
                            serve_connect(stream, credentials, &count).await;
                        }
                    }
                    None => serve_connect(socket, credentials, &count).await,
                }
            });
        }
    });
    ConnectProxy { addr, passed }
}

async fn serve_connect(
    io: impl AsyncRead + AsyncWrite + Unpin,
    credentials: Option<&str>,
    passed: &AtomicU32,
) {
    let mut io = BufReader::new(io);
    let (mut target, mut authorized) = (String::new(), credentials.is_none());
    loop {
        let mut line = String::new();
        if io.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("CONNECT ") {
            target = rest.split(' ').next().unwrap().to_owned();
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("proxy-authorization")
        {
            authorized = credentials.is_some_and(|c| value == format!("Basic {c}"));
        }
    }
    if !authorized {
        let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
        let _ = io.write_all(answer).await;
        return;
    }
    if target.starts_with("forbidden") {
        let _ = io
            .write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            .await;
        return;
    }
    // A name that only the proxy can resolve.
    let target = target.replace("hub.internal", "127.0.0.1");
    let mut upstream = TcpStream::connect(target).await.unwrap();
    passed.fetch_add(1, Ordering::SeqCst);
    io.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        .await
        .unwrap();
    io.flush().await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut io, &mut upstream).await;
}

/// A SOCKS5 proxy with user and password (RFC 1928, 1929).
async fn socks_proxy() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let mut head = [0; 2];
            io.read_exact(&mut head).await.unwrap();
            let mut methods = vec![0; usize::from(head[1])];
            io.read_exact(&mut methods).await.unwrap();
            assert!(methods.contains(&2), "user and password must be offered");
            io.write_all(&[5, 2]).await.unwrap();
            let mut auth = vec![0; 2];
            io.read_exact(&mut auth).await.unwrap();
            let mut user = vec![0; usize::from(auth[1]) + 1];
            io.read_exact(&mut user).await.unwrap();
            let mut password = vec![0; usize::from(*user.last().unwrap())];
            io.read_exact(&mut password).await.unwrap();
            let good = user.starts_with(b"me") && password == b"secret";
            io.write_all(&[1, u8::from(!good)]).await.unwrap();
            if !good {
                continue;
            }
            let mut request = [0; 5];
            io.read_exact(&mut request).await.unwrap();
            assert_eq!(
                request[..4],
                [5, 1, 0, 3],
                "a name for the proxy to resolve"
            );
            let mut name = vec![0; usize::from(request[4]) + 2];
            io.read_exact(&mut name).await.unwrap();
            let port = u16::from_be_bytes([name[name.len() - 2], name[name.len() - 1]]);
            assert_eq!(name[..name.len() - 2], *b"hub.internal");
            let mut upstream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            io.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0])
                .await
                .unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut io, &mut upstream).await;
            });
        }
    });
    addr
}

/// A hub whose certificate is for `hub.internal`, a name only proxies resolve.
async fn internal_hub(pki: &Pki) -> SocketAddr {
    let cert = pki.ca.server(&["hub.internal"]).unwrap();
    cert.write(pki.dir.path(), "server").unwrap();
    tls_echo(pki.server()).await
}

#[tokio::test]
async fn connect_proxies_with_and_without_tls_and_credentials() {
    let pki = Pki::new("CA");
    let proxy_tls = pki.server();
    let hub = internal_hub(&pki).await;
    let hub_url = url(&format!("wss://hub.internal:{}", hub.port()));
    let base64 = "bWU6c2VjcmV0"; // me:secret
    for (scheme, credentials, tls) in [
        ("http", None, None),
        ("http", Some(base64), None),
        ("https", Some(base64), Some(proxy_tls)),
    ] {
        let proxy = connect_proxy(credentials, tls).await;
        let user = if credentials.is_some() {
            "me:secret@"
        } else {
            ""
        };
        let config = through(&format!("{scheme}://{user}localhost:{}", proxy.addr.port()));
        let config = config.with_tls(pki.client());
        let dialer = Dialer::new(pki.client(), config);
        let mut conn = soon("dial", dialer.dial(std::slice::from_ref(&hub_url)))
            .await
            .unwrap();
        round_trip(&mut conn.io, b"through").await;
        assert!(conn.tls.is_some() && conn.peer.port() == proxy.addr.port());
        let shown = conn.proxy.clone().unwrap();
        assert!(
            shown.starts_with(scheme) && !shown.contains("secret"),
            "{shown}"
        );
        assert_eq!(proxy.passed.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_socks_proxy_resolves_the_name() {
    let pki = Pki::new("CA");
    let hub = internal_hub(&pki).await;
    let proxy = socks_proxy().await;
    let dialer = Dialer::new(
        pki.client(),
        through(&format!("socks5h://me:secret@{proxy}")),
    );
    let hub_url = url(&format!("wss://hub.internal:{}", hub.port()));
    let mut conn = soon("dial", dialer.dial(std::slice::from_ref(&hub_url)))
        .await
        .unwrap();
    round_trip(&mut conn.io, b"through").await;
    let dialer = Dialer::new(
        pki.client(),
        through(&format!("socks5h://me:wrong@{proxy}")),
    );
    let error = soon("dial", dialer.dial(&[hub_url])).await.err().unwrap();
    assert_eq!(
        (error.step(), error.close_reason()),
        (Step::Proxy, CloseReason::ProxyRefused)
    );
}

#[tokio::test]
async fn a_proxys_refusals_are_told_apart_and_hide_the_password() {
    let pki = Pki::new("CA");
    let proxy = connect_proxy(Some("bWU6c2VjcmV0"), None).await;
    for (user, host, reason, word) in [
        ("", "hub", CloseReason::ProxyAuth, "wants credentials"),
        (
            "me:wrongsecret@",
            "hub",
            CloseReason::ProxyAuth,
            "refused the credentials",
        ),
        (
            "me:secret@",
            "forbidden",
            CloseReason::ProxyRefused,
            "forbids",
        ),
    ] {
        let dialer = Dialer::new(
            pki.client(),
            through(&format!("http://{user}{}", proxy.addr)),
        );
        let error = soon("dial", dialer.dial(&[url(&format!("wss://{host}"))]))
            .await
            .err()
            .unwrap();
        let text = error.to_string();
        assert_eq!(
            (error.step(), error.close_reason()),
            (Step::Proxy, reason),
            "{text}"
        );
        assert!(text.contains(word) && !text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn a_hub_that_is_down_or_speaks_no_tls_yields_to_the_next() {
    let pki = Pki::new("CA");
    let good = tls_echo(pki.server()).await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deaf_addr = deaf.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = deaf.accept().await {
            let _ = io.write_all(b"220 mail.example.org ESMTP\r\n").await;
        }
    });
    let urls =
        [closed, deaf_addr, good].map(|addr| url(&format!("wss://localhost:{}", addr.port())));
    let dialer = Dialer::new(pki.client(), ProxyConfig::direct());
    let mut conn = soon("dial", dialer.dial(&urls)).await.unwrap();
    assert_eq!(conn.url_index, 2);
    round_trip(&mut conn.io, b"the third").await;

    let error = soon("dial", dialer.dial(&urls[..2])).await.err().unwrap();
    assert_eq!(error.step(), Step::Tls);
    let refused = error.failures.iter().find(|f| f.step == Step::Tcp).unwrap();
    assert_eq!(refused.reason, CloseReason::HubRefused);
    assert!(
        error.to_string().contains(&closed.port().to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn names_that_do_not_resolve_are_named() {
    let pki = Pki::new("CA");
    let dialer = Dialer::new(pki.client(), ProxyConfig::direct());
    let error = soon("dial", dialer.dial(&[url("wss://no-such-host.invalid")]))
        .await
        .err()
        .unwrap();
    assert_eq!(
        (error.step(), error.close_reason()),
        (Step::Dns, CloseReason::HubName)
    );
    assert!(
        error.to_string().contains("no-such-host.invalid"),
        "{error}"
    );
}

async fn plain_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(echo(socket));
        }
    });
    addr
}

/// What is spliced has to be the TCP connection itself, behind a proxy too.
#[tokio::test]
async fn a_plain_link_is_the_connection_itself() {
    let pki = Pki::new("CA");
    let hub = plain_echo().await;
    let hub_url = url(&format!("ws://hub.internal:{}", hub.port()));
    let here = url(&format!("ws://{hub}"));
    let by_connect = connect_proxy(None, None).await.addr;
    let by_tls = connect_proxy(None, Some(pki.server())).await.addr;
    let by_socks = socks_proxy().await;
    for (proxy, url, plain) in [
        (None, &here, true),
        (Some(format!("http://{by_connect}")), &hub_url, true),
        (
            Some(format!("socks5h://me:secret@{by_socks}")),
            &hub_url,
            true,
        ),
        (
            Some(format!("https://localhost:{}", by_tls.port())),
            &hub_url,
            false,
        ),
    ] {
        let config = proxy.as_deref().map_or_else(ProxyConfig::direct, through);
        let dialer = Dialer::new(pki.client(), config.with_tls(pki.client()));
        let first = soon("link", dialer.link(std::slice::from_ref(url))).await;
        let mut first = first.unwrap();
        round_trip(&mut first.link, b"first").await;
        let again = soon("again", dialer.link_again(url, first.peer, None)).await;
        let mut again = again.unwrap();
        round_trip(&mut again.link, b"again").await;
        for linked in [first, again] {
            assert_eq!(matches!(linked.link, Link::Plain(_)), plain, "{proxy:?}");
            assert_eq!(linked.link.bottom().is_some(), plain);
            assert!(linked.tls.is_none());
        }
    }
}

#[tokio::test]
async fn a_link_to_the_same_hub_resolves_nothing_and_offers_its_own_protocol() {
    let pki = Pki::new("CA");
    let options = culvert_net::tls::ServerTlsOptions {
        alpn: vec![b"http/1.1".to_vec(), b"culvert-data/1".to_vec()],
        ..pki.server_options()
    };
    let server = Arc::new(ServerTls::load(options).unwrap());
    let peer = tls_echo(server).await;
    let dialer = Dialer::new(pki.client(), ProxyConfig::direct());
    // The certificate is for this name, and no resolver knows it with this port.
    let hub_url = url("wss://localhost:1");
    let alpn = b"culvert-data/1";
    let linked = dialer.link_again(&hub_url, peer, Some(alpn));
    let mut linked = soon("again", linked).await.unwrap();
    assert_eq!(
        linked.tls.as_ref().unwrap().alpn.as_deref(),
        Some(&alpn[..])
    );
    assert!(linked.link.bottom().is_some());
    round_trip(&mut linked.link, b"through TLS").await;
    let foreign = dialer.link_again(&hub_url, peer, Some(b"unknown/9"));
    let error = soon("again", foreign).await.err().unwrap();
    assert_eq!(error.step(), Step::Tls, "{error}");
}
