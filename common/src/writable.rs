//! Whether the folder that an agent cannot work without takes files: a full disk, a quota, inodes that have run out, a file system that was
//! mounted read-only. It is tried every few seconds, so that an agent tells of it before the next run fails, and that it is over without
//! waiting for one.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{
    closed,
    durable::TEMPORARY_PREFIX,
    error::{Hint as _, IoContext as _, PathError},
    trouble::{self, Kind},
};

/// How often the folder is tried.
const EVERY: Duration = Duration::from_secs(5);
/// What a record of a run, or a verdict, takes.
const RECORD_BYTES: usize = 64 * 1024;

/// Writes a file without a name, which is gone with its descriptor.
///
/// # Errors
/// When the folder does not take it.
pub fn try_write(folder: &Path) -> Result<(), PathError> {
    let mut file = nameless(folder).at("write into", folder)?;
    file.write_all(&[0; RECORD_BYTES]).at("write into", folder)
}

fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => return Ok(file.into()),
        // Not every file system has such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let path = folder.join(format!("{TEMPORARY_PREFIX}{:016x}", rand::random::<u64>()));
    let file = closed::options().write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Tries `folder` for as long as the agent runs. `kind` is raised while it takes nothing, and cleared when it does and `settle`, which
/// brings there what could not be written meanwhile, succeeds.
pub async fn watch(
    folder: PathBuf,
    kind: Kind,
    repository: String,
    settle: impl Fn() -> bool + Clone + Send + 'static,
) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (folder, settle) = (folder.clone(), settle.clone());
        // Off the runtime's threads: a disk may hang.
        let tried = tokio::task::spawn_blocking(move || try_write(&folder).map(|()| settle())).await;
        match tried {
            Ok(Ok(true)) => trouble::clear(kind, &repository),
            Ok(Err(error)) => {
                let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                trouble::raise(kind, &repository, format!("{error}{hint}"));
            }
            // It has raised the trouble itself, or panicked, which is counted.
            Ok(Ok(false)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_nothing_is_named_and_nothing_is_left_in_one_that_does() {
        let folder = tempfile::tempdir().expect("temp");
        try_write(folder.path()).expect("it can be written");
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 0);
        let gone = folder.path().join("gone");
        let text = try_write(&gone).expect_err("it is not there").to_string();
        assert!(text.contains("gone") && text.contains("write into"), "{text}");
    }
}
