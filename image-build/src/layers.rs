//! Where a build's layers come from and go to besides the builder's own state, in the words of `docker buildx build`.

use std::fmt;
use std::str::FromStr;

use orchestra::{ContainerPath, Error, ImageRef, Result};

/// Where layers that were built elsewhere are taken from (`--cache-from`). One that is not there is no failure.
///
/// ```
/// use orchestra_image_build::CacheFrom;
/// let short: CacheFrom = "registry.example.com/app:cache".parse()?;
/// assert_eq!(short, "type=registry,ref=registry.example.com/app:cache".parse()?);
/// # Ok::<_, orchestra::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheFrom {
    /// Under this name in a registry, where a build put them with [`CacheTo::Registry`], or an image with [`CacheTo::Inline`].
    Registry(ImageRef),
    /// In this directory of an input or a cache of the build.
    Local(ContainerPath),
    /// In a bucket.
    S3(Bucket),
}

/// Where a build's layers are put for others (`--cache-to`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheTo {
    /// Into the image that is pushed: what its layers were made of. Only those of the image itself.
    Inline,
    /// Under this name in a registry.
    Registry {
        /// The name, which is not the image's own.
        reference: ImageRef,
        /// Of which steps.
        mode: CacheMode,
        /// Whether the build succeeds though the layers could not be put there.
        ignore_error: bool,
    },
    /// In this directory of a cache of the build.
    Local {
        /// The directory, which is made.
        path: ContainerPath,
        /// Of which steps.
        mode: CacheMode,
    },
    /// In a bucket.
    S3 {
        /// Which, and where in it.
        bucket: Bucket,
        /// Of which steps.
        mode: CacheMode,
        /// Whether the build succeeds though the layers could not be put there.
        ignore_error: bool,
    },
}

/// A place in a bucket of S3 or what speaks as it does. What opens it is
/// [`cache_credentials`](crate::ImageBuild::cache_credentials).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bucket {
    /// The bucket.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// What the cache is called; BuildKit's `buildkit` where `None`.
    pub name: Option<String>,
    /// What the names of its objects begin with.
    pub prefix: Option<String>,
    /// Where it is served, if not by Amazon.
    pub endpoint: Option<String>,
    /// Whether the bucket is named in the path rather than in the host.
    pub path_style: bool,
}

impl Bucket {
    fn read(record: &mut Record<'_>) -> Result<Self> {
        let text = |text: &str| text.to_owned();
        Ok(Self {
            bucket: record.required("s3", "bucket")?.to_owned(),
            region: record.required("s3", "region")?.to_owned(),
            name: record.take("name").map(text),
            prefix: record.take("prefix").map(text),
            endpoint: record.take("endpoint_url").map(text),
            path_style: record.flag("use_path_style")?,
        })
    }

    fn fields(&self) -> Vec<String> {
        let mut fields = vec![
            "type=s3".to_owned(),
            format!("bucket={}", self.bucket),
            format!("region={}", self.region),
        ];
        let optional = [
            ("name", &self.name),
            ("prefix", &self.prefix),
            ("endpoint_url", &self.endpoint),
        ];
        fields.extend(
            optional
                .into_iter()
                .filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?))),
        );
        fields.extend(self.path_style.then(|| "use_path_style=true".to_owned()));
        fields
    }
}

/// The steps whose layers are put somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheMode {
    /// Those of the image.
    #[default]
    Min,
    /// Those of all stages.
    Max,
}

impl FromStr for CacheMode {
    type Err = Error;

    /// From `min` or `max`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "min" => Ok(Self::Min),
            "max" => Ok(Self::Max),
            _ => Err(Error::invalid(format!("mode {text:?} is neither min nor max"))),
        }
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Min => "min",
            Self::Max => "max",
        })
    }
}

/// `key=value,key=value` with keys that are each known and given once.
struct Record<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Record<'a> {
    fn read(text: &'a str) -> Result<Self> {
        let mut fields: Vec<(&str, &str)> = Vec::new();
        for field in text.split(',') {
            let Some((key, value)) = field.split_once('=') else {
                return Err(Error::invalid(format!("{field:?} in {text:?} is not KEY=VALUE")));
            };
            if fields.iter().any(|(known, _)| *known == key) {
                return Err(Error::invalid(format!("{key} is given twice in {text:?}")));
            }
            fields.push((key, value));
        }
        Ok(Self(fields))
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|(known, _)| *known == key)?;
        Some(self.0.remove(at).1)
    }

    fn required(&mut self, kind: &str, key: &str) -> Result<&'a str> {
        self.take(key)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Error::invalid(format!("type={kind} has no {key}")).with_hint(format!("add {key}=…")))
    }

    fn mode(&mut self) -> Result<CacheMode> {
        self.take("mode").map_or(Ok(CacheMode::Min), str::parse)
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Error::invalid(format!("{key}={other} is neither true nor false"))),
        }
    }

    fn end(self, kind: &str) -> Result<()> {
        match self.0.first() {
            Some((key, _)) => Err(Error::invalid(format!("type={kind} knows no {key:?}"))),
            None => Ok(()),
        }
    }
}

/// A name alone stands for a registry's.
fn is_reference(text: &str) -> bool {
    !text.contains(['=', ','])
}

fn unknown(kind: &str, known: &str) -> Error {
    Error::invalid(format!("a cache of type {kind:?} is not known")).with_hint(format!("write one of {known}"))
}

impl FromStr for CacheFrom {
    type Err = Error;

    /// From `type=registry,ref=NAME`, `type=local,src=PATH`, `type=s3,bucket=…,region=…[,name=…][,prefix=…]
    /// [,endpoint_url=…][,use_path_style=true]`, or a `NAME` alone.
    fn from_str(text: &str) -> Result<Self> {
        if is_reference(text) {
            return Ok(Self::Registry(text.parse()?));
        }
        let mut record = Record::read(text)?;
        let kind = record.take("type").unwrap_or_default();
        let from = match kind {
            "registry" => Self::Registry(record.required(kind, "ref")?.parse()?),
            "local" => Self::Local(record.required(kind, "src")?.parse()?),
            "s3" => Self::S3(Bucket::read(&mut record)?),
            _ => {
                let known = "type=registry,ref=NAME, type=local,src=PATH and type=s3,bucket=NAME,region=NAME";
                return Err(unknown(kind, known));
            }
        };
        record.end(kind)?;
        Ok(from)
    }
}

impl FromStr for CacheTo {
    type Err = Error;

    /// From `type=inline`, `type=registry,ref=NAME[,mode=max][,ignore-error=true]`, `type=local,dest=PATH[,mode=max]`,
    /// `type=s3,bucket=…,region=…[,mode=max]`, or a `NAME` alone.
    fn from_str(text: &str) -> Result<Self> {
        if is_reference(text) {
            return Ok(Self::Registry {
                reference: text.parse()?,
                mode: CacheMode::Min,
                ignore_error: false,
            });
        }
        let mut record = Record::read(text)?;
        let kind = record.take("type").unwrap_or_default();
        let to = match kind {
            "inline" => Self::Inline,
            "registry" => Self::Registry {
                reference: record.required(kind, "ref")?.parse()?,
                mode: record.mode()?,
                ignore_error: record.flag("ignore-error")?,
            },
            "local" => Self::Local {
                path: record.required(kind, "dest")?.parse()?,
                mode: record.mode()?,
            },
            "s3" => Self::S3 {
                bucket: Bucket::read(&mut record)?,
                mode: record.mode()?,
                ignore_error: record.flag("ignore-error")?,
            },
            _ => {
                let known =
                    "type=inline, type=registry,ref=NAME, type=local,dest=PATH and type=s3,bucket=NAME,region=NAME";
                return Err(unknown(kind, known));
            }
        };
        record.end(kind)?;
        Ok(to)
    }
}

impl CacheFrom {
    /// `buildctl`'s words for it, one for a field.
    pub(crate) fn fields(&self, working_dir: &str) -> Vec<String> {
        match self {
            Self::Registry(reference) => vec!["type=registry".into(), format!("ref={}", reference.canonical())],
            Self::Local(path) => vec!["type=local".into(), format!("src={}", path.resolve(working_dir))],
            Self::S3(bucket) => bucket.fields(),
        }
    }
}

impl CacheTo {
    /// `buildctl`'s words for it, one for a field.
    pub(crate) fn fields(&self, working_dir: &str) -> Vec<String> {
        match self {
            Self::Inline => vec!["type=inline".into()],
            Self::Registry {
                reference,
                mode,
                ignore_error,
            } => vec![
                "type=registry".into(),
                format!("ref={}", reference.canonical()),
                format!("mode={mode}"),
                format!("ignore-error={ignore_error}"),
            ],
            Self::Local { path, mode } => vec![
                "type=local".into(),
                format!("dest={}", path.resolve(working_dir)),
                format!("mode={mode}"),
            ],
            Self::S3 {
                bucket,
                mode,
                ignore_error,
            } => {
                let mut fields = bucket.fields();
                fields.extend([format!("mode={mode}"), format!("ignore-error={ignore_error}")]);
                fields
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<T: FromStr<Err = Error> + fmt::Debug>(text: &str) -> String {
        format!("{:?}", text.parse::<T>().unwrap_err())
    }

    #[test]
    fn the_words_of_buildx_become_those_of_buildctl() {
        let from = |text: &str| text.parse::<CacheFrom>().unwrap().fields("/w").join(",");
        let to = |text: &str| text.parse::<CacheTo>().unwrap().fields("/w").join(",");
        assert_eq!(from("team/app:cache"), "type=registry,ref=docker.io/team/app:cache");
        assert_eq!(from("type=local,src=layers/a"), "type=local,src=/w/layers/a");
        assert_eq!(to("type=inline"), "type=inline");
        assert_eq!(
            to("ref=r.test/app:cache,mode=max,type=registry"),
            "type=registry,ref=r.test/app:cache,mode=max,ignore-error=false"
        );
        assert_eq!(to("type=local,dest=/layers"), "type=local,dest=/layers,mode=min");
        assert_eq!(
            to("type=s3,bucket=b,region=r,endpoint_url=http://s3.test,use_path_style=true,name=app,mode=max"),
            "type=s3,bucket=b,region=r,name=app,endpoint_url=http://s3.test,use_path_style=true,mode=max,ignore-error=false"
        );
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_name() {
        for (text, expected) in [
            ("type=gha", "\"gha\" is not known"),
            ("type=registry", "type=registry has no ref"),
            ("type=s3,bucket=b", "type=s3 has no region"),
            (
                "type=s3,bucket=b,region=r,access_key_id=x",
                "knows no \"access_key_id\"",
            ),
            ("type=local,dest=x", "type=local has no src"),
            ("type=registry,ref=a,ref=b", "ref is given twice"),
            ("type=registry,ref=a,insecure=true", "knows no \"insecure\""),
            ("type=local,src", "\"src\" in"),
            ("type=local,src=../x", ".."),
            ("UP", "UP"),
        ] {
            assert!(
                said::<CacheFrom>(text).contains(expected),
                "{}",
                said::<CacheFrom>(text)
            );
        }
        assert!(said::<CacheTo>("type=registry,ref=a,mode=all").contains("neither min nor max"));
        assert!(said::<CacheTo>("type=registry,ref=a,ignore-error=1").contains("neither true nor false"));
    }
}
