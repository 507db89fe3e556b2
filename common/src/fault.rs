//! Named places at which a test makes an agent die or fail: [`Point::ALL`] is the list, [`at`] the hook.
//!
//! Without the feature `fault-points`, which only the integration tests ask for, and in every release build, [`at`] is an empty
//! inline function: an agent that was built for use has no such code in it. Else, without a plan in the environment, it is one
//! look at a variable that never changes. See `docs/adr/0009-fault-points.md`.
//!
//! A new place is one line in the list below and one `fault::at(Point::…)` in the code; the crash suite finds it by itself,
//! and fails when none of its runs passes there.

use std::io;

#[cfg(all(feature = "fault-points", debug_assertions))]
mod plan;

/// Which agent passes a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// The source agent.
    Source,
    /// The target agent.
    Target,
    /// Either.
    Both,
}

macro_rules! points {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $agent:ident;)*) => {
        /// A place between two steps, at which an agent may die without losing anything that it had promised.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Point { $($(#[doc = $doc])* $variant,)* }

        impl Point {
            /// All of them, in the order in which a run passes them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in plans and tables.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Who passes it.
            pub fn agent(self) -> Agent {
                match self { $(Self::$variant => Agent::$agent,)* }
            }
        }
    };
}

points! {
    // Files that are whole or absent (durable.rs), at both ends.
    /// Before a temporary file is made and written.
    DurableWrite = "durable.write", Both;
    /// Written, before its fsync.
    DurableFsync = "durable.fsync", Both;
    /// On disk under its temporary name, before it gets its own.
    DurableRename = "durable.rename", Both;
    /// It has its name, and its folder is not synced.
    DurableRenamed = "durable.renamed", Both;

    // The source, from mark to statement.
    /// Before the mark's begin command.
    MarkBegin = "mark.begin", Source;
    /// The engine holds the mark, and nobody has noted it.
    MarkBegun = "mark.begun", Source;
    /// It is noted that the mark is held.
    MarkHeld = "mark.held", Source;
    /// Before a folder is listed.
    WalkFolder = "walk.folder", Source;
    /// Before a file is opened.
    ReadOpen = "read.open", Source;
    /// Before a block is read, or a piece that was let go is read again.
    ReadBlock = "read.block", Source;
    /// A file has been read, and not yet been looked at a second time.
    ReadChanged = "read.changed", Source;
    /// Before a batch is offered: an error is a stream that is cut.
    StreamCut = "stream.cut", Source;
    /// Before a step goes into the spool.
    SpoolWrite = "spool.write", Source;
    /// Before the mark's end command.
    MarkEnd = "mark.end", Source;
    /// The mark has ended, and is still noted as held.
    MarkEnded = "mark.ended", Source;
    /// The new basis is written but for the name of its tree.
    BasisTell = "basis.tell", Source;
    /// The generation is sealed, and the basis is the one before it.
    BasisReplace = "basis.replace", Source;
    /// The old basis is removed, and the new one has another name.
    BasisReplaced = "basis.replaced", Source;
    /// Before a piece of the base's manifest that is fetched is kept.
    BasisFetch = "basis.fetch", Source;

    // The target, receiving.
    /// Before a staging area is opened or made.
    StagingOpen = "staging.open", Target;
    /// Before a content's file is opened or made.
    StoreCreate = "store.create", Target;
    /// Before bytes that may be here already are read: an error means that they are not.
    StoreRead = "store.read", Target;
    /// Before verified bytes are written.
    StoreWrite = "store.write", Target;
    /// Before places of chunks are written to the journal.
    JournalWrite = "journal.write", Target;
    /// Before the chunk index commits.
    IndexCommit = "index.commit", Target;
    /// The chunk index has committed, and its journal still says the same.
    IndexCommitted = "index.committed", Target;

    // Sealing: the steps of seal/mod.rs and of `Store::publish`.
    /// 1: the manifest is put together, before its root digest is compared.
    SealManifest = "seal.1-manifest", Target;
    /// 2: before contents are compared with the manifest.
    SealContents = "seal.2-contents", Target;
    /// 3: before the tree is made.
    SealTree = "seal.3-tree", Target;
    /// 3: before an entry is made in the tree.
    SealEntry = "seal.3-entry", Target;
    /// 3: the tree is made; before the chunk index learns the names.
    SealNames = "seal.3-names", Target;
    /// 4: before `manifest.b3`.
    SealSums = "seal.4-sums", Target;
    /// 4: before `record.json`.
    SealRecord = "seal.4-record", Target;
    /// 4: before what did not go into the tree is removed.
    SealClear = "seal.4-clear", Target;
    /// 5.1: before everything is flushed.
    PublishSync = "publish.1-sync", Target;
    /// 5.2: flushed, before the rename that makes it a generation.
    PublishRename = "publish.2-rename", Target;
    /// 5.3: renamed, before the folders are synced.
    PublishRenamed = "publish.3-folders", Target;
    /// 5.4: durable, before `latest` is moved.
    PublishLatest = "publish.4-latest", Target;
    /// Sealed, before the source is told.
    PublishTold = "publish.5-told", Target;

    // `latest` and `verified`.
    /// The new link has a temporary name.
    LinkMade = "link.1-made", Target;
    /// The link has its name, and its folder is not synced.
    LinkRenamed = "link.2-renamed", Target;

    // The next tree, laid out ahead: the steps of ahead/tree.rs.
    /// 1: before what was laid out is removed.
    AheadForget = "ahead.1-forget", Target;
    /// 2: before the tree is built.
    AheadBuild = "ahead.2-build", Target;
    /// 2: built, before it is flushed.
    AheadSync = "ahead.2-sync", Target;
    /// 3: flushed, before `of` is written.
    AheadOf = "ahead.3-of", Target;
    /// Before `of` is removed, to take the tree.
    AheadTake = "ahead.take", Target;
    /// `of` is removed, and the tree is not moved.
    AheadTaken = "ahead.taken", Target;
    /// Before a large file is copied ahead.
    CopyMake = "copy.make", Target;
    /// It is copied and flushed, and nobody knows of it.
    CopyMade = "copy.made", Target;
    /// Before a copy becomes a content of the run.
    CopyTake = "copy.take", Target;

    // The check and its verdict.
    /// Before a workspace is made.
    WorkspaceCreate = "workspace.create", Target;
    /// It is mounted or copied.
    WorkspaceMade = "workspace.made", Target;
    /// Before a check's command is started.
    CheckSpawn = "check.spawn", Target;
    /// A check's command runs.
    CheckRuns = "check.runs", Target;
    /// Before a workspace is removed.
    WorkspaceRemove = "workspace.remove", Target;
    /// Before a verdict is signed.
    Sign = "sign", Target;
    /// Signed, before it is appended to the ledger.
    LedgerAppend = "ledger.1-append", Target;
    /// In the ledger, before `verified` is moved.
    LedgerAppended = "ledger.2-appended", Target;
    /// `verified` is settled, before anyone is told.
    VerifiedMoved = "ledger.3-verified", Target;

    // The source, when the verdict has come.
    /// Before the verdict is kept.
    VerdictSave = "verdict.save", Source;
    /// It is kept, before the run's record says so.
    VerdictSaved = "verdict.saved", Source;
}

/// Passes a place. Does nothing, unless a test's plan says otherwise.
///
/// # Errors
/// What the plan says, as the kernel would say it.
#[cfg(not(all(feature = "fault-points", debug_assertions)))]
#[inline(always)]
#[allow(clippy::missing_const_for_fn)]
pub fn at(_: Point) -> io::Result<()> {
    Ok(())
}

/// Passes a place. Does nothing, unless a test's plan says otherwise.
///
/// # Errors
/// What the plan says, as the kernel would say it.
#[cfg(all(feature = "fault-points", debug_assertions))]
pub fn at(point: Point) -> io::Result<()> {
    plan::at(point)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: HashSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for name in names {
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte)), "{name}");
        }
    }

    #[test]
    fn without_a_plan_nothing_happens() {
        for point in Point::ALL {
            at(*point).expect("no plan, no fault");
        }
    }
}
