//! A configuration in several files: `source.toml`, and the `*.toml` files of the folder `source.d` beside it, which hold repositories.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::de;

use super::{ConfigError, parse, read};

/// The text of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileText {
    /// Where it is, or is to be.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

impl FileText {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self { path: path.to_owned(), text: read(path)? })
    }

    /// Parses it.
    ///
    /// # Errors
    /// [`ConfigError::Shape`].
    pub fn parse<T: de::DeserializeOwned>(&self) -> Result<T, ConfigError> {
        parse(&self.path, &self.text)
    }
}

/// The texts of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigText {
    /// The configuration file. Relative paths of all files start at its folder.
    pub main: FileText,
    /// The further files, in the order of their names.
    pub further: Vec<FileText>,
}

/// What a further file may hold.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Further<R> {
    #[serde(rename = "repository", default = "Vec::new")]
    repositories: Vec<R>,
}

/// The folder of the further files of the configuration file `path`: `source.d` for `source.toml`.
pub fn further_folder(path: &Path) -> PathBuf {
    path.with_extension("d")
}

impl ConfigText {
    /// Reads the configuration file `path` and its further files. Names that begin with a dot are passed over, as editors leave them.
    ///
    /// # Errors
    /// [`ConfigError::Read`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let main = FileText::read(path)?;
        let folder = further_folder(path);
        let failed = |source: io::Error| ConfigError::Read { path: folder.clone(), source };
        let mut paths = Vec::new();
        match fs::read_dir(&folder) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry.map_err(failed)?.path();
                    let is_hidden =
                        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                    if !is_hidden && path.extension().is_some_and(|extension| extension == "toml") {
                        paths.push(path);
                    }
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(failed(error)),
        }
        paths.sort();
        let further = paths.iter().map(|path| FileText::read(path)).collect::<Result<_, _>>()?;
        Ok(Self { main, further })
    }

    /// The repositories of the further files, in their order, each with its file.
    ///
    /// # Errors
    /// [`ConfigError::Shape`], also for anything else than repositories.
    pub fn further_repositories<R: de::DeserializeOwned>(&self) -> Result<Vec<(&FileText, R)>, ConfigError> {
        let mut all = Vec::new();
        for file in &self.further {
            let parsed: Further<R> = file.parse()?;
            all.extend(parsed.repositories.into_iter().map(|repository| (file, repository)));
        }
        Ok(all)
    }

    /// Adds the section of the repository `name`: to a file of its own where the folder of further files exists, else at the end of the
    /// configuration file. Returns the file that changes, as it is to be written.
    pub fn add_repository(&mut self, name: &str, section: &str) -> FileText {
        let folder = further_folder(&self.main.path);
        if !folder.is_dir() {
            self.main.text = format!("{}\n\n{section}", self.main.text.trim_end());
            return self.main.clone();
        }
        let path = folder.join(format!("{name}.toml"));
        match self.further.iter_mut().find(|file| file.path == path) {
            Some(file) => {
                file.text = format!("{}\n\n{section}", file.text.trim_end());
                file.clone()
            }
            None => {
                let file = FileText { path, text: section.to_owned() };
                self.further.push(file.clone());
                self.further.sort_by(|one, other| one.path.cmp(&other.path));
                file
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    struct Repository {
        name: String,
    }

    fn names(text: &ConfigText) -> Vec<String> {
        let all = text.further_repositories::<Repository>().expect("repositories");
        all.into_iter().map(|(_, repository)| repository.name).collect()
    }

    #[test]
    fn repositories_come_from_the_folder_in_the_order_of_its_names() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("source.toml");
        fs::write(&path, "a = 1\n").expect("written");
        let mut text = ConfigText::read(&path).expect("read");
        assert_eq!(text.further, []);
        assert_eq!(text.add_repository("one", "[one]\n").text, "a = 1\n\n[one]\n");
        let further = further_folder(&path);
        fs::create_dir(&further).expect("folder");
        for (name, repository) in [("20-b.toml", "b"), ("10-a.toml", "a"), (".c.toml", "c"), ("d.toml~", "d")]
        {
            let section = format!("[[repository]]\nname = '{repository}'\n");
            fs::write(further.join(name), section).expect("written");
        }
        let mut text = ConfigText::read(&path).expect("read");
        assert_eq!(names(&text), ["a", "b"]);
        let added = text.add_repository("15", "[[repository]]\nname = 'x'\n");
        assert_eq!(added.path, further.join("15.toml"));
        assert_eq!(names(&text), ["a", "x", "b"]);
        assert!(text.add_repository("15", "[[repository]]\nname = 'y'\n").text.contains("'x'"));
        assert_eq!(names(&text), ["a", "x", "y", "b"]);
    }

    #[test]
    fn a_fault_of_a_further_file_names_it_with_its_line() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("source.toml");
        fs::write(&path, "").expect("written");
        fs::create_dir(further_folder(&path)).expect("folder");
        let file = further_folder(&path).join("a.toml");
        for (wrong, message) in
            [("\n[agent]\nname = 'x'\n", ":2:2: unknown field `agent`"), ("\n\n=", ":3:1: ")]
        {
            fs::write(&file, wrong).expect("written");
            let text = ConfigText::read(&path).expect("read");
            let fault = text.further_repositories::<Repository>().expect_err("no repository").to_string();
            assert!(fault.starts_with(&format!("{}{message}", file.display())), "{fault}");
        }
    }
}
