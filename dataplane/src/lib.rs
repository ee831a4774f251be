//! Moves the bytes: accepts clients and agents, relays, counts.
