//! The one place where the agent's own sockets are made. Each is marked so
//! that the kernel programs let it pass (else the agent would capture itself),
//! and made in the network namespace that it is for.
