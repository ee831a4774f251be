//! Who is trusted, who is refused, and what happens when files change.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use culvert_net::tls::{
    ClientAuth, ClientTls, ClientTlsOptions, MinVersion, Problem, Reload as _, Reloaded, Roots,
    SeenCertificate, ServerTls, ServerTlsOptions, SpkiPin, TlsError, keep_fresh, spki_sha256,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{Pki, client_of, round_trip, soon, tls_echo};

async fn refused(client: &ClientTls, server: Arc<ServerTls>) -> TlsError {
    let addr = tls_echo(server).await;
    let socket = TcpStream::connect(addr).await.unwrap();
    match soon("handshake", client.connect("localhost", socket)).await {
        Ok(_) => panic!("the handshake must fail"),
        Err(error) => error,
    }
}

async fn seen(client: &ClientTls, server: Arc<ServerTls>) -> SeenCertificate {
    match refused(client, server).await {
        TlsError::Certificate(seen) => *seen,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_unknown_issuer_is_named_and_its_pin_is_accepted() {
    let pki = Pki::new("Bank Inspect CA");
    let stranger = Pki::new("Other CA");
    let seen = seen(&stranger.client(), pki.server()).await;
    assert_eq!(seen.problem, Problem::UnknownIssuer);
    assert!(seen.issuer.contains("Bank Inspect CA"), "{seen}");
    let text = seen.to_string();
    assert!(
        text.contains(&seen.spki.to_string()) && text.contains("sha256:"),
        "{text}"
    );

    // What the text says to pin works when it is pinned.
    let pin: SpkiPin = seen.spki.to_string().parse().unwrap();
    let addr = tls_echo(pki.server()).await;
    let socket = TcpStream::connect(addr).await.unwrap();
    let mut stream = client_of(Roots::Pin(pin))
        .connect("localhost", socket)
        .await
        .unwrap();
    round_trip(&mut stream, b"pinned").await;
}

#[tokio::test]
async fn a_wrong_pin_is_refused_and_a_pinned_ca_still_checks_the_name() {
    let pki = Pki::new("CA");
    let wrong = SpkiPin([7; 32]);
    let refused = seen(&client_of(Roots::Pin(wrong)), pki.server()).await;
    assert_eq!(refused.problem, Problem::Pin(wrong));

    let ca_pin = {
        use rustls_pki_types::pem::PemObject as _;
        let der =
            rustls_pki_types::CertificateDer::from_pem_slice(pki.ca.pem().as_bytes()).unwrap();
        SpkiPin(spki_sha256(&der).unwrap())
    };
    let client = client_of(Roots::Pin(ca_pin));
    let addr = tls_echo(pki.server()).await;
    let mut stream = client
        .connect("localhost", TcpStream::connect(addr).await.unwrap())
        .await
        .unwrap();
    round_trip(&mut stream, b"by its CA").await;
    let other_name = client.connect("hub.example.org", TcpStream::connect(addr).await.unwrap());
    match other_name.await {
        Err(TlsError::Certificate(seen)) => assert_eq!(seen.problem, Problem::Name),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the name must be checked"),
    }
}

#[tokio::test]
async fn versions_below_the_minimum_are_refused() {
    let pki = Pki::new("CA");
    let addr = tls_echo(pki.server()).await;
    let client = pki.client();
    let socket = TcpStream::connect(addr).await.unwrap();
    let stream = client.connect("localhost", socket).await.unwrap();
    assert!(ClientTls::info(&stream).is_tls13);

    let options = ServerTlsOptions {
        min_version: MinVersion::Tls13,
        ..pki.server_options()
    };
    let addr = tls_echo(Arc::new(ServerTls::load(options).unwrap())).await;
    // A client that knows nothing newer than 1.2, made by hand: ours always offers 1.3.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let old = tokio_rustls::TlsConnector::from(Arc::new(old));
    let socket = TcpStream::connect(addr).await.unwrap();
    let error = soon(
        "alert",
        old.connect("localhost".try_into().unwrap(), socket),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn client_certificates_are_required_checked_and_seen() {
    let pki = Pki::new("CA");
    let server = Arc::new(ServerTls::load(pki.mutual_options()).unwrap());
    let addr = tls_echo(server).await;
    let with = |identity| ClientTlsOptions {
        identity,
        ..pki.client_options()
    };
    let good = (pki.path("client.crt"), pki.path("client.key"));
    let client = ClientTls::load(with(Some(good))).unwrap();
    let mut stream = client
        .connect("localhost", TcpStream::connect(addr).await.unwrap())
        .await
        .unwrap();
    round_trip(&mut stream, b"known").await;

    let stranger = Pki::new("CA");
    let foreign = (stranger.path("client.crt"), stranger.path("client.key"));
    for identity in [None, Some(foreign)] {
        let client = ClientTls::load(with(identity)).unwrap();
        let socket = TcpStream::connect(addr).await.unwrap();
        // With TLS 1.3 the client hears of it at its first read.
        let mut stream = client.connect("localhost", socket).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut byte = [0];
        let error = soon("alert", stream.read(&mut byte)).await.unwrap_err();
        assert!(error.to_string().contains("fatal alert"), "{error}");
    }
}

#[tokio::test]
async fn rsa_clients_need_permission_and_ed25519_ones_do_not() {
    let pki = Pki::new("CA");
    let rsa = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519);
    let p521 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512);
    for (client_key, rsa_allowed, is_accepted) in [
        (rsa.as_ref().unwrap(), false, false),
        (rsa.as_ref().unwrap(), true, true),
        (ed25519.as_ref().unwrap(), false, true),
        (p521.as_ref().unwrap(), true, false),
    ] {
        let (cert, key) = (pki.path("own.crt"), pki.path("own.key"));
        let params = rcgen::CertificateParams::new(vec!["agent".to_owned()]).unwrap();
        fs::write(&cert, params.self_signed(client_key).unwrap().pem()).unwrap();
        fs::write(&key, client_key.serialize_pem()).unwrap();
        let options = ServerTlsOptions {
            client_auth: Some(ClientAuth {
                ca: cert.clone(),
                required: true,
                rsa: rsa_allowed,
            }),
            ..pki.server_options()
        };
        let addr = tls_echo(Arc::new(ServerTls::load(options).unwrap())).await;
        let client = ClientTls::load(ClientTlsOptions {
            identity: Some((cert, key)),
            ..pki.client_options()
        });
        let socket = TcpStream::connect(addr).await.unwrap();
        let mut stream = client.unwrap().connect("localhost", socket).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let read = soon("answer", stream.read(&mut [0])).await;
        assert_eq!(
            read.is_ok(),
            is_accepted,
            "{:?}: {read:?}",
            client_key.algorithm()
        );
    }
}

#[tokio::test]
async fn a_reload_changes_new_connections_and_drops_none() {
    let pki = Pki::new("CA");
    let server = pki.server();
    let addr = tls_echo(server.clone()).await;
    let client = pki.client();
    let connect = || async {
        let socket = TcpStream::connect(addr).await.unwrap();
        client.connect("localhost", socket).await.unwrap()
    };
    let leaf = |stream: &_| ClientTls::info(stream).peer_certificates[0].clone();

    let mut old = connect().await;
    assert_eq!(server.reload().unwrap(), Reloaded::Unchanged);
    pki.write_server();
    assert_eq!(server.reload().unwrap(), Reloaded::Changed);
    let mut new = connect().await;
    assert_ne!(leaf(&old), leaf(&new));
    round_trip(&mut old, b"the old session lives").await;
    round_trip(&mut new, b"and so does the new one").await;

    // A bad file changes nothing.
    fs::write(pki.path("server.key"), "garbage").unwrap();
    let error = server.reload().unwrap_err().to_string();
    assert!(error.contains("server.key"), "{error}");
    let mut third = connect().await;
    assert_eq!(leaf(&third), leaf(&new));
    round_trip(&mut third, b"still").await;
    round_trip(&mut old, b"the first one too").await;
}

#[tokio::test]
async fn a_changed_client_ca_shuts_old_clients_out() {
    let (pki, next) = (Pki::new("CA 1"), Pki::new("CA 2"));
    let server = Arc::new(ServerTls::load(pki.mutual_options()).unwrap());
    let addr = tls_echo(server.clone()).await;
    let client = ClientTls::load(ClientTlsOptions {
        identity: Some((pki.path("client.crt"), pki.path("client.key"))),
        ..pki.client_options()
    })
    .unwrap();
    let mut old = client
        .connect("localhost", TcpStream::connect(addr).await.unwrap())
        .await
        .unwrap();
    // The read takes in the ticket, so that the next connection would resume if it could.
    round_trip(&mut old, b"in").await;
    fs::write(pki.path("ca.crt"), next.ca.pem()).unwrap();
    assert_eq!(server.reload().unwrap(), Reloaded::Changed);
    let socket = TcpStream::connect(addr).await.unwrap();
    let mut late = client.connect("localhost", socket).await.unwrap();
    let _ = late.write_all(b"x").await;
    assert!(soon("alert", late.read(&mut [0])).await.is_err());
    round_trip(&mut old, b"sessions live on").await;
}

#[tokio::test]
async fn changed_files_are_noticed_by_themselves() {
    let pki = Pki::new("CA");
    let server = pki.server();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let watcher = tokio::spawn(keep_fresh(server.clone(), move |result| {
        let _ = tell.send(result);
    }));
    // The watch may not stand yet when the file changes: change it until it is seen.
    let change = soon("reload", async {
        loop {
            pki.write_server();
            if let Ok(result) = tokio::time::timeout(Duration::from_secs(1), told.recv()).await {
                break result;
            }
        }
    });
    assert!(change.await.is_some());
    watcher.abort();
}

#[test]
fn files_that_are_not_there_or_empty_are_errors_that_name_them() {
    let pki = Pki::new("CA");
    let fails = |options: ServerTlsOptions, name: &str| {
        let error = ServerTls::load(options)
            .err()
            .expect("must be refused")
            .to_string();
        assert!(error.contains(name), "{error}");
    };
    fs::write(pki.path("empty"), "").unwrap();
    for bad in ["missing", "empty"] {
        fails(
            ServerTlsOptions {
                cert: pki.path(bad),
                ..pki.server_options()
            },
            bad,
        );
        fails(
            ServerTlsOptions {
                key: pki.path(bad),
                ..pki.server_options()
            },
            bad,
        );
        let auth = ClientAuth {
            ca: pki.path(bad),
            required: true,
            rsa: false,
        };
        fails(
            ServerTlsOptions {
                client_auth: Some(auth),
                ..pki.server_options()
            },
            bad,
        );
        let roots = Roots::File(pki.path(bad));
        let error = ClientTls::load(ClientTlsOptions {
            roots,
            ..ClientTlsOptions::default()
        });
        assert!(
            error
                .err()
                .expect("must be refused")
                .to_string()
                .contains(bad)
        );
    }
    // A key that belongs to another certificate.
    fails(
        ServerTlsOptions {
            key: pki.path("client.key"),
            ..pki.server_options()
        },
        "server.crt",
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_after_10_s() {
    let pki = Pki::new("CA");
    let server = pki.server();
    let (io, _silent) = tokio::io::duplex(4096);
    let began = tokio::time::Instant::now();
    let error = server.accept(io).await.err().unwrap();
    assert!(
        matches!(error, TlsError::Timeout { seconds: 10 }),
        "{error}"
    );
    assert_eq!(began.elapsed(), Duration::from_secs(10));
}

/// T23: rustls must go on refusing handshake messages over 64 KiB.
#[tokio::test]
async fn a_client_hello_that_never_ends_is_refused() {
    let pki = Pki::new("CA");
    let server = pki.server();
    let (io, mut hostile) = tokio::io::duplex(1 << 20);
    let hello_length = 70_000u32.to_be_bytes();
    let mut hello = [&[1][..], &hello_length[1..], &[0x03; 16_380]].concat();
    for _ in 0..5 {
        let length = u16::try_from(hello.len()).unwrap().to_be_bytes();
        let record = [&[22, 3, 1][..], &length, &hello].concat();
        hostile.write_all(&record).await.unwrap();
        hello.truncate(16_000);
    }
    let error = soon("refusal", server.accept(io)).await.err().unwrap();
    assert!(error.to_string().contains("TooLarge"), "{error}");
}

#[test]
fn pins_are_written_in_one_form() {
    let text = format!("sha256:{}", "0f".repeat(32));
    assert_eq!(text.parse::<SpkiPin>().unwrap().to_string(), text);
    for bad in [
        "",
        "sha256:",
        "0f",
        "sha1:00",
        &format!("sha256:{}", "0g".repeat(32)),
    ] {
        assert!(bad.parse::<SpkiPin>().is_err(), "{bad}");
    }
}
