//! Key and certificate files as people hand them over: what a file holds when it is not what it should be, and what to do. Never quotes
//! content.

use std::fmt;

/// Why a file is not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// What the file is or holds.
    pub why: String,
    /// What to do, where that is known.
    pub remedy: Option<String>,
}

impl fmt::Display for Unusable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.why)
    }
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";
/// What begins a DER structure.
const DER_SEQUENCE: u8 = 0x30;

/// The text as PEM readers want it: without a byte order mark, with plain line ends, without blanks around the lines. Editors on other
/// systems and mail programs add these.
pub fn normal(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Some(lines.map(|line| format!("{line}\n")).collect())
}

/// The labels of the blocks in a file, in their order.
fn labels(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines.filter_map(|line| line.strip_prefix(BEGIN)?.strip_suffix(DASHES)).collect()
}

/// Says why `bytes` hold nothing with one of the labels `wanted` that can be used.
pub fn explain(bytes: &[u8], wanted: &[&str]) -> Unusable {
    let plain = |why: &str| Unusable { why: why.to_owned(), remedy: None };
    let with = |why: String, remedy: &str| Unusable { why, remedy: Some(remedy.to_owned()) };
    if bytes.is_empty() {
        return with(
            "it is empty".to_owned(),
            "copy it again, and look whether the disk of the copy was full",
        );
    }
    let Some(text) = normal(bytes) else {
        return match bytes {
            [DER_SEQUENCE, ..] => with(
                "it is DER and not PEM".to_owned(),
                "convert it: openssl x509 -inform DER (a certificate) or openssl pkey -inform DER (a key)",
            ),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                with("it is UTF-16 text".to_owned(), "save it as plain text (ASCII)")
            }
            _ => plain("it is not text"),
        };
    };
    if text.is_empty() {
        return plain("it holds nothing but blanks");
    }
    let found = labels(&text);
    let Some(first) = found.iter().find(|label| !wanted.contains(*label)).or_else(|| found.first()) else {
        return plain("it holds no PEM block (-----BEGIN ...)");
    };
    let is_wanted = wanted.contains(first);
    if is_wanted && !text.contains(&format!("{END}{first}{DASHES}")) {
        return with(format!("its block {first} is cut off: the end is missing"), "copy the file again");
    }
    let is_encrypted = *first == "ENCRYPTED PRIVATE KEY" || text.contains("Proc-Type: 4,ENCRYPTED");
    match *first {
        _ if is_encrypted => with(
            "the key in it is encrypted with a passphrase, and nobody is there to type it".to_owned(),
            "take the passphrase off: openssl pkey -in FILE -out NEW, then chmod 600 NEW",
        ),
        label if is_wanted && label.ends_with("PRIVATE KEY") => with(
            "the key in it is of another algorithm, or is damaged".to_owned(),
            "see what it is: openssl pkey -in FILE -noout -text",
        ),
        label if is_wanted => plain(&format!("its block {label} is damaged or of another algorithm")),
        "OPENSSH PRIVATE KEY" => plain("it holds a key of OpenSSH's"),
        "CERTIFICATE" => plain("it holds a certificate"),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => with(
            "it holds a request for a certificate, which a CA has not signed".to_owned(),
            "have the CA issue the certificate, and name that file",
        ),
        "PUBLIC KEY" | "RSA PUBLIC KEY" => plain("it holds a public key"),
        "EC PARAMETERS" => with(
            "its first block is EC PARAMETERS".to_owned(),
            "write the key alone: openssl pkey -in FILE -out NEW",
        ),
        label if label.ends_with("PRIVATE KEY") => match label.trim_end_matches("PRIVATE KEY").trim_end() {
            "" => plain("it holds a private key"),
            algorithm => plain(&format!("it holds a private key ({algorithm})")),
        },
        _ => plain("it holds a PEM block of another kind"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(label: &str) -> String {
        format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n")
    }

    #[test]
    fn each_kind_of_wrong_file_has_a_reason_of_its_own() {
        let private = &["PRIVATE KEY"][..];
        for (bytes, expected) in [
            (Vec::new(), "it is empty"),
            (b" \r\n\n".to_vec(), "nothing but blanks"),
            (b"ssh-ed25519 AAAA me@host\n".to_vec(), "no PEM block"),
            (vec![0x30, 0x82, 0xff, 0x00], "DER"),
            (vec![0xff, 0xfe, b'-', 0], "UTF-16"),
            (vec![0x80, 0x81], "not text"),
            (block("ENCRYPTED PRIVATE KEY").into_bytes(), "passphrase"),
            (
                b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n-----END RSA PRIVATE KEY-----\n"
                    .to_vec(),
                "passphrase",
            ),
            (block("PRIVATE KEY").into_bytes(), "another algorithm"),
            (block("CERTIFICATE").into_bytes(), "a certificate"),
            (block("CERTIFICATE REQUEST").into_bytes(), "request"),
            (block("PUBLIC KEY").into_bytes(), "a public key"),
            (block("OPENSSH PRIVATE KEY").into_bytes(), "OpenSSH"),
            (block("RSA PRIVATE KEY").into_bytes(), "a private key (RSA)"),
            (block("EC PARAMETERS").into_bytes(), "EC PARAMETERS"),
            (block("X509 CRL").into_bytes(), "another kind"),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA\n".to_vec(), "cut off"),
        ] {
            let unusable = explain(&bytes, private);
            assert!(unusable.why.contains(expected), "{:?}: {unusable:?}", String::from_utf8_lossy(&bytes));
            assert!(!unusable.why.contains("AAAA"));
        }
    }

    #[test]
    fn marks_of_other_editors_are_taken_off() {
        let text = block("PRIVATE KEY");
        let windows = format!("\u{feff}{}", text.replace('\n', "  \r\n"));
        assert_eq!(normal(windows.as_bytes()).as_deref(), Some(&*text));
        assert_eq!(normal(&[0xff]), None);
    }
}
