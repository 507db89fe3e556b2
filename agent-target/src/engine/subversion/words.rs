//! What the lines of `svnadmin verify` mean. This is the only place that says it.
//!
//! `svnadmin` ends with 1 whatever went wrong, and says "Error verifying revision N" of a server that does not answer as well as
//! of a broken revision. So the error's number decides: those of the file system, of checksums, deltas and file ends are damage.

use std::sync::LazyLock;

use regex::Regex;

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The repository is damaged.
    Damage,
    /// The repository is of a newer format.
    Version,
    /// The folder is no repository.
    NotARepository,
    /// A revision was read and is sound.
    Verified,
    /// A revision could not be verified; the errors that follow say why.
    Unverified,
    /// An error that is not known as damage.
    Unknown,
    /// Of no interest.
    Silent,
}

/// An expression for a line, and what it means. The first that matches counts.
const ROWS: &[(&str, Meaning)] = &[
    (r"^\* Verified revision \d+\.$", Meaning::Verified),
    (r"^\* Error verifying (?:revision \d+|repository metadata)\.$", Meaning::Unverified),
    (r"^svnadmin: E(?:165005|160043|160033): ", Meaning::Version),
    // An option of a later release in a format file; anything else in one that is not its form was never written so.
    (r"^svnadmin: E125006: .*invalid filesystem format option", Meaning::Version),
    (r"^svnadmin: E125006: ", Meaning::Damage),
    (r"^svnadmin: E000002: Can't open file '(?:format|db/fs-type|db/format)'", Meaning::NotARepository),
    // A file that the repository names is not there, or ends too early.
    (r"^svnadmin: E(?:000002|070014): ", Meaning::Damage),
    // The file system's own errors, but for a lock, a cancelled transaction and the like, which verifying does not meet.
    (r"^svnadmin: E160\d{3}: ", Meaning::Damage),
    // Malformed data, checksums, deltas, compressed data.
    (
        r"^svnadmin: E(?:200002|200003|200004|200014|200022|200040|140\d{3}|185\d{3}|135\d{3}|125005): ",
        Meaning::Damage,
    ),
    // It stands after the errors, and says nothing of its own.
    (r"^svnadmin: E165011: ", Meaning::Silent),
    (r"^svnadmin: E\d{6}: ", Meaning::Unknown),
    (r"^svnadmin: ", Meaning::Unknown),
];

static SET: LazyLock<regex::RegexSet> = LazyLock::new(|| {
    regex::RegexSet::new(ROWS.iter().map(|row| row.0)).expect("the table's expressions are tested")
});
static SPACES: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\s+").expect("it is tested"));

/// What a line means.
pub(super) fn meaning(line: &str) -> Meaning {
    SET.matches(line).iter().next().map_or(Meaning::Silent, |index| ROWS[index].1)
}

/// A line for people.
pub(super) fn shorten(line: &str) -> String {
    SPACES.replace_all(line.trim_start_matches("svnadmin: ").trim_start_matches("* "), " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_means_what_the_table_says() {
        for (line, expected) in [
            ("* Verified revision 7.", Meaning::Verified),
            ("* Error verifying revision 7.", Meaning::Unverified),
            ("* Error verifying repository metadata.", Meaning::Unverified),
            ("svnadmin: E160043: Expected FS format between '1' and '8'; found format '9'", Meaning::Version),
            ("svnadmin: E160033: Unknown FS type 'future'", Meaning::Version),
            ("svnadmin: E165005: Expected repository format '5'; found format '9'", Meaning::Version),
            (
                "svnadmin: E000002: Can't open file 'format': No such file or directory",
                Meaning::NotARepository,
            ),
            ("svnadmin: E125006: Can't read first line of format file 'db/format'", Meaning::Damage),
            ("svnadmin: E125006: First line of 'format' contains non-digit", Meaning::Damage),
            (
                "svnadmin: E125006: 'db/format' contains invalid filesystem format option 'colour'",
                Meaning::Version,
            ),
            ("svnadmin: E000002: Can't open file 'db/revs/0/5': No such file or directory", Meaning::Damage),
            ("svnadmin: E070014: Can't read file 'db/revs/0/4': End of file found", Meaning::Damage),
            (
                "svnadmin: E160004: Checksum mismatch in item at offset 0 of length 7 bytes in file db/revs/0/3",
                Meaning::Damage,
            ),
            ("svnadmin: E200014: Checksum mismatch while reading representation:", Meaning::Damage),
            ("svnadmin: E185001: Svndiff data contains invalid instruction", Meaning::Damage),
            ("svnadmin: E140001: zlib (uncompress): corrupt data", Meaning::Damage),
            ("svnadmin: E165011: Repository 'r' failed to verify", Meaning::Silent),
            ("svnadmin: E070015: Unknown memcached server '127.0.0.1:11211'", Meaning::Unknown),
            ("svnadmin: E000013: Can't open file 'db/revs/0/5': Permission denied", Meaning::Unknown),
            ("svnadmin: E205000: Try 'svnadmin help verify' for more information", Meaning::Unknown),
            ("* Verifying metadata at revision 0 ...", Meaning::Silent),
        ] {
            assert_eq!(meaning(line), expected, "{line}");
        }
        assert_eq!(shorten("svnadmin: E160004:  Checksum   mismatch"), "E160004: Checksum mismatch");
    }
}
