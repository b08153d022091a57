//! One message of each stored or queued kind, filled with fixed values.
//! Their encodings are committed in `proto/samples`; a message that was released once must decode to the same values for ever.

use medfleet_proto::v1;
use medfleet_proto::work::v1 as work;
use prost::{DecodeError, Message};

/// A message that was stored.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    /// As this version of the code writes it.
    pub(crate) bytes: Vec<u8>,
    /// Reads the same message and writes it again: fields that this version no longer knows would be lost.
    pub(crate) again: fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
}

/// Every sample.
pub(crate) fn all() -> Vec<Sample> {
    vec![
        sample("work_unit", &unit()),
        sample("work_unit_cost", &unit_with_cost()),
        sample("job_record", &record()),
        sample("job_record_erased", &erased()),
        sample("job_record_cost", &record_with_cost()),
        sample("job_record_pseudonyms", &record_with_pseudonyms()),
        sample("job_record_forwarded", &forwarded()),
        sample("study_manifest", &study()),
        sample("frames_manifest", &frames()),
        sample("tokens_manifest", &tokens()),
        sample("tokens_manifest_cached", &cached_tokens()),
        sample("study_manifest_encoded", &encoded_study_manifest()),
        sample("frames_manifest_encoded", &encoded_frames()),
        sample("tokens_manifest_device", &tokens_with_device()),
        sample("encoded_study", &encoded_study()),
        sample("job_event", &event()),
        sample("job_event_open", &event_of_open_job()),
        sample("text_chunk", &text()),
        sample("dead_letter", &dead_letter()),
        sample("audit_entry", &audit_entry()),
        sample("audit_entry_scope", &audit_entry_with_scope()),
        sample("pause_record", &pause()),
        sample("upload_record", &upload()),
        sample("upload_record_beyond", &upload_of_job_beyond()),
        sample("worker_presence", &presence()),
        sample("worker_presence_stat", &presence_with_stat()),
        sample("result", &result()),
        sample("result_classification", &classification()),
        sample("result_localisation", &localisation()),
        sample("result_extraction", &extraction()),
        sample("result_class", &result_with_class()),
        sample("result_weights", &result_with_weights()),
        sample(
            "result_encoded",
            &of_provenance(|it| it.encoder_device = "cuda:sm_90".into()),
        ),
        sample("result_cached", &of_provenance(|it| it.frames_cached = 1)),
        sample(
            "result_devices",
            &of_provenance(|it| it.encoder_devices = vec!["cuda:sm_90".into(), "cpu:amx".into()]),
        ),
        sample(
            "result_settings",
            &of_provenance(|it| it.settings_digest = "05".repeat(32)),
        ),
        sample(
            "result_reproducible",
            &of_provenance(|it| it.reproducible = true),
        ),
    ]
}

fn sample<M: Message + Default>(name: &'static str, message: &M) -> Sample {
    Sample {
        name,
        bytes: message.encode_to_vec(),
        again: |bytes| M::decode(bytes).map(|message| message.encode_to_vec()),
    }
}

fn presence() -> work::WorkerPresence {
    work::WorkerPresence {
        worker: "0123456789abcdef".into(),
        stage: "encode".into(),
        pool: "default".into(),
        slots: 4,
        busy: 3,
        version: "0.1.0".into(),
        draining: true,
        ..Default::default()
    }
}

fn presence_with_stat() -> work::WorkerPresence {
    work::WorkerPresence {
        stage: "decode".into(),
        stat_slots: 1,
        ..presence()
    }
}

fn digest(byte: u8) -> bytes::Bytes {
    vec![byte; 32].into()
}

fn unit() -> work::WorkUnit {
    work::WorkUnit {
        tenant: "st-mary".into(),
        job: "0123456789abcdef0123456789abcdef".into(),
        epoch: 1,
        pool: "default".into(),
        class: "stat".into(),
        unit: 3,
        stage: "encode".into(),
        expire_unix_millis: 1_700_000_000_000,
        ..Default::default()
    }
}

fn unit_with_cost() -> work::WorkUnit {
    work::WorkUnit {
        cost: Some(cost()),
        ..unit()
    }
}

fn cost() -> work::Cost {
    work::Cost {
        preprocess_millis: 800,
        frames: 4,
        encode_millis_per_frame: 200,
        decode_millis_per_frame: 50,
        decode_millis: 6_000,
    }
}

fn record() -> work::JobRecord {
    work::JobRecord {
        state: v1::JobState::Failed.into(),
        epoch: 1,
        attempt: 2,
        starts: vec![1, 4, 2],
        chunks_total: 4,
        chunks_done_bitmap: 0b1111,
        pool: "default".into(),
        class: "urgent".into(),
        task: v1::TaskKind::Report.into(),
        image_count: 4,
        body_digest: digest(1),
        study_digest: digest(2),
        frames_digest: digest(3),
        result_digest: bytes::Bytes::new(),
        failure_reason: v1::FailureReason::ImageMissing.into(),
        failure_message: "image 2 of 4 is not in the store".into(),
        times_unix_millis: vec![1, 2, 3, 4, 5, 6],
        expire_unix_millis: 7,
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        model: "medgemma".into(),
        ..Default::default()
    }
}

fn forwarded() -> work::JobRecord {
    work::JobRecord {
        state: v1::JobState::Forwarded.into(),
        failure_reason: 0,
        failure_message: String::new(),
        forwarded: Some(work::Forwarded {
            job: "fedcba9876543210fedcba9876543210".into(),
            time_unix_millis: 8,
            cancel_wanted: true,
            erased: true,
        }),
        ..record()
    }
}

fn erased() -> work::JobRecord {
    work::JobRecord {
        frames_digest: bytes::Bytes::new(),
        erased_unix_millis: 8,
        ..record()
    }
}

fn record_with_cost() -> work::JobRecord {
    work::JobRecord {
        cost: Some(cost()),
        class_asked: "stat".into(),
        ..record()
    }
}

fn record_with_pseudonyms() -> work::JobRecord {
    let hash = |byte: u8| bytes::Bytes::from(vec![byte; 16]);
    work::JobRecord {
        patient_hash: hash(10),
        study_hashes: vec![hash(11), hash(12)],
        ..record()
    }
}

fn study() -> work::StudyManifest {
    let input = work::StudyInput {
        part_digests: vec![digest(4), digest(5)],
        size_bytes: 9 << 20,
        modality: String::new(),
        ..Default::default()
    };
    let kind = v1::task::Kind::Report(v1::ReportTask {
        clinical_context: "cough".into(),
    });
    let task = v1::Task { kind: Some(kind) };
    work::StudyManifest {
        inputs: vec![input],
        task: Some(task),
        decoding: Some(decoding()),
    }
}

fn decoding() -> v1::DecodingParameters {
    v1::DecodingParameters {
        max_tokens: 64,
        temperature: 0.5,
        top_k: 40,
        top_p: 0.9,
        seed: 7,
        ..Default::default()
    }
}

fn used() -> v1::FrameUsed {
    v1::FrameUsed {
        input_index: 1,
        frame_index: 2,
        modality: "CR".into(),
        window: Some(v1::Window {
            center: 40.0,
            width: 400.0,
            function: "LINEAR".into(),
        }),
        frame_digest: "ab".repeat(32),
        token_digest: "cd".repeat(32),
        original_width: 1841,
        original_height: 1955,
        notes: vec!["FIRST_OF_SEVERAL_WINDOWS".into()],
        ..Default::default()
    }
}

fn refused() -> v1::FileRefused {
    v1::FileRefused {
        input_index: 3,
        reason: "NOT_AN_IMAGE".into(),
        message: "neither DICOM, PNG nor JPEG".into(),
    }
}

fn frames() -> work::FramesManifest {
    let entry = work::FrameEntry {
        digest: digest(6),
        width: 896,
        channels: 1,
        info: Some(used()),
    };
    work::FramesManifest {
        frames: vec![entry],
        files_refused: vec![refused()],
        preprocessing_version: "1".into(),
        chunk_starts: vec![0],
        input_digests: vec![digest(7)],
        screening: Some(work::TextScreening {
            masked_task: study().task,
            masked: vec![work::MaskedText {
                kind: "NAME".into(),
                count: 2,
            }],
        }),
        ..Default::default()
    }
}

fn encoded_study_manifest() -> work::StudyManifest {
    work::StudyManifest {
        inputs: vec![work::StudyInput {
            part_digests: vec![digest(4)],
            size_bytes: 1 << 20,
            encoded_images: 2,
            ..Default::default()
        }],
        ..study()
    }
}

fn encoded_frames() -> work::FramesManifest {
    work::FramesManifest {
        encoded: Some(work::EncodedImages {
            image_count: 4,
            encoder_digest: digest(9),
            device: "cuda:sm_90".into(),
            tokens: tokens().tokens,
        }),
        ..frames()
    }
}

fn encoded_study() -> work::EncodedStudy {
    work::EncodedStudy {
        image_count: 4,
        frames: vec![work::EncodedFrame {
            width: 896,
            channels: 1,
            info: Some(used()),
            tokens_checksum: digest(10),
        }],
        files_refused: vec![refused()],
        preprocessing_version: "1".into(),
        input_digests: vec![digest(7)],
        screening: Some(work::TextScreening::default()),
        encoder_digest: digest(9),
        device: "cuda:sm_90".into(),
        tokens_per_frame: 256,
        token_width: 1152,
        dtype: "bf16".into(),
    }
}

fn tokens_with_device() -> work::TokensManifest {
    work::TokensManifest {
        device: "cuda:sm_90".into(),
        ..tokens()
    }
}

fn tokens() -> work::TokensManifest {
    let entry = work::TokensEntry {
        digest: digest(8),
        count: 256,
        width: 1152,
        dtype: "bf16".into(),
        frame_digest: digest(6),
        ..Default::default()
    };
    work::TokensManifest {
        tokens: vec![entry],
        encoder_digest: digest(9),
        encoder_url: "http://127.0.0.1:7444".into(),
        ..Default::default()
    }
}

fn cached_tokens() -> work::TokensManifest {
    let mut tokens = tokens();
    for entry in &mut tokens.tokens {
        entry.made_for = vec![13; 16].into();
    }
    tokens
}

fn of_provenance(change: impl FnOnce(&mut v1::Provenance)) -> v1::Result {
    let mut provenance = provenance();
    change(&mut provenance);
    v1::Result {
        provenance: Some(provenance),
        ..Default::default()
    }
}

fn event() -> work::JobEvent {
    work::JobEvent {
        state: v1::JobState::Encoding.into(),
        time_unix_millis: 5,
        chunks_total: 4,
        chunks_done: 2,
        attempt: 1,
        epoch: 1,
        ..Default::default()
    }
}

fn event_of_open_job() -> work::JobEvent {
    work::JobEvent {
        pool: "default".into(),
        class: "urgent".into(),
        cost: Some(cost()),
        expire_unix_millis: 7,
        ..event()
    }
}

fn text() -> work::TextChunk {
    work::TextChunk {
        attempt: 2,
        offset_bytes: 10,
        text: "lungs are clear".into(),
        epoch: 1,
    }
}

fn dead_letter() -> work::DeadLetter {
    work::DeadLetter {
        unit: Some(unit()),
        reason: v1::FailureReason::AttemptsExhausted.into(),
        message: "decode was started 3 times without finishing".into(),
        time_unix_millis: 8,
    }
}

fn audit_entry() -> work::AuditEntry {
    work::AuditEntry {
        time_unix_millis: 9,
        action: "submit".into(),
        job: "0123".into(),
        actor: "reading-room".into(),
        ..Default::default()
    }
}

fn audit_entry_with_scope() -> work::AuditEntry {
    work::AuditEntry {
        action: "pause".into(),
        job: String::new(),
        scope: "tenant st-mary, class bulk".into(),
        ..audit_entry()
    }
}

fn pause() -> work::PauseRecord {
    work::PauseRecord {
        tenant: "st-mary".into(),
        class: "bulk".into(),
        actor: "night-shift".into(),
        time_unix_millis: 11,
    }
}

fn upload() -> work::UploadRecord {
    work::UploadRecord {
        total_bytes: 100,
        part_digests: vec![digest(1)],
        committed_bytes: 50,
        expire_unix_millis: 10,
        beyond_job: String::new(),
    }
}

fn upload_of_job_beyond() -> work::UploadRecord {
    work::UploadRecord {
        beyond_job: "0123456789abcdef0123456789abcdef".into(),
        ..upload()
    }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn result() -> v1::Result {
    v1::Result {
        job: "jobs/0123456789abcdef0123456789abcdef".into(),
        draft: true,
        notice: "Draft. Not signed.".into(),
        output: Some(v1::result::Output::Report(v1::Report {
            text: "Findings: clear.".into(),
            findings: "clear.".into(),
            impression: String::new(),
        })),
        sentences: vec![v1::Sentence {
            start_bytes: 0,
            end_bytes: 16,
            mean_log_probability: -0.5,
            min_log_probability: -2.0,
        }],
        frames: vec![used()],
        files_refused: vec![refused()],
        warnings: vec!["the text was cut by the token limit".into()],
        finish_reason: v1::FinishReason::Length.into(),
        provenance: Some(provenance()),
        timings: Some(v1::Timings {
            queued: seconds(1),
            preprocess: seconds(2),
            encode: seconds(3),
            time_to_first_token: seconds(4),
            decode: seconds(5),
            total: seconds(15),
        }),
        usage: Some(v1::Usage {
            prompt_tokens: 300,
            image_tokens: 256,
            output_tokens: 64,
        }),
        ..Default::default()
    }
}

fn result_with_class() -> v1::Result {
    v1::Result {
        class: v1::Class::Urgent.into(),
        class_asked: v1::Class::Stat.into(),
        ..Default::default()
    }
}

fn classification() -> v1::Result {
    let score = v1::LabelScore {
        label: "cardiomegaly".into(),
        applies: true,
        probability: 0.75,
    };
    v1::Result {
        output: Some(v1::result::Output::Classification(v1::Classification {
            text: "cardiomegaly: yes (75 %)\n".into(),
            labels: vec![score],
        })),
        provenance: Some(v1::Provenance {
            decoding: Some(v1::DecodingParameters {
                min_p: 0.05,
                repetition_penalty: 1.5,
                stop: vec!["END".into()],
                think: true,
                ..decoding()
            }),
            ..provenance()
        }),
        ..Default::default()
    }
}

fn localisation() -> v1::Result {
    let found = v1::Box {
        label: "heart".into(),
        left_pixels: 1.5,
        top_pixels: 2.5,
        right_pixels: 100.0,
        bottom_pixels: 200.0,
    };
    v1::Result {
        output: Some(v1::result::Output::Localisation(v1::Localisation {
            text: "[]".into(),
            boxes: vec![found],
        })),
        frames: vec![v1::FrameUsed {
            placement: Some(v1::Placement {
                pad_left_pixels: 57,
                pad_top_pixels: 1,
                padded_side_pixels: 1955,
            }),
            ..used()
        }],
        ..Default::default()
    }
}

fn extraction() -> v1::Result {
    v1::Result {
        output: Some(v1::result::Output::Extraction(v1::Extraction {
            json: "{\"seen\": true}".into(),
        })),
        ..Default::default()
    }
}

fn result_with_weights() -> v1::Result {
    of_provenance(|it| {
        it.weights = "q4_k, q6_k".into();
    })
}

fn provenance() -> v1::Provenance {
    v1::Provenance {
        input_digests: vec!["01".repeat(32)],
        preprocessing_version: "1".into(),
        prompt_version: "1".into(),
        prompt_digest: "02".repeat(32),
        model: "tiny".into(),
        model_digest: "03".repeat(32),
        encoder_digest: "04".repeat(32),
        decoding: Some(decoding()),
        code_version: "0.1.0".into(),
        device: "cpu".into(),
        dtype: "f32".into(),
        ..Default::default()
    }
}
