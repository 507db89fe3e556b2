//! `record.json`: what a generation is, for people and for the agent itself.

use assay_common::manifest::Root;
use serde::{Deserialize, Serialize};

/// The record of a sealed generation. Written once, before the seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this record's form.
    pub version: u32,
    /// The repository's name.
    pub repository: String,
    /// The generation's number.
    pub generation: u64,
    /// The run that made it.
    pub run_id: String,
    /// The generation that it was built upon.
    pub base_generation: Option<u64>,
    /// When the source opened that run, by the target's clock. Records of before 2026-11-23 do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<jiff::Timestamp>,
    /// The newest form of statements that the source of that run and this target both read. Records of before 2026-11-30 do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statements: Option<u32>,
    /// Somebody asked for a check of that run which carries no result of an earlier one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full_check: bool,
    /// When it was sealed, by the target's clock.
    pub sealed: jiff::Timestamp,
    /// The point in time that it stands for.
    pub mark: MarkRecord,
    /// Root digest of its manifest, hexadecimal.
    pub root_digest: String,
    /// The repository's roots and where they are in the tree.
    pub roots: Vec<Root>,
    /// Entries of the manifest.
    pub entries: u64,
    /// Files among them.
    pub files: u64,
    /// Content of all files, in bytes.
    pub total_bytes: u64,
    /// Content of the files that this generation does not share with its base, in bytes.
    pub new_bytes: u64,
    /// Data of the contents that came for this generation, holes left out, in bytes. Records of before 2026-11-23 do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// The rules by which its metadata was taken ([`assay_common::fidelity::CopyRules::fingerprint`]). In a tree without them, an entry
    /// may have inherited an ACL from the folder of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_rules: Option<String>,
    /// What the generation takes beside content, in bytes: manifest, attributes, and `super::usage`'s rate for each file and folder
    /// that it does not share. Records of before 2026-11-30 do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead_bytes: Option<u64>,
    /// Files and folders that it does not share with its base. Records of before 2026-11-30 do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// What its folders alone take of both: no generation shares those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folders: Option<FolderCost>,
    /// Files that `manifest.b3` leaves out, because `b3sum` takes only names that are UTF-8.
    pub not_in_manifest_b3: u64,
    /// True when no entry is a device, a FIFO or a socket and none has an attribute that an overlay obeys: then a check need not read the manifest.
    /// Records of before 2026-11-30 do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_plain: Option<bool>,
    /// Safety stops that were overridden.
    pub overrides: Vec<String>,
    /// What the source counted.
    pub counts: serde_json::Value,
    /// The source's signed statement, a DSSE envelope.
    pub source_statement: serde_json::Value,
}

impl Record {
    /// What the generation added to the store, in bytes; at most that where it was not noted.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.unwrap_or(self.new_bytes)
    }
}

/// What the folders of a tree take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderCost {
    /// How many there are.
    pub count: u64,
    /// With their attributes, in bytes.
    pub bytes: u64,
}

/// The mark, as the source told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkRecord {
    /// What the engine called it.
    pub id: String,
    /// When it was complete, by the source's clock.
    pub time: jiff::Timestamp,
}
