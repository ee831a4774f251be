//! Pair mode against crowds.

mod squatters;
