//! A verdict's envelope from anybody: read, explained, checked. Nothing but what was signed is ever believed.
#![no_main]

use std::sync::OnceLock;

use assay_common::{
    cli::explain,
    dsse::Envelope,
    signing::VerifyingKey,
    verdict::{unverified_verdict, verify_control, verify_source_statement, verify_verdict},
};
use assay_fuzz::{chain, key};
use libfuzzer_sys::fuzz_target;

fn known() -> &'static (VerifyingKey, Vec<String>) {
    static KNOWN: OnceLock<(VerifyingKey, Vec<String>)> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let messages =
            chain().iter().map(|bytes| unverified_verdict(bytes).expect("it is one").message).collect();
        (key().verifying_key(), messages)
    })
}

fuzz_target!(|data: &[u8]| {
    let (key, messages) = known();
    if let Ok(verdict) = unverified_verdict(data) {
        assert!(!explain(&verdict).is_empty());
    }
    if let Ok(verified) = verify_verdict(data, key, Some(key)) {
        assert!(messages.contains(&verified.verdict.message), "nobody signed this");
    }
    drop(verify_control("repo", data, key));
    if let Ok(envelope) = Envelope::parse(data) {
        drop(verify_source_statement(&envelope, key));
        let again = Envelope::parse(envelope.to_json().as_bytes()).expect("what was written is read");
        assert_eq!(again.to_json(), envelope.to_json());
    }
});
