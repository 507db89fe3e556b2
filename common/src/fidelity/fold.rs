//! Names that are one name on a file system which does not tell upper from lower case: ext4 and f2fs with casefold, vfat, exFAT, and XFS,
//! ZFS and shares that are set up so.

use unicode_normalization::UnicodeNormalization as _;

/// What the names of the same entry have in common on every such file system. Some tell apart what is one name here (the two forms of an
/// accented letter, for example): none takes for one name what differs here.
fn folded(path: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(path) {
        Ok(text) if !text.is_ascii() => {
            // Upper case first: it has one letter where lower case has two (the sigmas), and writes out what is a ligature.
            let upper: String = text.nfd().flat_map(char::to_uppercase).collect();
            let lower: String = upper.chars().flat_map(char::to_lowercase).collect();
            lower.nfd().collect::<String>().into_bytes()
        }
        _ => path.to_ascii_lowercase(),
    }
}

/// A name that was seen, in little room.
pub type FoldedName = [u8; 16];

/// The same for every path that is the same entry there.
pub fn folded_name(path: &[u8]) -> FoldedName {
    let mut name = FoldedName::default();
    name.copy_from_slice(&blake3::hash(&folded(path)).as_bytes()[..16]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_file_system_may_take_for_one_are_one() {
        for (left, right, is_one) in [
            ("a/File", "a/fILE", true),
            ("A/file", "a/file", true),
            ("a/file", "a/file ", false),
            ("a-b", "a_b", false),
            ("Stra\u{df}e", "STRASSE", true),
            ("\u{c4}pfel", "\u{e4}PFEL", true),
            // Composed and decomposed.
            ("caf\u{e9}", "cafe\u{301}", true),
            ("caf\u{e9}", "cafe", false),
            ("\u{3a3}", "\u{3c2}", true),
            ("\u{212a}", "k", true),
            ("\u{fb01}", "FI", true),
            ("\u{10400}", "\u{10428}", true),
        ] {
            assert_eq!(
                folded_name(left.as_bytes()) == folded_name(right.as_bytes()),
                is_one,
                "{left} {right}"
            );
        }
        // What is no text is compared by its bytes.
        assert_eq!(folded_name(b"\xffA"), folded_name(b"\xffa"));
        assert_ne!(folded_name(b"\xff"), folded_name(b"\xfe"));
    }
}
