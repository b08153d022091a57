//! `medfleet frames`: imaging alone. One PNG for each frame, and a manifest of what was done and refused.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use medfleet_imaging::{
    Archive, BurnedIn, Convention, Examination, Fate, Frame, FrameInfo, Limits, Options, Prepared,
    Reason, Refusal, SlicePlan, Slices, Turned, decode_parts, examination, frame_to_png, members,
    pair_order, plan_volume, prepare, refuse_air,
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
    let mut set = Set::new(&options, &args.out, args.pair);
    for path in paths {
        set.path(path)?;
    }
    let entries = set.finish()?;
    let refused = entries
        .iter()
        .filter(|(_, entry)| entry.get("refused").is_some())
        .count();
    for (path, entry) in &entries {
        if args.json {
            show::print_json(entry)?;
        } else {
            show::print(&line(path, entry))?;
        }
    }
    let files = entries.len();
    let entries: Vec<Value> = entries.into_iter().map(|(_, entry)| entry).collect();
    let manifest =
        json!({"preprocessing_version": convention.version, "side": side, "files": entries});
    let path = args.out.join("manifest.json");
    let text = serde_json::to_vec_pretty(&manifest).context("cannot write the manifest as JSON")?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    if refused > 0 {
        eprintln!(
            "medfleet: {refused} of {files} files refused; {} says why",
            path.display()
        );
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// Where a file is.
struct Input {
    /// Of an archive's member, the archive's path with the member's name behind it.
    path: PathBuf,
    /// The file on disk.
    file: PathBuf,
    /// Which one of the archive.
    member: Option<u32>,
    kind: Kind,
}

/// The files and what becomes of them, as they come: of an archive one is in memory at a time, and of the rest only what their
/// headers say.
struct Set<'a> {
    options: &'a Options,
    out: &'a Path,
    inputs: Vec<Input>,
    entries: Vec<Value>,
    slices: Vec<(usize, Box<Slices>)>,
    /// Refused, unless there is a volume that they are left out of.
    withheld: Vec<(usize, Refusal)>,
    /// A report, an index: nothing to see, refused only if it is all there is.
    empty: Vec<(usize, Refusal)>,
    /// Films, and those that presentation states show turned.
    turned: Vec<(usize, Turned)>,
    /// Of a pair: whose each is, and from when.
    examinations: Option<Vec<Result<Option<Examination>, Refusal>>>,
}

impl<'a> Set<'a> {
    fn new(options: &'a Options, out: &'a Path, pair: bool) -> Self {
        Self {
            options,
            out,
            inputs: Vec::new(),
            entries: Vec::new(),
            slices: Vec::new(),
            withheld: Vec::new(),
            empty: Vec::new(),
            turned: Vec::new(),
            examinations: pair.then(Vec::new),
        }
    }

    /// A file, or every file of an archive.
    fn path(&mut self, path: PathBuf) -> Result<()> {
        let bytes = read(&path)?;
        if Archive::of(&bytes).is_none() {
            let input = Input {
                file: path.clone(),
                path,
                member: None,
                kind: Kind::of(&bytes),
            };
            return self.file(input, &bytes);
        }
        let (mut done, mut number) = (Ok(()), 0);
        let options = self.options;
        let opened = members(&bytes, options.limits(), &mut |member| {
            if done.is_ok() {
                let input = Input {
                    path: path.join(&member.name),
                    file: path.clone(),
                    member: Some(number),
                    kind: Kind::of(&member.bytes),
                };
                done = self.file(input, &member.bytes);
            }
            number += 1;
        });
        done?;
        if let Err(refusal) = opened {
            let input = Input {
                file: path.clone(),
                path,
                member: None,
                kind: Kind::Dicom,
            };
            self.entries
                .push(refused(self.entries.len(), &input.path, &refusal));
            self.inputs.push(input);
            if let Some(examinations) = &mut self.examinations {
                examinations.push(Err(refusal));
            }
        }
        Ok(())
    }

    /// Writes what can be seen of a file by itself.
    fn file(&mut self, input: Input, bytes: &[u8]) -> Result<()> {
        let index = self.entries.len();
        let path = input.path.as_path();
        let prepared = prepare(bytes, self.options);
        let prepared = match (prepared, Turned::of(bytes, self.options.limits())) {
            (prepared, Ok(turned)) => {
                self.turned.push((index, turned));
                prepared
            }
            // What a state says of films must be known, or it can't be left out.
            (Err(refusal), Err(unread)) if refusal.leaves_out() => Err(unread),
            (prepared, Err(_)) => prepared,
        };
        let nothing = || json!({"input_index": index, "path": path, "frames": []});
        let entry = match prepared {
            Ok(Prepared::Frames(decoded)) => {
                let frames = write(index, 0, &decoded.frames, self.out)?;
                json!({"input_index": index, "path": path, "frames": frames,
                    "clinical": decoded.clinical, "notes": decoded.notes})
            }
            Ok(Prepared::Slices(file)) => {
                let entry = json!({"input_index": index, "path": path, "frames": [],
                    "clinical": file.clinical()});
                self.slices.push((index, file));
                entry
            }
            Err(refusal) if refusal.leaves_out() => {
                self.empty.push((index, refusal));
                nothing()
            }
            Ok(Prepared::Withheld(refusal)) => {
                self.withheld.push((index, refusal));
                nothing()
            }
            Err(refusal) => refused(index, path, &refusal),
        };
        self.entries.push(entry);
        self.inputs.push(input);
        if let Some(examinations) = &mut self.examinations {
            examinations.push(examination(bytes, self.options.limits()));
        }
        Ok(())
    }

    /// What is only known once all files are there; then the manifest's entry of each, with the path to show.
    fn finish(mut self) -> Result<Vec<(PathBuf, Value)>, Fault> {
        let files = self.entries.len();
        for (index, refusal) in std::mem::take(&mut self.empty) {
            let path = &self.inputs[index].path;
            self.entries[index] = if files > 1 {
                left_out(index, path, &refusal)
            } else {
                refused(index, path, &refusal)
            };
        }
        self.leave_out_what_lies_beside_a_directory()?;
        self.refuse_what_is_shown_turned()?;
        // Without a volume that it could be left out of, such a file is an image that was asked for.
        for (index, refusal) in std::mem::take(&mut self.withheld) {
            let path = &self.inputs[index].path;
            self.entries[index] = if self.slices.is_empty() {
                refused(index, path, &refusal)
            } else {
                left_out(index, path, &refusal)
            };
        }
        let mut slices = std::mem::take(&mut self.slices);
        while let Some((_, first)) = slices.first() {
            let first = first.clone();
            let (study, others) = slices
                .into_iter()
                .partition(|(_, file)| file.same_study(&first));
            slices = others;
            self.volume(&study)?;
        }
        if let Some(examinations) = self.examinations.take() {
            say_which_is_prior(examinations, &mut self.entries)?;
        }
        let paths = self.inputs.into_iter().map(|input| input.path);
        Ok(paths.zip(self.entries).collect())
    }

    /// Viewers and icons lie beside a DICOMDIR: what was seen of them is taken back.
    fn leave_out_what_lies_beside_a_directory(&mut self) -> Result<()> {
        let directory = |input: &Input| input.kind == Kind::Directory;
        if !self.inputs.iter().any(directory) {
            return Ok(());
        }
        for (index, input) in self.inputs.iter().enumerate() {
            if input.kind != Kind::Other {
                continue;
            }
            self.take_back(index)?;
            let refusal = Refusal::new(Reason::BesideDirectory);
            self.entries[index] = left_out(index, &input.path, &refusal);
        }
        let inputs = &self.inputs;
        self.slices
            .retain(|(index, _)| inputs[*index].kind != Kind::Other);
        Ok(())
    }

    fn refuse_what_is_shown_turned(&mut self) -> Result<()> {
        let (files, mut all) = (std::mem::take(&mut self.turned), Turned::default());
        for (_, of_file) in &files {
            all.merge(of_file);
        }
        for (index, of_file) in &files {
            if let Err(refusal) = all.check(of_file) {
                self.refuse_shown(*index, &refusal)?;
            }
        }
        Ok(())
    }

    /// The volume of one study: its frames are numbered in the order the model sees them.
    fn volume(&mut self, study: &[(usize, Box<Slices>)]) -> Result<()> {
        let of_study: Vec<(usize, &Slices)> = study
            .iter()
            .map(|(index, file)| (*index, &**file))
            .collect();
        let plan = match plan_volume(&of_study, self.options.convention()) {
            Ok(plan) => plan,
            Err(refusal) => {
                for (index, _) in study {
                    self.refuse(*index, &refusal);
                }
                return Ok(());
            }
        };
        for (index, fate) in &plan.fates {
            self.entries[*index]["fate"] = json!(fate);
            if let Fate::Unused(why) = fate {
                self.entries[*index]["message"] = json!(why.text());
            }
        }
        let mut on_disk: Vec<PathBuf> = Vec::new();
        for (index, _) in &plan.frames {
            let file = &self.inputs[*index].file;
            if !on_disk.contains(file) {
                on_disk.push(file.clone());
            }
        }
        let mut above_water = Vec::new();
        for file in on_disk {
            above_water.extend(self.slices_of(&file, &plan)?);
        }
        if let Err(refusal) = refuse_air(above_water) {
            for (index, _) in &plan.frames {
                self.refuse_shown(*index, &refusal)?;
            }
        }
        Ok(())
    }

    /// Writes the slices of a file, or of all files of an archive, which is read once for them; whether each has what is above water.
    fn slices_of(&mut self, file: &Path, plan: &SlicePlan) -> Result<Vec<Option<bool>>> {
        // Place in the volume, input and frame of each.
        let mut wanted: Vec<(usize, usize, u32)> = Vec::new();
        for (place, (index, frame)) in plan.frames.iter().enumerate() {
            if self.inputs[*index].file == file {
                wanted.push((place, *index, *frame));
            }
        }
        let mut members: Vec<(Option<u32>, Vec<u32>)> = Vec::new();
        for (_, index, frame) in &wanted {
            let member = self.inputs[*index].member;
            match members.iter_mut().find(|(known, _)| *known == member) {
                Some((_, frames)) => frames.push(*frame),
                None => members.push((member, vec![*frame])),
            }
        }
        let mut refused: Vec<(Option<u32>, Refusal)> = Vec::new();
        let (inputs, entries, out) = (&self.inputs, &mut self.entries, self.out);
        let (mut done, mut above_water) = (Ok(()), Vec::new());
        let bytes = read(file)?;
        let mut each = |member: Option<u32>, slice: Result<(Frame, FrameInfo), Refusal>| {
            let (frame, info) = match slice {
                Ok(slice) => slice,
                // The volume's other files may be good.
                Err(refusal) => {
                    refused.push((member, refusal));
                    return Ok(());
                }
            };
            let found = wanted.iter().position(|(_, index, number)| {
                inputs[*index].member == member && *number == info.frame_index
            });
            if let (Some(found), Ok(())) = (found, &done) {
                let (place, index, _) = wanted.swap_remove(found);
                above_water.push(info.above_water);
                match write(index, place, &[(frame, info)], out) {
                    Ok(written) => {
                        if let Some(list) = entries[index]["frames"].as_array_mut() {
                            list.extend(written);
                        }
                    }
                    Err(error) => done = Err(error),
                }
            }
            Ok(())
        };
        let decoded = decode_parts(&bytes, &members, plan, self.options, &mut each);
        done?;
        // The archive itself is broken by now: none of it that did not come is known to be good.
        if let Err(refusal) = decoded {
            refused.extend(members.iter().map(|(member, _)| (*member, refusal.clone())));
        }
        for (member, refusal) in refused {
            let of_it = wanted
                .iter()
                .find(|(_, index, _)| self.inputs[*index].member == member);
            if let Some((_, index, _)) = of_it {
                self.take_back(*index)?;
                self.refuse(*index, &refusal);
            }
        }
        Ok(above_water)
    }

    /// Removes the frames of a file that were written.
    fn take_back(&self, index: usize) -> Result<()> {
        let frames = self.entries[index]["frames"].as_array();
        for frame in frames.into_iter().flatten() {
            let written = self.out.join(frame["file"].as_str().unwrap_or_default());
            std::fs::remove_file(&written)
                .with_context(|| format!("cannot remove {}", written.display()))?;
        }
        Ok(())
    }

    /// Refuses a file whose frames were written, and no other.
    fn refuse_shown(&mut self, index: usize, refusal: &Refusal) -> Result<()> {
        let frames = self.entries[index]["frames"].as_array();
        if frames.is_some_and(|frames| !frames.is_empty()) {
            self.take_back(index)?;
            self.refuse(index, refusal);
        }
        Ok(())
    }

    fn refuse(&mut self, index: usize, refusal: &Refusal) {
        self.entries[index] = refused(index, &self.inputs[index].path, refusal);
    }
}

/// Gives both files of a pair their role, or the reason why they have none.
fn say_which_is_prior(
    examinations: Vec<Result<Option<Examination>, Refusal>>,
    entries: &mut [Value],
) -> Result<(), Fault> {
    let found = examinations.len();
    let (Ok([first, second]), [of_first, of_second]) = (<[_; 2]>::try_from(examinations), entries)
    else {
        return Err(Fault::usage(anyhow!(
            "--pair takes two files; found {found}"
        )));
    };
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

/// The part behind an archive is whatever that says: nothing of it must reach a terminal that would obey it.
fn line(path: &Path, entry: &Value) -> String {
    let path = path.display().to_string().replace(char::is_control, "?");
    if entry.get("refused").is_some() {
        let message = entry["message"].as_str().unwrap_or_default();
        return format!("{path}: refused: {message}");
    }
    if let Some(unused) = entry["fate"]["UNUSED"].as_str() {
        return format!("{path}: not used: {unused}");
    }
    let frames = entry["frames"].as_array().map_or(0, Vec::len);
    let first = entry["frames"][0]["file"].as_str().unwrap_or("-");
    let pair = entry["pair"].as_str().map(|role| format!(", {role}"));
    let pair = pair.unwrap_or_default();
    format!("{path}: {frames} frame(s), first {first}{pair}")
}

#[cfg(test)]
mod tests;
