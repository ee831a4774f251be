//! Pairs under load and against crowds.

mod bytes;
mod squatters;
