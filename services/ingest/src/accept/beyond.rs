//! Jobs beyond their tenant's quota of stored bytes. A file that is uploaded found its room before it was sent, so that its job is
//! let in although the quota is full by now. But each upload is good for one such job only: its handle can be named again for as
//! long as it lives, and what becomes of a job is stored too.
//!
//! The job is noted in its uploads' records before anything of it is stored, and only where the quota is full: otherwise an accept
//! writes nothing more for this. A repeat under the same request id is the same job, and finds itself there.

use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{JobKey, UploadId};
use medfleet_queue::{QueueError, Updated};

use super::{Acceptor, UPLOAD_GONE};
use crate::error::Refusal;

/// Uploads that are noted at a time.
const AT_ONCE: usize = 32;
/// Tries to note one: whoever is faster has noted a job of its own, or goes on with the upload.
const TRIES: u32 = 8;

impl Acceptor {
    /// Lets a job in that brings these uploads alone, if one of them has let in none before; otherwise refuses it so.
    pub(super) async fn let_in_beyond(
        &self,
        key: &JobKey,
        uploads: &[UploadId],
        refusal: Refusal,
    ) -> Result<(), Refusal> {
        let noted = uploads.iter().map(|upload| self.note_beyond(key, upload));
        let noted: Vec<_> = noted.collect();
        let noted: Vec<bool> = stream::iter(noted)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        match noted.contains(&true) {
            true => Ok(()),
            false => Err(refusal),
        }
    }

    /// Notes the job in an upload's record; false where another is there.
    async fn note_beyond(&self, key: &JobKey, upload: &UploadId) -> Result<bool, Refusal> {
        let JobKey { tenant, job } = key;
        for _ in 0..TRIES {
            let found = self.queue.upload(tenant, upload).await?;
            let (mut record, revision) = found.ok_or(UPLOAD_GONE)?;
            if !record.beyond_job.is_empty() {
                return Ok(record.beyond_job == job.as_str());
            }
            record.beyond_job = job.to_string();
            let noted = self.queue.update_upload(tenant, upload, &record, revision);
            if matches!(noted.await?, Updated::Updated(_)) {
                return Ok(true);
            }
        }
        Err(QueueError::Contended { tries: TRIES }.into())
    }
}
