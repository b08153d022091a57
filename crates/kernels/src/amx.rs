//! Products by AMX, the matrix unit of Intel's servers since Sapphire Rapids: sixteen rows times sixteen outputs over 32 inputs
//! of bf16 in one instruction, or over a block of 32 bytes.
//!
//! Sixteen lines of packed pairs ([`crate::pack`]) are a tile as they lie, and so are sixteen rows of bf16: nothing is laid out
//! anew. A result adds up steps of 32 inputs in order, and within a step the even and the odd ones as two chains (Intel's manual,
//! TDPBF16PS; numbers below 2^−126 count as 0). How many rows and panels are worked on together changes no chain.
//!
//! Products of bytes are exact, and what follows them is the caller's: they lie as they do for AVX-512.
//!
//! Rust has the instructions in assembly only, so each kernel is one block of it.

use crate::lanes::LANES;
use crate::tile::Sums;

/// Rows of a tile at most.
pub(crate) const TILE_ROWS: usize = 16;
/// Inputs of a step: a row of a tile is 64 bytes. A step is summed up by itself, so where steps begin decides the last digits.
pub(crate) const STEP: usize = 32;
/// Panels that are worked on together: two by two tiles of sums are half of the eight there are.
pub(crate) const PANELS: usize = 2;
/// Rows that are worked on together.
pub(crate) const ROWS: usize = 2 * TILE_ROWS;

/// Two by two tiles of exact sums: upper rows with both panels, then the lower.
#[repr(C, align(64))]
pub(crate) struct Exact(pub(crate) [[[i32; LANES]; TILE_ROWS]; 4]);

impl Default for Exact {
    fn default() -> Self {
        Self([[[0; LANES]; TILE_ROWS]; 4])
    }
}

/// Bytes to multiply, a block of 32 or half of one: rows `row` bytes apart, and lines of four inputs of sixteen outputs.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) upper: *const i8,
    pub(crate) lower: *const i8,
    pub(crate) row: usize,
    pub(crate) first: *const i8,
    pub(crate) second: *const i8,
}

/// Shapes of tiles, until this is dropped.
#[must_use]
pub(crate) struct Shaped {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    _before: machine::Before,
}

/// Shapes for [`multiply_blocks`] of so many rows, at most [`ROWS`], and bytes, at most 64.
///
/// # Safety
/// [`is_available`].
pub(crate) unsafe fn shape_blocks(rows: usize, bytes: usize) -> Shaped {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe {
        let before = machine::Before::keep();
        // By two bytes, as of bf16.
        machine::Shapes::new(rows, bytes / 2).set();
        Shaped { _before: before }
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    {
        let _ = (rows, bytes);
        unreachable!("no machine of this architecture has it");
    }
}

/// All four products of a block.
///
/// # Safety
/// The shapes are set, and rows and lines there; what is not wanted may be what is, once more.
pub(crate) unsafe fn multiply_blocks(of: Blocks, into: &mut Exact) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe {
        machine::multiply_blocks(of, into);
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    {
        let _ = (of, into);
        unreachable!("no machine of this architecture has it");
    }
}

/// The left side: rows of bf16 as they lie, `row` numbers apart.
#[derive(Clone, Copy)]
pub(crate) struct Halves {
    pub(crate) at: *const u16,
    pub(crate) row: usize,
}

/// The right side: panels of lines, each two inputs of sixteen outputs; `panel` lines apart.
#[derive(Clone, Copy)]
pub(crate) struct PairLines {
    pub(crate) at: *const u32,
    pub(crate) panel: usize,
}

/// Whether the machine has tiles of bf16 and of bytes and the system lets this process use them; asked once, for all threads.
pub(crate) fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use std::sync::OnceLock;
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| machine::has_tiles() && machine::permitted())
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// rows × panels over `depth`, which is even.
///
/// # Safety
/// [`is_available`], and all three reach as far as rows, panels and depth say.
pub(crate) unsafe fn sweep(
    sizes: (usize, usize, usize),
    left: Halves,
    right: PairLines,
    sums: Sums,
) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe {
        machine::sweep(sizes, left, right, sums);
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    {
        let _ = (sizes, left, right, sums);
        unreachable!("no machine of this architecture has it");
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod machine {
    use std::arch::asm;

    use super::{Blocks, Exact, Halves, LANES, PANELS, PairLines, ROWS, STEP, Sums, TILE_ROWS};

    /// AMX-BF16, AMX-TILE and AMX-INT8 in CPUID leaf 7, register EDX (Intel's manual, volume 2, CPUID).
    const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;

    pub(super) fn has_tiles() -> bool {
        let leaves = std::arch::x86_64::__cpuid(0).eax;
        let found = std::arch::x86_64::__cpuid_count(7, 0).edx;
        leaves >= 7 && found & TILES == TILES
    }

    /// Linux keeps the tiles of processes that ask only (Documentation/arch/x86/xstate.rst); older ones know no such question.
    pub(super) fn permitted() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: the call takes two numbers and touches no memory of ours.
        let refused = unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            )
        };
        refused == 0
    }

    /// What LDTILECFG takes: how large each tile is.
    #[repr(C, align(64))]
    pub(super) struct Shapes {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Shapes {
        /// Sums are tiles 0 to 3 (two rows of two), the left side 4 and 5, panels 6 and 7.
        pub(super) fn new(rows: usize, step: usize) -> Self {
            let mut shapes = Self {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                row_bytes: [0; 16],
                rows: [0; 16],
            };
            let upper = rows.min(TILE_ROWS);
            // Without rows of its own it is not used, but no tile may be empty.
            let lower = (rows - upper).max(1);
            let of = [
                (upper, 4 * LANES),
                (upper, 4 * LANES),
                (lower, 4 * LANES),
                (lower, 4 * LANES),
                (upper, 2 * step),
                (lower, 2 * step),
                (step / 2, 4 * LANES),
                (step / 2, 4 * LANES),
            ];
            for (tile, (rows, bytes)) in of.into_iter().enumerate() {
                shapes.rows[tile] = rows as u8;
                shapes.row_bytes[tile] = bytes as u16;
            }
            shapes
        }

        /// Sets them; all tiles become zero.
        pub(super) unsafe fn set(&self) {
            let at = std::ptr::from_ref(self);
            unsafe {
                if self.palette == 0 {
                    asm!("tilerelease", options(nostack, preserves_flags));
                } else {
                    asm!("ldtilecfg [{}]", in(reg) at, options(nostack, preserves_flags));
                }
            }
        }
    }

    /// The shapes that this thread had: another library may have set its own, and count on them.
    pub(super) struct Before(Shapes);

    impl Before {
        pub(super) unsafe fn keep() -> Self {
            let mut shapes = Shapes::new(1, 2);
            unsafe {
                asm!("sttilecfg [{}]", in(reg) &raw mut shapes, options(nostack, preserves_flags));
            }
            Self(shapes)
        }
    }

    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: whoever kept them has tiles.
            unsafe { self.0.set() };
        }
    }

    pub(super) unsafe fn multiply_blocks(of: Blocks, into: &mut Exact) {
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm4, [{upper} + {row}]",
                "tileloadd tmm6, [{first} + {line}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{second} + {line}]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + {row}]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilestored [{into} + {line}], tmm0",
                "tilestored [{into} + {line} + 1024], tmm1",
                "tilestored [{into} + {line} + 2048], tmm2",
                "tilestored [{into} + {line} + 3072], tmm3",
                upper = in(reg) of.upper,
                lower = in(reg) of.lower,
                row = in(reg) of.row,
                first = in(reg) of.first,
                second = in(reg) of.second,
                line = in(reg) 64_usize,
                into = in(reg) std::ptr::from_mut(into),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }

    pub(super) unsafe fn sweep(
        (rows, panels, depth): (usize, usize, usize),
        left: Halves,
        right: PairLines,
        sums: Sums,
    ) {
        let whole = depth / STEP * STEP;
        unsafe {
            let _before = Before::keep();
            for (from, step, steps) in [(0, STEP, depth / STEP), (whole, depth - whole, 1)] {
                if step == 0 || steps == 0 {
                    continue;
                }
                let mut shaped = 0;
                for row in (0..rows).step_by(ROWS) {
                    let count = ROWS.min(rows - row);
                    if count != shaped {
                        Shapes::new(count, step).set();
                        shaped = count;
                    }
                    for panel in (0..panels).step_by(PANELS) {
                        let at = Place {
                            left: left.at.add(row * left.row + from),
                            left_row: left.row,
                            right: right.at.add((panel * right.panel + from / 2) * LANES),
                            panel: right.panel,
                            steps,
                            sums: sums.at.add(row * sums.row + panel * LANES),
                            sums_row: sums.row,
                            fresh: sums.fresh && from == 0,
                        };
                        match (count > TILE_ROWS, panels - panel > 1) {
                            (true, true) => at.two_by_two(),
                            (true, false) => at.two_by_one(),
                            (false, true) => at.one_by_two(),
                            (false, false) => at.one_by_one(),
                        }
                    }
                }
            }
        }
    }

    /// Where a kernel reads and writes; distances are in numbers, that of panels in lines.
    struct Place {
        left: *const u16,
        left_row: usize,
        right: *const u32,
        panel: usize,
        steps: usize,
        sums: *mut f32,
        sums_row: usize,
        fresh: bool,
    }

    /// `load` takes up the sums so far, `step` adds 32 inputs (or those that remain), `store` writes the sums.
    macro_rules! kernel {
        ($name:ident: load $($load:literal)*; step $($step:literal)*; store $($store:literal)*) => {
            unsafe fn $name(&self) {
                unsafe {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "test {fresh}, {fresh}",
                        "jnz 2f",
                        $($load,)*
                        "2:",
                        $($step,)*
                        "add {upper}, 64",
                        "add {lower}, 64",
                        "add {first}, 1024",
                        "add {second}, 1024",
                        "dec {steps}",
                        "jnz 2b",
                        $($store,)*
                        // An operand that one of the kernels does not need is an error unless it is named.
                        "# {below}",
                        fresh = in(reg) usize::from(self.fresh),
                        upper = inout(reg) self.left => _,
                        lower = inout(reg) self.left.wrapping_add(TILE_ROWS * self.left_row) => _,
                        left_row = in(reg) 2 * self.left_row,
                        first = inout(reg) self.right => _,
                        second = inout(reg) self.right.wrapping_add(self.panel * LANES) => _,
                        line = in(reg) 64_usize,
                        steps = inout(reg) self.steps => _,
                        sums = in(reg) self.sums,
                        below = in(reg) self.sums.wrapping_add(TILE_ROWS * self.sums_row),
                        sums_row = in(reg) 4 * self.sums_row,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        };
    }

    impl Place {
        kernel!(two_by_two:
            load
            "tileloadd tmm0, [{sums} + {sums_row}]"
            "tileloadd tmm1, [{sums} + {sums_row} + 64]"
            "tileloadd tmm2, [{below} + {sums_row}]"
            "tileloadd tmm3, [{below} + {sums_row} + 64]";
            step
            "tileloadd tmm4, [{upper} + {left_row}]"
            "tileloadd tmm6, [{first} + {line}]"
            "tdpbf16ps tmm0, tmm4, tmm6"
            "tileloadd tmm7, [{second} + {line}]"
            "tdpbf16ps tmm1, tmm4, tmm7"
            "tileloadd tmm5, [{lower} + {left_row}]"
            "tdpbf16ps tmm2, tmm5, tmm6"
            "tdpbf16ps tmm3, tmm5, tmm7";
            store
            "tilestored [{sums} + {sums_row}], tmm0"
            "tilestored [{sums} + {sums_row} + 64], tmm1"
            "tilestored [{below} + {sums_row}], tmm2"
            "tilestored [{below} + {sums_row} + 64], tmm3"
        );

        kernel!(two_by_one:
            load
            "tileloadd tmm0, [{sums} + {sums_row}]"
            "tileloadd tmm2, [{below} + {sums_row}]";
            step
            "tileloadd tmm4, [{upper} + {left_row}]"
            "tileloadd tmm6, [{first} + {line}]"
            "tdpbf16ps tmm0, tmm4, tmm6"
            "tileloadd tmm5, [{lower} + {left_row}]"
            "tdpbf16ps tmm2, tmm5, tmm6";
            store
            "tilestored [{sums} + {sums_row}], tmm0"
            "tilestored [{below} + {sums_row}], tmm2"
        );

        kernel!(one_by_two:
            load
            "tileloadd tmm0, [{sums} + {sums_row}]"
            "tileloadd tmm1, [{sums} + {sums_row} + 64]";
            step
            "tileloadd tmm4, [{upper} + {left_row}]"
            "tileloadd tmm6, [{first} + {line}]"
            "tdpbf16ps tmm0, tmm4, tmm6"
            "tileloadd tmm7, [{second} + {line}]"
            "tdpbf16ps tmm1, tmm4, tmm7";
            store
            "tilestored [{sums} + {sums_row}], tmm0"
            "tilestored [{sums} + {sums_row} + 64], tmm1"
        );

        kernel!(one_by_one:
            load
            "tileloadd tmm0, [{sums} + {sums_row}]";
            step
            "tileloadd tmm4, [{upper} + {left_row}]"
            "tileloadd tmm6, [{first} + {line}]"
            "tdpbf16ps tmm0, tmm4, tmm6";
            store
            "tilestored [{sums} + {sums_row}], tmm0"
        );
    }
}
