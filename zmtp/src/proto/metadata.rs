//! Metadata: the properties in a READY (RFC 37, "The NULL Security Mechanism").

use super::command::split_short;
use crate::reason::Reason;

/// Iterates over the properties in a READY's data, as pairs of name and value.
///
/// If the data is malformed, the last item is [`Reason::Metadata`].
pub fn properties(mut data: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), Reason>> {
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        let property = split_property(data);
        data = property.map_or(&[], |(_, _, rest)| rest);
        Some(property.map(|(name, value, _)| (name, value)).ok_or(Reason::Metadata))
    })
}

/// Encodes properties, given as pairs of name and value, as the data of a READY.
///
/// A name must have 1 to 255 characters.
pub fn encode(properties: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (name, value) in properties {
        data.push(name.len() as u8);
        data.extend_from_slice(name);
        data.extend_from_slice(&(value.len() as u32).to_be_bytes());
        data.extend_from_slice(value);
    }
    data
}

fn split_property(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = split_short(data)?;
    if name.is_empty() || !name.iter().all(|byte| is_name_char(*byte)) {
        return None;
    }
    let (size, rest) = rest.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*size) as usize)?;
    Some((name, value, rest))
}

/// Whether a property's name may contain this character (RFC 37, "name-char").
fn is_name_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte)
}
