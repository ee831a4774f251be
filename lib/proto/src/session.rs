//! The state machine of the control stream (P7).
