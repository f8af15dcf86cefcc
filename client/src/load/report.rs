//! The report: the result as one HTML page that works offline. It contains the result's JSON and a
//! script that draws it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::LoadError;
use super::result::LoadResult;

const PAGE: &str = include_str!("report.html");

/// The placeholder for the result in the page.
const PLACE: &str = "{{RESULT}}";

/// The file of the report. It is opened before the run, so that an unwritable path is noticed at
/// once.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    /// The existing file, if any. It keeps its contents until the report is complete. If there is
    /// none, a run without a result leaves none behind.
    existing: Option<File>,
}

impl Destination {
    /// Checks that the report can be written to `path`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Report`] if it cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Option<Self>, LoadError> {
        let Some(path) = path else { return Ok(None) };
        match open(path) {
            Ok(existing) => Ok(Some(Self { path: path.to_owned(), existing })),
            Err(source) => Err(LoadError::Report { path: path.to_owned(), source }),
        }
    }

    /// Writes the report.
    ///
    /// # Errors
    ///
    /// [`LoadError::Report`] if writing fails.
    pub fn write(self, result: &LoadResult) -> Result<(), LoadError> {
        let Self { path, existing } = self;
        let write = || {
            let mut file = existing.map_or_else(|| File::create(&path), Ok)?;
            // Pipes and terminals cannot be truncated.
            if file.metadata()?.is_file() {
                file.set_len(0)?;
            }
            file.write_all(page(result).as_bytes())
        };
        write().map_err(|source| LoadError::Report { path: path.clone(), source })
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::create_new(path) {
        Ok(_) => fs::remove_file(path).map(|()| None),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).open(path).map(Some)
        }
        Err(error) => Err(error),
    }
}

/// The HTML page for a result.
pub fn page(result: &LoadResult) -> String {
    let (before, after) = PAGE.split_once(PLACE).expect("the page has a place for the result");
    format!("{before}{}{after}", embeddable(&result.json()))
}

/// Escapes JSON for a script element. Only text that starts with `<` could end the element or
/// change how it is parsed. In JSON, `<` occurs only in strings, where an escape may stand for it.
fn embeddable(json: &str) -> String {
    json.replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_cannot_break_out_of_its_script_element() {
        let text = "</script><script>alert(1)</script><!--";
        let json = serde_json::to_string(text).unwrap();
        let embedded = embeddable(&json);
        assert!(!embedded.contains('<'), "{embedded}");
        assert_eq!(serde_json::from_str::<String>(&embedded).unwrap(), text);
    }

    #[test]
    fn the_page_has_exactly_one_placeholder() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
    }
}
