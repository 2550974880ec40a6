//! The lab: namespaces, cgroups and real servers for the end-to-end tests.
