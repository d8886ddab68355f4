//! RESP2 as far as it is spoken here: commands, and answers that are not lists. A server is not believed: every length has a bound.

use std::borrow::Cow;
use std::io::{self, Read, Write};

/// The longest line: a status, an error, a number or a length.
const LONGEST_LINE: usize = 64 << 10;
/// Bytes asked for at once while a line is read; what follows is mostly part of the same answer.
const LINE_STEP: usize = 64 << 10;
/// By how much the buffer grows at least for a value. It is never longer than this and twice what came.
const VALUE_STEP: usize = 1 << 20;
/// The longest buffer that is kept from one use to the next.
const KEPT: usize = 8 << 20;
/// Arguments of so many bytes are sent from where they lie.
const SENT_ALONE: usize = 16 << 10;

/// What one answer says. Its bytes lie in the buffer until the next one is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    Number(i64),
    Bytes(&'a [u8]),
    Nil,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(String),
}

/// One command.
#[derive(Debug)]
pub(super) struct Command<'a> {
    /// Its name and arguments.
    pub(super) words: Vec<Cow<'a, [u8]>>,
    /// The longest value that can be its answer.
    pub(super) most: usize,
}

impl<'a> Command<'a> {
    pub(super) fn new<const N: usize>(words: [&'a [u8]; N], most: usize) -> Self {
        Self {
            words: words.map(Cow::Borrowed).to_vec(),
            most,
        }
    }

    /// The commands as they are sent.
    pub(super) fn send(commands: &[Self], to: &mut impl Write) -> io::Result<()> {
        let mut packed = Vec::new();
        for command in commands {
            write!(packed, "*{}\r\n", command.words.len())?;
            for word in &command.words {
                write!(packed, "${}\r\n", word.len())?;
                if word.len() < SENT_ALONE {
                    packed.extend_from_slice(word);
                } else {
                    to.write_all(&packed)?;
                    to.write_all(word)?;
                    packed.clear();
                }
                packed.extend_from_slice(b"\r\n");
            }
        }
        to.write_all(&packed)?;
        to.flush()
    }
}

/// Reads answers through one buffer, which is used again and again.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: Vec<u8>,
    /// The part of it that was read and not yet handed out.
    start: usize,
    end: usize,
}

impl Reader {
    /// The next answer; a value in it has at most `most` bytes.
    pub(super) fn reply(
        &mut self,
        source: &mut impl Read,
        most: usize,
    ) -> Result<Reply<'_>, ReadError> {
        let line = self.line(source)?;
        let (start, end) = (line.start, line.end);
        let [kind, text @ ..] = &self.buffer[start..end] else {
            return Err(malformed("an empty line"));
        };
        match *kind {
            b'+' => Ok(Reply::Status(&self.buffer[start + 1..end])),
            b'-' => Ok(Reply::Error(&self.buffer[start + 1..end])),
            b':' => Ok(Reply::Number(number(text)?)),
            b'$' => match number(text)? {
                -1 => Ok(Reply::Nil),
                len => {
                    let len = usize::try_from(len).map_err(|_| strange_length(len))?;
                    if len > most {
                        return Err(malformed(&format!(
                            "a value of {len} bytes where at most {most} were asked for"
                        )));
                    }
                    self.value(source, len).map(Reply::Bytes)
                }
            },
            // Nothing that is asked for has a list for an answer.
            b'*' => Err(malformed("a list where none was asked for")),
            other => {
                let kind = char::from(other).escape_default();
                Err(malformed(&format!("an answer that begins with '{kind}'")))
            }
        }
    }

    /// Lets go of a buffer that one long value made long.
    pub(super) fn trim(&mut self) {
        if self.buffer.len() > KEPT && self.start == self.end {
            *self = Self::default();
        }
    }

    /// Where the next line lies, without its end.
    fn line(&mut self, source: &mut impl Read) -> Result<std::ops::Range<usize>, ReadError> {
        let mut seen = 0;
        loop {
            // The alert that a TLS server sends to who does not speak TLS; it has no lines.
            if self.buffer[self.start..self.end].first() == Some(&0x15) {
                return Err(malformed("a TLS record; write rediss:// in the URL"));
            }
            let new = &self.buffer[self.start + seen..self.end];
            if let Some(at) = new.iter().position(|byte| *byte == b'\n') {
                let start = self.start;
                let end = start + seen + at;
                self.start = end + 1;
                return match self.buffer[start..end].last() {
                    Some(b'\r') => Ok(start..end - 1),
                    _ => Err(malformed("a line that does not end as lines do")),
                };
            }
            seen = self.end - self.start;
            if seen > LONGEST_LINE {
                return Err(malformed("a line without end"));
            }
            self.read(source, LINE_STEP)?;
        }
    }

    /// A value and the end of its line.
    fn value(&mut self, source: &mut impl Read, len: usize) -> Result<&[u8], ReadError> {
        let whole = len + 2;
        loop {
            let there = self.end - self.start;
            if there >= whole {
                break;
            }
            // Nothing of the next answer is read, so that it need not be moved.
            self.read(source, (whole - there).min(there.max(VALUE_STEP)))?;
        }
        let start = self.start;
        self.start += whole;
        match &self.buffer[start..start + whole] {
            [value @ .., b'\r', b'\n'] => Ok(value),
            _ => Err(malformed("a value that is longer than it said")),
        }
    }

    /// Reads up to `most` bytes more.
    fn read(&mut self, source: &mut impl Read, most: usize) -> Result<(), ReadError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.end < most {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < most {
            self.buffer.resize(self.end + most, 0);
        }
        let count = loop {
            match source.read(&mut self.buffer[self.end..self.end + most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => break count?,
            }
        };
        if count == 0 {
            let closed = "it closed the connection";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, closed).into());
        }
        self.end += count;
        Ok(())
    }
}

fn malformed(what: &str) -> ReadError {
    ReadError::Malformed(what.to_owned())
}

fn strange_length(len: i64) -> ReadError {
    malformed(&format!("a value of {len} bytes"))
}

fn number(digits: &[u8]) -> Result<i64, ReadError> {
    let text = std::str::from_utf8(digits)
        .ok()
        .filter(|text| !text.starts_with('+'));
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| malformed("a number that is none"))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use proptest::prelude::*;

    use super::{Command, KEPT, LONGEST_LINE, ReadError, Reader, Reply, VALUE_STEP};

    /// An answer that outlives the buffer.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Owned {
        Status(Vec<u8>),
        Error(Vec<u8>),
        Number(i64),
        Bytes(Vec<u8>),
        Nil,
    }

    impl From<Reply<'_>> for Owned {
        fn from(reply: Reply<'_>) -> Self {
            match reply {
                Reply::Status(text) => Self::Status(text.to_vec()),
                Reply::Error(text) => Self::Error(text.to_vec()),
                Reply::Number(number) => Self::Number(number),
                Reply::Bytes(bytes) => Self::Bytes(bytes.to_vec()),
                Reply::Nil => Self::Nil,
            }
        }
    }

    impl Owned {
        fn encode(&self) -> Vec<u8> {
            let line = |kind: &str, text: &[u8]| [kind.as_bytes(), text, b"\r\n"].concat();
            match self {
                Self::Status(text) => line("+", text),
                Self::Error(text) => line("-", text),
                Self::Number(number) => line(":", number.to_string().as_bytes()),
                Self::Bytes(bytes) => line(&format!("${}\r\n", bytes.len()), bytes),
                Self::Nil => b"$-1\r\n".to_vec(),
            }
        }
    }

    /// Bytes that come in pieces of these lengths, over and over, and between them interruptions.
    struct Pieces<'a> {
        bytes: &'a [u8],
        sizes: &'a [usize],
        reads: usize,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.reads += 1;
            if self.reads.is_multiple_of(7) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let piece = self.sizes[self.reads % self.sizes.len()];
            let count = piece.min(into.len()).min(self.bytes.len());
            let (now, later) = self.bytes.split_at(count);
            into[..count].copy_from_slice(now);
            self.bytes = later;
            Ok(count)
        }
    }

    /// All answers up to an error, and that error.
    fn all(bytes: &[u8], pieces: &[usize], most: usize) -> (Vec<Owned>, ReadError) {
        let (mut reader, mut replies) = (Reader::default(), Vec::new());
        let mut source = Pieces {
            bytes,
            sizes: pieces,
            reads: 0,
        };
        loop {
            match reader.reply(&mut source, most) {
                Ok(reply) => replies.push(reply.into()),
                Err(error) => return (replies, error),
            }
            assert!(reader.buffer.len() <= 2 * bytes.len() + VALUE_STEP + 2 * LONGEST_LINE);
        }
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let byte = any::<u8>().prop_filter("no end of line", |byte| !b"\r\n".contains(byte));
        prop::collection::vec(byte, 0..40)
    }

    fn reply() -> impl Strategy<Value = Owned> {
        prop_oneof![
            text().prop_map(Owned::Status),
            text().prop_map(Owned::Error),
            any::<i64>().prop_map(Owned::Number),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Owned::Bytes),
            (60_000..140_000_usize, any::<u8>())
                .prop_map(|(len, byte)| Owned::Bytes(vec![byte; len])),
            Just(Owned::Nil),
        ]
    }

    fn pieces() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(prop_oneof![1..20_usize, 1..200_000_usize], 1..8)
    }

    proptest! {
        #[test]
        fn however_the_bytes_come_the_answers_are_the_same(
            replies in prop::collection::vec(reply(), 0..12),
            pieces in pieces(),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = replies.iter().flat_map(Owned::encode).collect::<Vec<_>>();
            let (read, error) = all(&bytes, &pieces, 1 << 20);
            prop_assert_eq!(&read, &replies);
            prop_assert!(matches!(error, ReadError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof));
            // Cut short it gives the answers before the cut.
            let cut = cut.index(bytes.len() + 1);
            let (read, error) = all(&bytes[..cut], &pieces, 1 << 20);
            prop_assert!(replies.starts_with(&read));
            prop_assert!(matches!(error, ReadError::Io(_)));
            prop_assert_eq!(read.len() == replies.len(), cut == bytes.len());
        }

        #[test]
        fn anything_else_is_an_error_and_no_panic(
            bytes in prop::collection::vec(prop_oneof![
                any::<u8>(),
                prop::sample::select(b"+-:$*%\r\n0123456789".to_vec()),
            ], 0..200),
            pieces in pieces(),
        ) {
            let (replies, error) = all(&bytes, &pieces, 1000);
            let whole = all(&bytes, &[usize::MAX], 1000);
            prop_assert_eq!(&replies, &whole.0);
            prop_assert_eq!(error.to_string(), whole.1.to_string());
        }

        #[test]
        fn commands_are_read_as_they_were_meant(
            words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 1..5),
        ) {
            let command = Command {
                words: words.iter().map(Into::into).collect(),
                most: 0,
            };
            let mut sent = Vec::new();
            Command::send(&[command], &mut sent)?;
            let list = format!("*{}\r\n", words.len());
            let sent = sent.strip_prefix(list.as_bytes()).expect("a list of words");
            let (read, _) = all(sent, &[usize::MAX], 1 << 20);
            prop_assert_eq!(read, words.into_iter().map(Owned::Bytes).collect::<Vec<_>>());
        }
    }

    #[test]
    fn lengths_and_lines_have_bounds() {
        let error = |bytes: &[u8]| all(bytes, &[4096], 10).1.to_string();
        assert!(error(b"$11\r\nhello world\r\n").contains("at most 10"));
        assert!(error(b"$9223372036854775807\r\n").contains("at most 10"));
        assert!(error(b"$-2\r\n").contains("-2 bytes"));
        assert!(error(b"$99999999999999999999\r\n").contains("number"));
        assert!(error(b"$+5\r\nhello\r\n").contains("number"));
        assert!(error(b"$3\r\nhello\r\n").contains("longer than it said"));
        assert!(error(b"*1\r\n:1\r\n").contains("list"));
        assert!(error(b"+OK\n").contains("end"));
        assert!(error(&b"+".repeat(2 * LONGEST_LINE)).contains("without end"));
        assert!(error(b"\x15\x03\x03\x00\x02\x02\x28").contains("rediss://"));
        assert!(error(b"HTTP/1.1 400 Bad Request\r\n").contains("'H'"));
        // Memory follows what comes, not what is announced, and a long value's is let go of.
        let mut reader = Reader::default();
        let announced = b"$500000000\r\nabc";
        assert!(reader.reply(&mut &announced[..], usize::MAX).is_err());
        assert!(reader.buffer.len() <= VALUE_STEP + 2 * LONGEST_LINE);
        let mut reader = Reader::default();
        let long = Owned::Bytes(vec![7; 2 * KEPT]).encode();
        assert!(reader.reply(&mut &long[..], usize::MAX).is_ok());
        reader.trim();
        assert_eq!(reader.buffer.len(), 0);
    }
}
