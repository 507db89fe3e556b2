//! A source's receipt for a verdict comes in.
//!
//! It is kept beside the ledger, one for each verdict, and never in it: the chain is the target's word, the receipts are the
//! source's. The first receipt for a verdict stays. A source that was taken over can therefore add one small file for each verdict
//! on its own runs, and cannot change what is there.

use std::time::Duration;

use assay_common::{
    ledger::EntryId,
    rpc_status::RpcFault,
    telemetry,
    verdict::{MAX_RECEIPT_BYTES, unverified_verdict, verify_receipt},
};
use assay_proto::v1::AcknowledgeVerdictRequest;
use tonic::Code;

use super::super::{internal, invalid};
use crate::repository::Repository;

/// A source's clock that is put right by a small step between mark and receipt is no lie.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Checks a receipt and keeps it.
pub(super) fn acknowledge(
    repository: &Repository,
    request: &AcknowledgeVerdictRequest,
) -> Result<(), RpcFault> {
    let id = EntryId::parse(&request.verdict_id)
        .ok_or_else(|| invalid("verdict_id: must be the id of a verdict, nine digits"))?;
    if request.receipt.len() > MAX_RECEIPT_BYTES {
        return Err(invalid(format!("receipt: must have at most {MAX_RECEIPT_BYTES} bytes")));
    }
    let no_verdict =
        || RpcFault::new(Code::NotFound, "no-such-verdict", format!("the ledger has no verdict {id}"));
    let envelope = repository.envelope(&id.to_string()).map_err(|_| no_verdict())?;
    let verdict =
        unverified_verdict(envelope.as_bytes()).map_err(|error| internal("reading the verdict", &error))?;
    let _of_run = telemetry::of_run(&verdict.run_id).entered();
    let refused = |text: String| {
        RpcFault::new(
            Code::PermissionDenied,
            "receipt-refused",
            format!("the receipt for verdict {id}: {text}"),
        )
        .with_hint("compare repository.source_key in the target's configuration with the source's public key")
    };
    let receipt = verify_receipt(
        request.receipt.as_bytes(),
        repository.source_keys.current(),
        &verdict,
        envelope.as_bytes(),
    )
    .map_err(|error| refused(error.to_string()))?;
    let early = verdict.mark.as_ref().map(|mark| receipt.received.duration_until(mark.time));
    if early.is_some_and(|early| Duration::try_from(early).is_ok_and(|early| early > CLOCK_SLACK)) {
        let early = refused("it was signed before the mark that the verdict is about".to_owned());
        return Err(early
            .with_hint("the source's clock was set back after the mark: let the source keep time (chrony)"));
    }
    match repository.store.add_receipt(id, request.receipt.as_bytes()) {
        Ok(true) => {
            tracing::info!(verdict = %id, received = %receipt.received, "the source has the verdict");
            Ok(())
        }
        Ok(false) => Err(RpcFault::new(
            Code::AlreadyExists,
            "receipt-known",
            format!("there is another receipt for verdict {id} already"),
        )),
        Err(error) => Err(internal("keeping the receipt", &error)),
    }
}
