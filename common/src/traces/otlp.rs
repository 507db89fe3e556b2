//! OTLP over gRPC (opentelemetry.io/docs/specs/otlp), with the standard's own messages.

use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{Collector, Trace};
use crate::{
    dial,
    outbox::{DeliveryError, Way},
};

/// The way to a collector.
#[derive(Debug)]
pub(super) struct Otlp(pub(super) Collector);

impl Way for Otlp {
    type Message = Trace;

    fn name(&self) -> &str {
        "traces"
    }

    async fn send(&self, trace: &Trace) -> Result<(), DeliveryError> {
        let limit = self.0.timeout;
        tokio::time::timeout(limit, self.export(trace))
            .await
            .unwrap_or_else(|_| Err(self.transient(&format!("no answer within {limit:?}"))))
    }
}

impl Otlp {
    fn transient(&self, error: &dyn std::fmt::Display) -> DeliveryError {
        DeliveryError::transient(format!("{}: {error}", self.0.peer.label()))
    }

    fn lasting(&self, error: &dyn std::fmt::Display) -> DeliveryError {
        DeliveryError::lasting(format!("{}: {error}", self.0.peer.label()))
    }

    /// A connection of its own for each: there is one an hour, and a collector that was moved is found again.
    async fn connect(&self) -> Result<Channel, DeliveryError> {
        let peer = &self.0.peer;
        let scheme = if peer.is_tls { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", peer.label()))
            .map_err(|error| self.lasting(&error))?;
        if peer.is_tls {
            let tls = ClientTlsConfig::new().domain_name(&peer.host).trust_anchors(peer.roots()?.roots);
            endpoint = endpoint.tls_config(tls).map_err(|error| self.lasting(&error))?;
        }
        let (host, port) = (peer.host.clone(), peer.port);
        let connector = tower::service_fn(move |_| {
            let host = host.clone();
            async move { dial::connect(&host, port).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connector).await.map_err(|error| self.transient(&chain(&error)))
    }

    async fn export(&self, trace: &Trace) -> Result<(), DeliveryError> {
        let mut request = Request::new(trace.request.clone());
        if let Some(bearer) = self.0.peer.bearer()? {
            let mut value =
                MetadataValue::try_from(bearer.as_bytes()).map_err(|error| self.lasting(&error))?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = TraceServiceClient::new(self.connect().await?);
        let answer = client.export(request).await.map_err(|status| self.refused(&status))?.into_inner();
        match answer.partial_success {
            Some(partial) if partial.rejected_spans > 0 => Err(self.lasting(&format!(
                "the collector took the trace in part: {} spans were refused: {}",
                partial.rejected_spans,
                short(&partial.error_message)
            ))),
            _ => Ok(()),
        }
    }

    /// What may be tried again (OTLP 1.5, "Failures").
    fn refused(&self, status: &Status) -> DeliveryError {
        let text = format!("{:?}: {}", status.code(), short(status.message()));
        match status.code() {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::DataLoss => self.transient(&text),
            _ => self.lasting(&text),
        }
    }
}

/// What a collector says is somebody else's text: a line of the log is all that it gets.
fn short(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(200).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
