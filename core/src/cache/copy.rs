//! Copies between L1 blocks and a cache buffer. Both order bytes alike; a block holds `block_tokens` rows of a head side by
//! side, a buffer its whole capacity.

use crate::buffer::CacheBuffer;
use crate::layout::Layout;
use crate::memory::Region;

/// One block's place in the L1 arena, and the tokens of it that are to be copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSpan {
    /// Byte offset of the block in the arena.
    pub(super) offset: usize,
    /// First token inside the block.
    pub(super) first: usize,
    /// How many tokens.
    pub(super) tokens: usize,
    /// The buffer's token that the first one matches.
    pub(super) at: usize,
}

/// Copies layer `layer` of whole blocks, at byte offsets `blocks` of the arena, into the buffer's first tokens.
pub(super) fn layer_to_buffer(
    layout: &Layout,
    arena: &Region,
    blocks: &[usize],
    layer: usize,
    buffer: &CacheBuffer,
) {
    crate::sync::copying();
    let block_tokens = layout.block_tokens();
    let capacity = buffer.layout().capacity();
    let mut inner = (0..layer)
        .map(|before| layout.slice_bytes(before, block_tokens))
        .sum::<usize>();
    let bases = buffer.layout().tensors(layer);
    for (tensor, base) in layout.tensors(layer).iter().zip(bases) {
        let len = block_tokens * tensor.row;
        for head in 0..tensor.heads {
            let start = base + head * capacity * tensor.row;
            for (index, block) in blocks.iter().enumerate() {
                buffer
                    .region()
                    .copy_from(start + index * len, arena, block + inner, len);
            }
            inner += len;
        }
    }
}

/// Copies the buffer's tokens into a block.
pub(super) fn buffer_to_block(
    layout: &Layout,
    arena: &Region,
    span: BlockSpan,
    buffer: &CacheBuffer,
) {
    crate::sync::copying();
    for_each_row(layout, buffer, span, |block, place, len| {
        arena.copy_from(block, buffer.region(), place, len);
    });
}

fn for_each_row(
    layout: &Layout,
    buffer: &CacheBuffer,
    span: BlockSpan,
    mut copy: impl FnMut(usize, usize, usize),
) {
    let block_tokens = layout.block_tokens();
    let capacity = buffer.layout().capacity();
    let mut head_start = span.offset;
    for layer in 0..layout.layers().len() {
        let bases = buffer.layout().tensors(layer);
        for (tensor, base) in layout.tensors(layer).iter().zip(bases) {
            for head in 0..tensor.heads {
                copy(
                    head_start + span.first * tensor.row,
                    base + (head * capacity + span.at) * tensor.row,
                    span.tokens * tensor.row,
                );
                head_start += block_tokens * tensor.row;
            }
        }
    }
}
