//! `verdict verify`: checks a verdict offline, against keys that the operator gives.

use std::{fs, path::PathBuf, process::ExitCode};

use super::{CommandError, outcome_code, print, print_json, show};
use crate::{
    dsse::Envelope,
    error::Hint as _,
    keyring::{Keyring, load_if_given},
    signing::KeyError,
    verdict::verify_verdict_with,
};

/// Checks a verdict file against pinned keys, offline
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The verdict: a DSSE envelope, as the agents store it
    file: PathBuf,
    /// The target's public signing key; never taken from the file itself. May be given several times, oldest first
    #[arg(long, value_name = "PUB", required = true)]
    key: Vec<PathBuf>,
    /// The source's public signing key, to check its embedded statement too. May be given several times, oldest first
    #[arg(long, value_name = "PUB")]
    source_key: Vec<PathBuf>,
    /// Also write the signed bytes (DSSE pre-authentication encoding) and the raw signature to PREFIX.pae and PREFIX.sig,
    /// for openssl
    #[arg(long, value_name = "PREFIX")]
    export: Option<PathBuf>,
}

impl VerifyArgs {
    /// Does it. The exit code is that of the verdict's outcome; 2 when it does not verify.
    ///
    /// # Errors
    /// When a file cannot be read, or the verdict does not verify.
    pub fn run(self, json: bool) -> Result<ExitCode, CommandError> {
        let key_error =
            |error: KeyError| CommandError { hint: error.hint(), ..CommandError::usage(error.to_string()) };
        let keys = Keyring::load_all(&self.key).map_err(key_error)?;
        let source_keys = load_if_given(&self.source_key).map_err(key_error)?;
        let bytes = fs::read(&self.file).map_err(|error| {
            CommandError::usage(format!("{}: cannot be read: {error}", self.file.display()))
        })?;
        let verified = verify_verdict_with(&bytes, &keys, source_keys.as_ref()).map_err(|error| {
            CommandError::usage(format!("{}: NOT VALID: {error}", self.file.display()))
                .hint("do not rely on this file; get the verdict again from the other agent and compare")
        })?;
        if let Some(prefix) = &self.export {
            self.export_to(prefix, &bytes)?;
        }
        let signer = &keys.all()[verified.target_place];
        if json {
            let verdict = serde_json::to_value(&verified.verdict)
                .map_err(|error| CommandError::usage(error.to_string()))?;
            print_json(&serde_json::json!({
                "valid": true,
                "key": signer.key_id(),
                "formerKey": verified.target_place < keys.current_place(),
                "sourceSignature": verified.source_signature.to_string(),
                "verdict": verdict,
            }));
        } else {
            let former = match verified.target_place < keys.current_place() {
                false => "",
                true => {
                    "\nthis is a former key: only `ledger verify` shows whether the verdict is of its time, and not of somebody who has stolen it"
                }
            };
            print(&format!(
                "valid: signed by {}; the source's statement: {}{former}\n{}",
                signer.key_id(),
                verified.source_signature,
                show::verdict(&verified.verdict)
            ));
        }
        Ok(outcome_code(Some(verified.verdict.outcome)))
    }

    fn export_to(&self, prefix: &std::path::Path, bytes: &[u8]) -> Result<(), CommandError> {
        let parts = || -> Result<_, crate::dsse::EnvelopeError> {
            let envelope = Envelope::parse(bytes)?;
            Ok((envelope.signed_bytes()?, envelope.raw_signature()?))
        };
        let (signed, signature) = parts().map_err(|error| CommandError::usage(error.to_string()))?;
        for (ending, content) in [("pae", signed), ("sig", signature)] {
            let path = prefix.with_extension(ending);
            fs::write(&path, content)
                .map_err(|error| CommandError::usage(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }
}
