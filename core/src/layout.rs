//! Where the KV bytes of a token lie: per-layer shapes, and the piece lists that move them.
//!
//! All three places order bytes alike, `[layer][K|V][head][token][dim]`; they differ in how many tokens stand side by side:
//! `block_tokens` in an L1 block, the whole run in a run, the buffer's capacity in a cache buffer.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::memory::{Piece, page_align};

/// The most payload bytes that one run holds (one block, if a block alone is larger).
pub const MAX_RUN_BYTES: usize = 16 << 20;

/// The KV shape of one layer. K and V may differ (latent attention caches a latent and a rope part).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLayout {
    /// Heads of K.
    pub k_heads: u32,
    /// Elements per head and token of K.
    pub k_dim: u32,
    /// Heads of V.
    pub v_heads: u32,
    /// Elements per head and token of V.
    pub v_dim: u32,
}

/// One tensor (K or V) of one layer: so many heads, each with so many bytes a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRows {
    /// How many heads.
    pub heads: usize,
    /// Bytes of one head of one token.
    pub row: usize,
}

/// The KV layout of a model: what a namespace's blocks, runs and cache buffers look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    layers: Box<[LayerLayout]>,
    element_bytes: u32,
    block_tokens: u32,
    token_bytes: usize,
}

impl Layout {
    /// A layout of `layers` with elements of `element_bytes` and blocks of `block_tokens`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no layers, zero sizes, or a block larger than 1 GiB.
    pub fn new(layers: &[LayerLayout], element_bytes: u32, block_tokens: u32) -> Result<Self> {
        let mut token_bytes = 0_u64;
        for (index, layer) in layers.iter().enumerate() {
            let keys = u64::from(layer.k_heads) * u64::from(layer.k_dim);
            let values = u64::from(layer.v_heads) * u64::from(layer.v_dim);
            let elements = keys.saturating_add(values);
            if elements == 0 {
                return Err(Error::invalid(format!(
                    "layer {index} has no KV elements: {layer:?}"
                )));
            }
            token_bytes =
                token_bytes.saturating_add(elements.saturating_mul(u64::from(element_bytes)));
        }
        if token_bytes == 0 || block_tokens == 0 {
            return Err(Error::invalid(format!(
                "a layout needs layers, element_bytes and block_tokens above 0, got {} layers, {element_bytes} and {block_tokens}",
                layers.len()
            )));
        }
        if token_bytes.saturating_mul(u64::from(block_tokens)) > 1 << 30 {
            return Err(Error::invalid(format!(
                "a block of {block_tokens} tokens of {token_bytes} bytes is over 1 GiB; use smaller blocks"
            )));
        }
        Ok(Self {
            layers: layers.into(),
            element_bytes,
            block_tokens,
            token_bytes: token_bytes as usize,
        })
    }

    /// Layers, in the model's order.
    pub fn layers(&self) -> &[LayerLayout] {
        &self.layers
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens as usize
    }

    /// Bytes of one element.
    pub fn element_bytes(&self) -> u32 {
        self.element_bytes
    }

    /// KV bytes of one token over all layers.
    pub fn token_bytes(&self) -> usize {
        self.token_bytes
    }

    /// KV bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.token_bytes * self.block_tokens()
    }

    /// How many blocks one run holds at most.
    pub fn max_run_blocks(&self) -> usize {
        (MAX_RUN_BYTES / self.block_bytes()).max(1)
    }

    /// K and V of a layer.
    pub fn tensors(&self, layer: usize) -> [HeadRows; 2] {
        let shape = self.layers[layer];
        let element = self.element_bytes as usize;
        [(shape.k_heads, shape.k_dim), (shape.v_heads, shape.v_dim)].map(|(heads, dim)| HeadRows {
            heads: heads as usize,
            row: dim as usize * element,
        })
    }

    /// Bytes of layer `layer`'s slice of a run of `tokens` tokens.
    pub fn slice_bytes(&self, layer: usize, tokens: usize) -> usize {
        self.tensors(layer)
            .iter()
            .map(|tensor| tensor.heads * tensor.row * tokens)
            .sum()
    }

    /// Every layer's slice length in a run of `blocks` blocks, in bytes.
    pub fn slice_lengths(&self, blocks: usize) -> Arc<[u32]> {
        let tokens = blocks * self.block_tokens();
        (0..self.layers.len())
            .map(|layer| self.slice_bytes(layer, tokens) as u32)
            .collect()
    }

    /// The bytes that tell this layout from any other: a field of the namespace.
    pub fn describe(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.block_tokens.to_le_bytes());
        out.extend_from_slice(&self.element_bytes.to_le_bytes());
        for layer in &self.layers {
            for value in [layer.k_heads, layer.k_dim, layer.v_heads, layer.v_dim] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        out
    }

    /// Where layer `layer` of a run lies in a cache buffer, in stored order. The tokens of `window.kept` land side by side
    /// from token `window.at` of the buffer on; the bytes of the others go to the spare region, packed from its start.
    pub fn buffer_pieces(
        &self,
        buffer: &BufferLayout,
        layer: usize,
        window: &RunWindow,
    ) -> Vec<Piece> {
        let RunWindow {
            run_tokens,
            ref kept,
            at,
        } = *window;
        let mut pieces = Vec::new();
        let mut spare = 0;
        for (tensor, base) in self.tensors(layer).iter().zip(buffer.tensors[layer]) {
            let mut discard = |tokens: usize, pieces: &mut Vec<Piece>| {
                let len = tokens * tensor.row;
                if len > 0 {
                    pieces.push(Piece {
                        spare: true,
                        offset: spare,
                        len,
                    });
                    spare += len;
                }
            };
            for head in 0..tensor.heads {
                discard(kept.start, &mut pieces);
                let offset = base + (head * buffer.capacity + at) * tensor.row;
                pieces.push(Piece {
                    spare: false,
                    offset,
                    len: kept.len() * tensor.row,
                });
                discard(run_tokens - kept.end, &mut pieces);
            }
        }
        pieces
    }

    /// Where layer `layer` of a run lies in L1, if its blocks start at the byte offsets `blocks` of the arena, in stored order.
    pub fn block_pieces(&self, blocks: &[usize], layer: usize) -> Vec<Piece> {
        let mut inner = (0..layer)
            .map(|before| self.slice_bytes(before, self.block_tokens()))
            .sum::<usize>();
        let mut pieces = Vec::new();
        for tensor in self.tensors(layer) {
            let len = tensor.row * self.block_tokens();
            for _ in 0..tensor.heads {
                pieces.extend(blocks.iter().map(|block| Piece {
                    spare: false,
                    offset: block + inner,
                    len,
                }));
                inner += len;
            }
        }
        pieces
    }
}

/// The part of a run that goes to or comes from a cache buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunWindow {
    /// Tokens in the whole run.
    pub run_tokens: usize,
    /// Which of them are kept.
    pub kept: Range<usize>,
    /// The buffer's token at which the first kept one lands.
    pub at: usize,
}

/// Where each layer's K and V start in a cache buffer of some capacity; every tensor starts on a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferLayout {
    capacity: usize,
    tensors: Box<[[usize; 2]]>,
    bytes: usize,
}

impl BufferLayout {
    /// The layout of a buffer for `capacity` tokens.
    pub fn new(layout: &Layout, capacity: usize) -> Self {
        let mut bytes = 0;
        let tensors = (0..layout.layers.len())
            .map(|layer| {
                layout.tensors(layer).map(|tensor| {
                    let start = bytes;
                    bytes += page_align(tensor.heads * tensor.row * capacity);
                    start
                })
            })
            .collect();
        Self {
            capacity,
            tensors,
            bytes,
        }
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many layers there are.
    pub fn layers(&self) -> usize {
        self.tensors.len()
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Byte offsets of a layer's K and V.
    pub fn tensors(&self, layer: usize) -> [usize; 2] {
        self.tensors[layer]
    }
}
