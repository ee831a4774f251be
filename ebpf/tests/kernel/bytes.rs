//! Bytes to the byte: sizes of every order, losses, and past the wrap of sequence numbers.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use culvert_abi::{Close, Leg, Own, Role};

use crate::rig::{self, CLUSTER, Loss, Observer, Place, Tier};

const CHUNK: usize = 64 << 10;

/// Sends `sent` bytes, ends, and reads to the end.
fn talk(stream: &mut TcpStream, sent: u64) -> u64 {
    let mut reader = stream.try_clone().unwrap();
    let counting = std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        let mut read = 0;
        loop {
            match reader.read(&mut chunk).unwrap() {
                0 => return read,
                n => read += n as u64,
            }
        }
    });
    let chunk = vec![0x5a; CHUNK];
    let mut left = sent;
    while left > 0 {
        let now = usize::try_from(left.min(CHUNK as u64)).unwrap();
        stream.write_all(&chunk[..now]).unwrap();
        left -= now as u64;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    counting.join().unwrap()
}

/// One connection, tagged at both ends, with so many bytes each way; its records.
fn exchange(
    observer: &mut Observer,
    listener: &TcpListener,
    id: u64,
    there: u64,
    back: u64,
) -> [Close; 2] {
    let dialled = rig::ident(id, Leg::Upstream, Role::Service);
    let accepted = rig::ident(id, Leg::Client, Role::Client);
    let to = listener.local_addr().unwrap();
    let mut near = rig::tagged_connect(observer, to, dialled).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    observer.tag(&far, accepted);
    let answering = std::thread::spawn(move || talk(&mut far, back));
    assert_eq!(talk(&mut near, there), back);
    assert_eq!(answering.join().unwrap(), there);
    drop(near);
    [dialled, accepted].map(|ident| observer.close_of(ident.conn_id))
}

fn counted(observer: &Observer, leg: Leg) -> (u64, u64) {
    let counters = observer.counters(CLUSTER, leg);
    (counters.tx_bytes, counters.rx_bytes)
}

#[test]
fn kernel_counts_equal_the_applications_to_the_byte() {
    rig::alone(
        "kernel_counts_equal_the_applications_to_the_byte",
        |place| {
            let mut observer = Observer::start(place, Tier::Skb);
            let (mut there_sum, mut back_sum, mut seed) = (0, 0, 0x2545_f491_4f6c_dd1d_u64);
            let mut id = 0;
            for at in rig::loopbacks() {
                let listener = rig::tagged_listener(&mut observer, at, Leg::Client);
                for _ in 0..150 {
                    id += 1;
                    // Sizes of every order, nothing among them.
                    let mut size = || {
                        seed ^= seed << 13;
                        seed ^= seed >> 7;
                        seed ^= seed << 17;
                        (seed >> 44) >> (seed % 21)
                    };
                    let (there, back) = (size(), size());
                    let [near, far] = exchange(&mut observer, &listener, id, there, back);
                    assert_eq!((near.tx_bytes, near.rx_bytes), (there, back));
                    assert_eq!((far.tx_bytes, far.rx_bytes), (back, there));
                    there_sum += there;
                    back_sum += back;
                }
            }
            assert!(there_sum > 1 << 22, "{there_sum} bytes are a small proof");
            assert_eq!(counted(&observer, Leg::Upstream), (there_sum, back_sum));
            assert_eq!(counted(&observer, Leg::Client), (back_sum, there_sum));
            assert_eq!(observer.own(Own::Unparsed) + observer.own(Own::NoBase), 0);
        },
    );
}

#[test]
fn one_packet_in_a_hundred_lost_and_every_byte_counted_once() {
    let test = "one_packet_in_a_hundred_lost_and_every_byte_counted_once";
    rig::alone(test, |place| {
        rig::run(
            "ip",
            &["link", "set", "lo", "mtu", "1500", "gso_max_segs", "1"],
        );
        let mut observer = Observer::start(place, Tier::Skb);
        let mut loss = Loss::new();
        loss.lose(10, 200);
        let listener = rig::tagged_listener(&mut observer, rig::loopbacks()[0], Leg::Client);
        let (there, back) = (6 << 20, 2 << 20);
        let [near, far] = exchange(&mut observer, &listener, 1, there, back);
        println!(
            "{} lost; sent again: {}, {}",
            loss.lost(),
            near.retrans,
            far.retrans
        );
        assert!(loss.lost() > 10, "{} lost", loss.lost());
        assert_eq!((near.tx_bytes, near.rx_bytes), (there, back));
        assert_eq!((far.tx_bytes, far.rx_bytes), (back, there));
        assert_eq!(counted(&observer, Leg::Upstream), (there, back));
        assert_eq!(counted(&observer, Leg::Client), (back, there));
        for (close, leg) in [(near, Leg::Upstream), (far, Leg::Client)] {
            assert_eq!(close.retrans, close.total_retrans);
            let counters = observer.counters(CLUSTER, leg);
            assert_eq!(counters.retrans, u64::from(close.retrans));
            assert!(counters.retrans_rto <= counters.retrans);
            assert_eq!(counters.rto_events, u64::from(close.rto));
        }
        assert!(near.retrans + far.retrans > 0);
    });
}

/// Bytes beyond one and two wraps of sequence numbers: `CULVERT_EBPF_WRAP_BYTES`, about a second
/// for each GiB. `cargo xtask soak` sets it.
#[test]
fn a_stream_past_the_wrap_is_counted_to_the_byte() {
    let given = std::env::var("CULVERT_EBPF_WRAP_BYTES").ok();
    let Some(bytes) = given.and_then(|bytes| bytes.parse::<u64>().ok()) else {
        println!("a_stream_past_the_wrap_is_counted_to_the_byte: `cargo xtask soak` runs it");
        return;
    };
    rig::alone(
        "a_stream_past_the_wrap_is_counted_to_the_byte",
        |place: &Place| {
            let mut observer = Observer::start(place, Tier::Skb);
            let listener = rig::tagged_listener(&mut observer, rig::loopbacks()[0], Leg::Client);
            let [near, far] = exchange(&mut observer, &listener, 1, bytes, 1);
            assert_eq!((near.tx_bytes, near.rx_bytes), (bytes, 1));
            assert_eq!((far.tx_bytes, far.rx_bytes), (1, bytes));
            assert_eq!(counted(&observer, Leg::Upstream), (bytes, 1));
            assert_eq!(counted(&observer, Leg::Client), (1, bytes));
        },
    );
}
