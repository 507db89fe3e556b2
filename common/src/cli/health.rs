//! `health`: asks an agent over gRPC whether it serves, for container engines and load balancers.

use std::{process::ExitCode, time::Duration};

use jiff::Timestamp;
use tonic::{Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{CommandError, Connection, print, print_json};
use crate::{pki::Role, tls::TlsFiles};

/// How long the answer may take: a container engine gives 30 s by default.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the agent of role `role`, as an operator or with the agent's own certificate. 0 when it serves.
///
/// # Errors
/// When it cannot be reached, or does not serve.
pub async fn health(
    connection: &Connection,
    role: Role,
    configured: Option<(String, TlsFiles)>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let (channel, url) = connection.open_as(&[Role::Operator, role], role, configured).await?;
    let answer = tokio::time::timeout(PATIENCE, ask_health(channel))
        .await
        .map_err(|_| CommandError::not_run(format!("{url} did not answer within {PATIENCE:?}")))?;
    let status = answer.map_err(|status| CommandError::from_status(&status, &url))?.status;
    if json {
        print_json(&serde_json::json!({ "server": url, "status": status.as_str_name() }));
    }
    if status != ServingStatus::Serving {
        return Err(CommandError::not_run(format!("{url}: {}", status.as_str_name()))
            .hint("the agent's log has the reason"));
    }
    if !json {
        print(&format!("{url}: {}\n", status.as_str_name()));
    }
    Ok(ExitCode::SUCCESS)
}

/// What an agent answers.
#[derive(Debug, Clone, Copy)]
pub struct HealthAnswer {
    /// Whether it serves.
    pub status: ServingStatus,
    /// Its clock, to the second: what HTTP servers say with every answer (RFC 9110, 6.6.1).
    pub time: Option<Timestamp>,
}

/// Asks an agent whether it serves.
///
/// # Errors
/// When it does not answer.
pub async fn ask_health(channel: Channel) -> Result<HealthAnswer, Status> {
    let mut client = HealthClient::new(channel);
    let answer = client.check(HealthCheckRequest { service: String::new() }).await?;
    let date = answer.metadata().get("date").and_then(|date| date.to_str().ok());
    let time = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|time| time.timestamp());
    Ok(HealthAnswer { status: answer.into_inner().status(), time })
}
