//! `postgresql.conf`, computed from what the container has.
//!
//! The settings fit into the memory `m` when this sum does not exceed it:
//!
//! ```text
//!   shared_buffers
//! + maintenance_work_mem × (autovacuum_max_workers + 1)    every worker at once, and one index build
//! + max_connections × 3 MiB                                every connection open
//! + max_connections / 4 × work_mem                         a quarter of them sorts or hashes
//! + m / 16                                                 /dev/shm, where parallel queries meet
//! + 16 MiB                                                 the server's own processes
//! ```
//!
//! The 3 MiB and 16 MiB are this project's estimates of private memory, on the safe side of what a
//! small schema takes; a unit test holds the sum for every memory from 128 MiB to 64 GiB.

use std::fmt::{self, Write};

use crate::domain::quantity::{Bytes, Size};

const KIB: i64 = 1 << 10;
const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;

/// The settings that depend on the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conf {
    shared_buffers: Bytes,
    effective_cache_size: Bytes,
    maintenance_work_mem: Bytes,
    work_mem: Bytes,
    max_connections: i64,
    autovacuum_max_workers: i64,
    parallel_workers: i64,
    max_wal_size: Bytes,
    min_wal_size: Bytes,
}

/// Room in `/dev/shm` for a container with this memory: a sixteenth, counted in the sum above.
pub(super) fn shared_memory(memory: Bytes) -> Bytes {
    whole(memory.0 / 16, MIB)
}

impl Conf {
    pub fn of(size: Size, volume: Bytes) -> Self {
        let memory = size.memory.0;
        let max_wal_size = whole((volume.0 / 10).clamp(64 * MIB, 16 * GIB), MIB);
        Conf {
            shared_buffers: whole(memory / 4, KIB),
            effective_cache_size: whole(memory / 4 * 3, KIB),
            // 2 GB is the most an index build has been seen to use well.
            maintenance_work_mem: whole((memory / 32).clamp(MIB, 2 * GIB), KIB),
            // 64 kB is PostgreSQL's least.
            work_mem: whole((memory / 512).clamp(64 * KIB, 128 * MIB), KIB),
            max_connections: (memory / (10 * MIB)).clamp(20, 500),
            autovacuum_max_workers: if memory < 512 * MIB { 1 } else { 3 },
            // A worker costs memory like a connection and gains nothing without a core of its own.
            parallel_workers: match size.cpu.0 / 1_000 {
                0 | 1 => 0,
                cores => cores.min(64),
            },
            // A tenth of the volume, so that a burst of writes between two checkpoints never fills it.
            max_wal_size,
            min_wal_size: whole((max_wal_size.0 / 4).max(32 * MIB), MIB),
        }
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let lines: [(&str, &dyn fmt::Display); 30] = [
            ("listen_addresses", &"'*'"),
            ("port", &super::postgres::PORT),
            ("unix_socket_directories", &"'/var/run/postgresql'"),
            ("hba_file", &"'/etc/postgresql/pg_hba.conf'"),
            ("password_encryption", &"scram-sha-256"),
            ("max_connections", &self.max_connections),
            ("shared_buffers", &Amount(self.shared_buffers)),
            ("effective_cache_size", &Amount(self.effective_cache_size)),
            ("maintenance_work_mem", &Amount(self.maintenance_work_mem)),
            ("work_mem", &Amount(self.work_mem)),
            ("dynamic_shared_memory_type", &"posix"),
            ("autovacuum_max_workers", &self.autovacuum_max_workers),
            ("max_parallel_workers", &self.parallel_workers),
            ("max_parallel_workers_per_gather", &self.parallel_workers.min(2)),
            ("max_parallel_maintenance_workers", &self.parallel_workers.min(2)),
            ("wal_level", &"replica"),
            ("wal_compression", &"on"),
            ("max_wal_size", &Amount(self.max_wal_size)),
            ("min_wal_size", &Amount(self.min_wal_size)),
            ("checkpoint_timeout", &"15min"),
            ("checkpoint_completion_target", &"0.9"),
            ("random_page_cost", &"1.1"),
            ("effective_io_concurrency", &200),
            ("log_destination", &"'stderr'"),
            ("logging_collector", &"off"),
            ("log_line_prefix", &"'%m [%p] %q%u@%d '"),
            ("log_min_duration_statement", &1000),
            ("log_checkpoints", &"on"),
            ("log_timezone", &"'UTC'"),
            ("timezone", &"'UTC'"),
        ];
        let mut text = String::from("# Computed by Torpor from the container's memory, CPU and volume.\n");
        for (name, value) in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }
}

/// Rounded down to whole units.
const fn whole(bytes: i64, unit: i64) -> Bytes {
    Bytes(bytes / unit * unit)
}

/// An amount in `PostgreSQL`'s units, of which 1 MB is 1024 kB.
struct Amount(Bytes);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.0;
        let (size, unit) =
            [(GIB, "GB"), (MIB, "MB")].into_iter().find(|(size, _)| bytes % size == 0).unwrap_or((KIB, "kB"));
        write!(f, "{}{unit}", bytes / size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::quantity::Cpu;

    fn conf(memory: i64) -> Conf {
        Conf::of(Size { cpu: Cpu(1000), memory: Bytes(memory) }, Bytes(5 * GIB))
    }

    /// The sum of the module's documentation.
    fn used(conf: &Conf, memory: i64) -> i64 {
        conf.shared_buffers.0
            + conf.maintenance_work_mem.0 * (conf.autovacuum_max_workers + 1)
            + conf.max_connections * 3 * MIB
            + conf.max_connections / 4 * conf.work_mem.0
            + shared_memory(Bytes(memory)).0
            + 16 * MIB
    }

    /// Every 16 MiB from 128 MiB to 64 GiB, each with an odd number of bytes more in between.
    fn memories() -> impl Iterator<Item = i64> {
        let mut odd = 1_i64;
        (8..=4096).flat_map(move |step: i64| {
            odd = (odd * 48_271) % 2_147_483_647;
            [step * 16 * MIB, step * 16 * MIB + odd % (16 * MIB)]
        })
    }

    #[test]
    fn fits_into_every_memory_and_never_shrinks() {
        let mut before = conf(128 * MIB);
        for memory in memories().filter(|memory| *memory <= 64 * GIB) {
            let now = conf(memory);
            assert!(used(&now, memory) <= memory, "{memory}: {} of {now:?}", used(&now, memory));
            assert!(now.effective_cache_size.0 <= memory);
            assert!(now.work_mem.0 >= 64 * KIB && now.maintenance_work_mem.0 >= MIB && now.max_connections >= 20);
            assert!(
                now.shared_buffers >= before.shared_buffers
                    && now.effective_cache_size >= before.effective_cache_size
                    && now.maintenance_work_mem >= before.maintenance_work_mem
                    && now.work_mem >= before.work_mem
                    && now.max_connections >= before.max_connections
                    && now.autovacuum_max_workers >= before.autovacuum_max_workers,
                "{memory}: {now:?} after {before:?}"
            );
            before = now;
        }
    }

    #[test]
    fn largest_memory_gives_the_numbers_of_the_contract() {
        let text = conf(64 * GIB).text();
        for line in [
            "shared_buffers = 16GB",
            "effective_cache_size = 48GB",
            "maintenance_work_mem = 2GB",
            "work_mem = 128MB",
            "max_connections = 500",
            "random_page_cost = 1.1",
            "effective_io_concurrency = 200",
            "log_min_duration_statement = 1000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn write_ahead_log_stays_a_part_of_the_volume() {
        for mi in [512, 1024, 5 * 1024, 100 * 1024, 10 * 1024 * 1024] {
            let conf = Conf::of(Size { cpu: Cpu(100), memory: Bytes::mi(128) }, Bytes::mi(mi));
            assert!(conf.max_wal_size.0 <= Bytes::mi(mi).0 / 8, "{mi}");
            assert!(Bytes::mi(32) <= conf.min_wal_size && conf.min_wal_size <= conf.max_wal_size, "{mi}");
        }
    }

    #[test]
    fn parallel_workers_need_cores() {
        let workers = |cpu| Conf::of(Size { cpu: Cpu(cpu), memory: Bytes(GIB) }, Bytes(5 * GIB)).parallel_workers;
        assert_eq!([workers(200), workers(1999), workers(2000), workers(4500)], [0, 0, 2, 4]);
    }
}
