//! The result as one HTML page that needs no network: the result's JSON, and a
//! script that draws it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::LoadError;
use super::result::LoadResult;

const PAGE: &str = include_str!("report.html");

/// Where the result goes in the page.
const PLACE: &str = "{{RESULT}}";

/// Where the page goes. It is opened before the run, so that a path which cannot be written
/// costs nobody the time of a run.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    /// The file that is there, which keeps what is in it until there is a page to replace it.
    /// If none is there, none is left behind by a run without a result.
    existing: Option<File>,
}

impl Destination {
    /// The file that the page is to replace, or its place.
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

    /// Writes the page.
    ///
    /// # Errors
    ///
    /// [`LoadError::Report`] if that has become impossible since.
    pub fn write(self, result: &LoadResult) -> Result<(), LoadError> {
        let Self { path, existing } = self;
        let write = || {
            let mut file = existing.map_or_else(|| File::create(&path), Ok)?;
            // A pipe or a terminal has no length.
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
