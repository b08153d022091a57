//! How much memory a load takes: what is allocated at most beside what stays, counted by the allocator of this program, which
//! has one test for that reason.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper fails its test by panicking"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use medfleet_model::{
    ComputeDevice, Dtype, FolderSource, LoadOptions, Model, Parts, QuantisedCache,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// Rows of the embedding, which is nearly all of the checkpoint.
const ROWS: usize = 1 << 17;
const WIDTH: usize = 64;
/// Bytes of everything else that a load takes for a while: a piece of a file that is hashed, a few rows of each thread, and
/// the tokenizer as text. Less than any second copy of the embedding.
const BESIDE_MAX: usize = 6 << 20;
/// Bytes that stay beside the embedding: the small checkpoint's other weights, and the tokenizer with a place for every row.
const REST_MAX: usize = 8 << 20;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: the system's allocator does the work, with the layouts it is given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old place and the new one are there together for a while.
        add(size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tiny checkpoint with an embedding of many rows, in bf16.
fn checkpoint() -> tempfile::TempDir {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/tiny");
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        std::fs::copy(tiny.join(name), dir.path().join(name)).unwrap();
    }
    let config = std::fs::read_to_string(tiny.join("config.json")).unwrap();
    let wide = config.replace("\"vocab_size\": 638", &format!("\"vocab_size\": {ROWS}"));
    assert_ne!(config, wide);
    std::fs::write(dir.path().join("config.json"), wide).unwrap();
    let bytes = std::fs::read(tiny.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let values = |at: usize| half::bf16::from_f32((at as f32).sin() * 0.05).to_le_bytes();
    let embedding: Vec<u8> = (0..ROWS * WIDTH).flat_map(values).collect();
    let tensors = stored.iter().map(|(name, view)| {
        let view = if name.ends_with("embed_tokens.weight") {
            TensorView::new(safetensors::Dtype::BF16, vec![ROWS, WIDTH], &embedding).unwrap()
        } else {
            view
        };
        (name.to_owned(), view)
    });
    let tensors: Vec<_> = tensors.collect();
    let path = dir.path().join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    dir
}

/// Bytes that stay of a load, and bytes at most during it.
fn measure(source: &FolderSource, dtype: Dtype) -> (Model, usize, usize) {
    let options = LoadOptions {
        dtype,
        parts: Parts::All,
        device: ComputeDevice::Cpu,
    };
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let model = Model::load_folder(source, options).unwrap();
    let (held, peak) = (HELD.load(Ordering::Relaxed), PEAK.load(Ordering::Relaxed));
    (model, held - before, peak - before)
}

#[test]
fn there_is_one_copy_of_the_weights_while_they_are_loaded() {
    let (dir, cache) = (checkpoint(), tempfile::tempdir().unwrap());
    let plain = FolderSource::new(dir.path());
    let quantised = FolderSource {
        quantised: true,
        ..plain.clone()
    };
    let kept = FolderSource {
        quantised_cache: Some(cache.path().to_owned()),
        ..quantised.clone()
    };
    // What is made once for the whole program, such as the threads.
    drop(measure(&plain, Dtype::F32));
    let (off, written, read) = (
        QuantisedCache::Off,
        QuantisedCache::Written,
        QuantisedCache::Read,
    );
    // As it is stored, widened, quantised, and quantised once.
    for (source, dtype, row_bytes, expected) in [
        (&plain, Dtype::Bf16, WIDTH * 2, &off),
        (&plain, Dtype::F32, WIDTH * 4, &off),
        (&quantised, Dtype::F32, WIDTH / 32 * 34, &off),
        (&kept, Dtype::F32, WIDTH / 32 * 34, &written),
        (&kept, Dtype::F32, WIDTH / 32 * 34, &read),
    ] {
        let (model, held, peak) = measure(source, dtype);
        assert_eq!(model.quantised_cache(), expected);
        let embedding = ROWS * row_bytes;
        let what = format!("{dtype} {expected:?}: {held} bytes stay, {peak} at most");
        assert!(held >= embedding && held <= embedding + REST_MAX, "{what}");
        assert!(peak <= held + BESIDE_MAX, "{what}");
    }
}
