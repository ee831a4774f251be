//! Data channels: parked ones, offers, both forms, refusals, floods, and hubs
//! that lie.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_agent::channel::CHANNELS_MAX;
use culvert_net::carrier::SessionEvent;
use culvert_proto::channel::{ANSWER_BYTES, ChannelAnswer, ChannelOffer, Form};
use culvert_proto::close::CloseReason;
use culvert_proto::control::{ChannelFail, ControlMessage, Drain, Ticket, Tickets};
use culvert_proto::open::{DialCode, StreamHeader, StreamKind};
use culvert_telemetry::lifecycle::Phase;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::flow::{Hanging, Service, broken, ended, expect, pattern, reset, whole_conversation};
use crate::hub::{Accepted, Hub, Running, dial_answer, ticket, to_service};
use crate::support::within;

/// First bytes of TLS, as a sealed service gets them.
const HELLO: &[u8] = b"\x16\x03\x01 and so on";

/// An agent of a hub behind TLS, with `service` as `pg`, and as `vault`, which is sealed.
async fn serving(service: &Service, more: &[&str]) -> (Hub, Running, Accepted) {
    serving_granted(service, &["pg", "vault"], more).await
}

async fn serving_granted(
    service: &Service,
    granted: &[&str],
    more: &[&str],
) -> (Hub, Running, Accepted) {
    let dir = tempfile::tempdir().unwrap();
    let mut hub = Hub::with_tls(granted, dir.path()).await;
    let ca = dir.path().join("ca.crt");
    let (pg, vault) = (service.named("pg"), service.named("vault"));
    let mut args = vec!["--service", &pg, "--sealed-service", &vault];
    args.extend(["--server-ca-cert", ca.to_str().unwrap()]);
    args.extend(more);
    let agent = Running::of(&hub, service.addr, &args);
    let session = hub.session().await;
    (hub, agent, session)
}

fn name_for(form: Form) -> &'static str {
    match form {
        Form::Tls => "pg",
        Form::Plain => "vault",
    }
}

fn offer(service: &str, form: Form, early: &[u8]) -> (StreamHeader, Ticket) {
    let ticket = ticket();
    let mut header = to_service(service);
    header.early_bytes = Some(u16::try_from(early.len()).unwrap());
    header.offer = Some(ChannelOffer {
        form,
        ticket: ticket.clone(),
    });
    (header, ticket)
}

async fn failed(session: &Accepted) -> ChannelFail {
    session
        .until(|event| match event {
            SessionEvent::Message(ControlMessage::ChannelFail(fail)) => Some(fail),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_parked_channel_serves_one_connection_in_either_form() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    for form in [Form::Tls, Form::Plain] {
        let mut channel = session.parked(&mut hub, form).await;
        let mut header = to_service(name_for(form));
        header.payload_follows = true;
        let answer = channel.open(&header, HELLO).await;
        assert_eq!(answer.code, DialCode::Connected, "{}", answer.reason);
        let mut served = service.accept().await;
        expect(&mut served, HELLO).await;
        served.write_all(b"server hello").await.unwrap();
        expect(&mut channel.io, b"server hello").await;
        whole_conversation(channel.io, served).await;
    }
}

#[tokio::test]
async fn services_that_speak_first_work_on_channels() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &["--allow-plaintext-data-channels"]).await;
    for form in Form::ALL {
        let mut channel = session.parked(&mut hub, form).await;
        assert_eq!(
            channel.open(&to_service("pg"), b"").await.code,
            DialCode::Connected
        );
        let mut served = service.accept().await;
        served.write_all(b"SSH-2.0-x\r\n").await.unwrap();
        expect(&mut channel.io, b"SSH-2.0-x\r\n").await;
        drop(served);
        ended(&mut channel.io).await;
    }
}

#[tokio::test]
async fn resets_pass_both_ways_on_channels() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    for form in Form::ALL {
        let mut header = to_service(name_for(form));
        header.payload_follows = true;
        let mut channel = session.parked(&mut hub, form).await;
        channel.open(&header, HELLO).await;
        reset(service.accept().await);
        let why = broken(&mut channel.io).await;
        assert_eq!(why.kind(), io::ErrorKind::ConnectionReset, "{form:?}");
        let mut channel = session.parked(&mut hub, form).await;
        channel.open(&header, HELLO).await;
        let mut served = service.accept().await;
        expect(&mut served, HELLO).await;
        // Inside TLS a FIN without close_notify is a cut; without TLS it takes a reset.
        match form {
            Form::Tls => drop(channel),
            Form::Plain => {
                let tcp = channel.into_tcp();
                reset(tcp);
            }
        }
        let why = broken(&mut served).await;
        assert_eq!(why.kind(), io::ErrorKind::ConnectionReset, "{form:?}");
    }
}

#[tokio::test]
async fn an_offer_is_answered_on_its_own_channel() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    for form in Form::ALL {
        let (header, ticket) = offer(name_for(form), form, HELLO);
        let mut stream = session.open(&header);
        stream.write_all(HELLO).await.unwrap();
        let mut served = service.accept().await;
        let mut channel = hub.channel().await;
        assert!(channel.is_for(&ticket, session.epoch) && channel.form == form);
        // The dial answer comes right behind the preface, before the hub says a word, and what
        // the service says behind that.
        assert_eq!(dial_answer(&mut channel.io).await.code, DialCode::Connected);
        served.write_all(b"banner").await.unwrap();
        expect(&mut channel.io, b"banner").await;
        channel.say(ChannelAnswer::Parked).await;
        expect(&mut served, HELLO).await;
        ended(&mut stream).await;
        stream.shutdown().await.unwrap();
        whole_conversation(channel.io, served).await;
    }
}

#[tokio::test]
async fn an_offered_service_that_refuses_is_told_on_the_stream() {
    let service = Service::start().await;
    let gone = Service::start().await.addr;
    let args = ["--service", &format!("gone={gone}")].map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (hub, _agent, session) = serving(&service, &args).await;
    let (header, _) = offer("gone", Form::Tls, b"");
    let mut stream = session.open(&header);
    // Granted are pg and vault only.
    assert_eq!(dial_answer(&mut stream).await.code, DialCode::NotAllowed);
    session
        .carrier
        .grant(["gone", "pg"].map(Arc::from).to_vec())
        .unwrap();
    let mut answer = dial_answer(&mut stream_of(&session, "gone")).await;
    while answer.code == DialCode::NotAllowed {
        answer = dial_answer(&mut stream_of(&session, "gone")).await;
    }
    assert_eq!(answer.code, DialCode::Refused, "{}", answer.reason);
    drop(hub);
}

/// The hub closes a channel that stays silent: a slow service does not keep the preface back.
#[tokio::test]
async fn a_slow_service_is_told_on_the_channel_that_waited_for_it() {
    let service = Service::start().await;
    let hanging = Hanging::start().await;
    let slow = format!("slow={}", hanging.addr);
    let args = ["--service", slow.as_str()];
    let (mut hub, _agent, session) = serving_granted(&service, &["*"], &args).await;
    let (mut header, ticket) = offer("slow", Form::Tls, b"");
    header.dial_deadline_ms = Some(3_000);
    let _stream = session.open(&header);
    let began = std::time::Instant::now();
    let mut channel = hub.channel().await;
    assert!(channel.is_for(&ticket, session.epoch));
    assert!(began.elapsed() < Duration::from_millis(2_900));
    channel.say(ChannelAnswer::Parked).await;
    let answer = dial_answer(&mut channel.io).await;
    assert_eq!(answer.code, DialCode::Timeout, "{}", answer.reason);
}

fn stream_of(session: &Accepted, service: &str) -> culvert_net::carrier::Stream {
    session.open(&offer(service, Form::Tls, b"").0)
}

#[tokio::test]
async fn where_no_channel_comes_through_the_stream_serves_and_soon_at_once() {
    let service = Service::start().await;
    let (hub, _agent, session) = serving(&service, &[]).await;
    hub.be_deaf();
    let carriers = hub.connections();
    for tried in 1..=5 {
        let (header, _) = offer("vault", Form::Plain, HELLO);
        let mut stream = session.open(&header);
        stream.write_all(HELLO).await.unwrap();
        let mut served = service.accept().await;
        assert_eq!(dial_answer(&mut stream).await.code, DialCode::Connected);
        expect(&mut served, HELLO).await;
        whole_conversation(stream, served).await;
        // Three failures are enough to know.
        assert_eq!(hub.connections() - carriers, tried.min(3));
    }
    let tickets = Tickets {
        ttl_s: 30,
        form: Form::Tls,
        tickets: vec![ticket()],
    };
    let wanted = tickets.tickets[0].id;
    session.carrier.tickets(tickets).unwrap();
    let fail = failed(&session).await;
    assert_eq!((fail.id, fail.code), (wanted, DialCode::Unreachable));
    assert!(fail.reason.contains("tried again later"), "{}", fail.reason);
}

#[tokio::test]
async fn a_client_that_said_all_before_the_answer_is_understood() {
    let service = Service::start().await;
    let (hub, _agent, session) = serving(&service, &[]).await;
    hub.be_deaf();
    let (header, _) = offer("pg", Form::Tls, b"all");
    let mut stream = session.open(&header);
    stream.write_all(b"all").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut served = service.accept().await;
    expect(&mut served, b"all").await;
    ended(&mut served).await;
    served.write_all(b"and an answer").await.unwrap();
    drop(served);
    assert_eq!(dial_answer(&mut stream).await.code, DialCode::Connected);
    expect(&mut stream, b"and an answer").await;
    ended(&mut stream).await;
}

/// What the hub did not announce could be lost on the way to a channel: it ends the open.
#[tokio::test]
async fn payload_that_was_not_announced_ends_the_open() {
    let service = Service::start().await;
    let hanging = Hanging::start().await;
    let slow = format!("slow={}", hanging.addr);
    let args = ["--service", slow.as_str()];
    let (_hub, _agent, session) = serving_granted(&service, &["*"], &args).await;
    let (header, _) = offer("slow", Form::Tls, b"");
    let mut stream = session.open(&header);
    stream.write_all(b"more").await.unwrap();
    broken(&mut stream).await;
}

#[tokio::test]
async fn a_channel_that_the_hub_refuses_leaves_the_open_on_its_stream() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    let lies: [&[u8; ANSWER_BYTES]; 3] = [
        &ChannelAnswer::BadTicket.encode(),
        &ChannelAnswer::StaleEpoch.encode(),
        b"HTTP/1.1",
    ];
    for lie in lies {
        let (header, _) = offer("pg", Form::Tls, b"early");
        let mut stream = session.open(&header);
        stream.write_all(b"early").await.unwrap();
        let mut served = service.accept().await;
        let mut channel = hub.channel().await;
        channel.io.write_all(lie).await.unwrap();
        channel.io.flush().await.unwrap();
        assert_eq!(dial_answer(&mut stream).await.code, DialCode::Connected);
        expect(&mut served, b"early").await;
        whole_conversation(stream, served).await;
    }
}

/// Nothing of the service may be lost or said twice: once it spoke on the channel, a channel that
/// breaks ends the connection.
#[tokio::test]
async fn a_channel_refused_after_the_service_spoke_ends_the_connection() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    let (header, _) = offer("pg", Form::Tls, b"");
    let mut stream = session.open(&header);
    let mut served = service.accept().await;
    served.write_all(b"banner").await.unwrap();
    let mut channel = hub.channel().await;
    dial_answer(&mut channel.io).await;
    expect(&mut channel.io, b"banner").await;
    channel.say(ChannelAnswer::BadTicket).await;
    assert_eq!(
        broken(&mut served).await.kind(),
        io::ErrorKind::ConnectionReset
    );
    broken(&mut stream).await;
}

#[tokio::test]
async fn a_hub_cannot_have_a_service_in_the_clear_that_is_not_sealed() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    // On a channel that was opened for the sealed one.
    let mut channel = session.parked(&mut hub, Form::Plain).await;
    let answer = channel.open(&to_service("pg"), b"").await;
    assert_eq!(answer.code, DialCode::NotAllowed);
    assert!(
        answer.reason.contains("--allow-plaintext-data-channels"),
        "{}",
        answer.reason
    );
    ended(&mut channel.io).await;
    // By an offer.
    let mut stream = session.open(&offer("pg", Form::Plain, b"").0);
    assert_eq!(dial_answer(&mut stream).await.code, DialCode::NotAllowed);
    // What is sealed begins with a TLS handshake.
    let (header, _) = offer("vault", Form::Plain, b"GET /");
    let mut stream = session.open(&header);
    stream.write_all(b"GET /").await.unwrap();
    let answer = dial_answer(&mut stream).await;
    assert_eq!(answer.code, DialCode::NotAllowed);
    assert!(
        answer.reason.contains("no TLS handshake"),
        "{}",
        answer.reason
    );
    // A request is no connection.
    let mut channel = session.parked(&mut hub, Form::Tls).await;
    let answer = channel
        .open(&StreamHeader::new(StreamKind::Http), b"")
        .await;
    assert_eq!(answer.code, DialCode::NotAllowed);
}

#[tokio::test]
async fn unknown_and_ungranted_services_are_refused_on_channels_too() {
    let service = Service::start().await;
    let extra = format!("extra={}", service.addr);
    let (mut hub, _agent, session) = serving(&service, &["--service", &extra]).await;
    for (name, code) in [
        ("ssh", DialCode::UnknownTarget),
        ("extra", DialCode::NotAllowed),
    ] {
        let mut channel = session.parked(&mut hub, Form::Tls).await;
        let answer = channel.open(&to_service(name), b"").await;
        assert_eq!(answer.code, code, "{}", answer.reason);
        ended(&mut channel.io).await;
    }
}

#[tokio::test]
async fn a_flood_of_tickets_is_bounded_and_each_one_too_many_is_given_back() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    let tickets: Vec<Ticket> = (0..CHANNELS_MAX + 40).map(|_| ticket()).collect();
    for some in tickets.chunks(100) {
        let tickets = Tickets {
            ttl_s: 30,
            form: Form::Plain,
            tickets: some.to_vec(),
        };
        session.carrier.tickets(tickets).unwrap();
    }
    for _ in 0..40 {
        assert_eq!(failed(&session).await.code, DialCode::Overload);
    }
    let mut open = Vec::new();
    for _ in 0..CHANNELS_MAX {
        let mut channel = hub.channel().await;
        channel.say(ChannelAnswer::Parked).await;
        open.push(channel);
    }
    // One that ends makes room for another.
    drop(open.pop());
    let mut last = None;
    while last.is_none() {
        let tickets = Tickets {
            ttl_s: 30,
            form: Form::Plain,
            tickets: vec![ticket()],
        };
        session.carrier.tickets(tickets).unwrap();
        tokio::select! {
            channel = hub.channel() => last = Some(channel),
            fail = failed(&session) => assert_eq!(fail.code, DialCode::Overload),
        }
    }
}

#[tokio::test]
async fn tickets_that_cannot_be_used_say_why() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    let sent = ticket();
    let tickets = |ticket: &Ticket, form| Tickets {
        ttl_s: 30,
        form,
        tickets: vec![ticket.clone()],
    };
    session.carrier.tickets(tickets(&sent, Form::Tls)).unwrap();
    let mut channel = hub.channel().await;
    channel.say(ChannelAnswer::PoolFull).await;
    let fail = failed(&session).await;
    assert_eq!((fail.id, fail.code), (sent.id, DialCode::NotAllowed));
    assert!(fail.reason.contains("pool_full"), "{}", fail.reason);

    // A hub without TLS has none for form 1, and an agent without sealed services no use for form 2.
    let mut hub = Hub::with(&["pg"], false).await;
    let _agent = Running::of(&hub, service.addr, &["--service", &service.named("pg")]);
    let session = hub.session().await;
    for (form, code, words) in [
        (Form::Tls, DialCode::Tls, "use a wss:// address"),
        (Form::Plain, DialCode::NotAllowed, "--sealed-service"),
    ] {
        session.carrier.tickets(tickets(&sent, form)).unwrap();
        let fail = failed(&session).await;
        assert_eq!(fail.code, code);
        assert!(fail.reason.contains(words), "{}", fail.reason);
    }
}

/// A CONNECT proxy on the way; counts what it let through.
async fn proxy() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let passed = Arc::new(AtomicUsize::new(0));
    let count = passed.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut io = BufReader::new(tcp);
                let mut line = String::new();
                io.read_line(&mut line).await.unwrap();
                let target = line.split(' ').nth(1).unwrap().to_owned();
                while line.trim() != "" {
                    line.clear();
                    io.read_line(&mut line).await.unwrap();
                }
                let mut hub = TcpStream::connect(target).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                io.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut io, &mut hub).await;
            });
        }
    });
    (url, passed)
}

#[tokio::test]
async fn channels_take_the_proxy_that_the_carrier_takes() {
    let service = Service::start().await;
    let (proxy, passed) = proxy().await;
    let (mut hub, _agent, session) = serving(&service, &["--proxy", &proxy]).await;
    for form in Form::ALL {
        let mut channel = session.parked(&mut hub, form).await;
        let mut header = to_service(name_for(form));
        header.payload_follows = true;
        let answer = channel.open(&header, HELLO).await;
        assert_eq!(answer.code, DialCode::Connected);
        let mut served = service.accept().await;
        expect(&mut served, HELLO).await;
        whole_conversation(channel.io, served).await;
    }
    assert_eq!(passed.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn flows_on_channels_outlive_their_session_and_parked_ones_do_not() {
    let service = Service::start().await;
    let (mut hub, agent, session) = serving(&service, &[]).await;
    let mut flows = Vec::new();
    for form in Form::ALL {
        let mut header = to_service(name_for(form));
        header.payload_follows = true;
        let mut channel = session.parked(&mut hub, form).await;
        channel.open(&header, HELLO).await;
        let mut served = service.accept().await;
        expect(&mut served, HELLO).await;
        flows.push((channel, served));
    }
    let mut parked = session.parked(&mut hub, Form::Tls).await;
    let drain = Drain {
        reconnect_within_ms: 0,
        deadline_ms: 20_000,
        addresses: Vec::new(),
    };
    session.carrier.drain(drain).unwrap();
    let moved = hub.session().await;
    assert_eq!(
        within(session.carrier.closed()).await,
        CloseReason::Draining
    );
    assert_eq!(within(parked.io.read(&mut [0; 1])).await.unwrap_or(0), 0);
    // The carrier that came after it is lost too.
    moved.carrier.close(CloseReason::Shutdown);
    for (channel, served) in &mut flows {
        channel.io.write_all(b"still here").await.unwrap();
        channel.io.flush().await.unwrap();
        expect(served, b"still here").await;
    }
    // A stopping agent gives them their time.
    let bulk = pattern(100_000);
    agent.shutdown.advance(Phase::Draining);
    for (mut channel, mut served) in flows {
        let wrote = async {
            channel.io.write_all(&bulk).await.unwrap();
            channel.io.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = within(async { tokio::join!(wrote, served.read_to_end(&mut got)) }).await;
        assert!(read.is_ok() && got == bulk);
        drop(served);
        ended(&mut channel.io).await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn the_grace_bounds_flows_on_channels() {
    let service = Service::start().await;
    let (mut hub, agent, session) = serving(&service, &["--drain-grace", "200ms"]).await;
    let mut flows = Vec::new();
    for form in Form::ALL {
        let mut header = to_service(name_for(form));
        header.payload_follows = true;
        let mut channel = session.parked(&mut hub, form).await;
        channel.open(&header, HELLO).await;
        let mut served = service.accept().await;
        expect(&mut served, HELLO).await;
        flows.push((channel, served));
    }
    agent.stop().await;
    for (_channel, mut served) in flows {
        let why = broken(&mut served).await;
        assert_eq!(why.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn five_hundred_opens_at_once_are_all_served_each_on_its_channel() {
    let service = Service::start().await;
    let (mut hub, _agent, session) = serving(&service, &[]).await;
    let began = std::time::Instant::now();
    let mut streams = Vec::new();
    for _ in 0..500 {
        let (header, _) = offer("vault", Form::Plain, HELLO);
        let mut stream = session.open(&header);
        stream.write_all(HELLO).await.unwrap();
        streams.push(stream);
    }
    let accepting = async {
        let mut served = Vec::new();
        for _ in 0..500 {
            served.push(service.accept().await);
        }
        served
    };
    let claiming = async {
        let mut channels = Vec::new();
        for _ in 0..500 {
            let mut channel = hub.channel().await;
            channel.say(ChannelAnswer::Parked).await;
            channels.push(channel);
        }
        channels
    };
    let (served, channels) = tokio::join!(accepting, claiming);
    for mut one in served {
        expect(&mut one, HELLO).await;
        one.write_all(b"ok").await.unwrap();
    }
    for mut channel in channels {
        assert_eq!(dial_answer(&mut channel.io).await.code, DialCode::Connected);
        expect(&mut channel.io, b"ok").await;
    }
    println!("500 opens in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(15));
}
