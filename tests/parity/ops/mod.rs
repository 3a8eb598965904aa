//! Every op on its own.
