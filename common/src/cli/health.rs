//! `health`: asks an agent over gRPC whether it serves, for container engines and load balancers.

use std::{process::ExitCode, time::Duration};

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
    let mut client = HealthClient::new(channel);
    let asked = client.check(HealthCheckRequest { service: String::new() });
    let answer = tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_| CommandError::not_run(format!("{url} did not answer within {PATIENCE:?}")))?;
    let status = answer.map_err(|status| CommandError::from_status(&status, &url))?.into_inner().status();
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
