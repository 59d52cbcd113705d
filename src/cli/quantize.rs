//! `tbshard quantize`: write a model in fewer bits, as `mlx_lm.convert -q` would.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::load::{ModelArgs, Opened, all_cores, threads};
use super::numbers::Weights;
use super::{Outcome, interrupt, table, ui};
use crate::error::{Error, Kind, Result};
use crate::models::catalogue;
use crate::models::mlx::{Conversion, Progress, SHARD_BYTES, Target};
use crate::weights::Coding;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A directory of safetensors, a short name (see `tbshard models`), or a hub id (owner/name) [default: the demo]
    #[arg(long, short, value_name = "M", help_heading = "Model")]
    model: Option<String>,
    /// The hub's branch, tag or commit
    #[arg(long, value_name = "REV", help_heading = "Model")]
    revision: Option<String>,
    /// How codes become weights: affine, mxfp4, mxfp8 or nvfp4
    #[arg(long, default_value = "affine", help_heading = "Format")]
    mode: String,
    /// Bits of a weight: 2, 3, 4, 5, 6 or 8 [default: 4, mxfp8 8]
    #[arg(long, value_name = "N", help_heading = "Format")]
    bits: Option<u64>,
    /// Weights that share a scale: 32, 64 or 128 [default: 64, mxfp4 and mxfp8 32, nvfp4 16]
    #[arg(long, value_name = "N", help_heading = "Format")]
    group: Option<u64>,
    /// The directory to write; run again after an interruption, it goes on
    #[arg(long, short, value_name = "DIR", required_unless_present = "dry_run", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Mebibytes of a file at most
    #[arg(long, value_name = "MIB", default_value_t = SHARD_BYTES >> 20, help_heading = "Output")]
    file_size: u64,
    /// Say what would be written, and neither download nor write anything
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Output")]
    threads: Option<usize>,
    /// Show no progress and no summary
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let coding = Coding::named(&args.mode, args.bits, args.group)
        .map_err(|error| Error::usage(&error).hint(error.hint_text().unwrap_or_default()))?;
    if args.file_size == 0 {
        return Err(Error::usage("--file-size 0 leaves no room for a weight").hint("without it files have 5 GiB"));
    }
    let opened = args.open()?;
    let conversion = opened.blueprint.conversion(coding)?;
    match &args.output {
        Some(dir) if !args.dry_run => write(args, &opened, &conversion, dir),
        _ => {
            ui::print(&summary(&conversion))?;
            Ok(Outcome::Done)
        }
    }
}

impl Args {
    fn open(&self) -> Result<Opened> {
        let mut model = ModelArgs::of(self.model.clone(), self.revision.clone(), self.quiet);
        if !self.dry_run || model.is_here() {
            return model.open();
        }
        let name = self.model.as_deref().unwrap_or_default();
        if catalogue::is_hub_id(name) && catalogue::find(name).is_err() {
            let error = Error::usage(format!("`{name}` is no directory, and not in the catalogue"));
            return Err(
                error.hint("--dry-run downloads nothing: give it a model that is here, or one of `tbshard models`")
            );
        }
        // shapes are enough for sizes, and the catalogue has them
        (model.weights, model.revision) = (Weights::Random, None);
        model.open()
    }
}

fn write(args: &Args, opened: &Opened, conversion: &Conversion, dir: &Path) -> Result<Outcome> {
    interrupt::listen()?;
    let threads = threads(args.threads)?.unwrap_or_else(all_cores);
    let target = Target { dir, shard_bytes: args.file_size.saturating_mul(1 << 20), threads };
    let bar = ui::bar(0, "quantising {bar:20} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}", args.quiet);
    let watch = Watch { bar, answering: interrupt::Answering::begin() };
    let start = Instant::now();
    let written = opened.blueprint.convert(conversion, opened.directory(), opened.copied_files()?, target, &watch);
    watch.bar.finish_and_clear();
    let (files, kept) = written.inspect_err(|error| {
        if error.kind() == Kind::Interrupted && !args.quiet {
            ui::whisper(format_args!("finished files stay in `{}`: the same command goes on", dir.display()));
        }
    })?;
    if !args.quiet {
        let kept = if kept > 0 { format!(", {kept} of them kept from before") } else { String::new() };
        let noun = if files == 1 { "file" } else { "files" };
        let (size, bits) = (bytes(conversion.bytes()), bits_per_weight(conversion));
        let seconds = start.elapsed().as_secs_f64();
        ui::say(format_args!(
            "`{}`: {size} in {files} {noun}{kept}, {bits:.3} bits a weight, {seconds:.1} s",
            dir.display()
        ));
    }
    Ok(Outcome::Done)
}

/// The writing as a progress bar that Ctrl-C ends.
struct Watch {
    bar: ProgressBar,
    answering: interrupt::Answering,
}

impl Progress for Watch {
    fn total(&self, bytes: u64, done: u64) {
        self.bar.set_length(bytes);
        self.bar.set_position(done);
        self.bar.reset_eta();
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    fn advance(&self, bytes: u64) -> Result<()> {
        self.bar.inc(bytes);
        self.answering.check()
    }
}

fn bytes(bytes: u64) -> String {
    table::scaled(bytes as f64, &[" B", " kB", " MB", " GB", " TB"])
}

fn bits_per_weight(conversion: &Conversion) -> f64 {
    conversion.bytes() as f64 * 8.0 / conversion.parameters() as f64
}

fn summary(conversion: &Conversion) -> String {
    let [quantised, kept, left] = conversion.modules();
    let kept = match kept {
        0 => String::new(),
        _ => format!("; {kept} are in 4 bits already and stay"),
    };
    let left = match left {
        0 => String::new(),
        1 => "; 1 matrix has other columns than whole groups and stays".to_owned(),
        _ => format!("; {left} matrices have other columns than whole groups and stay"),
    };
    format!(
        "weights    {} ({} stored)\nquantised  {quantised} matrices, {}{kept}{left}\nsize       {}, {:.3} bits a weight\n",
        table::scaled(conversion.parameters() as f64, &["", " k", " M", " B", " T"]),
        bytes(conversion.source_bytes()),
        conversion.describe(),
        bytes(conversion.bytes()),
        bits_per_weight(conversion),
    )
}
