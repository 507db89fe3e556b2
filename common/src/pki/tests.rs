use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::{error::report, signing::VerifyingKey};

pub(crate) fn options() -> PkiOptions {
    let party = |name: &str, hosts: &[&str]| Party {
        name: name.into(),
        hosts: hosts.iter().map(ToString::to_string).collect(),
    };
    PkiOptions {
        organisation: "Example".into(),
        source: party("live", &["localhost", "127.0.0.1"]),
        target: party("check", &["localhost", "127.0.0.1", "::1"]),
        operator: party("anna", &[]),
        validity: DEFAULT_VALIDITY,
        ca_validity: DEFAULT_CA_VALIDITY,
        signing_keys: true,
    }
}

pub(crate) fn identity_in(path: &Path) -> Result<PeerIdentity, IdentityError> {
    let pem = fs::read(path).expect("certificate");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
    PeerIdentity::from_certificate(&pem.contents)
}

#[test]
fn init_makes_all_files_and_keeps_private_keys_private() {
    let folder = tempfile::tempdir().expect("folder");
    let (folder, apart) = (folder.path().join("pki"), folder.path().join("ca"));
    init_pki(&folder, Some(&apart), &options(), Timestamp::now()).expect("init");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "ca.crt",
            "operator.crt",
            "operator.key",
            "source-signing.key",
            "source-signing.pub",
            "source.crt",
            "source.key",
            "target-signing.key",
            "target-signing.pub",
            "target.crt",
            "target.key"
        ]
    );
    for name in names.iter().filter(|name| name.ends_with(".key")) {
        assert_eq!(fs::metadata(folder.join(name)).expect("metadata").mode() & 0o7777, 0o600, "{name}");
    }
    let private = SigningKey::load(&folder.join("target-signing.key")).expect("key");
    let public = VerifyingKey::load(&folder.join("target-signing.pub")).expect("key");
    assert_eq!(private.verifying_key(), public);
    for (role, name) in [(Role::Source, "live"), (Role::Target, "check"), (Role::Operator, "anna")] {
        let identity = identity_in(&folder.join(format!("{role}.crt"))).expect("identity");
        assert_eq!(identity, PeerIdentity { role, name: name.into() });
    }
}

#[test]
fn init_replaces_nothing_and_then_writes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("operator.key"), "mine").expect("write");
    let text = report(
        &init_pki(folder.path(), Some(folder.path()), &options(), Timestamp::now()).expect_err("in the way"),
    );
    assert!(text.contains("operator.key already exists") && text.contains("HINT: move"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
}

#[test]
fn more_certificates_come_from_the_same_ca() {
    let folder = tempfile::tempdir().expect("folder");
    init_pki(folder.path(), Some(folder.path()), &options(), Timestamp::now()).expect("init");
    let party = Party { name: "bob".into(), hosts: vec![] };
    let files =
        issue(folder.path(), folder.path(), Role::Restore, &party, DEFAULT_VALIDITY, Timestamp::now())
            .expect("issue");
    assert_eq!(files.cert, folder.path().join("restore-bob.crt"));
    assert_eq!(identity_in(&files.cert), Ok(PeerIdentity { role: Role::Restore, name: "bob".into() }));
    let again =
        issue(folder.path(), folder.path(), Role::Restore, &party, DEFAULT_VALIDITY, Timestamp::now());
    assert!(matches!(again, Err(PkiError::Key(KeyError::Exists { .. }))));
}

#[test]
fn a_leaf_is_no_ca_to_issue_from() {
    let folder = tempfile::tempdir().expect("folder");
    init_pki(folder.path(), Some(folder.path()), &options(), Timestamp::now()).expect("init");
    let copy = |from: &str, to: &str| {
        fs::copy(folder.path().join(from), folder.path().join(to)).expect("copy");
    };
    copy("source.crt", "ca.crt");
    let party = Party { name: "bob".into(), hosts: vec![] };
    for _ in 0..2 {
        let result =
            issue(folder.path(), folder.path(), Role::Operator, &party, DEFAULT_VALIDITY, Timestamp::now());
        assert!(matches!(result, Err(PkiError::Authority { .. })), "{result:?}");
        copy("source.key", "ca.key");
    }
}

#[test]
fn names_and_hosts_are_checked_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let changes: [fn(&mut PkiOptions); 5] = [
        |options| options.source.name = "a:b".into(),
        |options| options.operator.name = String::new(),
        |options| options.target.hosts.clear(),
        |options| options.target.hosts = vec!["a b".into()],
        |options| options.source.hosts = vec!["host:7443".into()],
    ];
    for change in changes {
        let mut options = options();
        change(&mut options);
        assert!(init_pki(folder.path(), Some(folder.path()), &options, Timestamp::now()).is_err());
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
    }
}

#[test]
fn an_identity_is_read_in_one_spelling_only() {
    assert_eq!(
        "urn:assay:operator:anna".parse(),
        Ok(PeerIdentity { role: Role::Operator, name: "anna".into() })
    );
    for uri in [
        "urn:assay:operator",
        "urn:assay:operator:",
        "urn:assay:Operator:anna",
        "URN:assay:operator:anna",
        "urn:assay:root:anna",
        "urn:assay:operator:an na",
        "urn:assay:operator:a:b",
        "urn:assay:operator:anna\n",
    ] {
        assert_eq!(uri.parse::<PeerIdentity>(), Err(IdentityError::Malformed), "{uri}");
    }
}

/// Rule: exactly one identity, also when the second one is written differently.
#[test]
fn two_identities_are_none() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    for (uris, expected) in [
        (&["urn:assay:source:a", "urn:assay:operator:a"][..], Err(IdentityError::Count { found: 2 })),
        (&["urn:assay:source:a", "URN:ASSAY:operator:a"], Err(IdentityError::Count { found: 2 })),
        (&["https://example.com"], Err(IdentityError::Count { found: 0 })),
        (&[], Err(IdentityError::Count { found: 0 })),
        (
            &["https://example.com", "urn:assay:source:a"],
            Ok(PeerIdentity { role: Role::Source, name: "a".into() }),
        ),
    ] {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        let certificate = params.self_signed(&key).expect("certificate");
        assert_eq!(PeerIdentity::from_certificate(certificate.der()), expected, "{uris:?}");
    }
}

#[test]
fn openssl_accepts_the_chain() {
    let folder = tempfile::tempdir().expect("folder");
    init_pki(folder.path(), Some(folder.path()), &options(), Timestamp::now()).expect("init");
    for (name, purpose) in
        [("source", "sslserver"), ("source", "sslclient"), ("target", "sslserver"), ("operator", "sslclient")]
    {
        let verified = std::process::Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
            .arg(folder.path().join("ca.crt"))
            .arg(folder.path().join(format!("{name}.crt")))
            .output();
        let Ok(output) = verified else {
            return; // No openssl on this machine.
        };
        assert!(output.status.success(), "{name} {purpose}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
