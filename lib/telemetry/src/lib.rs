//! Logs, metrics, admin server and process life cycle.
