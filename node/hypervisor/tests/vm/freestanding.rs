//! A guest of a few dozen bytes, for hosts whose KVM creates machines and runs no stock kernel: it says a line on the
//! first serial port and then does one thing. It is an ELF file with a PVH entry (docs/misc/pvh.pandoc of Xen), in
//! 32-bit protected mode.

use std::fs;
use std::path::Path;

use node_hypervisor::ImagePaths;

/// Where it is loaded and entered: the start of high memory.
const BASE: u32 = 0x10_0000;
/// What it says before anything else: the two lines by which the probe knows a kernel that boots.
pub(crate) const SAID: &str = "Linux version 0 (freestanding)\nRun /init as init process\n";
/// What it says again and again while its processor runs, if it is one that ticks.
pub(crate) const TICK: char = '.';

/// Pages that a counting guest writes, a mebibyte apart from 16 MiB on, each at its first word.
const PAGES: u32 = 64;
/// What such a guest's page `n` holds at first: `n` times this.
const FILL: u32 = 0x9e37_79b1;

/// What it does after its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Counts and says [`TICK`] at each 2^17th step, forever: each 0.1 ms on a processor, each 0.2 s where every step
    /// is emulated.
    Tick,
    /// Powers the machine off (Cloud Hypervisor's ACPI shutdown port).
    PowerOff,
    /// Resets the machine (keyboard controller), as Linux does after a panic.
    Reset,
    /// Writes nothing of use into its descriptor table and faults three times.
    TripleFault,
    /// Counts in a register and in memory, writes each count into the next of [`PAGES`] pages, and says a line with
    /// register, memory and a sum over all pages, every 2^25 cycles of the processor's clock (10 to 30 ms).
    Count,
}

impl Then {
    fn code(self) -> &'static [u8] {
        match self {
            // 1: mov ecx, 0x20000; 2: dec ecx; jnz 2; mov dx, 0x3f8; mov al, '.'; out dx, al; jmp 1
            Self::Tick => b"\xb9\x00\x00\x02\x00\x49\x75\xfd\x66\xba\xf8\x03\xb0\x2e\xee\xeb\xef",
            // mov dx, 0x600; mov al, 0x34; out dx, al; hlt
            Self::PowerOff => b"\x66\xba\x00\x06\xb0\x34\xee\xf4",
            // mov al, 0xfe; out 0x64, al; hlt
            Self::Reset => b"\xb0\xfe\xe6\x64\xf4",
            // push 0; push 0; lidt [esp]; int3
            Self::TripleFault => b"\x6a\x00\x6a\x00\x0f\x01\x1c\x24\xcc",
            Self::Count => COUNT,
        }
    }
}

/// [`Then::Count`], as an assembler lists it.
const COUNT: &[u8] = &[
    // mov edi, 0x1000000; xor ecx, ecx
    0xbf, 0x00, 0x00, 0x00, 0x01, 0x31, 0xc9,
    // fill: imul eax, ecx, FILL; mov [edi], eax; add edi, 0x100000; inc ecx; cmp ecx, 64; jne fill
    0x69, 0xc1, 0xb1, 0x79, 0x37, 0x9e, 0x89, 0x07, 0x81, 0xc7, 0x00, 0x00, 0x10, 0x00, 0x41, 0x83, 0xf9, 0x40, 0x75,
    0xec, // xor ebx, ebx; mov [0x200000], ebx
    0x31, 0xdb, 0x89, 0x1d, 0x00, 0x00, 0x20, 0x00,
    // step: inc ebx; inc dword [0x200000]; mov eax, ebx; and eax, 63; shl eax, 20; mov [0x1000000 + eax], ebx
    0x43, 0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0x89, 0xd8, 0x83, 0xe0, 0x3f, 0xc1, 0xe0, 0x14, 0x89, 0x98, 0x00, 0x00,
    0x00, 0x01, // xor ebp, ebp; xor eax, eax
    0x31, 0xed, 0x31, 0xc0,
    // sum: rol ebp, 1; add ebp, [0x1000000 + eax]; add eax, 0x100000; cmp eax, 0x4000000; jne sum
    0xd1, 0xc5, 0x03, 0xa8, 0x00, 0x00, 0x00, 0x01, 0x05, 0x00, 0x00, 0x10, 0x00, 0x3d, 0x00, 0x00, 0x00, 0x04, 0x75,
    0xec,
    // mov esi, ebx; call word; mov esi, [0x200000]; call word; mov esi, ebp; call word; mov al, 10; call put
    0x89, 0xde, 0xe8, 0x2a, 0x00, 0x00, 0x00, 0x8b, 0x35, 0x00, 0x00, 0x20, 0x00, 0xe8, 0x1f, 0x00, 0x00, 0x00, 0x89,
    0xee, 0xe8, 0x18, 0x00, 0x00, 0x00, 0xb0, 0x0a, 0xe8, 0x35, 0x00, 0x00, 0x00,
    // rdtsc; mov edi, eax; wait: rdtsc; sub eax, edi; cmp eax, 0x2000000; jb wait; jmp step
    0x0f, 0x31, 0x89, 0xc7, 0x0f, 0x31, 0x29, 0xf8, 0x3d, 0x00, 0x00, 0x00, 0x02, 0x72, 0xf5, 0xeb, 0xa2,
    // word: mov al, ' '; call put; mov ecx, 8
    0xb0, 0x20, 0xe8, 0x1d, 0x00, 0x00, 0x00, 0xb9, 0x08, 0x00, 0x00, 0x00,
    // digit: rol esi, 4; mov eax, esi; and al, 15; add al, '0'; cmp al, '9' + 1; jb plain; add al, 39
    0xc1, 0xc6, 0x04, 0x89, 0xf0, 0x24, 0x0f, 0x04, 0x30, 0x3c, 0x3a, 0x72, 0x02, 0x04, 0x27,
    // plain: call put; dec ecx; jnz digit; ret
    0xe8, 0x04, 0x00, 0x00, 0x00, 0x49, 0x75, 0xe9, 0xc3,
    // put: mov ah, al; mov dx, 0x3fd; ready: in al, dx; test al, 0x20; jz ready
    0x88, 0xc4, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb,
    // mov al, ah; mov dx, 0x3f8; out dx, al; ret
    0x88, 0xe0, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xc3,
];

/// The counts in a counting guest's words, each checked: register, memory and the pages' sum belong together.
pub(crate) fn counts(said: &str) -> Vec<u32> {
    // The first line of a clone may have been begun by its template, and the last may not be whole yet.
    let whole = said.split_inclusive('\n').filter(|line| line.starts_with(' ') && line.len() == 28);
    let counts = whole.map(|line| {
        let words: Vec<u32> =
            line.split_whitespace().map(|word| u32::from_str_radix(word, 16).expect("a number")).collect();
        let [register, memory, sum] = words[..] else { panic!("no three numbers in '{line}'") };
        assert_eq!(register, memory, "the processor and its memory are of different times");
        assert_eq!(sum, sum_at(register), "after {register} steps its memory is another's");
        register
    });
    let counts: Vec<u32> = counts.collect();
    assert!(counts.windows(2).all(|pair| pair[1] == pair[0] + 1), "it doesn't count by ones: {counts:?}");
    counts
}

/// The sum over all pages after so many steps.
fn sum_at(steps: u32) -> u32 {
    (0..PAGES).fold(0, |sum: u32, page| {
        // The newest step that wrote this page.
        let newest = steps.checked_sub((steps.wrapping_sub(page)) % PAGES).filter(|&step| step > 0);
        sum.rotate_left(1).wrapping_add(newest.unwrap_or(page.wrapping_mul(FILL)))
    })
}

/// Writes kernel, initramfs and root of such a guest; what isn't the kernel is only there to be named.
pub(crate) fn image(folder: &Path, then: Then) -> ImagePaths {
    fs::create_dir_all(folder).expect("made");
    let image = ImagePaths {
        kernel: folder.join("kernel"),
        initramfs: folder.join("initramfs"),
        root: folder.join("root.erofs"),
    };
    fs::write(&image.kernel, kernel(then)).expect("written");
    fs::write(&image.initramfs, [0; 4096]).expect("written");
    fs::write(&image.root, vec![0; 1 << 20]).expect("written");
    image
}

/// The ELF file: header, two program headers, the note with the entry, and the code with its text.
fn kernel(then: Then) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE: u64 = 20;
    let code_at = HEADERS + NOTE;
    let body = body(then);
    let length = body.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for wide in [u64::from(BASE), 64, 0] {
        file.extend(wide.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // (type, flags, offset, address, length, alignment): what is loaded, and the note.
    for (kind, flags, at, address, length, align) in
        [(1_u32, 7_u32, code_at, u64::from(BASE), length, 1_u64), (4, 4, HEADERS, 0, NOTE, 4)]
    {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for wide in [at, address, address, length, length, align] {
            file.extend(wide.to_le_bytes());
        }
    }
    // XEN_ELFNOTE_PHYS32_ENTRY, 18.
    for word in [4, 4, 18] {
        file.extend(u32::to_le_bytes(word));
    }
    file.extend(b"Xen\0");
    file.extend(BASE.to_le_bytes());
    file.extend(body);
    file
}

fn body(then: Then) -> Vec<u8> {
    // mov esp, stack; mov esi, text; 1: lodsb; test al, al; jz 2; mov dx, 0x3f8; out dx, al; jmp 1; 2:
    const STACK: u32 = BASE + 0x1_0000;
    const SAY: &[u8] = b"\xac\x84\xc0\x74\x07\x66\xba\xf8\x03\xee\xeb\xf4";
    let then = then.code();
    let text_at = u32::try_from(10 + SAY.len() + then.len()).expect("short") + BASE;
    let mut body = vec![0xbc];
    body.extend(STACK.to_le_bytes());
    body.push(0xbe);
    body.extend(text_at.to_le_bytes());
    body.extend(SAY);
    body.extend(then);
    body.extend(SAID.as_bytes());
    body.push(0);
    body
}
