//! A service that floods its only client, and how both ends of a connection hear of its end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use culvert_perf::testbed::wait_for;

/// By then a writer has heard of what its reader was told.
const WRITER_HEARS: Duration = Duration::from_millis(50);

/// What the service does for its only client: floods, and tells how its own reading ended.
pub fn serve(mut stream: TcpStream, floods: bool, tell: &mpsc::Sender<std::io::Result<()>>) {
    let mut reader = stream.try_clone().expect("a second handle");
    let flood = std::thread::spawn(move || -> std::io::Result<()> {
        let piece = vec![9; 32 << 10];
        if !floods {
            return Ok(());
        }
        loop {
            stream.write_all(&piece)?;
        }
    });
    let mut piece = [0; 1024];
    let ended = loop {
        match reader.read(&mut piece) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(why) => break Err(why),
        }
    };
    // The kernel tells of a reset once: if the writer heard it, the reader sees an end.
    let _ = wait_for("the writer", WRITER_HEARS, || {
        flood.is_finished().then_some(())
    });
    if ended.is_ok() && flood.is_finished() {
        let _ = tell.send(flood.join().expect("the flood does not panic"));
        return;
    }
    let _ = tell.send(ended);
    let _ = flood.join();
}

/// How the client's reading ends; it never may be FIN here.
pub fn end_of(stream: &mut TcpStream) -> std::io::Result<u64> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut piece = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(bytes),
            got => bytes += got as u64,
        }
    }
}
