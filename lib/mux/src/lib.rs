//! Sans-io stream multiplexer on the yamux wire.
#![cfg_attr(not(test), no_std)]
