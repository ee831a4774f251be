//! What is measured, by concern.

mod cells;
mod conn;
mod maps;
mod programs;
mod residence;
mod rtt;
mod time;
mod trace;
