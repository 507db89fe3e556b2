//! Where pieces come from when they need not be sent, and how they get into their contents.

use std::{fs::File, io, sync::PoisonError};

use assay_common::{
    digest::ContentDigest,
    error::IoContext as _,
    fault::{self, Point},
    uncached,
};

use bytes::Bytes;

use super::{End, Item, ReceiveError, Receiver, Target, base::BaseFile};
use crate::{
    ahead::copies,
    buffers::Buffer,
    store::{
        FILE_BYTES, FOLDER_BYTES, Original,
        index::{ContentKey, PLACE_HELD_BYTES, Place},
    },
};

/// From here on a piece of a file is written around the page cache, in bytes: below, a write of its own for each small file
/// costs the disk more than the memory is worth (measured: docs/PERFORMANCE.md).
const UNCACHED_BYTES: usize = 64 * 1024;
/// File systems share whole blocks only.
const BLOCK_BYTES: u64 = 4096;
/// Read at a time of what could not be hashed while it was written.
const READ_BYTES: u64 = 1024 * 1024;
/// Shorter runs are copied: sharing has its price too.
const SHARED_BYTES: u64 = 64 * 1024;

impl Receiver {
    /// Fills each piece of data from this machine, if it can be had here, and says of each whether it could.
    pub(super) fn fill(&self, items: &[Item]) -> Result<Vec<bool>, ReceiveError> {
        let digests: Vec<ContentDigest> = items
            .iter()
            .filter_map(|item| match item {
                Item::Data(target) => Some(target.digest),
                _ => None,
            })
            .collect();
        let mut places = self.places.find(&digests)?.into_iter();
        let mut here = Vec::with_capacity(items.len());
        let (mut writer, mut noted) = (ContentWriter::new(self), Vec::new());
        let mut rest = items;
        while let Some((item, after)) = rest.split_first() {
            match item {
                Item::Hole { content, offset, bytes } => {
                    self.make_hole(&mut writer, *content, *offset, *bytes)?
                }
                Item::Data(target) => {
                    let place = places
                        .next()
                        .expect("one for each")
                        .filter(|place| place.bytes as usize == target.bytes);
                    here.push(match place {
                        Some(place) => self.fill_from(&mut writer, *target, place, &mut noted)?,
                        None => false,
                    });
                }
                Item::Kept(first) => {
                    let run = kept_run(rest, first);
                    let bytes = rest[..run].iter().map(Item::bytes).sum();
                    here.resize(here.len() + run, true);
                    self.staging
                        .whole()
                        .kept(first.content, first.offset, bytes, &self.reader(first.content))
                        .at("write", self.staging.path())?;
                    rest = &rest[run..];
                    continue;
                }
                Item::Reused(first, base, position) => {
                    let run = reused_run(rest, first, base, *position);
                    self.reuse(&mut writer, &run, base, *position, &mut here)?;
                    rest = &rest[run.len()..];
                    continue;
                }
            }
            rest = after;
        }
        self.places.insert(&noted)?;
        Ok(here)
    }

    /// Fills pieces that the base's file has one after the other.
    fn reuse(
        &self,
        writer: &mut ContentWriter<'_>,
        run: &[Target],
        base: &BaseFile,
        position: usize,
        here: &mut Vec<bool>,
    ) -> Result<(), ReceiveError> {
        let start = here.len();
        here.resize(start + run.len(), false);
        let Some(file) = &base.file else {
            return Ok(());
        };
        let from = (file, base.pieces[position].0);
        let bytes = run.iter().map(|target| target.bytes).sum();
        let buffer = self.buffers.take(bytes, run[0].offset);
        let is_trusted = run.iter().all(|target| target.is_trusted_to(base));
        self.reuse_through(buffer, writer, (run, is_trusted), from, &mut here[start..])
    }

    fn reuse_through(
        &self,
        mut buffer: Buffer,
        writer: &mut ContentWriter<'_>,
        (run, is_trusted): (&[Target], bool),
        (file, from): (&File, u64),
        here: &mut [bool],
    ) -> Result<(), ReceiveError> {
        let got = fault::at(Point::StoreRead).and_then(|()| uncached::read_full_at(file, &mut buffer, from));
        let memory_bytes = buffer.memory_bytes();
        let (bytes, first) = (buffer.share(got.unwrap_or(0)), run[0].offset);
        for (target, here) in run.iter().zip(here.iter_mut()) {
            let at = (target.offset - first) as usize;
            let piece = bytes.get(at..at + target.bytes);
            *here = piece.is_some_and(|piece| is_trusted || ContentDigest::of(piece) == target.digest);
        }
        let bad = here.iter().filter(|sound| !**sound).count();
        if bad > 0 {
            let content = run[0].content;
            tracing::warn!(
                content,
                pieces = bad,
                "the disk has not kept what was sealed: it is asked for again"
            );
        }
        for sound in run.iter().zip(here.iter()).collect::<Vec<_>>().chunk_by(|left, right| left.1 == right.1)
        {
            if !*sound[0].1 {
                continue;
            }
            let (offset, last) = (sound[0].0.offset, sound[sound.len() - 1].0);
            let at = (offset - first) as usize..(last.offset - first) as usize + last.bytes;
            let sound = bytes.slice(at.clone());
            writer.write_shared(run[0].content, (file, from + at.start as u64), offset, &sound)?;
            self.hash(&run[0], offset, &sound, memory_bytes)?;
        }
        Ok(())
    }

    /// Fills a piece with a chunk that is said to be on this machine. False when it is not there, or not what it was.
    fn fill_from(
        &self,
        writer: &mut ContentWriter<'_>,
        target: Target,
        place: Place,
        noted: &mut Vec<(ContentDigest, Place)>,
    ) -> Result<bool, ReceiveError> {
        let Target { content, offset, digest, .. } = target;
        let own = self.staging.key(content);
        if target.in_one_message && self.is_fresh(&target, place) {
            self.adopt(content, place.key)?;
        }
        let mut place = place;
        if self.places.adopted(content) == Some(place.key) {
            place.key = own;
        }
        let Some(bytes) = self.places.read(place, digest).map(Bytes::from) else {
            return Ok(false);
        };
        if place.key != own || place.offset != offset {
            writer.write(content, offset, &bytes)?;
        }
        self.hash(&target, offset, &bytes, bytes.len())?;
        if place.key.generation == own.generation && place.key.session != own.session || place.key == own {
            // The earlier session's file goes away with the seal: the place to remember is this one.
            noted.push((digest, Place { key: own, offset, bytes: place.bytes }));
        }
        Ok(true)
    }

    /// Takes over the file of an earlier session for a content that comes in several messages. They are settled in any order, and a file
    /// that is taken over must be there before any of them: its holes are punched, and its end is cut.
    pub(super) fn adopt_first(&self, first: &Target) -> Result<(), ReceiveError> {
        match self.places.find(&[first.digest])?.first() {
            Some(Some(place)) if self.is_fresh(first, *place) => self.adopt(first.content, place.key),
            _ => Ok(()),
        }
    }

    /// True for the start of a content whose start is in a file of an earlier session.
    fn is_fresh(&self, target: &Target, place: Place) -> bool {
        let own = self.staging.key(target.content);
        target.offset == 0
            && place.offset == 0
            && place.bytes as usize == target.bytes
            && place.key.generation == own.generation
            && place.key.session != own.session
    }

    /// Takes over a file of an earlier session, so that what it holds is not written a second time.
    fn adopt(&self, content: u64, from: ContentKey) -> Result<(), ReceiveError> {
        // A power cut may have taken the session's folder away, and left the hint.
        let Ok((old_folder, old_name)) = self.staging.locate(from.session, from.content) else {
            return Ok(());
        };
        let (folder, name) = self.staging.locate(self.staging.session(), content)?;
        // Another content may have taken it already, or this one has been started: then it is copied from, or sent.
        if old_folder.rename(&old_name, &folder, &name).is_ok() {
            self.places.adopt(content, from);
        }
        Ok(())
    }

    /// Lets a content begin as the copy of a file of the base, if one was made ahead. Returns the file's position then.
    pub(super) fn begin_as_copy(&self, content: u64, base: &BaseFile) -> Result<Option<u64>, ReceiveError> {
        // What a copy keeps is not compared: where that is doubted there is no use for one.
        let is_of_use = base.size >= copies::LEAST_BYTES && !base.is_doubted;
        let Some((_, copies)) = self.base.as_ref().filter(|_| is_of_use) else {
            return Ok(None);
        };
        let Some(file) = base.file.as_ref().and_then(|file| file.try_clone().ok()) else {
            return Ok(None);
        };
        let (folder, name) = self.staging.locate(self.staging.session(), content)?;
        let Some(blocks) = copies.take(&base.path, base.digest, &folder, &name) else {
            return Ok(None);
        };
        if !self.allowance.claim_copied(base.size.saturating_add(FILE_BYTES)) {
            // What is sent may be much shorter, and fit.
            folder.remove_file(&name).at("remove", &self.staging.content_path(content))?;
            return Ok(None);
        }
        self.copied.lock().unwrap_or_else(PoisonError::into_inner).insert(content, base.size);
        self.staging.whole().began_as(content, Original { file, blocks });
        Ok(Some(base.position))
    }

    /// Length of the copy that a content began as, in bytes; 0 for none.
    fn copied_bytes(&self, content: u64) -> u64 {
        let copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        copied.get(&content).copied().unwrap_or(0)
    }

    /// True for a content whose file was there before it: that of an earlier session, or a copy.
    fn has_old_bytes(&self, content: u64) -> bool {
        self.places.adopted(content).is_some() || self.copied_bytes(content) > 0
    }

    /// A hole is where nothing was written, but in a file that was there before.
    fn make_hole(
        &self,
        writer: &mut ContentWriter<'_>,
        content: u64,
        offset: u64,
        bytes: u64,
    ) -> Result<(), ReceiveError> {
        // Before it is told: what is hashed as zeros stands there as zeros.
        if self.has_old_bytes(content) {
            let path = self.staging.content_path(content);
            let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(writer.file(content)?, flags, offset, bytes)
                .map_err(io::Error::from)
                .at("punch a hole in", &path)?;
        }
        let told = self.staging.whole().hole(content, offset, bytes, &self.reader(content));
        Ok(told.at("write", self.staging.path())?)
    }

    /// Gives contents their length where their data does not: a hole at the end, nothing at all, or a file that was there
    /// before and was longer.
    pub(super) fn end(&self, ends: &[End]) -> Result<(), ReceiveError> {
        let mut writer = ContentWriter::new(self);
        for End { content, length, ends_in_data, alone, .. } in ends {
            if !alone {
                self.staging
                    .whole()
                    .ended(*content, *length, &self.reader(*content))
                    .at("write", self.staging.path())?;
            }
            if !ends_in_data || self.has_old_bytes(*content) {
                let path = self.staging.content_path(*content);
                writer.file(*content)?.set_len(*length).at("set the length of", &path)?;
            }
        }
        Ok(())
    }

    /// The digest of what was written to a content, up to this length.
    pub(super) fn read_digest(&self, content: u64, length: u64) -> Result<ContentDigest, ReceiveError> {
        let (mut hasher, mut offset) = (blake3::Hasher::new(), 0);
        let mut buffer = vec![0; length.min(READ_BYTES) as usize];
        let read = self.reader(content);
        while offset < length {
            let step = (length - offset).min(READ_BYTES);
            read(&mut buffer[..step as usize], offset).at("read", &self.staging.content_path(content))?;
            hasher.update(&buffer[..step as usize]);
            offset += step;
        }
        Ok(ContentDigest(*hasher.finalize().as_bytes()))
    }

    /// Reads what was written to a content.
    fn reader(&self, content: u64) -> impl Fn(&mut [u8], u64) -> io::Result<()> {
        move |buffer, offset| {
            let (folder, name) =
                self.staging.locate(self.staging.session(), content).map_err(io::Error::other)?;
            match uncached::read_full_at(&folder.open_file(&name)?, buffer, offset)? {
                got if got == buffer.len() => Ok(()),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Counts bytes into the digest of their content. Of a piece that is alone the digest is known.
    fn hash(
        &self,
        target: &Target,
        offset: u64,
        bytes: &Bytes,
        memory_bytes: usize,
    ) -> Result<(), ReceiveError> {
        let whole = self.staging.whole();
        let noted = if target.alone {
            let noted = whole.note(target.content, target.bytes as u64, target.digest);
            whole.promises().hold(target.content, target.bytes as u64, target.digest);
            noted
        } else {
            whole.wrote(target.content, offset, (bytes, memory_bytes), &self.reader(target.content))
        };
        Ok(noted.at("write", self.staging.path())?)
    }

    /// Writes verified pieces, whose bytes stand one after the other in `bytes`, and remembers where they are.
    pub(super) fn write(
        &self,
        targets: &[Target],
        (bytes, memory_bytes): (&Bytes, usize),
    ) -> Result<(), ReceiveError> {
        self.allowance.claim(PLACE_HELD_BYTES.saturating_mul(targets.len() as u64))?;
        let mut writer = ContentWriter::new(self);
        let mut at = 0;
        for run in targets.chunk_by(|left, right| {
            left.content == right.content && left.offset + left.bytes as u64 == right.offset
        }) {
            let length: usize = run.iter().map(|target| target.bytes).sum();
            let of_run = bytes.slice(at..at + length);
            writer.write(run[0].content, run[0].offset, &of_run)?;
            self.hash(&run[0], run[0].offset, &of_run, memory_bytes)?;
            at += length;
        }
        let places: Vec<_> = targets
            .iter()
            .map(|target| {
                let key = self.staging.key(target.content);
                (target.digest, Place { key, offset: target.offset, bytes: target.bytes as u32 })
            })
            .collect();
        Ok(self.places.insert(&places)?)
    }
}

/// How many items at the start of `items` are one run of what a content has kept.
fn kept_run(items: &[Item], first: &Target) -> usize {
    let mut next = first.offset;
    let follows = |item: &&Item| match item {
        Item::Kept(target) if target.content == first.content && target.offset == next => {
            next += target.bytes as u64;
            true
        }
        _ => false,
    };
    items.iter().take_while(follows).count()
}

/// The pieces at the start of `items` that stand one after the other in the base's file as well.
fn reused_run(items: &[Item], first: &Target, base: &BaseFile, position: usize) -> Vec<Target> {
    let mut run: Vec<Target> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let Item::Reused(target, other, at) = item else { break };
        let shift = target.offset.wrapping_sub(first.offset);
        let follows = std::ptr::eq(std::sync::Arc::as_ptr(other), base)
            && target.content == first.content
            && *at == position + index
            && base.pieces[*at].0.wrapping_sub(base.pieces[position].0) == shift;
        if !follows {
            break;
        }
        run.push(*target);
    }
    run
}

/// Writes into contents, and keeps the last one open for the next piece.
struct ContentWriter<'a> {
    receiver: &'a Receiver,
    open: Option<(u64, File)>,
}

impl<'a> ContentWriter<'a> {
    fn new(receiver: &'a Receiver) -> Self {
        Self { receiver, open: None }
    }

    fn file(&mut self, content: u64) -> Result<&File, ReceiveError> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != content) {
            let Receiver { allowance, staging, .. } = self.receiver;
            let file = staging.open_or_create_content(content, || {
                allowance.claim(FILE_BYTES)?;
                allowance.claim_entries(1)
            })?;
            // Numbers far apart take a folder each.
            let shards = staging.take_new_shards();
            if shards > 0 {
                allowance.claim(shards.saturating_mul(FOLDER_BYTES))?;
                allowance.claim_entries(shards)?;
            }
            self.open = Some((content, file));
        }
        Ok(&self.open.as_ref().expect("it was opened above").1)
    }

    fn write(&mut self, content: u64, offset: u64, bytes: &[u8]) -> Result<(), ReceiveError> {
        let receiver = self.receiver;
        let path = receiver.staging.content_path(content);
        // What a copy has already was claimed with it.
        let end = offset + bytes.len() as u64;
        receiver.allowance.claim(end.saturating_sub(receiver.copied_bytes(content).max(offset)))?;
        let file = self.file(content)?;
        fault::at(Point::StoreWrite).at("write", &path)?;
        let write = || {
            if bytes.len() >= UNCACHED_BYTES {
                let is_there = file.metadata()?.len() >= end;
                let _turn = (!is_there).then(|| receiver.turns.of(content));
                uncached::write_blocks_at(file, bytes, offset)
            } else {
                std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
            }
        };
        let before = receiver.allowance.made_room();
        let mut written = write();
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
            && receiver.allowance.make_room(before)?
        {
            written = write();
        }
        Ok(written.at("write", &path)?)
    }

    /// Writes `bytes`, which stand in a file of the base too: the file system shares them where it can.
    fn write_shared(
        &mut self,
        content: u64,
        (base, from): (&File, u64),
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), ReceiveError> {
        let head = offset.next_multiple_of(BLOCK_BYTES) - offset;
        let end = offset + bytes.len() as u64;
        let shared = (end / BLOCK_BYTES * BLOCK_BYTES).saturating_sub(offset + head);
        let aligned = offset % BLOCK_BYTES == from % BLOCK_BYTES;
        if !aligned || shared < SHARED_BYTES || !self.receiver.staging.shares_blocks() {
            return self.write(content, offset, bytes);
        }
        let file = self.file(content)?;
        let (mut read, mut write) = (from + head, offset + head);
        let copied =
            rustix::fs::copy_file_range(base, Some(&mut read), file, Some(&mut write), shared as usize);
        let copied = copied.unwrap_or(0) as u64;
        // What was not shared, at both ends and after a short copy, is written.
        let (head, tail) = (head as usize, (head + copied) as usize);
        self.write(content, offset, &bytes[..head])?;
        self.write(content, offset + tail as u64, &bytes[tail..])
    }
}
