//! The path of a connection, from the kernel's hand-over to its record.
