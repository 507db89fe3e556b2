//! The way to the target.

use std::sync::Arc;

use assay_common::tls::{ConnectError, ConnectOptions, Role, TlsFiles, WireCounter, connect};
use tonic::transport::Channel;

/// Where the target is, and as whom we go there.
#[derive(Debug, Clone)]
pub struct Target {
    /// `https://host:port`.
    pub url: String,
    /// This agent's certificate.
    pub files: TlsFiles,
}

impl Target {
    /// Connects; the counter counts this connection's bytes under TLS.
    ///
    /// # Errors
    /// When the target cannot be reached or is not what it should be.
    pub async fn connect(&self) -> Result<(Channel, Arc<WireCounter>), ConnectError> {
        connect(&self.url, Role::Target, &self.files, &[Role::Source], &ConnectOptions::default()).await
    }
}
