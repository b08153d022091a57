//! What tests of several crates share: a real nats-server for each test, a link that can be cut, archives, and waiting for a
//! state. Test code only; nothing that runs in production depends on it.

mod address;
mod archive;
mod cache;
mod link;
mod nats;
mod queue;
mod wait;

pub use address::own_address;
pub use archive::{tar, tar_member, tar_of};
pub use cache::cache_dir;
pub use link::FaultyLink;
pub use nats::{Member, NATS_DEFAULT, NATS_NEWEST, NATS_OLDEST, NODE, NatsServer};
pub use queue::{clock, config, key, pool, queue, record, start, start_with, tenant, unit};
pub use wait::wait_until;
