//! What arrives, how long a worker takes for it, and how many workers there are.

/// Workers that a stage may have to do at a time: more are a mistake in a figure, not a fleet.
const BUSY_MAX: f64 = 1e7;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JobKind {
    /// Order of service: 0 is served first.
    pub class: usize,
    /// Part of all jobs, from 0 to 1.
    pub share: f64,
    /// Chunks to encode; 0 for a job without images.
    pub chunks: u32,
}

/// How long one unit takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Service {
    pub mean_seconds: f64,
    /// Variance over the square of the mean: 0 is always the same, 1 varies as an exponential time does.
    pub variation: f64,
}

/// What arrives, independently of each other (a Poisson process), and what it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    pub jobs_per_second: f64,
    /// Their kinds; the shares add up to 1.
    pub kinds: Vec<JobKind>,
    /// One chunk on one encoder.
    pub encode: Service,
    /// One text in one slot of a decoder.
    pub decode: Service,
    /// What a job takes beside both: accept, preprocess, events, in seconds.
    pub other_seconds: f64,
}

/// How many work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fleet {
    /// Encoders, one chunk at a time each.
    pub encoders: u32,
    /// Decode slots: decoders times the texts that each writes at once.
    pub decode_slots: u32,
}

/// A load that cannot be planned for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoadError {
    #[error("{what} must be a positive number")]
    Positive { what: &'static str },
    #[error("{what} must be zero or a positive number")]
    Negative { what: &'static str },
    #[error("the shares of the kinds of jobs add up to {sum}; they must add up to 1")]
    Shares { sum: f64 },
    #[error(
        "{stage} would have work for {busy:.0} at a time; more than {BUSY_MAX} are a mistake in the rate or in a time"
    )]
    Busy { stage: &'static str, busy: f64 },
    #[error("class {class} is not one of the {classes} classes")]
    Class { class: usize, classes: usize },
}

impl Load {
    /// Checks every number.
    pub fn check(&self) -> Result<(), LoadError> {
        let positive = |what, value: f64| {
            let good = value.is_finite() && value > 0.0;
            good.then_some(()).ok_or(LoadError::Positive { what })
        };
        positive("the rate of jobs", self.jobs_per_second)?;
        positive("the encode time", self.encode.mean_seconds)?;
        positive("the decode time", self.decode.mean_seconds)?;
        let not_negative = |what, value: f64| {
            let good = value.is_finite() && value >= 0.0;
            good.then_some(()).ok_or(LoadError::Negative { what })
        };
        not_negative("the encode variation", self.encode.variation)?;
        not_negative("the decode variation", self.decode.variation)?;
        not_negative("the time beside both stages", self.other_seconds)?;
        let sum: f64 = self.kinds.iter().map(|kind| kind.share).sum();
        // Not the other way round: a share that is no number is far from nothing.
        let is_whole = (sum - 1.0).abs() <= 1e-6;
        if !is_whole || self.kinds.iter().any(|kind| kind.share < 0.0) {
            return Err(LoadError::Shares { sum });
        }
        let (encode, decode) = self.utilisation(Fleet {
            encoders: 1,
            decode_slots: 1,
        });
        for (stage, busy) in [("encoders", encode), ("decode slots", decode)] {
            if busy > BUSY_MAX {
                return Err(LoadError::Busy { stage, busy });
            }
        }
        let classes = crate::CLASSES;
        match self.kinds.iter().find(|kind| kind.class >= classes) {
            Some(kind) => Err(LoadError::Class {
                class: kind.class,
                classes,
            }),
            None => Ok(()),
        }
    }

    /// The mean of a power of the number of chunks.
    pub(crate) fn chunks_moment(&self, power: i32) -> f64 {
        let moment = |kind: &JobKind| kind.share * f64::from(kind.chunks).powi(power);
        self.kinds.iter().map(moment).sum()
    }

    pub(crate) fn chunks_per_second(&self) -> f64 {
        self.jobs_per_second * self.chunks_moment(1)
    }

    /// Busy part of the encoders and of the decode slots.
    pub fn utilisation(&self, fleet: Fleet) -> (f64, f64) {
        let encode = self.chunks_per_second() * self.encode.mean_seconds;
        let decode = self.jobs_per_second * self.decode.mean_seconds;
        (
            encode / f64::from(fleet.encoders.max(1)),
            decode / f64::from(fleet.decode_slots.max(1)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_cannot_be_is_refused_with_what_is_allowed() {
        let check = |change: fn(&mut Load), expected: Option<&str>| {
            let service = Service {
                mean_seconds: 1.0,
                variation: 0.0,
            };
            let mut load = Load {
                jobs_per_second: 1.0,
                kinds: vec![JobKind {
                    class: 0,
                    share: 1.0,
                    chunks: 1,
                }],
                encode: service,
                decode: service,
                other_seconds: 0.0,
            };
            change(&mut load);
            let said = load.check().err().map(|error| error.to_string());
            let is_right = match (&said, expected) {
                (Some(said), Some(expected)) => said.contains(expected),
                (said, expected) => said.is_none() && expected.is_none(),
            };
            assert!(is_right, "{said:?}, {expected:?}");
        };
        check(|_| (), None);
        check(
            |load| load.encode.mean_seconds = 0.0,
            Some("the encode time must be a positive number"),
        );
        check(
            |load| load.encode.variation = -0.5,
            Some("the encode variation must be zero or a positive number"),
        );
        check(
            |load| load.other_seconds = -0.5,
            Some("the time beside both stages must be zero or a positive number"),
        );
        check(|load| load.kinds[0].share = 0.5, Some("must add up to 1"));
        check(
            |load| load.kinds[0].share = f64::NAN,
            Some("must add up to 1"),
        );
        // Numbers of workers beyond it would overflow.
        check(
            |load| load.jobs_per_second = 1e10,
            Some("encoders would have work for"),
        );
    }
}
