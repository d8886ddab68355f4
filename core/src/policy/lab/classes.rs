//! Numbers rounded to classes, so that entries that differ little can stand in one list.

/// Classes an octave: neighbours differ by 9 %.
const AN_OCTAVE: f32 = 8.0;

/// The class of a number; the lowest one for 0 and what is less or no number.
pub(super) fn class_of(value: f32) -> i16 {
    if value > 0.0 {
        (AN_OCTAVE * value.log2()).round() as i16
    } else {
        i16::MIN
    }
}

/// The number that a class stands for.
pub(super) fn value_of(class: i16) -> f64 {
    match class {
        i16::MIN => 0.0,
        _ => (f64::from(class) / f64::from(AN_OCTAVE)).exp2(),
    }
}
