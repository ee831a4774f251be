//! The start of the observer, before any other thread exists: it takes the
//! process's capabilities, and they belong to threads.

use culvert_observe::{Observer, Settings};

use crate::clusters;
use crate::config::{Config, ObserveConfig, StateSource};
use crate::launch::StartError;

/// Ports below this want a capability.
const PORTS_FREE: u16 = 1024;

/// The observer of a hub's data plane.
///
/// # Errors
/// As [`launch`].
pub fn start(config: &Config) -> Result<Observer, StartError> {
    let clusters_max = u16::try_from(config.metrics.clusters_max).unwrap_or(u16::MAX);
    launch(&Settings {
        clusters_max,
        keep_net_bind: binds_low(config),
        ..settings(config.observe, config.engine.pairs_max)
    })
}

/// What an operator asked for, for so many pairs.
pub fn settings(config: ObserveConfig, pairs_max: usize) -> Settings {
    Settings {
        mode: config.mode,
        tier_max: config.tier_max,
        trace: config.trace,
        pairs_max: u32::try_from(pairs_max).unwrap_or(u32::MAX),
        ..Settings::default()
    }
}

/// Loads the programs, as far as the host permits, and gives up every capability.
///
/// # Errors
/// When more is required than the host permits.
pub fn launch(settings: &Settings) -> Result<Observer, StartError> {
    let started = culvert_observe::start(settings);
    let observer = started.map_err(|why| StartError::Config(why.to_string()))?;
    let report = observer.report();
    match report.is_warning() {
        true => tracing::warn!("{report}"),
        false => tracing::info!("{report}"),
    }
    Ok(observer)
}

/// Whether a port that is known now wants a capability later.
fn binds_low(config: &Config) -> bool {
    let own = [config.addr, config.internal_addr, config.admin_addr];
    if own
        .iter()
        .any(|addr| addr.port() > 0 && addr.port() < PORTS_FREE)
    {
        return true;
    }
    let tls = config.tls.is_some();
    let read = match &config.state {
        StateSource::Control(_) => return false,
        StateSource::ClustersFile(path) => clusters::read(path, tls),
        StateSource::ClustersText(text) => clusters::parse(&text.0, tls),
    };
    // A file that cannot be read keeps the data plane from starting, a step later.
    let Ok(clusters) = read else {
        return false;
    };
    let states = clusters.state.clusters.values();
    let routes = crate::routes::Routes::build(states);
    routes.listeners().keys().any(|at| at.port() < PORTS_FREE)
}
