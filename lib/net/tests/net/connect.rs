//! The upgrade of W-7 between our agent side and hubs made with hyper, honest and mangled.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use culvert_net::dial::{Dialer, HubUrl, ProxyConfig, Setback};
use culvert_net::transport::{
    AgentConn, ConnectError, connect_agent, hub_transport, websocket_accept,
};
use culvert_proto::close::CloseReason;
use culvert_proto::hello::{AgentHello, Caps, CarrierKind, HelloAnswer, HelloRequest};
use culvert_proto::id::{Epoch, InstanceId};
use culvert_proto::token::TokenText;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{Pki, echo, round_trip, soon};

const TOKEN: &str = "rhc_a_token_of_sufficient_length";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    /// Nothing in between.
    Honest,
    /// Drops the raw upgrade from the list, as L7 proxies do that only know WebSocket.
    StripsUnknownUpgrades,
    /// Answers 400 to a list.
    RefusesLists,
    /// Never answers when it sees a list.
    Swallows,
    /// Closes without an answer when it sees a list.
    HangsUp,
    /// Resets the connection when it sees a list.
    Resets,
    /// Answers a list with what is no HTTP.
    Garbles,
    /// Tells the hub of no upgrade at all when it sees a list.
    StripsLists,
    /// Answers a list with an upgrade that nobody asked for.
    Switches,
    /// Always this status, from the hub itself.
    Hub(CloseReason),
    /// Always this status, from something in front.
    Front(u16),
}

struct Hub {
    addr: SocketAddr,
    /// `Upgrade` of every request seen.
    seen: Arc<Mutex<Vec<String>>>,
}

async fn hub(behaviour: Path, pki: Option<&Pki>) -> Hub {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (log, tls) = (seen.clone(), pki.map(Pki::server));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (log, tls) = (log.clone(), tls.clone());
            tokio::spawn(async move {
                let Some(socket) = through_the_box(socket, behaviour, &log).await else {
                    return;
                };
                let service = service_fn(move |request| answer(request, behaviour, log.clone()));
                let http = hyper::server::conn::http1::Builder::new();
                let _ = match tls {
                    Some(tls) => match tls.accept(socket).await {
                        Ok(io) => {
                            http.serve_connection(TokioIo::new(io), service)
                                .with_upgrades()
                                .await
                        }
                        Err(_) => Ok(()),
                    },
                    None => {
                        http.serve_connection(TokioIo::new(socket), service)
                            .with_upgrades()
                            .await
                    }
                };
            });
        }
    });
    Hub { addr, seen }
}

/// What a box does that does not even answer in HTTP; `None` = it has done so.
async fn through_the_box(
    mut socket: TcpStream,
    behaviour: Path,
    log: &Mutex<Vec<String>>,
) -> Option<TcpStream> {
    if !matches!(behaviour, Path::HangsUp | Path::Resets | Path::Garbles) {
        return Some(socket);
    }
    let mut head = vec![0; 4096];
    let bytes = loop {
        let bytes = socket.peek(&mut head).await.unwrap();
        if head[..bytes].ends_with(b"\r\n\r\n") {
            break bytes;
        }
        tokio::task::yield_now().await;
    };
    let offer = String::from_utf8_lossy(&head[..bytes]).to_lowercase();
    if !offer.contains("culvert/1,") {
        return Some(socket);
    }
    log.lock().push("culvert/1, websocket".to_owned());
    if behaviour == Path::Resets {
        // Unread bytes make the kernel reset.
        return None;
    }
    socket.read_exact(&mut head[..bytes]).await.unwrap();
    if behaviour == Path::Garbles {
        socket
            .write_all(b"\x15\x03\x01 no, thanks\r\n\r\n")
            .await
            .unwrap();
    }
    None
}

async fn answer(
    mut request: Request<Incoming>,
    behaviour: Path,
    log: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let offer = request.headers()["upgrade"].to_str().unwrap().to_owned();
    log.lock().push(offer.clone());
    let status = |code: u16| Response::builder().status(code);
    let is_list = offer.contains(',');
    match behaviour {
        Path::Honest => {}
        Path::StripsUnknownUpgrades => {
            request
                .headers_mut()
                .insert("upgrade", "websocket".parse().unwrap());
        }
        Path::RefusesLists if is_list => return Ok(status(400).body(Full::default()).unwrap()),
        Path::Swallows if is_list => std::future::pending::<()>().await,
        Path::StripsLists if is_list => {
            let answer = status(426).header("culvert-error", "no_common_version");
            return Ok(answer.body(Full::default()).unwrap());
        }
        Path::Switches if is_list => {
            let answer = status(101).header("connection", "upgrade");
            return Ok(answer
                .header("upgrade", "h2c")
                .body(Full::default())
                .unwrap());
        }
        Path::Hub(reason) => {
            let answer = status(reason.http_status().unwrap())
                .header("culvert-error", reason.as_str())
                .header("retry-after", "7");
            return Ok(answer.body(Full::default()).unwrap());
        }
        Path::Front(code) => {
            let answer = status(code).header("server", "corporate-gateway");
            return Ok(answer.body(Full::from("<h1>No</h1>")).unwrap());
        }
        _ => {}
    }
    let pairs = request
        .headers()
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_bytes()));
    let hello = HelloRequest::parse(request.uri().query(), pairs).unwrap();
    if hello.token.as_ref().map(TokenText::expose) != Some(TOKEN) {
        return Ok(status(401).body(Full::default()).unwrap());
    }
    let granted = HelloAnswer::new(hello.kind, Epoch(42), hello.hello.caps);
    let mut response = status(101);
    for (name, value) in granted.headers() {
        response = response.header(name, value);
    }
    if let (CarrierKind::WebSocket, Some(key)) = (hello.kind, &hello.websocket_key) {
        response = response.header("sec-websocket-accept", websocket_accept(key));
    }
    let kind = hello.kind;
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.unwrap();
        echo(hub_transport(upgraded, kind)).await;
    });
    Ok(response.body(Full::default()).unwrap())
}

fn hello() -> AgentHello {
    AgentHello {
        instance: Some(InstanceId([7; 16])),
        version: "1.2.3".to_owned(),
        caps: Caps::DRAIN.with(Caps::ROTATE),
        cluster: None,
    }
}

fn dialer(pki: &Pki) -> Dialer {
    Dialer::new(pki.client(), ProxyConfig::direct())
}

async fn connect(dialer: &Dialer, urls: &[HubUrl], token: &str) -> Result<AgentConn, ConnectError> {
    let token = TokenText::new(token).unwrap();
    soon(
        "connect",
        connect_agent(dialer, urls, &hello(), Some(&token)),
    )
    .await
}

fn plain(hub: &Hub) -> HubUrl {
    format!("ws://{}", hub.addr).parse().unwrap()
}

#[tokio::test]
async fn raw_where_the_path_allows_it_over_tcp_and_tls() {
    let pki = Pki::new("CA");
    for tls in [None, Some(&pki)] {
        let hub = hub(Path::Honest, tls).await;
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://localhost:{}", hub.addr.port())
            .parse()
            .unwrap();
        let mut conn = connect(&dialer(&pki), &[url], TOKEN).await.unwrap();
        assert_eq!(
            (conn.answer.kind, conn.answer.epoch),
            (CarrierKind::Native, Epoch(42))
        );
        assert_eq!((conn.answer.beat_ms, conn.answer.dead_ms), (5_000, 15_000));
        assert!(conn.answer.caps.has(Caps::DRAIN.with(Caps::ROTATE)));
        round_trip(&mut conn.io, b"raw bytes").await;
        assert_eq!(*hub.seen.lock(), ["culvert/1, websocket"]);
    }
}

#[tokio::test]
async fn websocket_where_a_box_strips_the_raw_upgrade() {
    let pki = Pki::new("CA");
    let hub = hub(Path::StripsUnknownUpgrades, Some(&pki)).await;
    let url = format!("wss://localhost:{}", hub.addr.port())
        .parse()
        .unwrap();
    let mut conn = connect(&dialer(&pki), &[url], TOKEN).await.unwrap();
    assert_eq!(conn.answer.kind, CarrierKind::WebSocket);
    round_trip(&mut conn.io, &vec![9; 200_000]).await;
    assert_eq!(hub.seen.lock().len(), 1, "one request was enough");
}

#[tokio::test]
async fn websocket_alone_is_asked_for_next_and_remembered() {
    let pki = Pki::new("CA");
    for sign in [
        Path::RefusesLists,
        Path::StripsLists,
        Path::Switches,
        Path::Garbles,
    ] {
        let hub = hub(sign, None).await;
        let dialer = dialer(&pki);
        for _ in 0..2 {
            let mut conn = connect(&dialer, &[plain(&hub)], TOKEN).await.unwrap();
            assert_eq!(conn.answer.kind, CarrierKind::WebSocket);
            round_trip(&mut conn.io, b"framed").await;
        }
        let seen = hub.seen.lock().clone();
        assert_eq!(
            seen,
            ["culvert/1, websocket", "websocket", "websocket"],
            "{sign:?}"
        );
    }
}

/// It may be a hub that is busy: no second connection at once, and no choice for an hour, before
/// WebSocket has helped twice.
#[tokio::test]
async fn a_connection_that_just_ends_is_asked_about_at_the_next_attempt() {
    let pki = Pki::new("CA");
    let list = "culvert/1, websocket";
    for sign in [Path::HangsUp, Path::Resets] {
        let hub = hub(sign, None).await;
        let dialer = dialer(&pki);
        let mut kinds = Vec::new();
        for _ in 0..6 {
            let conn = connect(&dialer, &[plain(&hub)], TOKEN).await;
            kinds.push(conn.map(|conn| conn.answer.kind).ok());
        }
        let framed = Some(CarrierKind::WebSocket);
        assert_eq!(
            kinds,
            [None, framed, None, framed, framed, framed],
            "{sign:?}"
        );
        let seen = hub.seen.lock().clone();
        let asked = [
            list,
            "websocket",
            list,
            "websocket",
            "websocket",
            "websocket",
        ];
        assert_eq!(seen, asked, "{sign:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_box_that_never_answers_a_list_is_asked_again() {
    let pki = Pki::new("CA");
    let hub = hub(Path::Swallows, None).await;
    let conn = connect(&dialer(&pki), &[plain(&hub)], TOKEN).await.unwrap();
    assert_eq!(conn.answer.kind, CarrierKind::WebSocket);
    assert_eq!(*hub.seen.lock(), ["culvert/1, websocket", "websocket"]);
}

#[tokio::test]
async fn only_a_401_blames_the_token() {
    let pki = Pki::new("CA");
    let dialer = dialer(&pki);
    let honest = hub(Path::Honest, None).await;
    let error = connect(&dialer, &[plain(&honest)], "rhc_some_other_token")
        .await
        .err()
        .unwrap();
    assert_eq!(error.close_reason(), CloseReason::Unauthenticated);
    assert_eq!(error.setback(), Setback::Refused);
    for (front, reason) in [
        (403, CloseReason::GatewayRefused),
        (404, CloseReason::WrongPath),
        (502, CloseReason::HubError),
        (302, CloseReason::Redirected),
    ] {
        let hub = hub(Path::Front(front), None).await;
        let error = connect(&dialer, &[plain(&hub)], TOKEN).await.err().unwrap();
        assert_eq!(error.close_reason(), reason, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("corporate-gateway") && text.contains("<h1>No</h1>"),
            "{text}"
        );
        assert!(!text.contains(TOKEN));
    }
}

#[tokio::test]
async fn the_hubs_own_words_and_waits_are_kept() {
    let pki = Pki::new("CA");
    let hub = hub(Path::Hub(CloseReason::Paced), None).await;
    let error = connect(&dialer(&pki), &[plain(&hub)], TOKEN)
        .await
        .err()
        .unwrap();
    assert_eq!(error.close_reason(), CloseReason::Paced);
    assert_eq!(
        error.setback(),
        Setback::RetryAfter(std::time::Duration::from_secs(7))
    );
    assert_eq!(
        hub.seen.lock().len(),
        1,
        "a hub's own refusal is not asked about again"
    );
}

#[tokio::test]
async fn a_refusing_hub_yields_to_the_next_address() {
    let pki = Pki::new("CA");
    let (draining, good) = (
        hub(Path::Hub(CloseReason::Draining), None).await,
        hub(Path::Honest, None).await,
    );
    let urls = [plain(&draining), plain(&good)];
    let conn = connect(&dialer(&pki), &urls, TOKEN).await.unwrap();
    assert_eq!(conn.url, urls[1]);
}
