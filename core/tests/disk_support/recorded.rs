//! Files that remember what was saved, so that a power failure can be tried: what was not synced may be lost, in any order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kvlab_core::memory::Vectors;
use kvlab_core::tier::disk::{Files, OpenFile, OpenMode, SystemFiles};

/// The least that a disk writes as a whole, in bytes.
const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct Image {
    /// As the process sees it; none once removed.
    now: Option<Vec<u8>>,
    /// As it was when last synced.
    saved: Vec<u8>,
    /// Whether the directory was synced while the file was there.
    named: bool,
    /// What was given back since it was last synced. Each arrives or does not: file systems keep a journal of that.
    holes: Vec<Range<usize>>,
}

/// Files over the system's, buffered ones only.
#[derive(Debug, Default)]
pub(crate) struct RecordedFiles {
    images: Mutex<BTreeMap<PathBuf, Image>>,
}

impl RecordedFiles {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn change(&self, path: &Path, change: impl FnOnce(&mut Image)) {
        let mut images = self.images.lock().expect("unharmed");
        change(images.entry(path.to_owned()).or_default());
    }

    fn resize(&self, file: &OpenFile) {
        let len = file.file.metadata().expect("known").len() as usize;
        self.change(&file.path, |image| {
            image.now.get_or_insert_default().resize(len, 0);
        });
    }

    /// Goes on with a copy of a directory: the files of the copy are saved as far as those of the original are.
    pub(crate) fn moved(&self, from: &Path, to: &Path) {
        let mut images = self.images.lock().expect("unharmed");
        let copies = images.iter().filter(|(path, _)| path.starts_with(from));
        let copies = copies.map(|(path, image)| {
            let name = path.file_name().expect("a name");
            (to.join(name), image.clone())
        });
        let copies = copies.collect::<Vec<_>>();
        images.extend(copies);
    }

    /// Makes a directory as a power failure might leave another. Of every sector, length and name that was not synced `random`
    /// decides whether it arrived.
    pub(crate) fn power_failure(
        &self,
        from: &Path,
        directory: &Path,
        mut random: impl FnMut() -> u64,
    ) {
        fs::create_dir_all(directory).expect("made");
        let images = self.images.lock().expect("unharmed");
        for (path, image) in images.iter().filter(|(path, _)| path.starts_with(from)) {
            let removed = image.now.is_none();
            let there = match (image.named, removed) {
                (true, false) => true,
                (false, true) => false,
                _ => random().is_multiple_of(2),
            };
            if !there {
                continue;
            }
            let now = image.now.as_ref().unwrap_or(&image.saved);
            // Mostly lost, mostly written, or a mixture.
            let odds = [0, 1, 5, 10][(random() % 4) as usize];
            let len = if random() % 10 < odds {
                now.len()
            } else {
                image.saved.len()
            };
            let mut bytes = vec![0; len];
            for (sector, place) in bytes.chunks_mut(SECTOR).enumerate() {
                let from = if random() % 10 < odds {
                    now
                } else {
                    &image.saved
                };
                let at = sector * SECTOR;
                if let Some(found) = from.get(at..at + place.len()) {
                    place.copy_from_slice(found);
                }
            }
            for hole in &image.holes {
                let from = if random().is_multiple_of(2) {
                    now
                } else {
                    &image.saved
                };
                for at in hole.clone().take_while(|at| *at < len) {
                    bytes[at] = from.get(at).copied().unwrap_or(0);
                }
            }
            let name = path.file_name().expect("a name");
            write_sparse(&directory.join(name), &bytes);
        }
    }
}

/// Writes a file; pages of zeroes have no bytes on disk.
fn write_sparse(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).expect("made");
    file.set_len(bytes.len() as u64).expect("sized");
    for (page, bytes) in bytes.chunks(4096).enumerate() {
        if bytes.iter().any(|byte| *byte != 0) {
            let offset = page as u64 * 4096;
            file.write_all_at(bytes, offset).expect("written");
        }
    }
}

impl Files for RecordedFiles {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OpenFile> {
        let file = SystemFiles.open(
            path,
            OpenMode {
                direct: false,
                ..mode
            },
        )?;
        let bytes = fs::read(path)?;
        let mut images = self.images.lock().expect("unharmed");
        images.entry(path.to_owned()).or_default().now = Some(bytes);
        Ok(file)
    }

    fn read(&self, file: &OpenFile, offset: u64, into: &Vectors<'_>) -> io::Result<usize> {
        SystemFiles.read(file, offset, into)
    }

    fn write(&self, file: &OpenFile, offset: u64, from: &Vectors<'_>) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let done = SystemFiles.write(file, offset, from)?;
        let mut bytes = vec![0; done];
        file.file.read_exact_at(&mut bytes, offset)?;
        self.resize(file);
        self.change(&file.path, |image| {
            let now = image.now.get_or_insert_default();
            now[offset as usize..offset as usize + done].copy_from_slice(&bytes);
        });
        Ok(done)
    }

    fn sync(&self, file: &OpenFile) -> io::Result<()> {
        SystemFiles.sync(file)?;
        self.change(&file.path, |image| {
            if let Some(now) = &image.now {
                image.saved.clone_from(now);
                image.holes.clear();
            }
        });
        Ok(())
    }

    fn size(&self, file: &OpenFile) -> io::Result<u64> {
        SystemFiles.size(file)
    }

    fn set_size(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        SystemFiles.set_size(file, len)?;
        self.resize(file);
        Ok(())
    }

    fn preallocate(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        SystemFiles.preallocate(file, len)?;
        self.resize(file);
        Ok(())
    }

    fn punch(&self, file: &OpenFile, offset: u64, len: u64) -> io::Result<bool> {
        let punched = SystemFiles.punch(file, offset, len)?;
        self.change(&file.path, |image| {
            if let (true, Some(now)) = (punched, &mut image.now) {
                let hole = offset as usize..now.len().min((offset + len) as usize);
                now[hole.clone()].fill(0);
                image.holes.push(hole);
            }
        });
        Ok(punched)
    }

    fn holes(&self, file: &OpenFile) -> io::Result<Vec<Range<u64>>> {
        SystemFiles.holes(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemFiles.remove(path)?;
        self.change(path, |image| image.now = None);
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        SystemFiles.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        SystemFiles.sync_directory(directory)?;
        let mut images = self.images.lock().expect("unharmed");
        images
            .values_mut()
            .for_each(|image| image.named = image.now.is_some());
        Ok(())
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        SystemFiles.free_bytes(directory)
    }
}
