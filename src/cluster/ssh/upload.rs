//! Copying a file to another machine: the whole file under its name, or nothing.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use super::{Ssh, Target, quote, remote};
use crate::error::{Context, Error, Result};

/// How long the other side may take none of the file.
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes its standard input to a file beside the one that it becomes. It ends with its connection: what is left of that
/// may be a pipe to which nothing comes any more, so a watch looks whether the file grows.
const RECEIVE: &str = r#"umask 022
dir=$(dirname -- "$to")
part=$dir/.tbshard-part.$(uname -n).$$
trap 'kill $watch $copy 2>/dev/null; rm -f -- "$part"' EXIT
trap 'exit 143' HUP INT TERM PIPE
mkdir -p -- "$dir" || exit 1
find "$dir" -maxdepth 1 -name '.tbshard-part.*' -mmin +60 -exec rm -f {} + 2>/dev/null
exec 3<&0
cat <&3 >"$part" & copy=$!
(
  before=-1 still=0
  while sleep 1; do
    now=$(wc -c <"$part") || exit
    if [ "$now" = "$before" ]; then still=$((still + 1)); else still=0 before=$now; fi
    if [ $still -ge 8 ]; then kill $copy; exit; fi
  done
) </dev/null >/dev/null 2>&1 3<&- & watch=$!
exec 3<&-
wait $copy || exit 1
now=$(($(wc -c <"$part")))
if [ $now -ne $size ]; then echo "only $now of $size bytes arrived" >&2; exit 1; fi
chmod 755 "$part" && mv -f -- "$part" "$to"
"#;

impl Ssh {
    /// Copies the file `from` to the executable `to` on `target`, where a leading `~/` is the home there. `progress` is
    /// told how many bytes of how many were sent.
    ///
    /// # Errors
    /// If `from` cannot be read, or the copy is not complete; then nothing is left of it and an older `to` stays.
    pub fn upload(
        &self,
        (host, target): (&str, &Target),
        from: &Path,
        to: &str,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let file = File::open(from).map_err(|error| Error::io(from, error))?;
        let size = file.metadata().map_err(|error| Error::io(from, error))?.len();
        let script = format!("to={}\nsize={size}\n{RECEIVE}", quote::path(to));
        let reply = self.run((host, target), &remote(&script), file, PATIENCE, &mut |sent| progress(sent, size));
        let what = || format!("cannot copy `{}` to `{to}` on {host}", from.display());
        let reply = reply.with_context(what)?;
        if reply.status.success() {
            return Ok(());
        }
        let full = reply.stderr.contains("No space left on device") || reply.stderr.contains("quota exceeded");
        let error = match full {
            true => Error::cluster("no space is left there")
                .hint(format!("free some space there: `{}`", self.show(target, "df -h"))),
            false => self.explain((host, target), reply.status, &reply.stderr),
        };
        Err(error.context(what()))
    }
}
