//! End-to-end tests: one binary, real processes, a nats-server of its own for each test.

mod autoscale;
mod backup;
mod bad_input;
mod cancel;
mod crash;
mod dead;
mod edge;
mod edges;
mod erase;
mod fail_closed;
mod figures;
mod idempotency;
mod identifiers;
mod meaning;
mod release;
mod residency;
mod s3;
mod tasks;
mod tenants;
mod trace;
mod upgrade;
mod versions;
mod walk;
mod watch;
