//! Both ends of the outer leg, and the moment at which it is left.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use culvert_net::introduction::{
    Credential, Disturbance, Door, Guest, IntroduceError, Link, NotLetIn, Outer, OuterClient,
    OuterServer, Settled, introduce, receive,
};
use culvert_net::tls::ClientTlsOptions;
use culvert_proto::pair::{RendezvousId, Reply, ReplyCode, Role};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};

use crate::proofs::PairCa;
use crate::rig::{Pki, soon};

const OPEN: Door = Door {
    accepts_open: true,
    closed: None,
};

/// Both ends' TLS.
struct Rig {
    ca: PairCa,
    pki: Pki,
}

impl Rig {
    fn new() -> Self {
        Self {
            ca: PairCa::new("pair"),
            pki: Pki::new("outer"),
        }
    }

    fn server(&self, keep: bool) -> OuterServer {
        let tls = OuterServer::tls(self.pki.path("server.crt"), self.pki.path("server.key"));
        OuterServer::Tls {
            tls: Arc::new(tls.unwrap()),
            keep,
        }
    }

    fn client(&self, outer: Outer) -> OuterClient {
        OuterClient::load(outer, self.pki.client_options()).unwrap()
    }
}

/// Cuts its reads: none crosses `cut` bytes from the beginning, none is longer than `most`.
struct Cut<IO> {
    io: IO,
    read: usize,
    cut: usize,
    most: usize,
}

impl<IO> Cut<IO> {
    fn at(io: IO, cut: usize) -> Self {
        let most = usize::MAX;
        Cut {
            io,
            read: 0,
            cut,
            most,
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Cut<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut room = buf.remaining().min(self.most);
        if self.read < self.cut {
            room = room.min(self.cut - self.read);
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut part);
        let read = part.filled().len();
        self.read += read;
        buf.advance(read);
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Cut<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What the other side says right behind MATCHED, in the same piece: it looks like a record too.
const BEHIND: &[u8] = b"\x17\x03\x03\x00\x05raw bytes of the other side";

/// One whole introduction over reads that are cut, raw bytes both ways behind it. Gives the bytes
/// that either end had read.
async fn switch(
    rig: (&OuterServer, &OuterClient, &Credential),
    relay: Cut<DuplexStream>,
    side: Cut<DuplexStream>,
) -> [usize; 2] {
    let (outer, client, credential) = rig;
    let serve = async {
        let mut guest = receive(relay, outer, OPEN).await.unwrap();
        assert_eq!((guest.role, guest.proof), (Role::Bridge, credential.kind()));
        assert_eq!(guest.id, credential.id());
        guest.waiter.say(ReplyCode::Wait.into()).await.unwrap();
        let mut io = guest.waiter.matched().await.unwrap();
        // Nothing yields between: it lies in the same buffer as MATCHED.
        io.write_all(BEHIND).await.unwrap();
        io.flush().await.unwrap();
        let mut heard = vec![0; BEHIND.len()];
        io.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, BEHIND);
        match io {
            Settled::Plain(io) => io.read,
            Settled::Kept(_) => 0,
        }
    };
    let join = async {
        let mut waited = 0;
        let told = || waited += 1;
        let link = introduce(side, client, "localhost", Role::Bridge, credential, told).await;
        let mut link = link.unwrap();
        link.write_all(BEHIND).await.unwrap();
        link.flush().await.unwrap();
        let mut heard = vec![0; BEHIND.len()];
        link.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, BEHIND);
        assert_eq!(waited, 1);
        match link {
            Link::Plain(io) => io.read,
            Link::Kept(_) => 0,
        }
    };
    let (relay, side) = soon("switch", async { tokio::join!(serve, join) }).await;
    [relay, side]
}

fn ends() -> (DuplexStream, DuplexStream) {
    duplex(64 << 10)
}

/// With the reads of both ends cut at every byte of what they read, and with reads of every small
/// size, the switch finds the same byte.
#[tokio::test]
async fn the_switch_is_exact_wherever_reads_are_cut() {
    let rig = Rig::new();
    let (server, client) = (rig.server(false), rig.client(Outer::Tls { keep: false }));
    let credential = rig.ca.credential(Role::Bridge);
    let parts = (&server, &client, &credential);
    let (relay, side) = ends();
    let read = switch(parts, Cut::at(relay, 0), Cut::at(side, 0)).await;
    assert!(read.iter().all(|read| *read > 500), "{read:?}");
    // ECDSA signatures of handshakes vary by some bytes.
    for cut in 1..read[0].max(read[1]) + 8 {
        let (relay, side) = ends();
        switch(parts, Cut::at(relay, cut), Cut::at(side, cut)).await;
    }
    for most in 1..70 {
        let (relay, side) = ends();
        let [relay, side] = [relay, side].map(|io| Cut {
            io,
            read: 0,
            cut: 0,
            most,
        });
        switch(parts, relay, side).await;
    }
}

#[tokio::test]
async fn plain_and_kept_introductions_lead_to_the_same() {
    let rig = Rig::new();
    for (server, outer) in [
        (OuterServer::Plain, Outer::Plain),
        (rig.server(true), Outer::Tls { keep: true }),
    ] {
        let client = rig.client(outer);
        let id = RendezvousId([9; 32]);
        for credential in [
            rig.ca.credential(Role::Bridge),
            Credential::key([5; 32]).unwrap(),
            Credential::open(id),
        ] {
            for most in [1, 7, usize::MAX] {
                let (relay, side) = ends();
                let [relay, side] = [relay, side].map(|io| Cut {
                    io,
                    read: 0,
                    cut: 0,
                    most,
                });
                switch((&server, &client, &credential), relay, side).await;
            }
        }
    }
}

/// The whole wait of ten minutes and the switch: each reply is a record with its own number.
#[tokio::test]
async fn a_long_wait_is_told_in_records_that_tls_understands() {
    let rig = Rig::new();
    let (server, client) = (rig.server(false), rig.client(Outer::Tls { keep: false }));
    let credential = Credential::key([5; 32]).unwrap();
    let (relay, side) = ends();
    let serve = async {
        let mut guest = receive(relay, &server, OPEN).await.unwrap();
        for _ in 0..300 {
            guest.waiter.say(ReplyCode::Wait.into()).await.unwrap();
        }
        guest
            .waiter
            .matched()
            .await
            .unwrap()
            .write_all(b"first")
            .await
            .unwrap();
    };
    let join = async {
        let link = introduce(side, &client, "localhost", Role::Broker, &credential, || {}).await;
        let mut heard = Vec::new();
        link.unwrap().read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"first");
    };
    soon("a long wait", async { tokio::join!(serve, join) }).await;
}

async fn both(
    rig: &Rig,
    door: Door,
    credential: &Credential,
    role: Role,
) -> (
    Result<Guest<DuplexStream>, NotLetIn>,
    Result<Link<DuplexStream>, IntroduceError>,
) {
    let (server, client) = (rig.server(false), rig.client(Outer::Tls { keep: false }));
    let (relay, side) = ends();
    let join = introduce(side, &client, "localhost", role, credential, || {});
    let serve = async { receive(relay, &server, door).await };
    soon("a refusal", async { tokio::join!(serve, join) }).await
}

fn told(refused: Result<Link<DuplexStream>, IntroduceError>) -> (ReplyCode, u16) {
    match refused.err() {
        Some(IntroduceError::Refused {
            code,
            retry_after_s,
        }) => (code, retry_after_s),
        Some(other) => panic!("{other}"),
        None => panic!("it was let in"),
    }
}

#[tokio::test]
async fn refusals_are_told_and_say_what_to_do() {
    let rig = Rig::new();
    let bridge = rig.ca.credential(Role::Bridge);
    let (kept_out, refused) = both(&rig, OPEN, &bridge, Role::Broker).await;
    assert!(matches!(kept_out, Err(NotLetIn::Proof(_))));
    assert_eq!(told(refused), (ReplyCode::BadProof, 0));
    let full = Reply {
        code: ReplyCode::RateLimit,
        retry_after_s: 12,
    };
    let closed = Door {
        closed: Some(full),
        ..OPEN
    };
    let (kept_out, refused) = both(&rig, closed, &bridge, Role::Bridge).await;
    assert!(matches!(
        kept_out,
        Err(NotLetIn::Closed(ReplyCode::RateLimit))
    ));
    let text = refused.as_ref().err().unwrap().to_string();
    assert!(text.contains("rate_limit (again after 12 s)"), "{text}");
    assert_eq!(told(refused), (ReplyCode::RateLimit, 12));
    let closed = Door {
        accepts_open: false,
        ..OPEN
    };
    let open = Credential::open(bridge.id());
    let (kept_out, refused) = both(&rig, closed, &open, Role::Bridge).await;
    assert!(
        matches!(kept_out, Err(NotLetIn::Gone(_))),
        "it reads the hello and does not try"
    );
    assert_eq!(told(refused), (ReplyCode::OpenRefused, 0));
}

/// In the clear, so that the test can say what no side of ours would.
async fn says(door: Door, bytes: &[u8]) -> (Result<Guest<DuplexStream>, NotLetIn>, Vec<u8>) {
    let (relay, mut side) = ends();
    let serve = async { receive(relay, &OuterServer::Plain, door).await };
    let speak = async {
        side.write_all(bytes).await.unwrap();
        side.shutdown().await.unwrap();
        let mut heard = vec![0; 40];
        side.read_exact(&mut heard).await.unwrap();
        heard.clear();
        let _ = tokio::time::timeout(
            std::time::Duration::from_millis(200),
            side.read_to_end(&mut heard),
        )
        .await;
        heard
    };
    soon("a verdict", async { tokio::join!(serve, speak) }).await
}

#[tokio::test]
async fn what_is_no_preface_is_told_so() {
    let bad = Reply::from(ReplyCode::BadPreface).encode();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01",
        b"CVRL\x01\x07",
    ] {
        let (kept_out, heard) = says(OPEN, bytes).await;
        assert!(matches!(kept_out, Err(NotLetIn::Preface(_))));
        assert_eq!(heard, bad);
    }
    let open = Credential::open(RendezvousId([1; 32]));
    let preface = open.preface(Role::Bridge, &[0; 32]).unwrap().encode();
    let (kept_out, _) = says(OPEN, &preface[..63]).await;
    assert!(
        matches!(kept_out, Err(NotLetIn::Gone(_))),
        "it ended inside"
    );
    let closed = Door {
        accepts_open: false,
        ..OPEN
    };
    let (kept_out, heard) = says(closed, &preface).await;
    assert!(matches!(kept_out, Err(NotLetIn::Open)));
    assert_eq!(heard, Reply::from(ReplyCode::OpenRefused).encode());
    let replayed = Credential::key([5; 32]).unwrap();
    let replayed = replayed.preface(Role::Bridge, &[0; 32]).unwrap().encode();
    let (kept_out, heard) = says(OPEN, &replayed).await;
    assert!(matches!(kept_out, Err(NotLetIn::Proof(_))));
    assert_eq!(heard, Reply::from(ReplyCode::BadProof).encode());
}

#[tokio::test]
async fn a_waiter_that_speaks_or_ends_is_noticed() {
    let open = Credential::open(RendezvousId([1; 32]));
    let mut bytes = open.preface(Role::Bridge, &[0; 32]).unwrap().encode();
    let (guest, _) = says(OPEN, &bytes).await;
    let mut waiter = guest.ok().unwrap().waiter;
    assert_eq!(waiter.disturbance().await, Disturbance::Gone);
    bytes.push(b'!');
    let (guest, _) = says(OPEN, &bytes).await;
    let mut waiter = guest.ok().unwrap().waiter;
    assert_eq!(waiter.disturbance().await, Disturbance::Spoke);
}

#[tokio::test(start_paused = true)]
async fn whoever_stays_silent_is_let_go_after_its_time() {
    let began = tokio::time::Instant::now();
    let (relay, _side) = ends();
    let kept_out = receive(relay, &OuterServer::Plain, OPEN).await;
    assert!(matches!(kept_out, Err(NotLetIn::Silent)));
    assert_eq!(began.elapsed().as_secs(), 10);
    let client = OuterClient::load(Outer::Plain, ClientTlsOptions::default()).unwrap();
    let credential = Credential::key([5; 32]).unwrap();
    let (_relay, side) = ends();
    let silent = introduce(side, &client, "relay", Role::Bridge, &credential, || {}).await;
    assert!(matches!(
        silent.err(),
        Some(IntroduceError::Silent { seconds: 10 })
    ));
    let (mut relay, side) = ends();
    relay.write_all(b"CVRH\x01\x00\x00\x00").await.unwrap();
    relay.write_all(&[1; 32]).await.unwrap();
    relay
        .write_all(&Reply::from(ReplyCode::Wait).encode())
        .await
        .unwrap();
    let began = tokio::time::Instant::now();
    let silent = introduce(side, &client, "relay", Role::Bridge, &credential, || {}).await;
    assert!(matches!(
        silent.err(),
        Some(IntroduceError::Silent { seconds: 45 })
    ));
    assert_eq!(began.elapsed().as_secs(), 45);
}
