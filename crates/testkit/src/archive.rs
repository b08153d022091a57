//! Tape archives as other programs write them (POSIX.1-1988).

/// Headers and contents fill whole ones.
const BLOCK_BYTES: usize = 512;

/// An archive of ordinary files, each by its name and content.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let members = files.iter();
    let members: Vec<Vec<u8>> = members
        .map(|(name, content)| tar_member(name, b'0', content))
        .collect();
    tar_of(&members)
}

/// An archive of members that [`tar_member`] made.
pub fn tar_of(members: &[Vec<u8>]) -> Vec<u8> {
    let mut out = members.concat();
    out.resize(out.len() + 2 * BLOCK_BYTES, 0);
    out
}

/// Header and content of one member. Kind `0` is an ordinary file.
pub fn tar_member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut member = vec![0; BLOCK_BYTES];
    member[..name.len()].copy_from_slice(name.as_bytes());
    member[100..107].copy_from_slice(b"0000600");
    member[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    member[156] = kind;
    member[257..263].copy_from_slice(b"ustar\0");
    // The checksum is that of the header with blanks in its place.
    member[148..156].fill(b' ');
    let sum: u32 = member.iter().map(|byte| u32::from(*byte)).sum();
    member[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    member.extend_from_slice(content);
    member.resize(member.len().next_multiple_of(BLOCK_BYTES), 0);
    member
}
