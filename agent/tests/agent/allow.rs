//! Nothing but the target is ever dialled, whatever names resolve to.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_agent::target::TargetKind;
use culvert_agent::upstream::resolve::Resolve;
use culvert_net::tls::dev::DevCa;
use culvert_net::tls::{ClientTlsOptions, MinVersion, Roots, ServerTls, ServerTlsOptions};
use http::Response;

use crate::support::*;

fn named(target: &str, resolver: Arc<dyn Resolve>, allow: &[&str]) -> Made {
    let recipe = Recipe::of(target.to_owned(), TargetKind::Http);
    let allow = allow.iter().map(|net| net.parse().unwrap()).collect();
    Recipe {
        resolver,
        allow,
        ..recipe
    }
    .make()
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

#[tokio::test]
async fn a_name_that_leads_to_a_special_address_is_refused_unless_listed() {
    let served = service(answer(|_| async { Response::new(full("x")) })).await;
    let port = served.addr.port();
    for ip in [
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "fd00:ec2::254",
    ] {
        let made = named(
            &format!("http://svc.example:{port}"),
            Fickle::new([vec![at(ip, port)]]),
            &[],
        );
        let response = ask(&made, get("/")).await;
        assert_eq!(
            (response.status().as_u16(), close_reason(&response)),
            (403, "target_not_allowed"),
            "{ip}"
        );
        let body = text(response.into_body()).await;
        assert!(body.contains("--allow-address"), "{body}");
    }
    assert_eq!(served.connections(), 0);
    let listed = named(
        &format!("http://svc.example:{port}"),
        Fickle::new([vec![at("127.0.0.1", port)]]),
        &["127.0.0.0/8"],
    );
    assert_eq!(text(ask(&listed, get("/")).await.into_body()).await, "x");
}

#[tokio::test]
async fn a_name_that_changes_its_answer_is_dialled_only_where_it_was_checked() {
    let served = service(answer(|_| async {
        Response::builder()
            .header("connection", "close")
            .body(full("x"))
            .unwrap()
    }))
    .await;
    let port = served.addr.port();
    // First a listed address beside a refused one, then only refused ones.
    let fickle = Fickle::new([
        vec![at("127.0.0.2", port), at("127.0.0.1", port)],
        vec![at("127.0.0.2", port)],
    ]);
    let made = named(
        &format!("http://svc.example:{port}"),
        fickle,
        &["127.0.0.1/32"],
    );
    assert_eq!(text(ask(&made, get("/")).await.into_body()).await, "x");
    let response = ask(&made, get("/")).await;
    assert_eq!(close_reason(&response), "target_not_allowed");
    assert_eq!(served.connections(), 1);
}

#[tokio::test]
async fn a_name_without_addresses_is_told() {
    let made = named("http://svc.example:80", Fickle::new([vec![]]), &[]);
    let response = ask(&made, get("/")).await;
    assert_eq!(
        (response.status().as_u16(), close_reason(&response)),
        (502, "dial_name")
    );
}

#[tokio::test]
async fn tls_is_verified_by_the_given_ca_only() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DevCa::new("test").unwrap();
    let ca_path = ca.write(dir.path()).unwrap();
    let (cert, key) = ca
        .server(&["localhost"])
        .unwrap()
        .write(dir.path(), "server")
        .unwrap();
    let options = ServerTlsOptions {
        cert,
        key,
        client_auth: None,
        alpn: Vec::new(),
        min_version: MinVersion::Tls12,
    };
    let tls = Arc::new(ServerTls::load(options).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                if let Ok(io) = tls.accept(tcp).await {
                    serve_one(io, answer(|_| async { Response::new(full("secret")) })).await;
                }
            });
        }
    });
    let make = |roots, host: &str| {
        let resolver = Fickle::new([vec![at("127.0.0.1", port)]]);
        let recipe = Recipe::of(format!("https://{host}:{port}"), TargetKind::Http);
        let tls = ClientTlsOptions {
            roots,
            alpn: vec![b"http/1.1".to_vec()],
            ..ClientTlsOptions::default()
        };
        Recipe {
            resolver,
            tls: Some(tls),
            allow: vec!["127.0.0.1/32".parse().unwrap()],
            ..recipe
        }
        .make()
    };
    let good = ask(&make(Roots::File(ca_path.clone()), "localhost"), get("/")).await;
    assert_eq!(text(good.into_body()).await, "secret");
    let careless = ask(&make(Roots::Insecure, "other.example"), get("/")).await;
    assert_eq!(text(careless.into_body()).await, "secret");
    let stranger = DevCa::new("stranger").unwrap();
    std::fs::create_dir(dir.path().join("s")).unwrap();
    let stranger = stranger.write(&dir.path().join("s")).unwrap();
    for (roots, host) in [
        (Roots::File(stranger), "localhost"),
        (Roots::File(ca_path), "other.example"),
    ] {
        let response = ask(&make(roots, host), get("/")).await;
        assert_eq!(
            (response.status().as_u16(), close_reason(&response)),
            (502, "target_tls")
        );
    }
}
