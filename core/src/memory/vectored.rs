use std::fs::File;
use std::io;
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

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// Fills `pieces`, in order, with the bytes of `file` from `file_offset` on. Short reads go on, interrupted ones are
/// repeated.
///
/// # Errors
/// The system's error; `UnexpectedEof` if the file ends first.
pub fn read_pieces(
    file: &File,
    file_offset: u64,
    regions: Regions<'_>,
    pieces: &[Piece],
) -> io::Result<()> {
    transfer(Direction::Read, file, file_offset, regions, pieces)
}

/// Writes `pieces`, in order, to `file` from `file_offset` on. Short writes go on, interrupted ones are repeated.
///
/// # Errors
/// The system's error; `WriteZero` if the system accepts nothing.
pub fn write_pieces(
    file: &File,
    file_offset: u64,
    regions: Regions<'_>,
    pieces: &[Piece],
) -> io::Result<()> {
    transfer(Direction::Write, file, file_offset, regions, pieces)
}

fn transfer(
    direction: Direction,
    file: &File,
    mut file_offset: u64,
    regions: Regions<'_>,
    pieces: &[Piece],
) -> io::Result<()> {
    let mut vectors = pieces
        .iter()
        .filter(|piece| piece.len > 0)
        .map(|piece| libc::iovec {
            iov_base: regions.of(piece).pointer(piece.offset, piece.len).cast(),
            iov_len: piece.len,
        })
        .collect::<Vec<_>>();
    let mut rest = vectors.as_mut_slice();
    while !rest.is_empty() {
        let count = rest.len().min(MAX_PIECES) as libc::c_int;
        let offset = libc::off_t::try_from(file_offset)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file offset beyond 2^63"))?;
        // SAFETY: every vector was bounds-checked against its region, which outlives this call by the borrow in
        // `regions`; the descriptor is open for as long as `file` is borrowed.
        let done = unsafe {
            match direction {
                Direction::Read => libc::preadv(file.as_raw_fd(), rest.as_ptr(), count, offset),
                Direction::Write => libc::pwritev(file.as_raw_fd(), rest.as_ptr(), count, offset),
            }
        };
        if done < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if done == 0 {
            return Err(match direction {
                Direction::Read => io::ErrorKind::UnexpectedEof.into(),
                Direction::Write => io::ErrorKind::WriteZero.into(),
            });
        }
        file_offset += done as u64;
        rest = advance(rest, done as usize);
    }
    Ok(())
}

/// Drops the first `done` bytes of `vectors`.
fn advance(vectors: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    let mut first = 0;
    while first < vectors.len() && done >= vectors[first].iov_len {
        done -= vectors[first].iov_len;
        first += 1;
    }
    let rest = &mut vectors[first..];
    if let (Some(vector), true) = (rest.first_mut(), done > 0) {
        // SAFETY: `done` is less than this vector's length, so the sum stays inside the piece.
        vector.iov_base = unsafe { vector.iov_base.cast::<u8>().add(done).cast() };
        vector.iov_len -= done;
    }
    rest
}
