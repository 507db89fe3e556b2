//! DSSE envelopes: a payload, its type, and one Ed25519 signature over both.
//!
//! The signature is over [`pae`], the pre-authentication encoding of the DSSE v1 specification
//! (<https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>), so that other tools can check it.
//! We are stricter than the specification in what we accept: one signature, standard base64, no unknown or
//! doubled fields.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    error::Hint,
    signing::{SigningKey, VerifyingKey},
};

/// Payload type of in-toto statements.
pub const IN_TOTO_PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Longest envelope that is read, in bytes: a verdict with all its steps has some tens of KiB.
pub const MAX_ENVELOPE_BYTES: usize = 16 * 1024 * 1024;

/// Why an envelope is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Longer than [`MAX_ENVELOPE_BYTES`].
    #[error("the envelope has {bytes} bytes, more than the {MAX_ENVELOPE_BYTES} that are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not JSON of the right shape.
    #[error("not a DSSE envelope (line {line}, column {column})")]
    Shape {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// Other than one signature.
    #[error("the envelope has {found} signatures, expected exactly 1")]
    Signatures {
        /// How many there are.
        found: usize,
    },
    /// The payload or the signature is not standard base64.
    #[error("the envelope's {field} is not standard base64")]
    Base64 {
        /// Which of the two.
        field: &'static str,
    },
    /// The payload is of another type.
    #[error("the envelope holds another type of payload than {expected}")]
    PayloadType {
        /// The type that was wanted.
        expected: String,
    },
    /// Signed by another key than the one that was given.
    #[error("signed with another key than {expected}")]
    OtherKey {
        /// Id of the key that was given; of several, all.
        expected: String,
    },
    /// The signature does not fit the payload.
    #[error("the signature is wrong: the envelope was changed, or key {key_id} did not sign it")]
    Signature {
        /// Id of the key that was given.
        key_id: String,
    },
}

impl Hint for EnvelopeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::OtherKey { .. } => {
                Some("check that the pinned public key is that of the agent that signs now".to_owned())
            }
            Self::Signature { .. } => {
                Some("do not trust this file; compare it with the copy that the other agent keeps".to_owned())
            }
            _ => None,
        }
    }
}

/// The bytes that a DSSE v1 signature is over.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// A signed payload. Nothing in it is to be believed before [`Envelope::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Envelope {
    /// What the payload is.
    payload_type: String,
    /// Standard base64.
    payload: String,
    /// Exactly one.
    signatures: Vec<EnvelopeSignature>,
}

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    /// [`VerifyingKey::key_id`].
    keyid: String,
    /// Standard base64.
    sig: String,
}

impl Envelope {
    /// Signs `payload`.
    pub fn sign(payload_type: &str, payload: &[u8], key: &SigningKey) -> Self {
        let signature = key.sign(&pae(payload_type, payload));
        Self {
            payload_type: payload_type.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![EnvelopeSignature { keyid: key.key_id(), sig: STANDARD.encode(signature) }],
        }
    }

    /// Reads an envelope. Checks its shape and no signature.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        if json.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLong { bytes: json.len() });
        }
        let envelope: Self = serde_json::from_slice(json)
            .map_err(|error| EnvelopeError::Shape { line: error.line(), column: error.column() })?;
        envelope.one_signature()?;
        Ok(envelope)
    }

    /// The envelope as JSON on one line: what is stored, sent and linked to.
    ///
    /// # Panics
    /// Never: strings are always JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings are always JSON")
    }

    /// Id of the key that the envelope says signed it. A claim, to find the right key with.
    pub fn claimed_key_id(&self) -> &str {
        self.signatures.first().map_or("", |signature| &signature.keyid)
    }

    /// The payload, whoever wrote it.
    ///
    /// # Errors
    /// [`EnvelopeError::PayloadType`] or [`EnvelopeError::Base64`].
    pub fn unverified_payload(&self, payload_type: &str) -> Result<Vec<u8>, EnvelopeError> {
        if self.payload_type != payload_type {
            return Err(EnvelopeError::PayloadType { expected: payload_type.to_owned() });
        }
        STANDARD.decode(&self.payload).map_err(|_| EnvelopeError::Base64 { field: "payload" })
    }

    /// The bytes that the signature is over, for checking it with other tools.
    ///
    /// # Errors
    /// [`EnvelopeError::Base64`].
    pub fn signed_bytes(&self) -> Result<Vec<u8>, EnvelopeError> {
        Ok(pae(&self.payload_type, &self.unverified_payload(&self.payload_type)?))
    }

    /// The raw signature, for checking it with other tools.
    ///
    /// # Errors
    /// [`EnvelopeError::Signatures`] or [`EnvelopeError::Base64`].
    pub fn raw_signature(&self) -> Result<Vec<u8>, EnvelopeError> {
        let signature = self.one_signature()?;
        STANDARD.decode(&signature.sig).map_err(|_| EnvelopeError::Base64 { field: "signature" })
    }

    /// Checks type and signature, and gives the payload.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn verify(&self, payload_type: &str, key: &VerifyingKey) -> Result<Vec<u8>, EnvelopeError> {
        self.verify_among(payload_type, std::slice::from_ref(key)).map(|(payload, _)| payload)
    }

    /// The same with one of `keys`: gives the payload and the place of the key that signed it.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn verify_among(
        &self,
        payload_type: &str,
        keys: &[VerifyingKey],
    ) -> Result<(Vec<u8>, usize), EnvelopeError> {
        let payload = self.unverified_payload(payload_type)?;
        let signature = self.raw_signature()?;
        let claimed = self.claimed_key_id();
        let signed = pae(payload_type, &payload);
        // Two keys could be made that have one id.
        let mut named = keys.iter().enumerate().filter(|(_, key)| key.key_id() == claimed).peekable();
        if named.peek().is_none() {
            let ids: Vec<_> = keys.iter().map(VerifyingKey::key_id).collect();
            return Err(EnvelopeError::OtherKey { expected: ids.join(" or ") });
        }
        match named.find(|(_, key)| key.verifies(&signed, &signature)) {
            Some((place, _)) => Ok((payload, place)),
            None => Err(EnvelopeError::Signature { key_id: claimed.to_owned() }),
        }
    }

    fn one_signature(&self) -> Result<&EnvelopeSignature, EnvelopeError> {
        match self.signatures.as_slice() {
            [signature] => Ok(signature),
            all => Err(EnvelopeError::Signatures { found: all.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification, protocol.md.
    #[test]
    fn pae_is_that_of_the_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn an_envelope_comes_back() {
        let key = SigningKey::generate();
        let envelope = Envelope::sign("text/plain", b"payload", &key);
        let again = Envelope::parse(envelope.to_json().as_bytes()).expect("own output");
        assert_eq!(again.verify("text/plain", &key.verifying_key()).expect("valid"), b"payload");
    }

    #[test]
    fn every_changed_part_is_refused() {
        let key = SigningKey::generate();
        let public = key.verifying_key();
        let envelope = Envelope::sign("text/plain", b"payload", &key);
        let other = Envelope::sign("text/plain", b"other", &SigningKey::generate());

        assert!(matches!(envelope.verify("text/html", &public), Err(EnvelopeError::PayloadType { .. })));
        assert!(matches!(other.verify("text/plain", &public), Err(EnvelopeError::OtherKey { .. })));

        let mut typed = envelope.clone();
        typed.payload_type = "text/html".into();
        assert!(matches!(typed.verify("text/html", &public), Err(EnvelopeError::Signature { .. })));

        let mut swapped = envelope.clone();
        swapped.payload = other.payload.clone();
        assert!(matches!(swapped.verify("text/plain", &public), Err(EnvelopeError::Signature { .. })));

        let mut stolen = other.clone();
        stolen.signatures[0].keyid = key.key_id();
        assert!(matches!(stolen.verify("text/plain", &public), Err(EnvelopeError::Signature { .. })));
    }

    #[test]
    fn json_is_read_strictly() {
        let json = Envelope::sign("t", b"p", &SigningKey::generate()).to_json();
        for (from, to) in [
            (r#""payloadType":"t""#, r#""payloadType":"t","extra":1"#),
            (r#""payloadType":"t""#, r#""payloadType":"t","payloadType":"t""#),
            (r#""payloadType""#, r#""payloadtype""#),
            (r#"[{"keyid""#, r#"[{"x":1,"keyid""#),
            ("}]}", "}]} {}"),
            ("}]}", "}]"),
        ] {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json);
            assert!(
                matches!(Envelope::parse(changed.as_bytes()), Err(EnvelopeError::Shape { .. })),
                "{changed}"
            );
        }
    }

    #[test]
    fn exactly_one_signature_is_accepted() {
        let key = SigningKey::generate();
        let mut envelope = Envelope::sign("t", b"p", &key);
        envelope.signatures.push(envelope.signatures[0].clone());
        let parsed = Envelope::parse(envelope.to_json().as_bytes());
        assert!(matches!(parsed, Err(EnvelopeError::Signatures { found: 2 })));
        assert!(matches!(
            envelope.verify("t", &key.verifying_key()),
            Err(EnvelopeError::Signatures { found: 2 })
        ));
        envelope.signatures.clear();
        assert!(matches!(
            envelope.verify("t", &key.verifying_key()),
            Err(EnvelopeError::Signatures { found: 0 })
        ));
    }

    #[test]
    fn only_one_spelling_of_base64_is_accepted() {
        let key = SigningKey::generate();
        let mut envelope = Envelope::sign("t", b"p", &key);
        assert_eq!(envelope.payload, "cA==");
        for spelling in ["cA", "cB==", "cA=", " cA==", "-_=="] {
            envelope.payload = spelling.into();
            assert!(envelope.verify("t", &key.verifying_key()).is_err(), "{spelling}");
        }
    }

    #[test]
    fn too_long_is_refused_before_it_is_parsed() {
        let bytes = vec![b' '; MAX_ENVELOPE_BYTES + 1];
        assert!(matches!(Envelope::parse(&bytes), Err(EnvelopeError::TooLong { .. })));
    }
}
