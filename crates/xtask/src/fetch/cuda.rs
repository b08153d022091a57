//! CUDA's compiler and libraries, as the vendor puts them on the Python package index; fetched by `cargo xtask cuda` alone.
//! 13.0, since a driver compiles PTX only of its own version and older ones, and 13.0's drivers are what machines have.

use anyhow::Result;

use super::Tree;

/// Folder of the cache that holds one folder a wheel.
pub(crate) const FOLDER: &str = "cuda-13.0";

const fn wheel(requirement: &'static str, target: &'static str, sha256: &'static str) -> Tree {
    Tree {
        requirement,
        folder: "nvidia/cu13/",
        target,
        sha256,
        source_sha256: None,
    }
}

/// Each has a part of one and the same tree: bin, include, lib, nvvm.
pub(crate) const PARTS: &[Tree] = &[
    wheel(
        "nvidia-cuda-nvcc==13.0.88",
        "cuda-13.0/nvcc",
        "e3eb2b5e545fbd5eb49e8f71d32303910b24276e61d1a5037a2c798a88a73306",
    ),
    wheel(
        "nvidia-nvvm==13.0.88",
        "cuda-13.0/nvvm",
        "ced4c53c75bfc3565bbaeec8f77f6f263b8b34d5674f789d17350ad24f66a802",
    ),
    wheel(
        "nvidia-cuda-crt==13.0.88",
        "cuda-13.0/crt",
        "25071c0ac0ae5f0d62a82bb9935d9f6209b2710eba261b3591521b6f2fb98899",
    ),
    wheel(
        "nvidia-cuda-runtime==13.0.96",
        "cuda-13.0/runtime",
        "752ccf2c4ea5df62d0258401897776507e57f7576c31e7c1555ac4929538824d",
    ),
    wheel(
        "nvidia-cuda-cccl==13.0.85",
        "cuda-13.0/cccl",
        "6d00fb17a582e614decae9eaa33a11736a28ecd3806e62dead8e8079b90d22bd",
    ),
    wheel(
        "nvidia-cuda-nvrtc==13.0.88",
        "cuda-13.0/nvrtc",
        "e4f19447aa18768e575b94ff80631a4b92662a5ccbf2b65de798034a740814b6",
    ),
    wheel(
        "nvidia-curand==10.4.0.35",
        "cuda-13.0/curand",
        "4333258e408d7cf3b2c8dcead1cc5ca974eb552a9ab72fc7cd7bba2687039984",
    ),
    wheel(
        "nvidia-cublas==13.0.2.14",
        "cuda-13.0/cublas",
        "063bbf017f9843cf3748eec9075d243e21797c72682d27ecf52ab2b0698e2ebc",
    ),
];

/// Makes sure that all of it is in the cache and unchanged.
pub(crate) fn run() -> Result<()> {
    super::trees(PARTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places;

    #[test]
    fn the_container_has_the_cuda_that_was_measured() {
        let path = places::root().join("deploy/images/cuda.Containerfile");
        let text = std::fs::read_to_string(path).expect("a Containerfile");
        let bases: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("FROM docker.io/nvidia/cuda:"))
            .collect();
        let version = FOLDER.replace("cuda-", "");
        assert_eq!(bases.len(), 2, "to build with, and to run with");
        assert!(
            bases.iter().all(|base| base.starts_with(&version)),
            "{bases:?}"
        );
    }
}
