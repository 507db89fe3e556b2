//! What the lines of `git fsck` mean. This is the only place that says it.
//!
//! Damage is what git cannot read, or what is missing. An object that is whole and named by its digest, and whose form git's
//! tools read, is no damage whatever `fsck` thinks of its style: nobody can change it without changing its name. What is not
//! in the table is unknown, and a check that ends badly over unknown lines is INCONCLUSIVE.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The repository is damaged.
    Damage,
    /// Worth saying, and no damage.
    Note,
    /// It belongs to the line before it.
    Continues,
    /// A reference that `fsck` cannot follow: whether it is damage depends on the reference.
    Reference,
    /// `HEAD` leads to a reference outside `refs/heads`.
    StrangeHead,
    /// Of no interest.
    Silent,
}

/// Bits of the exit code of `git fsck`.
pub(super) const OBJECT: i32 = 1;
pub(super) const REACHABLE: i32 = 2;
/// Set for a pack that is broken, and for one that holds an object whose form fsck does not like.
pub(super) const PACK: i32 = 4;
pub(super) const REFS: i32 = 8;

/// An expression for a line, what the line means, and the bits of the exit code that it explains. The first that matches counts.
const ROWS: &[(&str, Meaning, i32)] = &[
    (r"^missing \S+ [0-9a-f]{40,64}", Meaning::Damage, REACHABLE),
    (r"^broken link from ", Meaning::Damage, REACHABLE),
    (r"^ +to ", Meaning::Continues, 0),
    // An object that git's own parser refuses.
    (
        r"^error in \S+ \S+(?: \(.*\))?: (?:badTree|badTreeSha1|missingTree|badParentSha1|badObjectSha1|missingObject|badType|missingType|missingTypeEntry|unknownType|missingTag|missingTagEntry|nulInHeader|gitmodulesMissing|gitattributesMissing): ",
        Meaning::Damage,
        OBJECT,
    ),
    // An object of a form that fsck does not like: time zones, dates, names, modes, entries out of order, .gitmodules …
    (r"^error in \S+ [0-9a-f]{40,64}(?: \(.*\))?: [a-z][A-Za-z0-9]*: ", Meaning::Note, OBJECT | PACK),
    (r"^error in ", Meaning::Damage, OBJECT),
    (r"^warning in ", Meaning::Note, 0),
    // References.
    (r"^error: (\S.*): invalid sha1 pointer [0-9a-f]+$", Meaning::Reference, REACHABLE),
    // Caches of the index: git looks whether their objects are there before it uses them.
    (r"^error: [0-9a-f]{40,64}: invalid sha1 pointer in (?:cache-tree|resolve-undo)", Meaning::Note, REFS),
    (r"^error: .*HEAD points to something strange \(.*\)$", Meaning::StrangeHead, REFS),
    (r"^error: .*: not a commit$", Meaning::Note, REFS),
    (r"^error: .*: invalid reflog entry [0-9a-f]+$", Meaning::Damage, REACHABLE),
    (r"^error: (?:.*: detached HEAD points at nothing|invalid .*HEAD)$", Meaning::Damage, REFS),
    (
        r"^error: .*: (?:badRefContent|badPackedRefEntry|badPackedRefHeader|packedRefEntryNotTerminated): ",
        Meaning::Damage,
        REFS,
    ),
    (r"^error: .*: (?:bad|symref|trailing|ref|symlink|packed|empty)[A-Za-z]+: ", Meaning::Note, REFS),
    // Objects and packs that cannot be read.
    (
        r"^(?:error|fatal): (?:inflate: |.*\bcorrupt\b|.*\bmismatch\b|garbage at end of |unable to (?:unpack|parse|read) |.*: object (?:could not be parsed|corrupt or missing)|object file .* is empty|.*\btoo (?:small|long)\b|.*\bdoes not match\b|.*\bsignature\b|.*\bclaims to have\b|.*\bis not a GIT packfile|non-monotonic index |wrong index |bad (?:index|object|packed object|tree|offset)|.*\bout of bound|failed to (?:read|apply|unpack) |unknown object type |invalid object type|cannot unpack |packed \S+ from |packfile .* (?:index|cannot be accessed)|Could not read [0-9a-f]|object [0-9a-f]+ is a |bogus |(?:unexpected|unterminated) line in |unexpected end of |.*\bnot a valid object|premature end of |index uses |.*: index file smaller than expected)",
        Meaning::Damage,
        OBJECT,
    ),
    // A file with a name of its own among the objects.
    (r"^bad (?:sha1|object) file: ", Meaning::Silent, 0),
    (r"^(?:notice|dangling|unreachable|root|tagged|Checking|Verifying|hint|warning:)", Meaning::Silent, 0),
];

static SET: LazyLock<RegexSet> = LazyLock::new(|| {
    RegexSet::new(ROWS.iter().map(|row| row.0)).expect("the table's expressions are tested")
});
static REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^error: (\S.*): invalid sha1 pointer ([0-9a-f]+)$").expect("it is tested"));
static STRANGE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"something strange \((.*)\)$").expect("it is tested"));

/// What a line means, and which bits of the exit code it explains. `None`: it is unknown.
pub(super) fn meaning(line: &str) -> Option<(Meaning, i32)> {
    let first = SET.matches(line).iter().next()?;
    Some((ROWS[first].1, ROWS[first].2))
}

/// The reference of a [`Meaning::Reference`], and what it points at.
pub(super) fn reference(line: &str) -> Option<(&str, &str)> {
    let found = REFERENCE.captures(line)?;
    Some((found.get(1)?.as_str(), found.get(2)?.as_str()))
}

/// Where the `HEAD` of a [`Meaning::StrangeHead`] leads.
pub(super) fn strange_target(line: &str) -> Option<&str> {
    Some(STRANGE.captures(line)?.get(1)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234567890123456789012345678901234567890";

    /// Lines of git 2.47 and what they mean. `ID` stands for an object's name.
    const LINES: &[(&str, Option<Meaning>)] = &[
        ("missing blob ID", Some(Meaning::Damage)),
        ("missing tree ID", Some(Meaning::Damage)),
        ("broken link from    tree ID", Some(Meaning::Damage)),
        ("              to    blob ID", Some(Meaning::Continues)),
        ("error in tree ID: badTree: cannot be parsed as a tree", Some(Meaning::Damage)),
        ("error in commit ID: missingTree: invalid format - expected 'tree' line", Some(Meaning::Damage)),
        ("error in commit ID: badParentSha1: invalid 'parent' line format - bad sha1", Some(Meaning::Damage)),
        ("error in commit ID: nulInHeader: unterminated header: NUL at offset 7", Some(Meaning::Damage)),
        // A commit or a tag without a message, and without the empty line before one.
        ("error in commit ID: unterminatedHeader: unterminated header", Some(Meaning::Note)),
        ("error in tag ID: missingTagEntry: invalid format - expected 'tag' line", Some(Meaning::Damage)),
        ("error in tree ID: broken links", Some(Meaning::Damage)),
        (
            "error in commit ID: badTimezone: invalid author/committer line - bad time zone",
            Some(Meaning::Note),
        ),
        ("error in commit ID: badDate: invalid author/committer line - bad date", Some(Meaning::Note)),
        (
            "error in commit ID: badDateOverflow: invalid author/committer line - date causes integer overflow",
            Some(Meaning::Note),
        ),
        (
            "error in commit ID: missingEmail: invalid author/committer line - missing email",
            Some(Meaning::Note),
        ),
        (
            "error in commit ID: missingSpaceBeforeDate: invalid author/committer line - missing space before date",
            Some(Meaning::Note),
        ),
        (
            "error in commit ID: multipleAuthors: invalid format - multiple 'author' lines",
            Some(Meaning::Note),
        ),
        (
            "error in commit ID: zeroPaddedDate: invalid author/committer line - zero-padded date",
            Some(Meaning::Note),
        ),
        ("error in tree ID: duplicateEntries: contains duplicate file entries", Some(Meaning::Note)),
        ("error in tree ID: treeNotSorted: not properly sorted", Some(Meaning::Note)),
        ("error in blob ID: gitmodulesUrl: disallowed submodule url: --upload-pack=x", Some(Meaning::Note)),
        ("error in blob ID: gitmodulesParse: could not parse gitmodules blob", Some(Meaning::Note)),
        ("error in commit ID: aWordOfTheFuture: which nobody knows yet", Some(Meaning::Note)),
        ("warning in tree ID: zeroPaddedFilemode: contains zero-padded file modes", Some(Meaning::Note)),
        (
            "warning in tag ID: missingTaggerEntry: invalid format - expected 'tagger' line",
            Some(Meaning::Note),
        ),
        ("error: refs/heads/x: invalid sha1 pointer ID", Some(Meaning::Reference)),
        ("error: ID: invalid sha1 pointer in cache-tree", Some(Meaning::Note)),
        ("error: ID: invalid sha1 pointer in cache-tree of index", Some(Meaning::Note)),
        ("error: ID: invalid sha1 pointer in resolve-undo of index", Some(Meaning::Note)),
        ("error: HEAD points to something strange (refs/meta/config)", Some(Meaning::StrangeHead)),
        (
            "error: worktrees/w/HEAD points to something strange (refs/meta/config)",
            Some(Meaning::StrangeHead),
        ),
        ("error: refs/heads/x: not a commit", Some(Meaning::Note)),
        ("error: HEAD: invalid reflog entry ID", Some(Meaning::Damage)),
        ("error: HEAD: detached HEAD points at nothing", Some(Meaning::Damage)),
        ("error: invalid HEAD", Some(Meaning::Damage)),
        ("error: refs/heads/x: badRefContent: rubbish", Some(Meaning::Damage)),
        ("error: packed-refs line 7: badPackedRefEntry: 'x' is not a ref", Some(Meaning::Damage)),
        ("error: refs/heads/.x: badRefName: invalid refname format", Some(Meaning::Note)),
        ("error: refs/heads/x: refMissingNewline: misses LF at the end", Some(Meaning::Note)),
        ("error: inflate: data stream error (incorrect data check)", Some(Meaning::Damage)),
        ("error: corrupt loose object 'ID'", Some(Meaning::Damage)),
        ("error: hash mismatch for objects/12/34 (expected ID)", Some(Meaning::Damage)),
        ("error: garbage at end of loose object 'ID'", Some(Meaning::Damage)),
        ("error: unable to unpack header of objects/12/34", Some(Meaning::Damage)),
        ("error: unable to parse header of objects/12/34", Some(Meaning::Damage)),
        ("error: ID: object corrupt or missing: objects/12/34", Some(Meaning::Damage)),
        ("error: ID: object could not be parsed: objects/12/34", Some(Meaning::Damage)),
        ("error: object file objects/12/34 is empty", Some(Meaning::Damage)),
        ("error: objects/pack/p.pack SHA1 checksum mismatch", Some(Meaning::Damage)),
        ("error: objects/pack/p.pack pack checksum mismatch", Some(Meaning::Damage)),
        (
            "error: index CRC mismatch for object ID from objects/pack/p.pack at offset 12",
            Some(Meaning::Damage),
        ),
        ("error: cannot unpack ID from objects/pack/p.pack at offset 12", Some(Meaning::Damage)),
        ("error: packed ID from objects/pack/p.pack is corrupt", Some(Meaning::Damage)),
        (
            "error: packfile objects/pack/p.pack claims to have 2 objects while index indicates 3 objects",
            Some(Meaning::Damage),
        ),
        ("error: file objects/pack/p.pack is not a GIT packfile", Some(Meaning::Damage)),
        ("error: index file objects/pack/p.idx is too small", Some(Meaning::Damage)),
        ("error: wrong index v2 file size in objects/pack/p.idx", Some(Meaning::Damage)),
        ("error: non-monotonic index objects/pack/p.idx", Some(Meaning::Damage)),
        ("error: bad index file sha1 signature", Some(Meaning::Damage)),
        ("fatal: index file corrupt", Some(Meaning::Damage)),
        ("fatal: index: index file smaller than expected", Some(Meaning::Damage)),
        ("fatal: loose object ID (stored in objects/12/34) is corrupt", Some(Meaning::Damage)),
        ("fatal: unexpected line in packed-refs: not a ref", Some(Meaning::Damage)),
        ("fatal: unterminated line in packed-refs: x", Some(Meaning::Damage)),
        ("error: Could not read ID", Some(Meaning::Damage)),
        ("bad sha1 file: objects/12/notes.txt", Some(Meaning::Silent)),
        ("notice: HEAD points to an unborn branch (main)", Some(Meaning::Silent)),
        ("dangling blob ID", Some(Meaning::Silent)),
        ("warning: reflog of 'refs/heads/x' references pruned commits", Some(Meaning::Silent)),
        ("error: something that git 9 says", None),
        ("fatal: something that git 9 says", None),
    ];

    #[test]
    fn each_line_means_what_the_table_says() {
        for (line, expected) in LINES {
            let line = line.replace("ID", ID);
            assert_eq!(meaning(&line).map(|it| it.0), *expected, "{line}");
        }
    }

    #[test]
    fn every_row_has_an_example() {
        for (index, (row, ..)) in ROWS.iter().enumerate() {
            let mut lines = LINES.iter().map(|(line, _)| line.replace("ID", ID));
            assert!(lines.any(|line| SET.matches(&line).iter().next() == Some(index)), "{row}");
        }
    }

    #[test]
    fn references_are_taken_out_of_their_lines() {
        let line = format!("error: refs/remotes/origin/HEAD: invalid sha1 pointer {ID}");
        assert_eq!(reference(&line), Some(("refs/remotes/origin/HEAD", ID)));
        let line = "error: HEAD points to something strange (refs/meta/config)";
        assert_eq!(strange_target(line), Some("refs/meta/config"));
    }
}
