//! The bytes of a manifest, schemas 1 and 2: the second knows one kind more. All numbers after the header are LEB128.
//!
//! ```text
//! "ATOLLMAN" | schema (u32, little endian) | header length (u32, little endian) | header (JSON)
//! chunks     count, then each: digest (32 bytes), pages, stored bytes
//! files      count, then each: name length, name, length, base (0 zeros, 1 parent), extents
//! extents    count, then each: pages since the end of the last, pages * 2 + filled, and if filled: chunk, page in chunk
//! ```
//! A reader makes room only for what the bytes that are left can hold.

use std::collections::BTreeMap;

use fabric_types::Digest;

use crate::manifest::{
    Base, CHUNKS_MAX, ChunkRef, Content, EXTENTS_MAX, Extent, FILES_MAX, FileMap, FileName, HEADER_BYTES_MAX, Header,
    MANIFEST_BYTES_MAX, MANIFEST_SCHEMA, Manifest, ManifestError,
};

const MAGIC: &[u8; 8] = b"ATOLLMAN";
/// Fewest bytes of a chunk and of an extent: what is left bounds how many of them there can be.
const CHUNK_BYTES_MIN: usize = 34;
const EXTENT_BYTES_MIN: usize = 2;
const BASE_ZEROS: u8 = 0;
const BASE_PARENT: u8 = 1;

pub(crate) fn encode(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    let header = serde_json::to_vec(manifest.header()).map_err(ManifestError::Header)?;
    let too_many =
        |what, found: usize, limit: usize| ManifestError::TooMany { what, found: found as u64, limit: limit as u64 };
    if header.len() > HEADER_BYTES_MAX {
        return Err(too_many("bytes of header", header.len(), HEADER_BYTES_MAX));
    }
    let header_bytes =
        u32::try_from(header.len()).map_err(|_| too_many("bytes of header", header.len(), HEADER_BYTES_MAX))?;
    let mut out = Vec::with_capacity(header.len() + manifest.chunks().len() * 40 + 1024);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&manifest.header().kind.schema().to_le_bytes());
    out.extend_from_slice(&header_bytes.to_le_bytes());
    out.extend_from_slice(&header);
    put(&mut out, manifest.chunks().len() as u64);
    for chunk in manifest.chunks() {
        out.extend_from_slice(chunk.digest.as_bytes());
        put(&mut out, chunk.pages.into());
        put(&mut out, chunk.stored_bytes.into());
    }
    put(&mut out, manifest.files().len() as u64);
    for (name, file) in manifest.files() {
        put(&mut out, name.as_str().len() as u64);
        out.extend_from_slice(name.as_str().as_bytes());
        encode_file(&mut out, file);
    }
    if out.len() > MANIFEST_BYTES_MAX {
        return Err(too_many("bytes", out.len(), MANIFEST_BYTES_MAX));
    }
    Ok(out)
}

fn encode_file(out: &mut Vec<u8>, file: &FileMap) {
    put(out, file.length);
    out.push(match file.base {
        Base::Zeros => BASE_ZEROS,
        Base::Parent => BASE_PARENT,
    });
    put(out, file.extents.len() as u64);
    let mut end = 0;
    for extent in &file.extents {
        put(out, extent.page - end);
        end = extent.end_page();
        let pages = u64::from(extent.pages) << 1;
        match extent.content {
            Content::Zeros => put(out, pages),
            Content::Chunk { chunk, at_page } => {
                put(out, pages | 1);
                put(out, chunk.into());
                put(out, at_page.into());
            }
        }
    }
}

/// Reads the bytes; whether the parts hold together is not yet known.
pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    if bytes.len() > MANIFEST_BYTES_MAX {
        let (found, limit) = (bytes.len() as u64, MANIFEST_BYTES_MAX as u64);
        return Err(ManifestError::TooMany { what: "bytes", found, limit });
    }
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(MAGIC.len()).map_err(|_| ManifestError::Magic)? != MAGIC {
        return Err(ManifestError::Magic);
    }
    let schema = reader.fixed_u32()?;
    if schema == 0 || schema > MANIFEST_SCHEMA {
        return Err(ManifestError::Schema { found: schema, known: MANIFEST_SCHEMA });
    }
    let header_bytes = reader.fixed_u32()? as usize;
    if header_bytes > HEADER_BYTES_MAX {
        let (found, limit) = (header_bytes as u64, HEADER_BYTES_MAX as u64);
        return Err(ManifestError::TooMany { what: "bytes of header", found, limit });
    }
    let header: Header = serde_json::from_slice(reader.take(header_bytes)?).map_err(ManifestError::Header)?;
    // One manifest has one name: the same parts are never written in two ways.
    if header.kind.schema() != schema {
        return Err(ManifestError::Contradiction("its schema is not the one that its kind is written in"));
    }
    let count = reader.count("chunks", CHUNKS_MAX, CHUNK_BYTES_MIN)?;
    let mut chunks = Vec::with_capacity(count);
    for _ in 0..count {
        let digest = Digest::from_bytes(*reader.array()?);
        chunks.push(ChunkRef { digest, pages: reader.small()?, stored_bytes: reader.small()? });
    }
    let mut files = BTreeMap::new();
    let mut extents_left = EXTENTS_MAX;
    for _ in 0..reader.count("files", FILES_MAX, 1)? {
        let name = reader.name()?;
        let file = reader.file(extents_left)?;
        extents_left -= file.extents.len();
        if files.insert(name, file).is_some() {
            return Err(ManifestError::Contradiction("two files have the same name"));
        }
    }
    if reader.at != bytes.len() {
        return Err(reader.malformed("the end"));
    }
    Ok(Manifest::unchecked(header, chunks, files))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn malformed(&self, what: &'static str) -> ManifestError {
        ManifestError::Malformed { at: self.at, what }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ManifestError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed("more bytes"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], ManifestError> {
        let at = self.at;
        self.take(N)?.first_chunk().ok_or(ManifestError::Malformed { at, what: "more bytes" })
    }

    fn fixed_u32(&mut self) -> Result<u32, ManifestError> {
        Ok(u32::from_le_bytes(*self.array()?))
    }

    fn number(&mut self) -> Result<u64, ManifestError> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = *self.array()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.malformed("a number of 64 bits"))
    }

    fn small(&mut self) -> Result<u32, ManifestError> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| self.malformed("a number of 32 bits"))
    }

    /// How many items follow: refused if over the limit, or more than the bytes that are left can hold.
    fn count(&mut self, what: &'static str, limit: usize, item_bytes_min: usize) -> Result<usize, ManifestError> {
        let found = self.number()?;
        if found > limit as u64 {
            return Err(ManifestError::TooMany { what, found, limit: limit as u64 });
        }
        let count = usize::try_from(found).map_err(|_| self.malformed("a count"))?;
        if count > (self.bytes.len() - self.at) / item_bytes_min {
            return Err(self.malformed("as many items as announced"));
        }
        Ok(count)
    }

    fn name(&mut self) -> Result<FileName, ManifestError> {
        let length = self.number()?;
        let length = usize::try_from(length).map_err(|_| self.malformed("a name's length"))?;
        let name = self.take(length)?;
        std::str::from_utf8(name).map_err(|_| self.malformed("a name"))?.parse()
    }

    fn file(&mut self, extents_max: usize) -> Result<FileMap, ManifestError> {
        let length = self.number()?;
        let base = match *self.array()? {
            [BASE_ZEROS] => Base::Zeros,
            [BASE_PARENT] => Base::Parent,
            _ => return Err(self.malformed("a base")),
        };
        let count = self.count("extents", extents_max, EXTENT_BYTES_MIN)?;
        let mut extents = Vec::with_capacity(count);
        let mut end = 0_u64;
        for _ in 0..count {
            let gap = self.number()?;
            let page = end.checked_add(gap).ok_or_else(|| self.malformed("a page within 64 bits"))?;
            let tagged = self.number()?;
            let pages = u32::try_from(tagged >> 1).map_err(|_| self.malformed("a number of 32 bits"))?;
            end = page.checked_add(pages.into()).ok_or_else(|| self.malformed("a page within 64 bits"))?;
            let content = if tagged & 1 == 0 {
                Content::Zeros
            } else {
                Content::Chunk { chunk: self.small()?, at_page: self.small()? }
            };
            extents.push(Extent { page, pages, content });
        }
        Ok(FileMap { length, base, extents })
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}
