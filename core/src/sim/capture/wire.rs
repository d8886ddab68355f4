//! How records are put into bytes: numbers as LEB128, names as 8 bytes, little-endian.

use crate::key::BlockKey;

/// What has a form in bytes.
pub(crate) trait Wire: Sized {
    fn write(&self, out: &mut Vec<u8>);

    /// Takes one out of a frame; `None` where the bytes make no sense.
    fn read(cursor: &mut Cursor<'_>) -> Option<Self>;
}

/// What is left of a frame.
pub(crate) struct Cursor<'a>(pub(super) &'a [u8]);

impl Cursor<'_> {
    pub(super) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}

/// What a capture calls something: a keyed hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Name(pub(crate) u64);

impl Name {
    /// A key that begins with it.
    pub(crate) fn key(self) -> BlockKey {
        let mut key = BlockKey::default();
        key.0[..8].copy_from_slice(&self.0.to_le_bytes());
        key
    }
}

impl Wire for Name {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.0.to_le_bytes());
    }

    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        cursor.bytes().map(u64::from_le_bytes).map(Self)
    }
}

impl Wire for u64 {
    fn write(&self, out: &mut Vec<u8>) {
        let mut number = *self;
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }

    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = cursor.bytes()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}

impl Wire for u32 {
    fn write(&self, out: &mut Vec<u8>) {
        u64::from(*self).write(out);
    }

    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        u64::read(cursor)?.try_into().ok()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(value) = self {
            value.write(out);
        }
    }

    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        match cursor.bytes()? {
            [0] => Some(None),
            [1] => T::read(cursor).map(Some),
            _ => None,
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        for value in self {
            value.write(out);
        }
    }

    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let len = u64::read(cursor)?;
        (0..len).map(|_| T::read(cursor)).collect()
    }
}

impl Wire for String {
    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        out.extend(self.as_bytes());
    }

    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let len = u64::read(cursor)?;
        let (text, rest) = cursor.0.split_at_checked(usize::try_from(len).ok()?)?;
        cursor.0 = rest;
        Self::from_utf8(text.to_vec()).ok()
    }
}

/// Types whose form in bytes is that of their fields in order; of an enum, after a byte that says which.
macro_rules! wire {
    ($(#[$about:meta])* enum $name:ident {
        $($(#[$which:meta])* $code:literal => $variant:ident { $($(#[$what:meta])* $field:ident: $type:ty),* $(,)? },)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum $name {
            $($(#[$which])* $variant { $($(#[$what])* $field: $type),* }),*
        }

        impl Wire for $name {
            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        out.push($code);
                        $($field.write(out);)*
                    })*
                }
            }

            fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
                match cursor.bytes()? {
                    $([$code] => Some(Self::$variant { $($field: Wire::read(cursor)?),* }),)*
                    _ => None,
                }
            }
        }
    };
    ($(#[$about:meta])* struct $name:ident {
        $($(#[$what:meta])* $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) struct $name {
            $($(#[$what])* pub(crate) $field: $type),*
        }

        impl Wire for $name {
            fn write(&self, out: &mut Vec<u8>) {
                $(self.$field.write(out);)*
            }

            fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
                Some(Self { $($field: Wire::read(cursor)?),* })
            }
        }
    };
}
pub(super) use wire;
