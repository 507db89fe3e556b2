//! Messages as JSON, in protobuf's own JSON form: what `--json` prints is what grpcurl prints.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, SerializeOptions};
use serde::de::Error as _;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(assay_proto::DESCRIPTORS).expect("the build made these descriptors")
});

/// `message`, which is the `assay.v1` message called `name`, as JSON.
///
/// # Panics
/// When `name` is not the name of `message`'s type: a mistake of the caller.
pub fn to_json(name: &str, message: &impl Message) -> serde_json::Value {
    let descriptor =
        POOL.get_message_by_name(&format!("assay.v1.{name}")).expect("the message is in the contract");
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.merge(message.encode_to_vec().as_slice()).expect("the bytes are those of this message");
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).expect("messages are always JSON")
}

/// Reads back what [`to_json`] wrote.
///
/// # Errors
/// When the text is not JSON of that message.
pub fn from_json<M: Message + Default>(name: &str, text: &str) -> Result<M, serde_json::Error> {
    let descriptor = POOL
        .get_message_by_name(&format!("assay.v1.{name}"))
        .ok_or_else(|| serde_json::Error::custom("no such message"))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor, &mut deserializer, &options)?;
    deserializer.end()?;
    dynamic.transcode_to().map_err(serde_json::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_proto::v1::{Counts, Outcome, Run};

    #[test]
    fn a_run_reads_well_and_comes_back() {
        let run = Run {
            id: "20261122T224501Z-7f3a9c".into(),
            outcome: Outcome::Pass.into(),
            counts: Some(Counts { files: 3, ..Default::default() }),
            started: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
            ..Default::default()
        };
        let json = to_json("Run", &run);
        assert_eq!(json["outcome"], "OUTCOME_PASS");
        assert_eq!(json["counts"]["files"], 3);
        assert_eq!(json["started"], "2027-01-15T08:00:00Z");
        assert_eq!(from_json::<Run>("Run", &json.to_string()).expect("own output"), run);
    }
}
