//! Wire formats and decisions of Culvert, without I/O.
#![cfg_attr(not(test), no_std)]
