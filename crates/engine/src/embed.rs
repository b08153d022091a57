//! MedSigLIP behind the engine: in the encode half a frame becomes its embedding, the one image token of this model, and
//! in the decode half embeddings are compared with labels. So its jobs go the way of every other, with the same checks.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use medfleet_core::Class;
use medfleet_model as model;
use model::Dtype;

use crate::backend::{Description, EncodeBackend, EngineError, Frame, ImageTokens};
use crate::health::{Call, Health, Monitor, Patience, Reporter, Suspect};
use crate::real::{as_u32, failed, model_frame, name_of};
use crate::turns::Turns;

/// A loaded MedSigLIP; all clones are one.
#[derive(Debug, Clone)]
pub struct LoadedEmbedder {
    model: Arc<model::Embedder>,
    description: Description,
    /// One comparison at a time: each uses every core.
    turns: Turns,
    /// Of comparisons; encoding has its own.
    reporter: Arc<Reporter>,
    monitor: Monitor,
}

/// How well a label fits a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    /// Scale × product of both embeddings + bias, as the model learnt them.
    pub logit: f32,
    /// Its sigmoid.
    pub probability: f32,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// A row a picture, a value a label.
    pub matches: Vec<Vec<Match>>,
    /// What of which labels the model is not shown, in sentences; labels by their number, from 0.
    pub misread: Vec<String>,
}

impl LoadedEmbedder {
    /// Loads a Hugging Face folder. Takes seconds: call it on a blocking thread.
    ///
    /// # Errors
    /// The model's own, which name the file, key or tensor; [`EngineError::Model`] for another dtype than f32, in which its
    /// embeddings go from encode to decode.
    pub fn load(
        folder: &Path,
        dtype: Dtype,
        device: model::ComputeDevice,
    ) -> Result<Self, EngineError> {
        if dtype != Dtype::F32 {
            return Err(EngineError::Model(
                format!("MedSigLIP runs in f32 in a fleet; model.dtype is {dtype}").into(),
            ));
        }
        let model = model::Embedder::load(folder, dtype, device).map_err(failed)?;
        let digest = *model.digest();
        let description = Description {
            model: name_of(folder),
            model_digest: digest,
            settings_digest: *model.settings_digest(),
            encoder_digest: digest,
            device: model.device(),
            dtype,
            weights: String::new(),
            // Each picture and each label is computed by itself.
            reproducible: true,
            frame_side: as_u32(model.image_size()),
            tokens_per_image: 1,
            token_width: as_u32(model.width()),
            context_tokens_max: as_u32(model.text_tokens_max()),
        };
        let (reporter, monitor) = Reporter::new(Patience::SAFE);
        Ok(Self {
            model: Arc::new(model),
            description,
            turns: Turns::default(),
            reporter: Arc::new(reporter),
            monitor,
        })
    }

    /// Whether it can still compare.
    pub(crate) const fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The embeddings as numbers, `[width]` f32 of length 1 each.
    pub fn embeddings(&self, images: &[ImageTokens]) -> Result<Vec<Vec<f32>>, EngineError> {
        let embeddings = images.iter().map(|image| {
            image.check(&self.description)?;
            let values = image.bytes.chunks_exact(4);
            let values = values.filter_map(|value| value.first_chunk().copied());
            let values: Vec<f32> = values.map(f32::from_le_bytes).collect();
            if values.iter().all(|value| value.is_finite()) {
                return Ok(values);
            }
            Err(EngineError::Tokens {
                what: "values",
                expected: "numbers".to_owned(),
                found: "some that are none".to_owned(),
            })
        });
        embeddings.collect()
    }

    /// How well each label fits each picture, for a job of this class: one of STAT waits only for the comparison under way.
    ///
    /// # Errors
    /// As [`LoadedEmbedder::embeddings`], the model's own failure, [`EngineError::Panicked`], [`EngineError::Hung`], and
    /// [`EngineError::Stopped`] where another comparison hangs, or the model broke before this one began.
    pub async fn compare(
        &self,
        images: &[ImageTokens],
        labels: Vec<String>,
        class: Class,
    ) -> Result<Compared, EngineError> {
        let images = self.embeddings(images)?;
        let (model, call) = (Arc::clone(&self.model), Call::compute(labels.len()));
        let comparing = move || {
            let read = labels.iter().map(|label| model.read(label).map_err(failed));
            let read: Vec<model::ReadText> = read.collect::<Result<_, _>>()?;
            let labels = labels
                .iter()
                .map(|label| model.text(label).map_err(embedding_failed));
            let labels: Vec<Vec<f32>> = labels.collect::<Result<_, _>>()?;
            let rows = images.iter().map(|image| {
                let matches = labels.iter().map(|label| Match {
                    logit: model.logit(image, label),
                    probability: model.probability(image, label),
                });
                matches.collect()
            });
            Ok(Compared {
                matches: rows.collect(),
                misread: misread(&read),
            })
        };
        self.alone(class, call, comparing).await
    }

    /// Computes on another thread, when nothing else does. What breaks it ends all, as it does for an engine.
    async fn alone<T: Send + 'static>(
        &self,
        class: Class,
        call: Call,
        compute: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        // It ends with the thread, not with whoever waits for that.
        let turn = self.turns.take(class);
        let suspect = Suspect::default();
        let turn = self.monitor.answer(&suspect, turn).await?;
        if self.monitor.health() != Health::Running {
            // A model that broke in a turn before is not used again.
            return Err(EngineError::Stopped);
        }
        let (model, reporter) = (Arc::clone(&self.model), Arc::clone(&self.reporter));
        let asked = suspect.clone();
        let computing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            asked.set(true);
            let computed = reporter.guard(call, compute);
            match &computed {
                // The engine has ended by then.
                Ok(_) => reporter.made_numbers(),
                Err(EngineError::Panicked) => {}
                Err(EngineError::NotFinite) => {
                    // What is tried now is not of these labels.
                    asked.set(false);
                    let reads =
                        || !matches!(model.text("chest"), Err(model::EmbedError::NotFinite));
                    return Err(reporter.without_numbers(Call::compute(1), reads).told());
                }
                Err(error) => {
                    reporter.still_computes(error, || model.computes());
                }
            }
            computed
        });
        match self.monitor.answer(&suspect, computing).await? {
            Ok(computed) => computed,
            Err(_) => Err(EngineError::Panicked),
        }
    }
}

fn embedding_failed(error: model::EmbedError) -> EngineError {
    match error {
        model::EmbedError::NotFinite => EngineError::NotFinite,
        error => failed(error),
    }
}

/// What a reader of scores should know: a label that is not read as it stands has the score of another text.
fn misread(labels: &[model::ReadText]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, label) in labels.iter().enumerate() {
        let mut say = |what: &str| found.push(format!("labels[{index}] {what}"));
        if !label.has_known {
            say("has no word that the model knows: its scores mean nothing");
        } else if label.has_unknown {
            say("has letters or words that the model does not know: its scores are of the rest");
        }
        if label.is_cut {
            say("is longer than the model reads: its scores are of its beginning");
        }
        let same = labels[..index]
            .iter()
            .position(|other| label.reads_as(other));
        if let Some(same) = same {
            say(&format!("is to the model the same text as labels[{same}]"));
        }
    }
    found
}

impl EncodeBackend for LoadedEmbedder {
    fn description(&self) -> &Description {
        &self.description
    }

    fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
        let embedded = frames.iter().map(|frame| {
            let image = self.model.image(&model_frame(frame)?);
            let values = image.map_err(embedding_failed)?;
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            Ok(ImageTokens {
                count: 1,
                width: as_u32(values.len()),
                dtype: Dtype::F32,
                bytes: Bytes::from(bytes),
            })
        });
        embedded.collect()
    }

    fn computes(&mut self) -> bool {
        self.model.computes()
    }

    fn makes_numbers(&mut self) -> bool {
        let side = self.model.image_size();
        let black = model::Frame::new(side, 1, vec![0; side * side]);
        // Whatever else fails says nothing about numbers.
        let embedded = black.map(|black| self.model.image(&black));
        !matches!(embedded, Ok(Err(model::EmbedError::NotFinite)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::mpsc;

    use super::*;

    const CPU: model::ComputeDevice = model::ComputeDevice::Cpu;

    /// The checkpoint of the model's own tests.
    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/tiny_medsiglip")
    }

    fn frame(side: u32, shade: u8) -> Frame {
        let pixels = (0..side * side).map(|at| (at % 251) as u8 ^ shade);
        Frame {
            side,
            channels: 1,
            pixels: pixels.collect::<Vec<u8>>().into(),
        }
    }

    #[tokio::test]
    async fn what_went_through_both_halves_is_what_the_model_says() {
        let mut loaded = LoadedEmbedder::load(&folder(), Dtype::F32, CPU).expect("it loads");
        let side = loaded.description().frame_side;
        let frames = [frame(side, 0), frame(side, 77)];
        let tokens = loaded.encode(&frames).expect("encoded");
        let embeddings = loaded.embeddings(&tokens).expect("embeddings");
        assert_ne!(embeddings[0], embeddings[1]);
        let labels = ["a clear lung".to_owned(), "an effusion".to_owned()];
        let found = loaded.compare(&tokens, labels.to_vec(), Class::Bulk).await;
        let found = found.expect("compared");
        assert_eq!(found.misread, Vec::<String>::new());
        let found = found.matches;
        let model = model::Embedder::load(&folder(), Dtype::F32, CPU).expect("it loads");
        for (frame, row) in frames.iter().zip(&found) {
            let frame = model::Frame::new(side as usize, 1, frame.pixels.to_vec()).expect("square");
            let image = model.image(&frame).expect("embedded");
            for (label, found) in labels.iter().zip(row) {
                let text = model.text(label).expect("embedded");
                assert_eq!(found.logit, model.logit(&image, &text));
                assert_eq!(found.probability, model.probability(&image, &text));
            }
        }
        assert_eq!(found.len(), 2);
    }

    #[tokio::test]
    async fn a_comparison_that_breaks_the_model_ends_it_and_one_that_fails_does_not() {
        let loaded = LoadedEmbedder::load(&folder(), Dtype::F32, CPU).expect("it loads");
        let compute = |breaks: bool| {
            loaded.alone(
                Class::Routine,
                Call::compute(1),
                move || -> Result<(), EngineError> {
                    assert!(!breaks, "the test breaks it");
                    Err(EngineError::Model("no memory".into()))
                },
            )
        };
        let failed = compute(false).await;
        assert!(matches!(failed, Err(EngineError::Model(_))), "{failed:?}");
        assert_eq!(loaded.monitor().health(), Health::Running);
        let broken = compute(true).await;
        assert!(matches!(broken, Err(EngineError::Panicked)), "{broken:?}");
        assert_eq!(loaded.monitor().ended().await, Health::Failed);
    }

    /// What a panic left half-done is never seen, and who comes then is not to blame.
    #[tokio::test]
    async fn a_comparison_that_waits_while_the_model_breaks_is_done_elsewhere() {
        let loaded = LoadedEmbedder::load(&folder(), Dtype::F32, CPU).expect("it loads");
        let (permit, permits) = mpsc::channel::<()>();
        let breaks = loaded.alone(
            Class::Routine,
            Call::compute(1),
            move || -> Result<(), EngineError> {
                // A test that is over permits nothing.
                let _ = permits.recv();
                panic!("the test breaks it")
            },
        );
        let (does, did) = mpsc::channel();
        let compute = || {
            let does = does.clone();
            loaded.alone(Class::Routine, Call::compute(1), move || {
                does.send(()).expect("the test listens");
                Ok(())
            })
        };
        // Polled in this order.
        let (broken, waited, ()) = tokio::join!(breaks, compute(), async {
            drop(permit);
        });
        assert!(matches!(broken, Err(EngineError::Panicked)), "{broken:?}");
        for later in [waited, compute().await] {
            assert!(matches!(later, Err(EngineError::Stopped)), "{later:?}");
        }
        assert!(did.try_recv().is_err(), "the model was used again");
    }

    #[tokio::test]
    async fn a_comparison_of_stat_is_next() {
        let loaded = LoadedEmbedder::load(&folder(), Dtype::F32, CPU).expect("it loads");
        let (permit, permits) = mpsc::channel::<()>();
        let (does, did) = mpsc::channel();
        let compute = |class| {
            let does = does.clone();
            loaded.alone(class, Call::compute(1), move || {
                does.send(class).expect("the test listens");
                Ok(())
            })
        };
        let first = loaded.alone(Class::Routine, Call::compute(1), move || {
            // A test that is over permits nothing.
            let _ = permits.recv();
            Ok(())
        });
        // Polled in this order.
        let (first, bulk, stat, ()) =
            tokio::join!(first, compute(Class::Bulk), compute(Class::Stat), async {
                drop(permit);
            });
        assert!(first.is_ok() && bulk.is_ok() && stat.is_ok());
        let order: Vec<Class> = did.try_iter().collect();
        assert_eq!(order, [Class::Stat, Class::Bulk]);
    }

    #[test]
    fn labels_that_the_model_is_not_shown_whole_are_named() {
        let model = model::Embedder::load(&folder(), Dtype::F32, CPU).expect("it loads");
        let long = "effusion ".repeat(70);
        let longer = format!("{long} fracture");
        let labels = [
            "an effusion",
            "肺炎",
            "a 肺 effusion",
            long.as_str(),
            longer.as_str(),
            "An effusion!",
        ];
        let read = labels.map(|label| model.read(label).expect("it reads"));
        let expected = [
            "labels[1] has no word that the model knows: its scores mean nothing",
            "labels[2] has letters or words that the model does not know: its scores are of the rest",
            "labels[3] is longer than the model reads: its scores are of its beginning",
            "labels[4] is longer than the model reads: its scores are of its beginning",
            "labels[4] is to the model the same text as labels[3]",
            "labels[5] is to the model the same text as labels[0]",
        ];
        assert_eq!(misread(&read), expected);
    }

    #[tokio::test]
    async fn what_is_no_embedding_of_this_model_is_refused() {
        let mut loaded = LoadedEmbedder::load(&folder(), Dtype::F32, CPU).expect("it loads");
        let side = loaded.description().frame_side;
        let mut tokens = loaded.encode(&[frame(side, 0)]).expect("encoded");
        // What an encoder made of a device's fault, and stored.
        let mut faulty = tokens.clone();
        let sound = tokens[0].bytes.slice(4..);
        faulty[0].bytes = [&f32::NAN.to_le_bytes()[..], &sound[..]].concat().into();
        let refused = loaded
            .compare(&faulty, vec!["a".to_owned()], Class::Bulk)
            .await;
        assert!(
            matches!(refused, Err(EngineError::Tokens { what: "values", .. })),
            "{refused:?}"
        );
        tokens[0].width -= 1;
        let refused = loaded
            .compare(&tokens, vec!["a".to_owned()], Class::Bulk)
            .await;
        assert!(
            matches!(refused, Err(EngineError::Tokens { .. })),
            "{refused:?}"
        );
        let refused = LoadedEmbedder::load(&folder(), Dtype::Bf16, CPU).expect_err("f32 only");
        let EngineError::Model(why) = refused else {
            panic!("{refused:?}");
        };
        assert!(why.to_string().contains("bf16"), "{why}");
    }
}
