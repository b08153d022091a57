//! The bytes of inputs, and what blocking threads make of them, within two limits of the process: on bytes of files in memory,
//! including what is unpacked of them, and on files that are decoded to pixels.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use medfleet_core::{BlobKind, Digest, TenantId};
use medfleet_imaging::{Options, Reason, Refusal, files_beside, largest_member, unpacks};
use medfleet_proto::work::v1 as wire;
use medfleet_store::BlobStore;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::decodes::{Decodes, Turn};
use crate::error::PreprocessError;

/// Memory is counted in steps of this many bytes, because a semaphore counts in 32 bits.
const MEMORY_STEP_BYTES: u64 = 64 << 10;
/// First allowance for what is unpacked of a file at a time, where the file does not say that it needs more.
const UNPACKED_BYTES_FIRST: u64 = 32 << 20;
/// By how much the allowance of a file grows that did not have enough. The work on it then begins again.
const UNPACKED_BYTES_TIMES: u64 = 4;

/// Where inputs are, and how many of their bytes and pixels may be in memory, over all slots.
pub(crate) struct Inputs {
    store: BlobStore,
    file_bytes_max: u64,
    memory: Arc<Semaphore>,
    memory_bytes: u64,
    decodes: Decodes,
    /// How its files are decoded.
    options: Options,
}

/// An input as the manifest of its study declares it.
#[derive(Clone, Copy)]
pub(crate) struct Declared<'a> {
    /// Its place in the study, from 0.
    pub(crate) index: usize,
    pub(crate) input: &'a wire::StudyInput,
}

/// An input in memory.
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    /// Bytes of it that may be unpacked at a time; none of most files.
    pub(crate) room: u64,
    /// `None`: the semaphore is never closed; should it be, the limit is not kept, and the file is still read.
    memory: Option<OwnedSemaphorePermit>,
}

/// What was made of an input.
pub(crate) struct Made<T> {
    pub(crate) digest: Digest,
    pub(crate) room: u64,
    pub(crate) outcome: Result<T, Refusal>,
}

/// What came of one try, and the input.
pub(crate) type Tried<T> = Result<(Result<T, Refusal>, Held), PreprocessError>;

impl Inputs {
    pub(crate) fn new(config: &Config, store: BlobStore, options: Options) -> Self {
        let memory_bytes = config.memory_bytes_max.get();
        Self {
            store,
            file_bytes_max: config.file_bytes_max.get(),
            memory: Arc::new(Semaphore::new(steps(memory_bytes) as usize)),
            memory_bytes,
            decodes: Decodes::new(config.decodes_max, options.limits().threads_max),
            options,
        }
    }

    /// Waits until the pixels of one more file may be in memory, however large it is.
    pub(crate) async fn turn(&self) -> Arc<Turn> {
        self.decodes.turn(1).await
    }

    /// The same for this file, which others may share the turn with if it is small.
    pub(crate) async fn turn_of(&self, bytes: &[u8]) -> Arc<Turn> {
        let files = files_beside(bytes, &self.options);
        self.decodes.turn(files).await
    }

    /// Reads an input once there is memory for it and for what it unpacks.
    pub(crate) async fn read(
        &self,
        tenant: &TenantId,
        declared: Declared<'_>,
        room: u64,
    ) -> Result<Held, PreprocessError> {
        let Declared { index, input } = declared;
        if input.size_bytes > self.file_bytes_max {
            let refusal = Refusal::new(Reason::TooLarge);
            return Err(PreprocessError::Refused { index, refusal });
        }
        let steps = self.steps(input.size_bytes, room);
        let memory = Arc::clone(&self.memory).acquire_many_owned(steps);
        let memory = memory.await.ok();
        Ok(Held {
            bytes: self.assemble(tenant, declared).await?,
            room,
            memory,
        })
    }

    /// The same input with more room. Where there is no memory for it at once, everything is let go of, and the input read
    /// again: who holds memory never waits for more.
    async fn widened(
        &self,
        tenant: &TenantId,
        declared: Declared<'_>,
        (mut held, room): (Held, u64),
    ) -> Result<Held, PreprocessError> {
        if let Some(memory) = held.memory.as_mut() {
            // As many as steps() gave at most.
            let here = memory.num_permits() as u32;
            let more = self
                .steps(declared.input.size_bytes, room)
                .saturating_sub(here);
            if let Ok(more) = Arc::clone(&self.memory).try_acquire_many_owned(more) {
                memory.merge(more);
                held.room = room;
                return Ok(held);
            }
        }
        drop(held);
        self.read(tenant, declared, room).await
    }

    /// Steps of memory for an input and its room.
    fn steps(&self, size_bytes: u64, room: u64) -> u32 {
        steps(size_bytes.saturating_add(room)).min(steps(self.memory_bytes))
    }

    /// Reads an input and has `decode` make something of it, with the right to hold its pixels and with the bytes that it may
    /// unpack at a time, and again with more of them where that was too little: what was made until then counts for nothing.
    pub(crate) async fn make<T, F>(
        &self,
        tenant: &TenantId,
        declared: Declared<'_>,
        decode: impl Fn(Arc<Turn>, Held) -> F,
    ) -> Result<Made<T>, PreprocessError>
    where
        F: Future<Output = Tried<T>>,
    {
        let most = self.memory_bytes.saturating_sub(declared.input.size_bytes);
        let mut held = self.read(tenant, declared, 0).await?;
        if most > 0 && unpacks(&held.bytes) {
            let said = largest_member(&held.bytes, self.options.limits());
            let room = said.max(UNPACKED_BYTES_FIRST).min(most);
            held = self.widened(tenant, declared, (held, room)).await?;
        }
        let digest = self.store.digest(tenant, &held.bytes).await;
        loop {
            // Given back with the last frame that is stored, so that others can decode while this one may have to wait for
            // memory.
            let turn = self.turn_of(&held.bytes).await;
            let (outcome, tried) = decode(turn, held).await?;
            match outcome {
                Err(refusal) if refusal.reason == Reason::UnpackedTooLarge && tried.room < most => {
                    let room = tried.room.saturating_mul(UNPACKED_BYTES_TIMES);
                    let room = room.max(UNPACKED_BYTES_FIRST).min(most);
                    held = self.widened(tenant, declared, (tried, room)).await?;
                }
                outcome => {
                    return Ok(Made {
                        digest,
                        room: tried.room,
                        outcome,
                    });
                }
            }
        }
    }

    /// The parts of a file in order; a file of one part is not copied.
    async fn assemble(
        &self,
        tenant: &TenantId,
        declared: Declared<'_>,
    ) -> Result<Bytes, PreprocessError> {
        let Declared { index, input } = declared;
        let wrong = |reason: &str| PreprocessError::Manifest(format!("input {index}: {reason}"));
        let digest = |bytes: &Bytes| {
            Digest::from_slice(bytes).map_err(|_| wrong("a part's digest has another length"))
        };
        let bytes = if let [part] = input.part_digests.as_slice() {
            self.store
                .get(tenant, BlobKind::Input, &digest(part)?)
                .await?
        } else {
            // Bounded by the limit that was checked before.
            let mut whole = BytesMut::with_capacity(usize::try_from(input.size_bytes).unwrap_or(0));
            for part in &input.part_digests {
                let part = self
                    .store
                    .get(tenant, BlobKind::Input, &digest(part)?)
                    .await?;
                if (whole.len() + part.len()) as u64 > input.size_bytes {
                    return Err(wrong("its parts are longer than declared"));
                }
                whole.extend_from_slice(&part);
            }
            whole.freeze()
        };
        if bytes.len() as u64 != input.size_bytes {
            return Err(wrong("its parts have another length than declared"));
        }
        Ok(bytes)
    }
}

fn steps(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(MEMORY_STEP_BYTES))
        .unwrap_or(u32::MAX >> 3)
        .clamp(1, u32::MAX >> 3)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;
    use std::time::Duration;

    use medfleet_core::PoolName;
    use medfleet_core::setting::ByteSize;
    use medfleet_imaging::Limits;
    use medfleet_store::FleetKey;

    use super::*;

    const MEMORY: u64 = 256 << 20;
    const GZIP: &[u8] = &[0x1f, 0x8b, 0x08, 0, 0];
    /// Of what hangs when it is wrong, on a loaded machine too.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// An input, and as many bytes as its memory is short of.
    async fn inputs(bytes: impl Into<Bytes>) -> (Inputs, TenantId, wire::StudyInput) {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let tenant: TenantId = "a".parse().expect("a tenant");
        let bytes: Bytes = bytes.into();
        let digest = store.digest(&tenant, &bytes).await;
        let input = wire::StudyInput {
            part_digests: vec![Bytes::copy_from_slice(digest.as_bytes())],
            size_bytes: bytes.len() as u64,
            ..wire::StudyInput::default()
        };
        store
            .put_named(&tenant, BlobKind::Input, &digest, bytes)
            .await
            .expect("stored");
        let pool: PoolName = "tiny-main".parse().expect("a pool");
        let config = Config {
            memory_bytes_max: ByteSize::from_mib(MEMORY >> 20),
            ..Config::new(&pool, 64)
        };
        let options = Options::new(config.frame_side, Limits::default()).expect("a side");
        (Inputs::new(&config, store, options), tenant, input)
    }

    const fn first(input: &wire::StudyInput) -> Declared<'_> {
        Declared { index: 0, input }
    }

    /// What an input gets that needs so much room.
    async fn check(bytes: &'static [u8], needs: u64, expected: Result<u64, Reason>) {
        let (inputs, tenant, input) = inputs(bytes).await;
        let all = inputs.memory.available_permits();
        let memory = Arc::clone(&inputs.memory);
        let decode = move |_turn: Arc<Turn>, held: Held| {
            let taken = all - memory.available_permits();
            assert_eq!(taken as u32, steps(held.bytes.len() as u64 + held.room));
            let outcome = if held.room < needs {
                Err(Refusal::new(Reason::UnpackedTooLarge))
            } else {
                Ok(())
            };
            ready(Ok((outcome, held)))
        };
        let made = inputs.make(&tenant, first(&input), decode).await;
        let made = made.expect("it was read");
        let found = made.outcome.map(|()| made.room);
        assert_eq!(found.map_err(|refusal| refusal.reason), expected);
        assert_eq!(inputs.memory.available_permits(), all);
    }

    #[tokio::test]
    async fn what_is_unpacked_counts() {
        check(b"\x89PNG", 0, Ok(0)).await;
        check(GZIP, 1 << 20, Ok(UNPACKED_BYTES_FIRST)).await;
        check(GZIP, 100 << 20, Ok(UNPACKED_BYTES_FIRST * 4)).await;
        let most = MEMORY - GZIP.len() as u64;
        check(GZIP, most, Ok(most)).await;
        check(GZIP, most + 1, Err(Reason::UnpackedTooLarge)).await;
        // A file that unpacks something though it does not look like it.
        check(b"\x89PNG", 1, Ok(UNPACKED_BYTES_FIRST)).await;
    }

    /// A volume of 200 MiB was unpacked three times.
    #[tokio::test]
    async fn an_archive_that_says_its_size_is_unpacked_once() {
        let size = 200_u32 << 20;
        let mut bytes = GZIP.to_vec();
        bytes.resize(256 << 10, 0);
        bytes.extend(size.to_le_bytes());
        let (inputs, tenant, input) = inputs(bytes).await;
        let tries = Cell::new(0);
        let decode = |_turn: Arc<Turn>, held: Held| {
            tries.set(tries.get() + 1);
            let outcome = if held.room < u64::from(size) {
                Err(Refusal::new(Reason::UnpackedTooLarge))
            } else {
                Ok(())
            };
            ready(Ok((outcome, held)))
        };
        let made = inputs.make(&tenant, first(&input), decode).await;
        let made = made.expect("it was read");
        assert_eq!((made.room, tries.get()), (u64::from(size), 1));
        made.outcome.expect("it had room");
    }

    #[tokio::test]
    async fn an_input_with_memory_for_its_room_is_read_once() {
        let (mut inputs, tenant, input) = inputs(GZIP).await;
        let held = inputs.read(&tenant, first(&input), 0).await.expect("read");
        // Whoever reads it again finds nothing.
        inputs.store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let widened = inputs.widened(&tenant, first(&input), (held, MEMORY / 2));
        let widened = widened.await.expect("not read again");
        assert_eq!((widened.bytes.as_ref(), widened.room), (GZIP, MEMORY / 2));
        let free = inputs.memory.available_permits();
        assert_eq!(
            free as u32,
            steps(MEMORY) - steps(GZIP.len() as u64 + MEMORY / 2)
        );
    }

    #[tokio::test]
    async fn an_input_that_waits_for_memory_holds_none() {
        let (inputs, tenant, input) = inputs(GZIP).await;
        let all = inputs.memory.available_permits() as u32;
        let held = inputs.read(&tenant, first(&input), 0).await.expect("read");
        let others = all - steps(GZIP.len() as u64);
        let others = Arc::clone(&inputs.memory).acquire_many_owned(others);
        let others = others.await.expect("it is never closed");
        // All there is: it never comes as long as the input holds some of it.
        let widened = inputs.widened(&tenant, first(&input), (held, MEMORY));
        let given_back = async { drop(others) };
        let both = async { tokio::join!(widened, given_back) };
        let (widened, ()) = tokio::time::timeout(PATIENCE, both).await.expect("it ends");
        assert_eq!(widened.expect("read again").room, MEMORY);
    }
}
