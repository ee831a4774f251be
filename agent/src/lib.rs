//! Dials out from the private side and joins streams to local services.
