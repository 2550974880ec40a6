//! The API on the Unix socket, and the metrics endpoint.
