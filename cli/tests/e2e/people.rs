//! People reach clusters through the browser path as themselves (P-12, P-18, R-04, C-21).

mod audit;
mod cookies;
mod device;
mod ends;
mod fleet;
mod hub;
mod identity;
mod listeners;
mod outage;
mod policy;
