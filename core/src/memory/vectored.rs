use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use super::Region;

/// The most pieces one system call takes (`IOV_MAX` on Linux and macOS).
const MAX_PIECES: usize = 1024;

/// A range of a region that one part of a stored slice goes to or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// False: in the main region of the transfer. True: in its spare region (bytes that are read only to be verified).
    pub spare: bool,
    /// Where it starts, in bytes.
    pub offset: usize,
    /// How long it is, in bytes.
    pub len: usize,
}

/// The regions that a transfer's pieces point into.
#[derive(Clone, Copy, Debug)]
pub struct Regions<'a> {
    /// Where kept bytes go to or come from.
    pub main: &'a Region,
    /// Where bytes go that nobody keeps.
    pub spare: &'a Region,
}

impl<'a> Regions<'a> {
    /// The region that a piece lies in.
    pub fn of(&self, piece: &Piece) -> &'a Region {
        if piece.spare { self.spare } else { self.main }
    }
}

/// The memory that one transfer has still to fill or to write out, in order.
#[derive(Clone, Debug)]
pub struct Vectors<'a> {
    list: Vec<libc::iovec>,
    /// How many at the head of the list are done.
    done: usize,
    _regions: PhantomData<Regions<'a>>,
}

impl<'a> Vectors<'a> {
    fn new(regions: Regions<'a>, pieces: &[Piece]) -> Self {
        let ranges = pieces.iter();
        Self::over(ranges.map(|piece| (regions.of(piece), piece.offset, piece.len)))
    }

    /// Over ranges (offset, length) of regions.
    fn over(ranges: impl Iterator<Item = (&'a Region, usize, usize)>) -> Self {
        let ranges = ranges.filter(|(_, _, len)| *len > 0);
        let list = ranges.map(|(region, offset, len)| libc::iovec {
            iov_base: region.pointer(offset, len).cast(),
            iov_len: len,
        });
        Self {
            list: list.collect(),
            done: 0,
            _regions: PhantomData,
        }
    }

    fn rest(&self) -> &[libc::iovec] {
        self.list.get(self.done..).unwrap_or_default()
    }

    /// How many bytes one system call would move now: it takes 1,024 ranges at most.
    pub fn bytes(&self) -> usize {
        let now = self.rest().iter().take(MAX_PIECES);
        now.map(|vector| vector.iov_len).sum()
    }

    /// The first `bytes` bytes of it, or all.
    #[must_use]
    pub fn first(&self, mut bytes: usize) -> Self {
        let mut first = self.clone();
        let mut end = self.done;
        for vector in first.list.iter_mut().skip(self.done) {
            if bytes == 0 {
                break;
            }
            // A range that gets shorter stays inside its piece.
            vector.iov_len = vector.iov_len.min(bytes);
            bytes -= vector.iov_len;
            end += 1;
        }
        first.list.truncate(end);
        first
    }

    /// Reads from byte `offset` of `file` on, by one system call; how many bytes came.
    ///
    /// # Errors
    /// The system's error.
    pub fn read(&self, file: &File, offset: u64) -> io::Result<usize> {
        let (vectors, count, offset) = self.arguments(offset)?;
        // SAFETY: every vector was bounds-checked against its region, which outlives this call by the borrow in
        // `Regions`; the descriptor is open for as long as `file` is borrowed.
        let done = unsafe { libc::preadv(file.as_raw_fd(), vectors, count, offset) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes to byte `offset` of `file` on, by one system call; how many bytes went.
    ///
    /// # Errors
    /// The system's error.
    pub fn write(&self, file: &File, offset: u64) -> io::Result<usize> {
        let (vectors, count, offset) = self.arguments(offset)?;
        // SAFETY: as in `read`.
        let done = unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, offset) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn arguments(&self, offset: u64) -> io::Result<(*const libc::iovec, libc::c_int, libc::off_t)> {
        let rest = self.rest();
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file offset beyond 2^63"))?;
        let count = rest.len().min(MAX_PIECES) as libc::c_int;
        Ok((rest.as_ptr(), count, offset))
    }

    /// Drops the first `bytes` bytes.
    fn advance(&mut self, mut bytes: usize) {
        while let Some(vector) = self.list.get_mut(self.done) {
            if bytes < vector.iov_len {
                // SAFETY: `bytes` is less than this vector's length, so the sum stays inside the piece.
                vector.iov_base = unsafe { vector.iov_base.cast::<u8>().add(bytes).cast() };
                vector.iov_len -= bytes;
                return;
            }
            bytes -= vector.iov_len;
            self.done += 1;
        }
    }
}

/// Fills `ranges` (offset, length) of regions, in order, with the bytes of a file from `file_offset` on. `call` reads once, from the
/// given offset into what is left, as [`Vectors::read`] does: short reads go on, interrupted ones are repeated.
///
/// # Errors
/// The error of `call`; `UnexpectedEof` if the file ends first.
pub fn read_ranges(
    file_offset: u64,
    ranges: &[(&Region, usize, usize)],
    call: impl FnMut(&Vectors<'_>, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let end = io::ErrorKind::UnexpectedEof;
    transfer(
        file_offset,
        Vectors::over(ranges.iter().copied()),
        end,
        call,
    )
}

/// Writes `pieces`, in order, to a file from `file_offset` on. `call` writes once, from what is left to the given offset, as
/// [`Vectors::write`] does: short writes go on, interrupted ones are repeated.
///
/// # Errors
/// The error of `call`; `WriteZero` if it accepts nothing.
pub fn write_pieces(
    file_offset: u64,
    regions: Regions<'_>,
    pieces: &[Piece],
    call: impl FnMut(&Vectors<'_>, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let end = io::ErrorKind::WriteZero;
    transfer(file_offset, Vectors::new(regions, pieces), end, call)
}

fn transfer(
    mut file_offset: u64,
    mut vectors: Vectors<'_>,
    end: io::ErrorKind,
    mut call: impl FnMut(&Vectors<'_>, u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !vectors.rest().is_empty() {
        match call(&vectors, file_offset) {
            Ok(0) => return Err(end.into()),
            Ok(done) => {
                file_offset += done as u64;
                vectors.advance(done);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
