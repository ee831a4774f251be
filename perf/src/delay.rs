//! A long path: packets between two namespaces wait, queue for a line of a given rate, and are
//! lost by a seeded coin. It never terminates TCP, so windows, round trips and losses stay real.
//!
//! One thread between two TUN devices, with its own books of how late it was. Where packets are
//! lost, segments are real ones (no offload) and the rate is kept low.

mod tun;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::load::{histogram, microseconds};
use crate::statistics::Random;
use crate::testbed::Namespace;

/// A packet with its virtio header: 64 KiB of segments at most.
const PACKET_BYTES_MAX: usize = 66 * 1024;
/// Smallest queue before the line.
const QUEUE_BYTES_MIN: f64 = 1_000_000.0;
/// Longest sleep: the stop flag is looked at as often.
const PATIENCE: Duration = Duration::from_millis(20);
/// Above it a user process is the bottleneck.
const LOSSY_MBIT_MAX: f64 = 200.0;

/// A path between hub and site.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Path {
    /// Both ways together, milliseconds.
    pub round_trip_ms: f64,
    /// Each way, Mbit/s.
    pub rate_mbit: f64,
    /// Packets lost, each way, of a hundred.
    #[serde(default)]
    pub loss_percent: f64,
}

impl Path {
    /// Its name in files.
    pub fn name(&self) -> String {
        let Path {
            round_trip_ms,
            rate_mbit,
            loss_percent,
        } = self;
        format!("wan {round_trip_ms} ms {rate_mbit} Mbit/s {loss_percent} % loss")
    }
}

/// The thread; ended on drop.
pub struct Delayer {
    stop: Arc<AtomicBool>,
    lateness: Arc<Mutex<Histogram<u64>>>,
    thread: Option<JoinHandle<()>>,
}

impl Delayer {
    /// Joins 10.77.8.1 in `hub` and 10.77.8.2 in `site`.
    ///
    /// # Errors
    /// No TUN, no root, or a lossy path that is too fast.
    pub fn start(hub: &Namespace, site: &Namespace, path: Path) -> Result<Delayer> {
        ensure!(
            path.loss_percent == 0.0 || path.rate_mbit <= LOSSY_MBIT_MAX,
            "with losses there are no offloads: at most {LOSSY_MBIT_MAX} Mbit/s"
        );
        let offload = path.loss_percent == 0.0;
        let ends = [(hub, 1), (site, 2)].map(|(namespace, last)| -> Result<File> {
            let end = namespace.run(|| tun::open("cvlong", offload))?;
            let address = format!("10.77.8.{last}/30");
            for arguments in [
                &["address", "add", &address, "dev", "cvlong"][..],
                &["link", "set", "cvlong", "txqueuelen", "10000", "up"],
            ] {
                namespace.output("ip", arguments)?;
            }
            Ok(end)
        });
        let [hub, site] = ends;
        let mut line = Line::new([hub?, site?], path)?;
        let (stop, lateness) = (line.stop.clone(), line.lateness.clone());
        let (tell, told) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("delayer".to_owned())
            .spawn(move || {
                let _ = crate::cpu::pin(crate::lab::LOAD_CPU);
                let _ = tell.send(rustix::thread::gettid());
                line.run();
            })?;
        // Ahead of the generator on its CPU, or it would be as late as a time slice is long.
        let thread_id = told.recv()?.as_raw_nonzero().to_string();
        let status = Command::new("chrt")
            .args(["--fifo", "--pid", "10", &thread_id])
            .status()
            .context("running chrt")?;
        ensure!(status.success(), "chrt: {status}");
        Ok(Delayer {
            stop,
            lateness,
            thread: Some(thread),
        })
    }

    /// How late packets left it since the last call, microseconds.
    pub fn lateness(&self) -> Histogram<u64> {
        let mut kept = self.lateness.lock().expect("no holder panics");
        std::mem::replace(&mut kept, histogram())
    }
}

impl Drop for Delayer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One way.
struct Lane {
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// When the line has sent all that waits before it.
    idle_at: Instant,
}

struct Line {
    ends: [File; 2],
    lanes: [Lane; 2],
    /// Buffers of packets that have left.
    spare: Vec<Vec<u8>>,
    one_way: Duration,
    bytes_per_second: f64,
    queue_seconds_max: f64,
    loss: f64,
    random: Random,
    stop: Arc<AtomicBool>,
    lateness: Arc<Mutex<Histogram<u64>>>,
}

impl Line {
    fn new(ends: [File; 2], path: Path) -> Result<Line> {
        let now = Instant::now();
        let lane = || Lane {
            queue: VecDeque::new(),
            idle_at: now,
        };
        let bytes_per_second = path.rate_mbit * 1e6 / 8.0;
        ensure!(bytes_per_second > 0.0, "a path needs a rate");
        let round_trip = path.round_trip_ms / 1000.0;
        let queue_bytes = (bytes_per_second * round_trip).max(QUEUE_BYTES_MIN);
        Ok(Line {
            ends,
            lanes: [lane(), lane()],
            spare: Vec::new(),
            one_way: Duration::from_secs_f64(round_trip / 2.0),
            bytes_per_second,
            queue_seconds_max: queue_bytes / bytes_per_second,
            loss: path.loss_percent / 100.0,
            random: Random::new(11),
            stop: Arc::new(AtomicBool::new(false)),
            lateness: Arc::new(Mutex::new(histogram())),
        })
    }

    fn run(&mut self) {
        let Ok(epoll) = epoll::create(CreateFlags::CLOEXEC) else {
            return;
        };
        for end in &self.ends {
            if epoll::add(&epoll, end, EventData::new_u64(0), EventFlags::IN).is_err() {
                return;
            }
        }
        let mut events = Vec::with_capacity(2);
        while !self.stop.load(Ordering::Relaxed) {
            events.clear();
            let now = Instant::now();
            let first = self
                .lanes
                .iter()
                .filter_map(|lane| Some(lane.queue.front()?.0));
            let wait = first
                .min()
                .map_or(PATIENCE, |due| due.saturating_duration_since(now));
            let Ok(wait) = Timespec::try_from(wait) else {
                return;
            };
            match epoll::wait(
                &epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&wait),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            for way in 0..2 {
                self.take(way);
                self.give(way);
            }
        }
    }

    /// Packets of one end into its lane.
    fn take(&mut self, way: usize) {
        loop {
            let mut packet = self.spare.pop().unwrap_or_default();
            packet.resize(PACKET_BYTES_MAX, 0);
            match (&self.ends[way]).read(&mut packet) {
                Ok(count) => packet.truncate(count),
                Err(error) => {
                    self.spare.push(packet);
                    if error.kind() == ErrorKind::Interrupted {
                        continue;
                    }
                    return;
                }
            }
            let now = Instant::now();
            let lane = &mut self.lanes[way];
            let start = lane.idle_at.max(now);
            let waits = start.duration_since(now).as_secs_f64();
            let is_lost = self.loss > 0.0 && self.random.unit() < self.loss;
            if is_lost || waits > self.queue_seconds_max {
                self.spare.push(packet);
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "a packet has at most 64 KiB")]
            let sends = Duration::from_secs_f64(packet.len() as f64 / self.bytes_per_second);
            lane.idle_at = start + sends;
            lane.queue.push_back((lane.idle_at + self.one_way, packet));
        }
    }

    /// Packets whose time has come to the other end.
    fn give(&mut self, way: usize) {
        while let Some((due, _)) = self.lanes[way].queue.front() {
            let now = Instant::now();
            let Some(late) = now.checked_duration_since(*due) else {
                return;
            };
            let Some((_, packet)) = self.lanes[way].queue.pop_front() else {
                return;
            };
            // A packet that the kernel refuses is one that the network lost.
            let _ = (&self.ends[1 - way]).write(&packet);
            self.spare.push(packet);
            if let Ok(mut kept) = self.lateness.lock() {
                kept.saturating_record(microseconds(late));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::testbed::{Need, met, solitary};

    #[test]
    fn a_round_trip_takes_as_long_as_the_path_says() {
        if !met("a long path", &[Need::Root, Need::Namespaces]) {
            return;
        }
        let (hub, site) = (solitary("near").unwrap(), solitary("far").unwrap());
        let path = Path {
            round_trip_ms: 30.0,
            rate_mbit: 100.0,
            loss_percent: 0.0,
        };
        let delayer = Delayer::start(&hub, &site, path).unwrap();
        let listener = site.run(|| TcpListener::bind("10.77.8.2:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let start = Instant::now();
        let mut stream = hub.run(|| TcpStream::connect(address)).unwrap();
        let took = start.elapsed().as_millis();
        assert!((30..60).contains(&took), "{took} ms to connect");

        // 2.5 MB on a line of 100 Mbit/s: 200 ms, and the way.
        let reader = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
        });
        let start = Instant::now();
        stream.write_all(&vec![1; 2_500_000]).unwrap();
        drop(stream);
        assert_eq!(reader.join().unwrap(), 2_500_000);
        let took = start.elapsed().as_millis();
        assert!(took >= 190, "{took} ms for 2.5 MB");
        assert!(!delayer.lateness().is_empty());
    }
}
