//! SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): numbers that a seed determines,
//! the same on every machine. For simulations, tests and choices that must come out the same again; never for ids or keys.

/// What lies between the states of two numbers that follow each other.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The number that comes after this state; the state after it is [`STEP`] more, wrapping.
pub const fn mixed(state: u64) -> u64 {
    let z = state.wrapping_add(STEP);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two numbers of seed 0, as published implementations give them.
    #[test]
    fn numbers_are_the_published_ones() {
        assert_eq!(mixed(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mixed(STEP), 0x6e78_9e6a_a1b9_65f4);
    }
}
