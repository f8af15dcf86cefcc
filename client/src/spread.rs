//! Picks the endpoint for a request: the less loaded of two drawn at random.
//!
//! Always taking the least loaded endpoint would send all clients of a service to the same one at
//! once. A single random draw leaves long queues. Two draws avoid both (Mitzenmacher, The Power of
//! Two Choices in Randomized Load Balancing).

/// Draws two of `from` that `allowed` accepts, and returns the one with the lower `load`. Returns
/// `None` if `allowed` accepts none.
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

/// Draws one that is allowed. If the draw falls on one that is not, it takes the next that is. This
/// favours the one after a forbidden endpoint, but few are forbidden, and only for a moment.
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
    fn the_less_loaded_of_two_is_picked() {
        for _ in 0..100 {
            assert_eq!(pick(&[7, 3], |_| true, |load| *load), Some(&3));
        }
    }

    #[test]
    fn every_endpoint_but_the_most_loaded_is_picked() {
        let loads = [4, 1, 9, 2, 3];
        let picked: Vec<_> = (0..1000).filter_map(|_| pick(&loads, |_| true, |l| *l)).collect();
        assert_eq!(picked.len(), 1000);
        for load in loads {
            assert_eq!(picked.contains(&&load), load != 9, "{load}");
        }
    }

    #[test]
    fn equally_loaded_endpoints_get_equal_shares() {
        let mut counts = [0; 5];
        for _ in 0..10_000 {
            counts[*pick(&[0, 1, 2, 3, 4], |_| true, |_| 0).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (1700..2300).contains(count)), "{counts:?}");
    }

    #[test]
    fn an_endpoint_that_is_not_allowed_is_never_picked() {
        for _ in 0..100 {
            assert_eq!(pick(&[0, 1, 2], |item| *item == 1, |_| 0), Some(&1));
        }
        assert_eq!(pick(&[0, 1, 2], |_| false, |_| 0), None);
        assert_eq!(pick::<u8>(&[], |_| true, |_| 0), None);
    }
}
