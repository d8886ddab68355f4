//! The file that a namespace travels in: its records as they lie in segments, parents before children. See `docs/format.md`.

use crate::key::BlockKey;
use crate::memory::PAGE;

use super::record::{Fields, is_sealed, seal};

const MAGIC: [u8; 8] = *b"KVLABEXP";
const END_MAGIC: [u8; 8] = *b"KVLABEND";
/// The version of the frame; records have one of their own.
const VERSION: u32 = 1;

/// The first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) namespace: BlockKey,
    /// Records that follow.
    pub(super) records: u64,
    /// Bytes of them.
    pub(super) bytes: u64,
}

impl Frame {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut page = page(MAGIC);
        page.extend_from_slice(&VERSION.to_le_bytes());
        page.extend_from_slice(&[0; 4]);
        page.extend_from_slice(&self.records.to_le_bytes());
        page.extend_from_slice(&self.bytes.to_le_bytes());
        page.extend_from_slice(&self.namespace.0);
        sealed(page)
    }

    /// Reads the first page; what is wrong with it otherwise.
    pub(super) fn decode(page: &[u8]) -> Result<Self, String> {
        let mut fields = Fields(page);
        if fields.take::<8>() != Some(MAGIC) {
            return Err("not an export of kvlab".to_owned());
        }
        fields.u64();
        match fields.u32() {
            Some(VERSION) => {}
            Some(version) if is_sealed(page) => {
                return Err(format!(
                    "export version {version}, this kvlab reads version {VERSION}; use the kvlab that wrote it"
                ));
            }
            _ => return Err("its first page is damaged; export again".to_owned()),
        }
        fields.u32();
        match (fields.u64(), fields.u64(), fields.take()) {
            (Some(records), Some(bytes), Some(namespace)) if is_sealed(page) => Ok(Self {
                namespace: BlockKey(namespace),
                records,
                bytes,
            }),
            _ => Err("its first page is damaged; export again".to_owned()),
        }
    }
}

/// The last page: without it the file was cut.
pub(super) fn end_page() -> Vec<u8> {
    sealed(page(END_MAGIC))
}

fn page(magic: [u8; 8]) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE);
    page.extend_from_slice(&magic);
    page.extend_from_slice(&[0; 8]);
    page
}

fn sealed(mut page: Vec<u8>) -> Vec<u8> {
    page.resize(PAGE, 0);
    seal(&mut page);
    page
}

#[cfg(test)]
mod tests {
    use super::{Frame, end_page};
    use crate::key::BlockKey;
    use crate::tier::disk::record::is_sealed;

    #[test]
    fn golden_first_and_last_page() {
        let frame = Frame {
            namespace: BlockKey([7; 32]),
            records: 0x0102,
            bytes: 0x0003_0000,
        };
        let page = frame.encode();
        let mut expected = b"KVLABEXP".to_vec();
        expected.extend_from_slice(&page[8..16]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([2, 1, 0, 0, 0, 0, 0, 0]);
        expected.extend([0, 0, 3, 0, 0, 0, 0, 0]);
        expected.extend([7; 32]);
        expected.resize(4096, 0);
        assert!(page == expected && is_sealed(&page));
        assert_eq!(Frame::decode(&page), Ok(frame));
        let end = end_page();
        assert!(end.starts_with(b"KVLABEND") && end.len() == 4096 && is_sealed(&end));
        for at in 0..72 {
            let mut page = page.clone();
            page[at] ^= 1;
            assert!(Frame::decode(&page).is_err(), "byte {at}");
        }
    }
}
