//! The policy lab's part of the extension.

pub(crate) mod capture;
pub(crate) mod catalogue;
pub(crate) mod columns;
pub(crate) mod page;
pub(crate) mod policy;
pub(crate) mod prefix;
