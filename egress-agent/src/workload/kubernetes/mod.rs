//! Who the pods of this node are, and where the node is, from the Kubernetes
//! API server.

pub mod node;
pub mod pods;
