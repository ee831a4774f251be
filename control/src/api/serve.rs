//! The two listeners of the API.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use culvert_net::listen::Acceptor;
use culvert_rpc::PeerCheck;
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Caller;

/// Connections of each listener at once; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 128;
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEAD_FIELDS_MAX: usize = 128;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves peers of the Unix socket that pass `check`, until the shutdown starts.
pub async fn serve_unix(
    listener: UnixListener,
    check: PeerCheck,
    router: Router,
    shutdown: Shutdown,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.reached(Phase::Draining) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(why) => {
                pause(&why).await;
                continue;
            }
        };
        match check.check(&stream) {
            Ok(uid) => {
                let caller = axum::Extension(Caller::Socket { uid });
                spawn(stream, router.clone().layer(caller), slot, shutdown.clone());
            }
            Err(why) => tracing::warn!(%why, "admin API refused a peer"),
        }
    }
}

/// Serves TCP callers until the shutdown starts.
pub async fn serve_tcp(listener: Acceptor, router: Router, shutdown: Shutdown) {
    let router = router.layer(axum::Extension(Caller::Tcp));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        tokio::select! {
            (stream, _) = listener.accept() => {
                spawn(stream, router.clone(), slot, shutdown.clone());
            }
            () = shutdown.reached(Phase::Draining) => return,
        }
    }
}

fn spawn(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    slot: OwnedSemaphorePermit,
    shutdown: Shutdown,
) {
    tokio::spawn(async move {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEAD_FIELDS_MAX)
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = &mut connection => served,
            () = shutdown.reached(Phase::Draining) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(why) = served {
            tracing::debug!(%why, "admin API connection ended");
        }
        drop(slot);
    });
}

async fn pause(why: &io::Error) {
    tracing::warn!(%why, "admin API cannot accept; trying again");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
