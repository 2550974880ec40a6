//! What operators write, made into what the flow uses: schema → checked
//! [`model`] → compiled, immutable [`snapshot`].

pub mod model;
pub mod routes;
pub mod snapshot;
