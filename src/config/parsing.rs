//! Parsing a command line and the environment.

use std::ffi::OsString;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};

/// Parses the arguments. If a value from the environment is wrong, the error names the
/// variable; clap names only the flag.
///
/// # Errors
///
/// clap's.
pub fn parse<C: Parser, T: Into<OsString>>(
    args: impl IntoIterator<Item = T>,
) -> Result<C, clap::Error> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let parsed = C::try_parse_from(&args);
    let arguments = C::command().mut_args(|arg| arg.env(None::<&'static str>));
    if parsed.is_ok() || arguments.clone().try_get_matches_from(&args).is_err() {
        return parsed;
    }
    for arg in C::command().get_arguments() {
        let Some(variable) = arg.get_env() else { continue };
        let Some(value) = std::env::var_os(variable) else { continue };
        let name = arg.get_long().map(|long| format!("--{long}="));
        let mut flag = OsString::from(name.unwrap_or_default());
        flag.push(value);
        let alone = [OsString::from(arguments.get_name()), flag];
        if let Err(mut error) = arguments.clone().try_get_matches_from(alone) {
            let origin = format!("this is the environment variable {}", variable.to_string_lossy());
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![origin.into()]));
            return Err(error);
        }
    }
    parsed
}
