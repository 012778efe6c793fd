//! Packs pages that say something into frames, which become chunks, and records where they went. No I/O.
//!
//! A frame ends when it is full, when its file ends, or, from 64 pages on, before a page whose *place* is a boundary:
//! about one in 64 is, spread evenly. So two snapshots of one sandbox whose changed pages lie mostly in the same
//! places cut their frames in the same places, and frames whose pages are unchanged get the same name.

use crate::chunk::{CHUNK_PAGES_MAX, CHUNK_RAW_BYTES_MAX, PAGE};
use crate::manifest::{Content, Extent};

/// Fewest pages of a frame that is not its file's last: 256 KiB, below which compression and calls per byte suffer.
const FRAME_PAGES_MIN: usize = 64;
/// One page in 2^6 is a boundary.
const BOUNDARY_BITS: u32 = 6;

/// Packed pages, to be compressed and named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The pages, one after the other.
    pub(crate) raw: Vec<u8>,
}

/// Packs files one after the other.
#[derive(Default)]
pub(crate) struct Packer {
    /// The index of the chunk that is being filled.
    chunk: u32,
    raw: Vec<u8>,
    extents: Vec<Extent>,
}

impl Packer {
    /// Adds a page; pages of a file come in ascending order. Returns the frame that it didn't fit into.
    pub(crate) fn data(&mut self, page: u64, bytes: &[u8]) -> Option<Frame> {
        debug_assert_eq!(bytes.len(), PAGE);
        let filled = self.raw.len() / PAGE;
        let full = filled >= CHUNK_PAGES_MAX as usize || (filled >= FRAME_PAGES_MIN && is_boundary(page));
        let frame = if full { self.cut() } else { None };
        if self.raw.capacity() == 0 {
            self.raw.reserve_exact(CHUNK_RAW_BYTES_MAX);
        }
        // A frame holds at most CHUNK_PAGES_MAX pages, so that this fits.
        let at_page = (self.raw.len() / PAGE) as u32;
        self.raw.extend_from_slice(bytes);
        self.extend(Extent { page, pages: 1, content: Content::Chunk { chunk: self.chunk, at_page } });
        frame
    }

    /// Records a page of zeros.
    pub(crate) fn zeros(&mut self, page: u64) {
        self.extend(Extent { page, pages: 1, content: Content::Zeros });
    }

    /// How many extents the file has so far.
    pub(crate) fn extents(&self) -> usize {
        self.extents.len()
    }

    /// Ends the file: its extents, and the frame that it leaves.
    pub(crate) fn end_file(&mut self) -> (Vec<Extent>, Option<Frame>) {
        let frame = self.cut();
        (std::mem::take(&mut self.extents), frame)
    }

    fn cut(&mut self) -> Option<Frame> {
        if self.raw.is_empty() {
            return None;
        }
        self.chunk += 1;
        Some(Frame { raw: std::mem::take(&mut self.raw) })
    }

    /// Appends an extent, or lengthens the last one where this goes on from it.
    fn extend(&mut self, extent: Extent) {
        if let Some(last) = self.extents.last_mut() {
            let goes_on = match (last.content, extent.content) {
                (Content::Zeros, Content::Zeros) => true,
                (Content::Chunk { chunk, at_page }, Content::Chunk { chunk: next, at_page: next_at }) => {
                    chunk == next && at_page + last.pages == next_at
                }
                (Content::Zeros, Content::Chunk { .. }) | (Content::Chunk { .. }, Content::Zeros) => false,
            };
            if goes_on && last.end_page() == extent.page && last.pages < u32::MAX {
                last.pages += 1;
                return;
            }
        }
        self.extents.push(extent);
    }
}

/// Whether a frame may end before this page. The multiplier is 2^64 divided by the golden ratio (Knuth, The Art of
/// Computer Programming, volume 3, section 6.4): its products spread evenly.
fn is_boundary(page: u64) -> bool {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BOUNDARY_BITS) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs one page at each place, filled with what `fill` says, and returns the frames.
    fn frames(pages: impl Iterator<Item = u64>, fill: impl Fn(u64) -> u8) -> Vec<Frame> {
        let mut packer = Packer::default();
        let mut frames: Vec<Frame> = pages.filter_map(|page| packer.data(page, &[fill(page); PAGE])).collect();
        frames.extend(packer.end_file().1);
        frames
    }

    #[test]
    fn frames_keep_their_limits() {
        let frames = frames(0..10_000, |page| page as u8);
        let pages: Vec<usize> = frames.iter().map(|frame| frame.raw.len() / PAGE).collect();
        assert_eq!(pages.iter().sum::<usize>(), 10_000);
        assert!(pages.iter().all(|pages| (1..=CHUNK_PAGES_MAX as usize).contains(pages)), "{pages:?}");
        assert!(pages[..pages.len() - 1].iter().all(|pages| *pages >= FRAME_PAGES_MIN), "{pages:?}");
        assert!(pages.len() > 10_000 / 256, "{pages:?}");
    }

    #[test]
    fn a_page_more_changes_few_frames() {
        let places = |page: &u64| page % 3 != 1;
        let before = frames((0..9000).filter(places), |page| page as u8);
        let after = frames((0..9000).filter(|page| places(page) || *page == 301), |page| page as u8);
        let shared = after.iter().filter(|frame| before.contains(frame)).count();
        assert!(after.len() - shared <= 4, "{} of {} frames are new", after.len() - shared, after.len());
    }

    #[test]
    fn runs_become_extents_and_zeros_stay_apart() {
        let mut packer = Packer::default();
        for page in [3, 4, 5, 9] {
            assert_eq!(packer.data(page, &[1; PAGE]), None);
        }
        packer.zeros(10);
        packer.zeros(11);
        assert_eq!(packer.data(12, &[2; PAGE]), None);
        assert_eq!(packer.extents(), 4);
        let (extents, frame) = packer.end_file();
        let chunk = |at_page| Content::Chunk { chunk: 0, at_page };
        assert_eq!(
            extents,
            vec![
                Extent { page: 3, pages: 3, content: chunk(0) },
                Extent { page: 9, pages: 1, content: chunk(3) },
                Extent { page: 10, pages: 2, content: Content::Zeros },
                Extent { page: 12, pages: 1, content: chunk(4) },
            ]
        );
        assert_eq!(frame.expect("a frame").raw.len(), 5 * PAGE);
        assert_eq!(packer.end_file(), (vec![], None));
    }
}
