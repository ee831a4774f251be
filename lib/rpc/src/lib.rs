//! The control link: state from control to data planes.
