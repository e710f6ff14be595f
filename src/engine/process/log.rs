//! What instances print: one file per session, which they write themselves, so that they outlive
//! the edge; kept small by copying the end away and cutting the file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How often a log's size is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The file for an instance's output; what older lives wrote stays.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Keeps a log below `max` bytes, for as long as it is polled.
pub(super) async fn keep(path: PathBuf, max: u64) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let path = path.clone();
        match tokio::task::spawn_blocking(move || trim(&path, max)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot cut an instance's log"),
            Err(_) => return, // the runtime ends
        }
    }
}

/// Half of `max` is for the file, half for `.1`, which holds what was cut away last. What the
/// instance writes between the copy and the cut is lost: it holds the file and cannot be asked.
fn trim(path: &Path, max: u64) -> io::Result<()> {
    let half = max / 2;
    let size = match fs::metadata(path) {
        Ok(found) => found.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if size <= half {
        return Ok(());
    }
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    file.seek(SeekFrom::Start(size - half))?;
    let (older, fresh) = (path.with_extension("log.1"), path.with_extension("log.tmp"));
    let mut copy = OpenOptions::new();
    let copy = copy.write(true).create(true).truncate(true).mode(0o600);
    io::copy(&mut (&mut file).take(half), &mut copy.open(&fresh)?)?;
    fs::rename(fresh, older)?;
    file.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_end_is_kept_and_the_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.example.log");
        let mut log = open(&path).unwrap();
        for line in 0..100 {
            writeln!(log, "line {line:03}").unwrap(); // 9 bytes
        }
        trim(&path, 180).unwrap();
        let older = fs::read_to_string(folder.path().join("a.example.log.1")).unwrap();
        assert_eq!(older.lines().collect::<Vec<_>>(), (90..100).map(line).collect::<Vec<_>>());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);

        writeln!(log, "after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n", "written at the new end");
        trim(&path, 180).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n", "small enough: left alone");
    }

    fn line(number: usize) -> String {
        format!("line {number:03}")
    }
}
