//! Documents → snapshot.
