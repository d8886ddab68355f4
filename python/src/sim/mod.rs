//! The policy lab's part of the extension.

pub(crate) mod catalogue;
pub(crate) mod columns;
pub(crate) mod prefix;
pub(crate) mod page;
pub(crate) mod policy;
