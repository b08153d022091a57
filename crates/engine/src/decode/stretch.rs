//! How many tokens of prompts are read in one pass. Shorter stretches let texts that are written wait less, and on some
//! machines read a prompt as fast as long ones; on others every stretch reads all weights again. So unless it is fixed, it is
//! measured: the first long prompts after the start are read in stretches of several lengths, in turns. Measuring before
//! the first prompt would let that one wait.
//!
//! No number may depend on it: it is measured only where a row's logits are the same wherever its prompt was cut
//! (`DecodeBackend::rows_stand_alone`).

use std::time::Duration;

/// The longest stretch is divided by each of these to give the lengths that are tried.
const PARTS: [u32; 3] = [1, 2, 4];
/// Shorter ones are not tried.
const TOKENS_MIN: u32 = 64;
/// Prompts that each length is measured on.
const PROMPTS: u32 = 3;
/// A shorter length is chosen if a prompt takes at most this many times as long with it as with the fastest length.
const SLOWER_MAX: f64 = 1.05;

/// Lengths of stretches, and which is in force.
#[derive(Debug)]
pub(super) struct Stretches {
    /// Longest first; at least one.
    tried: Vec<Tried>,
    /// Which of `tried` is in force.
    at: usize,
    /// What was read so far of the current prompt; `None` once it has shared a pass, as its time cannot be told any more.
    prompt: Option<Read>,
    /// Whether the first long prompt was read, which does not count as it finds caches and clocks cold.
    warm: bool,
    decided: bool,
}

/// What was read, and how long that took.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    tokens: u32,
    time: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Tried {
    tokens_max: u32,
    prompts: u32,
    tokens: u64,
    time: Duration,
}

impl Tried {
    fn token_seconds(&self) -> f64 {
        self.time.as_secs_f64() / self.tokens.max(1) as f64
    }
}

impl Stretches {
    /// Stretches of at most `most` tokens: of the length that measuring finds to be best, or always of `most`.
    pub(super) fn new(most: u32, measured: bool) -> Self {
        let most = most.max(1);
        let lengths = PARTS.iter().map(|part| most / part);
        let wanted = |length: &u32| *length == most || (measured && *length >= TOKENS_MIN);
        let tried: Vec<Tried> = lengths
            .filter(wanted)
            .map(|tokens_max| Tried {
                tokens_max,
                prompts: 0,
                tokens: 0,
                time: Duration::ZERO,
            })
            .collect();
        Self {
            decided: tried.len() == 1,
            tried,
            at: 0,
            prompt: Some(Read::default()),
            warm: false,
        }
    }

    /// Tokens of the next stretch at most.
    pub(super) fn tokens_max(&self) -> u32 {
        self.tried[self.at].tokens_max
    }

    /// Notes a pass that read nothing but a stretch of one prompt; `ended` if it reached the prompt's end. Returns the length that
    /// was found to be best, once, when it is found.
    pub(super) fn read(&mut self, tokens: u32, ended: bool, time: Duration) -> Option<u32> {
        if self.decided {
            return None;
        }
        if let Some(prompt) = &mut self.prompt {
            prompt.tokens += tokens;
            prompt.time += time;
        }
        if !ended {
            return None;
        }
        let prompt = self.prompt.replace(Read::default())?;
        // A prompt that fits one stretch of two of the lengths tells nothing about which is better.
        if prompt.tokens <= self.tried[1].tokens_max {
            return None;
        }
        if !self.warm {
            self.warm = true;
            return None;
        }
        let tried = &mut self.tried[self.at];
        tried.prompts += 1;
        tried.tokens += u64::from(prompt.tokens);
        tried.time += prompt.time;
        if self.tried.iter().any(|tried| tried.prompts < PROMPTS) {
            self.at = (self.at + 1) % self.tried.len();
            return None;
        }
        self.decided = true;
        self.at = self.shortest();
        Some(self.tokens_max())
    }

    /// Notes that a prompt was read beside others, so that its time cannot be told.
    pub(super) fn shared(&mut self) {
        self.prompt = None;
    }

    /// The shortest length that is hardly slower than the fastest one ([`SLOWER_MAX`]).
    fn shortest(&self) -> usize {
        let times = self.tried.iter().map(Tried::token_seconds);
        let fastest = times.fold(f64::INFINITY, f64::min);
        let good = |tried: &Tried| tried.token_seconds() <= fastest * SLOWER_MAX;
        self.tried.iter().rposition(good).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a prompt alone, on a machine that takes so many milliseconds for a pass and microseconds for a token.
    fn read(stretches: &mut Stretches, tokens: u32, (pass, token): (u64, u64)) -> Option<u32> {
        let mut left = tokens;
        let mut found = None;
        while left > 0 {
            let part = left.min(stretches.tokens_max());
            left -= part;
            let time = Duration::from_millis(pass) + Duration::from_micros(token) * part;
            found = found.or(stretches.read(part, left == 0, time));
        }
        found
    }

    /// What is found within so many prompts, and what is in force then.
    fn found(most: u32, prompt: u32, machine: (u64, u64)) -> (Option<u32>, u32) {
        let mut stretches = Stretches::new(most, true);
        let mut found = None;
        for _ in 0..10 {
            assert_eq!(found, None, "ten prompts are needed");
            found = read(&mut stretches, prompt, machine);
        }
        assert_eq!(read(&mut stretches, prompt, (1, 1)), None, "said once");
        (found, stretches.tokens_max())
    }

    #[test]
    fn the_shortest_that_is_hardly_slower_is_taken() {
        // Each token costs, a pass nothing.
        assert_eq!(found(512, 1024, (0, 1000)), (Some(128), 128));
        // A pass costs as much as 500 tokens: only the longest will do.
        assert_eq!(found(512, 1024, (500, 1000)), (Some(512), 512));
        // As much as 20: 1064, 1104 and 1184 ms.
        assert_eq!(found(512, 1024, (20, 1000)), (Some(256), 256));
    }

    #[test]
    fn short_prompts_and_shared_passes_tell_nothing() {
        assert_eq!(found(512, 256, (500, 1000)), (None, 512));
        let mut stretches = Stretches::new(512, true);
        for _ in 0..20 {
            stretches.shared();
            assert_eq!(read(&mut stretches, 1024, (0, 1000)), None);
            assert_eq!(stretches.tokens_max(), 512);
        }
    }

    #[test]
    fn what_is_fixed_stays() {
        let mut stretches = Stretches::new(512, false);
        for _ in 0..20 {
            assert_eq!(read(&mut stretches, 1024, (0, 1000)), None);
            assert_eq!(stretches.tokens_max(), 512);
        }
        // Nothing shorter is worth a try.
        let lengths = |most: u32| {
            let tried = Stretches::new(most, true).tried;
            tried
                .iter()
                .map(|tried| tried.tokens_max)
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(100), [100]);
        assert_eq!(lengths(200), [200, 100]);
        assert_eq!(lengths(0), [1]);
    }
}
