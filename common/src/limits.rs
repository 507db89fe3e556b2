//! Everything that a peer can ask for, and how much of it: the limits that both agents hold each other to, in one place.
//!
//! Zero never means 'unlimited', a peer never sets a limit of ours, and every error names the limit that was broken. The
//! names of the tests are in `docs/HOSTILE-PEERS.md`.
//!
//! | what | limit | who holds it |
//! | --- | --- | --- |
//! | connections, handshakes, streams, headers, frames | [`CONNECTIONS`] and what follows it | both |
//! | from a connection to its first word | [`FIRST_FRAME`] | both |
//! | one message: on the wire, and in memory | [`MAX_MESSAGE_BYTES`], [`MAX_STRUCTURE_BYTES`] | both |
//! | names: path, component, depth; link texts | [`MAX_PATH_BYTES`] ... [`MAX_LINK_BYTES`] | both |
//! | extended attributes: number, name, all bytes | [`MAX_XATTRS`], [`MAX_XATTR_NAME_BYTES`], [`MAX_XATTR_BYTES`] | both |
//! | a file, a chunk, the pieces of a file | [`MAX_FILE_BYTES`], [`MAX_CHUNK_BYTES`], [`MAX_PIECES`] | both |
//! | a manifest: entries, one record, header, all bytes | [`MAX_ENTRIES`] ... [`MAX_MANIFEST_BYTES`] | both |
//! | content under way: offers, packs, batches, contents | [`MAX_BATCH_BYTES`] ... [`MAX_CONTENT`] | target |
//! | holes of a run | [`MAX_RUN_HOLE_BYTES`] | target |
//! | content after decompression | [`MAX_BATCH_BYTES`], [`MAX_MESSAGE_BYTES`]: what was announced, and no more | target |
//! | streams of a manifest at a time | [`MAX_MANIFEST_STREAMS`] | target |
//! | restores at a time | [`MAX_RESTORES`] | target |
//! | words in a record: mark, reason, message, overrides | [`MAX_MARK_BYTES`] ... [`MAX_OVERRIDES`] | target |
//! | files that are read again, and reports of them | [`MAX_READ_AGAIN`] | both |
//! | what a target says while it checks | [`MAX_PROGRESS_MESSAGES`], [`MAX_STEP_BYTES`] | source |
//! | a certificate or key file | [`MAX_KEY_FILE_BYTES`] | both |

use std::time::Duration;

pub use assay_proto::bounded::MAX_STRUCTURE_BYTES;

/// Connections at a time; further ones are closed.
pub const CONNECTIONS: usize = 256;
/// Connections at a time of one identity.
pub const CONNECTIONS_PER_PEER: usize = 32;
/// Unfinished TLS handshakes at a time; further connections wait.
pub const HANDSHAKES: usize = 64;
/// Unfinished TLS handshakes at a time from one address; further connections wait a moment, four times as many, and those beyond are
/// closed.
pub const HANDSHAKES_PER_ADDRESS: usize = 16;
/// From the acceptance of a connection to its first HTTP/2 frame.
pub const FIRST_FRAME: Duration = Duration::from_secs(10);
/// Calls at a time on one connection.
pub const STREAMS_PER_CONNECTION: u32 = 64;
/// HTTP/2 window of one stream. The default of 64 KiB means 1 MB/s at 64 ms of round trip.
pub const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// HTTP/2 window of one connection: two streams at full pace.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Largest HTTP/2 frame: fewer frames for the same bulk, and still far below a window.
pub const MAX_FRAME_BYTES: u32 = 256 * 1024;
/// Bound of all headers of one call, which hold a status with its details at most.
pub const MAX_HEADER_LIST_BYTES: u32 = 32 * 1024;

/// Largest message from a source, in bytes, and largest packed steps after decompression: a file's entry has 36 bytes for each
/// of its pieces.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Largest message from a target, in bytes.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Longest path, in bytes: Linux' own PATH_MAX, less its closing NUL.
pub const MAX_PATH_BYTES: usize = 4095;
/// Longest component, in bytes: NAME_MAX of every Linux file system that we know.
pub const MAX_COMPONENT_BYTES: usize = 255;
/// Deepest nesting: each level holds a descriptor open while a tree is walked or built.
pub const MAX_DEPTH: usize = 2000;
/// Longest symbolic link text, in bytes (Linux: PATH_MAX less its NUL).
pub const MAX_LINK_BYTES: usize = 4095;

/// Extended attributes of one entry: more than fit into the list of their names, which has at most 64 KiB (Linux: XATTR_LIST_MAX).
pub const MAX_XATTRS: usize = 8192;
/// Longest name of an extended attribute, in bytes (Linux: XATTR_NAME_MAX).
pub const MAX_XATTR_NAME_BYTES: usize = 255;
/// All extended attributes of one entry, names and values, in bytes. Linux allows 64 KiB a value, and XFS and btrfs as many of them as
/// have names in the list.
pub const MAX_XATTR_BYTES: usize = 16 * 1024 * 1024;

/// Longest file, in bytes: 16 TiB, the most that ext4 holds. A digest goes over holes as well: one of 2^62 bytes, which costs a
/// peer ten bytes to say, would be hashed for years.
pub const MAX_FILE_BYTES: u64 = 16 << 40;
/// Longest holes of all contents of a run together, in bytes. Ten bytes say a hole, and its zeros are hashed.
pub const MAX_RUN_HOLE_BYTES: u64 = 32 << 40;
/// No piece of data is larger than this, whatever the class: what one side must be ready to hold.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;
/// Most pieces that a list that reuses others may unfold to.
pub const MAX_PIECES: u64 = 64 * 1024 * 1024;

/// Entries of a manifest: a tree ten times as large as any that we know of.
pub const MAX_ENTRIES: u64 = 200_000_000;
/// Longest record of a manifest, in bytes.
pub const MAX_RECORD_BYTES: usize = 256 * 1024 * 1024;
/// Longest header of a manifest, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Longest manifest that a source fetches, in bytes: about a thousandth of 1 PiB.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 40;
/// Manifests of one repository that are sent at a time: each holds a thread.
pub const MAX_MANIFEST_STREAMS: usize = 4;
/// Restores that are served at a time, of all repositories: each holds a thread, a generation and some parts of 2 MiB, and the
/// disk is no faster for more of them.
pub const MAX_RESTORES: usize = 8;

/// Content of one offer or pack, in bytes, after decompression.
pub const MAX_BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// Pieces of one offer.
pub const MAX_OFFER_PIECES: usize = 256 * 1024;
/// Content that was wanted and has not come yet, in bytes: bounds what a source can make us remember. More than a source
/// that follows the protocol keeps in flight.
pub const MAX_OUTSTANDING_BYTES: u64 = 512 * 1024 * 1024;
/// Pieces of that content.
pub const MAX_OUTSTANDING_PIECES: usize = 4 * 1024 * 1024;
/// Batches of which something is wanted.
pub const MAX_OUTSTANDING_BATCHES: usize = 64 * 1024;
/// Contents whose end has not come yet: a source reads a few files at a time.
pub const MAX_OPEN_CONTENTS: usize = 1024;
/// Highest content number. The digest of each is noted at forty times its number in a file: that stays below ext4's 16 TiB.
pub const MAX_CONTENT: u64 = 1 << 38;

/// Longest mark, in bytes: the first line of what an engine said.
pub const MAX_MARK_BYTES: usize = 4096;
/// Longest reason of a run that was given up, in bytes.
pub const MAX_REASON_BYTES: usize = 64;
/// Longest message of a run that was given up, in bytes.
pub const MAX_REASON_MESSAGE_BYTES: usize = 4096;
/// Safety stops that one run overrides.
pub const MAX_OVERRIDES: usize = 8;

/// Files that a target may have read again, and readings in one report.
pub const MAX_READ_AGAIN: usize = 1000;
/// Messages that a target may send about one check. One comes with each step.
pub const MAX_PROGRESS_MESSAGES: u64 = 100_000;
/// Longest name of a check's step, in bytes.
pub const MAX_STEP_BYTES: usize = 256;

/// Longest key or certificate file: a chain of several certificates has some KiB.
pub const MAX_KEY_FILE_BYTES: u64 = 256 * 1024;
