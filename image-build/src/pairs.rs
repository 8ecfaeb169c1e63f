//! Files of `KEY=VALUE`, as `build_args_file` and `labels_file` of Concourse's oci-build-task have them.

use std::collections::BTreeMap;

use orchestra::{ContainerPath, Error, Job, Result, Task, VolumePath};

use crate::ImageBuild;

/// What such a file may be at most.
const LIMIT: u64 = 1 << 20;

/// Reads lines of `KEY=VALUE`. Empty lines and those that begin with `#` say nothing; a value is taken as it stands.
///
/// # Errors
/// [`InvalidInput`](orchestra::ErrorKind::InvalidInput) with the line's number, if one is of another form.
///
/// ```
/// let pairs = orchestra_image_build::parse_pairs("# versions\nGO=1.26\nEMPTY=\n")?;
/// assert_eq!(pairs["GO"], "1.26");
/// # Ok::<_, orchestra::Error>(())
/// ```
pub fn parse_pairs(text: &str) -> Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
            return Err(Error::invalid(format!("line {} is not KEY=VALUE", number + 1)));
        };
        pairs.insert(key.trim().to_owned(), value.to_owned());
    }
    Ok(pairs)
}

/// Takes in what the files of the inputs say.
pub(crate) async fn take_in(build: &mut ImageBuild, job: &Job) -> Result<()> {
    for path in std::mem::take(&mut build.options.build_args_files) {
        let pairs = read(build, job, &path).await?;
        merge(&mut build.build_args, pairs);
    }
    for path in std::mem::take(&mut build.options.labels_files) {
        let pairs = read(build, job, &path).await?;
        merge(&mut build.options.labels, pairs);
    }
    Ok(())
}

/// What was there stays.
fn merge(into: &mut BTreeMap<String, String>, pairs: BTreeMap<String, String>) {
    for (key, value) in pairs {
        into.entry(key).or_insert(value);
    }
}

async fn read(build: &ImageBuild, job: &Job, path: &ContainerPath) -> Result<BTreeMap<String, String>> {
    let resolved = path.resolve(Task::WORKING_DIR);
    let found = build.inputs.iter().find_map(|input| {
        let rest = resolved.strip_prefix(&input.path.resolve(Task::WORKING_DIR))?;
        Some((&input.volume, rest.strip_prefix('/')?))
    });
    let Some((volume, inner)) = found else {
        return Err(Error::invalid(format!("{path} is in none of the build's inputs"))
            .with_hint("let its path begin with an input's"));
    };
    let content = job.read_file(volume, &VolumePath::new(inner)?, LIMIT).await?;
    let text = String::from_utf8(content).map_err(|_| Error::invalid(format!("{path} is not UTF-8")))?;
    parse_pairs(&text).map_err(|error| Error::invalid(format!("{path}: {}", error.message())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_pairs_and_what_is_none_has_its_number() {
        let pairs = parse_pairs("\n# a\nA = b=c \nB=\n").unwrap();
        assert_eq!(
            pairs,
            [("A", " b=c "), ("B", "")].map(|(k, v)| (k.into(), v.into())).into()
        );
        for bad in ["A", "=x", "A=1\nB"] {
            let line = bad.lines().count();
            let error = parse_pairs(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{error}");
        }
    }
}
