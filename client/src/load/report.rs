//! The result as one HTML page that needs no network: the result's JSON, and a
//! script that draws it.

use super::result::LoadResult;

const PAGE: &str = include_str!("report.html");

/// Where the result goes in the page.
const PLACE: &str = "{{RESULT}}";

/// The page.
pub fn page(result: &LoadResult) -> String {
    let (before, after) = PAGE.split_once(PLACE).expect("the page has a place for the result");
    format!("{before}{}{after}", embeddable(&result.json()))
}

/// JSON as it may stand within a script element. The only thing that could end the
/// element, or change how it is read, starts with `<`; in JSON that occurs in texts
/// alone, where it may be written as its number.
fn embeddable(json: &str) -> String {
    json.replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_result_ends_the_script_that_holds_it() {
        let text = "</script><script>alert(1)</script><!--";
        let json = serde_json::to_string(text).unwrap();
        let embedded = embeddable(&json);
        assert!(!embedded.contains('<'), "{embedded}");
        assert_eq!(serde_json::from_str::<String>(&embedded).unwrap(), text);
    }

    #[test]
    fn the_page_has_one_place_for_the_result() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
    }
}
