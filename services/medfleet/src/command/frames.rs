//! `medfleet frames`: imaging alone. One PNG for each frame, and a manifest of what was done and refused.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use medfleet_imaging::{
    BurnedIn, Convention, Fate, Frame, FrameInfo, Limits, Options, Prepared, Reason, Refusal,
    Slices, decode_slices, examination, frame_to_png, members, pair_order, plan_volume, prepare,
};
use serde_json::{Value, json};

use super::lettering::LetteringArgs;
use crate::exit::{CommandResult, Exit, Fault};
use crate::modality::VolumeModality;
use crate::paths::Kind;
use crate::{paths, show};

/// Flags of `frames`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// DICOM, PNG, JPEG, TIFF or NIfTI files, or folders, zip or tar archives of them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Where to write the PNGs and manifest.json; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose conventions: medgemma-1.5, medgemma-1.0 or medsiglip
    #[arg(long, value_name = "MODEL", default_value = "medgemma-1.5")]
    convention: String,
    /// Width and height of the frames in pixels [default: the convention's]
    #[arg(long, value_name = "PIXELS")]
    side: Option<u32>,
    /// Take files whose pixels may carry text: ultrasound, secondary captures, digitised film, and what says so itself
    #[arg(long)]
    allow_burned_in: bool,
    #[command(flatten)]
    lettering: LetteringArgs,
    /// What volumes are whose format does not say it (NIfTI)
    #[arg(long, value_enum)]
    modality: Option<VolumeModality>,
    /// Say which of two files is the prior and which the current examination of one patient, as a comparison would take them
    #[arg(long)]
    pair: bool,
    /// One JSON object per file and line on stdout
    #[arg(long)]
    json: bool,
}

/// Runs the command; exit code 1 if a file was refused.
pub(crate) fn run(args: Args) -> CommandResult {
    let paths = paths::files(&args.paths).map_err(Fault::usage)?;
    let convention = Convention::named(&args.convention).ok_or_else(|| {
        let known: Vec<&str> = Convention::all().iter().map(|c| c.name.as_str()).collect();
        Fault::usage(anyhow!(
            "no convention is called {:?}; there are {}",
            args.convention,
            known.join(", ")
        ))
    })?;
    let side = args.side.unwrap_or(convention.frame_side);
    let options = Options::new(side, Limits::default())
        .map_err(Fault::usage)?
        .following(convention)
        .burned_in(if args.allow_burned_in {
            BurnedIn::Allow
        } else {
            BurnedIn::Refuse
        })
        .checking_text(args.lettering.check()?)
        .with_volume_modality(args.modality.map(VolumeModality::of_imaging));
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let files = inputs(paths, options.limits())?;
    let mut entries = entries(&files, &options, &args.out)?;
    if args.pair {
        say_which_is_prior(&files, &mut entries, options.limits())?;
    }
    let refused = entries
        .iter()
        .filter(|entry| entry.get("refused").is_some())
        .count();
    for (Input { path, .. }, entry) in files.iter().zip(&entries) {
        if args.json {
            show::print_json(entry)?;
        } else {
            show::print(&line(path, entry))?;
        }
    }
    let manifest =
        json!({"preprocessing_version": convention.version, "side": side, "files": entries});
    let path = args.out.join("manifest.json");
    let text = serde_json::to_vec_pretty(&manifest).context("cannot write the manifest as JSON")?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    if refused > 0 {
        eprintln!(
            "medfleet: {refused} of {} files refused; {} says why",
            files.len(),
            path.display()
        );
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// A file, or a file within an archive.
struct Input {
    /// Of an archive's member, the archive's path with the member's name behind it.
    path: PathBuf,
    /// What is in memory already, or why the archive gave no more.
    content: Option<Result<Vec<u8>, Refusal>>,
}

impl Input {
    fn kind(&self) -> Result<Kind> {
        match &self.content {
            Some(Ok(bytes)) => Ok(Kind::of(bytes)),
            Some(Err(_)) => Ok(Kind::Dicom),
            None => paths::kind(&self.path),
        }
    }

    fn prepare(&self, options: &Options) -> Result<Result<Prepared, Refusal>> {
        Ok(match &self.content {
            Some(Ok(bytes)) => prepare(bytes, options),
            Some(Err(refusal)) => Err(refusal.clone()),
            None => prepare(&read(&self.path)?, options),
        })
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        Ok(match &self.content {
            Some(Ok(bytes)) => Cow::Borrowed(bytes),
            Some(Err(refusal)) => return Err(refusal.clone().into()),
            None => Cow::Owned(read(&self.path)?),
        })
    }
}

/// Gives both files of a pair their role, or the reason why they have none.
fn say_which_is_prior(
    files: &[Input],
    entries: &mut [Value],
    limits: &Limits,
) -> Result<(), Fault> {
    let ([first, second], [of_first, of_second]) = (files, entries) else {
        let found = files.len();
        return Err(Fault::usage(anyhow!(
            "--pair takes two files; found {found}"
        )));
    };
    let read = |file: &Input| -> Result<_> { Ok(examination(&file.bytes()?, limits)) };
    let (first, second) = (read(first)?, read(second)?);
    let order = first
        .and_then(|first| Ok((first, second?)))
        .and_then(|(first, second)| pair_order(first.as_ref(), second.as_ref()));
    match order {
        Ok(order) => {
            let roles = order.notes();
            of_first["pair"] = json!(roles[0]);
            of_second["pair"] = json!(roles[1]);
        }
        Err(refusal) => {
            for entry in [of_first, of_second] {
                entry["refused"] = json!(refusal);
                entry["message"] = json!(refusal.to_string());
            }
        }
    }
    Ok(())
}

/// Archives opened; everything else is read when it is its turn.
fn inputs(paths: Vec<PathBuf>, limits: &Limits) -> Result<Vec<Input>> {
    let mut inputs = Vec::with_capacity(paths.len());
    for path in paths {
        if !paths::is_archive(&path)? {
            let content = None;
            inputs.push(Input { path, content });
            continue;
        }
        let outcome = members(&read(&path)?, limits, &mut |member| {
            inputs.push(Input {
                path: path.join(&member.name),
                content: Some(Ok(member.bytes)),
            });
        });
        if let Err(refusal) = outcome {
            let content = Some(Err(refusal));
            inputs.push(Input { path, content });
        }
    }
    Ok(inputs)
}

/// Decodes the files, writes their frames, and returns the manifest's entry of each.
fn entries(files: &[Input], options: &Options, out: &Path) -> Result<Vec<Value>> {
    let mut entries = Vec::with_capacity(files.len());
    let mut slices: Vec<(usize, Box<Slices>)> = Vec::new();
    let mut withheld: Vec<(usize, Refusal)> = Vec::new();
    let kinds = files.iter().map(Input::kind).collect::<Result<Vec<_>>>()?;
    let directory = kinds.contains(&Kind::Directory);
    for (index, file) in files.iter().enumerate() {
        let path = file.path.as_path();
        if directory && kinds[index] == Kind::Other {
            let refusal = Refusal::new(Reason::BesideDirectory);
            entries.push(left_out(index, path, &refusal));
            continue;
        }
        let entry = match file.prepare(options)? {
            Ok(Prepared::Frames(decoded)) => {
                let frames = write(index, 0, &decoded.frames, out)?;
                json!({"input_index": index, "path": path, "frames": frames,
                    "clinical": decoded.clinical, "notes": decoded.notes})
            }
            Ok(Prepared::Slices(file)) => {
                let entry = json!({"input_index": index, "path": path, "frames": [],
                    "clinical": file.clinical()});
                slices.push((index, file));
                entry
            }
            // A report, an index: nothing to see, unless it is all there is.
            Err(refusal) if refusal.leaves_out() && files.len() > 1 => {
                left_out(index, path, &refusal)
            }
            Ok(Prepared::Withheld(refusal)) => {
                withheld.push((index, refusal.clone()));
                json!({"input_index": index, "path": path, "frames": [],
                    "fate": {"UNUSED": refusal.reason}, "message": refusal.to_string()})
            }
            Err(refusal) => refused(index, path, &refusal),
        };
        entries.push(entry);
    }
    // Without a volume that it could be left out of, such a file is an image that was asked for.
    if slices.is_empty() {
        for (index, refusal) in withheld {
            entries[index] = refused(index, &files[index].path, &refusal);
        }
    }
    while let Some((_, first)) = slices.first() {
        let first = first.clone();
        let (study, others) = slices
            .into_iter()
            .partition(|(_, file)| file.same_study(&first));
        slices = others;
        volume(&study, files, options, out, &mut entries)?;
    }
    Ok(entries)
}

/// The volume of one study: its frames are numbered in the order the model sees them.
fn volume(
    study: &[(usize, Box<Slices>)],
    files: &[Input],
    options: &Options,
    out: &Path,
    entries: &mut [Value],
) -> Result<()> {
    let of_study: Vec<(usize, &Slices)> = study
        .iter()
        .map(|(index, file)| (*index, &**file))
        .collect();
    let plan = match plan_volume(&of_study, options.convention()) {
        Ok(plan) => plan,
        Err(refusal) => {
            for (index, _) in study {
                entries[*index] = refused(*index, &files[*index].path, &refusal);
            }
            return Ok(());
        }
    };
    for (index, fate) in &plan.fates {
        entries[*index]["fate"] = json!(fate);
        if let Fate::Unused(why) = fate {
            entries[*index]["message"] = json!(why.text());
        }
    }
    for (place, (index, frame)) in plan.frames.iter().enumerate() {
        match decode_slices(&files[*index].bytes()?, &[*frame], &plan, options) {
            Ok(frames) => {
                let written = write(*index, place, &frames, out)?;
                if let Some(list) = entries[*index]["frames"].as_array_mut() {
                    list.extend(written);
                }
            }
            Err(refusal) => entries[*index] = refused(*index, &files[*index].path, &refusal),
        }
    }
    Ok(())
}

fn left_out(index: usize, path: &Path, refusal: &Refusal) -> Value {
    json!({"input_index": index, "path": path, "frames": [],
        "fate": {"UNUSED": refusal.reason}, "message": refusal.to_string()})
}

fn refused(index: usize, path: &Path, refusal: &Refusal) -> Value {
    json!({"input_index": index, "path": path, "refused": refusal, "message": refusal.to_string()})
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes frames as PNG, `first` being the place of the first one within its study.
fn write(
    index: usize,
    first: usize,
    frames: &[(Frame, FrameInfo)],
    out: &Path,
) -> Result<Vec<Value>> {
    let mut written = Vec::with_capacity(frames.len());
    for (number, (frame, info)) in (first..).zip(frames) {
        let name = format!("{index:04}-{number:04}.png");
        let png = frame_to_png(frame)
            .with_context(|| format!("cannot encode frame {number} of input {index}"))?;
        let target = out.join(&name);
        std::fs::write(&target, png)
            .with_context(|| format!("cannot write {}", target.display()))?;
        written
            .push(json!({"file": name, "place": number, "channels": frame.channels, "info": info}));
    }
    Ok(written)
}

fn line(path: &Path, entry: &Value) -> String {
    if entry.get("refused").is_some() {
        let message = entry["message"].as_str().unwrap_or_default();
        return format!("{}: refused: {message}", path.display());
    }
    if let Some(unused) = entry["fate"]["UNUSED"].as_str() {
        return format!("{}: not used: {unused}", path.display());
    }
    let frames = entry["frames"].as_array().map_or(0, Vec::len);
    let first = entry["frames"][0]["file"].as_str().unwrap_or("-");
    let pair = entry["pair"].as_str().map(|role| format!(", {role}"));
    let pair = pair.unwrap_or_default();
    format!("{}: {frames} frame(s), first {first}{pair}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_picture_is_refused_in_the_manifest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "hello").expect("a file");
        let options = Options::new(64, Limits::default()).expect("a side in range");
        let files = inputs(vec![path.clone()], options.limits()).expect("a file");
        let entries = entries(&files, &options, folder.path()).expect("an entry");
        assert!(entries[0].get("refused").is_some());
        assert!(line(&path, &entries[0]).contains("refused"), "{entries:?}");
    }
}
