//! The tiny checkpoint in llama.cpp's form, language model and mmproj, against the same reference outputs.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use super::fixtures::{CASES, Fixtures, tiny, tiny_dir};
use super::proposals::bits;
use super::{TOLERANCE, all, difference, on, println_figure};
use crate::gguf::file::GgufFile;
use crate::gguf::names;
use crate::gguf::tests::Writer;
use crate::gguf::write::GgufWriter;
use crate::weights::{self, Weights};
use crate::{ComputeDevice, Dtype, FolderSource, GgufSource, LoadError, Model};

/// llama.cpp's name of a hub tensor, whether it is the language model's, and whether its weight holds the 1 already; of the
/// vision tower's found by trying every name there is.
fn gguf_name(hub: &str) -> (String, bool, bool) {
    if let Some(name) = names::gguf_name(hub) {
        let found = names::text(&name).unwrap();
        assert_eq!(found.name, hub);
        return (name, true, found.one_added);
    }
    let vision = [
        "v.patch_embd",
        "v.position_embd",
        "v.post_ln",
        "mm.input_projection",
        "mm.soft_emb_norm",
        "ln1",
        "ln2",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_out",
        "ffn_up",
        "ffn_down",
    ];
    for kind in ["weight", "bias"] {
        for layer in 0..8 {
            for part in vision {
                for name in [
                    format!("{part}.{kind}"),
                    format!("v.blk.{layer}.{part}.{kind}"),
                ] {
                    let found = names::vision(&name, false).filter(|found| found.name == hub);
                    if let Some(found) = found {
                        return (name, false, found.one_added);
                    }
                }
            }
        }
    }
    panic!("{hub} has no name in GGUF files");
}

fn text_header() -> GgufWriter {
    let config = tiny().config().text.clone();
    GgufWriter::default()
        .text("general.architecture", "gemma3")
        .size("gemma3.context_length", config.positions_max)
        .size("gemma3.embedding_length", config.hidden)
        .size("gemma3.block_count", config.layers.len())
        .size("gemma3.feed_forward_length", config.intermediate)
        .size("gemma3.attention.head_count", config.heads)
        .size("gemma3.attention.head_count_kv", config.kv_heads)
        .size("gemma3.attention.key_length", config.head_dim)
        .size("gemma3.attention.value_length", config.head_dim)
        .size("gemma3.attention.sliding_window", config.window)
        .size("gemma3.attention.sliding_window_pattern", 3)
        .float(
            "gemma3.attention.scale",
            config.query_scalar.powf(-0.5) as f32,
        )
        .float(
            "gemma3.attention.layer_norm_rms_epsilon",
            config.norm_eps as f32,
        )
        .float("gemma3.rope.freq_base", config.rope_global_theta as f32)
        .text("gemma3.rope.scaling.type", "linear")
        .float(
            "gemma3.rope.scaling.factor",
            config.rope_global_factor as f32,
        )
}

fn vision_header() -> GgufWriter {
    let config = tiny().config().vision.clone().unwrap();
    GgufWriter::default()
        .text("general.architecture", "clip")
        .text("clip.projector_type", "gemma3")
        .size("clip.vision.image_size", config.image_size)
        .size("clip.vision.patch_size", config.patch_size)
        .size("clip.vision.embedding_length", config.hidden)
        .size("clip.vision.feed_forward_length", config.intermediate)
        .size("clip.vision.block_count", config.layers)
        .size("clip.vision.attention.head_count", config.heads)
        .float(
            "clip.vision.attention.layer_norm_epsilon",
            config.norm_eps as f32,
        )
        .floats("clip.vision.image_mean", &[0.5; 3])
}

/// Writes `text.gguf` and `mmproj.gguf`, with matrices of the language model in `dtype`; the embedding loses the rows
/// from `rows` on.
fn write(dir: &Path, dtype: GgmlDType, rows: usize) -> GgufSource {
    let bytes = std::fs::read(tiny_dir().join("model.safetensors")).unwrap();
    let (mut text, mut vision) = (Writer::new(text_header()), Writer::new(vision_header()));
    for (hub, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
        let (name, is_text, one_added) = gguf_name(hub);
        let mut shape = view.shape().to_vec();
        let mut values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        if one_added {
            values.iter_mut().for_each(|x| *x += 1.0);
        }
        if name == "token_embd.weight" {
            values.truncate(rows.saturating_mul(shape[1]));
            shape[0] = shape[0].min(rows);
        }
        let quantise = is_text && shape.len() == 2 && shape[1].is_multiple_of(32);
        let dtype = if quantise { dtype } else { GgmlDType::F32 };
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap();
        let data = match dtype {
            GgmlDType::F32 => raw(&tensor, candle_core::DType::F32),
            GgmlDType::F16 => raw(&tensor, candle_core::DType::F16),
            GgmlDType::BF16 => raw(&tensor, candle_core::DType::BF16),
            quantised => {
                let stored = QTensor::quantize(&tensor, quantised).unwrap();
                stored.data().unwrap().into_owned()
            }
        };
        let writer = if is_text { &mut text } else { &mut vision };
        writer.tensor(&name, &shape, dtype, data);
    }
    std::fs::write(dir.join("text.gguf"), text.bytes()).unwrap();
    std::fs::write(dir.join("mmproj.gguf"), vision.bytes()).unwrap();
    GgufSource {
        text: dir.join("text.gguf"),
        vision: Some(dir.join("mmproj.gguf")),
        tokenizer: Some(tiny_dir().join("tokenizer.json")),
        quantised: false,
        digest_cache: None,
    }
}

/// Little-endian bytes of a tensor in another dtype, by way of a safetensors file, which stores just those.
fn raw(tensor: &Tensor, dtype: candle_core::DType) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.safetensors");
    tensor
        .to_dtype(dtype)
        .unwrap()
        .save_safetensors("one", &path)
        .unwrap();
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor("one").unwrap().data().to_vec()
}

/// The largest distance from the reference over all cases.
fn worst(model: &Model) -> f32 {
    let fixtures = Fixtures::read();
    let one = |name: &&str| {
        let case = fixtures.case(model, name);
        difference(&case.selected(&case.all_logits(model)), &case.logits)
    };
    CASES.iter().map(one).fold(0.0, f32::max)
}

#[test]
fn both_files_in_f32_are_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let source = write(dir.path(), GgmlDType::F32, usize::MAX);
    let model = Model::load_gguf(&source, all(Dtype::F32)).unwrap();
    let mut expected = tiny().config().text.clone();
    // The file has the scale in f32.
    let scalar = model.config().text.query_scalar;
    assert!((scalar - expected.query_scalar).abs() < 1e-5);
    expected.query_scalar = scalar;
    assert_eq!(model.config().text, expected);
    assert_eq!(model.config().vision, tiny().config().vision);
    assert!(model.digests().encoder.is_some());
    let found = worst(&model);
    assert!(found <= TOLERANCE, "{found}");

    // The tower from a Hugging Face folder instead of the mmproj file.
    let folder = GgufSource {
        vision: Some(tiny_dir()),
        ..source
    };
    let model = Model::load_gguf(&folder, all(Dtype::F32)).unwrap();
    assert_eq!(model.digests().encoder, tiny().digests().encoder);
    let found = worst(&model);
    assert!(found <= TOLERANCE, "{found}");
}

/// llama.cpp's converter leaves out the rows past the text tokens, so the soft token of real files has none.
#[test]
fn the_soft_token_needs_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let soft = tiny().forbidden_tokens()[0] as usize;
    let model =
        Model::load_gguf(&write(dir.path(), GgmlDType::F32, soft), all(Dtype::F32)).unwrap();
    assert_eq!(model.config().text.vocab, soft);
    let case = Fixtures::read().case(&model, "one_image");
    let narrow = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
        rows.iter().map(|row| row[..soft].to_vec()).collect()
    };
    let found = case.all_logits(&model);
    let found = difference(&case.selected(&found), &narrow(&case.logits));
    assert!(found <= TOLERANCE, "{found}");
}

/// The mean distance of the logits of a long text from the reference's.
fn mean(model: &Model) -> f32 {
    let case = Fixtures::read().case(model, "text");
    let rows = case.selected(&case.all_logits(model));
    let found = rows.iter().flatten();
    let all = found.zip(case.logits.iter().flatten());
    let count = case.logits.len() * case.logits[0].len();
    all.map(|(a, b)| (a - b).abs()).sum::<f32>() / count as f32
}

#[test]
fn halves_and_quants_stay_near() {
    // (stored as, allowed mean distance of the logits, whose standard deviation is above 3)
    for (dtype, bound) in [
        (GgmlDType::F16, 0.02),
        (GgmlDType::BF16, 0.2),
        (GgmlDType::Q8_0, 0.5),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut source = write(dir.path(), dtype, usize::MAX);
        let found = mean(&Model::load_gguf(&source, all(Dtype::F32)).unwrap());
        println_figure(&format!("{dtype:?} dequantised, mean"), found);
        assert!(found <= bound && found > TOLERANCE, "{dtype:?}: {found}");
        source.quantised = true;
        let found = mean(&Model::load_gguf(&source, all(Dtype::F32)).unwrap());
        println_figure(&format!("{dtype:?} as stored, mean"), found);
        assert!(found <= bound * 1.5, "{dtype:?} as stored: {found}");
    }
}

fn quantised_folder() -> FolderSource {
    FolderSource {
        quantised: true,
        ..FolderSource::new(tiny_dir())
    }
}

/// The same blocks, whoever made them: the same bits of every logit.
#[test]
fn a_folder_that_is_quantised_is_its_gguf_as_stored() {
    let dir = tempfile::tempdir().unwrap();
    let stored = GgufSource {
        vision: Some(tiny_dir()),
        quantised: true,
        ..write(dir.path(), GgmlDType::Q8_0, usize::MAX)
    };
    let fixtures = Fixtures::read();
    for (device, dtype) in [
        ("cpu", Dtype::F32),
        ("cpu", Dtype::Bf16),
        ("cpu:portable", Dtype::F32),
    ] {
        let options = on(device.parse().unwrap(), dtype);
        let stored = Model::load_gguf(&stored, options).unwrap();
        let made = Model::load_folder(&quantised_folder(), options).unwrap();
        let plain = Model::load(&tiny_dir(), options).unwrap();
        assert_eq!((stored.held(), made.held()), ("q8_0", "q8_0"));
        assert!(made.rows_stand_alone());
        for name in CASES {
            let case = fixtures.case(&made, name);
            let found = bits(&case.all_logits(&made));
            let what = format!("{name} on {device} in {dtype}");
            assert_eq!(found, bits(&case.all_logits(&stored)), "{what}");
            assert_ne!(found, bits(&case.all_logits(&plain)), "{what}");
        }
    }
}

/// Who asks for what only the kernels promise can say why a file is without it.
#[test]
fn types_without_kernels_are_named() {
    for (stored, device, expected) in [
        (GgmlDType::Q5_0, "cpu", "q5_0"),
        (GgmlDType::Q8_0, "cpu", ""),
        (GgmlDType::Q5_0, "cpu:generic", ""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = GgufSource {
            vision: None,
            quantised: true,
            ..write(dir.path(), stored, usize::MAX)
        };
        let options = on(device.parse().unwrap(), Dtype::F32);
        let model = Model::load_gguf(&source, options).unwrap();
        let what = format!("{stored:?} on {device}");
        assert_eq!(model.without_kernels(), expected, "{what}");
        let have_kernels = device == "cpu" && expected.is_empty();
        assert_eq!(model.rows_stand_alone(), have_kernels, "{what}");
    }
}

/// Another form of the same weights is another model; its image tokens are the same.
#[test]
fn a_form_has_a_digest_of_its_own() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plain = *tiny().digests();
    let remembering = FolderSource {
        digest_cache: Some(cache.path().to_owned()),
        ..quantised_folder()
    };
    let load = |source: &FolderSource| Model::load_folder(source, all(Dtype::F32)).unwrap();
    let made = *load(&quantised_folder()).digests();
    assert!(made.model != plain.model && made.encoder == plain.encoder);
    // What is remembered is of the files: once for both forms.
    assert_eq!(*load(&remembering).digests(), made);
    let unquantised = FolderSource {
        quantised: false,
        ..remembering
    };
    assert_eq!(*load(&unquantised).digests(), plain);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);

    let mut source = write(dir.path(), GgmlDType::Q8_0, usize::MAX);
    source.digest_cache = Some(cache.path().to_owned());
    let dequantised = Model::load_gguf(&source, all(Dtype::F32)).unwrap();
    source.quantised = true;
    let stored = Model::load_gguf(&source, all(Dtype::F32)).unwrap();
    assert_eq!((dequantised.held(), stored.held()), ("", "q8_0"));
    assert!(dequantised.digests().model != stored.digests().model);
    assert_eq!(dequantised.digests().encoder, stored.digests().encoder);
    source.digest_cache = None;
    let again = Model::load_gguf(&source, all(Dtype::F32)).unwrap();
    assert_eq!(again.digests(), stored.digests());
}

#[test]
fn without_kernels_a_quantised_model_computes_in_f32_alone() {
    let on_generic = |dtype| {
        let options = on(ComputeDevice::CpuGeneric, dtype);
        Model::load_folder(&quantised_folder(), options)
    };
    let found = mean(&on_generic(Dtype::F32).unwrap());
    assert!(found <= 0.75 && found > TOLERANCE, "{found}");
    let refused = on_generic(Dtype::Bf16).unwrap_err();
    assert!(
        matches!(refused, LoadError::QuantisedDtype { form: "q8_0", .. }),
        "{refused}"
    );
}

/// The small blocks by ggml's description of them: 32 values with one scale in f16; the 270M covers the other types.
#[test]
fn blocks_are_dequantised_as_described() {
    let half = |bytes: &[u8]| -> f32 {
        let scale = Tensor::from_raw_buffer(bytes, candle_core::DType::F16, &[1], &Device::Cpu);
        let scale = scale.unwrap().to_dtype(candle_core::DType::F32).unwrap();
        scale.to_vec1::<f32>().unwrap()[0]
    };
    let four = |block: &[u8]| -> Vec<f32> {
        let (scale, nibbles) = (half(&block[..2]), &block[2..]);
        let low = nibbles.iter().map(|b| b & 15);
        let high = nibbles.iter().map(|b| b >> 4);
        low.chain(high)
            .map(|q| (f32::from(q) - 8.0) * scale)
            .collect()
    };
    let eight = |block: &[u8]| -> Vec<f32> {
        let scale = half(&block[..2]);
        block[2..]
            .iter()
            .map(|b| f32::from(*b as i8) * scale)
            .collect()
    };
    type Block<'a> = &'a dyn Fn(&[u8]) -> Vec<f32>;
    let cases: [(GgmlDType, usize, Block); 2] =
        [(GgmlDType::Q4_0, 18, &four), (GgmlDType::Q8_0, 34, &eight)];
    for (dtype, size, block) in cases {
        let dir = tempfile::tempdir().unwrap();
        let source = write(dir.path(), dtype, usize::MAX);
        let file = GgufFile::open(&source.text).unwrap();
        let stored = file.map[file.tensors["token_embd.weight"].bytes.clone()].to_vec();
        let expected: Vec<f32> = stored.chunks_exact(size).flat_map(block).collect();
        let mut weights = Weights::default();
        weights.add_gguf(file, false, names::text).unwrap();
        let config = &tiny().config().text.clone();
        let found = weights
            .part(weights::Part::Text, Dtype::F32, &Device::Cpu)
            .at("embed_tokens")
            .get("weight", &[config.vocab, config.hidden])
            .unwrap();
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found, expected, "{dtype:?}");
    }
}

#[test]
fn what_is_not_computed_is_refused() {
    let check = |writer: Writer, expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.gguf");
        std::fs::write(&path, writer.bytes()).unwrap();
        let mut source = GgufSource::text(path);
        source.tokenizer = Some(tiny_dir().join("tokenizer.json"));
        let error = Model::load_gguf(&source, all(Dtype::F32))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error} instead of {expected}");
    };
    let with = |head: GgufWriter, name: &str, shape: &[usize]| {
        let mut writer = Writer::new(head);
        let hidden = tiny().config().text.hidden;
        let rows = tiny().config().text.vocab;
        let zeros = |n: usize| vec![0u8; n * 4];
        writer.tensor(
            "token_embd.weight",
            &[rows, hidden],
            GgmlDType::F32,
            zeros(rows * hidden),
        );
        writer.tensor(name, shape, GgmlDType::F32, zeros(shape.iter().product()));
        writer
    };
    check(
        Writer::new(GgufWriter::default().text("general.architecture", "llama")),
        "gemma3",
    );
    check(Writer::new(text_header()), "token_embd.weight is absent");
    check(
        with(text_header(), "output.weight", &[2, 2]),
        "output.weight is none of Gemma 3's",
    );
    check(
        with(text_header(), "output_norm.weight", &[2]),
        "input_layernorm.weight is missing",
    );
    let mut twice = with(text_header(), "blk.0.attn_norm.weight", &[2]);
    twice.tensor("blk.00.attn_norm.weight", &[2], GgmlDType::F32, vec![0; 8]);
    check(twice, "blk.00.attn_norm.weight is there twice");
    let capped = text_header().float("gemma3.final_logit_softcapping", 30.0);
    check(
        with(capped, "output_norm.weight", &[2]),
        "final_logit_softcapping is 30",
    );
}
