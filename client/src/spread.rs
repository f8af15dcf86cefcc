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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_the_less_loaded_is_picked() {
        for _ in 0..100 {
            assert_eq!(pick(&[7, 3], |_| true, |load| *load), Some(&3));
        }
    }

    #[test]
    fn the_most_loaded_is_never_picked_and_all_others_are() {
        let loads = [4, 1, 9, 2, 3];
        let picked: Vec<_> = (0..1000).filter_map(|_| pick(&loads, |_| true, |l| *l)).collect();
        assert_eq!(picked.len(), 1000);
        for load in loads {
            assert_eq!(picked.contains(&&load), load != 9, "{load}");
        }
    }

    #[test]
    fn equals_have_equal_shares() {
        let mut counts = [0; 5];
        for _ in 0..10_000 {
            counts[*pick(&[0, 1, 2, 3, 4], |_| true, |_| 0).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (1700..2300).contains(count)), "{counts:?}");
    }

    #[test]
    fn one_that_is_not_allowed_is_never_picked() {
        for _ in 0..100 {
            assert_eq!(pick(&[0, 1, 2], |item| *item == 1, |_| 0), Some(&1));
        }
        assert_eq!(pick(&[0, 1, 2], |_| false, |_| 0), None);
        assert_eq!(pick::<u8>(&[], |_| true, |_| 0), None);
    }
}
