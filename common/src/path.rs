//! Names inside a tree: validated once, compared in one order everywhere.
//!
//! A [`TreePath`] is the only form in which a name from the other agent travels through the code. It cannot be absolute,
//! cannot climb, and cannot hide a separator, so whoever holds one may split it and open its components below a held
//! folder descriptor. It need not be UTF-8.

use std::{cmp::Ordering, fmt};

pub use crate::limits::{MAX_COMPONENT_BYTES, MAX_DEPTH, MAX_PATH_BYTES};

/// Why bytes are not a path inside a tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[non_exhaustive]
pub enum PathFault {
    /// Longer than [`MAX_PATH_BYTES`].
    #[error("is longer than {MAX_PATH_BYTES} bytes")]
    TooLong,
    /// More than [`MAX_DEPTH`] components.
    #[error("has more than {MAX_DEPTH} components")]
    TooDeep,
    /// A component is empty, which includes a leading, a trailing and a doubled slash.
    #[error("has an empty component")]
    EmptyComponent,
    /// A component is `.` or `..`.
    #[error("has a component '.' or '..'")]
    DotComponent,
    /// A component is longer than [`MAX_COMPONENT_BYTES`].
    #[error("has a component of more than {MAX_COMPONENT_BYTES} bytes")]
    LongComponent,
    /// A NUL byte.
    #[error("has a NUL byte")]
    Nul,
}

/// A relative path below a tree's root folder; the empty path is the root folder itself.
///
/// Ordered as a sorted walk meets the entries: a folder, then all below it, siblings by their bytes.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The root folder.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks `bytes`, which hold components joined by single slashes.
    ///
    /// # Errors
    /// Says which rule the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathFault> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        if bytes.len() > MAX_PATH_BYTES {
            return Err(PathFault::TooLong);
        }
        let mut depth = 0;
        for component in bytes.split(|byte| *byte == b'/') {
            check_component(component)?;
            depth += 1;
        }
        if depth > MAX_DEPTH {
            return Err(PathFault::TooDeep);
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The path of `name` in this folder.
    ///
    /// # Errors
    /// Says which rule the name, or the path that it makes, breaks.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathFault> {
        check_component(name)?;
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        if bytes.len() > MAX_PATH_BYTES {
            return Err(PathFault::TooLong);
        }
        if bytes.iter().filter(|byte| **byte == b'/').count() >= MAX_DEPTH {
            return Err(PathFault::TooDeep);
        }
        Ok(Self(bytes))
    }

    /// The bytes, components joined by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, components joined by `/`.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// True for the root folder.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The folder that holds this entry; the root has none.
    pub fn parent(&self) -> Option<&[u8]> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => &self.0[..slash],
            None => &[],
        })
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => &self.0[slash + 1..],
            None => &self.0,
        }
    }

    /// As text for a message ([`display_short`]).
    pub fn short(&self) -> String {
        if self.is_root() { ".".to_owned() } else { display_short(&self.0) }
    }

    /// The components from the top down; none for the root.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }
}

/// Checks one component of a path.
///
/// # Errors
/// Says which rule the name breaks.
pub fn check_component(name: &[u8]) -> Result<(), PathFault> {
    match name {
        b"" => Err(PathFault::EmptyComponent),
        b"." | b".." => Err(PathFault::DotComponent),
        _ if name.len() > MAX_COMPONENT_BYTES => Err(PathFault::LongComponent),
        _ if name.contains(&0) => Err(PathFault::Nul),
        _ if name.contains(&b'/') => Err(PathFault::EmptyComponent),
        _ => Ok(()),
    }
}

/// Compares two paths in tree order, where a slash sorts before every other byte.
pub fn compare_paths(left: &[u8], right: &[u8]) -> Ordering {
    // No component holds a NUL, so giving the slash its place below all others keeps the order total.
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    left.iter().map(rank).cmp(right.iter().map(rank))
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_paths(&self.0, &other.0)
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// True for a character that a terminal obeys or does not show: control characters (escape sequences, carriage returns), line
/// separators, signs that change the direction of text, and signs of no width. With them a name can forge a line, or look like
/// another name.
pub fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Shows a path on one line of plain text whatever its bytes are: harmful characters and bytes that are not UTF-8 are
/// escaped, so that a name can neither forge a log line nor drive a terminal.
pub fn display_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for character in part.valid().chars() {
            if is_harmful(character) {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in part.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// The same for a message: of what is long, only the beginning, so that what is said about it is seen as well.
pub fn display_short(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 200;
    match bytes.get(..SHOWN_BYTES) {
        Some(start) if bytes.len() > SHOWN_BYTES => {
            format!("{}... ({} bytes)", display_bytes(start), bytes.len())
        }
        _ => display_bytes(bytes),
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { formatter.write_str(".") } else { formatter.write_str(&display_bytes(&self.0)) }
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TreePath({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_climb_or_hide_a_separator_are_refused() {
        let cases: [(&[u8], PathFault); 9] = [
            (b"/etc", PathFault::EmptyComponent),
            (b"a/", PathFault::EmptyComponent),
            (b"a//b", PathFault::EmptyComponent),
            (b"..", PathFault::DotComponent),
            (b"a/../b", PathFault::DotComponent),
            (b"a/.", PathFault::DotComponent),
            (b"a\0b", PathFault::Nul),
            (&[b'x'; 256], PathFault::LongComponent),
            (&[b'x'; 4096], PathFault::TooLong),
        ];
        for (bytes, fault) in cases {
            assert_eq!(TreePath::parse(bytes), Err(fault));
        }
        assert_eq!(TreePath::parse(&b"a/".repeat(2001)[..4001]), Err(PathFault::TooDeep));
        assert_eq!(TreePath::root().join(b"a/b"), Err(PathFault::EmptyComponent));
    }

    /// Each limit holds what is exactly on it and refuses one more, in `join` as in `parse`.
    #[test]
    fn limits_hold_at_their_edges() {
        let name = |bytes: usize| vec![b'x'; bytes];
        let deep = |components: usize| vec!["a"; components].join("/").into_bytes();
        // 16 components of 250 bytes, and two that fill the path up to the limit.
        let long = |bytes: usize| {
            let mut path = vec!["y".repeat(250); 16].join("/").into_bytes();
            path.push(b'/');
            path.resize(bytes - 3, b'z');
            path.extend_from_slice(b"/zz");
            path
        };
        assert!(TreePath::parse(&name(255)).is_ok());
        assert_eq!(TreePath::parse(&name(256)), Err(PathFault::LongComponent));
        assert!(TreePath::parse(&deep(MAX_DEPTH)).is_ok());
        assert_eq!(TreePath::parse(&deep(MAX_DEPTH + 1)), Err(PathFault::TooDeep));
        assert!(TreePath::parse(&long(MAX_PATH_BYTES)).is_ok());
        assert_eq!(TreePath::parse(&long(MAX_PATH_BYTES + 1)), Err(PathFault::TooLong));

        let root = TreePath::root();
        assert!(root.join(&name(255)).is_ok());
        assert_eq!(root.join(&name(256)), Err(PathFault::LongComponent));
        let parse = |bytes: Vec<u8>| TreePath::parse(&bytes).expect("valid");
        assert!(parse(deep(MAX_DEPTH - 1)).join(b"a").is_ok());
        assert_eq!(parse(deep(MAX_DEPTH)).join(b"a"), Err(PathFault::TooDeep));
        assert!(parse(long(MAX_PATH_BYTES - 2)).join(b"a").is_ok());
        assert_eq!(parse(long(MAX_PATH_BYTES - 1)).join(b"a"), Err(PathFault::TooLong));
    }

    /// A name's first and last parts, for the root and its direct children as well.
    #[test]
    fn parent_and_name_of_the_root_and_of_its_children() {
        let parts = |path: &[u8]| {
            let path = TreePath::parse(path).expect("valid");
            (path.parent().map(<[u8]>::to_vec), path.name().to_vec(), path.components().count())
        };
        assert_eq!(parts(b""), (None, Vec::new(), 0));
        assert_eq!(parts(b"a"), (Some(Vec::new()), b"a".to_vec(), 1));
        assert_eq!(parts(b"a/bc/d"), (Some(b"a/bc".to_vec()), b"d".to_vec(), 3));
    }

    #[test]
    fn a_folder_comes_right_before_what_it_holds() {
        let mut paths: Vec<_> = ["a.b", "a", "a/z", "a-", "a/b/c", "a/b", ""]
            .map(|path| TreePath::parse(path.as_bytes()).expect("valid"))
            .into();
        paths.sort();
        let shown: Vec<_> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(shown, [".", "a", "a/b", "a/b/c", "a/z", "a-", "a.b"]);
    }

    #[test]
    fn names_cannot_forge_a_line_of_output() {
        assert_eq!(display_bytes(b"a\nb\x1b[2J\xff"), "a\\nb\\u{1b}[2J\\xff");
        for (harmful, shown) in [
            ("\r", "\\r"),
            ("\u{9b}8m", "\\u{9b}8m"),
            ("\u{1b}]8;;http://x\u{7}", "\\u{1b}]8;;http://x\\u{7}"),
            ("a\u{200b}b", "a\\u{200b}b"),
            ("\u{202e}SSAP", "\\u{202e}SSAP"),
            ("\u{2028}", "\\u{2028}"),
            ("\u{feff}", "\\u{feff}"),
        ] {
            assert_eq!(display_bytes(harmful.as_bytes()), shown);
        }
        assert_eq!(display_bytes("Zoë, 日本, 🦀".as_bytes()), "Zoë, 日本, 🦀");
        assert_eq!(display_short(&[b'x'; 4096]), format!("{}... (4096 bytes)", "x".repeat(200)));
        assert_eq!(display_short(b"a\n"), "a\\n");
    }

    proptest! {
        /// Tree order is the order of the lists of components.
        #[test]
        fn order_is_that_of_components(
            left in "([a-c.-]{1,2}[a-c](/[a-c-][a-c.-]{0,2}[a-c]){0,3})?",
            right in "([a-c.-]{1,2}[a-c](/[a-c-][a-c.-]{0,2}[a-c]){0,3})?",
        ) {
            let left = TreePath::parse(left.as_bytes()).expect("valid");
            let right = TreePath::parse(right.as_bytes()).expect("valid");
            let by_components = left.components().cmp(right.components());
            prop_assert_eq!(left.cmp(&right), by_components);
        }

        #[test]
        fn split_and_join_are_inverse(path in "[a-c]{1,3}(/[a-c]{1,3}){0,4}") {
            let path = TreePath::parse(path.as_bytes()).expect("valid");
            let parent = TreePath::parse(path.parent().expect("not the root")).expect("valid");
            prop_assert_eq!(parent.join(path.name()).expect("valid"), path);
        }
    }
}
