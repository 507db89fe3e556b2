//! Writes through mappings: a helper in Python keeps files mapped, because nothing in this workspace may.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// What the helper does: a command a line, and a line of answer to each.
const HELPER: &str = "\
import mmap, os, sys
maps = {}
def drop(key):
    if key in maps:
        file, area, _ = maps.pop(key)
        area.close(); os.close(file)
for line in sys.stdin:
    word = line.split()
    key = word[1]
    if word[0] == 'map':
        drop(key)
        file = os.open(word[2], os.O_RDWR)
        size = os.fstat(file).st_size
        if size: maps[key] = (file, mmap.mmap(file, size), size)
        else: os.close(file)
    elif key in maps:
        file, area, size = maps[key]
        if os.fstat(file).st_size < size: drop(key)
        elif word[0] == 'write':
            at = int(word[2]) % size
            data = bytes.fromhex(word[3])[:size - at]
            area[at:at + len(data)] = data
        elif word[0] == 'sync': area.flush()
        elif word[0] == 'drop': drop(key)
    print('done', flush=True)
";
/// Files that are mapped at the same time.
pub(crate) const MAPPINGS: u64 = 4;

/// The helper.
pub(crate) struct Mapper {
    helper: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Mapper {
    pub(crate) fn start() -> Self {
        let mut helper = Command::new("python3")
            .args(["-c", HELPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed by ./test");
        let orders = helper.stdin.take().expect("piped");
        let answers = BufReader::new(helper.stdout.take().expect("piped"));
        Self { helper, orders, answers }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the helper runs");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the helper answers");
        assert_eq!(answer, "done\n", "{order}");
    }

    /// Maps a file, in the place of another.
    pub(crate) fn map(&mut self, key: u64, path: &Path) {
        self.order(&format!("map {key} {}", path.to_str().expect("a plain path")));
    }

    /// Writes into a mapping, if there is one, somewhere in it.
    pub(crate) fn write(&mut self, key: u64, at: u64, data: &[u8]) {
        self.order(&format!("write {key} {at} {}", hex::encode(data)));
    }

    /// `msync`.
    pub(crate) fn sync(&mut self, key: u64) {
        self.order(&format!("sync {key}"));
    }

    /// Ends a mapping.
    pub(crate) fn drop_mapping(&mut self, key: u64) {
        self.order(&format!("drop {key}"));
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        // It may have ended with the test.
        drop(self.helper.kill());
        drop(self.helper.wait());
    }
}
