//! Work on the live tree while a run reads it. What such a run copies is some state of each file; that each state was one, is told
//! by names whose content is replaced as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    mapped::{MAPPINGS, Mapper},
    nasty, noise,
};

/// Names in the folder of whole files.
const NAMES: u64 = 12;
/// Pause between two pieces of work, so that a run comes to its end.
const PAUSE: Duration = Duration::from_millis(2);
/// Pieces of work in a run, at most.
const MOST: u64 = 400;

/// The folder whose files are only ever replaced by rename and linked, with every content that each name has had.
pub(crate) struct WholeFiles {
    folder: PathBuf,
    had: BTreeMap<String, BTreeSet<String>>,
    next: u64,
}

impl WholeFiles {
    pub(crate) fn new(root: &Path) -> Self {
        let folder = root.join("whole");
        fs::create_dir(&folder).expect("mkdir");
        Self { folder, had: BTreeMap::new(), next: 0 }
    }

    /// A name gets a new file, in the place of what it was; or it becomes one more name of another's.
    fn replace(&mut self, random: &mut StdRng) {
        let name = format!("w{}", random.random_range(0..NAMES));
        let other = format!("w{}", random.random_range(0..NAMES));
        let (beside, path) = (self.folder.join(".new"), self.folder.join(&name));
        let content = match fs::read_to_string(self.folder.join(&other)) {
            Ok(content) if other != name && random.random_range(0..2) == 0 => {
                fs::hard_link(self.folder.join(&other), &beside).expect("link");
                content
            }
            _ => {
                self.next += 1;
                let content = format!("{} {name}\n", self.next).repeat(random.random_range(1..2000));
                fs::write(&beside, &content).expect("write");
                content
            }
        };
        // Before the name leads to it.
        self.had.entry(name).or_default().insert(content);
        // A rename over another name of the same file does nothing, and leaves both.
        fs::rename(&beside, path).expect("rename");
        nasty::remove(&beside);
    }

    /// Each file of a copy is one that its name has had.
    pub(crate) fn judge(&self, copy: &Path) {
        let Ok(copies) = fs::read_dir(copy.join("whole")) else { return };
        for copied in copies {
            let copied = copied.expect("entry");
            let name = copied.file_name().to_string_lossy().into_owned();
            let content = fs::read_to_string(copied.path()).expect("read");
            let known = name == ".new" || self.had.get(&name).is_some_and(|had| had.contains(&content));
            assert!(known, "{name} never had this content: {:?}", content.lines().next());
        }
    }
}

/// Works until `ended`.
pub(crate) fn work(root: &Path, seed: u64, whole: &mut WholeFiles, mapper: &mut Mapper, ended: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..MOST {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        match random.random_range(0..4) {
            0 | 1 => whole.replace(&mut random),
            2 => {
                let data = noise(random.random(), 50);
                mapper.write(random.random_range(0..MAPPINGS), random.random_range(0..300_000), &data);
            }
            _ => {
                let files: Vec<_> = nasty::below(root)
                    .into_iter()
                    .filter(|path| !path.starts_with(root.join("whole")))
                    .filter(|path| path.symlink_metadata().is_ok_and(|it| it.is_file() && it.len() > 0))
                    .collect();
                if !files.is_empty() {
                    let file = &files[random.random_range(0..files.len())];
                    let (length, data) = (file.metadata().expect("stat").len(), noise(random.random(), 20));
                    let file = File::options().write(true).open(file).expect("open");
                    file.write_all_at(&data, random.random_range(0..length)).expect("write");
                }
            }
        }
        std::thread::park_timeout(PAUSE);
    }
}
