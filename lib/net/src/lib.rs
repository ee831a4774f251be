//! Listeners, dialling, TLS, transports and carriers.
