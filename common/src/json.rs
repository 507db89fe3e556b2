//! Messages as JSON, in protobuf's own JSON form: what `--json` prints is what grpcurl prints.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, SerializeOptions,
};
use serde::de::Error as _;
use serde_json::json;

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

/// The same for people and their programs: bytes, which are digests, in hexadecimal digits.
///
/// # Panics
/// As [`to_json`].
pub fn to_output(name: &str, message: &impl Message) -> serde_json::Value {
    let mut value = to_json(name, message);
    if let Some(descriptor) = POOL.get_message_by_name(&format!("assay.v1.{name}")) {
        in_hexadecimal(&descriptor, &mut value);
    }
    value
}

fn in_hexadecimal(descriptor: &MessageDescriptor, value: &mut serde_json::Value) {
    use serde_json::Value;
    for field in descriptor.fields() {
        let Some(value) = value.get_mut(field.json_name()) else { continue };
        let each: Vec<&mut Value> = match value {
            Value::Array(values) => values.iter_mut().collect(),
            value => vec![value],
        };
        match field.kind() {
            Kind::Bytes => each.into_iter().for_each(|value| {
                let bytes = value.as_str().and_then(|text| STANDARD.decode(text).ok());
                if let Some(bytes) = bytes {
                    *value = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
                }
            }),
            Kind::Message(inner) if !field.is_map() => {
                each.into_iter().for_each(|value| in_hexadecimal(&inner, value));
            }
            _ => {}
        }
    }
}

/// The forms of these messages and of all that are in them, as `$defs` of a JSON schema: what [`to_output`] makes.
///
/// # Panics
/// When a name is none of the contract's: a mistake of the caller.
pub fn schemas<'a>(names: impl IntoIterator<Item = &'a str>) -> serde_json::Map<String, serde_json::Value> {
    let mut all = serde_json::Map::new();
    for name in names {
        let descriptor =
            POOL.get_message_by_name(&format!("assay.v1.{name}")).expect("the message is in the contract");
        add_schema(&descriptor, &mut all);
    }
    all
}

fn add_schema(descriptor: &MessageDescriptor, all: &mut serde_json::Map<String, serde_json::Value>) {
    if all.contains_key(descriptor.name()) {
        return;
    }
    all.insert(descriptor.name().to_owned(), serde_json::Value::Null);
    let mut fields = serde_json::Map::new();
    for field in descriptor.fields() {
        let one = match field.kind() {
            Kind::Message(inner) if inner.full_name() == "google.protobuf.Timestamp" => {
                json!({ "type": "string", "format": "date-time", "pattern": "Z$" })
            }
            Kind::Message(inner) => {
                add_schema(&inner, all);
                json!({ "$ref": format!("#/$defs/{}", inner.name()) })
            }
            Kind::Enum(words) => {
                let words: Vec<_> = words.values().map(|word| word.name().to_owned()).collect();
                json!({ "enum": words })
            }
            Kind::Bytes => json!({ "type": "string", "pattern": "^([0-9a-f]{2})*$" }),
            Kind::String => json!({ "type": "string" }),
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Double | Kind::Float => json!({ "type": "number" }),
            Kind::Int32 | Kind::Sint32 | Kind::Uint32 | Kind::Sfixed32 | Kind::Fixed32 => {
                json!({ "type": "integer" })
            }
            Kind::Int64 | Kind::Sint64 | Kind::Uint64 | Kind::Sfixed64 | Kind::Fixed64 => {
                json!({ "$ref": "#/$defs/Number" })
            }
        };
        let form = if field.is_list() { json!({ "type": "array", "items": one }) } else { one };
        fields.insert(field.json_name().to_owned(), form);
    }
    all.insert(descriptor.name().to_owned(), json!({ "type": "object", "properties": fields }));
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
    use assay_proto::v1::{Counts, Outcome, Outlook, Run, RunPlan};

    #[test]
    fn digests_are_hexadecimal_wherever_they_are() {
        let target = Some(Outlook { base_root_digest: vec![0, 171, 255], ..Default::default() });
        let plan = RunPlan { target, ..Default::default() };
        assert_eq!(to_output("RunPlan", &plan)["target"]["baseRootDigest"], "00abff");
        assert_eq!(
            to_json("RunPlan", &plan)["target"]["baseRootDigest"],
            "AKv/",
            "what is stored stays as it is"
        );
    }

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
