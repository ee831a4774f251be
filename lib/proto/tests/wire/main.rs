//! Every structure on the wire: golden bytes, round trips, any split, any garbage.

mod control;
mod golden;
mod hello;
mod join;
mod open;
mod state;
