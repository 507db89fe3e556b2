//! The source's receipts: what it signs when it has a verdict, and how the target gets it.
//!
//! A receipt is kept until the target has it: one that could not be delivered goes with the next run. A target that knows no
//! receipts is not sent any, and its verdicts stand without.

use assay_common::{
    rpc_status::fault_from_status,
    verdict::{Verdict, sign_receipt},
};
use assay_proto::v1::{AcknowledgeVerdictRequest, OpenRunResponse};

use super::{Attempt, Client};

/// Receipts that one run sends at most, the oldest first.
const AT_ONCE: usize = 100;
/// How long the target may take to answer to one.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

impl Attempt {
    /// Notes what the target knows, and sends it the receipts that it does not have yet.
    pub(super) async fn meet(&mut self, client: &Client, opened: &OpenRunResponse) {
        self.target_statements = opened.statements;
        self.send_receipts(client).await;
    }

    /// Signs the receipt for a verdict that was just verified, and keeps it: a source that is killed from here on sends it with its next
    /// run. A verdict is valid without.
    pub(super) fn keep_receipt(&self, verdict: &Verdict, verdict_id: &str, envelope: &str) {
        if self.target_statements == 0 {
            return;
        }
        let (context, now) = (&self.context, jiff::Timestamp::now());
        let receipt = sign_receipt(verdict, envelope.as_bytes(), now, &context.signing_key);
        if let Err(error) = context.state.save_receipt(verdict_id, &receipt.to_json()) {
            tracing::warn!(%error, verdict_id, "the receipt for the verdict cannot be kept");
        }
    }

    /// Sends the receipts that the target does not have yet. Nothing waits for them.
    pub(super) async fn send_receipts(&self, client: &Client) {
        if self.target_statements == 0 {
            return;
        }
        let (state, repository) = (&self.context.state, &self.context.repository.name);
        for (verdict_id, receipt) in state.unsent_receipts(AT_ONCE) {
            let request = AcknowledgeVerdictRequest {
                repository: repository.clone(),
                verdict_id: verdict_id.clone(),
                receipt,
            };
            let mut client = client.clone();
            let sent = tokio::select! {
                sent = tokio::time::timeout(PATIENCE, client.acknowledge_verdict(request)) => sent,
                () = self.cancel.cancelled() => return,
            };
            match sent {
                Ok(Ok(_)) => state.forget_receipt(&verdict_id),
                Ok(Err(status)) => {
                    let fault = fault_from_status(&status);
                    if is_final(fault.code) {
                        tracing::warn!(verdict_id, error = fault.message, "the target refuses a receipt");
                        state.forget_receipt(&verdict_id);
                    } else {
                        tracing::warn!(verdict_id, error = fault.message, "a receipt goes with the next run");
                        return;
                    }
                }
                Err(_) => {
                    tracing::warn!(
                        verdict_id,
                        "the target does not answer; the receipt goes with the next run"
                    );
                    return;
                }
            }
        }
    }
}

/// True when the target would say the same again.
fn is_final(code: tonic::Code) -> bool {
    use tonic::Code;
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unimplemented
            | Code::FailedPrecondition
    )
}
