//! Parsing a command line and the environment.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Parser};

/// The name that `--help` gives to the values of flags for endpoints.
const ENDPOINT: &str = "ENDPOINT";

/// Parses the arguments, with better errors than clap's own: an error in the environment names the
/// variable, and an unknown argument gets a tip only if there is a useful one.
///
/// # Errors
///
/// clap's error, improved as described above.
pub fn parse<C: Parser, T: Into<OsString>>(
    args: impl IntoIterator<Item = T>,
) -> Result<C, clap::Error> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    C::try_parse_from(&args).map_err(|error| {
        let error = with_useful_tip(error, &C::command());
        from_environment(&C::command(), &args).unwrap_or(error)
    })
}

/// An error about flags that contradict each other. If environment variables set some of them, the
/// error names the variables, because they are easy to overlook.
pub fn conflict(program: &mut Command, message: &str) -> clap::Error {
    let flags = program.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg.get_env()?)));
    let is_named =
        |long: &str| message.split(' ').any(|word| word.strip_prefix("--") == Some(long));
    let set =
        flags.filter(|(long, variable)| is_named(long) && std::env::var_os(variable).is_some());
    let names: Vec<_> = set.map(|(_, variable)| variable.to_string_lossy().into_owned()).collect();
    let from = if names.is_empty() {
        String::new()
    } else {
        format!("\n\n  the environment sets {}", names.join(" and "))
    };
    program.error(ErrorKind::ArgumentConflict, format!("{message}{from}"))
}

/// The error that an environment variable causes, if the arguments alone are valid.
fn from_environment(program: &Command, args: &[OsString]) -> Option<clap::Error> {
    let arguments = program.clone().mut_args(|arg| arg.env(None::<&'static str>));
    if arguments.clone().try_get_matches_from(args).is_err() {
        return None;
    }
    program.get_arguments().find_map(|arg| {
        let variable = arg.get_env()?;
        let value = std::env::var_os(variable)?;
        let name = arg.get_long().map(|long| format!("--{long}="));
        let mut flag = OsString::from(name.unwrap_or_default());
        flag.push(value);
        let alone = [OsString::from(arguments.get_name()), flag];
        let mut error = arguments.clone().try_get_matches_from(alone).err()?;
        let origin =
            format!("the value comes from the environment variable {}", variable.to_string_lossy());
        tip(&mut error, origin);
        Some(error)
    })
}

/// clap suggests passing an unknown flag as a value after `--`, which is never what the user wants
/// here. Likelier mistakes are an endpoint without its flag, and a value that must follow `=`.
fn with_useful_tip(mut error: clap::Error, program: &Command) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument {
        error.remove(ContextKind::Suggested);
        let argument = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) => argument.clone(),
            _ => String::new(),
        };
        if argument.starts_with("tcp://")
            && let Some(flag) = flag_that(program, |arg| takes(arg, ENDPOINT))
        {
            tip(&mut error, format!("put a flag before the endpoint: --{flag} {argument}"));
        } else if argument.parse::<bool>().is_ok() {
            let flags = program.get_arguments().filter(|arg| arg.is_require_equals_set());
            let right: Vec<_> =
                flags.filter_map(|arg| Some(format!("--{}={argument}", arg.get_long()?))).collect();
            if !right.is_empty() {
                let right = right.join(" or ");
                tip(&mut error, format!("write the value with an equals sign: {right}"));
            }
        }
    }
    error
}

/// The first flag for which `is_one` holds.
fn flag_that(program: &Command, is_one: impl Fn(&Arg) -> bool) -> Option<&str> {
    program.get_arguments().find(|arg| is_one(arg))?.get_long()
}

/// Whether `--help` gives this name to the value of an argument.
fn takes(arg: &Arg, name: &str) -> bool {
    arg.get_value_names().is_some_and(|names| names.iter().any(|of_arg| of_arg == name))
}

fn tip(error: &mut clap::Error, text: String) {
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![text.into()]));
}
