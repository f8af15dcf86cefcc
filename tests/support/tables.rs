//! Reads the tables of the documents.

/// The rows of the first table of `document` under `heading` whose header starts with
/// these columns, cells trimmed and freed of backticks.
pub fn table_of(document: &str, heading: &str, header: &str) -> Vec<Vec<String>> {
    let section = document.split_once(heading).and_then(|(_, rest)| rest.split_once(header));
    let (_, rest) = section.unwrap_or_else(|| panic!("no table `{header}` under `{heading}`"));
    rest.lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells =
                line.strip_prefix('|').unwrap().strip_suffix('|').expect("a whole row").split('|');
            cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
        })
        .collect()
}
