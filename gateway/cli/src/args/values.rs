//! Values that are more than text: shapes, pairs, ends of a copy, languages.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;

/// `K=V`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for KeyValue {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err("it must be K=V, as in team=search".to_owned()),
        }
    }
}

/// A shape, whose limits the mesh checks; what isn't given is left to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ShapeArg {
    pub(crate) cpu: Option<u32>,
    pub(crate) memory_mib: Option<u32>,
    pub(crate) disk_gib: Option<u32>,
}

const SHAPE_FORMS: &str =
    "it must be CPUxMEMORYxDISK (vCPU, MiB, GiB), as in 2x2048x5, or cpu=2,memory=2048,disk=5 with any part left out";

impl FromStr for ShapeArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| SHAPE_FORMS.to_owned());
        if !text.contains('=') {
            let parts = text.split('x').map(number).collect::<Result<Vec<_>, _>>()?;
            let [cpu, memory, disk] = parts[..] else { return Err(SHAPE_FORMS.to_owned()) };
            return Ok(Self { cpu: Some(cpu), memory_mib: Some(memory), disk_gib: Some(disk) });
        }
        let mut shape = Self::default();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(|| SHAPE_FORMS.to_owned())?;
            let place = match name.trim() {
                "cpu" => &mut shape.cpu,
                "memory" => &mut shape.memory_mib,
                "disk" => &mut shape.disk_gib,
                other => return Err(format!("'{other}' is no part of a shape: {SHAPE_FORMS}")),
            };
            if place.replace(number(value)?).is_some() {
                return Err(format!("'{}' is given twice", name.trim()));
            }
        }
        Ok(shape)
    }
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CopyEnd {
    /// Standard input or output.
    Standard,
    /// A local path.
    Local(PathBuf),
    /// A path in a sandbox.
    Sandbox { sandbox: String, path: String },
}

impl FromStr for CopyEnd {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            _ if text == "-" => Ok(Self::Standard),
            _ if text.is_empty() => Err("a path can't be empty".to_owned()),
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains('/') && !sandbox.starts_with('.') => {
                if path.is_empty() {
                    return Err(format!("a path must follow '{sandbox}:', as in {sandbox}:/root/file"));
                }
                Ok(Self::Sandbox { sandbox: sandbox.to_owned(), path: path.to_owned() })
            }
            _ => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

/// A language whose interpreter every guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// python3
    #[value(alias = "py")]
    Python,
    /// node
    #[value(alias = "js")]
    Javascript,
    /// node, with the types taken out first
    #[value(alias = "ts")]
    Typescript,
}

impl Language {
    /// The name on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Javascript => "javascript",
            Self::Typescript => "typescript",
        }
    }
}
