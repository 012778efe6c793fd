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
        }
    }
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
