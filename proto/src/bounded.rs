//! The codec of every call: looks over a message before it is decoded.
//!
//! Protobuf lets two bytes on the wire become a struct of several hundred in memory: a repeated message without fields. A
//! limit on the length of a message is therefore no limit on what it costs, and packed steps make it worse (some KiB of zstd
//! unfold to millions of them). So what the repeated parts of a message will take is added up from the contract's own
//! descriptors, while nothing has been allocated, and a message beyond [`MAX_STRUCTURE_BYTES`] is refused.

use std::{collections::HashMap, fmt, marker::PhantomData, sync::LazyLock};

use prost::{Message, Name};
use prost_types::{
    FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a decoded message may take beside the bytes that it came in: 300 000 manifest entries, or four million numbers.
pub const MAX_STRUCTURE_BYTES: usize = 128 * 1024 * 1024;
/// Deepest nesting: the contract's own is half of it.
const MAX_DEPTH: usize = 16;

/// Why a message is not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It would take more than [`MAX_STRUCTURE_BYTES`].
    TooMuch,
    /// It is no protobuf message.
    Malformed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMuch => {
                let limit = MAX_STRUCTURE_BYTES / 1024 / 1024;
                write!(
                    formatter,
                    "the message would take more than {limit} MiB of memory beside its own bytes"
                )
            }
            Self::Malformed => formatter.write_str("the message is not protobuf"),
        }
    }
}

impl std::error::Error for Refusal {}

/// What a field becomes in memory.
#[derive(Debug, Clone)]
enum Kind {
    /// A message; its place in the table.
    Message(usize),
    /// Text or bytes.
    Bytes,
    /// A number.
    Number,
}

#[derive(Debug, Clone)]
struct Field {
    kind: Kind,
    repeated: bool,
}

/// A message of the contract.
#[derive(Debug, Default)]
struct Shape {
    fields: HashMap<u32, Field>,
    /// What one takes in memory, without what hangs on it. An upper bound.
    bytes: usize,
}

struct Table {
    by_name: HashMap<String, usize>,
    shapes: Vec<Shape>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(crate::DESCRIPTORS).expect("the build wrote it");
    let mut messages = Vec::new();
    for file in &set.file {
        let package = file.package();
        messages.extend(
            file.message_type.iter().map(|message| (format!("{package}.{}", message.name()), message)),
        );
    }
    let mut next = 0;
    while next < messages.len() {
        let (name, message) = messages[next].clone();
        messages.extend(message.nested_type.iter().map(|inner| (format!("{name}.{}", inner.name()), inner)));
        next += 1;
    }
    let by_name: HashMap<String, usize> =
        messages.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
    let shapes = messages.iter().map(|(_, message)| {
        let fields = message.field.iter().map(|field| {
            let kind = match field.r#type() {
                Type::Message | Type::Group => {
                    Kind::Message(by_name[field.type_name().trim_start_matches('.')])
                }
                Type::String | Type::Bytes => Kind::Bytes,
                _ => Kind::Number,
            };
            (field.number() as u32, Field { kind, repeated: field.label() == Label::Repeated })
        });
        Shape { fields: fields.collect(), bytes: 0 }
    });
    let mut table = Table { shapes: shapes.collect(), by_name };
    for place in 0..table.shapes.len() {
        table.shapes[place].bytes = inline_bytes(&table.shapes, place, 0);
    }
    table
});

/// Upper bound of what a message takes where it stands. Of a `oneof` each member is counted.
fn inline_bytes(shapes: &[Shape], place: usize, depth: usize) -> usize {
    if depth > MAX_DEPTH {
        // Only a recursive message comes here, and that is boxed.
        return 0;
    }
    let of = |field: &Field| match (&field.kind, field.repeated) {
        (Kind::Message(inner), false) => 8 + inline_bytes(shapes, *inner, depth + 1),
        (Kind::Number, false) => 8,
        // Bytes of the `bytes` crate take four words, everything else three.
        _ => 32,
    };
    8 + shapes[place].fields.values().map(of).sum::<usize>()
}

/// Adds up what decoding `bytes` as a message of type `M` would take.
///
/// # Errors
/// When that is too much, or when it is no message at all. A type that is not of the contract is not known here and passes.
pub fn look_over<M: Name>(bytes: &[u8]) -> Result<(), Refusal> {
    let table = &*TABLE;
    match table.by_name.get(&M::full_name()) {
        None => Ok(()),
        Some(place) => walk(table, *place, bytes, &mut MAX_STRUCTURE_BYTES.clone(), 0),
    }
}

fn walk(
    table: &Table,
    place: usize,
    mut bytes: &[u8],
    left: &mut usize,
    depth: usize,
) -> Result<(), Refusal> {
    if depth > MAX_DEPTH {
        return Err(Refusal::Malformed);
    }
    let shape = &table.shapes[place];
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = u32::try_from(key >> 3).ok().and_then(|number| shape.fields.get(&number));
        let repeated = field.is_some_and(|field| field.repeated);
        match key & 7 {
            0 => {
                varint(&mut bytes)?;
                take(left, if repeated { 8 } else { 0 })?;
            }
            1 => {
                skip(&mut bytes, 8)?;
                take(left, if repeated { 8 } else { 0 })?;
            }
            5 => {
                skip(&mut bytes, 4)?;
                take(left, if repeated { 8 } else { 0 })?;
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Refusal::Malformed)?;
                let inner = skip(&mut bytes, length)?;
                match field.map(|field| &field.kind) {
                    None => {}
                    Some(Kind::Message(inner_place)) => {
                        take(left, if repeated { table.shapes[*inner_place].bytes } else { 0 })?;
                        walk(table, *inner_place, inner, left, depth + 1)?;
                    }
                    Some(Kind::Bytes) => take(left, if repeated { 32 } else { 0 })?,
                    Some(Kind::Number) => {
                        // Packed: each number ends with a byte below 128, or has four or eight bytes.
                        let numbers = inner.iter().filter(|byte| **byte < 128).count().max(inner.len() / 8);
                        take(left, numbers.saturating_mul(8))?;
                    }
                }
            }
            // Groups are not of the contract.
            _ => return Err(Refusal::Malformed),
        }
    }
    Ok(())
}

fn take(left: &mut usize, bytes: usize) -> Result<(), Refusal> {
    *left = left.checked_sub(bytes).ok_or(Refusal::TooMuch)?;
    Ok(())
}

fn skip<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Refusal> {
    let (skipped, rest) = bytes.split_at_checked(count).ok_or(Refusal::Malformed)?;
    *bytes = rest;
    Ok(skipped)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Refusal> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 128 {
            *bytes = &bytes[index + 1..];
            return Ok(value);
        }
    }
    Err(Refusal::Malformed)
}

/// The codec that the generated clients and servers use.
#[derive(Debug, Clone)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::default()))
    }
}

/// Decodes what has been looked over.
#[derive(Debug, Clone)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        use bytes::Buf as _;
        // The whole message, in one piece: so tonic hands it over.
        if buffer.chunk().len() != buffer.remaining() {
            return Err(Status::internal("a message came in several pieces"));
        }
        look_over::<U>(buffer.chunk()).map_err(|refusal| match refusal {
            Refusal::TooMuch => Status::out_of_range(refusal.to_string()),
            Refusal::Malformed => Status::invalid_argument(refusal.to_string()),
        })?;
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Entry, ManifestDelta, ManifestStep, Offer, PutEntry, TransferRequest, manifest_step};

    #[test]
    fn sound_messages_pass() {
        let entry = Entry { path: b"a".to_vec(), pieces: vec![1 << 40; 1000], ..Default::default() };
        let put = PutEntry { entry: Some(entry), content: 1, ..Default::default() };
        let step = ManifestStep { kind: Some(manifest_step::Kind::Put(put)) };
        let delta = ManifestDelta { steps: vec![step; 1000], ..Default::default() };
        assert_eq!(look_over::<ManifestDelta>(&delta.encode_to_vec()), Ok(()));
        assert_eq!(look_over::<ManifestDelta>(&[]), Ok(()));
    }

    /// The bound is on what comes of it in memory.
    #[test]
    fn two_bytes_by_the_million_are_refused_before_they_are_decoded() {
        assert!(TABLE.shapes[TABLE.by_name["assay.v1.ManifestStep"]].bytes >= size_of::<ManifestStep>());
        assert!(TABLE.shapes[TABLE.by_name["assay.v1.Entry"]].bytes >= size_of::<Entry>());
        assert!(
            TABLE.shapes[TABLE.by_name["assay.v1.TransferRequest"]].bytes >= size_of::<TransferRequest>()
        );
        let empty_steps = [0x0a, 0x00].repeat(1 << 20);
        assert_eq!(look_over::<ManifestDelta>(&empty_steps), Err(Refusal::TooMuch));
        // Nested in an offer in a request.
        let parts = [0x12, 0x00].repeat(1 << 20);
        let mut offer = vec![0x12, 0x80, 0x80, 0x80, 0x01];
        offer.extend_from_slice(&parts);
        assert_eq!(look_over::<TransferRequest>(&offer), Err(Refusal::TooMuch));
        assert_eq!(look_over::<Offer>(&parts), Err(Refusal::TooMuch));
        // Numbers, packed.
        let mut pieces = vec![0x52, 0x80, 0x80, 0x80, 0x10];
        pieces.resize(5 + (32 << 20), 1);
        assert_eq!(look_over::<Entry>(&pieces), Err(Refusal::TooMuch));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [&b"\xff"[..], b"\x0a\x05a", b"\x0b", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"] {
            assert_eq!(look_over::<ManifestDelta>(bytes), Err(Refusal::Malformed), "{bytes:?}");
        }
    }
}
