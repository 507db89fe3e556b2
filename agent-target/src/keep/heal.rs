//! Puts a rotten file right, from the pieces of it that are still sound somewhere on this disk.
//!
//! A sealed generation is what its manifest says. Its files are never opened for writing, here neither: a new file is made
//! beside the generations, compared with the manifest as a whole, and takes the rotten one's name.
//!
//! 1. `heal/file` is made: each piece from the rotten file, else from the same path in other generations, else from where the
//!    chunk index has it; every piece is compared with its digest, and the whole with its own.
//! 2. It gets the entry's owner, mode, attributes and times, and is synced.
//! 3. What was laid out ahead for the next run is thrown away, durably: it has the rotten file by another name.
//! 4. For every generation that shares the rotten file, and every further name of it there: a link `heal/name`, renamed over the
//!    old name; then the folder gets its time back and is synced.
//!
//! A crash leaves the rotten file or the sound one under each name; which of them it is, is found when it is tried again, because
//! the note that it is rotten goes last. In 4 it may leave a folder with the time of the crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::PoisonError,
};

use assay_common::{
    confined::Folder,
    digest::ContentDigest,
    error::IoContext as _,
    id::GenerationNumber,
    manifest::{Entry, EntryKind, content_pieces},
    path::TreePath,
    uncached,
};

use super::scrub::{Shared, is};
use crate::{
    ahead::tree,
    repository::Repository,
    seal::{make_room_for_names, open_manifest},
    store::TREE,
};

/// The new file, and a further name of it, in the folder `heal`.
const FILE: &[u8] = b"file";
const NAME: &[u8] = b"name";

/// Heals what the generations of `rotten` share. Returns the generations in which that is done.
///
/// # Errors
/// Why nothing could be done, in words.
pub(super) fn heal(
    repository: &Repository,
    rotten: &Shared,
    siblings: &[&Shared],
) -> Result<BTreeSet<GenerationNumber>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let _healing = repository.healing.lock().unwrap_or_else(PoisonError::into_inner);
    let path = repository.store.path().join("heal");
    assay_common::closed::create_folder(&path).at("create", &path).map_err(|error| text(&error))?;
    let folder = Folder::open(&path).at("open", &path).map_err(|error| text(&error))?;
    for left in [FILE, NAME] {
        drop(folder.remove_file(left));
    }
    let file = folder.create_file(FILE).map_err(|error| text(&error))?;
    let made = assemble(repository, &file, rotten, siblings);
    let made = made.and_then(|()| folder.set_metadata(FILE, &rotten.entry));
    let made = made.and_then(|()| file.sync_all());
    let healed = made.and_then(|()| replace(repository, &folder, rotten));
    drop(folder.remove_file(FILE));
    healed.map_err(|error| text(&error))
}

/// Writes what the entry says into `file`.
fn assemble(repository: &Repository, file: &File, rotten: &Shared, siblings: &[&Shared]) -> io::Result<()> {
    let entry = &rotten.entry;
    let mut elsewhere: BTreeMap<[u8; 32], Vec<(&File, u64)>> = BTreeMap::new();
    for sibling in siblings {
        let Some(sound) = &sibling.file else { continue };
        for (offset, _, digest) in content_pieces(&sibling.entry) {
            let Some(digest) = digest else { continue };
            elsewhere.entry(digest.0).or_default().push((sound, offset));
        }
    }
    file.set_len(entry.size)?;
    for (offset, piece, digest) in content_pieces(entry) {
        let Some(digest) = digest else { continue };
        let length = usize::try_from(piece.bytes()).map_err(io::Error::other)?;
        let own = rotten.file.iter().map(|file| (file, offset));
        let places = own.chain(elsewhere.get(&digest.0).into_iter().flatten().copied());
        let found = places.into_iter().find_map(|(file, at)| piece_at(file, at, length, digest));
        let found = found.or_else(|| indexed(repository, length, digest));
        let bytes = found.ok_or_else(|| {
            io::Error::other(format!(
                "bytes {offset} to {} are nowhere else on this disk",
                offset + piece.bytes()
            ))
        })?;
        file.write_all_at(&bytes, offset)?;
    }
    let mut hasher = blake3::Hasher::new();
    let (mut block, mut offset) = (vec![0; 1024 * 1024], 0);
    loop {
        let got = uncached::read_full_at(file, &mut block, offset)?;
        if got == 0 {
            break;
        }
        hasher.update(&block[..got]);
        offset += got as u64;
    }
    if *hasher.finalize().as_bytes() != entry.digest[..] {
        return Err(io::Error::other("its pieces are sound, and the whole is not"));
    }
    Ok(())
}

fn piece_at(file: &File, offset: u64, length: usize, digest: ContentDigest) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let got = uncached::read_full_at(file, &mut bytes, offset).ok()?;
    (got == length && is(&bytes, digest)).then_some(bytes)
}

/// A piece from where the chunk index has it: a hint, compared like every other.
fn indexed(repository: &Repository, length: usize, digest: ContentDigest) -> Option<Vec<u8>> {
    let (place, path) = {
        let index = repository.index.lock().unwrap_or_else(PoisonError::into_inner);
        let place = index.find(&[digest]).ok()?.pop()??;
        (place, index.content_path(place.key).ok()??)
    };
    let path = TreePath::parse(&path).ok()?;
    let mut generations = repository.store.generations().ok()?;
    generations.reverse();
    generations.into_iter().find_map(|number| {
        let tree = Folder::open(&repository.store.generation_path(number).join(TREE)).ok()?;
        let file = tree.open_file_below(&path).ok()?;
        file.metadata().ok()?.is_file().then_some(())?;
        piece_at(&file, place.offset, length, digest)
    })
}

/// Gives the new file the names of the rotten one.
fn replace(
    repository: &Repository,
    folder: &Folder,
    rotten: &Shared,
) -> io::Result<BTreeSet<GenerationNumber>> {
    let store = &repository.store;
    let path = TreePath::parse(&rotten.entry.path).map_err(io::Error::other)?;
    // Held until the end, so that nobody lays the rotten file out again meanwhile.
    let _turn = store.ahead().lock().unwrap_or_else(PoisonError::into_inner);
    tree::forget(store).map_err(io::Error::other)?;
    // They may share their blocks with what has rotted.
    repository.copies.forget().map_err(io::Error::other)?;
    let mut healed = BTreeSet::new();
    for number in &rotten.generations {
        // The scrub itself holds it once; whoever else does reads what is rotten, and it is healed the next time.
        let done = repository.holds.unless_held_beside(*number, || {
            let tree = Folder::open(&store.generation_path(*number).join(TREE))?;
            let mut names = vec![path.clone()];
            names.extend(further_names(repository, *number, &rotten.entry)?);
            // One more has the name that moves over the rotten one.
            make_room_for_names(folder, FILE, &rotten.entry, names.len() as u64 + 1)?;
            for name in names {
                let parent = TreePath::parse(name.parent().expect("a file is in a folder"));
                let parent = tree.open_folder_below(&parent.map_err(io::Error::other)?)?;
                let before = parent.stat_self()?;
                folder.link(FILE, folder, NAME)?;
                folder.replace(NAME, &parent, name.name())?;
                parent.set_own_times(&before)?;
                parent.sync()?;
            }
            Ok::<_, io::Error>(())
        });
        if let Some(done) = done {
            done?;
            healed.insert(*number);
        }
    }
    Ok(healed)
}

/// Further names of a file in its generation.
fn further_names(
    repository: &Repository,
    number: GenerationNumber,
    entry: &Entry,
) -> io::Result<Vec<TreePath>> {
    let mut manifest = open_manifest(&repository.store, number).map_err(io::Error::other)?;
    let mut names = Vec::new();
    while let Some(other) = manifest.next_entry().map_err(io::Error::other)? {
        if other.kind() == EntryKind::Hardlink && other.link_target == entry.path {
            names.push(TreePath::parse(&other.path).map_err(io::Error::other)?);
        }
    }
    Ok(names)
}
