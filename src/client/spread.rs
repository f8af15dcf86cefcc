//! Which endpoint a request goes to: the less loaded of two drawn at random.
//!
//! Two draws and no more: the least loaded of all would have every client of a
//! service run to the same one at once, and one draw alone leaves queues behind
//! (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing).

/// Draws two of `from` that `allowed` lets pass, and returns the one with the
/// lower `load`. `None` where none passes.
pub(super) fn pick<T>(
    from: &[T],
    allowed: impl Fn(&T) -> bool,
    load: impl Fn(&T) -> usize,
) -> Option<&T> {
    let first = draw(from, &allowed)?;
    let another = |item: &T| allowed(item) && !std::ptr::eq(item, first);
    let second = draw(from, another).unwrap_or(first);
    Some(if load(second) < load(first) { second } else { first })
}

/// Draws one that is allowed. From where the first draw fell on one that is not it
/// goes on to the next that is: few are not, and only for a moment.
fn draw<T>(from: &[T], allowed: impl Fn(&T) -> bool) -> Option<&T> {
    if from.is_empty() {
        return None;
    }
    let (before, after) = from.split_at(fastrand::usize(..from.len()));
    after.iter().chain(before).find(|item| allowed(item))
}
