//! The main thread: state, certificates, signals, the admin port.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use culvert_engine::Backend;
use culvert_net::tls::{ServerTls, keep_fresh};
use culvert_telemetry::admin::{Admin, serve};
use culvert_telemetry::lifecycle::{self, Phase};

use super::listeners::Certificates;
use crate::certified;
use crate::clusters::Clusters;
use crate::config::StateSource;
use crate::drain;
use crate::launch::{StartError, Started};
use crate::plane::{Plane, gauge, unix_ms};
use crate::subscribe::{ClustersFile, Subscriber};
use crate::table::Source;

/// What the main thread does.
pub struct Main {
    /// What it serves.
    pub plane: Arc<Plane>,
    /// What it runs on.
    pub backend: Backend,
    /// Answers operators.
    pub admin: Arc<Admin>,
    /// Certificates to follow.
    pub certificates: Certificates,
    /// The clusters file as it was read.
    pub file: Option<Clusters>,
    /// Obey signals.
    pub signals: bool,
}

impl Main {
    /// Serves until the data plane ends.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub async fn run(self, listener: TcpListener, started: Started) -> Result<(), StartError> {
        let plane = self.plane.clone();
        let follow = self.follow_state()?;
        if self.signals {
            obey_signals(&plane)?;
        }
        tokio::spawn(serve(listener, self.admin));
        let Certificates { all, people } = self.certificates;
        for tls in all.into_iter().chain(people) {
            tokio::spawn(watch_certificates(plane.clone(), tls));
        }
        let _ = started.send(Ok(()));
        tokio::select! {
            () = follow => {}
            () = refresh(&plane) => {}
            () = plane.beat() => {}
            () = crate::routes::follow::run(&plane) => {}
            () = drain::run(&plane) => {}
            () = certified::run(&plane, self.backend) => {}
        }
        Ok(())
    }

    /// Takes the first state into use and returns what follows its changes.
    fn follow_state(&self) -> Result<Box<dyn Future<Output = ()> + Unpin>, StartError> {
        let config = |why: String| StartError::Config(why);
        let plane = self.plane.clone();
        let state = match &plane.config.state {
            StateSource::Control(link) => {
                let subscriber = Subscriber::start(plane.clone(), link, self.backend);
                return Ok(Box::new(Box::pin(subscriber.map_err(config)?.run())));
            }
            StateSource::ClustersFile(_) | StateSource::ClustersText(_) => self.file.as_ref(),
        };
        let Some(read) = state else {
            return Err(config("the clusters file was not read".to_owned()));
        };
        plane.adopt(&read.state, Source::File).map_err(config)?;
        match &plane.config.state {
            StateSource::ClustersFile(path) => {
                let file = ClustersFile::new(plane.clone(), path.clone(), read.state.clone());
                Ok(Box::new(Box::pin(file.run())))
            }
            _ => Ok(Box::new(Box::pin(std::future::pending()))),
        }
    }
}

fn obey_signals(plane: &Arc<Plane>) -> io::Result<()> {
    let signals = lifecycle::signals()?;
    let plane = plane.clone();
    tokio::spawn(async move {
        for phase in [Phase::Draining, Phase::Stopped] {
            signals.reached(phase).await;
            plane.shutdown.advance(phase);
        }
    });
    Ok(())
}

async fn refresh(plane: &Plane) {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        tick.tick().await;
        plane.refresh_metrics();
        plane.rights.end_expired(&plane.table.load(), unix_ms());
        plane.shed();
    }
}

async fn watch_certificates(plane: Arc<Plane>, tls: Arc<ServerTls>) {
    keep_fresh(tls, move |reloaded| {
        plane.metrics.reload_ok.set(i64::from(reloaded.is_ok()));
        match reloaded {
            Ok(()) => {
                plane.metrics.reload_at.set(gauge(unix_ms() / 1000));
                tracing::info!("certificates reloaded");
            }
            Err(why) => tracing::warn!(%why, "certificates are refused; the last ones are used"),
        }
    })
    .await;
}
