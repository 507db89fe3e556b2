//! Receipts of a source that was taken over: it can add one for each verdict on its own runs, and change nothing.

use std::fs;

use assay_common::{
    rpc_status::{RpcFault, fault_from_status},
    signing::SigningKey,
    verdict::{sign_receipt, unverified_verdict},
};
use assay_proto::v1::AcknowledgeVerdictRequest;

use integration_tests::evil::source::Tree;

use crate::ground::Ground;

impl Ground {
    fn acknowledge(&self, verdict_id: &str, receipt: &str) -> Result<(), RpcFault> {
        let request = AcknowledgeVerdictRequest {
            repository: "repo".to_owned(),
            verdict_id: verdict_id.to_owned(),
            receipt: receipt.to_owned(),
        };
        let mut client = self.source.client.clone();
        let answered = self.runtime.block_on(client.acknowledge_verdict(request));
        answered.map(drop).map_err(|status| fault_from_status(&status))
    }
}

#[test]
fn a_receipt_is_taken_with_the_sources_signature_for_its_verdict_and_once() {
    let ground = Ground::new("");
    ground.honest_run();
    ground.honest_run();
    let key = |name: &str| SigningKey::load(&ground.pair.path(name)).expect("key");
    let (own, other) = (key("pki/source-signing.key"), key("pki/target-signing.key"));
    let now = jiff::Timestamp::now();
    let receipt = |id: u32, time, key: &SigningKey| {
        let envelope = fs::read(ground.pair.path(&format!("store/repo/ledger/{id:09}.json"))).expect("read");
        sign_receipt(&unverified_verdict(&envelope).expect("a verdict"), &envelope, time, key).to_json()
    };
    let before: jiff::Timestamp = "2010-01-01T00:00:00Z".parse().expect("a time");
    let (generations, verified) = (ground.generations(), ground.pair.verified());
    let good = receipt(1, now, &own);
    let cases: [(&str, &str, String, &str); 10] = [
        ("another key", "000000001", receipt(1, now, &other), "receipt-refused"),
        ("for another verdict", "000000001", receipt(2, now, &own), "receipt-refused"),
        ("before the mark", "000000001", receipt(1, before, &own), "receipt-refused"),
        ("edited", "000000001", good.replacen("payload\":\"ey", "payload\":\"eY", 1), "receipt-refused"),
        ("no receipt", "000000001", "{}".to_owned(), "receipt-refused"),
        ("too long", "000000001", " ".repeat(16 * 1024 + 1), "invalid-argument"),
        ("no such verdict", "000000009", good.clone(), "no-such-verdict"),
        ("an id that leads out", "../../canary", good.clone(), "invalid-argument"),
        ("an id of another spelling", "1", good.clone(), "invalid-argument"),
        ("no id", "", good.clone(), "invalid-argument"),
    ];
    for (name, id, text, reason) in cases {
        let fault = ground.acknowledge(id, &text).expect_err(name);
        assert!(fault.reason == reason || reason == "invalid-argument", "{name}: {fault:?}");
        assert!(
            reason != "invalid-argument" || fault.code == tonic::Code::InvalidArgument,
            "{name}: {fault:?}"
        );
    }
    let kept = || fs::read_dir(ground.pair.path("store/repo/receipts")).expect("list").count();
    assert_eq!(kept(), 0);
    // The first one stays, and the same again is no error.
    ground.acknowledge("000000001", &good).expect("it is taken");
    ground.acknowledge("000000001", &good).expect("it is the same");
    let later = receipt(1, now + std::time::Duration::from_secs(60), &own);
    assert_eq!(
        ground.acknowledge("000000001", &later).expect_err("another").code,
        tonic::Code::AlreadyExists
    );
    assert_eq!(kept(), 1);
    ground.assert_untouched("receipts", &generations, &verified);
    let sound = ground.pair.target(&["ledger", "verify"]);
    assert!(sound.code == 0 && sound.stdout.contains("1 without a receipt: 000000002"), "{sound:?}");
}

/// An opening must name a whole nonce, and a seal the nonce of its opening.
#[test]
fn a_nonce_is_whole_and_that_of_the_opening() {
    let ground = Ground::new("");
    for (nonce, statements) in [(vec![1; 31], 1), (vec![1; 33], 1), (vec![1; 32], 0), (Vec::new(), 1)] {
        let run = ground.source.run_id();
        let mut request = ground.source.opening(&run);
        (request.nonce, request.statements) = (nonce, statements);
        let fault = ground.runtime.block_on(ground.source.open(request)).expect_err("refused");
        assert_eq!(fault.code, tonic::Code::InvalidArgument, "{fault:?}");
        assert!(fault.message.contains("nonce: must have 32 bytes"), "{fault:?}");
    }
    // A statement that names none does not fit a run that was opened with one.
    let run = ground.source.run_id();
    let tree = Tree::honest(&ground.live());
    let mut script = ground.source.script(&run, 1, &tree);
    (script.open.nonce, script.open.statements) = (vec![7; 32], 1);
    let end = ground.runtime.block_on(ground.source.play(script));
    let (call, fault) = end.fault();
    assert_eq!((call, &*fault.reason), ("SealRun", "statement-refused"), "{fault:?}");
    assert!(fault.message.contains("names another nonce"), "{fault:?}");
}
