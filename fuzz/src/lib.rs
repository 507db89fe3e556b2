//! What the fuzz targets share: a small valid manifest, a valid chain of verdicts, and where to put files.

use std::{os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use assay_common::{
    manifest::{Entry, EntryKind, Header, ManifestWriter, Root},
    signing::SigningKey,
    verdict::{HexDigest, Outcome, Times, Verdict, Versions, link_digest, sign_verdict},
};

/// A key that everybody may know: what is found must be found again.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n-----END PRIVATE KEY-----\n";

/// A folder of this process in memory.
pub fn folder(name: &str) -> PathBuf {
    let path = PathBuf::from(format!("/dev/shm/assay-fuzz-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).expect("memory has a file system");
    path
}

/// The key.
pub fn key() -> SigningKey {
    use std::io::Write as _;
    let path = folder("key").join("key");
    drop(std::fs::remove_file(&path));
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(KEY.as_bytes())).expect("write");
    SigningKey::load(&path).expect("a key")
}

/// The header of every manifest here.
pub fn header() -> Header {
    Header {
        roots: vec![Root { name: "main".into(), live_path: "/live".into(), subdirectory: String::new() }],
    }
}

/// Content of the one file of the base.
pub fn base_content() -> Vec<u8> {
    (0..30_000_u32).map(|number| (number % 251) as u8).collect()
}

/// The entries of the base: a folder, a file of three pieces, a link, a hard link.
pub fn base_entries() -> Vec<Entry> {
    let content = base_content();
    let entry = |path: &str, kind: EntryKind| Entry {
        path: path.into(),
        kind: kind.into(),
        mode: 0o755,
        ..Default::default()
    };
    let pieces: Vec<u64> = content.chunks(10_000).map(|piece| (piece.len() as u64) << 1).collect();
    let digests =
        content.chunks(10_000).flat_map(|piece| *blake3::hash(piece).as_bytes()).collect::<Vec<u8>>();
    vec![
        entry("", EntryKind::Directory),
        Entry {
            size: content.len() as u64,
            digest: blake3::hash(&content).as_bytes().to_vec(),
            pieces,
            piece_digests: digests,
            ..entry("a", EntryKind::File)
        },
        Entry { link_target: b"a".to_vec(), ..entry("b", EntryKind::Hardlink) },
        entry("d", EntryKind::Directory),
        Entry { link_target: b"../a".to_vec(), mode: 0o777, ..entry("d/l", EntryKind::Symlink) },
    ]
}

/// The manifest of the base, and where each entry starts in it.
pub fn base_manifest() -> (Vec<u8>, Vec<u8>) {
    let mut writer = ManifestWriter::create(Vec::new(), &header()).expect("memory takes it");
    let mut positions = Vec::new();
    for entry in base_entries() {
        positions.extend_from_slice(&writer.position().to_le_bytes());
        writer.push(&entry).expect("it is in order");
    }
    (writer.finish().expect("memory takes it").0, positions)
}

/// Three verdicts in a chain, as they are stored.
pub fn chain() -> Vec<Vec<u8>> {
    let key = key();
    let mut chain: Vec<Vec<u8>> = Vec::new();
    for sequence in 1..=3 {
        let previous = chain.last().map_or(HexDigest::ZERO, |before| link_digest(before));
        let verdict = Verdict {
            repository: "repo".into(),
            run_id: "20261123T010203Z-0123456789abcdef"
                .parse()
                .unwrap_or_else(|_| assay_common::id::RunId::generate(jiff::Timestamp::UNIX_EPOCH)),
            sequence,
            previous,
            outcome: Outcome::NotRun,
            reason: "mark-failed".into(),
            message: format!("the server is away, {sequence}"),
            generation: None,
            root: None,
            mark: None,
            depth: None,
            profile: None,
            steps: Vec::new(),
            patches: Vec::new(),
            overlay_files: Vec::new(),
            workspace: None,
            attribution: None,
            negative_control: None,
            overrides: Vec::new(),
            times: Times {
                opened: None,
                sealed: None,
                check_started: None,
                check_finished: None,
                signed: jiff::Timestamp::UNIX_EPOCH,
            },
            versions: Versions { source: None, target: "0.1.0".into() },
            source_statement: None,
            coverage: None,
            nonce: None,
        };
        chain.push(sign_verdict(&verdict, &key).expect("it holds together").to_json().into_bytes());
    }
    chain
}
