//! Decides: clusters, tokens, registry.
