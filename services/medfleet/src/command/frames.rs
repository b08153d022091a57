//! `medfleet frames`: imaging alone. One PNG for each frame, and a manifest of what was done and refused.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use medfleet_imaging::{
    Decoded, Limits, Options, PREPROCESSING_VERSION, decode_file, frame_to_png,
};
use serde_json::{Value, json};

use crate::exit::{CommandResult, Exit, Fault};
use crate::{paths, show};

/// Side of the frames MedGemma takes, in pixels.
const SIDE: u32 = 896;

/// Flags of `frames`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// DICOM, PNG or JPEG files, or folders of them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Where to write the PNGs and manifest.json; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Width and height of the frames in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = SIDE)]
    side: u32,
    /// One JSON object per file and line on stdout
    #[arg(long)]
    json: bool,
}

/// Runs the command; exit code 1 if a file was refused.
pub(crate) fn run(args: Args) -> CommandResult {
    let files = paths::files(&args.paths).map_err(Fault::usage)?;
    let options = Options::new(args.side, Limits::default()).map_err(Fault::usage)?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut entries = Vec::with_capacity(files.len());
    let mut refused = 0;
    for (index, path) in files.iter().enumerate() {
        let entry = one_file(index, path, &options, &args.out)?;
        refused += usize::from(entry.get("refused").is_some());
        if args.json {
            show::print_json(&entry)?;
        } else {
            show::print(&line(path, &entry))?;
        }
        entries.push(entry);
    }
    let manifest = json!({"preprocessing_version": PREPROCESSING_VERSION, "side": args.side, "files": entries});
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

/// Decodes one file, writes its frames, and returns its entry of the manifest.
fn one_file(index: usize, path: &Path, options: &Options, out: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let decoded = match decode_file(&bytes, options) {
        Ok(decoded) => decoded,
        Err(refusal) => {
            return Ok(
                json!({"input_index": index, "path": path, "refused": refusal, "message": refusal.to_string()}),
            );
        }
    };
    let Decoded {
        frames,
        clinical,
        notes,
    } = decoded;
    let mut written = Vec::with_capacity(frames.len());
    for (number, (frame, info)) in frames.iter().enumerate() {
        let name = format!("{index:04}-{number:04}.png");
        let png = frame_to_png(frame)
            .with_context(|| format!("cannot encode frame {number} of {}", path.display()))?;
        let target = out.join(&name);
        std::fs::write(&target, png)
            .with_context(|| format!("cannot write {}", target.display()))?;
        written.push(json!({"file": name, "channels": frame.channels, "info": info}));
    }
    Ok(
        json!({"input_index": index, "path": path, "frames": written, "clinical": clinical, "notes": notes}),
    )
}

fn line(path: &Path, entry: &Value) -> String {
    if let Some(message) = entry.get("message").and_then(Value::as_str) {
        return format!("{}: refused: {message}", path.display());
    }
    let frames = entry["frames"].as_array().map_or(0, Vec::len);
    let first = entry["frames"][0]["file"].as_str().unwrap_or("-");
    format!("{}: {frames} frame(s), first {first}", path.display())
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
        let entry = one_file(0, &path, &options, folder.path()).expect("an entry");
        assert!(entry.get("refused").is_some());
        assert!(line(&path, &entry).contains("refused"), "{entry}");
    }
}
