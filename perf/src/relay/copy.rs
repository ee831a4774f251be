//! tokio's own copy on one thread: what a relay written in an afternoon does.

use std::net::{SocketAddr, TcpListener};

use anyhow::Result;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

pub(super) fn relay(listener: TcpListener, to: SocketAddr, buffer_bytes: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let Ok((mut client, _)) = listener.accept().await else {
                continue;
            };
            tokio::spawn(async move {
                let Ok(mut service) = TcpStream::connect(to).await else {
                    return;
                };
                let _ = service.set_nodelay(true);
                let (client, service) = (&mut client, &mut service);
                let moved =
                    copy_bidirectional_with_sizes(client, service, buffer_bytes, buffer_bytes);
                let _ = moved.await;
            });
        }
    })
}
