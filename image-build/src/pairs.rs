//! What files of the inputs say: lines of `KEY=VALUE`, as `build_args_file` and `labels_file` of Concourse's oci-build-task have
//! them, and build secrets.

use std::collections::BTreeMap;

use orchestra::{ContainerPath, Error, ExposeSecret, Job, Result, SecretString, Task, VolumePath};

use crate::ImageBuild;

/// What a file of lines may be at most.
const LIMIT: u64 = 1 << 20;
/// What a secret may be at most: BuildKit's own limit (`MaxSecretSize`).
const SECRET_LIMIT: u64 = 500 << 10;

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
    for (id, path) in std::mem::take(&mut build.options.secret_files) {
        let secret = SecretString::from(text(build, job, &path, SECRET_LIMIT).await?);
        // Whoever made the file would choose what a layer puts in its place.
        if secret.expose_secret().starts_with("secret:") {
            return Err(
                Error::invalid(format!("{path} begins with `secret:`, as a reference to a secret does"))
                    .with_hint("a file of an input holds the secret itself"),
            );
        }
        build.secrets.insert(id, secret);
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
    let text = text(build, job, path, LIMIT).await?;
    parse_pairs(&text).map_err(|error| Error::invalid(format!("{path}: {}", error.message())))
}

/// The text of an input's file.
async fn text(build: &ImageBuild, job: &Job, path: &ContainerPath, limit: u64) -> Result<String> {
    let resolved = path.resolve(Task::WORKING_DIR);
    let found = build.inputs.iter().find_map(|input| {
        let rest = resolved.strip_prefix(&input.path.resolve(Task::WORKING_DIR))?;
        Some((&input.volume, rest.strip_prefix('/')?))
    });
    let Some((volume, inner)) = found else {
        return Err(Error::invalid(format!("{path} is in none of the build's inputs"))
            .with_hint("let its path begin with an input's"));
    };
    let content = job.read_file(volume, &VolumePath::new(inner)?, limit).await?;
    String::from_utf8(content).map_err(|_| Error::invalid(format!("{path} is not UTF-8")))
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
