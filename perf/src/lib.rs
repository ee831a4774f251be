//! The testbed and the load generator.
