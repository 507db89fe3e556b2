//! The way to the target.

use std::{sync::Arc, time::Duration};

use assay_common::tls::{ConnectError, ConnectOptions, Connections, MeteredChannel, Role, TlsFiles, connect};
use tonic::transport::Channel;

/// How long a run waits for a target that is busy when the file does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(3600);

/// Where the target is, and as whom we go there. Clones share a connection.
#[derive(Debug, Clone)]
pub struct Target {
    url: String,
    files: TlsFiles,
    connections: Arc<Connections>,
    /// How long a run waits for a target that is busy.
    pub wait: Duration,
}

impl Target {
    /// At `https://host:port`, with this agent's certificate.
    pub fn new(url: &str, files: &TlsFiles) -> Self {
        let options = ConnectOptions::default();
        let connections = Connections::new(url, Role::Target, files, &[Role::Source], &options);
        Self {
            url: url.to_owned(),
            files: files.clone(),
            connections: Arc::new(connections),
            wait: DEFAULT_WAIT,
        }
    }

    /// The connection that the runs which are under way share, or a new one. What it gives counts its own bytes.
    ///
    /// # Errors
    /// When the target cannot be reached or is not what it should be.
    pub async fn connect(&self) -> Result<MeteredChannel, Arc<ConnectError>> {
        self.connections.get().await
    }

    /// A connection of one's own.
    ///
    /// # Errors
    /// When the target cannot be reached or is not what it should be.
    pub async fn connect_alone(&self) -> Result<Channel, ConnectError> {
        let options = ConnectOptions::default();
        let connected = connect(&self.url, Role::Target, &self.files, &[Role::Source], &options).await;
        connected.map(|(channel, _)| channel)
    }
}
