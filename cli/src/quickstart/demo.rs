//! The demo service: says what it was asked, so that a first answer explains itself.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::state::Target;
use crate::error::{CliError, Result};

/// Starts the service on a free loopback port.
pub async fn start() -> Result<Target> {
    let failed = |why| {
        CliError::new(
            "demo",
            "the demo service cannot listen",
            why,
            "cli",
            "free a port",
        )
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(failed)?;
    let authority = listener.local_addr().map_err(failed)?.to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer)),
            );
        }
    });
    Ok(Target {
        authority,
        plain: true,
    })
}

async fn answer(
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let mut text = format!(
        "Hello from the private side. You asked {} {}\n",
        request.method(),
        request.uri()
    );
    for (name, value) in request.headers() {
        text.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    Ok(Response::new(text.into()))
}
