//! Placeholders in profiles: `{root}` and its kin. `{{` and `}}` stand for single braces.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::PathBuf,
};

use super::Value;

/// What a placeholder stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `{root}`: the first root, where the command sees it.
    Root,
    /// `{root.NAME}`: the root of that name.
    RootNamed(String),
    /// `{further_roots}`: every root but the first, where the command sees them; as a whole argument only.
    FurtherRoots,
    /// `{parts}`: the parts that a step with `parts` is to check now; as a whole argument only.
    Parts,
    /// `{mark_dir}`: a folder whose files become part of the generation.
    MarkDir,
    /// `{mark_id}`: what the engine, or the source, calls the mark.
    MarkId,
    /// `{scratch}`: an empty writable folder.
    Scratch,
    /// `{helper}`: the target agent's own program, where the check sees it.
    Helper,
    /// `{target.fqdn}`: the target's full host name.
    TargetFqdn,
    /// `{target.host}`: the target's short host name.
    TargetHost,
    /// `{target.address}`: the target's IP address.
    TargetAddress,
    /// `{var.NAME}`: a variable that the repository's configuration sets.
    Var(String),
}

impl fmt::Display for Placeholder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => formatter.write_str("{root}"),
            Self::RootNamed(name) => write!(formatter, "{{root.{name}}}"),
            Self::FurtherRoots => formatter.write_str("{further_roots}"),
            Self::Parts => formatter.write_str("{parts}"),
            Self::MarkDir => formatter.write_str("{mark_dir}"),
            Self::MarkId => formatter.write_str("{mark_id}"),
            Self::Scratch => formatter.write_str("{scratch}"),
            Self::Helper => formatter.write_str("{helper}"),
            Self::TargetFqdn => formatter.write_str("{target.fqdn}"),
            Self::TargetHost => formatter.write_str("{target.host}"),
            Self::TargetAddress => formatter.write_str("{target.address}"),
            Self::Var(name) => write!(formatter, "{{var.{name}}}"),
        }
    }
}

/// Why a text with placeholders gives no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// No placeholder has this name.
    #[error("'{{{}}}' is not a placeholder: use {{root}}, {{root.NAME}}, {{further_roots}}, {{parts}}, {{mark_dir}}, {{mark_id}}, {{scratch}}, {{helper}}, \
             {{target.fqdn}}, {{target.host}}, {{target.address}} or {{var.NAME}}, or '{{{{' for a brace", .0.escape_debug())]
    Unknown(String),
    /// A brace without its partner.
    #[error("a brace stands alone: write '{{{{' or '}}}}' for a literal brace")]
    Unbalanced,
    /// The placeholder has no value here.
    #[error("{0} has no value here")]
    Unavailable(Placeholder),
    /// A variable that holds a list stands in the middle of a text.
    #[error("{0} is a list, which can only stand alone as a whole argument")]
    ListInText(Placeholder),
}

/// A piece of a text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Place(Placeholder),
}

pub(super) fn parse(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        let (brace, after) = rest[at..].split_at(1);
        if let Some(after) = after.strip_prefix(brace) {
            plain.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(TemplateError::Unbalanced);
        }
        let (name, after) = after.split_once('}').ok_or(TemplateError::Unbalanced)?;
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Place(placeholder(name).ok_or_else(|| TemplateError::Unknown(name.into()))?));
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

fn placeholder(name: &str) -> Option<Placeholder> {
    Some(match name {
        "root" => Placeholder::Root,
        "further_roots" => Placeholder::FurtherRoots,
        "parts" => Placeholder::Parts,
        "mark_dir" => Placeholder::MarkDir,
        "mark_id" => Placeholder::MarkId,
        "scratch" => Placeholder::Scratch,
        "helper" => Placeholder::Helper,
        "target.fqdn" => Placeholder::TargetFqdn,
        "target.host" => Placeholder::TargetHost,
        "target.address" => Placeholder::TargetAddress,
        _ => {
            let (kind, name) = name.split_once('.')?;
            match kind {
                "root" if is_name(name) => Placeholder::RootNamed(name.into()),
                "var" if is_name(name) => Placeholder::Var(name.into()),
                _ => return None,
            }
        }
    })
}

/// True for the names of variables and roots: letters, digits, `-` and `_`.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|character| character.is_ascii_alphanumeric() || "-_".contains(character))
}

/// The placeholders in `text`.
///
/// # Errors
/// [`TemplateError::Unknown`] and [`TemplateError::Unbalanced`].
pub fn placeholders(text: &str) -> Result<Vec<Placeholder>, TemplateError> {
    let places = parse(text)?.into_iter().filter_map(|piece| match piece {
        Piece::Place(placeholder) => Some(placeholder),
        Piece::Text(_) => None,
    });
    Ok(places.collect())
}

/// The names under which the target is known. What is not known is left out of the candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetNames {
    /// The full name.
    pub fqdn: Option<String>,
    /// The short name.
    pub host: Option<String>,
    /// An IP address.
    pub address: Option<String>,
}

/// What the placeholders stand for in one place.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The roots by name, as the command sees them; the first is `{root}`.
    pub roots: Vec<(String, PathBuf)>,
    /// The variables, as [`super::Profile::bind`] gave them.
    pub vars: BTreeMap<String, Value>,
    /// The target's names.
    pub target: TargetNames,
    /// `{mark_dir}`.
    pub mark_dir: Option<PathBuf>,
    /// `{mark_id}`.
    pub mark_id: Option<String>,
    /// `{scratch}`.
    pub scratch: Option<PathBuf>,
    /// `{helper}`.
    pub helper: Option<PathBuf>,
    /// `{parts}`: an argument each.
    pub parts: Option<Vec<OsString>>,
}

impl Scope {
    /// Fills the placeholders of one text.
    ///
    /// # Errors
    /// Says which placeholder has no value here.
    pub fn expand(&self, text: &str) -> Result<OsString, TemplateError> {
        let mut result = OsString::new();
        for piece in parse(text)? {
            match piece {
                Piece::Text(text) => result.push(text),
                Piece::Place(Placeholder::Var(name)) => {
                    let place = || Placeholder::Var(name.clone());
                    match self.vars.get(&name) {
                        None => return Err(TemplateError::Unavailable(place())),
                        Some(Value::List(_)) => return Err(TemplateError::ListInText(place())),
                        Some(Value::Text(text)) => result.push(self.expand_value(text)?),
                    }
                }
                Piece::Place(place) => result.push(self.lookup(&place)?),
            }
        }
        Ok(result)
    }

    /// Fills the placeholders of a list of texts, as of an `argv`: a list variable that stands alone becomes
    /// its members.
    ///
    /// # Errors
    /// Says which placeholder has no value here.
    pub fn expand_list(&self, texts: &[String]) -> Result<Vec<OsString>, TemplateError> {
        let mut result = Vec::new();
        for text in texts {
            if let [Piece::Place(Placeholder::FurtherRoots)] = parse(text)?.as_slice() {
                result.extend(self.roots.iter().skip(1).map(|(_, path)| path.clone().into_os_string()));
            } else if let [Piece::Place(Placeholder::Parts)] = parse(text)?.as_slice() {
                let parts = self.parts.as_ref().ok_or(TemplateError::Unavailable(Placeholder::Parts))?;
                result.extend(parts.iter().cloned());
            } else if let [Piece::Place(Placeholder::Var(name))] = parse(text)?.as_slice()
                && let Some(Value::List(members)) = self.vars.get(name)
            {
                for member in members {
                    result.push(self.expand_value(member)?);
                }
            } else {
                result.push(self.expand(text)?);
            }
        }
        Ok(result)
    }

    /// A variable's value may hold placeholders, but no variables: nothing can refer to itself.
    fn expand_value(&self, text: &str) -> Result<OsString, TemplateError> {
        let mut result = OsString::new();
        for piece in parse(text)? {
            match piece {
                Piece::Text(text) => result.push(text),
                Piece::Place(place) => result.push(self.lookup(&place)?),
            }
        }
        Ok(result)
    }

    fn lookup(&self, place: &Placeholder) -> Result<&OsStr, TemplateError> {
        let found: Option<&OsStr> = match place {
            Placeholder::Root => self.roots.first().map(|(_, path)| path.as_os_str()),
            Placeholder::RootNamed(name) => {
                self.roots.iter().find(|(root, _)| root == name).map(|(_, path)| path.as_os_str())
            }
            Placeholder::MarkDir => self.mark_dir.as_deref().map(std::path::Path::as_os_str),
            Placeholder::Scratch => self.scratch.as_deref().map(std::path::Path::as_os_str),
            Placeholder::Helper => self.helper.as_deref().map(std::path::Path::as_os_str),
            Placeholder::MarkId => self.mark_id.as_deref().map(OsStr::new),
            Placeholder::TargetFqdn => self.target.fqdn.as_deref().map(OsStr::new),
            Placeholder::TargetHost => self.target.host.as_deref().map(OsStr::new),
            Placeholder::TargetAddress => self.target.address.as_deref().map(OsStr::new),
            Placeholder::FurtherRoots | Placeholder::Parts | Placeholder::Var(_) => None,
        };
        found.ok_or_else(|| TemplateError::Unavailable(place.clone()))
    }
}
