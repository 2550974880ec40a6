//! A small virtual machine with a kernel of another version: the package, the
//! image that it boots, and the run.

pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod machine;

use std::path::PathBuf;

use crate::cargo::workspace_root;

/// Where kernels, images and consoles are kept between runs.
fn folder() -> PathBuf {
    workspace_root().join("target/vm")
}
