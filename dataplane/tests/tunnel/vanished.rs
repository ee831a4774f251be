//! Clients that vanish without a word while bytes wait for them, beside one
//! that only pauses.

use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::client::{connect, read_until, request};
use crate::hub::{Hub, metric, soon};

/// Both looks, the silence, and room for a busy host.
const FOUND_MAX: Duration = Duration::from_secs(60);

async fn flooded(hub: &Hub) -> TcpStream {
    let mut stream = connect(hub.at.internal).await;
    let asked = request("GET", "/tunnel/dev/flood", "");
    stream.write_all(asked.as_bytes()).await.unwrap();
    read_until(&mut stream, b"\r\n\r\n").await;
    stream
}

/// From now on nothing that is sent to `stream` reaches it, nor is it answered.
fn vanish(stream: &TcpStream) {
    const RETURN: u16 = 0x06;
    let drop_all = [SockFilter::new(RETURN, 0, 0, 0)];
    SockRef::from(stream).attach_filter(&drop_all).unwrap();
}

/// Reads no further; a second fills its window.
async fn pause(hub: &Hub) -> TcpStream {
    let paused = flooded(hub).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    paused
}

#[tokio::test]
async fn vanished_clients_are_found_and_a_pausing_one_is_not_cut() {
    let hub = Hub::start(&[]);
    let _agent = Agent::connect(hub.at.public).await;
    let mut pausing = pause(&hub).await;
    let shut = pause(&hub).await;
    let mut open = flooded(&hub).await;
    soon("bytes flow", open.read_exact(&mut vec![0; 4 << 20]))
        .await
        .unwrap();
    vanish(&open);
    // Found behind a shut window too, where the kernel's probes are frequent.
    let probed = culvert_net::listen::bound_probes(&shut).is_ok();
    if probed {
        vanish(&shut);
    }
    let found = 1.0 + f64::from(u8::from(probed));
    let line = r#"culvert_relays_closed_total{reason="client_dead"} "#;
    let waited = tokio::time::timeout(FOUND_MAX, async {
        while metric(hub.at.internal, line).await != Some(found) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    waited.await.expect("the vanished clients are found");
    // By now the pausing one has paused for longer than either of them.
    soon("the rest flows", pausing.read_exact(&mut vec![0; 32 << 20]))
        .await
        .unwrap();
    assert_eq!(metric(hub.at.internal, line).await, Some(found));
}
