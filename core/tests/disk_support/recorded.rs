//! Files that remember what was saved, so that a power failure can be tried: what was not synced may be lost, in any order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
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

    /// Makes a directory as a power failure might leave it. Of every sector, length and name that was not synced `random`
    /// decides whether it arrived.
    pub(crate) fn power_failure(&self, directory: &Path, mut random: impl FnMut() -> u64) {
        fs::create_dir_all(directory).expect("made");
        let images = self.images.lock().expect("unharmed");
        for (path, image) in &*images {
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
            let name = path.file_name().expect("a name");
            fs::write(directory.join(name), bytes).expect("written");
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
        self.change(path, |image| {
            if !mode.create {
                (image.saved, image.named) = (bytes.clone(), true);
            }
            image.now = Some(bytes);
        });
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
                let end = now.len().min((offset + len) as usize);
                now[offset as usize..end].fill(0);
            }
        });
        Ok(punched)
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
