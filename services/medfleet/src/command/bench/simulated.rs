//! A whole fleet of real processes around the simulated model, with the smallest pictures it takes: everything of a job is
//! there but the work itself.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use medfleet_queue::QueueConfig;
use toml::{Table, Value, toml};

use super::programs::{POOL, Program, Site, section};
use super::usage::Usage;
use crate::client::Fleet;
use crate::fleet::data::Data;

/// Side of the pictures and of the frames made of them, in pixels of one byte: 64 bytes.
pub(super) const SIDE: u32 = 8;

/// How many of each service, and how long the model takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) preprocessors: u32,
    pub(super) encoders: u32,
    pub(super) decoders: u32,
    /// Units that each process works on at a time.
    pub(super) slots: u32,
    /// Time to encode a frame.
    pub(super) encode: Duration,
    /// Time to write a text.
    pub(super) decode: Duration,
}

/// The running processes.
pub(super) struct SimulatedFleet {
    site: Site,
    programs: Vec<Program>,
    shape: Shape,
}

impl SimulatedFleet {
    /// Starts all of them and waits until they serve.
    pub(super) async fn start(
        data: Data,
        queue: QueueConfig,
        blobs: &Path,
        shape: Shape,
    ) -> Result<Self> {
        let site = Site::new(data, queue, PathBuf::from(blobs))?;
        let programs = vec![site.start("ingest", "ingest", ingest(&site, shape)?)?];
        let mut fleet = Self {
            site,
            programs,
            shape: Shape {
                preprocessors: 0,
                encoders: 0,
                decoders: 0,
                ..shape
            },
        };
        fleet.add("preprocess", 0..shape.preprocessors, &preprocess(shape))?;
        fleet.shape.preprocessors = shape.preprocessors;
        fleet.grow(shape.encoders, shape.decoders).await?;
        Ok(fleet)
    }

    /// Starts more encoders and decoders, until there are so many, and waits until all serve.
    pub(super) async fn grow(&mut self, encoders: u32, decoders: u32) -> Result<()> {
        let shape = self.shape;
        self.add("encode", shape.encoders..encoders, &encode(shape))?;
        self.add("decode", shape.decoders..decoders, &decode(shape))?;
        self.shape.encoders = shape.encoders.max(encoders);
        self.shape.decoders = shape.decoders.max(decoders);
        for program in &mut self.programs {
            program.ready().await?;
        }
        Ok(())
    }

    fn add(&mut self, role: &str, numbers: Range<u32>, parts: &Table) -> Result<()> {
        for number in numbers {
            let name = match number {
                0 => role.to_owned(),
                _ => format!("{role}-{number}"),
            };
            let program = self.site.start(role, &name, parts.clone())?;
            self.programs.push(program);
        }
        Ok(())
    }

    /// How clients reach it.
    pub(super) fn address(&self) -> Result<Fleet> {
        self.site.fleet()
    }

    /// What each process has taken so far, by its name.
    pub(super) fn usages(&self) -> Result<Vec<(String, Usage)>> {
        let usages = self.programs.iter();
        usages
            .map(|program| Ok((program.name().to_owned(), program.usage()?)))
            .collect()
    }

    /// What the processes said last, for an error.
    pub(super) fn words(&self) -> String {
        let said = self.programs.iter().map(|program| {
            let tail = program.tail();
            match tail.is_empty() {
                true => String::new(),
                false => format!("{}:\n{tail}\n", program.name()),
            }
        });
        said.collect()
    }

    pub(super) fn stop(self) -> Result<()> {
        // Workers first, so that ingest has nobody to wait for.
        for program in self.programs.into_iter().rev() {
            program.stop()?;
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> Value {
    format!("{}ms", duration.as_millis()).into()
}

fn ingest(site: &Site, shape: Shape) -> Result<Table> {
    let mut ingest = site.ingest()?;
    let one = Duration::from_millis(1);
    let rates = Table::from_iter([
        ("preprocess_per_file".to_owned(), millis(one)),
        ("encode_per_frame".to_owned(), millis(shape.encode.max(one))),
        ("decode_per_frame".to_owned(), millis(shape.decode.max(one))),
        ("decode_per_token".to_owned(), millis(Duration::ZERO)),
    ]);
    ingest.insert("cost".to_owned(), section("rates", rates).into());
    Ok(section("ingest", ingest))
}

fn preprocess(shape: Shape) -> Table {
    let mut table = worker(shape);
    table.insert("frame_side".to_owned(), SIDE.into());
    table.insert("decodes_max".to_owned(), shape.slots.into());
    section("preprocess", table)
}

fn encode(shape: Shape) -> Table {
    with_model(section("encode", worker(shape)), shape)
}

fn decode(shape: Shape) -> Table {
    with_model(section("decode", worker(shape)), shape)
}

/// What every worker's section has.
fn worker(shape: Shape) -> Table {
    let slots = Table::from_iter([("slots".to_owned(), shape.slots.into())]);
    Table::from_iter([
        ("pool".to_owned(), POOL.into()),
        ("worker".to_owned(), slots.into()),
    ])
}

/// Tokens of 64 bytes too: one of 32 numbers.
fn with_model(mut parts: Table, shape: Shape) -> Table {
    let mut model = toml! {
        kind = "simulated"
        tokens_per_image = 1
        token_width = 32
        words = 4
    };
    model.insert("frame_side".to_owned(), SIDE.into());
    model.insert("encode_frame".to_owned(), millis(shape.encode));
    // All of it before the first word.
    model.insert("prefill".to_owned(), millis(shape.decode));
    parts.insert("model".to_owned(), model.into());
    parts
}

/// A picture that no other number has, as a PNG.
pub(super) fn picture(number: u64) -> Result<Vec<u8>> {
    let mut pixels: Vec<u8> = (0..SIDE * SIDE).map(|at| (at * 37 % 251) as u8).collect();
    pixels[..8].copy_from_slice(&number.to_le_bytes());
    let image =
        image::GrayImage::from_raw(SIDE, SIDE, pixels).context("the picture is not square")?;
    let mut png = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut png, image::ImageFormat::Png)
        .context("cannot write a picture")?;
    Ok(png.into_inner())
}
