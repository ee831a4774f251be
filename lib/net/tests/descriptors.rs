//! Running out of descriptors (F11). Alone in its process: it lowers the process's limit.

use std::fs::File;
use std::time::Duration;

use culvert_net::listen::{ListenOptions, Listener, accept_paused};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

#[tokio::test]
async fn without_descriptors_clients_are_told_and_accepting_pauses_and_recovers() {
    let limit = Rlimit {
        current: Some(64),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let options = ListenOptions::default();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = listener.start().unwrap();
    let mut client = TcpStream::connect(addr).await.unwrap();
    let mut hoard: Vec<File> = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }

    // The waiting client is closed, not left hanging.
    let accepting = tokio::spawn(async move { acceptor.accept().await });
    let told = tokio::time::timeout(Duration::from_secs(5), client.read(&mut [0; 1])).await;
    let told = told.expect("the client must be told");
    assert!(matches!(told, Ok(0) | Err(_)), "{told:?}");
    let paused = async {
        while accept_paused() < Duration::from_millis(100) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let paused = tokio::time::timeout(Duration::from_secs(5), paused).await;
    paused.expect("accepting must pause instead of spinning");

    // Descriptors come back, and so does the listener.
    hoard.clear();
    let _second = TcpStream::connect(addr).await.unwrap();
    let accepted = tokio::time::timeout(Duration::from_secs(5), accepting).await;
    accepted.expect("accepting must recover").unwrap();
}
