//! Compression of packs, with contexts and buffers that are used again: to make them anew for every pack costs as much as a
//! third of the compression.

use std::{mem, sync::Mutex, sync::PoisonError};

use zstd::{
    bulk::Compressor,
    zstd_safe::{CParameter, Strategy, compress_bound},
};

/// What does not get smaller than this share is sent as it is.
const WORTH_PERCENT: usize = 97;
/// Level 3 with tables that stay in a core's nearest caches (64 and 32 KiB instead of 512 and 256): less processor time, and
/// packs of a few MiB do not get larger by it (measured: docs/adr/0008-chunks-and-compression.md).
const THOROUGH: [CParameter; 5] = [
    CParameter::WindowLog(20),
    CParameter::HashLog(14),
    CParameter::ChainLog(13),
    CParameter::MinMatch(5),
    CParameter::Strategy(Strategy::ZSTD_dfast),
];
/// Level 1 with shorter matches: a quarter less processor time again, for packs that are larger by a twentieth, and hardly by anything where
/// a database wrote them.
const LIGHT: [CParameter; 4] = [
    CParameter::WindowLog(20),
    CParameter::HashLog(13),
    CParameter::MinMatch(5),
    CParameter::Strategy(Strategy::ZSTD_fast),
];

/// How a pack is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// For much that is sent: the wire counts.
    Thorough,
    /// For little that is sent: the live host's processor counts.
    Light,
    /// A level of zstd, as it is.
    Level(i32),
}

/// As many benches as packs were ever made side by side.
#[derive(Default)]
pub(super) struct Benches(Mutex<Vec<Bench>>);

impl Benches {
    /// Does `work` on a bench that nobody else uses.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Bench) -> T) -> T {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bench = free().pop().unwrap_or_default();
        let done = work(&mut bench);
        free().push(bench);
        done
    }
}

/// The content of a pack, compressed when that made it smaller.
pub(super) struct Packed {
    /// Bytes before compression.
    pub(super) raw_bytes: u64,
    /// `data` is one zstd frame.
    pub(super) compressed: bool,
    pub(super) data: Vec<u8>,
}

/// What is needed to make one pack.
#[derive(Default)]
pub(super) struct Bench {
    context: Option<(Method, Compressor<'static>)>,
    content: Vec<u8>,
    frame: Vec<u8>,
}

impl Bench {
    /// Puts chunks together and compresses them; with no method it only puts them together.
    pub(super) fn pack<'a>(
        &mut self,
        chunks: impl Iterator<Item = &'a [u8]>,
        method: Option<Method>,
    ) -> Packed {
        self.content.clear();
        chunks.for_each(|chunk| self.content.extend_from_slice(chunk));
        let raw_bytes = self.content.len() as u64;
        let compressed = method.is_some_and(|method| self.compress(method).is_some())
            && self.frame.len() * 100 < self.content.len() * WORTH_PERCENT;
        // A frame is a fraction of its buffer, which stays here.
        let data = if compressed { self.frame.as_slice().into() } else { mem::take(&mut self.content) };
        Packed { raw_bytes, compressed, data }
    }

    fn compress(&mut self, method: Method) -> Option<usize> {
        if self.context.as_ref().is_none_or(|(known, _)| *known != method) {
            self.context = Some((method, compressor(method)?));
        }
        let (_, compressor) = self.context.as_mut()?;
        self.frame.clear();
        self.frame.reserve(compress_bound(self.content.len()));
        compressor.compress_to_buffer(&self.content, &mut self.frame).ok()
    }
}

/// `None` when zstd refuses the method or has no memory: then nothing is compressed.
fn compressor(method: Method) -> Option<Compressor<'static>> {
    let (level, parameters): (_, &[CParameter]) = match method {
        Method::Thorough => (3, &THOROUGH),
        Method::Light => (1, &LIGHT),
        Method::Level(level) => (level, &[]),
    };
    let mut compressor = Compressor::new(level).ok()?;
    parameters.iter().try_for_each(|parameter| compressor.set_parameter(*parameter)).ok()?;
    Some(compressor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_that_is_used_again_packs_the_same() {
        let text: Vec<u8> =
            (0..20_000_u32).flat_map(|number| (number * 7919).to_string().into_bytes()).collect();
        let benches = Benches::default();
        let pack = |method| benches.with(|bench| bench.pack(text.chunks(1000), method));
        let (thorough, light) = (Some(Method::Thorough), Some(Method::Light));
        for method in
            [thorough, light, Some(Method::Level(9)), None, light, thorough, Some(Method::Level(-1))]
        {
            let (first, second) = (pack(method), pack(method));
            assert_eq!(first.data, second.data);
            assert_eq!((first.raw_bytes, first.compressed), (text.len() as u64, method.is_some()));
            let content = match first.compressed {
                true => zstd::bulk::decompress(&first.data, text.len()).expect("a frame"),
                false => first.data,
            };
            assert!(content == text);
        }
        assert_eq!(benches.0.lock().expect("no panic").len(), 1);
    }
}
