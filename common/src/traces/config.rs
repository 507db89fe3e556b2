//! `[traces]`, checked when the configuration is read.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    config::{self, Span},
    outbox::Peer,
};

/// Ports of OTLP: the standard has the same for both.
const PORTS: (u16, u16) = (4317, 4317);
/// How long one try may take when the file does not say (the standard's `OTEL_EXPORTER_OTLP_TIMEOUT`).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// `[traces]`: for an OpenTelemetry collector, Jaeger, Tempo and their like. Without this section nothing is sent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracesSection {
    /// `http://HOST:4317` or `https://HOST:4317`: where OTLP is spoken over gRPC.
    endpoint: String,
    /// Certificate authorities (PEM) for `https`. Default: those of the system.
    ca: Option<PathBuf>,
    /// A file with a token that is sent as `Authorization: Bearer`. Default: none is sent.
    token_file: Option<PathBuf>,
    /// How long one try may take; three are made. Default: 10s.
    timeout: Option<Span>,
}

impl TracesSection {
    /// The file that holds a token, as it stands in the configuration.
    pub fn secret_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }
}

/// Where traces go: a section that was checked.
#[derive(Debug)]
pub struct Collector {
    pub(super) peer: Peer,
    pub(super) timeout: Duration,
}

impl Collector {
    /// Checks the section of the configuration file `path`; what is wrong is added to `faults`, each naming its key.
    pub fn new(path: &Path, section: Option<&TracesSection>, faults: &mut Vec<String>) -> Option<Self> {
        let section = section?;
        let file = |file: &Option<PathBuf>| file.as_ref().map(|file| config::resolve(path, file));
        let timeout = section.timeout.map_or(DEFAULT_TIMEOUT, |span| span.0);
        if timeout.is_zero() || timeout > super::MAX_TIMEOUT {
            faults.push("traces.timeout: must be greater than zero and at most 1m".to_owned());
        }
        let form = "http://HOST:4317 or https://HOST:4317";
        match Peer::new(
            ("endpoint", &section.endpoint),
            form,
            PORTS,
            file(&section.token_file),
            file(&section.ca),
        ) {
            Ok(peer) if peer.uri.path() != "/" || peer.uri.query().is_some() => {
                // What OTLP over HTTP has behind its port would be without effect here.
                faults.push(format!("traces.endpoint: must be {form}, without a path"));
                None
            }
            Ok(peer) => Some(Self { peer, timeout }),
            Err(fault) => {
                faults.push(format!("traces.{fault}"));
                None
            }
        }
    }
}
