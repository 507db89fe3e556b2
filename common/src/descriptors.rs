//! How many files a process may have open.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Takes as many descriptors as this process may have: a tree is walked and built with one or two for each level, and files are held
/// open while a repository is copied (`copy.hold`). The soft limit of 1024 is there for programs that use select(2).
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the number of open files stays as it was");
    }
}
