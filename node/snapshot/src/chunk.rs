//! A chunk: up to 1 MiB of packed 4 KiB pages, compressed with zstd, named by the BLAKE3 hash of its *stored*
//! (compressed) bytes. So a chunk is checked before the decompressor sees a byte of it, and a node can check what it
//! serves without unpacking it. The price: the same pages packed by another version of zstd get another name.

use fabric_types::Digest;

use crate::error::StoreError;

/// A page: the unit in which memory and disk are compared.
pub const PAGE_BYTES: u64 = 4096;
/// The same, as a length in memory.
pub(crate) const PAGE: usize = 4096;
/// Most pages of a chunk: 1 MiB is large enough to compress and to move well, and small enough to be held several
/// times over in memory.
pub const CHUNK_PAGES_MAX: u32 = 256;
/// Most bytes of a chunk before compression.
pub(crate) const CHUNK_RAW_BYTES_MAX: usize = CHUNK_PAGES_MAX as usize * PAGE;
/// Most bytes of a chunk as stored: zstd adds at most 1/256 and some bytes to what it can't compress.
pub const CHUNK_STORED_BYTES_MAX: usize = CHUNK_RAW_BYTES_MAX + 16 * 1024;
/// zstd's level: 1 is about as fast as the disk, and level 3 saves only some 5% more of guest memory.
const ZSTD_LEVEL: i32 = 1;

/// A page of zeros.
pub(crate) static ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// The name of these bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(*blake3::hash(bytes).as_bytes())
}

/// Compresses chunks, one after another.
pub(crate) struct Sealer {
    compressor: zstd::bulk::Compressor<'static>,
}

impl Sealer {
    pub(crate) fn new() -> Result<Self, StoreError> {
        let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(StoreError::Compress)?;
        Ok(Self { compressor })
    }

    /// The stored bytes of these pages, and their name.
    pub(crate) fn seal(&mut self, raw: &[u8]) -> Result<(Digest, Vec<u8>), StoreError> {
        let stored = self.compressor.compress(raw).map_err(StoreError::Compress)?;
        Ok((digest_of(&stored), stored))
    }
}

/// Decompresses chunks whose hash has been checked, one after another, each into the same room.
pub(crate) struct Opener {
    decompressor: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
}

impl Opener {
    pub(crate) fn new() -> Result<Self, StoreError> {
        let decompressor = zstd::bulk::Decompressor::new().map_err(StoreError::Compress)?;
        Ok(Self { decompressor, raw: Vec::with_capacity(CHUNK_RAW_BYTES_MAX) })
    }

    /// The chunk's pages. Never more than 1 MiB is unpacked, whatever the chunk says of itself.
    pub(crate) fn open(&mut self, digest: Digest, stored: &[u8], pages: u32) -> Result<&[u8], StoreError> {
        let fault = |cause: String| StoreError::Content { digest, pages, cause };
        self.raw.clear();
        self.decompressor.decompress_to_buffer(stored, &mut self.raw).map_err(|source| fault(source.to_string()))?;
        if self.raw.len() != pages as usize * PAGE {
            return Err(fault(format!("it holds {} bytes", self.raw.len())));
        }
        Ok(&self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_chunk_opens_to_its_pages_and_to_no_other_number_of_them() {
        let raw: Vec<u8> = (0..3 * PAGE).map(|at| (at / 7) as u8).collect();
        let (digest, stored) = Sealer::new().expect("zstd").seal(&raw).expect("seals");
        assert_eq!(digest, digest_of(&stored));
        let mut opener = Opener::new().expect("zstd");
        assert_eq!(opener.open(digest, &stored, 3).expect("opens"), &raw[..]);
        for pages in [0, 2, 4] {
            assert!(matches!(opener.open(digest, &stored, pages), Err(StoreError::Content { .. })));
        }
        assert!(opener.open(digest, b"no zstd at all", 1).is_err());
        assert_eq!(opener.open(digest, &stored, 3).expect("opens after faults"), &raw[..]);
    }

    #[test]
    fn a_bomb_is_not_unpacked_past_a_chunk() {
        let bomb = zstd::bulk::compress(&vec![0; 64 * CHUNK_RAW_BYTES_MAX], 19).expect("compresses");
        assert!(bomb.len() < CHUNK_STORED_BYTES_MAX);
        let mut opener = Opener::new().expect("zstd");
        assert!(opener.open(digest_of(&bomb), &bomb, CHUNK_PAGES_MAX).is_err());
        assert!(opener.raw.capacity() <= 2 * CHUNK_RAW_BYTES_MAX);
    }

    #[test]
    fn what_can_not_be_compressed_still_fits() {
        let mut seed = blake3::Hasher::new();
        seed.update(b"noise");
        let mut noise = vec![0; CHUNK_RAW_BYTES_MAX];
        seed.finalize_xof().fill(&mut noise);
        let (_, stored) = Sealer::new().expect("zstd").seal(&noise).expect("seals");
        assert!(stored.len() <= CHUNK_STORED_BYTES_MAX, "{}", stored.len());
    }
}
