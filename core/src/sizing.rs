//! How large a KV cache is, and where it outgrows the weights.
//!
//! All arithmetic is exact and checked: a size that does not fit 64 bits is an error, never a wrapped number.

use crate::error::{Error, Result};

/// The element type of weights and KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// 4 bytes.
    Float32,
    /// 2 bytes.
    Float16,
    /// 2 bytes.
    Bfloat16,
    /// 1 byte.
    Float8,
    /// 1 byte; scales are not counted.
    Int8,
    /// Half a byte; scales are not counted.
    Int4,
}

impl Dtype {
    /// Every type, the largest first.
    pub const ALL: [Self; 6] = [
        Self::Float32,
        Self::Float16,
        Self::Bfloat16,
        Self::Float8,
        Self::Int8,
        Self::Int4,
    ];

    /// The name that [`by_name`](Self::by_name) takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Float8 => "float8",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bits of one element.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Float32 => 32,
            Self::Float16 | Self::Bfloat16 => 16,
            Self::Float8 | Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// The type of that name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that lists the known names.
    pub fn by_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "dtype {name:?} is unknown; use one of {}",
                    Self::ALL.map(Self::name).join(", ")
                ))
            })
    }
}

/// Multi-head latent attention: one latent and one shared rope key for each token and layer, instead of K and V per head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// Elements of the latent that K and V are projected from.
    pub kv_lora_rank: u32,
    /// Elements of the rope part of the key.
    pub rope_dim: u32,
}

/// What of a model decides its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Layers that keep a KV cache.
    pub layers: u32,
    /// Key/value heads of a layer: fewer than query heads under GQA, 1 under MQA. Without effect if `latent` is given.
    pub kv_heads: u32,
    /// Elements of one head. Without effect if `latent` is given.
    pub head_dim: u32,
    /// The latent that is cached in place of K and V, if any.
    pub latent: Option<Latent>,
    /// Parameters in all, mixture-of-experts ones included; none if unknown.
    pub params: Option<u64>,
    /// Element type of weights and cache.
    pub dtype: Dtype,
}

/// Everything that `kvlab size` says of one model; bytes, tokens and sequences are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// KV bytes of one token over all layers.
    pub kv_bytes_per_token: u64,
    /// KV bytes of the whole batch.
    pub kv_bytes: u64,
    /// Bytes of the weights, if the parameters are known.
    pub weight_bytes: Option<u64>,
    /// The fewest cached tokens, over all sequences, whose KV is larger than the weights.
    pub crossover_tokens: Option<u64>,
    /// The shortest sequence length at which the batch's KV is larger than the weights.
    pub crossover_seq_len: Option<u64>,
    /// How many sequences of this length fit the memory beside the weights, if memory and parameters are known.
    pub sequences: Option<u64>,
}

impl ModelShape {
    /// KV bytes of one token over all layers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a size of 0.
    pub fn kv_bytes_per_token(&self) -> Result<u64> {
        self.kv_bytes(1, 1)
    }

    /// KV bytes of `batch` sequences of `seq_len` tokens, rounded up to a byte.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a size of 0 or a result beyond 64 bits.
    pub fn kv_bytes(&self, batch: u64, seq_len: u64) -> Result<u64> {
        above_zero("batch", batch)?;
        above_zero("seq_len", seq_len)?;
        let tokens = u128::from(batch) * u128::from(seq_len);
        self.token_bits()?
            .checked_mul(tokens)
            .and_then(|bits| u64::try_from(bits.div_ceil(8)).ok())
            .ok_or_else(|| {
                Error::invalid(format!(
                    "the KV cache of {batch} x {seq_len} tokens does not fit 64 bits of bytes; use a smaller batch or seq_len"
                ))
            })
    }

    /// Bytes of the weights; none if the parameters are unknown.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for 0 parameters or a result beyond 64 bits.
    pub fn weight_bytes(&self) -> Result<Option<u64>> {
        let Some(params) = self.params else {
            return Ok(None);
        };
        above_zero("params", params)?;
        let bits = u128::from(params) * u128::from(self.dtype.bits());
        u64::try_from(bits.div_ceil(8)).map(Some).map_err(|_| {
            Error::invalid(format!(
                "the weights of {params} parameters do not fit 64 bits of bytes"
            ))
        })
    }

    /// The fewest cached tokens (batch x sequence length) whose KV is larger than the weights; none if the parameters are unknown.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a size of 0.
    pub fn crossover_tokens(&self) -> Result<Option<u64>> {
        self.crossover_seq_len(1)
    }

    /// The shortest sequence length at which `batch` sequences have a KV cache larger than the weights; none if the parameters are
    /// unknown.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a size of 0 or beyond 64 bits.
    pub fn crossover_seq_len(&self, batch: u64) -> Result<Option<u64>> {
        above_zero("batch", batch)?;
        let step = self
            .token_bits()?
            .checked_mul(u128::from(batch))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "a batch of {batch} is too large; use a smaller one"
                ))
            })?;
        let Some(weights) = self.weight_bytes()? else {
            return Ok(None);
        };
        u64::try_from(u128::from(weights) * 8 / step + 1)
            .map(Some)
            .map_err(|_| {
                Error::invalid(format!(
                    "the crossover of {weights} bytes of weights does not fit 64 bits"
                ))
            })
    }

    /// How many sequences of `seq_len` tokens fit `memory` bytes beside the weights: 0 if the weights alone do not fit, none if the
    /// parameters are unknown.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a size of 0 or beyond 64 bits.
    pub fn sequences_in(&self, memory: u64, seq_len: u64) -> Result<Option<u64>> {
        above_zero("memory", memory)?;
        let sequence = self.kv_bytes(1, seq_len)?;
        Ok(self
            .weight_bytes()?
            .map(|weights| memory.saturating_sub(weights) / sequence))
    }

    /// All of the above at once.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a size of 0 or a result beyond 64 bits.
    pub fn size(&self, batch: u64, seq_len: u64, memory: Option<u64>) -> Result<Sizing> {
        Ok(Sizing {
            kv_bytes_per_token: self.kv_bytes_per_token()?,
            kv_bytes: self.kv_bytes(batch, seq_len)?,
            weight_bytes: self.weight_bytes()?,
            crossover_tokens: self.crossover_tokens()?,
            crossover_seq_len: self.crossover_seq_len(batch)?,
            sequences: match memory {
                Some(memory) => self.sequences_in(memory, seq_len)?,
                None => None,
            },
        })
    }

    /// Bits, so that half-byte types stay exact. At most 2^32 x 2^65 x 2^5, which fits.
    fn token_bits(&self) -> Result<u128> {
        above_zero("layers", u64::from(self.layers))?;
        let elements = if let Some(latent) = self.latent {
            above_zero("kv_lora_rank", u64::from(latent.kv_lora_rank))?;
            u128::from(latent.kv_lora_rank) + u128::from(latent.rope_dim)
        } else {
            above_zero("kv_heads", u64::from(self.kv_heads))?;
            above_zero("head_dim", u64::from(self.head_dim))?;
            2 * u128::from(self.kv_heads) * u128::from(self.head_dim)
        };
        Ok(u128::from(self.layers) * elements * u128::from(self.dtype.bits()))
    }
}

fn above_zero(name: &str, value: u64) -> Result<()> {
    if value == 0 {
        return Err(Error::invalid(format!("{name} = 0; use 1 or more")));
    }
    Ok(())
}

const fn heads(layers: u32, kv_heads: u32, head_dim: u32, params: u64) -> ModelShape {
    ModelShape {
        layers,
        kv_heads,
        head_dim,
        latent: None,
        params: Some(params),
        dtype: Dtype::Bfloat16,
    }
}

/// The latent of `DeepSeek`: 512 elements and a rope key of 64. Its heads (128 for queries and values) do not reach the cache.
const fn deepseek(layers: u32, heads: u32, params: u64) -> ModelShape {
    ModelShape {
        layers,
        kv_heads: heads,
        head_dim: 128,
        latent: Some(Latent {
            kv_lora_rank: 512,
            rope_dim: 64,
        }),
        params: Some(params),
        dtype: Dtype::Bfloat16,
    }
}

/// Published models by name, in bfloat16. Gemma 2 counts its sliding-window layers like full ones.
pub const PRESETS: &[(&str, ModelShape)] = &[
    ("smollm2-135m", heads(30, 3, 64, 134_515_008)),
    ("qwen2.5-0.5b", heads(24, 2, 64, 494_032_768)),
    ("llama-3.2-1b", heads(16, 8, 64, 1_235_814_400)),
    ("llama-3.2-3b", heads(28, 8, 128, 3_212_749_824)),
    ("llama-2-7b", heads(32, 32, 128, 6_738_415_616)),
    ("mistral-7b", heads(32, 8, 128, 7_241_732_096)),
    ("qwen2.5-7b", heads(28, 4, 128, 7_615_616_512)),
    ("llama-3.1-8b", heads(32, 8, 128, 8_030_261_248)),
    ("qwen3-8b", heads(36, 8, 128, 8_190_735_360)),
    ("gemma-2-9b", heads(42, 8, 256, 9_241_705_984)),
    ("deepseek-v2-lite", deepseek(27, 16, 15_706_484_224)),
    ("qwen2.5-32b", heads(64, 8, 128, 32_763_876_352)),
    ("llama-3.1-70b", heads(80, 8, 128, 70_553_706_496)),
    ("deepseek-v3", deepseek(61, 128, 671_026_419_200)),
];

/// The preset of that name.
///
/// # Errors
/// [`Error::InvalidArgument`] that lists the known names.
pub fn preset(name: &str) -> Result<ModelShape> {
    PRESETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, shape)| *shape)
        .ok_or_else(|| {
            let names: Vec<&str> = PRESETS.iter().map(|(known, _)| *known).collect();
            Error::invalid(format!(
                "model {name:?} is unknown; use one of {}, or give its shape",
                names.join(", ")
            ))
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Dtype, Latent, ModelShape, PRESETS, preset};

    fn shape(name: &str) -> ModelShape {
        preset(name).expect("a preset")
    }

    #[test]
    fn bytes_per_token_by_hand() {
        let smollm2 = ModelShape {
            dtype: Dtype::Float32,
            ..shape("smollm2-135m")
        };
        // 30 layers x K and V x 3 heads x 64 x 4 bytes.
        assert_eq!(smollm2.kv_bytes_per_token().ok(), Some(46_080));
        for (name, bytes) in [
            ("smollm2-135m", 23_040),
            ("llama-3.1-8b", 131_072),
            ("llama-2-7b", 524_288),
            ("llama-3.1-70b", 327_680),
            ("qwen2.5-7b", 57_344),
            // 27 layers x (512 + 64) x 2 bytes.
            ("deepseek-v2-lite", 31_104),
            ("deepseek-v3", 70_272),
        ] {
            assert_eq!(shape(name).kv_bytes_per_token().ok(), Some(bytes), "{name}");
        }
        let quarter = ModelShape {
            dtype: Dtype::Int4,
            ..shape("llama-3.1-8b")
        };
        assert_eq!(quarter.kv_bytes_per_token().ok(), Some(32_768));
    }

    #[test]
    fn the_whole_of_an_8b_model_by_hand() {
        let sizing = shape("llama-3.1-8b")
            .size(4, 8_192, Some(24 << 30))
            .expect("plain sizes");
        assert_eq!(sizing.kv_bytes, 4 << 30);
        assert_eq!(sizing.weight_bytes, Some(16_060_522_496));
        // 122,532 tokens take 16,060,514,304 bytes, 8,192 short of the weights; 4 x 30,633 is the same number of tokens.
        assert_eq!(sizing.crossover_tokens, Some(122_533));
        assert_eq!(sizing.crossover_seq_len, Some(30_634));
        // 24 GiB less the weights leave 9,709,281,280 bytes, 1 GiB a sequence.
        assert_eq!(sizing.sequences, Some(9));
    }

    #[test]
    fn what_is_unknown_stays_unknown() {
        let unknown = ModelShape {
            params: None,
            ..shape("llama-3.1-8b")
        };
        let sizing = unknown.size(1, 1, Some(1 << 40)).expect("plain sizes");
        assert_eq!((sizing.weight_bytes, sizing.crossover_tokens), (None, None));
        assert_eq!(sizing.sequences, None);
        assert_eq!(
            shape("llama-3.1-70b").sequences_in(1 << 30, 1).ok(),
            Some(Some(0))
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let good = shape("llama-3.1-8b");
        for bad in [
            ModelShape { layers: 0, ..good },
            ModelShape {
                kv_heads: 0,
                ..good
            },
            ModelShape {
                head_dim: 0,
                ..good
            },
            ModelShape {
                params: Some(0),
                ..good
            },
            ModelShape {
                params: Some(u64::MAX),
                ..good
            },
            ModelShape {
                latent: Some(Latent {
                    kv_lora_rank: 0,
                    rope_dim: 64,
                }),
                ..good
            },
        ] {
            assert!(bad.size(1, 1, None).is_err(), "{bad:?}");
        }
        for (batch, seq_len, memory) in [
            (0, 1, None),
            (1, 0, None),
            (1, 1, Some(0)),
            (u64::MAX, u64::MAX, None),
        ] {
            assert!(
                good.size(batch, seq_len, memory).is_err(),
                "{batch} x {seq_len} in {memory:?}"
            );
        }
        let one_element = ModelShape {
            layers: 1,
            latent: Some(Latent {
                kv_lora_rank: 1,
                rope_dim: 0,
            }),
            params: Some(u64::MAX),
            dtype: Dtype::Int4,
            ..good
        };
        assert!(one_element.crossover_tokens().is_err());
        assert!(preset("gpt-9").is_err());
        assert!(Dtype::by_name("fp16").is_err());
    }

    #[test]
    fn names_are_found_again() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::by_name(dtype.name()).ok(), Some(dtype));
        }
        for (name, shape) in PRESETS {
            assert_eq!(preset(name).ok().as_ref(), Some(shape));
            assert!(shape.size(1, 1, None).is_ok(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn the_crossover_is_the_first_length_beyond_the_weights(
            layers in 1..200_u32,
            kv_heads in 1..200_u32,
            head_dim in 1..300_u32,
            params in 1..1_000_000_000_000_u64,
            batch in 1..1_000_u64,
            dtype in prop::sample::select(Dtype::ALL.to_vec()),
        ) {
            let shape = ModelShape { layers, kv_heads, head_dim, latent: None, params: Some(params), dtype };
            let weights = shape.weight_bytes().expect("small").expect("known");
            let length = shape.crossover_seq_len(batch).expect("small").expect("known");
            prop_assert!(shape.kv_bytes(batch, length).expect("small") > weights);
            if length > 1 {
                prop_assert!(shape.kv_bytes(batch, length - 1).expect("small") <= weights);
            }
        }

        #[test]
        fn no_size_panics(
            layers: u32, kv_heads: u32, head_dim: u32, params: Option<u64>, batch: u64, seq_len: u64, memory: Option<u64>,
            latent: Option<(u32, u32)>,
            dtype in prop::sample::select(Dtype::ALL.to_vec()),
        ) {
            let latent = latent.map(|(kv_lora_rank, rope_dim)| Latent { kv_lora_rank, rope_dim });
            let shape = ModelShape { layers, kv_heads, head_dim, latent, params, dtype };
            if let Ok(sizing) = shape.size(batch, seq_len, memory) {
                prop_assert!(sizing.kv_bytes >= sizing.kv_bytes_per_token);
            }
        }
    }
}
